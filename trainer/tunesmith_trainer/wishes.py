"""What the agent wants of the group: rank 0 hears it, and tells the others where all are at one point."""

from __future__ import annotations

import torch

from tunesmith_trainer.control import Control
from tunesmith_trainer.group import Group


class Wishes:
    """A rank alone heeds `stop` at once; ranks of a group when they have agreed on it at an exchange."""

    def __init__(self, control: Control, group: Group) -> None:
        self._control, self._group = control, group
        self._agreed = False

    @property
    def stop(self) -> bool:
        """Whether the run is to end here."""
        return self._control.stop if self._group.alone else self._agreed

    def look(self) -> None:
        """Hear the agent; rank 0's business."""
        if self._group.leads:
            self._control.look()

    def own(self) -> float:
        """What rank 0 puts into an exchange; nothing counts from the others."""
        return float(self._group.leads and self._control.stop)

    def agree(self, told: float) -> None:
        """Take what rank 0 put into the exchange."""
        self._agreed = self._agreed or told > 0

    def take_checkpoint(self) -> bool:
        """Whether a checkpoint was asked for since the last call; rank 0's business."""
        wanted, self._control.checkpoint = self._control.checkpoint, False
        return wanted

    def exchange(self, loss: torch.Tensor) -> list[float]:
        """A loss of each rank, by rank; what rank 0 wants is told by the way."""
        if self._group.alone:
            return [float(loss)]
        told = torch.stack([loss, loss.new_tensor(self.own())])
        found = [item.tolist() for item in self._group.gather(told)]
        self.agree(found[0][1])
        return [item[0] for item in found]

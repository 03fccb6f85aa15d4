"""Gradients of a step: summed over its micro-batches, its logical shards and the ranks that work on them.

In exact mode each shard's gradient is summed apart, and the shards in a fixed binary tree, so that it does
not matter which rank computed which shard. A plain all-reduce does not give that: it adds in its own order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith_trainer.data import Micro
from tunesmith_trainer.group import Group
from tunesmith_trainer.run import GradientSync, Training
from tunesmith_trainer.state import Tensors


@dataclass(slots=True)
class Node:
    """The sum over the shards `first` to `first + size`; None when none of them has a micro-batch."""

    first: int
    size: int
    total: torch.Tensor | None


class Tree:
    """Adds shards in their order: two neighbours of equal size, aligned to twice that size, become one."""

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self.nodes: list[Node] = []
        for node in nodes:
            self.push(node)

    def push(self, node: Node) -> None:
        """Add the next node; its total may be changed."""
        self.nodes.append(node)
        while len(self.nodes) > 1 and _siblings(*self.nodes[-2:]):
            right, left = self.nodes.pop(), self.nodes.pop()
            self.nodes.append(Node(left.first, 2 * left.size, _sum(left.total, right.total)))

    def fold(self) -> torch.Tensor | None:
        """The sum of all, from the right: the same for every way to come to the same nodes."""
        total = None
        for node in reversed(self.nodes):
            total = _sum(node.total, total)
        return total


def _siblings(left: Node, right: Node) -> bool:
    return left.size == right.size and left.first % (2 * left.size) == 0


def _sum(left: torch.Tensor | None, right: torch.Tensor | None) -> torch.Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left.add_(right)


@dataclass(slots=True)
class Gradients:
    """The gradients of one rank's part of a step, and their exchange."""

    parameters: Sequence[torch.nn.Parameter]
    training: Training
    group: Group
    round: int = 0
    rounds: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    _micros: list[Micro] = field(default_factory=list)
    _own: list[Micro] = field(default_factory=list)
    _tree: Tree = field(default_factory=Tree)
    _open: bool = False
    _restored: bool = False

    @property
    def _apart(self) -> bool:
        """Whether each shard is summed apart."""
        return self.training.logical_shards > 1 and self.training.gradient_sync is GradientSync.EXACT

    @property
    def _numel(self) -> int:
        return sum(item.numel() for item in self.parameters)

    def _block(self, rank: int) -> range:
        share = self.training.logical_shards // self.group.world_size
        return range(rank * share, (rank + 1) * share)

    def _part(self, rank: int) -> list[Micro]:
        if self.training.logical_shards == 1:
            return self._micros
        block = self._block(rank)
        return sorted((item for item in self._micros if item.shard in block), key=lambda item: item.shard)

    def begin(self, micros: list[Micro]) -> None:
        """Start a step, or go on where `restore` left it.

        `rounds` are the micro-batches of the rank that has most of them; `round` counts those that are over.
        """
        self._micros = micros
        self._own = self._part(self.group.rank)
        self.rounds = max(len(self._part(rank)) for rank in _all(self.group))
        if not self._restored:
            self._clear()
        self._restored = False

    def own(self) -> Micro | None:
        """This rank's micro-batch of the present round; None when it has none left."""
        return self._own[self.round] if self.round < len(self._own) else None

    def add(self, loss: torch.Tensor) -> None:
        """Count this rank's micro-batch, whose backward pass is over."""
        self.losses.append(loss.detach())
        self._open = True
        if self._apart and self._closed(self.round + 1):
            self._tree.push(Node(self._own[self.round].shard, 1, self._flatten()))
            self._drop()
            self._open = False

    def _closed(self, done: int) -> bool:
        """Whether `done` micro-batches end with the last one of a shard."""
        return done >= len(self._own) or self._own[done].shard != self._own[done - 1].shard

    def reduce(self, wish: float) -> tuple[list[torch.Tensor], float]:
        """Set every parameter's gradient to that of the step.

        Gives the losses of all micro-batches in their order, and rank 0's `wish`, told by the way.
        """
        losses = self.losses
        if self._apart:
            losses, wish = self._exact(wish)
        elif not self.group.alone:
            losses, wish = self._fast(wish)
        elif self.training.logical_shards > 1:
            losses = self._ordered([losses])
        self.round = 0
        return losses, wish

    def _exact(self, wish: float) -> tuple[list[torch.Tensor], float]:
        group, used = self.group, len(self._micros)
        for shard in self._block(group.rank):
            if shard >= used:
                self._tree.push(Node(shard, 1, None))
        if group.alone:
            self._set(self._tree.fold())
            return self._ordered([self.losses]), wish
        # Which nodes a rank has is a function of the shards alone, so all know it without asking.
        plan = [Tree(Node(shard, 1, None) for shard in self._block(rank)).nodes for rank in _all(group)]
        width, room = self._numel + len(self.parameters), max(map(len, plan))
        device = self.parameters[0].device
        buffer = torch.zeros(room * width + self.rounds + 1, device=device)
        for place, node in enumerate(self._tree.nodes):
            if node.total is not None:
                buffer[place * width : (place + 1) * width] = node.total
        if self.losses:
            buffer[room * width : room * width + len(self.losses)] = torch.stack(self.losses)
        buffer[-1] = wish
        found = group.gather(buffer)
        nodes = [
            Node(
                node.first,
                node.size,
                found[rank][place * width : (place + 1) * width] if node.first < used else None,
            )
            for rank in _all(group)
            for place, node in enumerate(plan[rank])
        ]
        self._set(Tree(nodes).fold())
        parts = [list(found[rank][room * width : -1][: len(self._part(rank))]) for rank in _all(group)]
        return self._ordered(parts), float(found[0][-1])

    def _fast(self, wish: float) -> tuple[list[torch.Tensor], float]:
        """One all-reduce over gradients, losses (each in a place of its own) and the wish."""
        group, used = self.group, len(self._micros)
        places = {micro.index: place for place, micro in enumerate(self._micros)}
        told = torch.zeros(used + 1, device=self.parameters[0].device)
        for micro, loss in zip(self._own, self.losses, strict=True):
            told[places[micro.index]] = loss
        if group.leads:
            told[-1] = wish
        total = torch.cat([self._flatten(), told])
        group.add(total)
        self._set(total[: -1 - used])
        return list(total[-1 - used : -1]), float(total[-1])

    def _ordered(self, parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        """Losses by rank, put into the order of the micro-batches."""
        found = {
            micro.index: loss
            for rank, losses in enumerate(parts)
            for micro, loss in zip(self._part(rank), losses, strict=True)
        }
        return [found[micro.index] for micro in self._micros]

    def _flatten(self) -> torch.Tensor:
        """All gradients in one row, then 1 for each that there is: zeros are not the same as none."""
        pieces = [
            item.grad.reshape(-1) if item.grad is not None else item.new_zeros(item.numel())
            for item in self.parameters
        ]
        known = [float(item.grad is not None) for item in self.parameters]
        return torch.cat([*pieces, torch.tensor(known, device=pieces[0].device)])

    def _set(self, flat: torch.Tensor | None) -> None:
        self._drop()
        if flat is None:
            return
        known = flat[self._numel :].tolist()
        at = 0
        for parameter, number in zip(self.parameters, known, strict=True):
            size = parameter.numel()
            if number:
                parameter.grad = flat[at : at + size].view_as(parameter)
            at += size

    def _drop(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _clear(self) -> None:
        self.round = 0
        self.losses = []
        self._open = False
        self._tree = Tree()

    def partial(self) -> tuple[list[dict[str, Any]], Tensors]:
        """What every rank has of the unfinished step, as JSON by rank and tensors. All ranks take part."""
        totals = [node.total for node in self._tree.nodes if node.total is not None]
        if self._open:
            totals.append(self._flatten())
        mine = {
            "round": self.round,
            "losses": torch.stack(self.losses).tolist() if self.losses else [],
            "nodes": [[node.first, node.size] for node in self._tree.nodes],
            "open": self._open,
        }
        if self.group.alone:
            return [mine], {f"0.{place}": total for place, total in enumerate(totals)}
        told = self.group.collect({**mine, "totals": len(totals)})
        room, width = max(item["totals"] for item in told), self._numel + len(self.parameters)
        buffer = torch.zeros(room, width, device=self.parameters[0].device)
        for place, total in enumerate(totals):
            buffer[place] = total
        found = self.group.gather(buffer)
        return told, {
            f"{rank}.{place}": found[rank][place] for rank in _all(self.group) for place in range(room)
        }

    def restore(self, told: list[dict[str, Any]], tensors: Tensors) -> bool:
        """Take up what `partial` gave; the next `begin` goes on there.

        Gives False, and changes nothing, for another number of ranks: then the step is computed anew.
        """
        if len(told) != self.group.world_size:
            return False
        mine, rank = told[self.group.rank], self.group.rank
        device = self.parameters[0].device
        totals = iter(
            tensors[name].to(device, copy=True)
            for name in sorted(tensors, key=lambda name: int(name.partition(".")[2]))
            if name.startswith(f"{rank}.")
        )
        self._clear()
        self.round = int(mine["round"])
        self.losses = list(torch.tensor(mine["losses"], device=device))
        self._tree.nodes = [Node(first, size, next(totals)) for first, size in mine["nodes"]]
        self._open = bool(mine["open"])
        self._set(next(totals) if self._open else None)
        self._restored = True
        return True


def _all(group: Group) -> range:
    return range(group.world_size)

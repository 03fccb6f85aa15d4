"""What judges of conditions have in common.

A judge is one condition about one job or node. It is given samples in their order, and tells its case at
which time the condition began or ceased to hold. `advance` says that everything before a time was given, so
that conditions about what did not happen can hold at the moment when it should have happened. There is no
clock and no database in it: it finds the same live as over history.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Finding:
    """What was judged, in words; `value` is None when there is no number."""

    text: str
    value: float | None = None
    step: int = 0


class Case(Protocol):
    """Who hears what a judge found."""

    def holds(self, time_us: int, finding: Finding) -> None:
        """The condition holds at this time."""

    def clears(self, time_us: int) -> None:
        """The condition does not hold at this time."""


class Judge:
    """A condition about one job or node. `wants`: the kinds of samples it looks at."""

    wants: ClassVar[frozenset[type]] = frozenset()
    about_nodes: ClassVar[bool] = False
    needs_time: ClassVar[bool] = False  # it must hear of time that passes without samples
    outlives: ClassVar[bool] = False  # it may hold of a job that has ended

    def take(self, case: Case, sample: Any) -> None:
        """Judges a sample."""

    def advance(self, case: Case, now_us: int) -> None:
        """Everything before this time was given."""

    def reset(self) -> None:
        """The job ended or the node was lost: what held does not any more."""

    def dump(self) -> list[Any]:
        """What must be kept to go on, as JSON."""
        return []

    def load(self, kept: list[Any]) -> None:
        """Goes on from what `dump` returned."""

    def begin(self, time_us: int, state: str, state_us: int) -> None:
        """The rule begins to look; the subject has been in a state (empty: not known) since `state_us`."""

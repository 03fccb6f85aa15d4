"""What a check finds: the first twenty with their place, all of them counted by reason."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.errors import InvalidArgument, Violation

MOST = 20
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a row; an error makes it unusable."""

    place: str
    reason: str
    value: str
    problem: str
    remedy: str
    error: bool


@dataclass(slots=True)
class Findings:
    """Findings of a file, in the order of its rows."""

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        """Takes one in."""
        kept = self.errors if finding.error else self.warnings
        if len(kept) < MOST:
            kept.append(finding)
        self.counts[finding.reason, finding.error] += 1

    def merge(self, found: Iterable[Finding], counts: Iterable[tuple[str, bool, int]]) -> None:
        """Takes in what was found in a later part of the file."""
        for finding in found:
            kept = self.errors if finding.error else self.warnings
            if len(kept) < MOST:
                kept.append(finding)
        for reason, error, count in counts:
            self.counts[reason, error] += count

    def num(self, error: bool) -> int:
        """How many errors, or warnings, there are."""
        return sum(count for (_, is_error), count in self.counts.items() if is_error == error)

    def report(self, num_rows: int, detected: str = "") -> datasets_pb2.ValidationReport:
        """The same as a message: errors first, then warnings."""
        return datasets_pb2.ValidationReport(
            num_rows=num_rows,
            num_errors=self.num(True),
            num_warnings=self.num(False),
            findings=[_detail(finding) for finding in [*self.errors, *self.warnings][:MOST]],
            counts=[
                datasets_pb2.FindingCount(reason=reason, count=count, error=error)
                for (reason, error), count in sorted(
                    self.counts.items(), key=lambda item: (not item[0][1], -item[1], item[0])
                )
            ],
            detected=detected,
        )

    def raise_if_bad(self, num_rows: int) -> None:
        """Raises `InvalidArgument` with the first errors when there are any."""
        if not self.errors:
            return
        first = self.errors[0]
        kinds = ", ".join(
            f"{reason} {count}" for (reason, error), count in self.counts.most_common() if error
        )
        raise InvalidArgument(
            "DATASET_ROW_INVALID",
            f"{self.num(True)} of {num_rows} rows cannot be used ({kinds}); "
            f"the first: {first.place} {first.problem}",
            field=first.place,
            value=first.value,
            remedy=first.remedy,
            violations=[Violation(each.place, each.value, each.problem, each.remedy) for each in self.errors],
        )


def shown(value: object) -> str:
    """A value as it stands in a message."""
    return str(value)[:_SHOWN].encode(errors="replace").decode()


def _detail(finding: Finding) -> common_pb2.ErrorDetail:
    return common_pb2.ErrorDetail(
        reason=finding.reason,
        message=finding.problem,
        field=finding.place,
        value=finding.value,
        remedy=finding.remedy,
    )

"""Which stage may follow which. Pure: no clock, no database."""

from collections.abc import Mapping
from typing import TypeAlias

from tunesmith.api.registry.v1 import models_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument

Stage: TypeAlias = models_pb2.ModelStage.ValueType
NONE, STAGING = models_pb2.MODEL_STAGE_NONE, models_pb2.MODEL_STAGE_STAGING
PRODUCTION, ARCHIVED = models_pb2.MODEL_STAGE_PRODUCTION, models_pb2.MODEL_STAGE_ARCHIVED

# What is in use does not silently become "nothing more than registered".
ALLOWED: Mapping[Stage, frozenset[Stage]] = {
    NONE: frozenset({STAGING, PRODUCTION, ARCHIVED}),
    STAGING: frozenset({NONE, PRODUCTION, ARCHIVED}),
    PRODUCTION: frozenset({STAGING, ARCHIVED}),
    ARCHIVED: frozenset({NONE, STAGING, PRODUCTION}),
}


def word(stage: Stage) -> str:
    """Returns a stage as people write it."""
    return models_pb2.ModelStage.Name(stage).removeprefix("MODEL_STAGE_").lower()


def check_stage(stage: Stage) -> None:
    """Raises `InvalidArgument` when there is no such stage."""
    if stage not in ALLOWED:
        known = ", ".join(models_pb2.ModelStage.keys()[1:])
        raise InvalidArgument(
            "FIELD_INVALID",
            "there is no such stage",
            field="stage",
            value=stage,
            remedy=f"use one of {known}",
        )


def check(before: Stage, after: Stage) -> None:
    """Raises `FailedPrecondition` when a version may not go from one stage to the other."""
    if after not in ALLOWED[before]:
        possible = " or ".join(word(stage) for stage in sorted(ALLOWED[before]))
        raise FailedPrecondition(
            "STAGE_IMPOSSIBLE",
            f"a version cannot go from {word(before)} to {word(after)}",
            field="stage",
            value=word(after),
            remedy=f"from {word(before)} it can go to {possible}",
        )


def expect(now: Stage, seen: Stage) -> None:
    """Raises `FailedPrecondition` when a version is in another stage than was seen; unspecified: any."""
    if seen and now != seen:
        raise FailedPrecondition(
            "REVISION_STALE",
            f"the version is {word(now)} by now",
            field="expected_stage",
            value=word(seen),
            remedy="look at the version again and repeat the change",
        )

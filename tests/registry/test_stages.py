"""Aliases, stages, gates, approval, rollback: what a version must pass, and what is said when it does not."""

from pathlib import Path
from typing import Any

from tests.registry.governing import (
    ARCHIVED,
    BOT,
    NONE,
    PRODUCTION,
    Governed,
    governed,
    person,
    refused,
)
from tunesmith.api.registry.v1 import models_pb2, stages_pb2, versions_pb2
from tunesmith_registry import transitions


async def _three(registry: Governed) -> list[models_pb2.ModelVersion]:
    await registry.prepared()
    return [await registry.made(number) for number in (1, 2, 3)]


def test_every_pair_of_stages_is_allowed_or_refused_as_the_table_says() -> None:
    refusals = [
        (transitions.word(before), transitions.word(after))
        for before in transitions.ALLOWED
        for after in transitions.ALLOWED
        if before != after and after not in transitions.ALLOWED[before]
    ]
    assert refusals == [("production", "none")], "what is in use must be archived or go back to staging"


async def test_an_alias_stands_wherever_a_version_is_named_and_moves(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await _three(registry)

        async def point(alias: str, version: str) -> models_pb2.ModelVersion:
            request = versions_pb2.SetModelAliasRequest(name=BOT, alias=alias, version=version)
            answer: versions_pb2.SetModelAliasResponse = await registry.versions.SetModelAlias(request)
            return answer.version

        async def get(version: str) -> models_pb2.ModelVersion:
            request = models_pb2.GetModelVersionRequest(name=f"{BOT}/versions/{version}")
            return (await registry.models.GetModelVersion(request)).version

        await point("champion", "1")
        assert (await get("champion")).version == 1
        await point("champion", "3")
        await point("best", "champion")
        found = await get("best")
        assert (found.version, list(found.aliases)) == (3, ["best", "champion"])
        await registry.stage("champion", PRODUCTION)
        model = (await registry.models.GetModel(models_pb2.GetModelRequest(name=BOT))).model
        assert model.production.version == 3
        assert dict(model.aliases) == {"best": 3, "champion": 3}
        said = await registry.answer("model_alias_changed", 2)
        assert said.model_alias_changed.previous_version == f"{BOT}/versions/1"

        await registry.versions.DeleteModelAlias(versions_pb2.DeleteModelAliasRequest(name=BOT, alias="best"))
        gone = await refused(get("best"))
        assert (gone.reason, gone.code) == ("MODEL_NOT_FOUND", 5)
        for word in ("production", "latest"):
            assert (await refused(point(word, "1"))).reason == "FIELD_INVALID"
        assert (await refused(point("7up", "1"))).reason == "FIELD_INVALID"
        assert (await refused(point("x", "9"))).reason == "MODEL_NOT_FOUND"


async def test_labels_and_description_change_and_what_is_needed_is_not_deleted(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await _three(registry)
        name = f"{BOT}/versions/2"

        async def delete() -> object:
            return await registry.versions.DeleteModelVersion(
                versions_pb2.DeleteModelVersionRequest(name=name, reason="tidy")
            )

        update = versions_pb2.UpdateModelVersionRequest(
            name=name, description="calm", set_labels={"team": "search", "old": "1"}, pinned=True
        )
        assert (await registry.versions.UpdateModelVersion(update)).version.description == "calm"
        update = versions_pb2.UpdateModelVersionRequest(name=name, remove_labels=["old"])
        changed = (await registry.versions.UpdateModelVersion(update)).version
        assert (changed.pinned, dict(changed.labels), changed.description) == (
            True,
            {"team": "search"},
            "calm",
        )
        assert "is pinned" in (await refused(delete())).message
        await registry.versions.UpdateModelVersion(
            versions_pb2.UpdateModelVersionRequest(name=name, pinned=False)
        )
        await registry.stage(2, PRODUCTION)
        assert "is in Production" in (await refused(delete())).message
        await registry.stage(3, PRODUCTION)
        await delete()
        listed = await registry.models.ListModelVersions(models_pb2.ListModelVersionsRequest(parent=BOT))
        assert [version.version for version in listed.versions] == [3, 1]


# Of version 2 the value, the gate, and what is said when it is not passed; Production has 0.8.
_GATES: list[tuple[float | None, dict[str, Any], str]] = [
    (None, {"at_least": 0.8}, "tunesmith evaluate bot@2 --dataset texts --scorer m0"),
    (0.7, {"at_least": 0.8}, "m1 on texts is 0.7, below the bound 0.8"),
    (0.9, {"at_most": 0.8}, "above the bound 0.8"),
    (0.6, {"worse_by_at_most": 0.05}, "worse than Production's 0.8 by 0.2, more than 0.05"),
    (0.9, {"at_least": 0.8, "worse_by_at_most": 0.0}, ""),
    (0.78, {"worse_by_at_most": 0.05}, ""),
]


async def test_a_gate_that_is_not_passed_is_named_with_value_and_bound(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        first, second, _ = await _three(registry)
        await registry.stage(1, PRODUCTION)
        for place, (value, bounds, said) in enumerate(_GATES):
            metric = f"m{place}"
            registry.scored(first, metric, 0.8)
            if value is not None:
                registry.scored(second, metric, value)
            await registry.policy(gates=[stages_pb2.Gate(dataset="texts", metric=metric, **bounds)])
            check = stages_pb2.CheckModelGatesRequest(name=f"{BOT}/versions/2")
            assert (await registry.stages.CheckModelGates(check)).passed == (not said), bounds
            if said:
                error = await refused(registry.stage(2, PRODUCTION))
                assert (error.reason, said in error.message, bool(error.remedy)) == (
                    "GATE_FAILED",
                    True,
                    True,
                ), error.message
        assert (await registry.stage(2, PRODUCTION)).stage == PRODUCTION


async def test_a_score_of_other_content_or_data_does_not_open_a_gate(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        _, second, _ = await _three(registry)
        await registry.policy(gates=[stages_pb2.Gate(dataset="texts", metric="exact_match", at_least=0.5)])
        other = models_pb2.ModelVersion(name=second.name, digest="0" * 64)
        registry.scored(other, "exact_match", 0.9)
        registry.scored(second, "exact_match", 0.9, dataset="other")
        registry.scored(second, "rouge1", 0.9)
        assert "was not evaluated" in (await refused(registry.stage(2, PRODUCTION))).message
        registry.scored(second, "exact_match", 0.9)
        assert (await registry.stage(2, PRODUCTION)).stage == PRODUCTION


async def test_a_second_person_approves_and_who_asked_cannot(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await _three(registry)
        await registry.policy(approval_required=True)
        error = await refused(registry.stage(1, PRODUCTION))
        assert (error.reason, "approve" in error.remedy) == ("APPROVAL_REQUIRED", True)

        ask = stages_pb2.RequestPromotionRequest(name=f"{BOT}/versions/1", stage=PRODUCTION, reason="good")
        asked = (await registry.stages.RequestPromotion(ask, metadata=person("ann"))).promotion
        assert (asked.requester, asked.state) == ("ann", stages_pb2.PROMOTION_STATE_OPEN)
        again = await refused(registry.stages.RequestPromotion(ask, metadata=person("bob")))
        assert again.reason == "STATE_CONFLICT"
        yes = stages_pb2.ApprovePromotionRequest(name=asked.name, reason="fine")
        assert (await refused(registry.stages.ApprovePromotion(yes))).reason == "SELF_APPROVAL"
        done = await registry.stages.ApprovePromotion(yes, metadata=person("bob"))
        assert (done.promotion.decider, done.version.stage) == ("bob", PRODUCTION)
        assert (await refused(registry.stages.ApprovePromotion(yes, metadata=person("cid")))).reason == (
            "STATE_CONFLICT"
        )

        ask = stages_pb2.RequestPromotionRequest(name=f"{BOT}/versions/2", stage=PRODUCTION)
        asked = (await registry.stages.RequestPromotion(ask)).promotion
        no = stages_pb2.RejectPromotionRequest(name=asked.name, reason="too curt")
        assert (await registry.stages.RejectPromotion(no, metadata=person("bob"))).promotion.decider == "bob"
        listed = await registry.stages.ListPromotions(stages_pb2.ListPromotionsRequest(parent=BOT))
        assert [p.state for p in listed.promotions] == [
            stages_pb2.PROMOTION_STATE_REJECTED,
            stages_pb2.PROMOTION_STATE_APPROVED,
        ]

        loose = stages_pb2.SetModelPolicyRequest(name=BOT, policy=stages_pb2.ModelPolicy())
        assert (await refused(registry.stages.SetModelPolicy(loose))).reason == "PERMISSION_MISSING"


async def test_a_rollback_goes_back_one_promotion_at_a_time(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await _three(registry)
        for number in (1, 2, 3):
            await registry.stage(number, PRODUCTION)
        back = stages_pb2.RollBackModelRequest(name=BOT)
        first = await registry.stages.RollBackModel(back)
        assert (first.version.version, first.replaced.version, first.replaced.stage) == (2, 3, ARCHIVED)
        assert (await registry.stages.RollBackModel(back)).version.version == 1
        assert (await refused(registry.stages.RollBackModel(back))).reason == "STATE_CONFLICT"
        changes = await registry.stages.ListStageChanges(
            stages_pb2.ListStageChangesRequest(parent=BOT, page_size=1)
        )
        assert (changes.changes[0].version, changes.changes[0].rolled_back) == (f"{BOT}/versions/1", True)
        assert changes.next_page_token


async def test_production_is_not_left_silently_and_the_project_has_a_policy_too(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await _three(registry)
        await registry.stage(1, PRODUCTION)
        error = await refused(registry.stage(1, NONE))
        assert (error.reason, "staging or archived" in error.remedy) == ("STAGE_IMPOSSIBLE", True)
        whole = stages_pb2.SetModelPolicyRequest(
            name=BOT.replace("bot", "-"), policy=stages_pb2.ModelPolicy(approval_required=True)
        )
        await registry.stages.SetModelPolicy(whole)
        assert (await refused(registry.stage(2, PRODUCTION))).reason == "APPROVAL_REQUIRED"
        bad = stages_pb2.SetModelPolicyRequest(
            name=BOT, policy=stages_pb2.ModelPolicy(gates=[stages_pb2.Gate(metric="f1")])
        )
        assert "no bound" in (await refused(registry.stages.SetModelPolicy(bad))).message

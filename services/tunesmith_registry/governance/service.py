"""The rpcs about versions, stages and cards: check, call, reply; no rules."""

import asyncio

from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import (
    cards_pb2,
    cards_pb2_grpc,
    stages_pb2,
    stages_pb2_grpc,
    versions_pb2,
    versions_pb2_grpc,
)
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.rpc import principal
from tunesmith_registry import aliases, store, targets, transitions, versions
from tunesmith_registry.governance import (
    adapters,
    calls,
    cards,
    describing,
    gates,
    policies,
    promotions,
    registering,
    sections,
)
from tunesmith_registry.governance.calls import Context


class VersionService(versions_pb2_grpc.VersionServiceServicer):
    """VersionService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock) -> None:
        self._db, self._blobs, self._clock = db, blobs, clock

    async def RegisterModelVersion(
        self, request: versions_pb2.RegisterModelVersionRequest, context: Context
    ) -> versions_pb2.RegisterModelVersionResponse:
        """Registers uploaded files, or those of an external run's checkpoint, as a version of a model."""
        project, model_id = names.parse(calls.MODEL, request.parent, "parent")
        origin = await registering.origin(self._db, self._blobs, project, request)
        base_id = request.base_model.rpartition("/")[2]
        base = await self._db.read(lambda s: store.base_model(s, project, base_id))
        allowed = await self._db.read(lambda s: policies.allowed_code(s, project))
        made, _ = await asyncio.to_thread(adapters.check, self._blobs, origin.files, base, allowed)
        who = calls.caller(self._clock)

        def act(session: Session) -> versions_pb2.RegisterModelVersionResponse:
            entered = registering.enter(session, who, project, model_id, made, base, request, origin)
            return versions_pb2.RegisterModelVersionResponse(version=entered)

        return await calls.change(self._db, who, request, versions_pb2.RegisterModelVersionResponse, act)

    async def UpdateModelVersion(
        self, request: versions_pb2.UpdateModelVersionRequest, context: Context
    ) -> versions_pb2.UpdateModelVersionResponse:
        """Changes what people say of a version."""
        who = calls.caller(self._clock)

        def act(session: Session) -> versions_pb2.UpdateModelVersionResponse:
            version = calls.version_of(session, request.name)
            changed = describing.change_version(session, who, version, request)
            aliases.named(session, request.name.split("/")[1], [changed])
            return versions_pb2.UpdateModelVersionResponse(version=changed)

        return await calls.change(self._db, who, request, versions_pb2.UpdateModelVersionResponse, act)

    async def DeleteModelVersion(
        self, request: versions_pb2.DeleteModelVersionRequest, context: Context
    ) -> versions_pb2.DeleteModelVersionResponse:
        """Deletes a version that nothing needs."""
        who = calls.caller(self._clock)

        def act(session: Session) -> versions_pb2.DeleteModelVersionResponse:
            version = calls.version_of(session, request.name)
            describing.delete_version(session, who, version, request.reason)
            return versions_pb2.DeleteModelVersionResponse()

        return await calls.change(self._db, who, request, versions_pb2.DeleteModelVersionResponse, act)

    async def SetModelAlias(
        self, request: versions_pb2.SetModelAliasRequest, context: Context
    ) -> versions_pb2.SetModelAliasResponse:
        """Lets an alias name a version."""
        project, model_id = names.parse(calls.MODEL, request.name)
        who = calls.caller(self._clock)

        def act(session: Session) -> versions_pb2.SetModelAliasResponse:
            version = targets.version_of(session, project, model_id, request.version)
            seen = request.expected_version
            aliases.expect(session, project, model_id, request.alias, seen, version.version)
            aliases.point(session, who, project, model_id, request.alias, version)
            aliases.named(session, project, [version])
            return versions_pb2.SetModelAliasResponse(version=version)

        return await calls.change(self._db, who, request, versions_pb2.SetModelAliasResponse, act)

    async def DeleteModelAlias(
        self, request: versions_pb2.DeleteModelAliasRequest, context: Context
    ) -> versions_pb2.DeleteModelAliasResponse:
        """Takes an alias away."""
        project, model_id = names.parse(calls.MODEL, request.name)
        who = calls.caller(self._clock)

        def act(session: Session) -> versions_pb2.DeleteModelAliasResponse:
            versions.model_row(session, project, model_id)
            aliases.expect(session, project, model_id, request.alias, request.expected_version)
            number = aliases.end(session, who, project, model_id, request.alias)
            version = versions.version(session, project, model_id, number)
            aliases.named(session, project, [version])
            return versions_pb2.DeleteModelAliasResponse(version=version)

        return await calls.change(self._db, who, request, versions_pb2.DeleteModelAliasResponse, act)


class StageService(stages_pb2_grpc.StageServiceServicer):
    """StageService of the contract."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def GetModelPolicy(
        self, request: stages_pb2.GetModelPolicyRequest, context: Context
    ) -> stages_pb2.GetModelPolicyResponse:
        """Returns the policy in force."""
        project, model_id = _policy_of(request.name)
        found = await self._db.read(lambda s: policies.in_force(s, project, model_id))
        return stages_pb2.GetModelPolicyResponse(policy=found)

    async def SetModelPolicy(
        self, request: stages_pb2.SetModelPolicyRequest, context: Context
    ) -> stages_pb2.SetModelPolicyResponse:
        """Replaces a policy."""
        project, model_id = _policy_of(request.name)
        who, role = calls.caller(self._clock), principal().role

        def act(session: Session) -> stages_pb2.SetModelPolicyResponse:
            made = policies.replace(session, who, role, project, model_id, request.policy)
            return stages_pb2.SetModelPolicyResponse(policy=made)

        return await calls.change(self._db, who, request, stages_pb2.SetModelPolicyResponse, act)

    async def CheckModelGates(
        self, request: stages_pb2.CheckModelGatesRequest, context: Context
    ) -> stages_pb2.CheckModelGatesResponse:
        """Tells which gates a version passes."""
        stage = request.stage or transitions.PRODUCTION

        def read(session: Session) -> stages_pb2.CheckModelGatesResponse:
            version = calls.version_of(session, request.name)
            _, project, _, model_id, *_ = version.name.split("/")
            policy = policies.in_force(session, project, model_id)
            results = gates.check(session, project, policy, version, stage)
            passed = all(result.passed for result in results)
            return stages_pb2.CheckModelGatesResponse(passed=passed, results=results)

        return await self._db.read(read)

    async def RequestPromotion(
        self, request: stages_pb2.RequestPromotionRequest, context: Context
    ) -> stages_pb2.RequestPromotionResponse:
        """Asks for a version to be moved."""
        who = calls.caller(self._clock)

        def act(session: Session) -> stages_pb2.RequestPromotionResponse:
            version = calls.version_of(session, request.name)
            made = promotions.request(session, who, version, request.stage, request.reason)
            return stages_pb2.RequestPromotionResponse(promotion=made)

        return await calls.change(self._db, who, request, stages_pb2.RequestPromotionResponse, act)

    async def ApprovePromotion(
        self, request: stages_pb2.ApprovePromotionRequest, context: Context
    ) -> stages_pb2.ApprovePromotionResponse:
        """Approves a request: the version is moved."""
        project, model_id, promotion = names.parse("projects/*/models/*/promotions/*", request.name)
        who = calls.caller(self._clock)

        def act(session: Session) -> stages_pb2.ApprovePromotionResponse:
            key = (project, model_id, promotion)
            made, version = promotions.decide(session, who, key, promotions.APPROVED, request.reason)
            aliases.named(session, project, [version])
            return stages_pb2.ApprovePromotionResponse(promotion=made, version=version)

        return await calls.change(self._db, who, request, stages_pb2.ApprovePromotionResponse, act)

    async def RejectPromotion(
        self, request: stages_pb2.RejectPromotionRequest, context: Context
    ) -> stages_pb2.RejectPromotionResponse:
        """Rejects a request: the version stays."""
        project, model_id, promotion = names.parse("projects/*/models/*/promotions/*", request.name)
        who = calls.caller(self._clock)

        def act(session: Session) -> stages_pb2.RejectPromotionResponse:
            key = (project, model_id, promotion)
            made, _ = promotions.decide(session, who, key, promotions.REJECTED, request.reason)
            return stages_pb2.RejectPromotionResponse(promotion=made)

        return await calls.change(self._db, who, request, stages_pb2.RejectPromotionResponse, act)

    async def ListPromotions(
        self, request: stages_pb2.ListPromotionsRequest, context: Context
    ) -> stages_pb2.ListPromotionsResponse:
        """Lists the requests of a model, newest first."""
        project, model_id = names.parse(calls.MODEL, request.parent, "parent")
        before, size = calls.place(request)
        found, cursor = await self._db.read(
            lambda s: promotions.page(s, project, model_id, before, size, request.only_open)
        )
        token = calls.token(request.parent, cursor)
        return stages_pb2.ListPromotionsResponse(promotions=found, next_page_token=token)

    async def RollBackModel(
        self, request: stages_pb2.RollBackModelRequest, context: Context
    ) -> stages_pb2.RollBackModelResponse:
        """Makes the version before the present one Production again."""
        project, model_id = names.parse(calls.MODEL, request.name)
        who = calls.caller(self._clock)

        def act(session: Session) -> stages_pb2.RollBackModelResponse:
            now, before = promotions.roll_back(session, who, project, model_id, request.reason)
            aliases.named(session, project, [now, before])
            return stages_pb2.RollBackModelResponse(version=now, replaced=before)

        return await calls.change(self._db, who, request, stages_pb2.RollBackModelResponse, act)

    async def ListStageChanges(
        self, request: stages_pb2.ListStageChangesRequest, context: Context
    ) -> stages_pb2.ListStageChangesResponse:
        """Lists the changes of stage of a model, newest first."""
        project, model_id = names.parse(calls.MODEL, request.parent, "parent")
        before, size = calls.place(request)
        found, cursor = await self._db.read(
            lambda s: promotions.change_page(s, project, model_id, before, size)
        )
        token = calls.token(request.parent, cursor)
        return stages_pb2.ListStageChangesResponse(changes=found, next_page_token=token)


def _policy_of(name: str) -> tuple[str, str]:
    """Returns project and model of a policy; `-` stands for all models."""
    if name.endswith(f"/models/{policies.PROJECT_WIDE}"):
        (project,) = names.parse("projects/*", name.rpartition("/models/")[0])
        return project, policies.PROJECT_WIDE
    project, model_id = names.parse(calls.MODEL, name)
    return project, model_id


class CardService(cards_pb2_grpc.CardServiceServicer):
    """CardService of the contract."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def GetModelCard(
        self, request: cards_pb2.GetModelCardRequest, context: Context
    ) -> cards_pb2.GetModelCardResponse:
        """Returns the card of a version."""
        made = await self._db.read(lambda s: cards.card(s, calls.version_of(s, request.name)))
        return cards_pb2.GetModelCardResponse(card=made)

    async def GetCardSections(
        self, request: cards_pb2.GetCardSectionsRequest, context: Context
    ) -> cards_pb2.GetCardSectionsResponse:
        """Returns the sections people wrote for a model."""
        project, model_id = names.parse(calls.MODEL, request.name)

        def read(session: Session) -> cards_pb2.GetCardSectionsResponse:
            versions.model_row(session, project, model_id)
            found = sections.read(session, project, model_id)
            return cards_pb2.GetCardSectionsResponse(sections=found)

        return await self._db.read(read)

    async def UpdateCardSections(
        self, request: cards_pb2.UpdateCardSectionsRequest, context: Context
    ) -> cards_pb2.UpdateCardSectionsResponse:
        """Changes sections of a model's cards."""
        project, model_id = names.parse(calls.MODEL, request.name)
        who = calls.caller(self._clock)

        def act(session: Session) -> cards_pb2.UpdateCardSectionsResponse:
            now = sections.edit(session, who, project, model_id, request)
            return cards_pb2.UpdateCardSectionsResponse(sections=now)

        return await calls.change(self._db, who, request, cards_pb2.UpdateCardSectionsResponse, act)

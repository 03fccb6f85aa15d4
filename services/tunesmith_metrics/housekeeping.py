"""What administrators ask of the store: what projects may store and do store, and what could not be used."""

from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import policy_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import names
from tunesmith_kit.bus import Bus, StoredMessage
from tunesmith_kit.db import Database
from tunesmith_kit.streams import DEAD
from tunesmith_metrics import retention
from tunesmith_metrics.retention import Policy, Retention

_PROJECT = "projects/*"
_LETTERS = "deadLetters"


class Housekeeping:
    """Answers for policies and dead letters."""

    def __init__(self, db: Database, bus: Bus, keeper: Retention) -> None:
        self._db, self._bus, self._keeper = db, bus, keeper

    async def policy(
        self, request: policy_pb2.GetMetricsPolicyRequest
    ) -> policy_pb2.GetMetricsPolicyResponse:
        """Returns what a project may store, and what it stores."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")

        def read(session: Session) -> tuple[Policy, retention.Usage]:
            return retention.policy(session, project), retention.usage(session, project)

        own, usage = await self._db.read(read)
        return policy_pb2.GetMetricsPolicyResponse(
            policy=_message(own),
            effective=_message(own.over(self._keeper.default)),
            usage=policy_pb2.MetricsUsage(
                num_points=usage.num_points,
                metric_bytes=usage.metric_bytes,
                log_bytes=usage.log_bytes,
                num_jobs=usage.num_jobs,
            ),
        )

    async def set_policy(
        self, request: policy_pb2.SetMetricsPolicyRequest
    ) -> policy_pb2.SetMetricsPolicyResponse:
        """Sets what a project may store; ingest of this process keeps to it at once, others in seconds."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        wanted = request.policy
        chosen = Policy(wanted.max_points, wanted.max_keys_per_job, wanted.keep_days)
        await self._db.write(lambda session: retention.set_policy(session, project, chosen))
        await self._keeper.refresh()
        return policy_pb2.SetMetricsPolicyResponse(policy=_message(chosen))

    async def dead_letters(
        self, request: policy_pb2.ListDeadLettersRequest
    ) -> policy_pb2.ListDeadLettersResponse:
        """Returns messages no consumer could use, newest first."""
        cursor = names.page_cursor(_LETTERS, request.page_token)
        if cursor and not cursor.isdecimal():
            raise InvalidArgument(
                "PAGE_TOKEN_INVALID",
                "the page token was not made for this list",
                field="page_token",
                value=cursor,
                remedy="give back next_page_token as it was, or leave it out for the first page",
            )
        size = names.page_size(request.page_size, 100, 1000)
        found, total = await self._bus.newest(DEAD, size + 1, int(cursor) if cursor else None)
        token = names.page_token(_LETTERS, str(found[size].seq + 1)) if len(found) > size else ""
        return policy_pb2.ListDeadLettersResponse(
            letters=[_letter(message) for message in found[:size]], next_page_token=token, total_size=total
        )


def _message(policy: Policy) -> policy_pb2.MetricsPolicy:
    return policy_pb2.MetricsPolicy(
        max_points=policy.max_points, max_keys_per_job=policy.max_keys_per_job, keep_days=policy.keep_days
    )


def _letter(message: StoredMessage) -> policy_pb2.DeadLetter:
    headers = message.headers
    letter = policy_pb2.DeadLetter(
        stream=message.subject.rpartition(".")[2].upper(),
        subject=headers.get("dead-subject", ""),
        message_id=headers.get("dead-message-id", ""),
        reason=": ".join(filter(None, (headers.get("dead-reason", ""), headers.get("dead-error", "")))),
        size_bytes=len(message.payload),
    )
    letter.time.FromJsonString(message.time)
    return letter

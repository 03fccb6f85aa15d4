"""The one error table: what can go wrong, and how it looks in Python, gRPC and HTTP.

Servers raise these classes, the wire carries them as `google.rpc.Status` with an `ErrorInfo`, and clients
get the same classes back:

    TunesmithError
    ├── InvalidArgument      INVALID_ARGUMENT     400  the request is wrong; mend it
    ├── Unauthenticated      UNAUTHENTICATED      401  no token, or not a valid one
    ├── PermissionDenied     PERMISSION_DENIED    403  the token does not allow this
    ├── NotFound             NOT_FOUND            404  no such thing (or not yours)
    ├── AlreadyExists        ALREADY_EXISTS       409  the name or request id is taken
    ├── FailedPrecondition   FAILED_PRECONDITION  409  not in the present state
    ├── Aborted              ABORTED              409  somebody was faster; try again
    ├── ResourceExhausted    RESOURCE_EXHAUSTED   429  a limit is reached
    ├── Unimplemented        UNIMPLEMENTED        501  the server does not know the call
    ├── Unavailable          UNAVAILABLE          503  not reachable now; try again
    ├── DeadlineExceeded     DEADLINE_EXCEEDED    504  no answer in time
    └── Internal             INTERNAL             500  our bug
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

DOMAIN = "tunesmith"
STATUS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """One wrong place of a request: where, what was there, what is wrong, what to do."""

    path: str
    value: str
    problem: str
    remedy: str = ""


class TunesmithError(Exception):
    """Base of all errors of Tunesmith. `reason` is stable and listed in `REASONS`."""

    code: ClassVar[int] = 13
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str = "",
        value: object = "",
        remedy: str = "",
        violations: Iterable[Violation] = (),
    ) -> None:
        assert reason in REASONS, f"reason {reason} is missing in the error table"
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.value = _short(value)
        self.remedy = remedy
        self.violations = tuple(violations)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.reason, self.message, self.metadata(), self.violations))

    def metadata(self) -> dict[str, str]:
        """Field, value and remedy, those that are set, as they travel in `ErrorInfo.metadata`."""
        pairs = {"field": self.field, "value": self.value, "remedy": self.remedy}
        return {key: text for key, text in pairs.items() if text}


def _rebuild(
    cls: type[TunesmithError],
    reason: str,
    message: str,
    meta: Mapping[str, str],
    violations: tuple[Violation, ...],
) -> TunesmithError:
    return cls(reason, message, violations=violations, **meta)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


class InvalidArgument(TunesmithError):
    """The request is wrong, whatever the state; mend it."""

    code, http_status = 3, 400


class Unauthenticated(TunesmithError):
    """No token, or not a valid one."""

    code, http_status = 16, 401


class PermissionDenied(TunesmithError):
    """The token does not allow this."""

    code, http_status = 7, 403


class NotFound(TunesmithError):
    """No such thing, or not yours to see."""

    code, http_status = 5, 404


class AlreadyExists(TunesmithError):
    """The name or request id is taken."""

    code, http_status = 6, 409


class FailedPrecondition(TunesmithError):
    """Not possible in the present state."""

    code, http_status = 9, 409


class Aborted(TunesmithError):
    """Somebody was faster; try again."""

    code, http_status = 10, 409


class ResourceExhausted(TunesmithError):
    """A limit is reached."""

    code, http_status = 8, 429


class Unimplemented(TunesmithError):
    """The server does not know the call."""

    code, http_status = 12, 501


class Unavailable(TunesmithError):
    """Not reachable now; try again."""

    code, http_status = 14, 503


class DeadlineExceeded(TunesmithError):
    """No answer in time."""

    code, http_status = 4, 504


class Internal(TunesmithError):
    """Our bug; the message names the trace to quote."""

    code, http_status = 13, 500


# Every reason with its class and what it means. A reason is never reused for something else.
REASONS: dict[str, tuple[type[TunesmithError], str]] = {
    "FIELD_INVALID": (InvalidArgument, "one or more fields of the request break their limits"),
    "NAME_INVALID": (InvalidArgument, "a resource name does not have the required form"),
    "PAGE_TOKEN_INVALID": (InvalidArgument, "the page token was not made by this server"),
    "MESSAGE_MALFORMED": (InvalidArgument, "the bytes are no valid message"),
    "JOB_FILE_INVALID": (InvalidArgument, "the job file has errors"),
    "RULE_FILE_INVALID": (InvalidArgument, "the file of alert rules has errors"),
    "SPEC_INCONSISTENT": (InvalidArgument, "fields of the job spec contradict each other"),
    "FILTER_INVALID": (InvalidArgument, "a filter or order breaks its grammar; the message names the column"),
    "DATASET_EMPTY": (InvalidArgument, "the file has no rows"),
    "DATASET_FORMAT_UNKNOWN": (InvalidArgument, "the format of the file was not recognised"),
    "DATASET_ROW_INVALID": (InvalidArgument, "rows of the dataset cannot be used"),
    "SHAPE_MIXED": (InvalidArgument, "rows or datasets of different shapes stand together"),
    "SOURCE_MISSING": (InvalidArgument, "it is not said where the rows of an import are"),
    "SOURCE_AMBIGUOUS": (InvalidArgument, "an import names several sources or files of several kinds"),
    "PATH_OUTSIDE": (InvalidArgument, "the path leaves the shared folders"),
    "URL_REFUSED": (InvalidArgument, "the registry does not fetch this address"),
    "COLUMN_UNKNOWN": (InvalidArgument, "the rows have no such column"),
    "EXPRESSION_INVALID": (InvalidArgument, "a condition on rows cannot be read; the message says where"),
    "TEMPLATE_INVALID": (InvalidArgument, "the prompt template cannot be used; the message says why"),
    "TEMPLATE_COLUMNS": (InvalidArgument, "the prompt template reads what the rows do not have"),
    "TEMPLATE_INCOMPLETE": (InvalidArgument, "the prompt template writes no answer to learn from"),
    "TEMPLATE_MISSING": (FailedPrecondition, "rows of this shape need a prompt template"),
    "RENDERING_MISSING": (FailedPrecondition, "the registry cannot render rows here"),
    "STATISTICS_FAILED": (FailedPrecondition, "the statistics could not be computed"),
    "IMPORT_INCOMPLETE": (FailedPrecondition, "an import ended without an answer"),
    "SOURCE_CLOSED": (FailedPrecondition, "the registry does not read from there"),
    "SOURCE_NOT_FOUND": (NotFound, "there is no such file or data set to import"),
    "SOURCE_UNAVAILABLE": (Unavailable, "the source of an import cannot be read at present"),
    "DATASET_TOO_LARGE": (ResourceExhausted, "the source of an import is larger than it may be"),
    "UPLOAD_NOT_FOUND": (NotFound, "no such upload, or it was forgotten"),
    "UPLOAD_OFFSET": (FailedPrecondition, "the upload stands at another offset"),
    "UPLOAD_INCOMPLETE": (FailedPrecondition, "less arrived than was announced"),
    "UPLOAD_BUSY": (Aborted, "another call appends to the upload"),
    "UPLOAD_TOO_LARGE": (ResourceExhausted, "the upload is larger than it may be"),
    "BASE_MODEL_UNSAFE": (InvalidArgument, "the model folder holds something that could run code"),
    "BASE_MODEL_INVALID": (InvalidArgument, "the model folder is not a usable model"),
    "ARTIFACT_CORRUPT": (FailedPrecondition, "stored content does not match its digest"),
    "EXPORT_IMPOSSIBLE": (InvalidArgument, "the model has no such form; the message says why"),
    "DIGEST_MISMATCH": (InvalidArgument, "the content does not match the digest given"),
    "SETTING_INVALID": (InvalidArgument, "a setting has a wrong value or is unknown"),
    "PROFILE_UNKNOWN": (InvalidArgument, "there is no profile of this name"),
    "FILE_UNREADABLE": (InvalidArgument, "a local file cannot be read"),
    "TOKEN_MISSING": (Unauthenticated, "no token was sent"),
    "TOKEN_INVALID": (Unauthenticated, "the token is not known or expired"),
    "PERMISSION_MISSING": (PermissionDenied, "the caller's role lacks the permission"),
    "ORIGIN_REFUSED": (PermissionDenied, "Host or Origin of the HTTP request is not allowed"),
    "RPC_UNDECLARED": (PermissionDenied, "the rpc declares no permission and is closed for everybody"),
    "JOB_NOT_FOUND": (NotFound, "no such job"),
    "NODE_NOT_FOUND": (NotFound, "no such node"),
    "RUN_EXTERNAL": (FailedPrecondition, "the platform did not start the run's program"),
    "RUN_NOT_EXTERNAL": (FailedPrecondition, "the platform runs the job itself"),
    "RUN_CANCELLED": (Aborted, "somebody cancelled the run"),
    "CHECKPOINT_EXTERNAL": (FailedPrecondition, "the checkpoint is of a program of its owner's, not a job's"),
    "SPOOL_FULL": (ResourceExhausted, "files of a run wait to be sent, and no more fit beside them"),
    "RUN_NOT_BEGUN": (FailedPrecondition, "no run was begun in this program"),
    "RUN_UNKNOWN": (Unavailable, "the metrics service has not heard of the run yet"),
    "JOB_ID_TAKEN": (AlreadyExists, "the id is that of another job"),
    "PROJECT_FULL": (ResourceExhausted, "the project stores as many points as it may"),
    "DATASET_NOT_FOUND": (NotFound, "no such dataset or version"),
    "BASE_MODEL_NOT_FOUND": (NotFound, "no such base model"),
    "MODEL_NOT_FOUND": (NotFound, "no such model or version"),
    "CHECKPOINT_NOT_FOUND": (NotFound, "no such checkpoint"),
    "PROMPT_NOT_FOUND": (NotFound, "no such prompt template or version"),
    "PROMOTION_NOT_FOUND": (NotFound, "no such request for a promotion"),
    "EVALUATION_NOT_FOUND": (NotFound, "no such evaluation"),
    "MEANING_UNAVAILABLE": (FailedPrecondition, "there is no encoder to search by meaning"),
    "METRIC_UNKNOWN": (InvalidArgument, "the evaluation has no such metric"),
    "TARGET_TWICE": (InvalidArgument, "two names of targets mean the same"),
    "TARGETS_DIFFER": (FailedPrecondition, "targets of one job have different base models"),
    "TARGET_INVALID": (FailedPrecondition, "the target holds no model"),
    "TARGET_DAMAGED": (FailedPrecondition, "stored content of the target is missing or damaged"),
    "EVALUATIONS_DIFFER": (FailedPrecondition, "the evaluations judged different rows"),
    "CHAT_EMPTY": (InvalidArgument, "the conversation renders to no text"),
    "CHAT_TEMPLATE_REFUSED": (InvalidArgument, "the chat template refuses the conversation or does not end"),
    "CONTEXT_TOO_LONG": (InvalidArgument, "the conversation is longer than the model can see"),
    "MODEL_UNUSABLE": (FailedPrecondition, "a node cannot load the model or answer with it"),
    "NODE_MEMORY_FULL": (ResourceExhausted, "the node has not enough memory for the model"),
    "CHAT_BUSY": (ResourceExhausted, "as many conversations wait as may"),
    "CHAT_NO_NODE": (Unavailable, "no node that could answer is online"),
    "CHAT_LOST": (Unavailable, "the node or process that answered was lost on the way"),
    "ALERT_RULE_NOT_FOUND": (NotFound, "no such alert rule"),
    "ALERT_CHANNEL_NOT_FOUND": (NotFound, "no such alert channel"),
    "SILENCE_NOT_FOUND": (NotFound, "no such silence"),
    "BLOB_NOT_FOUND": (NotFound, "no content is stored under this digest"),
    "ROUTE_NOT_FOUND": (NotFound, "no such route"),
    "REQUEST_ID_REUSED": (AlreadyExists, "the request id was used for another request"),
    "NAME_TAKEN": (AlreadyExists, "the name is taken"),
    "JOB_TERMINAL": (FailedPrecondition, "the job has finished"),
    "STALE_EPOCH": (FailedPrecondition, "the attempt was replaced by a newer one"),
    "STAGE_IMPOSSIBLE": (FailedPrecondition, "the stage cannot follow the present one"),
    "GATE_FAILED": (FailedPrecondition, "a gate of the policy is not passed; the message names it"),
    "APPROVAL_REQUIRED": (FailedPrecondition, "the policy wants a second person to approve"),
    "SELF_APPROVAL": (PermissionDenied, "who asked for a promotion cannot approve it"),
    "IN_USE": (FailedPrecondition, "something else needs it"),
    "STATE_CONFLICT": (FailedPrecondition, "the verb does not fit the present state"),
    "REVISION_STALE": (FailedPrecondition, "the resource changed since the revision named by the request"),
    "CHECKPOINT_MISSING": (FailedPrecondition, "the job has no such checkpoint"),
    "CHECKPOINT_DAMAGED": (FailedPrecondition, "the checkpoint's content is missing or damaged"),
    "CHECKPOINT_FOREIGN": (FailedPrecondition, "the checkpoint was trained on another base model"),
    "FIELD_FROZEN": (InvalidArgument, "the field cannot be changed in a fork"),
    "NODE_UNFIT": (FailedPrecondition, "the node cannot take the job"),
    "LEASE_HELD": (FailedPrecondition, "another process holds the lease"),
    "STORE_UNAVAILABLE": (Unavailable, "the blob store cannot be reached"),
    "REVISION_CONFLICT": (Aborted, "the resource changed meanwhile"),
    "MESSAGE_TOO_LARGE": (ResourceExhausted, "the message is larger than allowed"),
    "TEST_TOO_LARGE": (ResourceExhausted, "a test of a rule would look at too much"),
    "RULES_TOO_MANY": (ResourceExhausted, "the project has as many alert rules as it may have"),
    "DISK_FULL": (ResourceExhausted, "the disk is full"),
    "RPC_UNKNOWN": (Unimplemented, "the server does not know the rpc"),
    "BUS_UNAVAILABLE": (Unavailable, "the NATS server cannot be reached"),
    "DATABASE_UNAVAILABLE": (Unavailable, "the database cannot be reached"),
    "SERVICE_UNAVAILABLE": (Unavailable, "a service cannot be reached"),
    "PORT_IN_USE": (Unavailable, "the port is taken by another program"),
    "PROGRAM_MISSING": (Unavailable, "a program needed is not installed"),
    "SHUTTING_DOWN": (Unavailable, "the server is shutting down"),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, "no answer in time"),
    "INTERNAL": (Internal, "a bug of ours"),
}

_BY_CODE: dict[int, type[TunesmithError]] = {cls.code: cls for cls in TunesmithError.__subclasses__()}
_DEFAULT_REASON: dict[int, str] = {
    3: "MESSAGE_MALFORMED",
    4: "DEADLINE_EXCEEDED",
    5: "ROUTE_NOT_FOUND",
    7: "PERMISSION_MISSING",
    8: "MESSAGE_TOO_LARGE",
    12: "RPC_UNKNOWN",
    14: "SERVICE_UNAVAILABLE",
    16: "TOKEN_INVALID",
}


def make(
    code: int,
    reason: str,
    message: str,
    metadata: Mapping[str, str] | None = None,
    violations: Iterable[Violation] = (),
) -> TunesmithError:
    """Builds the error of a gRPC status code (a number) and reason; unknown ones keep their code's class."""
    if reason not in REASONS:
        reason = _DEFAULT_REASON.get(code, "INTERNAL")
    meta = {key: text for key, text in (metadata or {}).items() if key in ("field", "value", "remedy")}
    return _BY_CODE.get(code, Internal)(reason, message, violations=violations, **meta)

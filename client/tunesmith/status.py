"""Errors on the gRPC wire: `google.rpc.Status` with ErrorInfo and BadRequest, both ways."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from tunesmith.errors import DOMAIN, STATUS_KEY, TunesmithError, Unavailable, Violation, make


def to_status(error: TunesmithError) -> status_pb2.Status:
    """Returns the status that carries `error`, with its reason, metadata and violations."""
    status = status_pb2.Status(code=error.code, message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata())
    status.details.add().Pack(info)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(
                field=violation.path,
                description=violation.problem,
                reason=violation.value,
                localized_message=error_details_pb2.LocalizedMessage(locale="en", message=violation.remedy),
            )
        status.details.add().Pack(bad)
    return status


def from_status(status: status_pb2.Status) -> TunesmithError:
    """Returns the error that `status` carries; foreign statuses become the class of their code."""
    reason, metadata, violations = "", {}, []
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [
                Violation(v.field, v.reason, v.description, v.localized_message.message)
                for v in bad.field_violations
            ]
    return make(status.code, reason, status.message, metadata, violations)


# What grpcio says when a message cannot be written because the other end has answered already, and that
# answer, which tells why, was not read yet. It is lost then; the next try finds it.
LOST_STATUS = "Internal error from Core"


def from_rpc_error(error: grpc.RpcError) -> TunesmithError:
    """Returns what a failed call means. Works for `grpc.RpcError` of both the sync and the aio API."""
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == STATUS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    if error.details() == LOST_STATUS:
        return Unavailable(
            "SERVICE_UNAVAILABLE", "the service ended the call before it had read it all", remedy="try again"
        )
    code: int = error.code().value[0]
    return make(code, "", error.details() or f"the call failed with {error.code().name}")

"""Headers of events and commands: CloudEvents 1.0 in binary mode, with the W3C trace context.

Metric batches and log chunks carry only their message id: six more headers cost as much as the message.
"""

from datetime import UTC, datetime

MESSAGE_ID = "Nats-Msg-Id"
TRACEPARENT = "traceparent"
CONTENT_TYPE = "application/protobuf"


def event_headers(
    event_id: str, type_name: str, source: str, time: datetime, traceparent: str = ""
) -> dict[str, str]:
    """Returns the headers of an event.

    Args:
        event_id: also given to the bus as message id, so that readers and the broker agree on identity.
        type_name: full proto name of the message, for example `tunesmith.api.jobs.v1.JobEvent`.
        source: who says it, for example `tunesmith/jobs`.
        time: when it happened; without a zone it is UTC.
        traceparent: W3C trace context; empty: none.
    """
    moment = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    headers = {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": source,
        "ce-type": type_name,
        "ce-time": moment.isoformat().replace("+00:00", "Z"),
        "content-type": CONTENT_TYPE,
    }
    if traceparent:
        headers[TRACEPARENT] = traceparent
    return headers

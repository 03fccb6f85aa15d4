"""Webhooks: bodies, and the signature of the Standard Webhooks specification."""

import base64
import binascii
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_metrics.alerts.targets import Refused, post

_NEVER = "0001-01-01T00:00:00Z"
_PREFIX = "whsec_"


def send(target: rules_pb2.WebhookTarget, notice: Any, now: datetime, private: bool) -> None:
    """Sends a notification; `notice` is its row. Raises `Refused` unless the answer is 2xx."""
    alert = rules_pb2.Alert.FromString(notice.alert)
    formed = target.format == rules_pb2.WEBHOOK_FORMAT_ALERTMANAGER
    content = alertmanager(alert, notice) if formed else own(alert, notice)
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    headers = {"content-type": "application/json", "user-agent": "tunesmith"}
    headers |= signed(target.secret, notice.id, now, body)
    answer = post(target.url, body, headers, private)
    if not 200 <= answer.status < 300:
        hint = " (redirects are not followed)" if 300 <= answer.status < 400 else ""
        raise Refused(f"the receiver answered {answer.status}{hint}: {answer.text[:200]}")


def signed(secret: str, notice_id: str, now: datetime, body: bytes) -> dict[str, str]:
    """The headers that tell what a request is, and prove it when there is a secret."""
    stamp = str(int(now.timestamp()))
    headers = {"webhook-id": notice_id, "webhook-timestamp": stamp}
    if secret:
        text = f"{notice_id}.{stamp}.".encode() + body
        digest = hmac.new(key_of(secret), text, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def key_of(secret: str) -> bytes:
    """The key in a secret: base64 behind `whsec_`, else the text itself. Raises ValueError."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("what stands behind whsec_ is not base64") from None


def own(alert: rules_pb2.Alert, notice: Any) -> dict[str, Any]:
    """The body in our own form."""
    firing = notice.state == rules_pb2.ALERT_STATE_FIRING
    return {
        "id": notice.id,
        "type": "alert.firing" if firing else "alert.resolved",
        "time": _time(notice.create_us),
        "alert": MessageToDict(alert, preserving_proto_field_name=True),
    }


def alertmanager(alert: rules_pb2.Alert, notice: Any) -> dict[str, Any]:
    """The body as Alertmanager sends it to webhooks, version 4: a group of one alert."""
    firing = notice.state == rules_pb2.ALERT_STATE_FIRING
    status = "firing" if firing else "resolved"
    severity = rules_pb2.AlertSeverity.Name(alert.severity).removeprefix("ALERT_SEVERITY_").lower()
    labels = {
        **alert.labels,
        "alertname": alert.rule.rpartition("/")[2],
        "severity": severity,
        "subject": alert.subject,
    }
    annotations = {"summary": alert.summary, "subject_name": alert.subject_name}
    group = {name: json.dumps(labels[name]) for name in ("alertname", "subject")}
    fingerprint = hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "version": "4",
        "groupKey": f"{{}}:{{alertname={group['alertname']}, subject={group['subject']}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": f"{notice.project}/{notice.channel_id}",
        "groupLabels": {"alertname": labels["alertname"], "subject": alert.subject},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [
            {
                "status": status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": _time(alert.firing_time.ToMicroseconds()),
                "endsAt": _NEVER if firing else _time(alert.resolve_time.ToMicroseconds()),
                "generatorURL": "",
                "fingerprint": fingerprint,
            }
        ],
    }


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat().replace("+00:00", "Z")

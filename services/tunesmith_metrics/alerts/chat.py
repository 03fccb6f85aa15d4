"""Chat and mail through the apprise library."""

import importlib
import logging
from typing import Any

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_metrics.alerts.targets import Refused, leads_inside


def send(target: rules_pb2.AppriseTarget, alert: rules_pb2.Alert, state: int, private: bool) -> None:
    """Tells chat or mail; raises `Refused`. `private`: hosts may have private addresses."""
    try:
        apprise: Any = importlib.import_module("apprise")  # of the extra `alerts`: not everybody has it
    except ImportError:
        raise Refused(
            "chat and mail need the apprise library on the server: pip install tunesmith[alerts]"
        ) from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs addresses, which hold secrets
    firing = state == rules_pb2.ALERT_STATE_FIRING
    grave = alert.severity == rules_pb2.ALERT_SEVERITY_CRITICAL
    kind = apprise.NotifyType.FAILURE if grave else apprise.NotifyType.WARNING
    title = f"{'Firing' if firing else 'Resolved'}: {alert.rule.rpartition('/')[2]}"
    try:
        teller = _teller(apprise, target, private)
        sent = teller.notify(
            body=alert.summary, title=title, notify_type=kind if firing else apprise.NotifyType.SUCCESS
        )
    except Refused:
        raise
    except Exception as error:  # plugins raise what they like
        raise Refused(f"apprise failed: {type(error).__name__}") from None
    if not sent:
        raise Refused("apprise could not deliver to every address")


def _teller(apprise: Any, target: rules_pb2.AppriseTarget, private: bool) -> Any:
    teller = apprise.Apprise()
    for url in target.urls:
        service = apprise.Apprise.instantiate(url)
        if service is None:
            raise Refused("apprise does not know one of the addresses")
        host = getattr(service, "host", None)
        if not private and isinstance(host, str) and leads_inside(host):
            raise Refused("one of the addresses leads to a private host, which the server does not allow")
        teller.add(service)
    return teller

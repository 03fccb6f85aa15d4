"""Whether rules, silences and channels make sense, beyond the limits their fields declare."""

import math
import re
from typing import Any

import re2

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.metrics.v1 import events_pb2, rules_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.errors import InvalidArgument, Violation
from tunesmith_kit import names
from tunesmith_metrics.alerts import conditions, targets, webhook

MOST_RULES = 200  # of one project
_LONGEST_SECONDS = 31 * 24 * 3600
_SHORTEST_REPEAT_SECONDS = 60
_MOST_LINES = 10_000
_JOB_STATES = [name.removeprefix("JOB_STATE_") for name in state_pb2.JobState.keys()[1:]]
_NODE_STATES = [name.removeprefix("NODE_STATE_") for name in nodes_pb2.NodeState.keys()[1:]]


class _Check:
    """Gathers what is wrong with a rule."""

    def __init__(self, project: str) -> None:
        self.project = project
        self.found: list[Violation] = []

    def wrong(self, path: str, value: object, problem: str, remedy: str = "") -> None:
        self.found.append(Violation(f"rule.{path}", str(value)[:200], problem, remedy))

    def span(self, path: str, said: Any, least: float, needed: bool) -> None:
        """A duration of at least so many seconds; one that must be given is above zero."""
        try:
            seconds = said.ToNanoseconds() / 1e9
        except ValueError:
            seconds = -1.0
        if seconds < 0 or (needed and seconds == 0):
            self.wrong(
                path, f"{seconds:g} s", "must be longer than zero" if needed else "must not be negative"
            )
        elif seconds < least:
            self.wrong(path, f"{seconds:g} s", f"must be at least {least:g} s")
        elif seconds > _LONGEST_SECONDS:
            self.wrong(path, f"{seconds:g} s", "must be at most 31 days")

    def one_of(self, path: str, value: int, enum: Any, needed: bool = True) -> None:
        """A value the contract knows."""
        known = [number for number in enum.values() if number or not needed]
        if value not in known:
            words = ", ".join(enum.Name(number) for number in known)
            self.wrong(path, value, "is not known", f"the choice is {words}")

    def resource(self, path: str, form: str, name: str) -> None:
        """A resource name of a form, in the rule's own project."""
        try:
            parts = names.parse(form, name, path)
        except InvalidArgument:
            self.wrong(path, name, f"must have the form {form}")
        else:
            if form.startswith("projects/") and parts[0] != self.project:
                self.wrong(path, name, "belongs to another project")


def check_rule(rule: rules_pb2.AlertRule, project: str) -> None:
    """Raises `InvalidArgument` with every mistake of a rule."""
    check = _Check(project)
    check.one_of("severity", rule.severity, rules_pb2.AlertSeverity, needed=False)
    check.span("hold", rule.hold, 0, needed=False)
    if rule.HasField("repeat_interval"):
        check.span("repeat_interval", rule.repeat_interval, _SHORTEST_REPEAT_SECONDS, needed=True)
    for index, channel in enumerate(rule.channels):
        check.resource(f"channels[{index}]", "projects/*/alertChannels/*", channel)
    _check_labels(check, "labels", rule.labels)
    kind = rule.condition.WhichOneof("condition")
    if kind is None:
        options = ", ".join(field.name for field in rule.condition.DESCRIPTOR.fields)
        check.wrong("condition", "", "is empty", f"give one of {options}")
    else:
        _CHECKS[kind](check, f"condition.{kind}", getattr(rule.condition, kind))
        _check_selector(check, rule.selector, kind in ("node_state", "node_threshold"))
    raise_for(check.found)


def raise_for(found: list[Violation]) -> None:
    """Raises what was found, if anything was."""
    if not found:
        return
    only = found[0] if len(found) == 1 else Violation("", "", "")
    message = f"{only.path} {only.problem}" if only.path else f"{len(found)} fields are wrong"
    raise InvalidArgument(
        "FIELD_INVALID", message, field=only.path, value=only.value, remedy=only.remedy, violations=found
    )


def _check_labels(check: _Check, path: str, labels: Any) -> None:
    for key, value in labels.items():
        if not key or len(key) > 64 or len(value) > 256:
            check.wrong(f"{path}.{key}", value, "is too long: keys have 1 to 64 characters, values up to 256")


def _check_selector(check: _Check, selector: rules_pb2.AlertSelector, about_nodes: bool) -> None:
    _check_labels(check, "selector.labels", selector.labels)
    for index, job in enumerate(selector.jobs):
        check.resource(f"selector.jobs[{index}]", "projects/*/jobs/*", job)
    for index, node in enumerate(selector.nodes):
        check.resource(f"selector.nodes[{index}]", "nodes/*", node)
    remedy = "leave it out: the condition is about " + ("nodes" if about_nodes else "jobs")
    if about_nodes and (selector.jobs or selector.experiment):
        check.wrong("selector", "", "chooses jobs", remedy)
    if not about_nodes and selector.nodes:
        check.wrong("selector.nodes", "", "chooses nodes", remedy)


def _check_threshold(check: _Check, path: str, said: Any) -> None:
    check.one_of(f"{path}.comparison", said.comparison, rules_pb2.Comparison)
    if not math.isfinite(said.value):
        check.wrong(f"{path}.value", said.value, "is not a number", "use not_finite to find NaN and infinity")


def _check_trend(check: _Check, path: str, said: rules_pb2.MetricTrend) -> None:
    check.one_of(f"{path}.trend", said.trend, rules_pb2.Trend)
    if said.num_points < 1:
        check.wrong(f"{path}.num_points", said.num_points, "must be at least 1")
    if not 0 < said.change < math.inf:
        check.wrong(f"{path}.change", said.change, "must be above zero", "give 0.1 for a tenth")


def _check_not_finite(check: _Check, path: str, said: Any) -> None:
    """Any key will do."""


def _check_duration(check: _Check, path: str, said: Any) -> None:
    check.span(f"{path}.duration", said.duration, 0, needed=True)


def _check_states(known: list[str]) -> Any:
    def check_states(check: _Check, path: str, said: Any) -> None:
        if not said.states:
            check.wrong(f"{path}.states", "", "is empty", f"the choice is {', '.join(known)}")
        for index, state in enumerate(said.states):
            if state not in known:
                check.wrong(
                    f"{path}.states[{index}]", state, "is no state", f"the choice is {', '.join(known)}"
                )

    return check_states


def _check_log(check: _Check, path: str, said: rules_pb2.LogMatches) -> None:
    check.one_of(f"{path}.min_level", said.min_level, events_pb2.LogLevel, needed=False)
    if said.HasField("window"):
        check.span(f"{path}.window", said.window, 0, needed=True)
    if not said.pattern and not said.min_level:
        check.wrong(path, "", "fits every line", "give a pattern or min_level")
    if said.count > _MOST_LINES:
        check.wrong(f"{path}.count", said.count, f"must be at most {_MOST_LINES}")
    try:
        conditions.compile_pattern(said.pattern)
    except re2.error as error:
        problem, position = pattern_error(said.pattern, error)
        place = f"at character {position + 1}: " if position >= 0 else ""
        check.wrong(f"{path}.pattern", said.pattern, f"is no regular expression, {place}{problem}")


def pattern_error(pattern: str, error: Exception) -> tuple[str, int]:
    """What is wrong with a pattern, and where (counted from 0; -1: not known)."""
    text = error.args[0]
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    problem, colon, part = text.partition(": ")
    if not colon or problem.startswith("missing"):
        return problem, _open_bracket(pattern)
    return text, pattern.find(part)


def _open_bracket(pattern: str) -> int:
    """Where the last bracket stands that nothing closes."""
    open_at: list[int] = []
    for match in re.finditer(r"\\.|[()\[\]]", pattern):
        if match[0] in ("(", "["):
            open_at.append(match.start())
        elif match[0] in (")", "]") and open_at:
            open_at.pop()
    return open_at[-1] if open_at else -1


_CHECKS: dict[str, Any] = {
    "threshold": _check_threshold,
    "node_threshold": _check_threshold,
    "trend": _check_trend,
    "not_finite": _check_not_finite,
    "no_progress": _check_duration,
    "queue_wait": _check_duration,
    "job_state": _check_states(_JOB_STATES),
    "node_state": _check_states(_NODE_STATES),
    "log_matches": _check_log,
}


def check_silence(silence: rules_pb2.Silence, project: str, now_us: int) -> None:
    """Raises `InvalidArgument` for a silence that could never match or has ended."""
    for form, chosen in (("projects/*/alertRules/*", silence.rules),):
        for name in chosen:
            if names.parse(form, name, "silence.rules")[0] != project:
                raise InvalidArgument(
                    "NAME_INVALID", "the rule belongs to another project", field="silence.rules", value=name
                )
    start_us = silence.start_time.ToMicroseconds() if silence.HasField("start_time") else now_us
    end_us = silence.end_time.ToMicroseconds()
    if end_us <= max(now_us, start_us):
        raise InvalidArgument(
            "FIELD_INVALID",
            "the silence would end before it begins or before now",
            field="silence.end_time",
            value=silence.end_time.ToJsonString(),
            remedy="give a later end",
        )


def check_channel(channel: rules_pb2.AlertChannel, private: bool) -> None:
    """Raises `InvalidArgument` for a channel that could never be told anything."""
    if channel.WhichOneof("target") == "webhook":
        targets.check_url(channel.webhook.url, private)
        if channel.webhook.format not in rules_pb2.WebhookFormat.values():
            raise _channel_error("webhook.format", channel.webhook.format, "the format is not known")
        try:
            webhook.key_of(channel.webhook.secret)
        except ValueError as error:
            raise _channel_error("webhook.secret", "", str(error)) from None
    elif channel.WhichOneof("target") is None:
        raise _channel_error("target", "", "a channel needs webhook or apprise")
    elif not all("://" in url and len(url) <= 2000 for url in channel.apprise.urls):
        raise _channel_error("apprise.urls", "", "an address is not of the form name://…")


def _channel_error(field: str, value: object, problem: str) -> InvalidArgument:
    return InvalidArgument("FIELD_INVALID", problem, field=f"channel.{field}", value=value)

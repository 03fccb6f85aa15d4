"""Telemetry of a service: spans over OTLP, figures for Prometheus, logs.

Each service has its own `Telemetry` with its own OpenTelemetry provider, since several services may live in
one process. The trace context itself is one context variable, a W3C `traceparent`: it crosses HTTP, gRPC
metadata, NATS headers and run folders as text. Without an OTLP address no OpenTelemetry code is loaded; trace
ids are made all the same, so logs and jobs can be matched.

Spans that may belong to a job are kept beside that, by a recorder of our own (`spans.py`), under the same ids
as over OTLP. A span costs some three microseconds, a kept one eight.
"""

import logging
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Protocol

from tunesmith.errors import InvalidArgument
from tunesmith_kit import logs
from tunesmith_kit.bus import Bus
from tunesmith_kit.meters import METRICS, REGISTRY
from tunesmith_kit.spans import KINDS, Recorder, SpanPublisher

__all__ = ["METRICS", "REGISTRY", "Span", "Telemetry", "current_traceparent", "setup", "trace_id"]

log = logging.getLogger(__name__)

Value = str | int | float | bool
_current: ContextVar[str] = ContextVar("traceparent", default="")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_FLUSH_MILLIS = 3000


def current_traceparent() -> str:
    """The W3C trace context in force; empty when none is."""
    return _current.get()


def trace_id() -> str:
    """Trace id in force, 32 hexadecimal digits; empty when none is."""
    return _current.get()[3:35]


def new_traceparent(above: str = "") -> str:
    """A span below another, or a trace of its own."""
    trace = above[3:35] or f"{random.getrandbits(128) | 1:032x}"
    return f"00-{trace}-{random.getrandbits(64) | 1:016x}-{above[53:55] or '01'}"


class Span(Protocol):
    """A span under way."""

    @property
    def traceparent(self) -> str:
        """Its trace context, to be given to whoever works on its behalf."""
        ...

    def set(self, key: str, value: Value) -> None:
        """Notes an attribute."""
        ...


class _Exporter(Protocol):
    def start(self, name: str, parent: str, kind: str, links: Sequence[str], start_ns: int | None) -> Any: ...
    def shutdown(self) -> None: ...


class _PlainSpan:
    """A span nobody hears of: only its place in the trace."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def set(self, key: str, value: Value) -> None:
        """Forgets the attribute."""

    def fail(self, error: BaseException) -> None:
        """Forgets the error."""

    def end(self, end_ns: int | None) -> None:
        """Nothing to do."""


class _ExportedSpan:
    """A span of OpenTelemetry's."""

    def __init__(self, span: Any) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def set(self, key: str, value: Value) -> None:
        """Notes an attribute."""
        self._span.set_attribute(key, value)

    def fail(self, error: BaseException) -> None:
        """Notes the error."""
        from opentelemetry.trace import Status, StatusCode

        self._span.record_exception(error)
        self._span.set_status(Status(StatusCode.ERROR, str(error)[:500]))

    def end(self, end_ns: int | None) -> None:
        """Ends it, now or at a time."""
        self._span.end(end_ns)


class _KeptSpan:
    """A span that goes to the recorder when it ends, and to OpenTelemetry if it is `inner`'s too."""

    def __init__(
        self, recorder: Recorder, inner: "_PlainSpan | _ExportedSpan", start_ns: int | None, **fields: str
    ) -> None:
        self.traceparent = inner.traceparent
        self._recorder, self._inner, self._fields = recorder, inner, fields
        self._attributes: dict[str, Value] = {}
        self._error = ""
        self._start_ns, self._began = start_ns or time.time_ns(), time.perf_counter_ns()

    def set(self, key: str, value: Value) -> None:
        """Notes an attribute."""
        self._attributes[key] = value
        self._inner.set(key, value)

    def fail(self, error: BaseException) -> None:
        """Notes the error."""
        self._error = str(error) or type(error).__name__
        self._inner.fail(error)

    def end(self, end_ns: int | None) -> None:
        """Ends it, now or at a time. A clock that was set meanwhile does not change how long it took."""
        self._inner.end(end_ns)
        ended = end_ns or self._start_ns + time.perf_counter_ns() - self._began
        self._recorder.add(
            traceparent=self.traceparent,
            start_ns=self._start_ns,
            end_ns=ended,
            error=self._error,
            attributes=self._attributes,
            **self._fields,
        )


class Telemetry:
    """Spans of one service. Made by `setup`."""

    def __init__(
        self, service_name: str, exporter: "_Exporter | None", recorder: Recorder | None = None
    ) -> None:
        self.service_name = service_name
        self.recorder = recorder
        self._exporter = exporter

    def publish(self, bus: Bus) -> SpanPublisher:
        """Begins to publish what is kept, over the bus of the process. Stop it before the bus is closed."""
        publisher = SpanPublisher(self.recorder, self.service_name, bus)
        publisher.start()
        return publisher

    @contextmanager
    def span(
        self,
        name: str,
        *,
        parent: str | None = None,
        links: Sequence[str] = (),
        kind: str = "internal",
        attributes: Mapping[str, Value] | None = None,
        job: str = "",
        keep: bool = True,
    ) -> Iterator[Span]:
        """Makes a span the current one; an exception that leaves it is noted on it.

        Args:
            parent: traceparent it belongs under. None or empty: the current span, or a new trace.
            links: traceparents it has to do with but is no part of, for example of consumed messages.
            kind: internal, server, client, producer or consumer.
            job: resource name of the job it is for, where that is known.
            keep: whether it may be part of a job's trace. False: it leaves the process over OTLP at most.
        """
        above = parent if parent and _TRACEPARENT.fullmatch(parent) else _current.get()
        span = self._start(name, above, kind, links, None, job, keep)
        for key, value in (attributes or {}).items():
            span.set(key, value)
        token = _current.set(span.traceparent)
        try:
            yield span
        except BaseException as error:
            span.fail(error)
            raise
        finally:
            _current.reset(token)
            span.end(None)

    def record_span(
        self,
        name: str,
        start: datetime,
        end: datetime,
        *,
        parent: str = "",
        attributes: Mapping[str, Value] | None = None,
        job: str = "",
    ) -> str:
        """Enters a span measured elsewhere, as by the trainer, and returns its traceparent."""
        above = parent if _TRACEPARENT.fullmatch(parent) else ""
        span = self._start(name, above, "internal", (), _nanoseconds(start), job, keep=True)
        for key, value in (attributes or {}).items():
            span.set(key, value)
        span.end(_nanoseconds(end))
        return span.traceparent

    def _start(
        self,
        name: str,
        above: str,
        kind: str,
        links: Sequence[str],
        start_ns: int | None,
        job: str,
        keep: bool,
    ) -> "_PlainSpan | _ExportedSpan | _KeptSpan":
        assert kind in KINDS, kind
        recorder = self.recorder if keep else None
        inner: _PlainSpan | _ExportedSpan
        if self._exporter is not None:
            inner = _ExportedSpan(self._exporter.start(name, above, kind, links, start_ns))
        else:
            # One that is not kept stands for the one above it: what hangs below it hangs there.
            inner = _PlainSpan(new_traceparent(above) if recorder or not above else above)
        if recorder is None:
            return inner
        own = {"service": self.service_name, "name": name, "parent": above, "kind": kind, "job": job}
        return _KeptSpan(recorder, inner, start_ns, **own)

    def shutdown(self) -> None:
        """Sends what is still here over OTLP, for at most three seconds."""
        if self._exporter is not None:
            self._exporter.shutdown()


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e9)


class _Otlp:
    """OpenTelemetry's provider with an OTLP/HTTP exporter; imported when it is wanted (200 ms, 10 MB)."""

    def __init__(self, service_name: str, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": f"tunesmith-{service_name}"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("tunesmith")

    def start(self, name: str, parent: str, kind: str, links: Sequence[str], start_ns: int | None) -> Any:
        from opentelemetry import trace
        from opentelemetry.context import Context

        context = Context()
        if parent:
            context = trace.set_span_in_context(trace.NonRecordingSpan(_span_context(parent)), context)
        return self._tracer.start_span(
            name,
            context=context,
            kind=trace.SpanKind[kind.upper()],
            links=[trace.Link(_span_context(link)) for link in links if _TRACEPARENT.fullmatch(link)],
            start_time=start_ns,
        )

    def shutdown(self) -> None:
        self._provider.force_flush(_FLUSH_MILLIS)
        self._provider.shutdown()


def _span_context(traceparent: str) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    match = _TRACEPARENT.fullmatch(traceparent)
    assert match is not None
    trace, span, flags = (int(part, 16) for part in match.groups())
    return SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(flags))


def setup(
    service_name: str,
    *,
    otlp_endpoint: str = "",
    log_format: str = "json",
    log_level: str = "info",
    recorder: Recorder | None = None,
) -> Telemetry:
    """Prepares logs and spans of a service.

    Args:
        otlp_endpoint: base address of an OTLP/HTTP receiver, for example `http://127.0.0.1:4318`; empty: no
            spans leave the process.
        log_format: `json` or `text`.
        log_level: `debug`, `info`, `warning` or `error`.
        recorder: takes the spans that may belong to a job; None: they are not kept.

    Raises:
        InvalidArgument: a value is none of these.
    """
    _one_of("log_format", log_format, ("json", "text"))
    _one_of("log_level", log_level, ("debug", "info", "warning", "error"))
    if otlp_endpoint and not otlp_endpoint.startswith(("http://", "https://")):
        raise InvalidArgument(
            "SETTING_INVALID",
            "otlp_endpoint must be an http(s) address",
            field="otlp_endpoint",
            value=otlp_endpoint,
            remedy="give the receiver's base address, for example http://127.0.0.1:4318",
        )
    logs.install(log_format, log_level, trace_id)
    return Telemetry(service_name, _Otlp(service_name, otlp_endpoint) if otlp_endpoint else None, recorder)


def _one_of(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidArgument(
            "SETTING_INVALID",
            f"{field} is not known",
            field=field,
            value=value,
            remedy=f"use one of {', '.join(allowed)}",
        )

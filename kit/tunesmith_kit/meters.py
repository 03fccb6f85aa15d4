"""Every figure a process shows to Prometheus, in one table. Services of one process share them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)


def _counter(name: str, help: str, *labels: str) -> Counter:
    return Counter(f"tunesmith_{name}", help, labels, registry=REGISTRY)


def _gauge(name: str, help: str, *labels: str) -> Gauge:
    return Gauge(f"tunesmith_{name}", help, labels, registry=REGISTRY)


def _seconds(name: str, help: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
    return Histogram(f"tunesmith_{name}_seconds", help, labels, buckets=buckets, registry=REGISTRY)


class Meters:
    """The table. Counters appear with `_total` behind their name."""

    queue_length = _gauge("queue_length", "Jobs that wait for a node")
    jobs = _gauge("jobs", "Jobs by state", "state")
    nodes = _gauge("nodes", "Nodes by state", "state")
    task_success = _counter("task_success", "Jobs that succeeded")
    task_failure = _counter("task_failure", "Jobs that failed, by failure class", "failure_class")
    task_duration = _seconds(
        "task_duration", "From acceptance of a job to its end, by final state", "state", buckets=_LONG_SECONDS
    )
    attempts = _counter("attempts", "Attempts that ended, by final state", "state")
    lease_expiries = _counter("lease_expiries", "Leases of nodes that ran out")
    stalls = _counter("stalls", "Attempts killed because nothing moved")
    outbox_age = _gauge("outbox_age_seconds", "Age of the oldest event not yet on the bus", "service")
    dead_letters = _counter("dead_letters", "Messages no consumer could use", "stream")
    spans_dropped = _counter("spans_dropped", "Spans left out of traces, for the bus was away too long")
    bus_reconnects = _counter("bus_reconnects", "Times the connection to NATS came back")
    points_ingested = _counter("points_ingested", "Metric points stored")
    points_held = _counter("points_held", "Metric points sent back to wait, for their project is full")
    values_dropped = _counter("values_dropped", "Metric values left out, for their job has too many keys")
    log_lines_ingested = _counter("log_lines_ingested", "Log lines stored")
    ingest_lag = _gauge("ingest_lag_messages", "Messages of a stream that wait to be stored", "stream")
    ingest_duration = _seconds("ingest_duration", "From reading a batch to its commit", "stream")
    live_viewers = _gauge("live_viewers", "Those who watch curves now")
    live_streams = _gauge("live_streams", "Streams of curves the gateway shares among its viewers")
    alert_notifications = _counter("alert_notifications", "Tries to tell a channel, by result", "result")
    datasets_imported = _counter("datasets_imported", "Dataset versions imported")
    model_versions = _counter("model_versions", "Model versions registered")
    rpc_duration = _seconds("rpc_duration", "Duration of a gRPC call", "method", "code")
    http_duration = _seconds("http_duration", "Duration of an HTTP request", "route", "code")
    spool_backlog = _gauge("spool_backlog_bytes", "Records not yet confirmed by the metrics service")
    cpu_percent = _gauge("node_cpu_percent", "Processor time in use on the node, percent of all processors")
    memory_used = _gauge("node_memory_used_bytes", "Memory in use on the node")
    disk_free = _gauge("node_disk_free_bytes", "Disk free where runs lie")
    gpu_utilization = _gauge("gpu_utilization_percent", "Time the GPU is in use", "gpu")
    gpu_memory_used = _gauge("gpu_memory_used_bytes", "Memory of the GPU in use", "gpu")


METRICS = Meters()

# CPU, memory, open files and start time of this process.
ProcessCollector(namespace="tunesmith", registry=REGISTRY)

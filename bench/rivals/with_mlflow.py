"""MLflow: its server on SQLite, its client beside it. Run by MLflow's own Python; the last line is JSON."""

import contextlib
import json
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.entities import Metric

_KEYS = [f"train/layer{i:02d}/some_metric" for i in range(10)]
_HISTORY_POINTS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """`mlflow server` as its documentation starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    files = ["--artifacts-destination", f"{folder}/files"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", *place, *database, *files]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    ) as child:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=1):
                    break
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(child.pid, 15)


def log_batch(client: mlflow.MlflowClient, run_id: str, num_calls: int = 20) -> float:
    """Points a second that are in the database when the call returns, 1,000 a call."""
    rates = []
    for call in range(num_calls):
        at = int(time.time() * 1000)
        metrics = [Metric(_KEYS[i % 10], random.random(), at, call * 100 + i // 10) for i in range(1000)]
        began = time.perf_counter()
        client.log_batch(run_id, metrics=metrics)
        rates.append(1000 / (time.perf_counter() - began))
    return statistics.median(rates)


def call_us(synchronous: bool, num_calls: int = 200) -> float:
    """What logging ten values of a step costs the training process, microseconds."""
    values = dict.fromkeys(_KEYS, 1.25)
    began = time.perf_counter()
    for step in range(num_calls):
        mlflow.log_metrics(values, step=step, synchronous=synchronous)
    cost = (time.perf_counter() - began) / num_calls * 1e6
    if not synchronous:
        mlflow.flush_async_logging()
    return cost


def history_s(client: mlflow.MlflowClient, database: Path, run_id: str) -> float:
    """Reading the whole curve of one metric. Its points are put into MLflow's own table directly: logging a
    million would take many minutes."""
    with sqlite3.connect(database) as connection:
        rows = ((run_id, "long", random.random(), step, step, 0) for step in range(_HISTORY_POINTS))
        connection.executemany(
            "INSERT INTO metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )
    began = time.perf_counter()
    found = client.get_metric_history(run_id, "long")
    took = time.perf_counter() - began
    assert len(found) == _HISTORY_POINTS, len(found)
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as url:
        mlflow.set_tracking_uri(url)
        mlflow.set_experiment("bench")
        client = mlflow.MlflowClient(url)
        with mlflow.start_run() as run:
            found = {
                "log_batch_points_per_s": log_batch(client, run.info.run_id),
                "call_us": call_us(True),
                "call_async_us": call_us(False),
                "history_points": _HISTORY_POINTS,
                "history_s": history_s(client, Path(folder) / "mlflow.db", run.info.run_id),
            }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""`make bench-metrics`: the metric path beside its rivals, in one run. The last line is one JSON object."""

import argparse
import json
import sys
from typing import Any

from bench import rivals
from bench.__main__ import run

TARGETS = {
    "durable 1,000 points a message, points/s": ">= 4,000,000",
    "durable 100 points a message, points/s": ">= 1,200,000",
    "durable 10 points a message, points/s": ">= 200,000",
    "durable / MLflow log_batch": ">= 100",
    "cost in the training process, us a step": "<= 5",
    "MLflow log_metrics / ours": "",
    "MLflow log_metrics (async) / ours": "",
    "trackio / ours": "",
    "TensorBoard (tensorboardX) / ours": "",
    "bytes a point": "<= 9",
    "bytes a point, smooth": "<= 3",
    "1 M points to 2,000 px, warm, ms": "<= 20",
    "MLflow full history / that": ">= 200",
    "1 M points exported (Arrow), ms": "<= 150",
    "table of 10,000 runs x 20 keys, ms": "<= 50",
    "step to browser event p50, ms": "<= 80",
    "step to browser event p99, ms": "<= 200",
    "soak: points lost": "0",
    "soak: lag p99, s": "<= 1",
    "soak: processors": "<= 1",
    "soak: memory of metrics, MB": "<= 400",
    "step time with metrics stopped / running": "<= 1.02",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long 1,000 runs log 100,000 points/s")
    parser.add_argument("--history", type=int, default=1_000_000, help="points of the curve MLflow reads")
    options = parser.parse_args()
    ours = run("bench.metrics_ingest", "--runs", "1000", "--seconds", str(options.seconds))
    ours |= run("bench.metrics_query") | run("bench.live") | run("bench.metrics_away")
    mlflow = rivals.run("mlflow", str(options.history))
    others = {name: rivals.run(name) for name in ("trackio", "tensorboard")}
    rows = table(ours, mlflow, others)
    for name, target in TARGETS.items():
        sys.stdout.write(f"{name:44} {rows[name]:>16,.6g}   {target}\n")
    found = ours | {
        "ratio_mlflow_log_batch": rows["durable / MLflow log_batch"],
        "ratio_mlflow_history": rows["MLflow full history / that"],
        "points_lost": ours["soak_lost"],
        "rivals": {"mlflow": mlflow, **others},
    }
    sys.stdout.write(json.dumps(found) + "\n")


def table(ours: dict[str, Any], mlflow: dict[str, Any], others: dict[str, Any]) -> dict[str, float]:
    """The figures by the names of `TARGETS`."""
    durable, cost = ours["durable_points_per_s"], ours["step_cost_us"]
    per_million = mlflow["history_s"] * 1e6 / mlflow["history_points"]
    values = (
        *(durable[size] for size in ("1000", "100", "10")),
        durable["1000"] / mlflow["log_batch_points_per_s"],
        cost,
        mlflow["call_us"] / cost,
        mlflow["call_async_us"] / cost,
        others["trackio"]["call_us"] / cost,
        others["tensorboard"]["call_us"] / cost,
        ours["bytes_per_point"],
        ours["bytes_per_point_smooth"],
        ours["chart_1m_ms"],
        per_million * 1e3 / ours["chart_1m_ms"],
        ours["export_1m_arrow_ms"],
        ours["table_10k_runs_ms"],
        ours["live_p50_ms"],
        ours["live_p99_ms"],
        ours["soak_lost"],
        ours["soak_lag_p99_s"],
        ours["soak_cores"],
        ours["soak_rss_mb"],
        ours["step_ratio_metrics_stopped"],
    )
    return dict(zip(TARGETS, values, strict=True))


if __name__ == "__main__":
    main()

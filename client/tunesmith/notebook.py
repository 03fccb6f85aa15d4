"""What notebooks show of results: escaped HTML, and curves as SVG. Nothing in it runs or is fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from tunesmith import drawing, names

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1.jobs_pb2 import Job
    from tunesmith.metrics import Series
    from tunesmith.runs import Run

_MOST_ROWS = 100
_MOST_CURVES = 4  # in one picture
_BAR = (
    '<div style="width:16em;height:.6em;background:#d1d5db;border-radius:.3em">'
    '<div style="width:{:.1f}%;height:100%;background:#1f5fae;border-radius:.3em"></div></div>'
)


def job(proto: Job, state: str) -> str:
    """Returns a job with its state, progress and loss."""
    done = proto.progress
    rows = [("state", escape(state)), ("experiment", escape(proto.spec.experiment))]
    if proto.spec.base_model:
        rows.append(("base model", escape(proto.spec.base_model)))
        rows.append(("dataset", escape(proto.spec.dataset)))
    if done.total_steps:
        share = 100 * min(done.step / done.total_steps, 1.0)
        rows.append(("progress", f"{_BAR.format(share)}step {done.step:,} of {done.total_steps:,}"))
    if done.step:
        rows.append(("loss", f"{done.first_loss:.4g} → {done.loss:.4g}"))
    if proto.model_version:
        rows.append(("model", escape(names.last_part(proto.model_version.rpartition("/versions/")[0]))))
    if proto.HasField("failure"):
        rows.append(("failure", escape(proto.failure.message)))
    cells = "".join(f"<tr><th style='text-align:left'>{key}</th><td>{text}</td></tr>" for key, text in rows)
    return f"<div><strong>{escape(proto.display_name)}</strong><table>{cells}</table></div>"


def curves(found: Mapping[str, Series]) -> str:
    """Returns curves as pictures, a few in each; nothing when there is no point."""
    keys = list(found)
    groups = [keys[at : at + _MOST_CURVES] for at in range(0, len(keys), _MOST_CURVES)]
    pictures = []
    for group in groups[: _MOST_ROWS // _MOST_CURVES]:
        columns = {key: (list(found[key].steps), list(found[key].values)) for key in group}
        pictures.append(drawing.curves(columns, group[0] if len(group) == 1 else "", ""))
    return f"<div>{''.join(pictures) or 'no points'}</div>"


def runs(rows: Sequence[Run], total: int) -> str:
    """Returns a table of runs with the last values of their metrics and their settings that differ."""
    shown = rows[:_MOST_ROWS]
    metrics = list(dict.fromkeys(key for run in shown for key in run.metrics))[:8]
    paths = dict.fromkeys(path for run in shown for path in run.config)
    config = [path for path in paths if len({run.config.get(path) for run in shown}) > 1][:8]
    head = "".join(f"<th>{escape(title)}</th>" for title in ("run", "state", *metrics, *config))
    body = "".join(_row([run.name, run.state, *_values(run, metrics, config)]) for run in shown)
    more = f"<p>{len(shown)} of {total} runs</p>" if total > len(shown) else ""
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"


def _values(run: Run, metrics: Iterable[str], config: Iterable[str]) -> list[str]:
    numbers = [run.metrics.get(key, math.nan) for key in metrics]
    return ["" if math.isnan(number) else f"{number:.5g}" for number in numbers] + [
        run.config.get(path, "") for path in config
    ]


def _row(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"

"""What notebooks show: the facts, pictures, and nothing that names from outside could make it do."""

import math
from xml.etree import ElementTree

from tunesmith import Curves, Job, Run, RunTable, Series
from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2

EVIL = '<script>alert(1)</script>&"'


def shown(thing: object) -> tuple[str, ElementTree.Element]:
    """Returns the HTML, which is well-formed, and its tree."""
    html = thing._repr_html_()  # type: ignore[attr-defined]
    assert "<script" not in html
    return html, ElementTree.fromstring(html)


def test_a_job_shows_how_far_it_is() -> None:
    proto = jobs_pb2.Job(display_name=EVIL, state=state_pb2.JOB_STATE_FAILED)
    proto.spec.base_model = EVIL
    proto.progress.step, proto.progress.total_steps, proto.progress.loss = 30, 40, 0.5
    proto.failure.message = EVIL
    html, tree = shown(Job(None, proto))  # type: ignore[arg-type]
    assert "width:75.0%" in html
    assert [cell.text for cell in tree.iter("th")][:1] == ["state"]
    assert tree.find("strong").text == EVIL  # type: ignore[union-attr]


def test_curves_are_pictures_and_nan_leaves_a_gap() -> None:
    def series(key: str, values: list[float]) -> Series:
        return Series(key, list(range(len(values))), values, [0.0] * len(values), (), (), len(values))

    found = Curves({EVIL: series(EVIL, [3.0, math.nan, 1.0]), "nothing": series("nothing", [math.inf])})
    _, tree = shown(found)
    words = [each.text or "" for each in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert f"{EVIL}, last 1" in words
    assert "no points" in Curves()._repr_html_()
    assert found.to_numpy()["nothing"]["step"].tolist() == [0]
    assert list(found.to_pandas().columns) == [EVIL, "nothing"]


def test_runs_show_what_differs() -> None:
    def run(name: str, rate: str, loss: float) -> Run:
        config = {"lr": rate, "seed": "1", EVIL: name}
        return Run("j", name, "e", "RUNNING", {}, None, {"loss": loss}, config, 1, 1)

    html, tree = shown(RunTable([run("a", "0.1", 1.0), run(EVIL, "0.2", math.nan)], 7))
    titles = [cell.text for cell in tree.iter("th")]
    assert titles == ["run", "state", "loss", "lr", EVIL]
    assert [cell.text for cell in tree.iter("td")][:4] == ["a", "RUNNING", "1", "0.1"]
    assert "2 of 7 runs" in html

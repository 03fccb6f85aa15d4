"""Job files that evaluate or export, and scorers as people write them."""

import re
from pathlib import Path

import pytest
import yaml

from tunesmith import InvalidArgument, jobfile
from tunesmith.evaluations import scorer_of

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_job_file_of_the_documentation_reads_back_as_it_was_written() -> None:
    found = re.search(r"```yaml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert found is not None
    spec = jobfile.parse(yaml.safe_load(found[1]), "docs")
    assert [scorer.WhichOneof("kind") for scorer in spec.evaluation.scorers] == [
        "exact_match",
        "rouge",
        "regex",
        "expression",
    ]
    assert spec.evaluation.scorers[2].name == "polite"
    assert jobfile.parse(jobfile.loads(jobfile.dumps(spec), "again"), "again") == spec


def test_an_export_needs_neither_base_model_nor_dataset() -> None:
    export = {"target": "projects/default/models/m/versions/1", "format": "merged"}
    spec = jobfile.parse({"export": export, "output": {"model": "merged"}}, "file")
    assert spec.export.target == export["target"]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (
            {"evaluation": {"targets": ["m@1"], "scorers": [{"rouge": {}}]}, "dataset": "d"},
            "evaluation.targets[0]",
        ),
        ({"evaluation": {"scorers": [{"rouge": {}}]}, "dataset": "d"}, "evaluation.targets"),
        ({"evaluation": {"targets": ["projects/p/baseModels/b"]}, "dataset": "d"}, "evaluation.scorers"),
        ({"evaluation": {"scorers": [{"roughe": {}}]}, "dataset": "d"}, "evaluation.scorers[0].roughe"),
        ({"evaluation": {"scorers": [{"rouge": {}, "bleu": {}}]}}, "evaluation.scorers[0].bleu"),
        ({"evaluation": {"targets": ["projects/p/baseModels/b"], "scorers": [{"rouge": {}}]}}, "dataset"),
        ({"base_model": "b"}, "dataset"),
        ({"dataset": "d"}, "base_model"),
    ],
)
def test_mistakes_in_a_file_are_named(content: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        jobfile.parse(content, "file")
    assert field in [violation.path for violation in caught.value.violations]


def test_scorers_are_written_short() -> None:
    assert scorer_of("exact-match").WhichOneof("kind") == "exact_match"
    assert scorer_of("regex=a=b").regex.pattern == "a=b"
    assert list(scorer_of("multiple_choice=yes | no").multiple_choice.choices) == ["yes", "no"]
    assert scorer_of({"name": "x", "json": {"required_keys": ["a"]}}).json.required_keys == ["a"]
    for wrong in ("telepathy", "rouge=2", {"regex": {"pattrn": "a"}}):
        with pytest.raises(InvalidArgument):
            scorer_of(wrong)

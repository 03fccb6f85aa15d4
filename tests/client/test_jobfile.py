"""Job files: what is read, and how mistakes are named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import InvalidArgument, jobfile
from tunesmith.api.jobs.v1 import spec_pb2

GOOD = "base_model: tiny\ndataset: chat\n"


def _parse(text: str, *overrides: str) -> spec_pb2.JobSpec:
    return jobfile.parse(jobfile.loads(text, "job.yaml"), "job.yaml", overrides)


def _mistakes(text: str, *overrides: str) -> dict[str, tuple[str, str]]:
    with pytest.raises(InvalidArgument) as caught:
        _parse(text, *overrides)
    assert caught.value.reason == "JOB_FILE_INVALID"
    return {wrong.path: (wrong.problem, wrong.remedy) for wrong in caught.value.violations}


def test_a_whole_file_is_read() -> None:
    spec = _parse(
        """
        experiment: demo
        base_model: tiny
        dataset: chat@2
        method: sft
        adapter: {lora: {r: 8, alpha: 16, target_modules: [q_proj, v_proj]}}
        training:
          max_steps: 1e3
          learning_rate: 5e-4
          lr_scheduler: Cosine
          precision: PRECISION_BFLOAT16
        retry: {max_infra_retries: 0, unreachable_grace: 1.5m}
        resources: {node_labels: {gpu: a100}, priority: -3}
        sample_prompts: ["no", "2024-01-01"]
        labels: {team: search}
        """
    )
    assert spec.adapter.lora.target_modules == ["q_proj", "v_proj"]
    assert (spec.training.max_steps, spec.training.learning_rate) == (1000, 5e-4)
    assert spec.training.lr_scheduler == spec_pb2.LR_SCHEDULER_COSINE
    assert spec.training.precision == spec_pb2.PRECISION_BFLOAT16
    assert spec.retry.HasField("max_infra_retries")
    assert spec.retry.unreachable_grace.seconds == 90
    assert (spec.resources.node_labels["gpu"], spec.resources.priority) == ("a100", -3)
    assert spec.sample_prompts == ["no", "2024-01-01"]


def test_all_mistakes_are_named_at_once_with_line_and_remedy() -> None:
    found = _mistakes(
        "base_modl: tiny\nlearning_rate: 1e-4\ndataset: chat\n"
        "training:\n  learning_rate: -1\n  lr_scheduler: cosin\n"
    )
    assert found["base_modl"] == ("is not a key of a job file (line 1)", "did you mean base_model?")
    assert found["learning_rate"][1] == "did you mean training.learning_rate?"
    assert found["training.learning_rate"][0] == "must be greater than 0 (line 5)"
    assert found["training.lr_scheduler"][1].startswith("did you mean cosine?")
    assert found["base_model"][0] == "is required"


@pytest.mark.parametrize(
    ("line", "path", "problem"),
    [
        ("training: {seed: -1}", "training.seed", "must be at least 0"),
        ("training: {seed: 1.5}", "training.seed", "is not a whole number"),
        ("training: {seed: 18446744073709551616}", "training.seed", "must be at most 18446744073709551615"),
        ("training: {num_epochs: '3'}", "training.num_epochs", "is not a number"),
        ("training: {num_epochs: true}", "training.num_epochs", "is not a number"),
        ("training: {num_epochs: }", "training.num_epochs", "has no value"),
        ("training: {learning_rate: .nan}", "training.learning_rate", "is not a finite number"),
        ("training: 3", "training", "is not a mapping of keys to values"),
        ("experiment: 12", "experiment", "is not a text"),
        ("experiment: a/b", "experiment", "does not match"),
        ("experiment: 'job*'", "experiment", "does not match"),
        ("experiment: [a]", "experiment", "is not a text"),
        ("labels: [a, b]", "labels", "is not a mapping of keys to values"),
        ("labels: {year: 2024}", "labels.year", "is not a text"),
        ("sample_prompts: hello", "sample_prompts", "is not a list"),
        ("sample_prompts: [hello, 3]", "sample_prompts[1]", "is not a text"),
        ("retry: {unreachable_grace: 10 seconds}", "retry.unreachable_grace", "is not a time"),
        ("adapter: {lora: {}, full: {}}", "adapter.full", "excludes adapter.lora"),
        ("adapter: {full: {r: 8}}", "adapter.full.r", "is not a key of adapter.full"),
        ("adapter: {lora: {dropout: 1}}", "adapter.lora.dropout", "must be less than 1"),
        ("resources: {num_nodes: 2000}", "resources.num_nodes", "must be at most 1024"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(line: str, path: str, problem: str) -> None:
    found = _mistakes(GOOD + line)
    assert list(found) == [path]
    assert found[path][0].startswith(problem)


def test_a_single_mistake_stands_in_the_error_itself() -> None:
    with pytest.raises(
        InvalidArgument, match=r"job\.yaml: training\.seed must be at least 0 \(line 3\)"
    ) as caught:
        _parse(GOOD + "training: {seed: -1}")
    assert (caught.value.field, caught.value.value) == ("training.seed", "-1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "dataset: other\n", "line 3, column 1: the key 'dataset' is given twice"),
        ("base_model: tiny\n  dataset: chat\n", "line 2, column 10: mapping values are not allowed here"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("a: \t- b", "line 1"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_named_by_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        _parse(text)
    assert message in caught.value.message


def test_a_file_that_is_no_mapping_says_how_to_begin() -> None:
    assert "is not a mapping" in _mistakes("- a\n- b\n")[""][0]
    assert set(_mistakes("")) == {"base_model", "dataset"}


def test_overrides_win_over_the_file() -> None:
    spec = _parse(
        GOOD + "training: {seed: 1, max_steps: 5}",
        "training.seed=7",
        "adapter.lora.target_modules=[a, b]",
        "dataset=x",
    )
    assert (spec.training.seed, spec.training.max_steps, spec.dataset) == (7, 5, "x")
    assert spec.adapter.lora.target_modules == ["a", "b"]


@pytest.mark.parametrize("override", ["training.seed", "=3", "training..seed=3"])
def test_an_override_of_another_form_is_refused(override: str) -> None:
    with pytest.raises(InvalidArgument, match="not of the form key=value"):
        _parse(GOOD, override)


def test_an_override_is_checked_like_the_file() -> None:
    assert _mistakes(GOOD, "training.sed=3")["training.sed"][1] == "did you mean training.seed?"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        jobfile.job_spec(tmp_path / "job.yaml")
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        jobfile.job_spec(tmp_path / "job.yaml")


_FULL = spec_pb2.AdapterSpec(full=spec_pb2.FullSpec())
_LORA = spec_pb2.AdapterSpec(lora=spec_pb2.LoraSpec(r=4, dropout=0.5))
_KEYS = st.from_regex(r"[a-z0-9]([a-z0-9._/-]{0,3}[a-z0-9])?", fullmatch=True)
_TEXTS = st.text(max_size=20) | st.sampled_from(
    ["no", "1e-4", "010", "~", "", "<<", "2024-01-01", "a\x85b", "1_0"]
)
_SPECS = st.builds(
    spec_pb2.JobSpec,
    base_model=st.just("tiny"),
    dataset=st.sampled_from(["chat", "chat@2"]),
    method=st.sampled_from([0, 1]),
    labels=st.dictionaries(_KEYS, st.text(max_size=5), max_size=3),
    sample_prompts=st.lists(_TEXTS, max_size=3),
    training=st.builds(
        spec_pb2.TrainingSpec,
        seed=st.integers(0, 2**64 - 1),
        learning_rate=st.floats(1e-12, 10),
        num_epochs=st.floats(0, 1000),
        lr_scheduler=st.sampled_from([0, 1, 2, 3]),
    ),
    adapter=st.sampled_from([_FULL, _LORA]),
)


@given(_SPECS)
def test_a_spec_written_as_a_file_reads_back_the_same(spec: spec_pb2.JobSpec) -> None:
    assert _parse(jobfile.dumps(spec)) == spec


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["training", "seed", "lora", "adapter", "labels", "x"]), inner)
        ),
    )
)
def test_any_content_is_read_or_refused_but_never_breaks(content: Any) -> None:
    with pytest.raises(InvalidArgument):
        jobfile.parse(content, "job.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "9" * 5000,
        "training: {seed: " + "9" * 4000 + "}",
        "a: !!int 0x" + "f" * 9000,
        "a: !!int abc",
        "a: !!float ''",
        "a: !!bool abc",
        "a: !!timestamp abc",
        "!!map [a]",
        "? [a]\n: b",
        "{a: 1}: 2",
    ],
)
def test_what_yaml_itself_stumbles_over_is_a_mistake_with_its_line(text: str) -> None:
    found = jobfile.examine(f"# a comment\n{text}")
    assert (len(found.mistakes), found.lines.get("")) == (1, 2), found.mistakes


def test_of_thousands_of_unknown_keys_only_the_first_get_a_hint() -> None:
    found = jobfile.examine("\n".join(f"datasets{number}: x" for number in range(1000)))
    hints = [wrong.remedy for wrong in found.mistakes if wrong.path.startswith("datasets")]
    assert (len(hints), hints[0], hints[-1]) == (1000, "did you mean dataset?", "")


def test_edits_of_a_fork_name_their_fields_and_keep_the_rest_of_a_map() -> None:
    parent = spec_pb2.JobSpec(labels={"team": "a", "run": "1"})
    spec, paths = jobfile.edits(
        ["training.learning_rate=1e-3", "labels.run='2'", "labels.who=me", "deadlines.run=2h"], parent
    )
    assert paths == ["training.learning_rate", "labels", "deadlines.run"]
    assert (spec.training.learning_rate, spec.deadlines.run.seconds) == (1e-3, 7200)
    assert dict(spec.labels) == {"team": "a", "run": "2", "who": "me"}
    assert jobfile.edits([], parent) == (spec_pb2.JobSpec(), [])
    with pytest.raises(InvalidArgument) as caught:
        jobfile.edits(["training.lerning_rate=1"], parent)
    assert "training.learning_rate" in caught.value.remedy

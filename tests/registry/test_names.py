"""Names that mean harm: each is refused with its field, nothing is made, none is an error of ours."""

from pathlib import Path

from tests.registry.governing import BOT, governed, refused
from tests.registry.support import PROJECT, base_model_files, jsonl
from tunesmith.api.registry.v1 import datasets_pb2, models_pb2, versions_pb2

NAMES = (
    "",
    ".",
    "..",
    "../x",
    "..\\x",
    "a/b",
    "%2e%2e",
    "%252e%252e%252f",
    "~root",
    "file:///etc/passwd",
    "a;b",
    "a?b",
    "a#b",
    "a b",
    "a ",
    " a",
    "a\n",
    "a\0b",
    "A",
    "*",
    ">",
    "\uff41",  # full width
    "\u0430dmin",  # Cyrillic
    "a\u202eb",
    "<script>",
    "x" * 5000,
)


async def test_names_that_mean_harm_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        await registry.made(1)
        for name in NAMES:
            for call, field in (
                (registry.import_dataset(name, jsonl({"text": "a"})), "dataset_id"),
                (registry.import_base_model(name, base_model_files()), "base_model_id"),
                (
                    registry.versions.SetModelAlias(
                        versions_pb2.SetModelAliasRequest(name=f"{BOT}/versions/1", alias=name)
                    ),
                    "alias",
                ),
            ):
                error = await refused(call)
                assert error.reason in ("FIELD_INVALID", "NAME_INVALID"), (field, name, error)
                assert field in error.field or any(field in each.path for each in error.violations), name
            for path in (f"{PROJECT}/datasets/{name}", f"{PROJECT}/../default/datasets/{name}"):
                error = await refused(registry.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=path)))
                assert error.reason in ("NAME_INVALID", "DATASET_NOT_FOUND", "FIELD_INVALID"), (path, error)
        listed = await registry.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(parent=PROJECT))
        assert [dataset.dataset_id for dataset in listed.datasets] == ["texts"]
        bases = await registry.models.ListBaseModels(models_pb2.ListBaseModelsRequest(parent=PROJECT))
        assert [base.base_model_id for base in bases.base_models] == ["tiny"]

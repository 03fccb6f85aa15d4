"""Prompt templates: versions, the sandbox, their columns, what jobs are told of them."""

from pathlib import Path

import grpc
import pytest

from tests.registry.data import running_data, template
from tests.registry.support import JOB, PROJECT, base_model_files, jsonl, running_registry
from tests.support.bus import running_nats
from tests.support.wait import until
from tunesmith.api.registry.v1 import prompts_pb2
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error

RECORDS = jsonl({"mail": "win money", "kind": "spam"}, {"mail": "hello", "kind": "ham"})
PARTS = {"system": "You sort mail.", "prompt": "Sort: {{ mail }}", "completion": "{{ kind }}"}


async def _fails(call: object) -> TunesmithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def test_templates_have_versions_and_are_checked_against_columns(tmp_path: Path) -> None:
    async with running_data(tmp_path) as data:
        await data.imported("mails", RECORDS, row_format="record")

        def create(dataset: str = "mails", **parts: str) -> object:
            return data.prompts.CreatePromptTemplate(
                prompts_pb2.CreatePromptTemplateRequest(
                    parent=PROJECT, prompt_id="sort", parts=template(**parts), dataset=dataset
                )
            )

        first = (await create(**PARTS)).prompt_template  # type: ignore[misc]
        assert (first.version, list(first.variables)) == (1, ["kind", "mail"])
        assert (await create(**PARTS)).prompt_template == first  # type: ignore[misc]
        second = await create(prompt="{{ mail }}", completion="x")  # type: ignore[misc]
        assert (second.prompt_template.version, list(second.unused_columns)) == (2, ["kind"])
        await until(
            lambda: any(each.prompt_template_created.prompt_template.version == 2 for each in data.said), "it"
        )
        error = await _fails(create(prompt="{{ mial }}"))
        assert (error.reason, error.value) == ("TEMPLATE_COLUMNS", "mial")
        assert "mail" in error.remedy
        for bad in ("{% if", "{% include 'x' %}{{ mail | nope }}", ""):
            assert (await _fails(create(prompt=bad))).reason == "TEMPLATE_INVALID"
        request = prompts_pb2.ListPromptTemplateVersionsRequest(parent=f"{PROJECT}/prompts/sort")
        listed = (await data.prompts.ListPromptTemplateVersions(request)).prompt_templates
        assert [each.version for each in listed] == [2, 1]
        got = prompts_pb2.GetPromptTemplateVersionRequest(name=first.name)
        assert (await data.prompts.GetPromptTemplateVersion(got)).prompt_template == first
        missing = prompts_pb2.GetPromptTemplateRequest(name=f"{PROJECT}/prompts/sotr")
        error = await _fails(data.prompts.GetPromptTemplate(missing))
        assert (error.reason, "did you mean sort?" in error.remedy) == ("PROMPT_NOT_FOUND", True)


async def test_rendering_cannot_leave_its_sandbox_nor_take_for_ever(tmp_path: Path) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    evil = {
        "{{ mail.__class__.__mro__ }}": "SecurityError",
        "{{ cycler.__init__.__globals__ }}": "SecurityError",
        "{{ messages.append(1) }}": "SecurityError",
        "{{ 'a' * 10 ** 10 }}": "more than",
        endless: "did not end",
        "{{ nope }}": "undefined",
        "{% import 'os' as os %}x": "no loader",
    }
    async with running_data(tmp_path) as data:
        row = '{"mail": "hi", "messages": [{"role": "user", "content": "x"}]}'
        for prompt, said in evil.items():
            request = prompts_pb2.RenderPromptTemplateRequest(
                parent=PROJECT, parts=template(prompt=prompt), row_json=row
            )
            rendered = (await data.prompts.RenderPromptTemplate(request)).rendered
            assert said in rendered[0].error, (prompt, rendered[0].error)
            assert not rendered[0].messages
        await data.imported("mails", RECORDS, row_format="record")
        request = prompts_pb2.RenderPromptTemplateRequest(
            parent=PROJECT,
            parts=template(prompt="{{ mail | upper }} {{ other | default('') }}"),
            dataset="mails",
        )
        found = await data.prompts.RenderPromptTemplate(request)
        assert [each.messages[0].content for each in found.rendered] == ["WIN MONEY ", "HELLO "]
        assert (list(found.missing), list(found.unused_columns)) == (["other"], ["kind"])
        for broken in ("{", "[]", '{"a": NaN}'):
            request = prompts_pb2.RenderPromptTemplateRequest(
                parent=PROJECT, parts=template(prompt="x"), row_json=broken
            )
            assert (await _fails(data.prompts.RenderPromptTemplate(request))).reason == "FIELD_INVALID"


async def test_a_job_gets_its_template_pinned_or_is_told_that_it_needs_one(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, running_registry(tmp_path, server) as registry:
        await registry.import_base_model("tiny", base_model_files())
        data = await registry.import_dataset("mails", RECORDS, row_format="record")
        assert data.version.row_format == "record"
        spec = {"base_model": "tiny", "dataset": "mails", "experiment": "x"}
        await registry.job_says("created", spec=spec)
        refused = await registry.answer("job_inputs_rejected")
        error = refused.job_inputs_rejected.errors[0]
        assert (error.reason, error.field) == ("TEMPLATE_MISSING", "spec.prompt_template")
        assert "prompts create" in error.remedy
        await registry.job_says("created", spec={**spec, "prompt_template": "nothing"})
        refused = await registry.answer("job_inputs_rejected", 2)
        assert refused.job_inputs_rejected.errors[0].reason == "PROMPT_NOT_FOUND"
        # Another replica of the registry, on the same database.
        async with running_data(tmp_path, server) as replica:
            prompts = replica.prompts
            request = prompts_pb2.CreatePromptTemplateRequest(
                parent=PROJECT, prompt_id="sort", parts=template(**PARTS)
            )
            made = (await prompts.CreatePromptTemplate(request)).prompt_template
            await registry.job_says("created", spec={**spec, "prompt_template": "sort"})
            good = (await registry.answer("job_inputs_validated")).job_inputs_validated
            assert (good.prompt_template, good.prompt_template_digest) == (made.name, made.digest)
            assert good.job == JOB
            request.parts.completion = ""
            await prompts.CreatePromptTemplate(request)
            await registry.job_says("created", spec={**spec, "prompt_template": "sort"})
            refused = await registry.answer("job_inputs_rejected", 3)
            assert refused.job_inputs_rejected.errors[0].reason == "TEMPLATE_INCOMPLETE"

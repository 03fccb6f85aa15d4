"""The contract is kept: every rpc says who may call it, and is served."""

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from tests.house import contract
from tunesmith_gateway.auth import ROLES
from tunesmith_gateway.main import SERVICES
from tunesmith_kit import access

RPCS = contract.rpcs()
IDS = [method.full_name.removeprefix("tunesmith.api.") for method in RPCS]
SERVERS = ("tunesmith_jobs", "tunesmith_registry", "tunesmith_metrics", "tunesmith_gateway")
# The agent's own, and content, which travels as raw bytes (POST /api/v1/blobs).
WITHOUT_REST = {"nodes.report", "blobs.write", "blobs.read"}


# What touches everybody's jobs.
ADMIN_ONLY = {"nodes.write", "quotas.write", "metrics.admin", "alerts.admin"}
# Packed arrays for programs; REST has ExportSeries.
PACKED = "StreamSeries"
# What a picker shows at once.
WHOLE_LISTS = {"ListMetrics", "ListRunColumns"}
# They change nothing: what is asked is too long for a URL.
ASKS_BY_POST = {"Chat", "CompareEvaluations", "CompareSeries", "QuoteJob", "TestAlertRule"}


@pytest.mark.parametrize("method", RPCS, ids=IDS)
def test_rpc_declares_a_permission_that_a_role_holds(method: MethodDescriptor) -> None:
    permission = access.describe(method).permission
    assert permission, "closed for everybody"
    held = any(permission in role for role in ROLES.values())
    assert held != (permission in ADMIN_ONLY), f"{permission}: open to admins only, or not?"


@pytest.mark.parametrize("method", RPCS, ids=IDS)
def test_rpc_has_a_rest_route(method: MethodDescriptor) -> None:
    rpc = access.describe(method)
    assert rpc.http_method or rpc.permission in WITHOUT_REST or method.name == PACKED
    assert (rpc.http_method in ("POST", "PUT", "PATCH")) == bool(rpc.http_body)


def test_rest_routes_differ() -> None:
    routes = [(rpc.http_method, rpc.http_path) for rpc in map(access.describe, RPCS) if rpc.http_method]
    assert len(routes) == len(set(routes))


@pytest.mark.parametrize("method", RPCS, ids=IDS)
def test_change_takes_a_request_id_listing_pages_and_watch_goes_on(method: MethodDescriptor) -> None:
    rpc, request, response = access.describe(method), method.input_type, method.output_type
    if rpc.http_method in ("POST", "PUT", "PATCH", "DELETE") and method.name not in ASKS_BY_POST:
        assert "request_id" in request.fields_by_name
    if method.name.startswith("List") and method.name not in WHOLE_LISTS:
        assert {"page_size", "page_token"} <= set(request.fields_by_name)
        assert "next_page_token" in response.fields_by_name
    if method.name.startswith(("Watch", "Tail")):
        assert "from_revision" in request.fields_by_name
        assert "revision" in response.fields_by_name


def servicers() -> dict[str, list[type[Any]]]:
    """Classes of the servers that serve a contract, by the name of the generated base."""
    found: dict[str, list[type[Any]]] = {}
    for name in SERVERS:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                for base in cls.__bases__:
                    if cls.__module__ == module.name and base.__name__.endswith("Servicer"):
                        found.setdefault(base.__name__, []).append(cls)
    return found


@pytest.mark.parametrize("service", contract.services(), ids=lambda service: service.name)
def test_every_rpc_of_a_service_is_written_by_one_class(service: ServiceDescriptor) -> None:
    (cls,) = servicers()[f"{service.name}Servicer"]
    assert [method.name for method in service.methods if method.name not in vars(cls)] == []


@pytest.mark.parametrize("service", contract.services(), ids=lambda service: service.name)
def test_every_service_is_reached_through_the_gateway(service: ServiceDescriptor) -> None:
    assert service.full_name in SERVICES


def test_every_part_of_the_contract_has_a_comment() -> None:
    comments = contract._comments()
    assert len(comments) > 300
    assert [name for name, text in comments.items() if not text] == []


def test_no_two_types_share_a_name() -> None:
    """The page's types, and those of other languages, have no packages to tell them apart."""
    names: list[str] = []
    for file in contract.proto_files():
        names += [message.name for message in file.message_type]
        names += [enum.name for enum in file.enum_type]
    assert not [name for name in names if names.count(name) > 1]

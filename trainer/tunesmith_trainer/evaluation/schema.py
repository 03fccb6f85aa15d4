"""JSON schemas: whether they are ones, and what of a JSON text does not follow them. Nothing is fetched."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

_MOST_TEXT = 300


def wrong(schema: str, instance: str | None) -> str | None:
    """What is wrong about a JSON text; None: nothing. Without a text only the schema is looked at.

    Raises ValueError when the schema is none, or refers to what is not in it.
    """
    validator = _validator(schema)
    if instance is None:
        return None
    error = next(validator.iter_errors(json.loads(instance)), None)
    return None if error is None else f"{error.json_path}: {error.message}"[:_MOST_TEXT]


@lru_cache(8)
def _validator(text: str) -> Validator:
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema is an object")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}"[:_MOST_TEXT]) from error
    # A registry of its own: the library's default one would fetch what a reference names.
    validator: Validator = kind(schema, registry=Registry())
    _check_references(schema)
    return validator


def _check_references(schema: dict[str, Any]) -> None:
    """Looks every reference up, so that one that leads nowhere is said before a model answers."""
    root: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().resolver_with_root(root)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"the reference {reference} leads out of the schema or nowhere") from error


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value[key] for key in ("$ref", "$dynamicRef") if isinstance(value.get(key), str)]
        return own + [found for item in value.values() for found in _references(item)]
    return [found for item in value for found in _references(item)] if isinstance(value, list) else []

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml

import rewriter.schemas

SCHEMA: dict[str, Any] = json.loads(
    (pathlib.Path(rewriter.schemas.__path__[0]) / "rule-file.schema.json").read_text(encoding="utf-8")
)


def _fields(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        for name, field in schema.get("properties", {}).items():
            yield f"{path}.{name}", field
        for name, field in schema.get("definitions", {}).items():
            yield f"{path}#{name}", field
        for key, value in schema.items():
            yield from _fields(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from _fields(value, path)


def test_is_draft_7() -> None:
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("path", "field"), list(_fields(SCHEMA)), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_field_is_described(path: str, field: dict[str, Any]) -> None:
    assert field["description"].endswith("."), path


def test_good_file_is_valid(rule_file: Callable[..., pathlib.Path]) -> None:
    document = yaml.safe_load(rule_file().read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(SCHEMA).validate(document)

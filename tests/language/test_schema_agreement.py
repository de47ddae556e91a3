"""The JSON Schema for editors and the loader accept the same structure."""

from __future__ import annotations

import copy
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rewriter.schemas
from rewriter.errors import RuleError
from rewriter.language import conditions, document, source

SCHEMA: dict[str, Any] = json.loads(
    (pathlib.Path(rewriter.schemas.__path__[0]) / "rule-file.schema.json").read_text(encoding="utf-8")
)
RULE = SCHEMA["definitions"]["rule"]

DOCUMENT: dict[str, Any] = {
    "format": 1,
    "pack": "sample",
    "summary": "s",
    "rules": [
        {
            "id": "a-rule",
            "summary": "s",
            "doc": "d",
            "phase": "fuse",
            "benefit": 2,
            "match": "y = aten::relu(x)",
            "prepare": "w = concat(x)",
            "replace": "y = aten::silu(x)",
            "where": {
                "x": {
                    "dtype": ["f16", "f32"],
                    "rank": [2, 3],
                    "shape": ["N", 4, "..."],
                    "const": True,
                    "weight": False,
                },
                "y": {
                    "dtype": "f16",
                    "rank": 2,
                    "value": [1, [2, 3], None],
                    "min": 0.5,
                    "max": 3,
                    "format": "contiguous",
                },
                "z": {"device": ["cpu"], "count": ">=2", "uses": 1, "dtype_equals": "x", "present": True, "value": 1.5},
            },
            "require": ["N % 2 == 0", 1],
            "gpu": {"sm": ">=80"},
            "device": "cuda",
            "ignore": {"x": "why"},
            "may_escape": ["x"],
            "inputs": {
                "x": {"shape": ["N", 4], "dtype": "f32", "layouts": ["sliced"], "optional": True, "values": "normal"},
                "y": {"shape": [], "count": "2..4", "dtype": ["i64"], "layouts": "offset", "values": ["constant"]},
                "z": [1, None, "t", [2, "N"], True],
                "u": "N",
                "v": 1e-5,
                "w": None,
            },
            "dims": {"N": "1..3", "M": [1, 2], "K": 4},
            "tolerance": 2,
            "loses": {"x": "f8e4m3"},
            "saves": "memory",
        }
    ],
}

# Every text here is an expression, so that what differs is structure alone.
VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        3,
        9,
        -1,
        1.5,
        1e7 + 0.5,
        "",
        " ",
        "x",
        "f32",
        "cpu",
        "contiguous",
        "sliced",
        "normal",
        "fuse",
    ),
    *([], ["x"], [3], [-1], [[3]], [None], ["f32", 1], ["x", "x"], {}, {"x": 1}, {"shape": ["x"]}, {"sm": 80}),
]
# Keys whose values are texts of another kind: a bound or a range is no expression, and the other way round.
BOUNDS = {
    "count": [">=2", "< 3", "=>2", "2..4", ">= -1", 2, -1],
    "uses": [">=2", "!=2", 0, -3],
    "sm": ["==90", "90", 80],
}
RANGES = ["1..3", "1...3", "a..b", "0..0", [0], [-1], 10**9, [10**9]]
KEYS = ["x", "id", "shape", "dtype", "values", "summary", "extra"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


PLACES = list(places(DOCUMENT))


# In C where PyYAML was built with it.
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def loads(tree: Any) -> str | None:
    """None, or the message."""
    try:
        document.read_document(source.parse(yaml.dump(tree, Dumper=DUMPER, sort_keys=False), "f"))
    except RuleError as error:
        return str(error)
    return None


def valid(tree: Any) -> str | None:
    error = next(VALIDATOR.iter_errors(tree), None)
    return error.message if error else None


@pytest.fixture(autouse=True)
def structure_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What names mean, and whether patterns make sense, is beyond a schema."""
    monkeypatch.setattr(document, "check_rule", lambda *_: None)


def test_the_document_is_accepted() -> None:
    assert valid(DOCUMENT) is None
    assert loads(DOCUMENT) is None


def test_structure_agrees() -> None:
    @settings(max_examples=1500, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        tree = copy.deepcopy(DOCUMENT)
        path = data.draw(st.sampled_from(PLACES))
        container = tree
        for key in path[:-1]:
            container = container[key]
        last = path[-1]
        values = [*VALUES, *BOUNDS.get(last, ()), *(RANGES if "dims" in path[-2:-1] else ())]
        if last in ("match", "replace", "prepare"):
            values = [value for value in values if not isinstance(value, str) or not value.strip()]
        action = data.draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename")))
        if action == "replace":
            container[last] = copy.deepcopy(data.draw(st.sampled_from(values)))
        elif action == "remove":
            del container[last]
        elif isinstance(container, dict):
            container[data.draw(st.sampled_from(KEYS))] = container.pop(last)
        by_loader, by_schema = loads(tree), valid(tree)
        assert (by_loader is None) == (by_schema is None), f"{path} {action}: loader {by_loader}, schema {by_schema}"

    run()


def test_keys_agree() -> None:
    assert set(SCHEMA["properties"]) == set(document._FILE_KEYS)
    assert set(SCHEMA["required"]) == set(document._FILE_KEYS)
    assert set(RULE["properties"]) == set(document._RULE_KEYS)
    assert set(RULE["required"]) == set(document._REQUIRED)
    assert set(SCHEMA["definitions"]["condition"]["properties"]) == set(document._CONDITION_KEYS)
    assert set(SCHEMA["definitions"]["tensorInput"]["properties"]) == set(document._INPUT_KEYS)
    assert SCHEMA["properties"]["format"]["const"] == document.FORMAT


def test_enums_agree() -> None:
    definitions = SCHEMA["definitions"]
    tensor = definitions["tensorInput"]["properties"]
    assert tuple(definitions["dtype"]["enum"]) == conditions.DTYPES
    assert tuple(definitions["device"]["enum"]) == conditions.DEVICES
    assert tuple(definitions["condition"]["properties"]["format"]["enum"]) == conditions.FORMATS
    assert tuple(RULE["properties"]["phase"]["enum"]) == conditions.PHASES
    for key, expected in (("layouts", conditions.LAYOUTS), ("values", conditions.VALUE_CLASSES)):
        single, several = tensor[key]["oneOf"]
        assert tuple(single["enum"]) == tuple(several["items"]["enum"]) == expected


def test_every_property_is_described() -> None:
    tables = {"file": SCHEMA, **SCHEMA["definitions"], "gpu": RULE["properties"]["gpu"]}
    for table, definition in tables.items():
        for name, field in definition.get("properties", {}).items():
            assert field.get("description", "").endswith("."), f"{table}.{name}"

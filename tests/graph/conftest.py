from __future__ import annotations

import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import yaml

import rewriter.ops  # noqa: F401  (registers the ops that replacements name)
from rewriter import torch_ir
from rewriter.graph import prepare
from rewriter.graph.canonical import canonicalise
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Rewritten, rewrite
from rewriter.language import RuleSet, load_rules
from rewriter.language.patterns import parse_statements
from rewriter.language.syntax import read_variables

_TYPES = {"F": "Float", "D": "Double", "H": "Half", "B": "BFloat16", "L": "Long"}


def parse(text: str) -> Any:
    """A graph from IR, where `F(2, 3)` is short for the type of a contiguous float tensor of that shape on the CPU."""

    def full(match: re.Match[str]) -> str:
        shape = [int(extent) for extent in match[2].split(",") if extent.strip()]
        strides = [math.prod(shape[index + 1 :]) for index in range(len(shape))]
        dims = "".join(f"{extent}, " for extent in shape)
        return f"{_TYPES[match[1]]}({dims}strides={strides}, requires_grad=0, device=cpu)"

    graph = torch_ir.parse_graph(re.sub(r"\b([FDHBL])\(([\d, ]*)\)", full, _indented(text)))
    graph.lint()
    return graph


def _indented(text: str) -> str:
    """The same lines, indented as the parser of IR wants them."""
    lines = []
    depth = 0
    for line in (line.strip() for line in text.split("\n")):
        depth += line.startswith("block")
        if line:
            lines.append("  " * depth + line)
        depth += line.startswith(("block", "graph"))
        depth -= 2 * line.startswith("->")
    return "\n".join(lines)


def run(graph: Any, arguments: Sequence[Any]) -> list[Any]:
    """The outputs of the graph on copies of the arguments, and the copies as the graph left them."""
    copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in arguments]
    with torch_ir.plain_executor(), torch.no_grad():
        outputs = torch_ir.function_from_graph(graph)(*copies)
    return [*(outputs if isinstance(outputs, tuple | list) else (outputs,)), *copies]


def assert_same(actual: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, equal_nan=True)
        else:
            assert one == other


def with_prepared(result: Rewritten, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The weights, and what the recipes make of them."""
    prepared = list(weights)
    for recipe in result.prepared:
        prepared.append(prepare.run(recipe, prepared))
    return prepared


class Checked:
    """A rewritten graph that gave the same result as the original one."""

    def __init__(self, original: Any, result: Rewritten, weights: Sequence[torch.Tensor]) -> None:
        self.original = original
        self.result = result
        self.weights = list(weights)

    @property
    def fired(self) -> list[str]:
        return [done.rule for done in self.result.rewrites]

    @property
    def ops(self) -> list[str]:
        """The ops of the rewritten graph, those of the IR itself left out."""
        return [node.kind() for node in self.result.graph.nodes() if not node.kind().startswith("prim::")]

    @property
    def reasons(self) -> list[str]:
        return [refusal.reason for refusal in self.result.refusals]

    def compare(self, *inputs: Any) -> None:
        """Runs both graphs on these activations."""
        expected = run(self.original, [*inputs, *self.weights])
        actual = run(self.result.graph, [*inputs, *with_prepared(self.result, self.weights)])
        outputs = len(expected) - len(inputs) - len(self.weights)
        keep = outputs + len(inputs)
        assert_same(actual[:keep], expected[:keep])


class Bench:
    """Rewrites graphs and compares the result with the original."""

    parse = staticmethod(parse)
    run = staticmethod(run)
    assert_same = staticmethod(assert_same)
    prepared = staticmethod(with_prepared)

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.names = itertools.count()

    def rules(self, *rules: dict[str, Any] | tuple[str, str]) -> RuleSet:
        """Rules from their keys; what a rule must have and a test need not say is added. `(match, replace)` will do."""
        entries = []
        for index, given in enumerate(rules):
            rule = dict(given) if isinstance(given, dict) else {"match": given[0], "replace": given[1]}
            rule = {"id": f"rule-{index}", "summary": "a rule", **rule}
            for key in ("match", "replace", "prepare"):
                if key in rule:
                    rule[key] = "\n".join(line.strip() for line in rule[key].split("\n") if line.strip())
            statements = parse_statements(rule["match"])
            made = {target.name for statement in statements for target in statement.targets}
            names = {var.name for statement in statements for var in read_variables(statement)} - made
            rule["inputs"] = {name: {"shape": [1]} for name in sorted(names)}
            entries.append(rule)
        path = self.folder / f"rules{next(self.names)}.yaml"
        document = {"format": 1, "pack": "sample", "summary": "s", "rules": entries}
        path.write_text(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False))
        return load_rules(path)

    def check(
        self,
        graph: Any,
        rules: RuleSet | dict[str, Any] | tuple[str, str],
        *arguments: Any,
        weights: int = 0,
        canonical: bool = False,
        **options: Any,
    ) -> Checked:
        """Rewrites the graph (or its IR), checks it and its result on the arguments, whose last are the weights."""
        original = parse(graph) if isinstance(graph, str) else graph
        if canonical:
            canonicalise(original)
        text = str(original)
        rule_set = rules if isinstance(rules, RuleSet) else self.rules(rules)
        options.setdefault("target", Target("cpu"))
        result = rewrite(original, rule_set, weights=weights, explain=True, **options)
        result.graph.lint()
        assert str(original) == text, "the original graph was changed"
        boundary = len(arguments) - weights
        checked = Checked(original, result, arguments[boundary:])
        if arguments:
            checked.compare(*arguments[:boundary])
        plain = rewrite(original, rule_set, weights=weights, **options)
        assert [done.rule for done in plain.rewrites] == checked.fired, "explaining changed the result"
        return checked


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Bench:
    torch.manual_seed(0)
    return Bench(tmp_path)


@pytest.fixture
def traced() -> Callable[..., tuple[Any, list[torch.Tensor]]]:
    """Traces a function or module on example inputs; the canonical graph and its weights."""

    class Wrapped(torch.nn.Module):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__()
            self.function = function

        def forward(self, *arguments: Any) -> Any:
            return self.function(*arguments)

    def traced(function: Callable[..., Any], *example: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
        graph, weights = torch_ir.trace(Wrapped(function).eval().requires_grad_(False), example)
        canonicalise(graph)
        return graph, weights

    return traced

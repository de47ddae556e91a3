"""The rewritten program of a rule: made by the engine with that rule alone, run by one provider, watched."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch

from rewriter import torch_ir
from rewriter.graph import prepare
from rewriter.graph.conditions import Target
from rewriter.graph.engine import rewrite
from rewriter.language.rule import Rule, RuleSet
from rewriter.ops import dispatch
from rewriter.ops.registry import OPS, REFERENCE, Provider
from rewriter.proof import interpreter
from rewriter.proof.program import INVERSIONS, PatternModule, capture

# What the replacement without any op of this package has for a provider.
GRAPH = "graph"


@dataclasses.dataclass(frozen=True, slots=True)
class Fused:
    """A rewritten program. `operands`: its inputs, activations before weights; `prepared`: the inputs after these."""

    function: Callable[..., Any]
    operands: list[torch.Tensor]
    prepared: list[torch.Tensor]
    graph: torch_ir.Graph


def ops_of(rule: Rule) -> tuple[str, ...]:
    """The `rewriter::*` ops of the replacement, without the namespace."""
    names = {call.op for step in rule.replace for call in step.calls}
    return tuple(sorted(name.removeprefix("rewriter::") for name in names if name.startswith("rewriter::")))


def build(rule: Rule, module: PatternModule, device: str) -> Fused | str:
    """The pattern captured and rewritten, or why the rule does not fire on it.

    A rule for one kind of device is rewritten as if for that, wherever it runs: its replacement is what is proved.
    """
    graph, weights = capture(module)
    rules, target = RuleSet((rule,)), target_of(rule, device)
    result = rewrite(graph, rules, weights=len(weights), target=target)
    if not any(done.rule == rule.id for done in result.rewrites):
        refusals = rewrite(graph, rules, weights=len(weights), target=target, explain=True).refusals
        nearest = max(refusals, key=lambda refusal: refusal.depth, default=None)
        if nearest is None:
            return "no node of the graph is what the pattern ends with"
        return f"{nearest.reason} (at {nearest.node}, {nearest.depth} of {nearest.total} statements matched)"
    every = list(weights)
    for recipe in result.prepared:
        every.append(prepare.run(recipe, every))
    fused = result.graph.copy()
    _uninvert(fused)
    function = torch_ir.function_from_graph(fused)
    return Fused(function, [*module.example(), *weights], every[len(weights) :], fused)


def run(fused: Fused) -> list[torch.Tensor]:
    """The outputs, which may share memory with the operands."""
    # Triton's interpreter computes in numpy, which warns of NaN and Inf.
    with torch.no_grad(), torch_ir.plain_executor(), numpy.errstate(all="ignore"), interpreter.corrected():
        outputs = fused.function(*fused.operands, *fused.prepared)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


@dataclasses.dataclass(frozen=True, slots=True)
class Calls:
    """`counts`: of the calls by op and provider. `refusals`: why the provider asked for did not take some of them."""

    counts: Counter[tuple[str, str]]
    refusals: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def provided(rule: Rule, provider: str, number: int = 0) -> Iterator[Calls]:
    """Calls of the replacement's ops go to `provider` where the op has it and it takes them, else to the reference.

    `number`: which of the provider's configs for a call, counted round and round.
    """
    with contextlib.ExitStack() as stack:
        calls = Calls(stack.enter_context(dispatch.counted()))
        for op in ops_of(rule):
            known = OPS[op].providers
            if provider not in known or provider == REFERENCE:
                stack.enter_context(dispatch.forced(op, REFERENCE))
                continue
            stack.callback(known.__setitem__, provider, known[provider])
            known[provider] = _watched(known[provider], number, calls.refusals)
            stack.enter_context(dispatch.forced(op, provider))
        yield calls


def _watched(provider: Provider, number: int, refusals: list[str]) -> Provider:
    def fn(*arguments: Any) -> Any:
        configs = provider.configs(*arguments)
        return provider.fn(*arguments, **configs[number % len(configs)])

    def supports(*arguments: Any) -> str | None:
        reason = provider.supports(*arguments)
        if reason is not None:
            refusals.append(reason)
        return reason

    return dataclasses.replace(provider, fn=fn, supports=supports)


def undeclared_sharing(fused: Fused, outputs: Sequence[torch.Tensor]) -> list[tuple[int, int, bool]]:
    """Outputs in the memory of an operand, or of another output, that no schema in the graph says may be there.

    Triples of the output's position, the other's, and whether the other is an operand.
    """
    others = [(position, True, x) for position, x in enumerate([*fused.operands, *fused.prepared])]
    others += [(position, False, x) for position, x in enumerate(outputs)]
    found = [
        (position, other, operand)
        for position, output in enumerate(outputs)
        for other, operand, x in others
        if (operand or other < position) and x.numel() and output.numel() and _memory(x) == _memory(output)
    ]
    if not found:
        return []
    aliases = fused.graph.alias_db()
    inputs, results = list(fused.graph.inputs()), list(fused.graph.outputs())
    return [
        (position, other, operand)
        for position, other, operand in found
        if not aliases.may_contain_alias(results[position], (inputs if operand else results)[other])
    ]


def _memory(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def target_of(rule: Rule, device: str) -> Target:
    """What the rule is rewritten for where it runs on `device`."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Target(device=kind, sm=10 * major + minor)
    bounds = [rule.sm.bound + step for step in (0, 1, -1)] if rule.sm is not None else [90]
    sm = next((each for each in (90, *bounds) if rule.sm is None or rule.sm.holds(each)), 90)
    return Target(device=(rule.devices or (kind,))[0], sm=sm)


def _uninvert(graph: torch_ir.Graph) -> None:
    """Lets the graph return what the pattern made, in place of what `inverted` made of it."""
    for output in list(graph.outputs()):
        maker = output.node()
        assert maker.kind() in INVERSIONS
        graph.registerOutput(next(iter(maker.inputs())))
    for _ in range(sum(1 for _ in graph.outputs()) // 2):
        graph.eraseOutput(0)
    torch_ir.clean(graph)

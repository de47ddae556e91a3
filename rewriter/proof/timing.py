"""Times a rule at a site of a real model: the pattern's own ops against the replacement by each provider."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rewriter import torch_ir
from rewriter.causes import described
from rewriter.graph.conditions import Target
from rewriter.graph.engine import rewrite
from rewriter.graph.view import View
from rewriter.language.rule import Rule, RuleSet
from rewriter.measure.region import Pair, TensorPlan, Unmeasurable, cut
from rewriter.ops import dispatch
from rewriter.ops.dispatch import Choice
from rewriter.ops.registry import REFERENCE, Op
from rewriter.proof.fused import GRAPH, ops_of
from rewriter.proof.program import PatternModule, capture
from rewriter.proof.results import Ceilings, Fused, Timed
from rewriter.proof.sites import Site
from rewriter.proof.stopwatch import measured

# Inputs in turn, so many that none is still in the cache when its turn comes again.
_MOST_SETS = 256
_CACHES = 2
_COPY_BYTES = 2**30
_SIDE = 8192
_FAILS = (RuntimeError, ValueError, TypeError, NotImplementedError, OSError, ArithmeticError)
# Relative L2 distance from the pattern's own result from which on a time means nothing. Rounding stays far below.
_LIMITS = {torch.float32: 1e-2, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def time_site(rule: Rule, site: Site, device: str) -> Timed:
    """The times of the rule at one site; what cannot be timed comes with its reason."""
    timed = Timed(
        rule=rule.id,
        model=site.model,
        component=site.component,
        count=site.count,
        dtype=site.dtype,
        shapes=site.shapes,
        bytes=0,
        flops=0,
        unfused=None,
        fused=(),
        reason=None,
    )
    with torch.no_grad(), torch_ir.plain_executor():
        try:
            return _Timing(rule, site, device).run(timed)
        except (*_FAILS, Unmeasurable) as error:
            return dataclasses.replace(timed, reason=described(error))
        finally:
            _give_back(device)


def compile_site(rule: Rule, site: Site, device: str) -> None:
    """Runs once whatever `time_site` will time: kernels that are compiled at their first launch are then on disk.

    What fails here fails there again, with its reason.
    """
    with torch.no_grad(), torch_ir.plain_executor(), contextlib.suppress(*_FAILS, Unmeasurable):
        after = _pair(rule, site, device).after.call({})
        calls = _candidates(rule, after)
        for provider in dict.fromkeys(choice.provider for choices in calls.values() for choice in choices):
            for choices in _assignments(calls, provider):
                with _chosen(choices), contextlib.suppress(*_FAILS):
                    after()
    _give_back(device)


def _give_back(device: str) -> None:
    """Frees what a site took: graphs refer to themselves, and some real operands take gigabytes."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def measure_ceilings(device: str) -> Ceilings:
    """What the card reaches at its best: a copy of 1 GiB, and products of 8192x8192 matrices."""
    size, side = (_COPY_BYTES, _SIDE) if device == "cuda" else (2**24, 256)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        copy = measured([lambda: target.copy_(source)], device)
        tflops = {}
        for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            product = measured([lambda a=a, b=b: a @ b], device)  # type: ignore[misc]
            tflops[name] = 2 * side**3 / product.median / 1e6
    return Ceilings(bandwidth=2 * size / copy.median / 1e3, tflops=tflops)


class _Timing:
    """A rule at a site, captured and rewritten, with as many sets of inputs as it takes to miss the cache."""

    def __init__(self, rule: Rule, site: Site, device: str) -> None:
        self.rule, self.device = rule, device
        self.pair = _pair(rule, site, device)
        plans = _plans(self.pair.before.plans)
        self.bytes = sum(math.prod(plan.shape) * plan.dtype.itemsize for plan in plans)
        count = max(1, min(_MOST_SETS, math.ceil(_CACHES * _cache_bytes(device) / max(self.bytes, 1))))
        self.drawn: list[dict[TensorPlan, torch.Tensor]] = [{} for _ in range(count)]
        self.expected: list[torch.Tensor] = []

    def run(self, timed: Timed) -> Timed:
        before = [self.pair.before.call(drawn) for drawn in self.drawn]
        after = [self.pair.after.call(drawn) for drawn in self.drawn]
        with _references(self.rule):
            with FlopCounterMode(display=False) as flops:
                results = before[0]()
            self.expected = _tensors(results)
            written = sum(tensor.numel() * tensor.itemsize for tensor in self.expected)
            del results
            unfused = measured(before, self.device)
        return dataclasses.replace(
            timed,
            bytes=self.bytes + written,
            flops=int(flops.get_total_flops()),
            unfused=unfused,
            fused=tuple(self.by_provider(after)),
        )

    def by_provider(self, after: Sequence[Callable[[], Any]]) -> Iterator[Fused]:
        """Each provider with its fastest config."""
        calls = _candidates(self.rule, after[0])
        if not calls:
            yield self.tried(after, GRAPH, {})
            return
        for provider in dict.fromkeys(choice.provider for choices in calls.values() for choice in choices):
            tried = [self.tried(after, provider, choices) for choices in _assignments(calls, provider)]
            yield min(tried, key=lambda one: one.time.median if one.time else math.inf)

    def tried(self, after: Sequence[Callable[[], Any]], provider: str, choices: dict[str, Choice]) -> Fused:
        config = ", ".join(f"{name}={value}" for each in choices.values() for name, value in each.config.items())
        try:
            with _chosen(choices):
                self.check(_tensors(after[0]()))
                return Fused(provider=provider, config=config, time=measured(after, self.device), reason=None)
        except _FAILS as error:
            return Fused(provider=provider, config=config, time=None, reason=described(error))

    def check(self, found: Sequence[torch.Tensor]) -> None:
        """Raises ArithmeticError where results at real extents are not the pattern's: proofs are at small ones.

        The two sides may name several results in another order, and one that is an operand not at all. What is prepared
        is drawn anew, and not compared.
        """
        if self.rule.prepare or self.rule.loses:
            return
        for one in found:
            alike = (each for each in self.expected if (each.shape, each.dtype) == (one.shape, one.dtype))
            distance = min((_distance(one, each) for each in alike), default=math.inf)
            if distance > _LIMITS.get(one.dtype, 0.0):
                raise ArithmeticError(f"its result is off by {distance:.1e} (relative L2 error)")


@contextlib.contextmanager
def _chosen(choices: dict[str, Choice]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for op, choice in choices.items():
            stack.enter_context(dispatch.forced(op, choice.provider, choice.config))
        yield


def _pair(rule: Rule, site: Site, device: str) -> Pair:
    """The region that the rule covers, before and after. Raises Unmeasurable."""
    graph, weights = capture(PatternModule(rule, site.sample(device), choice=site.choice))
    sm = None
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        sm = 10 * major + minor
    # A rule for one kind of device is rewritten as if for that: whether it pays here is the question.
    target = Target(device=device if device in (rule.devices or (device,)) else rule.devices[0], sm=sm)
    result = rewrite(graph, RuleSet((rule,)), weights=len(weights), target=target)
    if not result.rewrites:
        raise Unmeasurable("the rule does not fire on these operands")
    done = result.rewrites[0]
    nodes = {origin: node for node in View(graph, len(weights)).nodes for origin in node.origins}
    after = [node for node in result.view.alive() if node.rule is not None and node.origins & done.origins]
    shared: dict[object, Any] = {}
    before = cut([nodes[origin] for origin in sorted(done.origins)], shared, len(weights))
    return Pair(before, cut(after, shared, len(weights)))


def _candidates(rule: Rule, function: Callable[[], Any]) -> dict[str, list[Choice]]:
    """For each op of the replacement, what can serve the call that `function` makes of it."""
    found = {op: [Choice(REFERENCE)] for op in ops_of(rule)}
    seen: list[tuple[str, str]] = []

    def choose(op: Op, arguments: tuple[Any, ...], signature: str) -> Choice:
        seen.append((op.name, signature))
        found[op.name] = dispatch.candidates(op, arguments)
        return Choice(REFERENCE)

    with dispatch.choosing(choose):
        function()
    for key in seen:
        dispatch.CHOSEN.pop(key, None)
    return found


def _assignments(calls: dict[str, list[Choice]], provider: str) -> list[dict[str, Choice]]:
    """The provider's configs for the ops that it serves; the ops' configs go side by side."""
    own = {op: [choice for choice in choices if choice.provider == provider] for op, choices in calls.items()}
    serving = {op: choices for op, choices in own.items() if choices}
    most = max(map(len, serving.values()))
    return [{op: choices[min(index, len(choices) - 1)] for op, choices in serving.items()} for index in range(most)]


@contextlib.contextmanager
def _references(rule: Rule) -> Iterator[None]:
    """The pattern's own ops of this package run as plain torch: that is what the rule is measured against."""
    names = {
        call.op.removeprefix("rewriter::") for step in rule.match for call in step.calls if "rewriter::" in call.op
    }
    with contextlib.ExitStack() as stack:
        for name in sorted(names):
            stack.enter_context(dispatch.forced(name, REFERENCE))
        yield


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance over what is finite in the expected; Inf where it is no number."""
    finite = expected.isfinite()
    right, other = expected[finite].double(), found[finite].double()
    scale = float(torch.linalg.vector_norm(right)) or 1.0
    distance = float(torch.linalg.vector_norm(other - right)) / scale
    return math.inf if math.isnan(distance) else distance


def _plans(plans: Sequence[Any]) -> list[TensorPlan]:
    """The tensors among the inputs, each once."""
    found: dict[int, TensorPlan] = {}
    for plan in plans:
        if isinstance(plan, TensorPlan):
            found[id(plan)] = plan
        elif isinstance(plan, list):
            found |= {id(inner): inner for inner in _plans(plan)}
    return list(found.values())


def _tensors(results: Any) -> list[torch.Tensor]:
    if isinstance(results, torch.Tensor):
        return [results]
    return [tensor for each in results for tensor in _tensors(each)] if isinstance(results, list | tuple) else []


def _cache_bytes(device: str) -> int:
    return int(torch.cuda.get_device_properties().L2_cache_size) if device == "cuda" else 0

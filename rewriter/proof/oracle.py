"""The pattern as the reference program: in its own dtype, and in f64 from the same rounded inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch

from rewriter.causes import described, memory_ran_out
from rewriter.language.rule import Rule, Step
from rewriter.ops import dispatch
from rewriter.ops.registry import OPS, REFERENCE
from rewriter.proof import inside
from rewriter.proof.fences import restore, snapshot
from rewriter.proof.layouts import own
from rewriter.proof.losses import coarsened
from rewriter.proof.precise import Precise
from rewriter.proof.program import PatternModule, flat, run_step
from rewriter.proof.tolerance import ROUNDOFF, STEP

# f64 programs with noise, and unfused ones on other operands: enough that not all of them come out right by luck.
_DRAWS = 4
_NEIGHBOURS = 2
# What f32 sums inside of an op are off by.
_SUMS = 16.0 * ROUNDOFF[torch.float32]
# A number that stands for Inf: its square is finite in f64, too.
_HUGE = 1e60
# The share of the largest number of a dtype from which on one order of additions may overflow and another not.
_MARGIN = 0.25

_NAMES = {torch.float64: "f64", torch.float32: "f32"}
# In the order of preference, and what an op raises that has no kernel for one.
_WIDE = (torch.float64, torch.float32)
_REFUSALS = (RuntimeError, TypeError, ValueError)


class InvalidExample(Exception):
    """The pattern itself does not run on the operands drawn."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unfused:
    """The pattern in its own dtype: its outputs, and every value by name, the operands included."""

    outputs: list[torch.Tensor]
    names: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Exact:
    """The pattern in f64. `noise`: for each element of each output, what rounding may cost.

    One unfused run does not tell: its error may be 0 by luck. So that is the largest of the errors of the pattern in
    its own dtype on some operands next to these, and of the changes of the f64 result where every operand is off by
    some roundings of f32, in which sums inside of an op are kept, and every value of the pattern by one of its dtype,
    or by those of f32 where another op reads it; inside of this package's ops, too.
    `overflows`: values of the pattern come near the largest number of their dtype. `others`: where NaN or Inf come up,
    what else is right there, as torch's own ops disagree: the pattern in f32, as its GELU of Inf is NaN in f32 and Inf
    in f64; and Inf where results grow without bound as a number in place of an Inf does, as its norms times an infinite
    weight are NaN.
    """

    outputs: list[torch.Tensor]
    noise: list[torch.Tensor]
    overflows: bool
    others: list[list[torch.Tensor]]


def unfused(module: PatternModule) -> Unfused:
    """Runs the pattern op by op. Raises InvalidExample where it refuses the operands."""
    names: dict[str, Any] = {}
    with torch.no_grad(), references(module.rule):
        try:
            module(*module.example(), names=names)
        except (RuntimeError, ValueError, IndexError, NotImplementedError, TypeError) as error:
            raise InvalidExample(described(error)) from error
    return Unfused(_outputs(module.rule, names), names)


def exact(module: PatternModule, plain: Unfused, seed: int) -> Exact:
    """The pattern in f64: floating operands are widened, and so are the dtypes that its statements name.

    An op without f64 runs in f32 where the example is narrower, or else stands for itself: the unfused result is then
    the best one known, and the fused one has to agree with it to rounding.
    """
    for wide in _WIDE:
        try:
            return _exact(module, plain, wide, seed)
        except _REFUSALS as error:
            if memory_ran_out(error):
                raise
    outputs = [_wide(output, torch.float64) for output in plain.outputs]
    return Exact(outputs, [torch.zeros_like(output) for output in outputs], overflows=False, others=[])


def exact_outputs(module: PatternModule, plain: Unfused) -> list[torch.Tensor]:
    """Those of `exact`, for a fraction of its work."""
    for wide in _WIDE:
        with contextlib.suppress(*_REFUSALS), torch.no_grad(), references(module.rule), _precise():
            return [_wide(output, torch.float64) for output in _outputs(module.rule, _run(module, plain, wide, None))]
    return [_wide(output, torch.float64) for output in plain.outputs]


@contextlib.contextmanager
def references(rule: Rule) -> Iterator[None]:
    """Every op of this package in the pattern is its reference."""
    with contextlib.ExitStack() as stack:
        for op in _ops(rule):
            stack.enter_context(dispatch.forced(op, REFERENCE))
        yield


def _ops(rule: Rule) -> set[str]:
    """The ops of this package in the pattern, without the namespace."""
    return {call.op.removeprefix("rewriter::") for step in rule.match for call in step.calls} & OPS.keys()


def _exact(module: PatternModule, plain: Unfused, wide: torch.dtype, seed: int) -> Exact:
    generator = torch.Generator().manual_seed(seed)
    precise = _precise()
    with torch.no_grad(), references(module.rule):
        with precise:
            names = _run(module, plain, wide, None)
        # Every run calls the same ops.
        with precise if precise.met else contextlib.nullcontext():
            return _compared(module, plain, wide, names, generator)


def _precise() -> Precise:
    return Precise()  # type: ignore[no-untyped-call]


def _compared(
    module: PatternModule, plain: Unfused, wide: torch.dtype, names: dict[str, Any], generator: torch.Generator
) -> Exact:
    """What `exact` says of the values in `wide`, with the noise around them."""
    outputs = [_wide(output, torch.float64) for output in _outputs(module.rule, names)]
    noise = [torch.zeros_like(output) for output in outputs]
    ops, inner = sorted(_ops(module.rule)), _roundings(module)
    for _ in range(_DRAWS):
        with inside.noisy(ops, inner, functools.partial(_rounded, read=True, generator=generator)):
            noisy = _outputs(module.rule, _run(module, plain, wide, generator))
        _widen(noise, noisy, outputs)
    _widen_by_neighbours(noise, module, plain, wide, generator)
    others = []
    if not all(bool(_wide(output, wide).isfinite().all()) for output in (*outputs, *plain.outputs)):
        others.append(_outputs(module.rule, _run(module, plain, torch.float32, None)))
        huge = _outputs(module.rule, _run(module, plain, wide, None, huge=True))
        others.append(
            [torch.where(x.abs() > math.sqrt(_HUGE), x * math.inf, y) for x, y in zip(huge, outputs, strict=True)]
        )
    return Exact(outputs, noise, _overflows(plain, names), others)


def _roundings(module: PatternModule) -> list[list[inside.Rounded]]:
    """What the calls of this package's ops in the pattern round inside; what the pattern writes to stays as it was."""
    ops = _ops(module.rule)
    if not ops:
        return []
    tensors = [x for x in flat(module.operands.values()) if isinstance(x, torch.Tensor)]
    before = snapshot(tensors)
    try:
        return inside.recorded(sorted(ops), lambda: unfused(module))
    finally:
        restore(tensors, before)


def _widen(noise: list[torch.Tensor], results: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """Makes the noise at least the distance between two results, in place."""
    for most, result, output in zip(noise, results, exact, strict=True):
        change = (_wide(result, torch.float64) - _wide(output, torch.float64)).abs()
        torch.maximum(most, torch.where(change.isfinite(), change, 0.0), out=most)


def _widen_by_neighbours(
    noise: list[torch.Tensor], module: PatternModule, plain: Unfused, wide: torch.dtype, generator: torch.Generator
) -> None:
    """Makes the noise at least the pattern's own error on operands that differ from these in their last digits."""
    tensors = [x for x in flat(module.operands.values()) if isinstance(x, torch.Tensor)]
    before = snapshot(tensors)
    for _ in range(_NEIGHBOURS):
        for x in tensors:
            if x.dtype in ROUNDOFF:
                own(x).copy_(_noisy(own(x).double(), 2 * ROUNDOFF[x.dtype], 0.0, generator))
        outputs = _outputs(module.rule, _run(module, plain, wide, None))
        with contextlib.suppress(InvalidExample):
            _widen(noise, unfused(module).outputs, outputs)
        restore(tensors, before)


def random_op(module: PatternModule, plain: Unfused) -> str | None:
    """The op of the pattern that draws random numbers, if the pattern does not give the same result twice."""
    ops = [step.calls[module.choice % len(step.calls)].op for step in module.rule.match]
    random = [op for op in ops if _may_be_random(op)]
    if not random:
        return None
    again = unfused(module).outputs
    same = all(torch.equal(*map(torch.nan_to_num, pair)) for pair in zip(plain.outputs, again, strict=True))
    return None if same else random[0]


@functools.cache
def _may_be_random(op: str) -> bool:
    namespace, name = op.split("::")
    packet = getattr(getattr(torch.ops, namespace), name)
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, each).tags for each in packet.overloads())


def _run(
    module: PatternModule,
    plain: Unfused,
    wide: torch.dtype,
    generator: torch.Generator | None,
    *,
    huge: bool = False,
) -> dict[str, Any]:
    """Every value of the pattern in `wide`; with a generator, each with the error of a rounding.

    `huge`: finite numbers stand for the infinite ones among the operands.
    """

    def operand(x: torch.Tensor, loss: str | None) -> torch.Tensor:
        x = _wide(x, wide)
        if loss is not None and generator is not None:
            x = coarsened(x, loss, generator)
        x = _noisy(x, _SUMS, 0.0, generator)
        return x.nan_to_num(math.nan, _HUGE, -_HUGE) if huge and x.is_floating_point() else x

    losses = module.rule.loses
    names = {
        name: _each(value, functools.partial(operand, loss=losses.get(name))) for name, value in module.operands.items()
    }
    for step in module.rule.match:
        with contextlib.nullcontext() if generator is None else _rounding_inside(plain, step, generator):
            run_step(step, names, module.choice, wide=_NAMES[wide])
        if generator is None:
            continue
        for target in step.targets:
            if target in losses:
                coarse = functools.partial(coarsened, kind=losses[target], generator=generator)
                names[target] = _each(names[target], coarse)
            before = plain.names[target]
            first = before[0] if isinstance(before, list) else before
            if isinstance(first, torch.Tensor) and first.dtype in ROUNDOFF and not _is_view(first, module):
                read = target in module.rule.read
                rounded = functools.partial(_rounded, dtype=first.dtype, read=read, generator=generator)
                names[target] = _each(names[target], rounded)
    return names


@contextlib.contextmanager
def _rounding_inside(plain: Unfused, step: Step, generator: torch.Generator) -> Iterator[None]:
    """Convolutions inside round as they do on a GPU, to the dtype of the step's result, and GELUs as f32 does."""
    result = plain.names[step.targets[0]]
    if not isinstance(result, torch.Tensor) or result.dtype not in ROUNDOFF:
        yield
        return
    product = functools.partial(_rounded, dtype=result.dtype, read=False, generator=generator)
    gelu = functools.partial(_noisy, least=0.0, generator=generator)
    with inside.BiasApart(product), inside.TanhApart(gelu):
        yield


def _each(value: Any, function: Any) -> Any:
    if isinstance(value, list):
        return [_each(item, function) for item in value]
    return function(value) if isinstance(value, torch.Tensor) else value


def _wide(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy, so that a pattern that writes to an operand does not change the next run's."""
    return x.detach().to(dtype, copy=True) if x.is_floating_point() else x.detach().clone()


def _noisy(
    x: torch.Tensor, unit: float | torch.Tensor, least: float, generator: torch.Generator | None
) -> torch.Tensor:
    """x, off by `unit` of each element and by `least` at all, up or down."""
    if generator is None or not x.is_floating_point():
        return x
    signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int8).to(x.device, x.dtype).mul_(2).sub_(1)
    result = x * (signs * unit).add_(1.0)
    return result.add_(signs, alpha=least) if least else result


def _rounded(x: torch.Tensor, dtype: torch.dtype, *, read: bool, generator: torch.Generator) -> torch.Tensor:
    """x with the error of a rounding to dtype, or of the sums of f32 where another op reads it."""
    return _noisy(x, max(ROUNDOFF[dtype], _SUMS if read else 0.0), STEP[dtype], generator)


def _is_view(x: torch.Tensor, module: PatternModule) -> bool:
    """Whether the step only looks at an operand in another way, which rounds nothing."""
    storage = x.untyped_storage().data_ptr()
    operands = (each for each in flat(module.operands.values()) if isinstance(each, torch.Tensor))
    return any(each.untyped_storage().data_ptr() == storage for each in operands)


def _outputs(rule: Rule, names: dict[str, Any]) -> list[torch.Tensor]:
    return list(flat(names[name] for name in rule.outputs))


def _overflows(plain: Unfused, names: dict[str, Any]) -> bool:
    for name, value in plain.names.items():
        pairs = zip(value, names[name], strict=True) if isinstance(value, list) else [(value, names[name])]
        for narrow, wide in pairs:
            # Numbers in eight bits are codes, scaled to fit.
            if isinstance(narrow, torch.Tensor) and narrow.dtype in ROUNDOFF and narrow.numel():
                finite = torch.where(wide.isfinite(), wide, 0.0)
                if float(finite.abs().max()) > _MARGIN * torch.finfo(narrow.dtype).max:
                    return True
    return False

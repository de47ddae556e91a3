"""The ways of running a step that are compared: contexts, inside of which a call works and which leave nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from rewriter.bench.step import Step
from rewriter.measure.recordings import beside, record

if TYPE_CHECKING:
    from rewriter.language import RuleSet

Call: TypeAlias = Callable[[], Any]
Report: TypeAlias = dict[str, Any]

EAGER, GRAPH, COMPILE, REWRITER = "eager", "graph", "compile", "rewriter"
# The same once more, with what the first time has compiled and measured at hand.
AGAIN = "rewriter-again"
_ONLY_CUDA = (GRAPH, "graph-nhwc", "compile-nchw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A mode that is ready to be called. `reports` gives the report of each network of a rewritten step."""

    call: Call
    reports: Callable[[], list[Report]] = list


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """A way of running a step: `with mode.running(step, rules) as running: running.call()`."""

    key: str
    title: str
    running: Callable[[Step, RuleSet], contextlib.AbstractContextManager[Running]]


def of(keys: list[str], device: torch.device) -> list[Mode]:
    """The modes of these keys on a device. Raises ValueError for one that there is not."""
    found = modes(device)
    for key in keys:
        if key not in found:
            where = " on a CPU" if key in _ONLY_CUDA else ""
            raise ValueError(f"found {key!r}{where}, expected some of {', '.join(found)}")
    return [found[key] for key in dict.fromkeys(keys)]


def usual(device: torch.device) -> list[str]:
    """The keys of the modes that are compared if nothing else is asked for."""
    return [EAGER, GRAPH, REWRITER, COMPILE] if device.type == "cuda" else [EAGER, REWRITER]


def modes(device: torch.device) -> dict[str, Mode]:
    """All modes that there are on a device, by key."""
    if device.type == "cuda":
        found = [
            Mode(key=EAGER, title="eager", running=_eager),
            Mode(key=GRAPH, title="eager + CUDA graph", running=_graphed),
            Mode(key="graph-nhwc", title="eager channels-last + CUDA graph", running=_channels_last(_graphed)),
            Mode(key=COMPILE, title="torch.compile + CUDA graph", running=_channels_last(_compiled)),
            Mode(key="compile-nchw", title="torch.compile as loaded + CUDA graph", running=_compiled),
            Mode(key=REWRITER, title="rewriter", running=_rewritten),
            Mode(key=AGAIN, title="rewriter a second time", running=_rewritten),
        ]
    else:
        found = [
            Mode(key=EAGER, title="eager", running=_eager),
            Mode(key=COMPILE, title="torch.compile", running=_compiled),
            Mode(key=REWRITER, title="rewriter", running=_rewritten),
            Mode(key=AGAIN, title="rewriter a second time", running=_rewritten),
        ]
    return {mode.key: mode for mode in found}


def plain_call(step: Step) -> Call:
    """Calls the step's module as it is now, with a new sample and timestep each time."""
    return _repeating(step, step.function)


@contextlib.contextmanager
def optimised(step: Step, rules: RuleSet, **options: Any) -> Iterator[Running]:
    """The step with its networks optimised in place, by `rewriter.optimize` with its options; afterwards restored."""
    import rewriter

    try:
        for network in step.networks:
            rewriter.optimize(network, rules=rules, **options)
        yield Running(
            call=plain_call(step),
            reports=lambda: [_report(network) for network in step.networks],
        )
    finally:
        for network in step.networks:
            rewriter.restore(network)


def _report(network: torch.nn.Module) -> Report:
    import rewriter

    found = rewriter.report(network).to_dict()
    for part in found["components"].values():
        # Thousands, and `rewriter explain` tells them better.
        del part["refusals"]
    return found


@contextlib.contextmanager
def _eager(step: Step, _rules: RuleSet) -> Iterator[Running]:
    yield Running(call=plain_call(step))


@contextlib.contextmanager
def _rewritten(step: Step, rules: RuleSet) -> Iterator[Running]:
    with optimised(step, rules) as running:
        yield running


@contextlib.contextmanager
def _compiled(step: Step, _rules: RuleSet) -> Iterator[Running]:
    """`torch.compile` of the whole step as one function, on CUDA with CUDA graphs."""
    on_cuda = step.device.type == "cuda"
    mode = "reduce-overhead" if on_cuda else "default"
    function: Callable[..., Any] = torch.compile(getattr(step.module, step.method), dynamic=False, mode=mode)

    def run(*args: Any, **kwargs: Any) -> Any:
        if on_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return function(*args, **kwargs)

    try:
        yield Running(call=_repeating(step, run))
    finally:
        torch.compiler.reset()


@contextlib.contextmanager
def _graphed(step: Step, _rules: RuleSet) -> Iterator[Running]:
    """Eager's kernels in one CUDA graph. Each call copies in what a loop renews."""
    function = step.function
    arguments = step.renewing()
    args, kwargs = arguments()
    held = _renewed(step, args, kwargs)
    with torch.no_grad(), beside():
        for _ in range(2):
            function(*args, **kwargs)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    with torch.no_grad():
        graph, output = record(lambda: function(*args, **kwargs))

    def replay() -> Any:
        with torch.no_grad():
            for place, fresh in zip(held, _renewed(step, *arguments()), strict=True):
                place.copy_(fresh)
            graph.replay()
        return output

    try:
        yield Running(call=replay)
    finally:
        graph.reset()


def _channels_last(
    running: Callable[[Step, RuleSet], contextlib.AbstractContextManager[Running]],
) -> Callable[[Step, RuleSet], contextlib.AbstractContextManager[Running]]:
    @contextlib.contextmanager
    def enter(step: Step, rules: RuleSet) -> Iterator[Running]:
        with channels_last(step.module), running(step, rules) as result:
            yield result

    return enter


@contextlib.contextmanager
def channels_last(module: torch.nn.Module) -> Iterator[None]:
    """Holds a module's 2-D convolutions' weights in the order that suits tensor cores, as diffusers' guide advises."""
    changed = [weight for weight in module.parameters() if weight.dim() == 4 and weight.is_contiguous()]
    try:
        for weight in changed:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for weight in changed:
            weight.data = weight.data.contiguous()


def _repeating(step: Step, function: Callable[..., Any]) -> Call:
    arguments = step.renewing()

    def run() -> Any:
        with torch.no_grad():
            args, kwargs = arguments()
            return function(*args, **kwargs)

    return run


def _renewed(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    return [args[key] if isinstance(key, int) else kwargs[key] for key in step.renewed]

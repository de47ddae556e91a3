"""Random sequences of calls and changes of a network, optimised, beside a twin to which the same is done eagerly."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from unet_changes import ADAPTERS, EDITS, MODES, PARTS, doubled, multiply_through_data, new_unet

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.runtime import watched
from rewriter.runtime.networks import component_of

# Relative L2. Half precision is what a rounding of each layer makes of it.
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 1e-1}
# With --thorough, and without, for each way to run a graph; and how many a planted fault may take to be found.
THOROUGH, SEQUENCES, PLANTED = 100, 8, 24
LENGTH = 10
GRADIENTS = {"as is": contextlib.nullcontext, "inference": torch.inference_mode, "on": torch.enable_grad}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What a network is called with, step by step of a loop: another sample each time, and the same text."""

    batch: int = 2
    extents: tuple[int, int] = (8, 8)
    texts: int = 5
    timesteps: tuple[Any, ...] = (torch.tensor(7), torch.tensor(6), torch.tensor(5))
    scales: tuple[float, ...] = ()
    as_dict: bool = True
    by_name: bool = True
    gradients: str = "as is"


CALLS = (
    Call(),
    Call(batch=1),
    Call(extents=(4, 8)),
    Call(batch=3, extents=(12, 4), texts=7),
    Call(timesteps=(7, 6)),
    Call(timesteps=(3.5, 2.5)),
    Call(timesteps=(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 8.0]))),
    Call(scales=(0.25, 1.0, 0.5)),
    Call(scales=(0.3,)),
    Call(as_dict=False),
    Call(by_name=False),
    Call(gradients="inference"),
    Call(gradients="on"),
)


class Twins:
    """`unet` may be optimised, `twin` never is."""

    def __init__(self, rules: Sequence[str]) -> None:
        self.rules = list(rules)
        self.unet: Any = new_unet()
        self.twin: Any = new_unet()
        self.dtype = torch.float32
        self._generator = torch.Generator().manual_seed(0)
        # A prompt is encoded once: later calls get the very tensor, whatever happens between them.
        self._texts: dict[Any, torch.Tensor] = {}
        self._paused = False
        self._results: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.optimise()
        self.call(CALLS[0])

    def optimise(self) -> None:
        assert rewriter.optimize(self.unet, self.rules, measure=False) is self.unet

    def optimise_with_other_rules(self) -> None:
        rewriter.optimize(self.unet, [*self.rules, "-linear-geglu", "-group-norm-centred-silu"], measure=False)

    def go_on_with_a_copy(self) -> None:
        self.unet = copy.deepcopy(self.unet)
        assert component_of(self.unet) is None
        self.optimise()

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        rewriter.restore(self.unet)
        assert component_of(self.unet) is None
        yield
        self.optimise()

    @contextlib.contextmanager
    def cast(self, dtype: torch.dtype) -> Iterator[None]:
        self.change(lambda unet: unet.to(dtype))
        self.dtype = dtype
        yield
        self.change(lambda unet: unet.to(torch.float32))
        self.dtype = torch.float32

    @contextlib.contextmanager
    def wanting_gradients(self) -> Iterator[None]:
        self.change(lambda unet: unet.requires_grad_(True))
        with torch.enable_grad():
            self.call(CALLS[0])
        yield
        self.change(lambda unet: unet.requires_grad_(False))

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        self.change(lambda unet: unet.conv_in.register_forward_hook(doubled))
        yield
        self.change(lambda unet: unet.conv_in._forward_hooks.clear())

    def edit(self, edit: Callable[[Any, str], Any], part: str) -> None:
        """Changes weights. Writes that torch does not count are looked for after a pause, or where the text is new."""
        self.change(lambda unet: edit(unet, part))
        if edit is multiply_through_data:
            self._paused = True

    def change(self, change: Callable[[Any], Any]) -> None:
        """Does the same to both; what one of them refuses, the other refuses too."""
        errors = []
        for unet in (self.twin, self.unet):
            with torch.no_grad():
                try:
                    change(unet)
                    errors.append(None)
                except Exception as error:
                    errors.append(type(error))
        assert errors[0] is errors[1]
        for (name, mine), (_, theirs) in zip(
            self.unet.state_dict().items(), self.twin.state_dict().items(), strict=True
        ):
            assert torch.equal(mine, theirs), name

    def call(self, call: Call) -> None:
        """Some steps: each gives what eager gives, and leaves its arguments and earlier results as they are."""
        for step in range(len(call.timesteps)):
            arguments = self._arguments(call, step)
            before = [value.clone() for value in arguments.values() if isinstance(value, torch.Tensor)]
            with GRADIENTS[call.gradients](), _pause(self._paused):
                expected, error = _result(self.twin, arguments, call.by_name)
                actual, failure = _result(self.unet, arguments, call.by_name)
            self._paused = False
            assert type(error) is type(failure), (error, failure)
            after = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
            assert all(map(torch.equal, after, before)), "an argument has changed"
            assert all(torch.equal(*each) for each in self._results), "an earlier result has changed"
            if error is None:
                self._same(actual, expected)
                self._results = [*self._results[-1:], (actual[0].detach(), actual[0].detach().clone())]

    def _same(self, actual: Any, expected: Any) -> None:
        assert type(actual) is type(expected)
        assert (actual[0].dtype, actual[0].shape) == (expected[0].dtype, expected[0].shape)
        error = relative_error(actual[0], expected[0])
        assert error <= LIMITS[self.dtype], f"off by {error:.1e}"
        assert actual[0].requires_grad == expected[0].requires_grad

    def _arguments(self, call: Call, step: int) -> dict[str, Any]:
        key = (call.batch, call.texts, self.dtype)
        if key not in self._texts:
            self._texts[key] = self._normal(call.batch, call.texts, 8)
        scale = {"cross_attention_kwargs": {"scale": call.scales[step % len(call.scales)]}} if call.scales else {}
        return {
            "sample": self._normal(call.batch, 4, *call.extents),
            "timestep": call.timesteps[step],
            "encoder_hidden_states": self._texts[key],
            "return_dict": call.as_dict,
            **scale,
        }

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype)


@contextlib.contextmanager
def _pause(wanted: bool) -> Iterator[None]:
    """Makes a call come long after the one before it, or right after it, however slow the machine is."""
    before = watched._PAUSE
    watched._PAUSE = -1.0 if wanted else 3600.0
    try:
        yield
    finally:
        watched._PAUSE = before


def _result(unet: Any, arguments: dict[str, Any], by_name: bool) -> tuple[Any, Exception | None]:
    positional = [] if by_name else list(arguments.values())[:3]
    named = dict(list(arguments.items())[len(positional) :])
    try:
        return unet(*positional, **named), None
    except Exception as error:
        return None, error


Operation = Callable[[Twins], contextlib.AbstractContextManager[None] | None]

# What is done before a call. What gives a context is undone after it.
OPERATIONS: dict[str, dict[str, Operation]] = {
    "engine": {
        "optimise": Twins.optimise,
        "optimise with other rules": Twins.optimise_with_other_rules,
        "go on with a copy": Twins.go_on_with_a_copy,
        "restore": Twins.restored,
        "want gradients": Twins.wanting_gradients,
        "hook": Twins.hooked,
    },
    "modes": {
        **{f"cast to {dtype}": functools.partial(Twins.cast, dtype=dtype) for dtype in LIMITS},
        **{name: functools.partial(Twins.change, change=change) for name, change in MODES.items()},
    },
    "weights": {
        f"{name} {part}": functools.partial(Twins.edit, edit=edit, part=part)
        for name, edit in EDITS.items()
        for part in PARTS
    },
    "adapters": {name: functools.partial(Twins.change, change=change) for name, change in ADAPTERS.items()},
}
Step = tuple[str, str, Call]
# How often each kind is drawn, compared with the others.
SHARES = {"engine": 2, "modes": 2, "weights": 5, "adapters": 4}
STARTS: tuple[tuple[str, ...], ...] = ((), ("add attention",), ("add attention", "add convolutions"))


def drawn(choice: random.Random) -> list[Step]:
    """Operations, each with the call after it, which is like the call before it half of the time."""
    call = CALLS[0]
    steps = [("adapters", name, call) for name in choice.choice(STARTS)]
    kinds = list(SHARES)
    for kind in choice.choices(kinds, weights=[SHARES[kind] for kind in kinds], k=LENGTH):
        call = choice.choice(CALLS) if choice.random() < 0.5 else call
        steps.append((kind, choice.choice(sorted(OPERATIONS[kind])), call))
    return steps


def follow(count: int, rules: Sequence[str] = ("default",)) -> None:
    """Does what `count` sequences say, the same ones every time. Raises AssertionError at the first difference."""
    for number in range(count):
        twins = Twins(rules)
        steps = drawn(random.Random(number))
        for index, (kind, name, call) in enumerate(steps):
            try:
                with OPERATIONS[kind][name](twins) or contextlib.nullcontext():
                    twins.call(call)
            except BaseException as error:
                error.add_note(f"sequence {number}: " + "\n".join(map(str, steps[: index + 1])))
                raise

"""Reads a call: its tensors and numbers, the module's state, and the key under which a capture for it is kept."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from rewriter.capture import ambient
from rewriter.capture.recording import NumbersBaked
from rewriter.capture.repeated import without_repeats
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Flat, flatten_arguments, number_paths, tensor_class
from rewriter.errors import CaptureError
from rewriter.runtime.trust import Signature
from rewriter.runtime.watched import Runs

_MOST_STATES = 16
_MOST_PLANS = 64

# The kind of a scale that is given with a call and read into weights.
SCALE = "scale"

# (argument structure, tensor classes, which numbers are live, values of the others, state of the module, attention
# kernels of diffusers)
Key = tuple[Any, ...]


@dataclasses.dataclass(kw_only=True)
class Plan:
    """What is known about calls of one argument structure: where its numbers are, and which of them can stay live."""

    paths: tuple[str, ...]
    live: list[bool]

    def fix(self, baked: NumbersBaked) -> list[str]:
        """Takes numbers that a trace turned into constants into the key from now on; says so, one text for each."""
        # Where fixing some was not enough, fixing one after the other would take as many traces.
        everything = not all(self.live)
        said = []
        for index, path in enumerate(self.paths):
            if self.live[index] and (everything or index in baked.indices):
                self.live[index] = False
                place = baked.indices.get(index, "the same place as others")
                said.append(f"{path} becomes a constant at {place}: one graph for each value")
        return said

    def fix_all(self) -> None:
        """Takes all numbers into the key."""
        self.live[:] = [False] * len(self.live)


@dataclasses.dataclass(kw_only=True)
class Call:
    """One call, taken apart. `state` is the number of the module's state, `snapshot` that state.

    factor: what the call multiplies the scale of all adapters with. weights: what graphs read, in the order of the
    snapshot's, and stamp: a number for what they are; both from `EffectiveWeights.resolve`. probe: whether this may be
    the first call after the caller did something else.
    """

    arguments: dict[str, Any]
    flat: Flat
    plan: Plan
    classes: tuple[Any, ...]
    backend: str | None
    snapshot: Snapshot
    state: int
    factor: float | None
    probe: bool
    weights: Sequence[torch.Tensor] = ()
    stamp: int | None = None

    @property
    def signature(self) -> Signature:
        """The extents of all tensors."""
        return tuple(tensor.shape for tensor in self.flat.tensors)

    @property
    def kinds(self) -> frozenset[str]:
        """What is taken to equal eager without a trace of it."""
        kinds = {addition.kind for layer, *_ in self.snapshot.adapted for addition in layer.additions}
        return frozenset(kinds if self.factor is None else {*kinds, SCALE})

    @property
    def key(self) -> Key:
        """The key of captures for this call; another one once the plan has learned something."""
        live = tuple(self.plan.live)
        fixed = tuple(repr(v) for v, is_live in zip(self.flat.numbers, live, strict=True) if not is_live)
        return (self.flat.structure, self.classes, live, fixed, self.state, self.backend)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declined:
    """Why a call runs eagerly. `failure`: it could not be captured (and not: this time it should not be)."""

    reason: str
    failure: bool


class CallReader:
    """Reads the calls of one module. Keeps the latest snapshot of it, and numbers the states that it has been in.

    signature: the forward's. scaled: the argument in which diffusers looks for a scale of the adapters, or None.
    """

    def __init__(self, signature: inspect.Signature, scaled: str | None = None) -> None:
        self.signature = signature
        self._scaled = scaled
        self._refused: set[str] = set()
        self.runs = Runs()
        self.snapshot: Snapshot | None = None
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._states: OrderedDict[tuple[Any, ...], int] = OrderedDict()
        self._numbers = itertools.count()
        self._state = -1

    def read(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | Declined:
        """The call taken apart, or why it has to run eagerly."""
        snapshot = self.snapshot
        if snapshot is None or not snapshot.unchanged(module):
            snapshot = self._take(module)
        try:
            factor, kwargs = self._split_scale(snapshot, kwargs)
            arguments = without_repeats(module, dict(self.signature.bind(*args, **kwargs).arguments))
            flat = flatten_arguments(arguments)
            hash(flat.structure)
            flat = dataclasses.replace(flat, numbers=(*flat.numbers, *snapshot.scales.values))
        except (CaptureError, TypeError) as error:
            return Declined(reason=str(error), failure=isinstance(error, CaptureError))
        if snapshot.blocked:
            return Declined(reason=snapshot.blocked, failure=True)
        reason = ambient.tensor_circumstance(
            flat.tensors, (*snapshot.weights, *snapshot.adapter_weights)
        ) or adapter_circumstance(snapshot, factor)
        if reason:
            return Declined(reason=reason, failure=False)
        probe = self.runs.starts(flat.tensors)
        form = (flat.structure, tuple(snapshot.scales.paths))
        plan = self._plans.get(form)
        if plan is None:
            paths = (*number_paths(flat.structure), *snapshot.scales.paths)
            plan = self._plans[form] = Plan(paths=paths, live=[True] * len(paths))
            if len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
        classes = tuple(map(tensor_class, flat.tensors))
        return Call(
            arguments=arguments,
            flat=flat,
            plan=plan,
            classes=classes,
            backend=ambient.attention_backend(),
            snapshot=snapshot,
            state=self._state,
            factor=factor,
            probe=probe,
        )

    def reread(self, module: torch.nn.Module, call: Call) -> str | None:
        """Brings the state in `call` up to date after the module ran; returns why it cannot be captured, or None."""
        if not call.snapshot.unchanged(module):
            scales = call.snapshot.scales.values
            call.snapshot = self._take(module)
            call.state = self._state
            if call.snapshot.scales.values != scales:
                return "the module changes its own scales"
        return call.snapshot.blocked

    def refuse(self, kinds: Collection[str]) -> None:
        """From now on adapters of these kinds are part of what is traced."""
        self._refused.update(kinds)
        self.snapshot = None

    def invoker(self, forward: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
        """`forward` as a function of a mapping from parameter name to argument."""
        signature = self.signature

        def invoke(arguments: dict[str, Any]) -> Any:
            bound = inspect.BoundArguments(signature, OrderedDict(arguments))
            return forward(*bound.args, **bound.kwargs)

        return invoke

    def _split_scale(self, snapshot: Snapshot, kwargs: dict[str, Any]) -> tuple[float | None, dict[str, Any]]:
        """The scale of the adapters that the call gives, if weights can take it in, and the other arguments."""
        if self._scaled not in kwargs or snapshot.branched or SCALE in self._refused:
            return None, kwargs
        given = kwargs[self._scaled]
        factor, others = None, given
        if type(given) is dict and (not given or type(given.get("scale")) in (int, float)):
            factor = float(given.get("scale", 1.0))
            others = {name: value for name, value in given.items() if name != "scale"} or None
        left = {name: value for name, value in kwargs.items() if name != self._scaled}
        if others is not None:
            left[self._scaled] = others
        return factor, left

    def _take(self, module: torch.nn.Module) -> Snapshot:
        switched = self.snapshot.switched(module) if self.snapshot is not None else None
        self.snapshot = switched or Snapshot(module, frozenset(self._refused))
        self._state = self._number(self.snapshot)
        return self.snapshot

    def _number(self, snapshot: Snapshot) -> int:
        number = self._states.get(snapshot.fingerprint)
        if number is None:
            number = self._states[snapshot.fingerprint] = next(self._numbers)
            if len(self._states) > _MOST_STATES:
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(snapshot.fingerprint)
        return number


def scale_argument(forward: Callable[..., Any]) -> str | None:
    """The argument whose "scale" diffusers' decorator applies to all adapters, or None where there is no such."""
    function: Any = forward
    while function is not None:
        variables = getattr(getattr(function, "__code__", None), "co_freevars", ())
        place = getattr(function, "__globals__", {}).get("__name__")
        if place == "diffusers.utils.peft_utils" and "kwargs_name" in variables:
            name: str = inspect.getclosurevars(function).nonlocals["kwargs_name"]
            return name
        function = getattr(function, "__wrapped__", None)
    return None


def adapter_circumstance(snapshot: Snapshot, factor: float | None) -> str | None:
    """Why a call must run eagerly because it changes the adapters that weights were read from, or None."""
    if any(layer.unmerges for layer, *_ in snapshot.adapted):
        return "adapters are disabled while they are fused, so this call takes them out of the weights"
    if factor == 0 and any(layer.additions for layer, *_ in snapshot.adapted):
        return "a scale of 0 given with the call puts the adapters' own scales back to their defaults"
    return None

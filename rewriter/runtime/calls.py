"""Reads a call: its tensors and numbers, the module's state, and the key under which a capture for it is kept."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from rewriter.capture import ambient
from rewriter.capture.recording import NumbersBaked
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Flat, flatten, flatten_arguments, number_paths, tensor_class
from rewriter.errors import CaptureError
from rewriter.runtime.trust import Signature

_MOST_STATES = 16
_MOST_PLANS = 64

# (argument structure, tensor classes, which numbers are live, values of the others, state of the module)
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
    """One call, taken apart. `state` is the number of the module's state, `snapshot` that state."""

    arguments: dict[str, Any]
    flat: Flat
    plan: Plan
    classes: tuple[Any, ...]
    snapshot: Snapshot
    state: int

    @property
    def signature(self) -> Signature:
        """The extents of all tensors."""
        return tuple(tensor.shape for tensor in self.flat.tensors)

    @property
    def key(self) -> Key:
        """The key of captures for this call; another one once the plan has learned something."""
        live = tuple(self.plan.live)
        fixed = tuple(repr(v) for v, is_live in zip(self.flat.numbers, live, strict=True) if not is_live)
        return (self.flat.structure, self.classes, live, fixed, self.state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declined:
    """Why a call runs eagerly. `failure`: it could not be captured (and not: this time it should not be)."""

    reason: str
    failure: bool


class CallReader:
    """Reads the calls of one module. Keeps the latest snapshot of it, and numbers the states that it has been in."""

    def __init__(self, signature: inspect.Signature) -> None:
        self.signature = signature
        self.snapshot: Snapshot | None = None
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._states: OrderedDict[tuple[Any, ...], int] = OrderedDict()
        self._numbers = itertools.count()
        self._state = -1

    def read(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | Declined:
        """The call taken apart, or why it has to run eagerly."""
        try:
            arguments = dict(self.signature.bind(*args, **kwargs).arguments)
            flat = flatten_arguments(arguments)
            hash(flat.structure)
        except (CaptureError, TypeError) as error:
            return Declined(reason=str(error), failure=isinstance(error, CaptureError))
        snapshot = self.snapshot
        if snapshot is None or not snapshot.unchanged(module):
            snapshot = self._take(module)
        if snapshot.blocked:
            return Declined(reason=snapshot.blocked, failure=True)
        reason = ambient.tensor_circumstance(flat.tensors, snapshot.weights)
        if reason:
            return Declined(reason=reason, failure=False)
        plan = self._plans.get(flat.structure)
        if plan is None:
            paths = tuple(number_paths(flat.structure))
            plan = self._plans[flat.structure] = Plan(paths=paths, live=[True] * len(paths))
            if len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
        classes = tuple(map(tensor_class, flat.tensors))
        return Call(arguments=arguments, flat=flat, plan=plan, classes=classes, snapshot=snapshot, state=self._state)

    def reread(self, module: torch.nn.Module, call: Call) -> str | None:
        """Brings the state in `call` up to date after the module ran; returns why it cannot be captured, or None."""
        if not call.snapshot.unchanged(module):
            call.snapshot = self._take(module)
            call.state = self._state
        return call.snapshot.blocked

    def invoker(self, forward: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
        """`forward` as a function of a mapping from parameter name to argument."""
        signature = self.signature

        def invoke(arguments: dict[str, Any]) -> Any:
            bound = inspect.BoundArguments(signature, OrderedDict(arguments))
            return forward(*bound.args, **bound.kwargs)

        return invoke

    def _take(self, module: torch.nn.Module) -> Snapshot:
        self.snapshot = Snapshot(module)
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


def read_result(result: Any) -> Flat:
    """A call's result taken apart. Raises CaptureError where it holds what a graph cannot return."""
    flat = flatten(result, what="output")
    if flat.numbers:
        raise CaptureError("the call returns Python numbers, which may depend on its input")
    return flat

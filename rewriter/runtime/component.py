"""The callable that stands in for a network's `forward`."""

from __future__ import annotations

import contextlib
import inspect
import operator
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter.capture import ambient
from rewriter.causes import described
from rewriter.errors import CaptureError, RewriterError, VerificationError
from rewriter.runtime import schedulers
from rewriter.runtime.before import Before
from rewriter.runtime.calls import Call, CallReader, Declined, scale_argument
from rewriter.runtime.journal import Journal
from rewriter.runtime.judging import Judge
from rewriter.runtime.library import Library
from rewriter.runtime.making import Maker
from rewriter.runtime.merging import Merging
from rewriter.runtime.prepared import PreparedStore
from rewriter.runtime.program import Options, Program
from rewriter.runtime.random_state import RandomState
from rewriter.runtime.trust import Standing


class Component:
    """Replaces `module.forward`. Holds its module weakly: the module owns the component, not the other way round.

    name: as in the report ("unet", "vae.decoder"). place: the instance attribute of the module that it occupies.
    found: what that attribute held before, or None if it did not exist. closed: why it always runs eagerly, or None.
    """

    # Without a `__dict__` nothing is copied into the wrappers that accelerate and diffusers put around a forward.
    __slots__ = (
        "__weakref__",
        "_judge",
        "_library",
        "_lock",
        "_maker",
        "_merging",
        "_module",
        "_reader",
        "_retired",
        "_store",
        "closed",
        "found",
        "journal",
        "name",
        "options",
        "place",
        "users",
    )

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        name: str,
        options: Options,
        place: str,
        found: Callable[..., Any] | None,
        closed: str | None = None,
    ) -> None:
        self.name, self.options, self.place, self.found, self.closed = name, options, place, found, closed
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.journal = Journal(name, closed)
        self._module = weakref.ref(module)
        original = self._original(module)
        self._reader = CallReader(inspect.signature(original), scale_argument(original))
        self._library = Library()
        self._store = PreparedStore()
        self._merging = Merging(self._reader, self._library, self._store, self.journal, verify=options.verify)
        self._maker = Maker(options, self._reader, self._library, self._store, self._merging, self.journal)
        self._judge = Judge(options, self._library, self._merging, self._maker, self.journal)
        self._lock = threading.RLock()
        self._retired = False

    @property
    def __signature__(self) -> inspect.Signature:
        return self._reader.signature

    @property
    def __code__(self) -> types.CodeType:
        # torch.export looks at the code of a forward before it calls it.
        return inspect.unwrap(self._original(self._alive())).__code__  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        module = self._module()
        return f"<rewriter component {self.name} of {type(module).__name__ if module is not None else 'a dead module'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or unpickled module is not optimised. It needs nothing of this package, which may not be there; its
        # class gives the forward, for a copy has no attributes of its own yet.
        if self.found is not None:
            return operator.getitem, ((self.found,), 0)
        return getattr, (self._alive(), "forward")

    @property
    def module(self) -> torch.nn.Module | None:
        """The module whose `forward` this is, or None when it has been freed."""
        return self._module()

    @property
    def programs(self) -> list[Program]:
        """The captures in use, least recently used first."""
        with self._lock:
            return self._library.programs()

    @property
    def latest(self) -> Program | None:
        """The capture made last, or None where it is not in use any more."""
        return self._library.latest

    def memory(self) -> int:
        """Bytes held by weights that rules have prepared, and because adapters are active."""
        return self._store.bytes() + self._merging.effective.bytes()

    def retire(self) -> None:
        """Drops everything; whoever still holds this callable gets the module's own forward."""
        with self._lock:
            self._retired = True
            self._library.clear()
            self._merging.effective.release()
            self._store.adoptions.release()
            self._reader.snapshot = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._alive()
        if self._retired or ambient.in_foreign_capture():
            return self._original(module)(*args, **kwargs)
        schedulers.follow(self.users)
        with self._lock:
            self.journal.calls += 1
            call = self._read(module, args, kwargs)
            found = self._library.find(call) if isinstance(call, Call) else None
            if isinstance(call, Call) and found is None:
                call = self._maker.hopeless(call) or call
                if isinstance(call, Call):
                    return self._first(module, call, args, kwargs)
            if isinstance(call, Call) and found is not None:
                if found[1] is Standing.UNPROVED or not self._merging.proved(call):
                    return self._beside(module, found[0], call, args, kwargs)
                call = self._merging.resolve(call) or call
        if isinstance(call, Declined) or found is None:
            assert isinstance(call, Declined)
            if call.failure and self.options.strict:
                raise CaptureError(f"{self.name}: {call.reason}")
            return self._eager(module, call, args, kwargs)
        program = found[0]
        random = RandomState(tensor.device for tensor in call.flat.tensors) if program.draws else None
        try:
            tensors = _run(program, call)
        except Exception as error:
            # What eager raises too is the caller's mistake, and no reason to give the graph up.
            reason = f"the rewritten graph failed with {described(error)}"
            if not program.trust.shape_proved(call.signature):
                # It was only believed to hold for these extents, as one may that checks at each call what it needs.
                result = self._eager(module, Declined(reason=reason, failure=False), args, kwargs)
                with self._lock:
                    program.trust.refuse(call.signature)
                return result
            result = self._eager(module, Declined(reason=reason, failure=True), args, kwargs)
            self._broken(program, call, reason)
            return result
        self.journal.reason = None
        if self._judge.guard.found_late():
            self._too_late()
        if not self._judge.guard.passes(program, call.flat.tensors, tensors):
            with random.replayed() if random is not None else contextlib.nullcontext():
                return self._rescue(module, program, call, tensors, args, kwargs)
        self._reader.runs.ran()
        return program.rebuild(tensors, call.arguments, call.flat.tensors)

    def _alive(self) -> torch.nn.Module:
        module = self._module()
        if module is None:
            raise RewriterError(
                f"{self.name}: the module of this forward no longer exists; keep a reference to the module itself"
            )
        return module

    def _original(self, module: torch.nn.Module) -> Callable[..., Any]:
        return self.found if self.found is not None else own_forward(module)

    def _read(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Call | Declined:
        reason = self.closed or ambient.circumstance(module)
        if reason:
            return Declined(reason=reason, failure=False)
        return self._reader.read(module, args, kwargs)

    def _eager(self, module: torch.nn.Module, why: Declined, args: Any, kwargs: Any) -> Any:
        with self._lock:
            self.journal.eager_calls += 1
            if why.failure or not self._library.programs():
                self.journal.reason = why.reason
            self.journal.note(f"ran eagerly: {why.reason}")
        return self._original(module)(*args, **kwargs)

    def _first(self, module: torch.nn.Module, call: Call, args: Any, kwargs: Any) -> Any:
        """Runs a call for which there is no graph, and makes one."""
        flat, verify = call.flat, self.options.verify
        devices = {tensor.device for tensor in flat.tensors}
        before = Before(call.arguments, flat, call.snapshot)
        forward = self._original(module)
        result = forward(*args, **kwargs) if verify else None
        with RandomState(devices).kept():
            program = self._maker.make(module, forward, call, before, result)
        if program is None and not verify:
            return self._eager(module, Declined(reason=self.journal.reason or "", failure=True), args, kwargs)
        if program is not None and not verify:
            return program.rebuild(_run(program, call), call.arguments, flat.tensors)
        self.journal.eager_calls += 1
        return result if program is None else program.laid_out(result)

    def _beside(self, module: torch.nn.Module, program: Program, call: Call, args: Any, kwargs: Any) -> Any:
        """Runs a call eagerly and the program beside it, to learn whether the program holds for it too."""
        devices = {tensor.device for tensor in call.flat.tensors}
        before = Before(call.arguments, call.flat, call.snapshot)
        self.journal.eager_calls += 1
        result = self._original(module)(*args, **kwargs)
        with RandomState(devices).kept():
            holds = self._judge.holds(program, call, before, result)
        return program.laid_out(result) if holds else result

    def _rescue(
        self,
        module: torch.nn.Module,
        program: Program,
        call: Call,
        tensors: Sequence[torch.Tensor],
        args: Any,
        kwargs: Any,
    ) -> Any:
        """Runs a call eagerly whose graph gave NaN or Inf. Where eager does not, the rule that is to blame goes."""
        before = Before(call.arguments, call.flat, call.snapshot)
        result = self._original(module)(*args, **kwargs)
        with self._lock:
            self.journal.eager_calls += 1
            consequence = self._judge.convict(program, call, tensors, before, result)
        if consequence is not None:
            self._warn(consequence)
            if self.options.strict:
                raise VerificationError(f"{self.name}: {consequence}")
        return result

    def _broken(self, program: Program, call: Call, reason: str) -> None:
        with self._lock:
            self._library.drop(program)
            self._library.fail(call, reason)
            self.journal.reason = reason
        self._warn(f"runs calls like this one eagerly from now on: {reason}")
        if self.options.strict:
            raise VerificationError(f"{self.name}: {reason}")

    def _too_late(self) -> None:
        message = (
            "a graph returned NaN or Inf for finite inputs in an earlier call, so what was made of that may be spoilt; "
            "from now on its results are checked before they are returned"
        )
        with self._lock:
            self.journal.note(message)
        self._warn(message)

    def _warn(self, message: str) -> None:
        # To the caller of the module: three frames of this class, and two of torch around every forward.
        self.journal.warn(message, depth=5)


def _run(program: Program, call: Call) -> tuple[torch.Tensor, ...]:
    return program.run(call.flat.tensors, call.flat.numbers, call.weights, call.stamp)


def own_forward(module: torch.nn.Module) -> Callable[..., Any]:
    """The forward of the module's class, bound to it."""
    return types.MethodType(type(module).forward, module)

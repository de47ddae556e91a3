"""The callable that stands in for a network's `forward`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter.capture import ambient
from rewriter.capture.outcome import Outcome
from rewriter.capture.recording import NumbersBaked
from rewriter.errors import CaptureError, RewriterError, VerificationError
from rewriter.runtime.before import Before
from rewriter.runtime.building import Example, build
from rewriter.runtime.calls import Call, CallReader, Declined, scale_argument
from rewriter.runtime.effective import EffectiveWeights
from rewriter.runtime.guard import Guard
from rewriter.runtime.guilt import guilty_rule, more_nonfinite
from rewriter.runtime.library import Library
from rewriter.runtime.prepared import PreparedStore
from rewriter.runtime.program import Options, Program
from rewriter.runtime.proof import WrongTrace, describe, distance, shapes
from rewriter.runtime.random_state import RandomState
from rewriter.runtime.trust import Standing

logger = logging.getLogger("rewriter")

# So many captures are free; after that one is allowed for each so many calls.
_FREE_CAPTURES = 16
_CALLS_PER_CAPTURE = 20
_MOST_MESSAGES = 20


class RewriterWarning(UserWarning):
    """An optimised component went back to eager because something in it broke."""


class Component:
    """Replaces `module.forward`. Holds its module weakly: the module owns the component, not the other way round.

    name: as in the report ("unet", "vae.decoder"). place: the instance attribute of the module that it occupies.
    found: what that attribute held before, or None if it did not exist. closed: why it always runs eagerly, or None.
    reason: why calls like the last one run eagerly, or None where they do not.
    """

    # Without a `__dict__` nothing is copied into the wrappers that accelerate and diffusers put around a forward.
    __slots__ = (
        "__weakref__",
        "_effective",
        "_guard",
        "_left_out",
        "_library",
        "_lock",
        "_module",
        "_proved",
        "_reader",
        "_retired",
        "_store",
        "calls",
        "captures",
        "closed",
        "eager_calls",
        "found",
        "latest",
        "messages",
        "name",
        "options",
        "place",
        "reason",
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
        self.calls = self.eager_calls = self.captures = 0
        self.reason: str | None = closed
        self.messages: list[str] = []
        self.latest: Program | None = None
        self._module = weakref.ref(module)
        original = self._original(module)
        self._reader = CallReader(inspect.signature(original), scale_argument(original))
        self._library = Library()
        self._store = PreparedStore()
        self._effective = EffectiveWeights(self._store)
        self._proved: set[str] = set()
        self._guard = Guard()
        self._left_out: set[str] = set()
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
        # A copied or unpickled module is not optimised.
        if self.found is not None:
            return _same, (self.found,)
        return own_forward, (self._alive(),)

    @property
    def module(self) -> torch.nn.Module | None:
        """The module whose `forward` this is, or None when it has been freed."""
        return self._module()

    @property
    def programs(self) -> list[Program]:
        """The captures in use, least recently used first."""
        with self._lock:
            return self._library.programs()

    def memory(self) -> int:
        """Bytes held by weights that rules have prepared, and because adapters are active."""
        return self._store.bytes() + self._effective.bytes()

    def retire(self) -> None:
        """Drops everything; whoever still holds this callable gets the module's own forward."""
        with self._lock:
            self._retired = True
            self._library.clear()
            self._effective.release()
            self._store.adoptions.release()
            self.latest = self._reader.snapshot = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._alive()
        if self._retired or ambient.in_foreign_capture():
            return self._original(module)(*args, **kwargs)
        with self._lock:
            self.calls += 1
            call = self._read(module, args, kwargs)
            found = self._library.find(call) if isinstance(call, Call) else None
            if isinstance(call, Call) and found is None:
                call = self._hopeless(call) or call
                if isinstance(call, Call):
                    return self._first(module, call, args, kwargs)
            if isinstance(call, Call) and found is not None:
                if found[1] is Standing.UNPROVED or not self._kinds_proved(call):
                    return self._prove(module, found[0], call, args, kwargs)
                call = self._resolve(call) or call
        if isinstance(call, Declined) or found is None:
            assert isinstance(call, Declined)
            return self._eager(module, call, args, kwargs)
        program = found[0]
        random = RandomState(tensor.device for tensor in call.flat.tensors) if program.draws else None
        try:
            tensors = self._run(program, call)
        except Exception as error:
            # What eager raises too is the caller's mistake, and no reason to give the graph up.
            reason = f"the rewritten graph failed with {describe(error)}"
            result = self._eager(module, Declined(reason=reason, failure=True), args, kwargs)
            self._broken(program, call, reason)
            return result
        self.reason = None
        if not self._guard.passes(program, call.flat.tensors, tensors):
            with random.replayed() if random is not None else contextlib.nullcontext():
                return self._rescue(module, program, call, tensors, args, kwargs)
        if self._guard.found_late():
            self._too_late()
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
        call = self._reader.read(module, args, kwargs)
        if isinstance(call, Declined) and call.failure and self.options.strict:
            raise CaptureError(f"{self.name}: {call.reason}")
        return call

    def _hopeless(self, call: Call) -> Declined | None:
        reason = self._library.failure(call)
        if reason is None and self.captures >= _FREE_CAPTURES + self.calls // _CALLS_PER_CAPTURE:
            fixed = [path for path, live in zip(call.plan.paths, call.plan.live, strict=True) if not live]
            what = f" (one for each value of {', '.join(fixed)})" if fixed else ""
            reason = f"its calls need too many graphs{what}: {self.captures} for {self.calls} calls"
        return None if reason is None else Declined(reason=reason, failure=True)

    def _kinds_proved(self, call: Call) -> bool:
        return not self.options.verify or call.kinds <= self._proved

    def _resolve(self, call: Call) -> Declined | None:
        """Computes the weights that the call's graph reads; says why it has to run eagerly where that cannot be."""
        try:
            factor = 1.0 if call.factor is None else call.factor
            call.weights, call.stamp = self._effective.resolve(call.snapshot, factor, probe=call.probe)
        except Exception as error:
            return Declined(reason=f"the adapters cannot be added to the weights: {describe(error)}", failure=True)
        return None

    def _run(self, program: Program, call: Call) -> tuple[torch.Tensor, ...]:
        return program.run(call.flat.tensors, call.flat.numbers, call.weights, call.stamp)

    def _eager(self, module: torch.nn.Module, why: Declined, args: Any, kwargs: Any) -> Any:
        with self._lock:
            self.eager_calls += 1
            if why.failure or not self._library.programs():
                self.reason = why.reason
            self._note(f"ran eagerly: {why.reason}")
        return self._original(module)(*args, **kwargs)

    def _first(self, module: torch.nn.Module, call: Call, args: Any, kwargs: Any) -> Any:
        """Runs a call for which there is no graph, and makes one."""
        flat, verify = call.flat, self.options.verify
        devices = {tensor.device for tensor in flat.tensors}
        before = Before(call.arguments, flat, call.snapshot)
        result = self._original(module)(*args, **kwargs) if verify else None
        with RandomState(devices).kept():
            program = self._capture(module, call, before, result)
        if program is None:
            if not verify:
                return self._eager(module, Declined(reason=self.reason or "", failure=True), args, kwargs)
            self.eager_calls += 1
            return result
        self.reason = None
        self.latest = program
        self._library.add(call, program)
        if verify:
            self.eager_calls += 1
            return program.laid_out(result)
        return program.rebuild(self._run(program, call), call.arguments, flat.tensors)

    def _capture(self, module: torch.nn.Module, call: Call, before: Before, result: Any) -> Program | None:
        """A verified program, or None after noting why there is none."""
        live = list(call.plan.live)
        try:
            expected = None
            if self.options.verify:
                _raise(before.change())
                expected = before.outcome(result)
            # The eager call may have settled something lazily, such as the hooks that transformers installs.
            _raise(self._reader.reread(module, call))
            declined = self._resolve(call)
            _raise(declined.reason if declined is not None else None)
            program = self._build(module, call, before, expected)
        except Exception as error:
            reason = str(error) if isinstance(error, RewriterError) else describe(error)
            if self._refuse_kinds(call, reason):
                call.plan.live[:] = live
            else:
                self._library.fail(call, reason)
            self.reason = reason
            self._note(reason)
            if self.options.strict and isinstance(error, RewriterError):
                raise
            return None
        if self.options.verify:
            self._proved |= call.kinds
        # Weights were moved into what was prepared from them.
        call.snapshot.moved()
        self._effective.moved()
        logger.info("%s: ready, %d rewrites", self.name, len(program.rewritten.rewrites))
        return program

    def _refuse_kinds(self, call: Call, problem: str) -> bool:
        """Takes adapters into graphs from now on where it is not known that weights can stand for them."""
        unproved = call.kinds - self._proved
        if unproved:
            self._reader.refuse(unproved)
            self._note(f"adapters become part of the graph ({', '.join(sorted(unproved))}): {problem}")
        return bool(unproved)

    def _build(self, module: torch.nn.Module, call: Call, before: Before, expected: Outcome | None) -> Program:
        while True:
            self.captures += 1
            forward = self._original(module)
            example = Example(
                flat=call.flat,
                before=before,
                live=tuple(call.plan.live),
                forward=forward,
                invoke=self._reader.invoker(forward),
                expected=expected,
            )
            try:
                return build(module, example, call, self._options(), self._store, self.name)
            except NumbersBaked as baked:
                for text in call.plan.fix(baked):
                    self._note(text)
            except (CaptureError, WrongTrace) as error:
                if not any(call.plan.live):
                    raise
                self._note(f"another attempt with all numbers fixed, because {error}")
                call.plan.fix_all()

    def _options(self) -> Options:
        """The options without the rules that were found guilty."""
        if not self._left_out:
            return self.options
        return dataclasses.replace(self.options, rules=self.options.rules.without(self._left_out))

    def _prove(self, module: torch.nn.Module, program: Program, call: Call, args: Any, kwargs: Any) -> Any:
        """Runs a call eagerly and the program beside it, to learn whether the program holds for it too."""
        flat, trust = call.flat, program.trust
        devices = {tensor.device for tensor in flat.tensors}
        before = Before(call.arguments, flat, call.snapshot)
        self.eager_calls += 1
        result = self._original(module)(*args, **kwargs)
        with RandomState(devices).kept():
            problem = before.change()
            if not problem:
                declined = self._resolve(call)
                problem = declined.reason if declined is not None else distance(program, call, before, result)
        if not problem:
            trust.prove(call.signature, program.live_numbers(flat.numbers))
            self._proved |= call.kinds
            result = program.laid_out(result)
        elif not self._refuse_kinds(call, problem):
            self._disproved(program, call, problem)
        return result

    def _disproved(self, program: Program, call: Call, problem: str) -> None:
        """Learns from a call for which the program does not hold."""
        trust = program.trust
        changed = trust.changed_numbers(program.live_numbers(call.flat.numbers))
        if changed and trust.shape_proved(call.signature):
            positions = [index for index, live in enumerate(program.live) if live]
            for position in changed:
                call.plan.live[positions[position]] = False
                self._note(f"{call.plan.paths[positions[position]]} does not stay live: {problem}")
            self._drop(program)
        else:
            trust.refuse(call.signature)
            self._note(f"the graph does not hold for the shapes {shapes(call.signature)}: {problem}")

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
            self.eager_calls += 1
            if not more_nonfinite(tensors, before.outcome(result).tensors):
                self._guard.agree(program)
                return result
            rule = guilty_rule(program, self.options.rules, before.copies, call.flat.numbers, call.weights)
            self._drop(program)
            problem = "the rewritten graph returned NaN or Inf where eager does not"
            if rule is None:
                self._library.fail(call, problem)
                self.reason = problem
                consequence = f"{problem}, and no rule alone is to blame; calls like this one run eagerly from now on"
            else:
                self._left_out.add(rule)
                consequence = f"{problem}, due to the rule {rule} (by bisection), which is left out from now on"
            self._note(consequence)
        self._warn(consequence)
        if self.options.strict:
            raise VerificationError(f"{self.name}: {consequence}")
        return result

    def _broken(self, program: Program, call: Call, reason: str) -> None:
        with self._lock:
            self._drop(program)
            self._library.fail(call, reason)
            self.reason = reason
        self._warn(f"runs calls like this one eagerly from now on: {reason}")

    def _too_late(self) -> None:
        message = (
            "a graph returned NaN or Inf for finite inputs in an earlier call, so what was made of that may be spoilt; "
            "from now on its results are checked before they are returned"
        )
        with self._lock:
            self._note(message)
        self._warn(message)

    def _warn(self, message: str) -> None:
        warnings.warn(f"rewriter: {self.name}: {message}", RewriterWarning, stacklevel=6)

    def _drop(self, program: Program) -> None:
        self._library.drop(program)
        if self.latest is program:
            self.latest = None

    def _note(self, message: str) -> None:
        if message not in self.messages:
            logger.info("%s: %s", self.name, message)
            self.messages.append(message)
            del self.messages[:-_MOST_MESSAGES]


def own_forward(module: torch.nn.Module) -> Callable[..., Any]:
    """The forward of the module's class, bound to it."""
    return types.MethodType(type(module).forward, module)


def _same(value: Any) -> Any:
    return value


def _raise(problem: str | None) -> None:
    if problem:
        raise CaptureError(problem)

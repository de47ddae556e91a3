"""Makes the programs of a component, attempt by attempt, within bounds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch

from rewriter.capture.outcome import Outcome
from rewriter.capture.recording import NumbersBaked
from rewriter.causes import described
from rewriter.errors import CaptureError, RewriterError, VerificationError
from rewriter.runtime.before import Before
from rewriter.runtime.building import Example, build
from rewriter.runtime.calls import Call, CallReader, Declined
from rewriter.runtime.journal import Journal
from rewriter.runtime.library import Library
from rewriter.runtime.merging import Merging
from rewriter.runtime.prepared import PreparedStore
from rewriter.runtime.program import Options, Program
from rewriter.runtime.proof import WrongRule, WrongTrace

logger = logging.getLogger("rewriter")

# So many captures are free; after that one is allowed for each so many calls.
_FREE_CAPTURES = 16
_CALLS_PER_CAPTURE = 20
# After so many rules that were wrong, all of them are under suspicion.
_MOST_LEFT_OUT = 4


class Maker:
    """That of one component. Learns which numbers, adapters and rules have to be left out of its attempts."""

    def __init__(
        self,
        options: Options,
        reader: CallReader,
        library: Library,
        store: PreparedStore,
        merging: Merging,
        journal: Journal,
    ) -> None:
        self._options, self._reader, self._library = options, reader, library
        self._store, self._merging, self._journal = store, merging, journal
        self._left_out: set[str] = set()

    def hopeless(self, call: Call) -> Declined | None:
        """Why there is no use in another attempt for this call, or None."""
        reason = self._library.failure(call)
        captures, calls = self._journal.captures, self._journal.calls
        if reason is None and captures >= _FREE_CAPTURES + calls // _CALLS_PER_CAPTURE:
            fixed = [path for path, live in zip(call.plan.paths, call.plan.live, strict=True) if not live]
            what = f" (one for each value of {', '.join(fixed)})" if fixed else ""
            reason = f"its calls need too many graphs{what}: {captures} for {calls} calls"
        return None if reason is None else Declined(reason=reason, failure=True)

    def make(
        self, module: torch.nn.Module, forward: Callable[..., Any], call: Call, before: Before, result: Any
    ) -> Program | None:
        """A program for calls like this one, entered in the library; or None after noting why there is none.

        `result`: what `forward` has returned for the call since `before`, where it is to be compared. Raises
        CaptureError or VerificationError instead of giving None where the options are strict.
        """
        live = list(call.plan.live)
        try:
            expected = None
            if self._options.verify:
                _raise(before.change())
                expected = before.outcome(result)
            # The eager call may have settled something lazily, such as the hooks that transformers installs.
            _raise(self._reader.reread(module, call))
            declined = self._merging.resolve(call)
            _raise(declined.reason if declined is not None else None)
            # Weights will move: what looks at them must not hold the memory that they leave.
            self._merging.effective.moved()
            try:
                program = self._attempts(module, forward, call, before, expected)
            finally:
                call.snapshot.moved()
        except Exception as error:
            reason = str(error) if isinstance(error, RewriterError) else described(error)
            if self._merging.refuse(call, reason):
                call.plan.live[:] = live
            else:
                self._library.fail(call, reason)
            self._journal.reason = reason
            self._journal.note(reason)
            if not self._options.strict:
                return None
            if isinstance(error, CaptureError | VerificationError):
                raise
            raise CaptureError(f"{self._journal.name}: {reason}") from error
        if self._options.verify:
            self._merging.prove(call)
        logger.info("%s: ready, %d rewrites", self._journal.name, len(program.rewritten.rewrites))
        self._journal.reason = None
        self._library.add(call, program)
        return program

    def leave_out(self, rule: str) -> None:
        """Makes programs without this rule from now on."""
        self._left_out.add(rule)

    def _attempts(
        self,
        module: torch.nn.Module,
        forward: Callable[..., Any],
        call: Call,
        before: Before,
        expected: Outcome | None,
    ) -> Program:
        while True:
            self._journal.captures += 1
            example = Example(
                flat=call.flat,
                before=before,
                live=tuple(call.plan.live),
                forward=forward,
                invoke=self._reader.invoker(forward),
                expected=expected,
            )
            try:
                return build(module, example, call, self._present_options(), self._store, self._journal.name)
            except NumbersBaked as baked:
                for text in call.plan.fix(baked):
                    self._journal.note(text)
            except WrongRule as error:
                if self._options.strict or len(self._left_out) >= _MOST_LEFT_OUT:
                    raise
                self.leave_out(error.rule)
                self._journal.note(f"{error}, which is left out from now on")
            except (CaptureError, WrongTrace) as error:
                if not any(call.plan.live):
                    raise
                self._journal.note(f"another attempt with all numbers fixed, because {error}")
                call.plan.fix_all()

    def _present_options(self) -> Options:
        if not self._left_out:
            return self._options
        return dataclasses.replace(self._options, rules=self._options.rules.without(self._left_out))


def _raise(problem: str | None) -> None:
    if problem:
        raise CaptureError(problem)

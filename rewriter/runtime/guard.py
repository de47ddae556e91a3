"""Looks at what graphs return: NaN or Inf in it may be a rewrite's doing, on values that verification has not seen."""

from __future__ import annotations

import collections
import dataclasses
import math
import weakref
from collections.abc import Sequence

import torch

from rewriter.runtime.program import Program

# A graph that eager agrees with about NaN or Inf is looked at in one call of so many.
_EVERY = 16


@dataclasses.dataclass(slots=True)
class _Late:
    """A look that the device has not finished: norms, of `results` results and then of the inputs."""

    program: weakref.ref[Program]
    norms: torch.Tensor
    results: int
    done: torch.cuda.Event | None

    def ready(self) -> bool:
        return self.done is None or self.done.query()

    def broken(self) -> bool:
        """Whether there was NaN or Inf in the results and none in the inputs."""
        finite = self.norms.isfinite()
        return not bool(finite[: self.results].all()) and bool(finite[self.results :].all())


class Guard:
    """That of one component.

    On a CPU a result is looked at before it is returned. On a GPU that would make the host wait at every step, so the
    device notes down what it found and the note is read in a later call; from the first bad one on, the graph's
    results are waited for.
    """

    def __init__(self) -> None:
        self._late: collections.deque[_Late] = collections.deque()
        self._watched: weakref.WeakSet[Program] = weakref.WeakSet()
        self._agreed: weakref.WeakKeyDictionary[Program, int] = weakref.WeakKeyDictionary()

    def passes(self, program: Program, inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> bool:
        """Whether these results may be returned, as far as can be said now."""
        calls = self._agreed.get(program)
        if calls is not None:
            self._agreed[program] = calls + 1
            if calls % _EVERY:
                return True
        if program not in self._watched and _defers(results):
            self._note(program, inputs, results)
            return True
        if math.isfinite(float(_total(results))):
            return True
        return all(bool(tensor.isfinite().all()) for tensor in results)

    def found_late(self) -> list[Program]:
        """Graphs that returned NaN or Inf for finite inputs in an earlier call; they are watched from now on."""
        found: list[Program] = []
        while self._late and self._late[0].ready():
            late = self._late.popleft()
            program = late.program()
            if program is not None and program not in self._watched and late.broken():
                self._watched.add(program)
                found.append(program)
        return found

    def agree(self, program: Program, inputs: Sequence[torch.Tensor]) -> None:
        """Eager returns NaN or Inf at the same places.

        A graph that is watched stays so where the inputs have NaN or Inf already: that may be its own doing, steps ago.
        """
        if program in self._watched and not math.isfinite(float(_total(inputs))):
            return
        self._agreed[program] = 1
        self._watched.discard(program)

    def _note(self, program: Program, inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
        given = [tensor for tensor in inputs if tensor.device == results[0].device]
        floating = [[tensor.detach() for tensor in side if tensor.is_floating_point()] for side in (results, given)]
        if not floating[0]:
            return
        norms = _norms([*floating[0], *floating[1]])
        count, done = len(floating[0]), None
        if norms.is_cuda:
            norms = torch.empty(norms.shape, dtype=norms.dtype, pin_memory=True).copy_(norms, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        self._late.append(_Late(weakref.ref(program), norms, count, done))


def _norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of magnitudes of each tensor, in few kernels for all: not finite where anything in it is not."""
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    with torch.no_grad():
        return torch.stack(torch._foreach_norm(list(tensors), 1, dtype=wide))


def _defers(tensors: Sequence[torch.Tensor]) -> bool:
    return any(tensor.is_cuda for tensor in tensors)


def _total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of everything, 0-dim: not finite where anything in it is not. The cheapest look at all elements.

    Summed in f32 at least. Elements near the end of its range may add up to Inf too.
    """
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
    if not floating:
        return torch.zeros((), device=tensors[0].device if tensors else "cpu")
    with torch.no_grad():
        sums = [tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)) for tensor in floating]
        return sums[0] if len(sums) == 1 else torch.stack([value.to(sums[0]) for value in sums]).sum()

"""How things were before a call, to repeat it and to see what it has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rewriter.capture.outcome import Outcome, each, read_outcome
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Flat
from rewriter.runtime.random_state import RandomState


class Before:
    """Made right before a call. `copies`: its tensors, not to be written to; `random`: the generators' states."""

    def __init__(self, arguments: Mapping[str, Any], flat: Flat, snapshot: Snapshot) -> None:
        self.copies = clones(flat.tensors)
        self.random = RandomState(tensor.device for tensor in flat.tensors)
        self._arguments, self._tensors, self._snapshot = dict(arguments), flat.tensors, snapshot
        self._each = each(arguments)
        self._versions = [weight._version for weight in snapshot.weights]

    def change(self) -> str | None:
        """What the call has done to its tensor arguments or its module's weights, or None."""
        for weight, name, version in zip(self._snapshot.weights, self._snapshot.names, self._versions, strict=True):
            if weight._version != version:
                return f"the call writes to the module's own {name}"
        if not all(_same_content(a, b) for a, b in zip(self._tensors, self.copies, strict=True)):
            return "the call writes to one of its tensor arguments"
        return None

    def outcome(self, result: Any) -> Outcome:
        """The result and what the call left in its arguments, taken apart. Raises CaptureError where a graph cannot."""
        return read_outcome(result, self._arguments, self._each)


def clones(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies with the same strides, outside of inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return tuple(tensor.detach().clone() for tensor in tensors)


def _same_content(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal element by element, NaN to NaN."""
    if torch.equal(a, b):
        return True
    return (a.is_floating_point() or a.is_complex()) and bool(((a == b) | (a.isnan() & b.isnan())).all())

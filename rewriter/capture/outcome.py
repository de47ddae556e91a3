"""What a call returns, and what it leaves in the lists that it was given.

Some networks take their residuals out of a list one by one, others keep frames there for the next call. A graph cannot
do that; but what is in the lists afterwards is a result like others, and can be put there once the graph has run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rewriter.capture.structure import Flat, Structure, flatten, flatten_arguments, unflatten
from rewriter.errors import CaptureError

_LEAVES = ("tensor", "number", "constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A call's result and its changed arguments, taken apart.

    structure: of the result, over `tensors`. left: a mapping from the name of each changed argument to its new
    content, over `tensors` followed by the tensors of the call.
    """

    structure: Structure
    tensors: tuple[torch.Tensor, ...]
    left: tuple[tuple[str, Structure], ...] = ()

    @property
    def form(self) -> tuple[Structure, tuple[tuple[str, Structure], ...]]:
        """Equal for two outcomes where one recipe puts both together."""
        return (self.structure, self.left)


def read_outcome(result: Any, arguments: Mapping[str, Any], before: Mapping[str, Flat]) -> Outcome:
    """Takes apart what a call with `arguments` returned and left in them; `before`: `each` of them, before the call.

    Raises CaptureError where the result holds what a graph cannot return, or where more than the items of a plain list
    or dict has changed.
    """
    flat = flatten(result, what="output", objects=True)
    if flat.numbers:
        raise CaptureError("the call returns Python numbers, which may depend on its input")
    tensors = list(flat.tensors)
    inputs = _distinct(before)
    changed: list[tuple[str, Flat]] = []
    for name, known in before.items():
        now = _one(name, arguments[name])
        if not _same(now, known):
            _demand_plain(name, known, now)
            changed.append((name, now))
    for _, now in changed:
        tensors += [tensor for tensor in now.tensors if not _is_in(tensor, tensors) and not _is_in(tensor, inputs)]
    everything = [*tensors, *inputs]
    left = tuple((name, _placed(now, everything)) for name, now in changed)
    return Outcome(structure=flat.structure, tensors=tuple(tensors), left=left)


def each(arguments: Mapping[str, Any]) -> dict[str, Flat]:
    """Every argument taken apart by itself."""
    return {name: _one(name, value) for name, value in arguments.items()}


def leave(
    left: Sequence[tuple[str, Structure]],
    arguments: Mapping[str, Any],
    tensors: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> None:
    """Gives the lists and dicts among `arguments` the content that the call would have left in them."""
    for name, structure in left:
        target, content = arguments[name], unflatten(structure, [*tensors, *inputs], ())
        if isinstance(target, dict):
            target.clear()
            target.update(content)
        else:
            target[:] = content


def _one(name: str, value: Any) -> Flat:
    return flatten_arguments({name: value})


def _same(a: Flat, b: Flat) -> bool:
    return (
        a.structure == b.structure
        and list(map(repr, a.numbers)) == list(map(repr, b.numbers))
        and all(x is y for x, y in zip(a.tensors, b.tensors, strict=True))
    )


def _demand_plain(name: str, before: Flat, now: Flat) -> None:
    for flat in (before, now):
        (structure,) = flat.structure[3]
        plain = structure[0] in ("sequence", "mapping") and structure[1] is not tuple
        if not plain or any(child[0] not in _LEAVES for child in structure[-1]):
            raise CaptureError(f"the call changes the argument {name} in more than the items of a list")


def _placed(flat: Flat, tensors: Sequence[torch.Tensor]) -> Structure:
    """The structure of one argument with its tensors' places among `tensors`, and with its numbers as constants."""
    (structure,) = flat.structure[3]
    children: list[tuple[Any, ...]] = []
    for child in structure[-1]:
        if child[0] == "tensor":
            children.append(("tensor", _index(flat.tensors[child[1]], tensors)))
        elif child[0] == "number":
            number = flat.numbers[child[1]]
            children.append(("constant", type(number), number))
        else:
            children.append(child)
    return (*structure[:-1], tuple(children))


def _distinct(before: Mapping[str, Flat]) -> list[torch.Tensor]:
    """The tensors of all arguments in the order in which the whole call lists them."""
    found: dict[int, torch.Tensor] = {id(tensor): tensor for flat in before.values() for tensor in flat.tensors}
    return list(found.values())


def _index(tensor: torch.Tensor, tensors: Sequence[torch.Tensor]) -> int:
    return next(index for index, other in enumerate(tensors) if other is tensor)


def _is_in(tensor: torch.Tensor, tensors: Sequence[torch.Tensor]) -> bool:
    return any(other is tensor for other in tensors)

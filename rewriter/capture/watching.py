"""Notices that a dict or list holds other objects than before, for thousands of them in a fraction of a millisecond."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rewriter.capture import adapters

_Getter = Callable[[Any], tuple[Any, ...]]

data_ptr = torch.Tensor.data_ptr


class Watch:
    """Compares object identities in C. `freeze` remembers what there is, `same` says whether it still is."""

    def __init__(self) -> None:
        self._sizes: list[Any] = []
        self._empty: list[Any] = []
        self._getters: list[_Getter] = []
        self._containers: list[Any] = []
        self._lengths: list[int] = []
        self._values: list[Any] = []

    def size(self, container: Any) -> None:
        """The number of items must stay."""
        (self._sizes if container else self._empty).append(container)

    def items(self, container: Any, names: tuple[Any, ...] | None = None) -> None:
        """The values under `names` (all, where None) of a dict, or the items of a list, must stay the same objects."""
        if isinstance(container, dict):
            names = tuple(container) if names is None else names
            if not names:
                return
            self._getters.append(getter(names))
        else:
            self._getters.append(tuple)
        self._containers.append(container)

    def freeze(self) -> None:
        self._lengths = list(map(len, self._sizes))
        self._values = list(self._present())

    def same(self) -> bool:
        """False says no more than that something may be different. Raises KeyError where a name is gone."""
        return (
            list(map(len, self._sizes)) == self._lengths
            and not any(self._empty)
            and all(map(operator.is_, self._present(), self._values))
        )

    def sized(self) -> Iterator[Any]:
        """The containers whose size is watched."""
        return itertools.chain(self._sizes, self._empty)

    def _present(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(map(operator.call, self._getters, self._containers))


class AdapterWatch:
    """Notices that adapters were added, removed, switched, scaled, fused or written to."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._watch = Watch()
        # The dicts as they are, and as they were.
        self._scales: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._pointers: list[int] = []
        self._versions: list[int] = []

    def add(self, layer: adapters.Layer) -> None:
        # Thousands of small objects that a step would not touch otherwise: no more of them than needed.
        watch, own = self._watch, layer.module.__dict__
        watch.size(own)
        watch.items(
            own, tuple(name for name in ("_active_adapter", "_disable_adapters", "merged_adapters") if name in own)
        )
        watch.items(layer.module._modules, ("base_layer",))
        for switched in (own.get("_active_adapter"), own.get("merged_adapters")):
            if isinstance(switched, list):
                watch.size(switched)
                if switched:
                    watch.items(switched)
        scales = own["scaling"]
        if all(isinstance(scale, int | float) for scale in scales.values()):
            # Scaling and back gives an equal number, but another object.
            self._scales.append((scales, dict(scales)))
        else:
            watch.size(scales)
            watch.items(scales)
        for table, names in adapters.tables(layer):
            watch.size(table)
            watch.items(table, names)
        for hooks in (layer.module._forward_hooks, layer.module._forward_pre_hooks):
            watch.size(hooks)
        for switch in adapters.switches(layer):
            watch.items(switch.__dict__, ("training",))
        for addition in layer.additions:
            self.tensors.extend(addition.parameters)

    def freeze(self) -> None:
        self._watch.freeze()
        self._pointers = list(map(data_ptr, self.tensors))
        self._versions = list(map(version, self.tensors))

    def same(self) -> bool:
        """As of Watch."""
        return (
            self._watch.same()
            and all(itertools.starmap(operator.eq, self._scales))
            and list(map(data_ptr, self.tensors)) == self._pointers
            and list(map(version, self.tensors)) == self._versions
        )


def getter(names: tuple[Any, ...]) -> _Getter:
    """A C function from a dict to the tuple of its values under `names`."""
    return operator.itemgetter(*names) if len(names) > 1 else operator.itemgetter(names[0], names[0])


def version(tensor: torch.Tensor) -> int:
    """How often torch saw a write to the tensor. Tensors made under inference mode do not count."""
    return -1 if tensor.is_inference() else tensor._version

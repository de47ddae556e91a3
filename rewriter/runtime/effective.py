"""The weights that graphs read where adapters are active: base and adapters added up, at an address that stays.

While an adapter is active, the place in memory where a layer's weight was holds the effective weight, and the module's
own parameter has moved to a copy: what reads the module sees the base weight as before, and what reads that place
need not learn of adapters. When no adapter is active any more, the parameter moves back and the copy is freed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

import torch

from rewriter import torch_ir
from rewriter.capture import adapters
from rewriter.capture.state import Snapshot
from rewriter.capture.watching import version
from rewriter.runtime.prepared import PreparedStore
from rewriter.runtime.probes import Probes

# A layer, and the indices of its weight and bias in the snapshot.
Adapted: TypeAlias = tuple[adapters.Layer, int, int | None]


@dataclasses.dataclass(slots=True)
class _Home:
    """place: a parameter that nobody else knows, with the effective values of `owner`, the module's own, which had
    these strides then."""

    owner: torch.Tensor
    place: torch.nn.Parameter
    strides: tuple[int, ...]

    def fits(self) -> bool:
        place, owner = self.place, self.owner
        return (place.shape, place.dtype, place.device, self.strides) == (
            owner.shape,
            owner.dtype,
            owner.device,
            owner.stride(),
        )


class EffectiveWeights:
    """Those of one component. Not for several threads at once."""

    def __init__(self, store: PreparedStore) -> None:
        self._store = store
        self._homes: dict[int, _Home] = {}
        self._stamps = itertools.count()
        self._stamp = -1
        self._known: tuple[object, ...] | None = None
        self._read: list[torch.Tensor] = []
        self._probes = Probes(())
        self._weights: list[torch.Tensor] = []
        # Of what the probes look at, that which places hold sums of.
        self._added_up: frozenset[int] = frozenset()

    def resolve(
        self, snapshot: Snapshot, factor: float, *, probe: Callable[[], Collection[int]] | None
    ) -> tuple[list[torch.Tensor], int]:
        """What graphs read in the place of the snapshot's weights, and a number that is another one when any of it
        may have changed. `factor` multiplies the scale of all adapters.

        `probe`: look also for writes that torch does not count, which waits for the device; it says of which of the
        snapshot's weights something was computed that such a write makes wrong. Raises what torch raises where memory
        is short; then nothing is held.
        """
        known = self._known == (snapshot.serial, factor, *map(version, self._read))
        if not known or (probe is not None and not self._probes.same(self._added_up | frozenset(probe()))):
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self._compute(snapshot, factor)
            except BaseException:
                self.release()
                snapshot.moved()
                raise
        return self._weights, self._stamp

    def moved(self) -> None:
        """Weights now lie elsewhere in memory, with the same values: looks at them anew in the next call."""
        self._known, self._probes = None, Probes(())

    def bytes(self) -> int:
        """Memory held because adapters are active."""
        return sum(home.place.numel() * home.place.element_size() for home in self._homes.values())

    def release(self) -> None:
        """Moves all parameters back to where they were, with the values that they have now."""
        self._known, self._weights, self._read, self._probes = None, [], [], Probes(())
        self._added_up = frozenset()
        with torch.inference_mode(False), torch.no_grad():
            for home in list(self._homes.values()):
                self._return(home)

    def _compute(self, snapshot: Snapshot, factor: float) -> None:
        self._probes = Probes(())
        self._weights, self._read = list(snapshot.weights), []
        active = [found for found in snapshot.adapted if found[0].additions]
        if active or self._homes:
            self._add_up(snapshot, active, factor)
        # The snapshot itself notices what happens to the adapters, but for writes that are not counted.
        self._probes = Probes([*snapshot.weights, *snapshot.adapter_weights])
        self._added_up = frozenset(
            [slot for _, *slots in active for slot in slots if slot is not None]
            + list(range(len(snapshot.weights), len(snapshot.weights) + len(snapshot.adapter_weights)))
        )
        self._stamp = next(self._stamps)
        self._known = (snapshot.serial, factor, *map(version, self._read))

    def _add_up(self, snapshot: Snapshot, active: Sequence[Adapted], factor: float) -> None:
        places = [home.place for home in self._homes.values()]
        known = _sharing((*snapshot.weights, *places, *self._store.tensors()))
        needed: set[int] = set()
        for layer, first, second in active:
            weight, bias = snapshot.weights[first], None if second is None else snapshot.weights[second]
            values = adapters.merged(layer, weight, bias, factor)
            for slot, value in zip((first, second), values, strict=True):
                if slot is not None and value is not None:
                    owner = snapshot.weights[slot]
                    home = self._home(owner, known)
                    home.place.copy_(value)
                    self._weights[slot] = home.place
                    needed.add(id(owner))
        for home in [home for key, home in self._homes.items() if key not in needed]:
            self._return(home)
        snapshot.moved()
        self._read = [snapshot.weights[slot] for _, *slots in active for slot in slots if slot is not None]

    def _home(self, owner: torch.Tensor, known: Counter[int]) -> _Home:
        """Where the effective values go. `known`: how many of the tensors known here lie in each storage."""
        home = self._homes.get(id(owner))
        if home is not None and home.fits():
            return home
        copy = owner.detach().clone()
        if home is None and torch_ir.sharers(owner) == known[owner.untyped_storage().data_ptr()]:
            # `detach` would share the count of writes.
            place = torch.nn.Parameter(owner.data, requires_grad=False)
            owner.data = copy
            self._store.adoptions.rename(owner, place)
        else:
            # Somebody else reads this memory as the base weight, so it must stay that.
            place = torch.nn.Parameter(copy, requires_grad=False)
            self._store.abandon(owner)
        home = self._homes[id(owner)] = _Home(owner, place, owner.stride())
        return home

    def _return(self, home: _Home) -> None:
        if home.fits():
            home.place.copy_(home.owner)
            home.owner.data = home.place.data
            self._store.adoptions.rename(home.place, home.owner)
        del self._homes[id(home.owner)]


def _sharing(tensors: Iterable[torch.Tensor]) -> Counter[int]:
    return Counter(
        tensor.untyped_storage().data_ptr() for tensor in {id(tensor): tensor for tensor in tensors}.values()
    )

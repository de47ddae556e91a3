"""The sequences are worth something: each of these faults, planted in the runtime, makes them fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from recording_here import RULES, recorded_runner
from sequences import PLANTED, follow

from rewriter.capture import ambient, watching
from rewriter.runtime import building, program
from rewriter.runtime.calls import CallReader
from rewriter.runtime.cuda_graphs import CudaGraphRunner
from rewriter.runtime.effective import EffectiveWeights
from rewriter.runtime.prepared import PreparedWeights
from rewriter.runtime.probes import Probes
from rewriter.runtime.recorded import Replay
from rewriter.runtime.trust import Trust

Patch = pytest.MonkeyPatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:diffusers"),
    # Some faults are noticed, and the network runs eagerly: not soon enough.
    pytest.mark.filterwarnings("ignore::rewriter.RewriterWarning"),
]


def prepared_weights_are_never_renewed(patch: Patch) -> None:
    def refresh(self: PreparedWeights, _: Any, __: Any = None) -> list[torch.Tensor]:
        return [cell.tensor for cell in self._cells if cell.tensor is not None]

    patch.setattr(PreparedWeights, "refresh", refresh)


def uncounted_writes_are_not_looked_for(patch: Patch) -> None:
    patch.setattr(Probes, "same", lambda *_: True)


def attributes_are_not_watched(patch: Patch) -> None:
    patch.setattr(watching.Watch, "same", lambda _: True)


def one_graph_serves_every_state(patch: Patch) -> None:
    patch.setattr(CallReader, "_number", lambda *_: 0)


def weights_that_move_are_not_followed(patch: Patch) -> None:
    patch.setattr("rewriter.capture.state.data_ptr", lambda _: 0)


def wanted_gradients_are_not_noticed(patch: Patch) -> None:
    patch.setattr(ambient, "circumstance", lambda _: None)
    patch.setattr(ambient, "tensor_circumstance", lambda *_: None)


def a_number_stays_what_it_was_first(patch: Patch) -> None:
    original = program.number_tensor
    patch.setattr(program, "number_tensor", lambda value: original(type(value)(7)))
    patch.setattr(Trust, "changed_numbers", lambda *_: [])


def the_first_scale_of_a_call_stays(patch: Patch) -> None:
    original = EffectiveWeights.resolve

    def resolve(self: EffectiveWeights, snapshot: Any, factor: float, *, probe: bool) -> Any:
        kept: Any = self._known[1] if self._known and self._known[1] != 1.0 else factor
        return original(self, snapshot, kept, probe=probe)

    patch.setattr(EffectiveWeights, "resolve", resolve)


def adapters_stay_when_they_are_unloaded(patch: Patch) -> None:
    def keep(self: EffectiveWeights, home: Any) -> None:
        home.owner.data = home.place.data
        self._store.adoptions.rename(home.place, home.owner)
        del self._homes[id(home.owner)]

    patch.setattr(EffectiveWeights, "_return", keep)


def adapters_scales_are_not_watched(patch: Patch) -> None:
    original = watching.AdapterWatch.freeze

    def freeze(self: watching.AdapterWatch) -> None:
        self._scales.clear()
        original(self)

    patch.setattr(watching.AdapterWatch, "freeze", freeze)


def adapters_weights_are_not_watched(patch: Patch) -> None:
    original = watching.AdapterWatch.freeze

    def freeze(self: watching.AdapterWatch) -> None:
        self.tensors.clear()
        original(self)

    patch.setattr(watching.AdapterWatch, "freeze", freeze)


def writes_under_an_adapter_are_not_counted(patch: Patch) -> None:
    patch.setattr("rewriter.runtime.effective.version", lambda _: 0)


def arguments_are_written_to(patch: Patch) -> None:
    original = program.Program.run

    def run(self: program.Program, tensors: Sequence[torch.Tensor], *others: Any) -> Any:
        results = original(self, tensors, *others)
        tensors[0].data.mul_(2)
        return results

    patch.setattr(program.Program, "run", run)


def hoisted_values_are_never_renewed(patch: Patch) -> None:
    patch.setattr(Replay, "_stamp", lambda *_: ())


def recordings_outlive_the_weights_they_read(patch: Patch) -> None:
    class Same:
        def __ne__(self, _: object) -> bool:
            return False

    patch.setattr(CudaGraphRunner, "_pointers", property(lambda _: Same(), lambda *_: None), raising=False)


def results_lie_where_the_next_ones_will(patch: Patch) -> None:
    original = Replay.__call__

    def replay(self: Replay, *given: Any) -> Any:
        original(self, *given)
        return tuple(self._results)

    patch.setattr(Replay, "__call__", replay)


FAULTS: tuple[Callable[[Patch], None], ...] = (
    prepared_weights_are_never_renewed,
    uncounted_writes_are_not_looked_for,
    attributes_are_not_watched,
    one_graph_serves_every_state,
    weights_that_move_are_not_followed,
    wanted_gradients_are_not_noticed,
    a_number_stays_what_it_was_first,
    the_first_scale_of_a_call_stays,
    adapters_stay_when_they_are_unloaded,
    arguments_are_written_to,
)
# These take more of the sequences, and so long that they are left to --thorough.
LATE: tuple[Callable[[Patch], None], ...] = (
    adapters_scales_are_not_watched,
    adapters_weights_are_not_watched,
    writes_under_an_adapter_are_not_counted,
)
RECORDED: tuple[Callable[[Patch], None], ...] = (
    hoisted_values_are_never_renewed,
    recordings_outlive_the_weights_they_read,
    results_lie_where_the_next_ones_will,
)


@pytest.mark.parametrize("plant", [*FAULTS, *LATE, *RECORDED], ids=lambda plant: plant.__name__.replace("_", " "))
def test_a_fault_is_found(plant: Callable[[Patch], None], monkeypatch: Patch, request: pytest.FixtureRequest) -> None:
    if plant in LATE and not request.config.getoption("--thorough"):
        pytest.skip("only with --thorough")
    plant(monkeypatch)
    rules = ("default",)
    if plant in RECORDED:
        monkeypatch.setattr(building, "_runner", recorded_runner)
        rules = RULES
    with pytest.raises(AssertionError):
        follow(PLANTED, rules)

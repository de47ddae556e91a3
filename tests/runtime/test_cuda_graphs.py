"""The bookkeeping of replays. A recording is played here by calling the function again, so that no GPU is needed."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewriter import torch_ir
from rewriter.graph.conditions import Target
from rewriter.runtime import building, cuda_graphs
from rewriter.runtime.cuda_graphs import CudaGraphRunner, launching

TEXT = """
graph(%x : Tensor, %text : Tensor, %scale : Tensor, %w : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %k : Tensor = aten::linear(%text, %w, %none)
  %a : Tensor = aten::mul(%x, %scale)
  %y : Tensor = aten::add(%a, %k, %one)
  return (%y)
"""


class Recorder:
    """Plays a recording by calling the function again and leaving the results where they were at first."""

    def __init__(self) -> None:
        self.recordings = self.plays = 0

    def __call__(self, function: Callable[[], tuple[torch.Tensor, ...]]) -> Any:
        self.recordings += 1
        results = function()

        def play() -> None:
            self.plays += 1
            for held, fresh in zip(results, function(), strict=True):
                held.copy_(fresh)

        return play, results


class Reader:
    """As on a GPU: what the host reads while it records is no longer looked at."""

    def __call__(self, function: Callable[[], tuple[torch.Tensor, ...]]) -> Any:
        return (lambda: None), function()


ROWS = """
graph(%x : Tensor, %count : Tensor, %table : Tensor):
  %zero : int = prim::Constant[value=0]()
  %one : int = prim::Constant[value=1]()
  %none : NoneType = prim::Constant()
  %until : int = aten::Int(%count)
  %rows : Tensor = aten::slice(%table, %zero, %zero, %until, %one)
  %y : Tensor = aten::sum(%rows, %none)
  return (%y)
"""


def test_an_integer_that_the_host_reads_belongs_to_a_recording() -> None:
    runner = CudaGraphRunner(torch_ir.parse_graph(ROWS), record=Reader(), pays=lambda *_: True, refusal=lambda *_: None)
    x, table = torch.ones(1), torch.arange(9.0)
    for count in (1, 2, 3, 4, 5, 6):
        for _ in range(5):
            assert runner([x, torch.tensor(count), table], [])[0] == sum(range(count))
    assert runner.replays == 6


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def runner(recorder: Recorder) -> CudaGraphRunner:
    return CudaGraphRunner(torch_ir.parse_graph(TEXT), record=recorder, pays=lambda *_: True, refusal=lambda *_: None)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def expected(x: torch.Tensor, text: torch.Tensor, scale: float, w: torch.Tensor) -> torch.Tensor:
    return x * scale + text @ w.T


def test_what_is_recorded_in_inference_mode_serves_outside_of_it(runner: CudaGraphRunner) -> None:
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    for mode in (True, True, True, True, False, False, True):
        x = torch.randn(3, 4)
        with torch.inference_mode(mode):
            result = runner([x, text, number(0.5)], [w])[0]
        torch.testing.assert_close(result, expected(x, text, 0.5, w))
    assert (runner.replays, runner.reasons) == (1, [])


def test_a_profiler_can_have_the_kernels_launched(runner: CudaGraphRunner, recorder: Recorder) -> None:
    x, text, w = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4, 4)
    for _ in range(4):
        runner([x, text, number(0.5)], [w])
    plays = recorder.plays
    with launching():
        result = runner([x, text, number(0.5)], [w])[0]
    torch.testing.assert_close(result, expected(x, text, 0.5, w))
    assert recorder.plays == plays
    runner([x, text, number(0.5)], [w])
    assert recorder.plays == plays + 1


def test_a_call_on_copies_does_not_hide_what_stays_the_same(runner: CudaGraphRunner, recorder: Recorder) -> None:
    # As when a call is compared with eager before the same size comes again.
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    for copied in (True, True, False, False, False):
        given = text.clone() if copied else text
        x = torch.randn(3, 4)
        torch.testing.assert_close(runner([x, given, number(0.5)], [w])[0], expected(x, text, 0.5, w))
    (entry,) = runner._entries.values()
    assert recorder.recordings == 1
    assert entry.replay is not None
    assert entry.replay.hoisted == 1


def test_steps_of_a_loop_are_replayed_from_the_third_on(runner: CudaGraphRunner, recorder: Recorder):
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    results = []
    for _ in range(5):
        x = torch.randn(3, 4)
        results.append((runner([x, text, number(0.5)], [w])[0], expected(x, text, 0.5, w)))
    assert (recorder.recordings, runner.replays) == (1, 1)
    # Results of earlier steps stay as they were.
    for found, wanted in results:
        torch.testing.assert_close(found, wanted)


def test_what_stays_the_same_is_computed_once_and_again_when_it_changes(runner: CudaGraphRunner):
    text, w = torch.randn(3, 4), torch.randn(4, 4)

    def step() -> None:
        x = torch.randn(3, 4)
        torch.testing.assert_close(runner([x, text, number(0.5)], [w])[0], expected(x, text, 0.5, w))

    for _ in range(3):
        step()
    entry = next(iter(runner._entries.values()))
    assert entry.replay is not None
    assert entry.replay.hoisted == 1
    text = torch.randn(3, 4)
    step()
    text.mul_(2)
    step()
    w.add_(1)
    step()
    assert runner.replays == 1


def test_a_sample_written_behind_the_back_of_torch_is_seen(runner: CudaGraphRunner):
    text, w, x = torch.randn(3, 4), torch.randn(4, 4), torch.randn(3, 4)
    for _ in range(5):
        x.data.add_(1)
        torch.testing.assert_close(runner([x, text, number(0.5)], [w])[0], expected(x, text, 0.5, w))
    assert runner.replays == 1


def test_a_write_that_leaves_no_trace_is_seen_by_the_state(runner: CudaGraphRunner):
    text, w = torch.randn(3, 4), torch.nn.Parameter(torch.randn(4, 4), requires_grad=False)
    for state in (1, 1, 1, 1, 2):
        if state == 2:
            w.data.add_(1)
        x = torch.randn(3, 4)
        torch.testing.assert_close(runner([x, text, number(0.5)], [w], state)[0], expected(x, text, 0.5, w))


def test_a_recording_made_in_inference_mode_serves_outside_of_it(runner: CudaGraphRunner, recorder: Recorder):
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    for inference in (True, True, True, True, False, True, False):
        x = torch.randn(3, 4)
        with torch.inference_mode(inference), torch.no_grad():
            torch.testing.assert_close(runner([x, text, number(0.5)], [w])[0], expected(x, text, 0.5, w))
    assert (recorder.recordings, runner.replays) == (1, 1)


def test_a_number_that_changes_takes_effect(runner: CudaGraphRunner, recorder: Recorder):
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    for scale in (0.5, 0.5, 0.5, 0.5, 0.7, 0.7, 0.7, 0.7, 0.5, *(index / 100 for index in range(20))):
        x = torch.randn(3, 4)
        torch.testing.assert_close(runner([x, text, number(scale)], [w])[0], expected(x, text, scale, w))
    assert recorder.recordings == 2


def test_weights_that_move_are_recorded_anew(runner: CudaGraphRunner, recorder: Recorder):
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    for _ in range(4):
        runner([torch.randn(3, 4), text, number(1.0)], [w])
    other, x = torch.randn(4, 4), torch.randn(3, 4)
    for _ in range(3):
        torch.testing.assert_close(runner([x, text, number(1.0)], [other])[0], expected(x, text, 1.0, other))
    assert recorder.recordings == 2


def test_only_so_many_extents_are_kept(runner: CudaGraphRunner, recorder: Recorder):
    w = torch.randn(4, 4)
    for rows in range(1, 13):
        for _ in range(4):
            x, text = torch.randn(rows, 4), torch.randn(rows, 4)
            torch.testing.assert_close(runner([x, text, number(1.0)], [w])[0], expected(x, text, 1.0, w))
    assert recorder.recordings == 12
    assert runner.replays == 8


def test_one_call_of_new_extents_is_not_worth_a_recording(runner: CudaGraphRunner, recorder: Recorder):
    for rows in range(1, 5):
        runner([torch.randn(rows, 4), torch.randn(rows, 4), number(1.0)], [torch.randn(4, 4)])
    assert not recorder.recordings


def test_the_sample_is_never_taken_to_stay_the_same(runner: CudaGraphRunner):
    x, text, w, one = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4, 4), number(1.0)
    for _ in range(4):
        runner([x, text, one], [w])
    entry = next(iter(runner._entries.values()))
    assert entry.replay is not None
    assert entry.replay.hoisted == 1
    x.data.add_(1)
    torch.testing.assert_close(runner([x, text, one], [w])[0], expected(x, text, 1.0, w))


def test_a_replay_with_another_result_is_not_used():
    def wrong(function: Callable[[], tuple[torch.Tensor, ...]]) -> Any:
        results = function()
        return (lambda: results[0].zero_()), results

    runner = CudaGraphRunner(torch_ir.parse_graph(TEXT), record=wrong, pays=lambda *_: True, refusal=lambda *_: None)
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    for _ in range(4):
        x = torch.randn(3, 4)
        torch.testing.assert_close(runner([x, text, number(2.0)], [w])[0], expected(x, text, 2.0, w))
    assert runner.replays == 0
    assert "does not give what launching the kernels gives" in runner.reasons[0]


@pytest.mark.parametrize("failure", [RuntimeError("operation not permitted when stream is capturing"), MemoryError()])
def test_a_failed_recording_only_costs_its_time(failure: Exception):
    def fails(_: Any) -> Any:
        raise RuntimeError(*failure.args)

    runner = CudaGraphRunner(torch_ir.parse_graph(TEXT), record=fails, pays=lambda *_: True, refusal=lambda *_: None)
    text, w = torch.randn(3, 4), torch.randn(4, 4)
    for _ in range(3):
        x = torch.randn(3, 4)
        torch.testing.assert_close(runner([x, text, number(2.0)], [w])[0], expected(x, text, 2.0, w))
    assert runner.reasons == [str(failure) or "RuntimeError"]


def test_a_replay_that_does_not_pay_is_dropped(recorder: Recorder):
    runner = CudaGraphRunner(
        torch_ir.parse_graph(TEXT), record=recorder, pays=lambda *_: False, refusal=lambda *_: None
    )
    for _ in range(4):
        runner([torch.randn(3, 4), torch.randn(3, 4), number(2.0)], [torch.randn(4, 4)])
    w = torch.randn(4, 4)
    for _ in range(4):
        runner([torch.randn(3, 4), torch.randn(3, 4), number(2.0)], [w])
    assert (runner.replays, recorder.recordings) == (0, 1)


def test_a_freed_input_is_not_taken_for_a_new_one_at_its_place(runner: CudaGraphRunner):
    w = torch.randn(4, 4)
    for _ in range(6):
        # Each text may lie where the one before lay.
        x, text = torch.randn(3, 4), torch.randn(3, 4)
        torch.testing.assert_close(runner([x, text, number(1.0)], [w])[0], expected(x, text, 1.0, w))
        del x, text
        gc.collect()


def test_a_graph_that_draws_random_numbers_is_launched(recorder: Recorder):
    text = TEXT.replace("aten::mul(%x, %scale)", "aten::rand_like(%x, %none, %none, %none, %none, %none)")
    runner = CudaGraphRunner(torch_ir.parse_graph(text), record=recorder)
    for _ in range(3):
        runner([torch.randn(3, 4), torch.randn(3, 4), number(1.0)], [torch.randn(4, 4)])
    assert not recorder.recordings
    assert runner.reasons == ["it draws random numbers"]


def test_what_is_refused_is_launched_and_said(recorder: Recorder):
    runner = CudaGraphRunner(torch_ir.parse_graph(TEXT), record=recorder, refusal=lambda *_: "it is too large")
    w = torch.randn(4, 4)
    for _ in range(4):
        runner([torch.randn(3, 4), torch.randn(3, 4), number(2.0)], [w])
    assert not recorder.recordings
    assert runner.reasons == ["it is too large"]


def test_missing_kernels_stand_in_the_report_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rewriter.ops.providers.load", lambda: {"cuda": "BuildError: nvcc was not found"})
    assert building._missing(Target(device="cuda", sm=90)) == (
        "without the kernels of cuda: BuildError: nvcc was not found",
    )
    assert building._missing(Target(device="cpu")) == ()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("in a graph: CUDA out of memory. Tried to allocate")]
)
def test_where_memory_runs_out_other_recordings_are_given_up(error: Exception) -> None:
    class Short(Recorder):
        failed = False

        def __call__(self, function: Any) -> Any:
            if self.recordings and not self.failed:
                self.failed = True
                raise error
            return super().__call__(function)

    recorder = Short()
    runner = CudaGraphRunner(torch_ir.parse_graph(TEXT), record=recorder, pays=lambda *_: True, refusal=lambda *_: None)
    w = torch.randn(4, 4)
    for rows in (2, 3):
        text = torch.randn(rows, 4)
        for _ in range(4):
            x = torch.randn(rows, 4)
            (y,) = runner([x, text, number(2.0)], [w])
            torch.testing.assert_close(y, expected(x, text, 2.0, w))
    assert recorder.failed
    assert (runner.replays, runner.reasons) == (1, [])


def test_where_memory_runs_out_recordings_of_other_networks_are_given_up() -> None:
    w = torch.randn(4, 4)

    def calls(runner: CudaGraphRunner) -> None:
        for _ in range(4):
            x, text = torch.randn(3, 4), torch.randn(3, 4)
            (y,) = runner([x, text, number(2.0)], [w])
            torch.testing.assert_close(y, expected(x, text, 2.0, w))

    graph = torch_ir.parse_graph(TEXT)
    first = CudaGraphRunner(graph, record=Recorder(), pays=lambda *_: True, refusal=lambda *_: None)
    calls(first)
    assert first.replays == 1

    def short(function: Any) -> Any:
        if first.replays:
            raise torch.OutOfMemoryError("no room")
        return Recorder()(function)

    second = CudaGraphRunner(graph, record=short, pays=lambda *_: True, refusal=lambda *_: None)
    calls(second)
    assert (first.replays, second.replays) == (0, 1)
    calls(first)
    assert (first.replays, first.reasons) == (1, [])


@pytest.mark.parametrize(
    ("in_time", "moving", "held", "refusal"),
    [
        (True, False, 2, None),
        (True, False, 4, "a recording would keep 4.0 of the 8.0 GiB that are free, and the host launches the kernels"),
        (True, True, 2, "the weights move between calls, and the host launches the kernels"),
        (False, True, 4, None),
    ],
)
def test_a_long_call_is_recorded_where_there_is_room_and_weights_stay(
    monkeypatch: pytest.MonkeyPatch, in_time: bool, moving: bool, held: int, refusal: str | None
) -> None:
    """The call needs 2 or 4 GiB beside its weights; 8 are free with them given back."""
    reserved = [10]

    def launched(function: Callable[[], Any]) -> tuple[bool, float]:
        function()
        return in_time, 0.1

    monkeypatch.setattr("rewriter.measure.replay.launched_in_time", launched)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved[0] << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((18 - reserved[0]) << 30, 80 << 30))
    reason = cuda_graphs._refusal(lambda: reserved.append(reserved.pop() + held), moving)
    assert reason == (refusal and f"{refusal} in time")


def test_weights_that_keep_moving_are_told_from_those_that_settle(recorder: Recorder) -> None:
    seen: list[bool] = []

    def refusal(_: object, moving: bool) -> str | None:
        seen.append(moving)
        return None

    runner = CudaGraphRunner(torch_ir.parse_graph(TEXT), record=recorder, pays=lambda *_: True, refusal=refusal)
    text = torch.randn(3, 4)
    places = []
    for _ in range(5):
        places.append(torch.randn(4, 4))
        for _ in range(4):
            x = torch.randn(3, 4)
            (y,) = runner([x, text, number(2.0)], [places[-1]])
            torch.testing.assert_close(y, expected(x, text, 2.0, places[-1]))
    assert seen == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("replay", "launch", "pays"), [(100, 101, True), (101, 100, True), (110, 100, False), (2, 3, True), (3, 2, False)]
)
def test_a_long_replay_is_kept_unless_it_is_slower(
    monkeypatch: pytest.MonkeyPatch, replay: int, launch: int, pays: bool
) -> None:
    """Milliseconds. It spares the host in any case."""
    monkeypatch.setattr(cuda_graphs, "_seconds", lambda call: call() * 1e-3)
    assert cuda_graphs._replay_pays(lambda: replay, lambda: launch) == pays


def test_memory_that_runs_out_with_nothing_to_give_up_is_the_callers_to_know() -> None:
    def fails(_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    runner = CudaGraphRunner(torch_ir.parse_graph(TEXT), record=fails, refusal=lambda *_: None)
    x, text, w = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4, 4)
    for _ in range(4):
        runner([x, text, number(2.0)], [w])
    assert (runner.replays, runner.reasons) == (0, ["no room"])

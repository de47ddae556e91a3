"""Convolutions by graphs of cuDNN: what the package is told, by one that computes with torch in its place."""

from __future__ import annotations

import atexit
import gc
import itertools
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_calls import OnGpu
from cudnn_package import installed

from rewriter.ops import OPS, conv_cudnn, cudnn_graphs
from rewriter.ops.conv_cudnn import Convolutions

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "silu")
# A provider, and what is called at the interpreter's exit.
Entered = tuple[Convolutions, list[Callable[[], None]]]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """`cudnn`, on a GPU that is a CPU."""
    return installed(monkeypatch)


def operands(
    rank: int, dtype: torch.dtype, *, size: int = 3, step: int = 1, gap: int = 1
) -> tuple[list[torch.Tensor], list[Any]]:
    """x, weight, bias and addend with their channels innermost, and the geometry but for the activation."""
    generator = torch.Generator().manual_seed(rank * 10 + size)
    memory = torch.channels_last if rank == 2 else torch.channels_last_3d
    shapes = [(2, 6, *(7, 8, 5)[:rank]), (10, 6, *(size,) * rank)]
    x, weight = (torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=memory) for shape in shapes)
    geometry = [[step] * rank, [1] * rank, [gap] * rank, False, [0] * rank, 1]
    shape = F.conv2d if rank == 2 else F.conv3d
    result = shape(x.float(), weight.float(), None, *geometry[:3])
    addend = torch.randn(result.shape, generator=generator).to(dtype).contiguous(memory_format=memory)
    return [x, weight, torch.randn(10, generator=generator).to(dtype), addend], geometry


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "step", "gap"), [(3, 1, 1), (1, 1, 1), (3, 2, 1), (2, 1, 2)])
def test_a_graph_is_the_op(
    package: types.ModuleType, rank: int, dtype: torch.dtype, size: int, step: int, gap: int
) -> None:
    convolutions = Convolutions(package)
    (x, weight, bias, addend), geometry = operands(rank, dtype, size=size, step=step, gap=gap)
    for given, activation in itertools.product((bias, None), ACTIVATIONS):
        call = (x, weight, given)
        found = convolutions.conv_act(*call, *geometry, activation)
        exact = OPS["conv_act"].reference(
            *(each if each is None else each.double() for each in call), *geometry, activation
        )
        torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-6)
        assert found.stride() == OPS["conv_act"].reference(*call, *geometry, activation).stride()
        found = convolutions.conv_add(*call, addend, *geometry, activation)
        wide = (each if each is None else each.double() for each in (*call, addend))
        torch.testing.assert_close(
            found.double(), OPS["conv_add"].reference(*wide, *geometry, activation), rtol=1e-2, atol=1e-6
        )


def test_a_graph_is_made_once_for_a_thread_and_each_plan_built_once(package: types.ModuleType) -> None:
    convolutions = Convolutions(package)
    (x, weight, bias, _), geometry = operands(2, torch.float16)
    call = (x, weight, bias, *geometry, "silu")
    assert convolutions.act_configs(*call) == [{"plan": 0}, {"plan": 1}, {"plan": 2}]
    for plan in (0, 1, 0):
        convolutions.conv_act(*call, plan=plan)
    (graph,) = package.pygraph.made
    assert graph.done == ["validate", "build_operation_graph", ["A", "B"], 0, 1]
    thread = threading.Thread(target=convolutions.conv_act, args=call)
    thread.start()
    thread.join()
    first, second = package.pygraph.made
    assert first.handle is not second.handle


def test_what_cudnn_has_no_plan_for_is_no_candidate(package: types.ModuleType) -> None:
    package.pygraph.supported = False
    convolutions = Convolutions(package)
    (x, weight, bias, addend), geometry = operands(2, torch.float16)
    assert convolutions.act_configs(x, weight, bias, *geometry, "none") == []
    assert convolutions.add_configs(x, weight, bias, addend, *geometry, "none") == []
    given = [each.as_subclass(OnGpu) for each in (x, weight, bias, addend)]
    assert convolutions.supports_act(*given[:3], *geometry, "none") == "cuDNN has no plan for it"
    assert convolutions.supports_add(*given, *geometry, "none") == "cuDNN has no plan for it"
    # One that has been asked for in vain is not asked for again.
    assert len(package.pygraph.made) == 2
    with pytest.raises(RuntimeError, match="cuDNN has no graph for it: LookupError: no engine"):
        convolutions.conv_act(x, weight, bias, *geometry, "none")


def test_a_plan_that_cannot_be_built_says_so(package: types.ModuleType) -> None:
    package.pygraph.broken = (1,)
    convolutions = Convolutions(package)
    (x, weight, bias, _), geometry = operands(2, torch.float16)
    with pytest.raises(RuntimeError, match="cuDNN's plan 1 fails: LookupError: does not compile"):
        convolutions.conv_act(x, weight, bias, *geometry, "none", plan=1)
    assert convolutions.conv_act(x, weight, bias, *geometry, "none", plan=2).isfinite().all()


def test_memory_that_runs_out_is_no_fault_of_a_plan(package: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions = Convolutions(package)
    (x, weight, bias, _), geometry = operands(2, torch.float16)
    empty = torch.empty

    def full(*shape: Any, **given: Any) -> torch.Tensor:
        if given.get("dtype") is torch.uint8:
            raise torch.OutOfMemoryError
        return empty(*shape, **given)

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):
        convolutions.conv_act(x, weight, bias, *geometry, "none")


def beside_a_line(tensor: torch.Tensor) -> torch.Tensor:
    """The same, one element after a multiple of 16 bytes."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": lambda x: x.float()}, "other than one dtype"),
        ({"x": lambda x: x.contiguous()}, "the channels are not innermost"),
        ({"weight": lambda w: w[:, :3]}, "only plain convolutions"),
        ({"bias": lambda b: b[:4]}, "the bias is not a dense vector"),
        ({"x": beside_a_line}, "operands that do not start at a multiple of 16 bytes"),
        ({"weight": beside_a_line}, "operands that do not start at a multiple of 16 bytes"),
        ({"bias": beside_a_line}, "operands that do not start at a multiple of 16 bytes"),
        ({"addend": beside_a_line}, "the addend does not start at a multiple of 16 bytes"),
        ({"addend": lambda a: a[:1]}, "the addend broadcasts"),
        ({"addend": lambda a: a.contiguous()}, "the addend's channels are not innermost"),
        ({3: [1]}, "a number for all directions"),
        ({6: True}, "only plain convolutions"),
        ({8: 2}, "only plain convolutions"),
        ({9: "gelu"}, "no epilogue for gelu"),
        ({4: [-4, -4]}, "an empty result"),
    ],
)
def test_what_it_does_not_take(change: dict[Any, Any], reason: str) -> None:
    names = ("x", "weight", "bias", "addend")
    tensors, geometry = operands(2, torch.float16)
    given = [each.as_subclass(OnGpu) for each in tensors]
    assert conv_cudnn.takes_add(*given, *geometry, "relu") is None
    (place, value), *_ = change.items()
    call = [*geometry, "relu"]
    if place in names:
        index = names.index(place)
        given[index] = value(tensors[index]).as_subclass(OnGpu)
    else:
        call[place - 3] = value
    found = conv_cudnn.takes_add(*given, *call)
    assert found is not None
    assert reason in found
    assert conv_cudnn.takes_act(*tensors[:3], *geometry, "relu") == "the operands are not all on one CUDA device"


@pytest.fixture
def entered(package: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Entered:
    """As the provider's module does it."""
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    for op in ("conv_act", "conv_add"):
        # Taken out again afterwards.
        monkeypatch.setitem(OPS[op].providers, "cudnn", OPS[op].providers["torch"])
        del OPS[op].providers["cudnn"]
    assert cudnn_graphs.package() is package
    convolutions = Convolutions(package)
    conv_cudnn.enter(convolutions)
    return convolutions, at_exit


@pytest.mark.usefixtures("entered")
def test_it_serves_both_ops() -> None:
    assert all(OPS[op].providers["cudnn"].measured for op in ("conv_act", "conv_add"))


def test_no_graph_is_there_after_the_exit(package: types.ModuleType, entered: Entered) -> None:
    convolutions, at_exit = entered
    (x, weight, bias, addend), geometry = operands(2, torch.float16)
    convolutions.conv_act(x, weight, bias, *geometry, "none")
    convolutions.add_configs(x, weight, bias, addend, *geometry, "none")
    graphs = weakref.WeakSet(package.pygraph.made)
    package.pygraph.made.clear()
    gc.collect()
    assert len(graphs) == 2
    for each in at_exit:
        each()
    gc.collect()
    assert not graphs


def test_why_the_package_is_missing(package: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    package.__version__ = "1.14.1"
    with pytest.raises(ImportError, match=r"cudnn 1\.14\.1; expected 1\.32\.0 or newer"):
        cudnn_graphs.package()
    package.__version__ = "1.33.0"

    def lost() -> int:
        raise OSError("libcudnn.so.9: not found")

    package.backend_version = lost
    with pytest.raises(ImportError, match=r"cudnn does not load: OSError: libcudnn\.so\.9: not found"):
        cudnn_graphs.package()
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with pytest.raises(ImportError, match=r"not installed"):
        cudnn_graphs.package()


def _usable() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        cudnn_graphs.package()
    except ImportError:
        return False
    return True


@pytest.mark.skipif(not _usable(), reason="needs a GPU and NVIDIA's package cudnn")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("filters", "step"), [(320, 1), (4, 1), (640, 2)])
def test_on_a_gpu(filters: int, step: int, activation: str) -> None:
    convolutions = Convolutions(cudnn_graphs.package())
    memory = torch.channels_last
    x, weight = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1))
        .to("cuda", torch.float16)
        .contiguous(memory_format=memory)
        for shape in ((2, 320, 32, 32), (filters, 320, 3, 3))
    )
    weight = weight * 0.02
    bias = torch.randn(filters).to("cuda", torch.float16)
    geometry = ([step, step], [1, 1], [1, 1], False, [0, 0], 1, activation)
    plain = OPS["conv_act"].reference(x, weight, bias, *geometry)
    addend = torch.randn_like(plain)
    configs = convolutions.add_configs(x, weight, bias, addend, *geometry)
    assert configs
    exact = OPS["conv_add"].reference(*(each.double() for each in (x, weight, bias, addend)), *geometry)
    for config in configs:
        found = convolutions.conv_add(x, weight, bias, addend, *geometry, **config)
        assert found.stride() == plain.stride()
        assert float((found.double() - exact).norm() / exact.norm()) < 1e-3


_CALLS = """
import torch
from rewriter.measure.recordings import beside, record
from rewriter.ops import OPS, conv_cudnn
x, weight = (torch.zeros(shape, dtype=torch.half, device="cuda").contiguous(memory_format=torch.channels_last)
             for shape in ((2, 64, 16, 16), (64, 64, 3, 3)))
convolution = OPS["conv_act"].providers["cudnn"].fn
call = x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
with beside():
    convolution(*call, "none")
recording, _ = record(lambda: convolution(*call, "none"))
recording.replay()
try:
    convolution(*call, "none", plan=10**6)
except RuntimeError as error:
    kept = error
"""


@pytest.mark.skipif(not _usable(), reason="needs a GPU and NVIDIA's package cudnn")
def test_on_a_gpu_nothing_is_printed_at_the_exit() -> None:
    done = subprocess.run([sys.executable, "-c", _CALLS], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2 or not _usable(), reason="needs two GPUs and NVIDIA's package cudnn")
def test_on_a_gpu_that_is_not_the_current_one() -> None:
    convolutions = Convolutions(cudnn_graphs.package())
    (x, weight, bias, _), geometry = operands(2, torch.float16)
    call = [each.to("cuda:1") for each in (x, weight, bias)]
    found = convolutions.conv_act(*call, *geometry, "none")
    exact = OPS["conv_act"].reference(*(each.double() for each in call), *geometry, "none")
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)

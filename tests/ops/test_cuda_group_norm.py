"""What is decided before the kernel of the CUDA group norms runs: views, launches, refusals. A stand-in runs then."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
import torch

from rewriter.ops import OPS
from rewriter.ops.cuda import build
from rewriter.ops.cuda import group_norm as cuda

GROUPS, EPS = 4, 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SOURCE = (build.sources_folder() / "group_norm.cu").read_text(encoding="utf-8")


class _OnGpu(torch.Tensor):
    """A CPU tensor that says that it is on a GPU."""

    is_cuda = True


def _on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(_OnGpu)


def _draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _nhwc(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[N, C, ...] with channels innermost."""
    return _draw(shape[0], *shape[2:], shape[1], dtype=dtype).movedim(-1, 1)


def _frames(n: int, c: int, frames: int, *extents: int) -> torch.Tensor:
    """[n, c, frames, ...], each frame with channels innermost, as a video model lays them out."""
    return _draw(n, frames, *extents, c).movedim(-1, 1)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1])


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A GPU as far as its properties are asked for."""
    found = types.SimpleNamespace(multi_processor_count=132, major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: found)
    return found


# Views of 16 bytes.


@pytest.mark.parametrize(
    "x",
    [
        _nhwc(2, 8, 3, 5),
        _nhwc(2, 8, 7),
        _nhwc(1, 8, 3, 1),
        _nhwc(2, 8, 1, 1),
        _frames(2, 8, 3, 4, 5),
        _nhwc(2, 24, 3, 5)[:, 8:16],
        _nhwc(4, 8, 3, 5)[::2],
        _nhwc(2, 8, 6, 5)[:, :, ::2, :1],
        _nhwc(1, 8, 3, 5).expand(3, -1, -1, -1),
    ],
    ids=["image", "tokens", "column", "pixel", "frames", "channels", "samples", "every-second-row", "expanded"],
)
def test_tokens_are_the_rows_without_a_copy(x: torch.Tensor) -> None:
    tokens = cuda._tokens(x)
    assert tokens is not None
    assert torch.equal(tokens, _rows(x))
    assert tokens.data_ptr() == x.data_ptr()
    assert tokens.stride(2) == 1


@pytest.mark.parametrize(
    "x",
    [
        _draw(2, 8, 3, 5),
        _nhwc(2, 8, 3, 5)[..., 1:4],
        _nhwc(2, 8, 3, 5).transpose(2, 3),
        _nhwc(2, 6, 3, 5),
        _nhwc(2, 24, 3, 5)[:, 1:9],
        _nhwc(2, 8, 3, 1).expand(-1, -1, -1, 5),
        _nhwc(2, 8, 1, 1).expand(-1, -1, 3, 5),
        torch.as_strided(_draw(300), (2, 8, 3, 5), (123, 1, 40, 8)),
    ],
    ids=["nchw", "columns", "turned", "24-bytes", "offset", "repeated-column", "repeated-pixel", "odd-samples"],
)
def test_no_tokens_where_rows_have_no_view_of_whole_vectors(x: torch.Tensor) -> None:
    assert cuda._tokens(x) is None


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float32, 4), (torch.float16, 8), (torch.bfloat16, 8)])
def test_a_vector_has_16_bytes(dtype: torch.dtype, channels: int) -> None:
    assert cuda._tokens(_nhwc(2, channels, 3, 3, dtype=dtype)) is not None
    assert cuda._tokens(_nhwc(2, channels // 2, 3, 3, dtype=dtype)) is None


@pytest.mark.parametrize(
    "shape", [(2, 8, 6, 5), (1, 8, 6, 5), (2, 8, 6, 1), (1, 8, 6, 1), (2, 8, 1, 1), (1, 8, 1, 1)], ids=str
)
def test_addend_by_runs_of_rows(shape: tuple[int, ...]) -> None:
    x, addend = _nhwc(2, 8, 6, 5), _nhwc(*shape)
    parts = cuda._added(addend, x)
    assert parts is not None
    spread = parts.repeat_interleave(30 // parts.shape[1], dim=1).expand(2, -1, -1)
    assert torch.equal(spread, _rows(addend.expand_as(x)))


@pytest.mark.parametrize(
    "addend",
    [_nhwc(2, 8, 1, 5), _nhwc(2, 1, 6, 5), _nhwc(8, 6, 5), _draw(2, 8, 6, 5), _nhwc(2, 8, 1, 1).expand(-1, -1, 6, 5)],
    ids=["columns", "one-channel", "rank-3", "nchw", "expanded"],
)
def test_addend_that_varies_otherwise(addend: torch.Tensor) -> None:
    assert cuda._added(addend, _nhwc(2, 8, 6, 5)) is None


# Launches.


def test_chunks_are_whole_groups_and_whole_vectors() -> None:
    assert cuda._widths(_nhwc(1, 320, 1, 1, dtype=torch.float16), 32) == [40, 80, 160, 320]
    assert cuda._widths(_nhwc(1, 64, 1, 1, dtype=torch.float16), 32) == [8, 16, 32, 64]
    assert cuda._widths(_nhwc(1, 12, 1, 1), 4) == [12]
    assert cuda._widths(_nhwc(1, 12, 1, 1, dtype=torch.float16), 4) == []


def test_chunks_fit_a_block() -> None:
    # A thread for each vector of 8.
    most = 8 * cuda._THREADS
    wide = _nhwc(1, 2 * most, 1, 1, dtype=torch.float16)
    assert max(cuda._widths(wide, 2)) == most
    assert cuda._widths(wide, 1) == []
    groups = 2 * cuda._MOST_GROUPS
    many = _nhwc(1, 8 * groups, 1, 1, dtype=torch.float16)
    assert max(cuda._widths(many, groups)) == 8 * cuda._MOST_GROUPS


def test_limits_are_the_kernels() -> None:
    found = dict(re.findall(r"constexpr int (k\w+) = (\d+);", SOURCE))
    assert int(found["kThreads"]) == cuda._THREADS
    assert int(found["kMaxGroups"]) == cuda._MOST_GROUPS
    assert int(found["kMaxCluster"]) == max(cuda._CLUSTERS)


SHAPES = [
    (2, 320, 64, 64),
    (2, 1280, 8, 8),
    (2, 2560, 16, 16),
    (1, 128, 512, 512),
    (50, 320, 72, 128),
    (2, 32, 1, 1),
    (1, 64, 1, 3),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("major", [8, 9, 10])
def test_launches_fit_the_kernel(
    shape: tuple[int, ...], dtype: torch.dtype, major: int, gpu: types.SimpleNamespace
) -> None:
    gpu.major = major
    x = torch.empty_like(torch.empty(shape, dtype=dtype, device="meta"), memory_format=torch.channels_last)
    rows, size = shape[2] * shape[3], x.element_size()
    widths = cuda._widths(x, 32)
    configs = cuda._configs(x, 32) if widths else []
    assert 1 <= len(configs) <= 5 or not widths
    assert len({tuple(config.items()) for config in configs}) == len(configs)
    for config in configs:
        assert config["width"] in widths
        assert config["cluster"] in (0, 1, 2, 4, 8, 16)
        assert (config["splits"] > 0) == (config["cluster"] == 0)
        if config["cluster"]:
            assert -(-rows // config["cluster"]) * config["width"] * size < 227 << 10
    assert any(config["cluster"] == 0 for config in configs) or not widths
    if major == 8:
        assert all(config["cluster"] == 0 for config in configs)


def test_a_small_tensor_stays_in_shared_memory_and_fills_the_gpu(gpu: types.SimpleNamespace) -> None:
    x = _nhwc(2, 320, 32, 32, dtype=torch.float16)
    best = cuda._configs(x, 32)[0]
    assert best["cluster"]
    assert 0.5 < 2 * (320 // best["width"]) * best["cluster"] / 132 < 4
    gpu.multi_processor_count = 16
    small = cuda._configs(x, 32)[0]
    assert (320 // small["width"]) * small["cluster"] < (320 // best["width"]) * best["cluster"]


# Calls, with a stand-in for the kernel.


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Takes the operands in the order of the schema in csrc. Returns the calls."""
    schema = re.search(r'library\.def\(\s*"group_norm\((.*?)\) ->', re.sub(r'"\s*"', "", SOURCE), re.DOTALL)
    assert schema
    names = [parameter.split()[-1] for parameter in schema[1].split(",")]
    calls: list[dict[str, Any]] = []

    def group_norm(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        call = dict(zip(names, arguments, strict=True))
        calls.append(call)
        total = call["x"]
        if call["channel_bias"] is not None:
            total = total + call["channel_bias"]
        if call["addend"] is not None:
            total = total + call["addend"].repeat_interleave(total.shape[1] // call["addend"].shape[1], dim=1)
        y = torch.group_norm(total.movedim(2, 1), call["groups"], call["weight"], call["bias"], call["eps"])
        y = (torch.nn.functional.silu(y) if call["silu"] else y).movedim(1, 2).contiguous()
        return y, total.contiguous() if call["keep_sum"] else y

    monkeypatch.setattr(torch.ops, "rewriter_cuda", types.SimpleNamespace(group_norm=group_norm), raising=False)
    return calls


CALLS: list[tuple[str, tuple[torch.Tensor | None, ...]]] = [
    ("group_norm", ()),
    ("group_norm_silu", ()),
    ("add_group_norm", (_draw(8), None)),
    ("add_group_norm", (None, _nhwc(2, 8, 6, 5))),
    ("add_group_norm_silu", (_draw(8), _nhwc(2, 8, 1, 1))),
    ("sum_group_norm_silu", (_draw(8), _nhwc(1, 8, 6, 1))),
]


@pytest.mark.parametrize(("name", "more"), CALLS, ids=[f"{name}-{place}" for place, (name, _) in enumerate(CALLS)])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_call_gives_the_reference(
    name: str, more: tuple[torch.Tensor | None, ...], affine: bool, kernel: list[dict[str, Any]]
) -> None:
    weight, bias = (_draw(8) + 2, _draw(8) - 1) if affine else (None, None)
    arguments = (_nhwc(2, 8, 6, 5), *more, GROUPS, weight, bias, EPS)
    config = {"width": 4, "cluster": 2, "splits": 7}
    found = getattr(cuda, name)(*arguments, **config)
    expected = OPS[name].reference(*arguments)
    found, expected = ([each] if isinstance(each, torch.Tensor) else list(each) for each in (found, expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()
    (call,) = kernel
    assert {key: call[key] for key in config} == config
    # Nobody reads the sum of the others: the kernel need not write it.
    assert call["keep_sum"] == (len(found) == 2)


def test_without_a_config_the_best_guess_runs(kernel: list[dict[str, Any]]) -> None:
    x = _nhwc(2, 64, 8, 8)
    cuda.group_norm(x, 32, None, None, EPS)
    assert {key: kernel[0][key] for key in ("width", "cluster", "splits")} == cuda._configs(x, 32)[0]


# Refusals.

IMAGE = _nhwc(2, 32, 6, 5, dtype=torch.float16)
VECTOR = _draw(32, dtype=torch.float16)
PROMOTES, PARAMETER = "the sum promotes", "a parameter is of another dtype or not dense"
LAYOUT = "the channels are not innermost in memory"
ADDEND = "the addend broadcasts in another way, or its channels are not innermost in memory"


def _reason(x: torch.Tensor, channel_bias: Any, addend: Any, weight: Any, bias: Any, groups: int = 4) -> str | None:
    operands = [None if each is None else _on_gpu(each) for each in (x, channel_bias, addend, weight, bias)]
    return cuda._takes_sum(*operands[:3], groups, *operands[3:], EPS)


@pytest.mark.parametrize(
    ("x", "channel_bias", "addend", "weight", "reason"),
    [
        (IMAGE, VECTOR, IMAGE, VECTOR, None),
        (IMAGE, None, IMAGE[:, :, :1, :1], VECTOR.float(), None),
        (IMAGE.double(), None, None, None, "expected f16, bf16 or f32, found torch.float64"),
        (IMAGE, VECTOR.float(), None, None, PROMOTES),
        (IMAGE, None, IMAGE.float(), None, PROMOTES),
        (IMAGE, None, None, VECTOR.double(), PARAMETER),
        (IMAGE, None, None, VECTOR.bfloat16(), PARAMETER),
        (IMAGE, None, None, VECTOR.repeat(2)[::2], PARAMETER),
        (IMAGE, VECTOR.repeat(2)[::2], None, None, PARAMETER),
        (IMAGE.contiguous(), None, None, None, LAYOUT),
        (IMAGE[:, :30], None, None, None, LAYOUT),
        (IMAGE[:0], None, None, None, LAYOUT),
        (IMAGE[..., 1:4], None, None, None, LAYOUT),
        (IMAGE, None, IMAGE[:, :, :1], None, ADDEND),
        (IMAGE, None, IMAGE.contiguous(), None, ADDEND),
    ],
)
def test_takes_or_says_why_not(
    x: torch.Tensor, channel_bias: Any, addend: Any, weight: Any, reason: str | None
) -> None:
    assert _reason(x, channel_bias, addend, weight, None) == reason
    assert _reason(x, channel_bias, addend, None, weight) == reason


def test_groups_that_no_chunk_holds_whole() -> None:
    x = _nhwc(2, 24, 3, 3, dtype=torch.float16)
    assert _reason(x, None, None, None, None, groups=2) is None
    x = _nhwc(1, 8192, 2, 2, dtype=torch.float16)
    assert (
        _reason(x, None, None, None, None, groups=1) == "the channels cannot be shared out in whole groups of 16 bytes"
    )


def test_more_samples_than_a_grid_has() -> None:
    x = _nhwc(1, 8, 3, 3, dtype=torch.float16).expand(2**16, -1, -1, -1)
    assert _reason(x, None, None, None, None) == "too large"
    assert _reason(x[1:], None, None, None, None) is None


def test_operands_elsewhere() -> None:
    assert cuda._takes(IMAGE, 4, None, None, EPS) == "not on a GPU"
    elsewhere = "the operands are not all on one CUDA device"
    assert cuda._takes_sum(_on_gpu(IMAGE), None, IMAGE, 4, None, None, EPS) == elsewhere
    assert cuda._takes(_on_gpu(IMAGE), 4, VECTOR, None, EPS) == elsewhere
    assert cuda._takes(_on_gpu(IMAGE), 4, _on_gpu(VECTOR), _on_gpu(VECTOR), EPS) is None

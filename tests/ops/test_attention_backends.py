"""Attention by each of torch's own kernels: what they are given, what is left to torch, and what they give on a GPU."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_calls import (
    OF_BOTH,
    Operands,
    as_on_gpu,
    drawn,
    error,
    exact,
    heads_outside,
    kept_providers,
    sliced,
    swapped,
)
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from rewriter.measure.cache import TimingCache
from rewriter.measure.providers import ProviderChooser
from rewriter.ops import OPS, attention_backends, dispatch, providers
from rewriter.ops.attention_backends import BACKENDS, Backend, bias_of
from rewriter.ops.registry import REFERENCE
from rewriter.proof import code

EACH = pytest.mark.parametrize("name", BACKENDS)
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LAYOUTS = pytest.mark.parametrize("layout", [tuple, sliced, heads_outside], ids=["dense", "sliced", "heads-outside"])
ERROR = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-3}


def switches() -> tuple[bool, ...]:
    backends = torch.backends.cuda
    return (
        backends.flash_sdp_enabled(),
        backends.mem_efficient_sdp_enabled(),
        backends.cudnn_sdp_enabled(),
        backends.math_sdp_enabled(),
    )


class Calls(TorchDispatchMode):
    """Which attention kernels are called, with which keywords, and how torch's switches are then."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.switches: list[tuple[bool, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "attention" in func.__name__:
            names = [argument.name for argument in func._schema.arguments]
            self.found.append((func.__name__, {**dict(zip(names, args, strict=False)), **kwargs}))
            self.switches.append(switches())
        return func(*args, **kwargs)


@EACH
@LAYOUTS
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_is_called_and_its_result_laid_out_as_the_reference_has_it(
    name: str, layout: Callable[[Operands], Operands], causal: bool
) -> None:
    before = switches()
    operands = layout(drawn(2, 9, 9, 3, 40))
    given = layout(tuple(each.to("meta") for each in drawn(2, 9, 9, 3, 40)))
    with Calls() as calls:
        tokens = BACKENDS[name].tokens_first(*given, None, 0.3, causal)
        heads = BACKENDS[name].heads_first(*swapped(given), None, 0.3, causal)
    assert tokens.is_contiguous()
    assert heads.shape == (2, 3, 9, 40)
    assert heads.stride() == OPS["attention"].reference(*swapped(operands), None, 0.3, causal).stride()
    assert [called for called, _ in calls.found] == [f"_scaled_dot_product_{name}_attention.default"] * 2
    for _, keywords in calls.found:
        assert (keywords["scale"], keywords.get("is_causal", False)) == (0.3, causal)
        assert not keywords.get("dropout_p")
        assert not keywords.get("compute_log_sumexp")
        assert keywords["query"].shape == (2, 3, 9, 40)
        # Views of what came in: nothing was copied.
        assert keywords["query"].stride() == swapped(operands)[0].stride()
    assert {before, switches(), *calls.switches} == {before}


def by_math(kernel_name: str, **changes: Any) -> Backend:
    """With torch's kernel for CPUs, and without torch's own tests, for which there has to be a GPU."""

    def kernel(q: Any, k: Any, v: Any, bias: Any, scale: Any, causal: bool) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=scale)

    return dataclasses.replace(BACKENDS[kernel_name], kernel=kernel, **{"able": lambda _: True, **changes})


@LAYOUTS
@pytest.mark.parametrize("masked", ["no", "boolean", "added", "of keys"])
def test_operands_masks_and_scales_arrive(layout: Callable[[Operands], Operands], masked: str) -> None:
    operands = layout(drawn(2, 7, 7, 3, 24, dtype=torch.float32))
    generator = torch.Generator().manual_seed(1)
    mask = {
        "no": None,
        "boolean": torch.rand(2, 1, 7, 7, generator=generator) < 0.7,
        "added": torch.randn(7, 7, generator=generator),
        "of keys": torch.rand(2, 1, 1, 7, generator=generator) < 0.7,
    }[masked]
    wanted = exact(operands, mask, 0.3)
    backend = by_math("efficient")
    assert error(backend.tokens_first(*operands, mask, 0.3, False), wanted) < 1e-5
    assert error(backend.heads_first(*swapped(operands), mask, 0.3, False), wanted.transpose(1, 2)) < 1e-5


@pytest.mark.parametrize("tokens", [1, 7, 16, 32])
@pytest.mark.parametrize("kind", ["whole", "of keys", "of queries", "one of rank 2", "a column", "offset", "permuted"])
@pytest.mark.parametrize("boolean", [False, True])
def test_a_bias_is_the_mask_in_whole_vectors(tokens: int, kind: str, boolean: bool) -> None:
    q, k, _ = swapped(drawn(2, 5, tokens, 3, 8))
    shape = {"of keys": (2, 1, 1, tokens), "of queries": (1, 1, 5, 1), "one of rank 2": (5, tokens), "a column": (5, 1)}
    mask = torch.randn(shape.get(kind, (2, 3, 5, tokens)), generator=torch.Generator().manual_seed(2)).half()
    if kind == "offset":
        mask = torch.cat([torch.zeros(1).half(), mask.flatten()])[1:].view(mask.shape)
    if kind == "permuted":
        mask = mask.transpose(0, 3).contiguous().transpose(0, 3)
    wanted = mask
    if boolean:
        mask = mask > 0
        wanted = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).half()
    bias = bias_of(mask, q, k)
    assert bias.dtype == torch.float16
    assert torch.equal(bias, wanted.expand(2, 3, 5, tokens))
    assert bias.data_ptr() % 16 == 0
    assert tokens == 1 or bias.stride(3) == 1
    assert all(step % 16 == 0 for step in bias.stride()[:3])
    if kind == "of keys":
        assert bias.untyped_storage().nbytes() <= 2 * 2 * (tokens + 15)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[SDPBackend]:
    """What torch takes by itself: the last of these."""
    found = [SDPBackend.MATH]
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_, **__: found[-1].value)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    return found


@EACH
def test_what_torch_takes_by_itself_is_left_to_the_reference(name: str, chosen: list[SDPBackend]) -> None:
    backend = by_math(name)
    arguments = (*as_on_gpu(drawn(2, 9, 9, 3, 40)), None, 0.3, False)
    assert backend.supports_tokens(*arguments) is None
    assert backend.supports(*swapped(arguments[:3]), *arguments[3:]) is None
    chosen.append(backend.kind)
    assert backend.supports_tokens(*arguments) == "torch takes it by itself: the reference"


@pytest.mark.usefixtures("chosen")
@EACH
def test_torch_is_asked_about_the_call(name: str) -> None:
    asked = []

    def able(params: Any) -> bool:
        asked.append(params)
        return False

    q, k, v = as_on_gpu(drawn(2, 9, 9, 3, 40))
    assert by_math(name, able=able).supports_tokens(q, k, v, None, None, True) == "torch's own test of it says no"
    (params,) = asked
    assert params.query.shape == (2, 3, 9, 40)
    assert params.value.data_ptr() == v.data_ptr()
    assert (params.is_causal, params.dropout, params.enable_gqa, params.attn_mask) == (True, 0.0, False, None)
    # Its own answer without a GPU.
    assert BACKENDS[name].supports_tokens(q, k, v, None, None, True) == "torch's own test of it says no"


@pytest.mark.usefixtures("chosen")
@EACH
def test_refusals_of_all(name: str) -> None:
    q, k, v = as_on_gpu(drawn(2, 9, 11, 3, 16))
    backend = by_math(name)

    def refused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> str:
        return str(backend.supports_tokens(q, k, v, None, scale, False))

    assert refused(q, k, v) == "None"
    assert refused(*drawn(2, 9, 11, 3, 16)) == "not on one GPU"
    assert "one dtype" in refused(q, k, v.bfloat16())
    assert "one dtype" in refused(q.double(), k.double(), v.double())
    assert refused(q[0], k[0], v[0]) == "other than [B, S, H, D]"
    assert backend.supports(q[0], k[0], v[0], None, None, False) == "other than [B, H, S, D]"
    for others in ((k, v[:, :10]), (k[:1], v[:1]), (k[:, :, :2], v[:, :, :2]), (k[..., :8], v)):
        assert refused(q, *others) == "extents that do not fit each other"
    assert refused(q, k[:, :0], v[:, :0]) == "nothing to attend to"
    offset = torch.empty(k.numel() + 1, dtype=k.dtype).as_subclass(type(q))[1:].view(k.shape)
    odd_rows = torch.empty(2, 11, 3, 17, dtype=k.dtype).as_subclass(type(q))[..., :16]
    columns = k.transpose(1, 3).contiguous().transpose(1, 3)
    for each in (offset, odd_rows, columns):
        assert refused(q, each, v) == "operands that would have to be copied"
    for scale in (0.0, -0.3, float("inf"), float("nan")):
        assert refused(q, k, v, scale) == "a scale that is not positive and finite"


@pytest.mark.usefixtures("chosen")
def test_refusals_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = as_on_gpu(drawn(2, 9, 9, 3, 16))
    cudnn, flash, efficient = (by_math(name) for name in ("cudnn", "flash", "efficient"))

    def refused(backend: Backend, *operands: torch.Tensor, mask: Any = None, causal: bool = False) -> str:
        return str(backend.supports_tokens(*operands, mask, None, causal))

    wide = (q.float(), k.float(), v.float())
    assert "f16 and bf16" in refused(cudnn, *wide)
    assert "f16 and bf16" in refused(flash, *wide)
    assert refused(efficient, *wide) == "None"
    odd = as_on_gpu(drawn(2, 9, 9, 1, 12))
    padded = [torch.zeros(2, 9, 1, 16).half().as_subclass(type(q))[..., :12].copy_(each) for each in odd]
    assert "multiple of 8" in refused(flash, *padded)
    few = (q, k[:, :5], v[:, :5])
    assert "one for each query" in refused(cudnn, *few, causal=True)
    assert "one for each query" in refused(flash, *few, causal=True)
    assert refused(efficient, *few, causal=True) == "None"
    single = (q, k[:, :1], v[:, :1])
    assert "single key" in refused(cudnn, *single)
    repeated = (q, k[:1].expand(2, -1, -1, -1), v)
    assert "repeat" in refused(cudnn, *repeated)
    assert refused(flash, *repeated) == "None"
    mask = torch.zeros(9, 9).half()
    assert refused(cudnn, q, k, v, mask=mask).startswith("a mask")
    assert refused(flash, q, k, v, mask=mask) == "a mask"
    assert refused(efficient, q, k, v, mask=mask) == "None"
    assert refused(efficient, q, k, v, mask=torch.ones(2, 1, 1, 9, dtype=torch.bool)) == "None"
    assert refused(efficient, q, k, v, mask=mask, causal=True) == "a mask and hidden keys"
    assert "another dtype" in refused(efficient, q, k, v, mask=mask.float())
    for shape in ((9,), (1, 1, 1, 9, 9), (9, 8), (3, 1, 9, 9), (2, 1, 1, 2)):
        assert "broadcast" in refused(efficient, q, k, v, mask=torch.zeros(shape).half())
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert refused(cudnn, q, k, v) == "cuDNN 91002; expected newer than 91500"


@pytest.fixture
def entered(chosen: list[SDPBackend], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SDPBackend]]:
    """The providers of the ops are these alone, and take what they would take on a GPU."""
    monkeypatch.setattr(attention_backends, "BACKENDS", {name: by_math(name) for name in BACKENDS})
    with kept_providers():
        for name in OF_BOTH:
            reference = OPS[name].providers[REFERENCE]
            OPS[name].providers.clear()
            OPS[name].providers[REFERENCE] = reference
        attention_backends.enter()
        yield chosen


def test_a_measured_choice_is_between_what_torch_takes_and_the_others(entered: list[SDPBackend]) -> None:
    q, k, v = as_on_gpu(drawn(2, 9, 9, 3, 40))
    for op, operands in (("attention_tokens", (q, k, v)), ("attention", swapped((q, k, v)))):
        entered.append(SDPBackend.FLASH_ATTENTION)
        found = dispatch.candidates(OPS[op], (*operands, None, None, False))
        assert found == [dispatch.Choice(name) for name in ("cudnn", "efficient", REFERENCE)]
        entered.append(SDPBackend.CUDNN_ATTENTION)
        found = dispatch.candidates(OPS[op], (*operands, None, None, False))
        assert found == [dispatch.Choice(name) for name in ("flash", "efficient", REFERENCE)]


@pytest.mark.usefixtures("entered")
def test_nothing_unmeasured_is_taken_from_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    arguments = (*as_on_gpu(drawn(2, 9, 9, 3, 40)), None, None, False)
    op = OPS["attention_tokens"]
    assert len(dispatch.candidates(op, arguments)) == 4
    assert dispatch.first_able(op, arguments) == dispatch.Choice(REFERENCE)
    # Nothing can be timed while a CUDA graph is recorded.
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert ProviderChooser(TimingCache("cpu"))(op, arguments, "unmeasured") == dispatch.Choice(REFERENCE)
    with dispatch.forced("attention_tokens", "flash"), dispatch.counted() as counts:
        dispatch.Dispatcher(op)(*arguments)
    assert counts == {("attention_tokens", "flash"): 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible")
def test_without_a_gpu_there_is_nothing_to_try() -> None:
    assert not set(BACKENDS) & set(OPS["attention"].providers)


def test_a_proof_of_attention_counts_for_these_sources() -> None:
    for op in OF_BOTH:
        files = {path.name for path in code.here().of(op)}
        assert {"attention.py", "attention_backends.py", "attention_xformers.py", "attention.cu", "build.py"} <= files
        assert not {"gated.cu", "linear.cpp"} & files
    assert not {"attention_backends.py", "build.py"} & {path.name for path in code.here().of("rope")}


def on_gpu(name: str, operands: Operands, mask: torch.Tensor | None, causal: bool) -> None:
    """The kernel's result, or that of its own test where that says no, against f64."""
    if BACKENDS[name].supports_tokens(*operands, mask, None, causal) not in (
        None,
        "torch takes it by itself: the reference",
    ):
        pytest.skip("this GPU has no such kernel")
    wanted = exact(operands, mask, causal=causal)
    tokens = BACKENDS[name].tokens_first(*operands, mask, None, causal)
    assert tokens.is_contiguous()
    assert error(tokens, wanted) < ERROR[operands[0].dtype]
    heads = BACKENDS[name].heads_first(*swapped(operands), mask, None, causal)
    assert heads.transpose(1, 2).is_contiguous()
    assert error(heads.transpose(1, 2), wanted) < ERROR[operands[0].dtype]


@ON_A_GPU
@EACH
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("s", "d", "causal"), [(256, 64, False), (77, 40, False), (77, 64, True), (64, 160, False)])
def test_results_on_a_gpu(
    name: str, layout: Callable[[Operands], Operands], dtype: torch.dtype, s: int, d: int, causal: bool
) -> None:
    on_gpu(name, layout(drawn(2, s, s, 5, d, dtype=dtype, device="cuda")), None, causal)


@ON_A_GPU
@EACH
@pytest.mark.parametrize("d", [40, 64, 160])
def test_few_keys_on_a_gpu(name: str, d: int) -> None:
    on_gpu(name, drawn(2, 1024, 77, 8, d, device="cuda"), None, False)


@ON_A_GPU
@pytest.mark.parametrize("shape", [(2, 1, 64, 77), (2, 1, 1, 77), (64, 77), (2, 5, 64, 77)])
@pytest.mark.parametrize("boolean", [False, True])
def test_masks_on_a_gpu(shape: tuple[int, ...], boolean: bool) -> None:
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to("cuda", torch.float16)
    on_gpu("efficient", drawn(2, 64, 77, 5, 64, device="cuda"), mask > -1 if boolean else mask, False)


@ON_A_GPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_reference_takes_masks_that_start_anywhere_and_no_heads(dtype: torch.dtype) -> None:
    """Of both torch's own kernels end the process."""
    operands = drawn(2, 16, 16, 3, 8, dtype=dtype, device="cuda")
    reference = OPS["attention_tokens"].reference
    mask = torch.randn(2 * 16 * 16 + 1, generator=torch.Generator().manual_seed(3)).to("cuda", dtype)[1:]
    mask = mask.view(2, 1, 16, 16)
    assert error(reference(*operands, mask, None, False), exact(operands, mask)) < ERROR[dtype]
    assert reference(*(each[:, :, :0] for each in operands), None, None, False).shape == (2, 16, 0, 8)


@ON_A_GPU
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d", [64, 128])
def test_xformers_on_a_gpu(d: int, causal: bool) -> None:
    missing = providers.load()
    provider = OPS["attention_tokens"].providers.get("xformers")
    arguments = (*drawn(2, 256, 256, 5, d, device="cuda"), None, None, causal)
    reason = missing["xformers"] if provider is None else provider.supports(*arguments)
    if reason is not None:
        pytest.skip(reason)
    for config in provider.configs(*arguments):
        result = provider.fn(*arguments, **config)
        assert result.is_contiguous()
        assert error(result, exact(arguments[:3], causal=causal)) < ERROR[torch.float16]


@ON_A_GPU
@EACH
def test_a_call_is_recorded_in_a_cuda_graph(name: str) -> None:
    operands = drawn(2, 256, 256, 8, 64, device="cuda")
    on_gpu(name, operands, None, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = BACKENDS[name].tokens_first(*operands, None, None, False)
    operands[2].mul_(2)
    graph.replay()
    assert error(result, exact(operands)) < ERROR[torch.float16]


@ON_A_GPU
def test_threads_leave_each_other_and_the_switches_alone() -> None:
    before = switches()
    operands = drawn(2, 256, 256, 8, 64, device="cuda")
    wanted, wrong = exact(operands), []

    def run(name: str) -> None:
        for _ in range(20):
            result = BACKENDS[name].tokens_first(*operands, None, None, False)
            if switches() != before or error(result, wanted) > ERROR[torch.float16]:
                wrong.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("flash", "efficient")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert switches() == before

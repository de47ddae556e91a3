"""The polynomial inside GELU: one in Triton and in CUDA, and as near to the exact function as its comment says."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from rewriter.ops.cuda import build
from rewriter.ops.triton import device, epilogue

_NUMBER = re.compile(r"([+-]?)\s*(\d+\.\d+(?:e-?\d+)?)")
DEVICE = "cpu" if device.INTERPRETED else "cuda"


def _numbers(path: pathlib.Path, begin: str, end: str) -> list[float]:
    """The constants with a decimal point in the text between two marks, with the sign that stands before them."""
    text = path.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    return [float("".join(found)) for found in _NUMBER.findall(text)]


@pytest.fixture(scope="module")
def numbers() -> list[float]:
    return _numbers(pathlib.Path(epilogue.__file__), "u = tl.abs(x)", "@triton.jit")


def test_triton_and_cuda_have_the_same_numbers(numbers: list[float]) -> None:
    assert numbers == _numbers(
        build.sources_folder() / "activations.h", "__device__ inline float gelu(float x) {", "\n}"
    )
    # Seven coefficients, then the ones of 2**(... - 1) and of 1 - Phi.
    assert (len(numbers), numbers[7:]) == (9, [-1.0, 1.0])
    assert all(torch.tensor(each, dtype=torch.float32).item() == each for each in numbers)


def test_no_polynomial_of_that_degree_is_much_nearer(numbers: list[float]) -> None:
    """Eight errors of alternating signs: a polynomial with smaller ones at all eight would differ from this one by a
    polynomial of degree 6 with seven zeros."""
    u = torch.linspace(1e-3, 6, 60_000, dtype=torch.float64)
    exponent = torch.zeros_like(u)
    for each in numbers[:7]:
        exponent = exponent * u + each
    error = torch.exp2(exponent * u - 1) / torch.special.log_ndtr(-u).exp() - 1
    assert float(error.abs().max()) < 4.5e-6
    arcs = error.tensor_split((error.sign().diff().nonzero().flatten() + 1).tolist())
    peaks = [float(arc.abs().max()) for arc in arcs]
    assert len(peaks) == 8
    assert min(peaks) > 3.4e-6


@triton.jit
def _each(y, x, size: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0) * size + tl.arange(0, size)
    tl.store(y + place, epilogue.gelu(tl.load(x + place)))


@pytest.mark.skipif(
    not device.INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU or Triton's interpreter"
)
def test_in_f32_it_is_as_near_as_it_says() -> None:
    x = torch.linspace(-12, 12, 2**20, dtype=torch.float32, device=DEVICE)
    y = torch.full_like(x, torch.nan)
    _each[(16,)](y, x, size=2**16)
    wide = x.double()
    # erfc(z) is 1 - erf(z) without its cancellation.
    exact = wide * 0.5 * torch.special.erfc(-wide * 0.5**0.5)
    allowed = torch.where(x < -6, 5e-14, 8e-6 * exact.abs())
    assert bool(((y.double() - exact).abs() <= allowed).all())

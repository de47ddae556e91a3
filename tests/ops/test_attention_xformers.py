"""Attention by xformers: how it is bound, what it is given, and why it is missing where it is."""

from __future__ import annotations

import importlib
import logging
import pathlib
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attention_calls import OF_BOTH, as_on_gpu, drawn, error, exact, heads_outside, kept_providers, swapped

from rewriter.ops import OPS, attention_xformers, dispatch, providers
from rewriter.ops.attention_xformers import bound
from rewriter.ops.registry import REFERENCE


@pytest.fixture(autouse=True)
def own_xformers() -> Iterator[None]:
    """No xformers that is installed is meant, and none of these stays."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "xformers"}
    for name in before:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "xformers"]:
        del sys.modules[name]
    sys.modules.update(before)


class Later:
    """`LowerTriangularMask`."""


class Inputs:
    def __init__(self, *, query: Any, key: Any, value: Any, attn_bias: Any, p: float, scale: float | None) -> None:
        self.query, self.key, self.value, self.attn_bias, self.p, self.scale = query, key, value, attn_bias, p, scale


def operator(name: str, *reasons: str, there: bool = True) -> types.SimpleNamespace:
    """A module of `xformers.ops.fmha` with an operator that refuses every call for these reasons."""

    class FwOp:
        NAME = name
        asked: list[Inputs] = []  # noqa: RUF012

        @classmethod
        def is_available(cls) -> bool:
            return there

        @classmethod
        def not_supported_reasons(cls, inputs: Inputs) -> list[str]:
            cls.asked.append(inputs)
            return list(reasons)

    return types.SimpleNamespace(FwOp=FwOp)


def installed(version: str = "0.0.35", **operators: types.SimpleNamespace) -> tuple[types.ModuleType, list[Any]]:
    """xformers as a module, and the calls of its attention."""
    calls: list[Any] = []

    def forward(q: Any, k: Any, v: Any, bias: Any, p: float, scale: float | None, *, op: Any) -> torch.Tensor:
        calls.append((q, k, v, bias, p, scale, op))
        return heads_outside((exact((q, k, v), scale=scale, causal=isinstance(bias, Later)).to(q.dtype),) * 3)[0]

    package, fmha = types.ModuleType("xformers"), types.ModuleType("xformers.ops.fmha")
    package.__version__ = version
    package.ops = types.ModuleType("xformers.ops")
    package.ops.fmha = fmha
    fmha.attn_bias = types.SimpleNamespace(LowerTriangularMask=Later)
    fmha.Inputs = Inputs
    fmha.memory_efficient_attention_forward = forward
    for name, module in operators.items():
        setattr(fmha, name, module)
    sys.modules.update({"xformers": package, "xformers.ops": package.ops, "xformers.ops.fmha": fmha})
    return package, calls


@pytest.mark.parametrize("causal", [False, True])
def test_tokens_first_arrive_and_the_result_is_dense(causal: bool) -> None:
    flash = operator("fa2F@2.8.3")
    _, calls = installed(flash=flash)
    operands = drawn(2, 9, 9, 3, 40)
    result = bound().tokens_first(*operands, None, 0.3, causal, operator="flash")
    ((q, k, v, bias, p, scale, op),) = calls
    assert q is operands[0]
    assert (k.shape, v.shape, p, scale, op) == (operands[1].shape, operands[2].shape, 0.0, 0.3, flash.FwOp)
    assert isinstance(bias, Later) if causal else bias is None
    assert result.is_contiguous()
    assert error(result, exact(operands, scale=0.3, causal=causal)) < 1e-3


def test_heads_first_are_given_tokens_first() -> None:
    flash = operator("fa2F@2.8.3")
    _, calls = installed(flash=flash)
    operands = drawn(2, 9, 11, 3, 40)
    result = bound().heads_first(*swapped(operands), None, None, False, operator="flash")
    assert [each.shape for each in calls[0][:3]] == [each.shape for each in operands]
    assert calls[0][5] is None
    assert result.stride() == OPS["attention"].reference(*swapped(operands), None, None, False).stride()
    assert error(result.transpose(1, 2), exact(operands)) < 1e-3
    # Forced without a config, xformers chooses.
    bound().heads_first(*swapped(operands), None, None, False)
    assert calls[-1][-1] is None


def test_the_first_operator_that_takes_the_call_is_the_one_config() -> None:
    newer, older = operator("fa3F@3.0", "too old a GPU"), operator("fa2F@2.8.3")
    installed(flash3=newer, flash=older)
    q, k, v = as_on_gpu(drawn(2, 9, 9, 3, 40))
    found = bound()
    for operands, supports, configs in (
        ((q, k, v), found.supports_tokens, found.configs_tokens),
        (swapped((q, k, v)), found.supports, found.configs),
    ):
        assert supports(*operands, None, 0.3, True) is None
        assert configs(*operands, None, 0.3, True) == [{"operator": "flash"}]
    asked = newer.FwOp.asked[-1]
    assert (asked.query.shape, asked.scale, asked.p) == (q.shape, 0.3, 0.0)
    assert isinstance(asked.attn_bias, Later)
    installed(flash3=operator("fa3F@3.0"), flash=older)
    assert bound().configs_tokens(q, k, v, None, None, False) == [{"operator": "flash3"}]
    installed(flash3=newer, flash=operator("fa2F@2.8.3", "f16 only", "odd"))
    assert bound().supports_tokens(q, k, v, None, None, False) == "flash3: too old a GPU; flash: f16 only, odd"


def test_refusals() -> None:
    flash = operator("fa2F@2.8.3")
    installed(flash=flash)
    found = bound()
    q, k, v = as_on_gpu(drawn(2, 9, 9, 3, 40))
    mask = torch.zeros(9, 9).half()
    assert found.supports_tokens(q, k, v, mask, None, False) == "a mask: xformers has only torch's kernel for one"
    assert found.supports_tokens(*drawn(2, 9, 9, 3, 40), None, None, False) == "not on one GPU"
    assert found.supports_tokens(q, k, v[:, :5], None, None, False) == "extents that do not fit each other"
    assert found.supports_tokens(q[0], k[0], v[0], None, None, False) == "other than [B, S, H, D]"
    assert found.supports(q[0], k[0], v[0], None, None, False) == "other than [B, H, S, D]"
    assert not flash.FwOp.asked


def refused() -> str:
    """Why xformers is missing, after warnings and log messages of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImportError) as caught:
            bound()
    return str(caught.value)


def written(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """xformers as files, by the names of its modules."""
    (folder / "xformers" / "ops" / "fmha").mkdir(parents=True)
    for name in ("ops", "ops.fmha"):
        (folder / "xformers" / pathlib.Path(*name.split("."))).joinpath("__init__.py").touch()
    for name, text in files.items():
        path = folder / "xformers" / f"{name}.py"
        path.write_text(text)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    assert refused() == "not installed"


def test_too_old() -> None:
    installed("0.0.33.post2", flash=operator("fa2F@2.8.3"))
    assert refused() == "xformers 0.0.33.post2; expected 0.0.34 or newer"
    installed("0.0.35+cu130.d20260101", flash=operator("fa2F@2.8.3"))
    assert bound().operators


@pytest.mark.parametrize("error", ["AttributeError('no such op')", "AssertionError()", "OSError('undefined symbol')"])
def test_an_import_that_fails_in_any_way_says_so(
    error: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noise = "import logging, warnings\nwarnings.warn('old')\nlogging.getLogger('xformers').warning('no extensions')\n"
    written(tmp_path, monkeypatch, __init__=f"{noise}raise {error}\n")
    level = logging.getLogger("xformers").level
    kind, _, message = error.partition("(")
    assert refused().startswith(f"xformers does not load: {kind}: {message.strip(chr(39) + ')')}".strip(": "))
    assert not caplog.records
    assert logging.getLogger("xformers").level == level


def test_a_compiled_part_that_does_not_load_says_why(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(
        tmp_path,
        monkeypatch,
        __init__="__version__ = '0.0.35'\nfrom xformers import _cpp_lib\n",
        _cpp_lib="try:\n"
        "    try:\n"
        "        raise OSError('libcudart.so.12: cannot open shared object file')\n"
        "    except OSError as cause:\n"
        "        raise RuntimeError('built for torch 2.10') from cause\n"
        "except RuntimeError as error:\n"
        "    _cpp_library_load_exception = error\n",
    )
    wanted = "the compiled part of xformers 0.0.35 does not load: OSError: libcudart.so.12: cannot open"
    assert refused().startswith(wanted)


def test_kernels_of_torch_are_not_tried_again() -> None:
    installed(flash3=operator("fa3F@0.0.0", there=False), flash=operator("fa2F@2.7.4-pt"))
    assert refused() == "xformers 0.0.35 has no kernels here but torch's; flash-attn or flash-attn-3 adds some"
    installed(flash3=operator("fa3F@3.0"), flash=operator("fa2F@2.7.4-pt"))
    assert list(bound().operators) == ["flash3"]


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """xformers is what providers are loaded from, as on a GPU and for the first time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(providers, "_PACKAGES", {"xformers": attention_xformers.__name__})
    monkeypatch.delitem(sys.modules, attention_xformers.__name__)
    with kept_providers():
        for name in OF_BOTH:
            OPS[name].providers.pop("xformers", None)
        yield


@pytest.mark.usefixtures("on_a_gpu")
def test_what_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    assert providers.load.__wrapped__() == {"xformers": "ImportError: not installed"}
    assert "xformers" not in OPS["attention"].providers


@pytest.mark.usefixtures("on_a_gpu")
def test_both_ops_have_the_provider_once_it_is_loaded() -> None:
    installed(flash=operator("fa2F@2.8.3"))
    assert providers.load.__wrapped__() == {}
    q, k, v = as_on_gpu(drawn(2, 9, 9, 3, 40))
    for op, operands in (("attention_tokens", (q, k, v)), ("attention", swapped((q, k, v)))):
        arguments = (*operands, None, None, False)
        found = [each for each in dispatch.candidates(OPS[op], arguments) if each.provider == "xformers"]
        assert found == [dispatch.Choice("xformers", {"operator": "flash"})]
        assert dispatch.first_able(OPS[op], arguments).provider in (REFERENCE, "triton")

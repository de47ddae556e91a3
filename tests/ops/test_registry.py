"""The op table: registration, providers, import time."""

import subprocess
import sys

import pytest
import torch

import rewriter.ops
from rewriter.ops import dispatch, registry
from rewriter.ops.registry import OPS, OpError


def test_every_op_is_registered_with_torch():
    for name, op in OPS.items():
        schema = getattr(torch.ops.rewriter, name).default._schema
        assert schema.name == f"rewriter::{name}"
        assert op.providers[registry.REFERENCE].fn is op.reference
        assert op.reference.__doc__


def test_defining_the_same_op_again_changes_nothing():
    op = OPS["quick_gelu"]
    assert registry.define(op.schema, op.reference) is op


def test_defining_another_schema_under_a_known_name_is_an_error():
    with pytest.raises(OpError, match=r"rewriter::quick_gelu is defined twice: found 'quick_gelu\(Tensor y\)"):
        registry.define("quick_gelu(Tensor y) -> Tensor", lambda y: y)


@pytest.fixture
def zeros():
    """A provider of quick_gelu that gives zeros, for tensors of rank 1."""
    registry.provide("quick_gelu", "zeros", torch.zeros_like, lambda x: None if x.dim() == 1 else "rank is not 1")
    yield
    del OPS["quick_gelu"].providers["zeros"]


@pytest.mark.usefixtures("zeros")
def test_a_forced_provider_serves_what_it_can_and_the_calls_are_counted():
    x = torch.ones(3)
    with dispatch.forced("quick_gelu", "zeros"), dispatch.counted() as calls:
        assert torch.equal(torch.ops.rewriter.quick_gelu(x), torch.zeros(3))
        assert torch.equal(torch.ops.rewriter.quick_gelu(x[None]), OPS["quick_gelu"].reference(x[None]))
    assert calls == {("quick_gelu", "zeros"): 1, ("quick_gelu", "torch"): 1}
    assert torch.equal(torch.ops.rewriter.quick_gelu(x), OPS["quick_gelu"].reference(x))


def test_a_config_reaches_the_provider():
    registry.provide("quick_gelu", "full", lambda x, value=2: torch.full_like(x, value), lambda _: None)
    try:
        with dispatch.forced("quick_gelu", "full", {"value": 5}):
            assert torch.ops.rewriter.quick_gelu(torch.ones(2)).tolist() == [5, 5]
        with dispatch.forced("quick_gelu", "full"):
            assert torch.ops.rewriter.quick_gelu(torch.ones(2)).tolist() == [2, 2]
    finally:
        del OPS["quick_gelu"].providers["full"]


@pytest.mark.usefixtures("zeros")
def test_candidates_are_the_providers_that_take_the_call_and_the_reference():
    names = [choice.provider for choice in dispatch.candidates(OPS["quick_gelu"], (torch.ones(3),))]
    assert names[-2:] == ["zeros", "torch"]
    assert "zeros" not in [choice.provider for choice in dispatch.candidates(OPS["quick_gelu"], (torch.ones(3, 3),))]


@pytest.mark.usefixtures("zeros")
def test_an_excluded_provider_serves_only_where_it_is_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "_EXCLUDED", {})
    monkeypatch.setattr(dispatch, "CHOSEN", {("quick_gelu", "a"): dispatch.Choice("zeros")})
    dispatch.exclude({("quick_gelu", "zeros"): "it failed its proof"})
    assert not dispatch.CHOSEN
    assert "zeros" not in [choice.provider for choice in dispatch.candidates(OPS["quick_gelu"], (torch.ones(3),))]
    with dispatch.forced("quick_gelu", "zeros"):
        assert torch.equal(torch.ops.rewriter.quick_gelu(torch.ones(3)), torch.zeros(3))


@pytest.mark.usefixtures("zeros")
def test_a_choice_that_is_not_remembered_holds_as_long_as_its_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "_on_gpu", lambda _: True)
    monkeypatch.setattr(dispatch.providers, "load", dict)
    asked = []

    def choose(_op, _arguments, signature):
        asked.append(signature)
        return dispatch.Choice("zeros")

    x = torch.randn(3)
    for _ in range(2):
        with dispatch.choosing(choose, remember=False):
            for _ in range(2):
                assert not torch.ops.rewriter.quick_gelu(x).any()
    assert asked == [dispatch.signature((x,))] * 2
    assert ("quick_gelu", asked[0]) not in dispatch.CHOSEN


def test_signatures_tell_calls_apart_that_may_take_another_time():
    x = torch.ones(4, 6)
    same = dispatch.signature((x, 3, None))
    assert dispatch.signature((torch.zeros(4, 6), 3, None)) == same
    for other in ((x.t(), 3, None), (x.half(), 3, None), (x, 4, None), (x, 3, x), (x[:2], 3, None)):
        assert dispatch.signature(other) != same


def test_unknown_ops_and_providers_are_named():
    with pytest.raises(OpError, match=r"unknown op rewriter::swiglu; expected one of add_group_norm, "):
        registry.find("swiglu")
    with pytest.raises(OpError, match=r"rewriter::conv_act has no provider 'cudnn9'; expected one of .*torch"):
        dispatch.forced("conv_act", "cudnn9").__enter__()
    with pytest.raises(OpError, match=r"rewriter::conv_act has a provider 'torch' already"):
        registry.provide("conv_act", "torch", torch.relu, lambda *_: None)


def test_importing_the_ops_is_quick_once_torch_is_there():
    code = "import torch, time; start = time.process_time(); import rewriter.ops; print(time.process_time() - start)"
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2))
    assert seconds < 0.2, f"{rewriter.ops.__file__} took {seconds:.3f} s"

"""The op table: registration, providers, import time."""

import subprocess
import sys

import pytest
import torch

import rewriter.ops
from rewriter.ops import registry
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


def test_a_bound_provider_serves_the_op_until_the_reference_is_bound_again():
    x = torch.ones(3)
    registry.provide("quick_gelu", "zeros", torch.zeros_like, lambda *_: None)
    try:
        registry.bind("quick_gelu", "zeros", "CPU")
        assert torch.equal(torch.ops.rewriter.quick_gelu(x), torch.zeros(3))
    finally:
        registry.bind("quick_gelu", registry.REFERENCE, "CPU")
        del OPS["quick_gelu"].providers["zeros"]
    assert torch.equal(torch.ops.rewriter.quick_gelu(x), OPS["quick_gelu"].reference(x))


def test_unknown_ops_and_providers_are_named():
    with pytest.raises(OpError, match=r"unknown op rewriter::swiglu; expected one of add_group_norm, "):
        registry.bind("swiglu", "triton", "CUDA")
    with pytest.raises(OpError, match=r"rewriter::conv_act has no provider 'cudnn'; expected one of torch"):
        registry.bind("conv_act", "cudnn", "CUDA")
    with pytest.raises(OpError, match=r"rewriter::conv_act has a provider 'torch' already"):
        registry.provide("conv_act", "torch", torch.relu, lambda *_: None)


def test_importing_the_ops_is_quick_once_torch_is_there():
    code = "import torch, time; start = time.process_time(); import rewriter.ops; print(time.process_time() - start)"
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2))
    assert seconds < 0.2, f"{rewriter.ops.__file__} took {seconds:.3f} s"

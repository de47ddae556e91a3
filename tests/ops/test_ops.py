"""Every op against a float64 composition of elementary ones: odd shapes, memory orders, dtypes, NaN, opcheck."""

import warnings
from typing import Any

import pytest
import torch
from op_cases import CASES, Case, drawer

import rewriter.ops
from rewriter import torch_ir

# Relative L2 error against float64 on the same inputs.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
LAYOUTS = ["contiguous", "channels_last", "sliced", "offset", "expanded", "permuted"]


def call(case: Case, arguments: tuple[Any, ...]) -> Any:
    with torch.no_grad():
        return getattr(torch.ops.rewriter, case.op)(*arguments)


def results(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def double(argument: Any) -> Any:
    return argument.double() if isinstance(argument, torch.Tensor) and argument.is_floating_point() else argument


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case: Case, layout: str):
    for dtype in DTYPES:
        arguments = case.arguments(drawer(dtype, layout))
        for found, wanted in zip(
            results(call(case, arguments)), results(case.oracle(*map(double, arguments))), strict=True
        ):
            assert (found.dtype, found.shape) == (dtype, wanted.shape)
            error = (found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
            assert error < TOLERANCE[dtype], f"{case} {layout} {dtype}: relative error {error:.1e}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nan_stays_where_the_formula_puts_it(case: Case):
    arguments = case.arguments(drawer(torch.float32))
    # torch's attention kernel for CPUs takes a query row of NaN for one that is hidden from every key and returns 0.
    poisoned = arguments[2] if case.op.startswith("attention") else arguments[0]
    poisoned.view(-1)[3] = float("nan")
    for found, wanted in zip(
        results(call(case, arguments)), results(case.oracle(*map(double, arguments))), strict=True
    ):
        assert torch.equal(found.isnan(), wanted.isnan())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_accepts_the_registration(case: Case, layout: str):
    arguments = case.arguments(drawer(torch.float32, layout))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(
            getattr(torch.ops.rewriter, case.op).default,
            arguments,
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs_in_torchscript(case: Case):
    arguments = case.arguments(drawer(torch.float32))
    inputs, constants, operands = [], [], []
    for index, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            inputs.append(f"%a{index} : Tensor")
        else:
            kind = {type(None): "NoneType", bool: "bool", int: "int", float: "float", str: "str", list: "int[]"}[
                type(argument)
            ]
            text = f'"{argument}"' if isinstance(argument, str) else str(int(argument) if kind == "bool" else argument)
            value = "" if argument is None else f"[value={text}]"
            constants.append(f"  %a{index} : {kind} = prim::Constant{value}()")
        operands.append(f"%a{index}")
    names = ["%y", "%z"][: len(torch_ir.schemas_of(f"rewriter::{case.op}")[0].returns)]
    call_text = f"  {', '.join(f'{n} : Tensor' for n in names)} = rewriter::{case.op}({', '.join(operands)})"
    graph = torch_ir.parse_graph(
        "\n".join([f"graph({', '.join(inputs)}):", *constants, call_text, f"  return ({', '.join(names)})"])
    )
    with torch_ir.plain_executor(), torch.no_grad():
        found = torch_ir.function_from_graph(graph)(*(a for a in arguments if isinstance(a, torch.Tensor)))
    for one, other in zip(results(found), results(call(case, arguments)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_new_tensors_and_arguments_stay(case: Case):
    arguments = case.arguments(drawer(torch.float32))
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    storages = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, torch.Tensor)}
    with torch.inference_mode():
        for result in results(getattr(torch.ops.rewriter, case.op)(*arguments)):
            assert result.untyped_storage().data_ptr() not in storages
    for argument, kept in zip(arguments, before, strict=True):
        assert not isinstance(argument, torch.Tensor) or torch.equal(argument, kept)


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (2, 6, 0, 4), (1, 6, 1, 1)])
def test_group_norm_takes_empty_and_single_element_tensors(shape: tuple[int, ...]):
    x = torch.ones(shape)
    weight = torch.ones(6)
    for groups in (2, 6):
        found = torch.ops.rewriter.group_norm_silu(x, groups, weight, weight, 1e-5)
        wanted = torch.nn.functional.silu(torch.group_norm(x, groups, weight, weight, 1e-5))
        assert found.shape == wanted.shape
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("rows", [0, 1])
def test_token_ops_take_empty_batches(rows: int):
    x, weight = torch.ones(rows, 3, 8), torch.ones(8, 8)
    assert torch.ops.rewriter.linear_act(x, weight, None, "gelu").shape == (rows, 3, 8)
    assert torch.ops.rewriter.linear_geglu(x, weight, None).shape == (rows, 3, 4)
    assert torch.ops.rewriter.layer_norm(x, [8], None, None, 1e-5).shape == (rows, 3, 8)
    assert torch.ops.rewriter.rms_norm(x, [8], None, 1e-5).shape == (rows, 3, 8)


@pytest.mark.parametrize("sizes", [(2, 0, 5, 8), (0, 3, 5, 8), (2, 3, 0, 8)], ids=["heads", "batch", "queries"])
def test_attention_takes_what_is_empty(sizes: tuple[int, ...]):
    q = torch.ones(sizes)
    k = torch.ones(*sizes[:2], 7, 8)
    found = torch.ops.rewriter.attention(q, k, k, None, None, False)
    assert found.shape == torch.nn.functional.scaled_dot_product_attention(q, k, k).shape
    tokens = torch.ops.rewriter.attention_tokens(*(each.transpose(1, 2) for each in (q, k, k)), None, None, False)
    assert tokens.shape == found.transpose(1, 2).shape
    # Of queries without elements something is left.
    assert torch.equal(torch.ops.rewriter.attention(k[..., :0], k[..., :0], k, None, 1.0, False), k)


def test_group_norm_keeps_channels_last():
    x = torch.randn(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    y, total = torch.ops.rewriter.add_group_norm_silu(x, None, x, 4, None, None, 1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert total.is_contiguous(memory_format=torch.channels_last)
    assert torch.ops.rewriter.group_norm(x.contiguous(), 4, None, None, 1e-5).is_contiguous()


def test_merging_the_heads_of_an_attention_result_is_free():
    q = torch.randn(2, 3, 7, 8)
    y = torch.ops.rewriter.attention(q, q, q, None, None, False)
    assert y.transpose(1, 2).is_contiguous()
    assert torch.ops.rewriter.attention_tokens(q, q, q, None, None, False).is_contiguous()


def test_unknown_activation_and_empty_sum_are_errors():
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="unknown activation 'mish'; expected one of none, relu"):
        torch.ops.rewriter.linear_act(x, torch.ones(2, 2), None, "mish")
    with pytest.raises(ValueError, match="needs a channel bias or an addend"):
        torch.ops.rewriter.add_group_norm(x, None, None, 1, None, None, 1e-5)


def test_every_op_has_a_case():
    lossy = {op for op in rewriter.ops.OPS if "quantise" in op or op in ("gated", "linear_f16_sums")}
    # Those have tests of their own: test_low_precision.py.
    assert {case.op for case in CASES} == set(rewriter.ops.OPS) - lossy

"""The one line of an error's message that says what went wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import rewriter.ops  # noqa: F401 (registers the op that a graph calls here)
from rewriter import torch_ir
from rewriter.causes import cause_of, described

PRODUCT = """graph(%a : Tensor, %b : Tensor):
  %y : Tensor = aten::mm(%a, %b)
  return (%y)"""
OP_IN_PYTHON = """graph(%x : Tensor, %weight : Tensor):
  %bias : NoneType = prim::Constant()
  %activation : str = prim::Constant[value="mish"]()
  %y : Tensor = rewriter::linear_act(%x, %weight, %bias, %activation)
  return (%y)"""
SOURCE = "at 4:8:\ndef kernel(x):\n    i = 0\n    x + hello(i)\n        ^"


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any)
        call()
    return caught.value


def out_of_graph(text: str) -> Exception:
    function = torch_ir.function_from_graph(torch_ir.parse_graph(text))
    return raised(lambda: function(torch.zeros(2, 3), torch.zeros(2, 4)))


def test_an_error_out_of_a_graph_is_that_of_the_op() -> None:
    error = out_of_graph(PRODUCT)
    assert str(error).count("\n") > 3
    assert cause_of(error) == "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x4)"
    assert described(error) == f"RuntimeError: {cause_of(error)}"


def test_an_op_in_python_out_of_a_graph_says_its_own_kind() -> None:
    function = torch_ir.function_from_graph(torch_ir.parse_graph(OP_IN_PYTHON))
    error = raised(lambda: function(torch.zeros(2, 3), torch.zeros(4, 3)))
    assert "\nAt:\n" in str(error)
    expected = "ValueError: unknown activation 'mish'; expected one of none, relu,"
    assert cause_of(error).startswith(expected)
    assert described(error) == cause_of(error)


def test_a_graph_in_a_graph() -> None:
    inner = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript:\n  inner\n"
    outer = f"{inner}RuntimeError: RuntimeError: {inner}RuntimeError: CUDA error: misaligned address\nAdvice.\n"
    assert cause_of(RuntimeError(outer)) == "CUDA error: misaligned address"


@pytest.mark.parametrize("where", [" GPU 0 has a total capacity of 79.11 GiB.", " (GPU 0; 15.78 GiB in all)", ""])
@pytest.mark.parametrize("before", ["", "Traceback of TorchScript (most recent call last):\n  %y\nRuntimeError: "])
def test_a_full_memory_without_the_advice(where: str, before: str) -> None:
    message = f"{before}CUDA out of memory. Tried to allocate 2.50 GiB.{where}"
    error = torch.cuda.OutOfMemoryError(message)
    assert cause_of(error) == "CUDA out of memory. Tried to allocate 2.50 GiB"
    assert described(error) == f"OutOfMemoryError: {cause_of(error)}"


def from_origin(error: Exception, origin: BaseException) -> Exception:
    error.__cause__ = origin
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        pytest.param(ValueError("C % groups is 1"), "C % groups is 1", id="plain"),
        pytest.param(ValueError("\n  first \nsecond"), "first", id="several lines"),
        pytest.param(RuntimeError("Error(s) for Net:\n\tMissing key.\n"), "Error(s) for Net: Missing key.", id="colon"),
        pytest.param(RuntimeError("CUDA error: an illegal access\nAdvice"), "CUDA error: an illegal access", id="CUDA"),
        pytest.param(ValueError(), "ValueError", id="empty"),
        pytest.param(ValueError(" \n"), "ValueError", id="blank"),
        pytest.param(Exception(f"{SOURCE}\nhello is not defined\n"), "hello is not defined", id="Triton"),
        pytest.param(Exception(SOURCE), "at 4:8: x + hello(i)", id="Triton, source alone"),
        pytest.param(from_origin(Exception(SOURCE), NameError("no hello")), "no hello", id="Triton, called function"),
        pytest.param(from_origin(ValueError("outer"), KeyError("inner")), "outer", id="chain with a message"),
        pytest.param(from_origin(ValueError(), TypeError("inner")), "inner", id="chain without one"),
        pytest.param(from_origin(ValueError(), TypeError()), "TypeError", id="chain of nothing"),
    ],
)
def test_the_line_that_is_the_cause(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_an_error_raised_from_itself_has_an_end() -> None:
    error = ValueError()
    assert cause_of(from_origin(error, error)) == "ValueError"


def test_the_kind_stands_once() -> None:
    assert described(ValueError("odd")) == "ValueError: odd"
    assert described(ValueError()) == "ValueError"
    assert described(RuntimeError("Errors are many")) == "RuntimeError: Errors are many"


def test_what_triton_says_of_a_kernel() -> None:
    errors = pytest.importorskip("triton.compiler.errors")
    import ast

    source = "def kernel(x):\n    i = 0\n    x + hello(i)\n"
    node = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    inner = errors.CompilationError(source, node, "hello is not defined")
    assert cause_of(inner) == "hello is not defined"
    assert cause_of(from_origin(errors.CompilationError(source, node, None), inner)) == "hello is not defined"

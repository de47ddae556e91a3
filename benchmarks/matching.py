"""How long matching and rewriting take, over graphs of 1k to 50k nodes and over 1 to 8 times the default rules.

The graphs repeat the residual and transformer blocks of an SDXL UNet. Time should grow with the nodes and hardly with
the rules: a copy of a rule is one more rule that a node might match, found through the same index.

    python benchmarks/matching.py
    python benchmarks/matching.py --nodes 1000 10000 --copies 1 8 --json
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rewriter import torch_ir
from rewriter.graph.conditions import Target
from rewriter.graph.engine import rewrite
from rewriter.graph.view import View
from rewriter.language import RuleSet, load_rules

# One residual block and one transformer block; @ stands for the block's number, IN and OUT for its input and output.
BLOCK = """
%n1_@ : IMAGE = aten::group_norm(%IN, %c32, %gw, %gb, %eps, %yes)
%s1_@ : IMAGE = aten::silu(%n1_@)
%c1_@ : IMAGE = aten::convolution(%s1_@, %kernel, %gb, %ones, %ones, %ones, %no, %zeros, %one)
%te_@ : ROW = aten::linear(%emb, %tw, %gb)
%u1_@ : Float(2, 64, 1, strides=[64, 1, 1], requires_grad=0, device=cpu) = aten::unsqueeze(%te_@, %two)
%u2_@ : Float(2, 64, 1, 1, strides=[64, 1, 1, 1], requires_grad=0, device=cpu) = aten::unsqueeze(%u1_@, %three)
%a1_@ : IMAGE = aten::add(%c1_@, %u2_@, %one)
%n2_@ : IMAGE = aten::group_norm(%a1_@, %c32, %gw, %gb, %eps, %yes)
%s2_@ : IMAGE = aten::silu(%n2_@)
%d2_@ : IMAGE = aten::dropout(%s2_@, %p, %no)
%c2_@ : IMAGE = aten::convolution(%d2_@, %kernel, %gb, %ones, %ones, %ones, %no, %zeros, %one)
%a2_@ : IMAGE = aten::add(%IN, %c2_@, %one)
%r_@ : IMAGE = aten::div(%a2_@, %unit)
%size_@ : int = aten::size(%r_@, %two)
%width_@ : int = aten::size(%r_@, %three)
%area_@ : int = aten::mul(%size_@, %width_@)
%batch_@ : int = aten::size(%r_@, %zero)
%p_@ : IMAGE = aten::permute(%r_@, %order)
%l_@ : int[] = prim::ListConstruct(%batch_@, %area_@, %c64)
%t_@ : TOKENS = aten::reshape(%p_@, %l_@)
%ln_@ : TOKENS = aten::layer_norm(%t_@, %normal, %gb, %gb, %eps, %yes)
%q_@ : TOKENS = aten::linear(%ln_@, %qw, %none)
%k_@ : TOKENS = aten::linear(%ln_@, %kw, %none)
%v_@ : TOKENS = aten::linear(%ln_@, %vw, %none)
%hl_@ : int[] = prim::ListConstruct(%batch_@, %minus, %heads, %dim)
%qv_@ : HEADS = aten::view(%q_@, %hl_@)
%qt_@ : HEADS = aten::transpose(%qv_@, %one, %two)
%kv_@ : HEADS = aten::view(%k_@, %hl_@)
%kt_@ : HEADS = aten::transpose(%kv_@, %one, %two)
%vv_@ : HEADS = aten::view(%v_@, %hl_@)
%vt_@ : HEADS = aten::transpose(%vv_@, %one, %two)
%at_@ : HEADS = aten::scaled_dot_product_attention(%qt_@, %kt_@, %vt_@, %none, %nought, %no, %none, %no)
%ab_@ : HEADS = aten::transpose(%at_@, %one, %two)
%ar_@ : TOKENS = aten::reshape(%ab_@, %l_@)
%o_@ : TOKENS = aten::linear(%ar_@, %ow, %gb)
%od_@ : TOKENS = aten::dropout(%o_@, %p, %no)
%h1_@ : TOKENS = aten::add(%od_@, %t_@, %one)
%lf_@ : TOKENS = aten::layer_norm(%h1_@, %normal, %gb, %gb, %eps, %yes)
%f_@ : WIDE = aten::linear(%lf_@, %fw, %fb)
%ch_@ : Tensor[] = aten::chunk(%f_@, %two, %minus)
%hid_@ : TOKENS, %gate_@ : TOKENS = prim::ListUnpack(%ch_@)
%ge_@ : TOKENS = aten::gelu(%gate_@, %exact)
%m_@ : TOKENS = aten::mul(%hid_@, %ge_@)
%fo_@ : TOKENS = aten::linear(%m_@, %ow, %gb)
%h2_@ : TOKENS = aten::add(%fo_@, %h1_@, %one)
%bl_@ : int[] = prim::ListConstruct(%batch_@, %size_@, %width_@, %c64)
%br_@ : IMAGE = aten::reshape(%h2_@, %bl_@)
%bp_@ : IMAGE = aten::permute(%br_@, %back)
%OUT : IMAGE = aten::add(%bp_@, %r_@, %one)
"""
CONSTANTS = """
%c32 : int = prim::Constant[value=32]()
%c64 : int = prim::Constant[value=64]()
%zero : int = prim::Constant[value=0]()
%one : int = prim::Constant[value=1]()
%two : int = prim::Constant[value=2]()
%three : int = prim::Constant[value=3]()
%minus : int = prim::Constant[value=-1]()
%heads : int = prim::Constant[value=4]()
%dim : int = prim::Constant[value=16]()
%p : float = prim::Constant[value=0.1]()
%nought : float = prim::Constant[value=0.]()
%unit : float = prim::Constant[value=1.]()
%eps : float = prim::Constant[value=1e-05]()
%yes : bool = prim::Constant[value=1]()
%no : bool = prim::Constant[value=0]()
%none : NoneType = prim::Constant()
%exact : str = prim::Constant[value="none"]()
%ones : int[] = prim::Constant[value=[1, 1]]()
%zeros : int[] = prim::Constant[value=[0, 0]]()
%order : int[] = prim::Constant[value=[0, 2, 3, 1]]()
%back : int[] = prim::Constant[value=[0, 3, 1, 2]]()
%normal : int[] = prim::Constant[value=[64]]()
"""
WEIGHTS = {
    **dict.fromkeys(("gw", "gb"), (64,)),
    **dict.fromkeys(("tw", "qw", "kw", "vw", "ow"), (64, 64)),
    "kernel": (64, 64, 3, 3),
    "fw": (128, 64),
    "fb": (128,),
}


def tensor_type(shape: tuple[int, ...]) -> str:
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    dims = "".join(f"{extent}, " for extent in shape)
    return f"Float({dims}strides={strides}, requires_grad=0, device=cpu)"


TYPES = {
    "IMAGE": tensor_type((2, 64, 8, 8)),
    "ROW": tensor_type((2, 64)),
    "TOKENS": tensor_type((2, 64, 64)),
    "WIDE": tensor_type((2, 64, 128)),
    "HEADS": tensor_type((2, 4, 64, 16)),
}


def build(nodes: int) -> Any:
    """A canonical graph of about so many nodes; all inputs but the first two are weights."""
    lines = [line for line in BLOCK.split("\n") if line]
    blocks = max(1, nodes // len(lines))
    body = []
    for block in range(blocks):
        for line in lines:
            text = line.replace("%IN", "%x" if block == 0 else f"%y{block - 1}").replace("%OUT", f"%y{block}")
            body.append(text.replace("@", str(block)))
    text = "\n  ".join([*CONSTANTS.split("\n")[1:-1], *body, f"return (%y{blocks - 1})"])
    inputs = {"x": (2, 64, 8, 8), "emb": (2, 64), **WEIGHTS}
    signature = ", ".join(f"%{name} : {tensor_type(shape)}" for name, shape in inputs.items())
    for name, kind in TYPES.items():
        text = text.replace(f" : {name} ", f" : {kind} ").replace(f" : {name},", f" : {kind},")
    return torch_ir.parse_graph(f"graph({signature}):\n  {text}")


def copies(rules: RuleSet, count: int) -> RuleSet:
    """The rules `count` times over, each time under other names."""
    return RuleSet.ordered(
        tuple(dataclasses.replace(rule, id=f"{rule.id}-{index}") for index in range(count) for rule in rules)
    )


def best(function: Callable[[], object], runs: int) -> float:
    """The shortest of several runs, in milliseconds of processor time."""
    times = []
    for _ in range(runs):
        gc.collect()
        gc.disable()
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
        gc.enable()
    return 1000 * min(times)


def measure(nodes: int, rules: dict[int, RuleSet], runs: int) -> dict[str, Any]:
    graph = build(nodes)
    target = Target("cpu")
    count = sum(1 for _ in graph.nodes())
    row: dict[str, Any] = {"nodes": count, "view": best(lambda: View(graph.copy(), len(WEIGHTS)), runs), "rewrite": {}}
    for number, chosen in rules.items():
        result = rewrite(graph, chosen, weights=len(WEIGHTS), target=target)
        row["rewrites"] = len(result.rewrites)
        row["rewrite"][str(number)] = best(
            lambda chosen=chosen: rewrite(graph, chosen, weights=len(WEIGHTS), target=target),  # type: ignore[misc]
            runs,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 2000, 5000, 10_000, 20_000, 50_000])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rules", default="default", help="a pack or a rule file")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    loaded = load_rules(arguments.rules)
    rules = {count: copies(loaded, count) for count in arguments.copies}
    rows = []
    if not arguments.json:
        heads = "".join(f"{f'{count}x rules':>12}" for count in rules)
        print(f"{len(loaded)} rules; milliseconds of processor time, the best of {arguments.runs} runs")
        print(f"{'nodes':>8}{'rewrites':>10}{'mirror':>10}{heads}{'us per node':>14}")
    for nodes in arguments.nodes:
        row = measure(nodes, rules, arguments.runs)
        rows.append(row)
        if not arguments.json:
            times = "".join(f"{value:>12.1f}" for value in row["rewrite"].values())
            first = next(iter(row["rewrite"].values()))
            print(
                f"{row['nodes']:>8}{row['rewrites']:>10}{row['view']:>10.1f}{times}{1000 * first / row['nodes']:>14.1f}"
            )
            sys.stdout.flush()
    if arguments.json:
        print(json.dumps({"rules": len(loaded), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

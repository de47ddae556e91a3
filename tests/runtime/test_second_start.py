"""A second process takes graphs from the disk where nothing that they depend on has changed."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import second_starts
import torch
import torch.nn.functional as F
from second_starts import NOTHING, RULES, Gate, configured, example, gate, spared, start

import rewriter
from rewriter.capture.code import code_digest
from rewriter.capture.portable import NotPortable, portable_digest
from rewriter.capture.state import Snapshot
from rewriter.runtime import second_start

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize("measure", [False, True])
def test_a_second_start_neither_traces_nor_rewrites_nor_times(work: dict[str, int], measure: bool) -> None:
    first = start(gate(), example(), measure=measure)
    assert spared(work)["traces"] == 1
    second = start(gate(), example(), measure=measure)
    assert spared(work) == NOTHING
    assert second.status == "optimised"
    assert second.matches == first.matches
    assert set(second.seconds) == {"load", "verify"}
    assert second.error == first.error


def test_other_weights_are_bound_to_the_kept_graph(work: dict[str, int]) -> None:
    start(gate(), example())
    spared(work)
    module = gate()
    for parameter in module.parameters():
        parameter.normal_()
    start(module, example())
    assert spared(work) == NOTHING


def test_another_rule_set_is_applied_to_the_kept_trace(work: dict[str, int]) -> None:
    start(gate(), example())
    spared(work)
    fewer = RULES.without([next(rule.id for rule in RULES if rule.id == "group-norm-centred-silu")])
    found = start(gate(), example(), rules=fewer)
    assert spared(work) == {"traces": 0, "rewrites": 1, "timings": 0}
    assert "group-norm-centred-silu" not in found.matches


def laid_out(module: Gate) -> Gate:
    module.linear.weight = torch.nn.Parameter(module.linear.weight.t().contiguous().t(), requires_grad=False)
    return module


@pytest.mark.parametrize(
    ("make", "x"),
    [
        pytest.param(lambda: gate(scale=3.0), example(), id="number"),
        pytest.param(lambda: gate(groups=4), example(), id="configuration"),
        pytest.param(lambda: configured(gate(), table=torch.arange(6.0) + 1), example(), id="tensor"),
        pytest.param(lambda: configured(gate(), norm=torch.nn.Identity()), example(), id="child"),
        pytest.param(lambda: laid_out(gate()), example(), id="strides"),
        pytest.param(lambda: gate().double(), example(dtype=torch.float64), id="dtype"),
        pytest.param(gate, example(2, 8, 4, 6), id="rank"),
        pytest.param(gate, example(3, 8, 6), id="shape"),
        pytest.param(gate, example(2, 6, 8).transpose(1, 2), id="layout"),
    ],
)
def test_what_the_trace_reads_is_part_of_its_key(work: dict[str, int], make: Callable[[], Gate], x: Any) -> None:
    start(gate(), example())
    spared(work)
    start(make(), x)
    assert spared(work)["traces"] >= 1
    start(make(), x)
    assert spared(work) == NOTHING


def test_other_code_is_traced_anew(work: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    start(gate(), example())
    spared(work)
    monkeypatch.setattr(second_starts, "activation", lambda x: F.relu(x))
    start(gate(), example())
    assert spared(work)["traces"] == 1
    monkeypatch.setattr(Gate, "forward", lambda self, x: second_starts.activation(self.norm(x)))
    start(gate(), example())
    assert spared(work)["traces"] == 1
    monkeypatch.setattr(F, "relu", F.silu)
    start(gate(), example())
    assert spared(work)["traces"] == 1


LIBRARIES = ("accelerate", "diffusers", "peft", "transformers", "triton")


def test_what_else_a_process_has_imported_makes_no_difference(
    work: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LIBRARIES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    start(gate(), example())
    spared(work)
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    start(gate(), example())
    assert spared(work) == NOTHING


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_version_of_a_library_is_traced_anew(
    work: dict[str, int], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    start(gate(), example())
    spared(work)
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == library else installed(name))
    second_start._version.cache_clear()
    try:
        start(gate(), example())
    finally:
        second_start._version.cache_clear()
    assert spared(work)["traces"] == 1


def test_a_library_without_a_version_is_known_by_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "checked_out.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert second_start._version("checked_out") == f"in {tmp_path / 'checked_out.py'}"
    assert second_start._version("never_installed") == "none"


def test_a_replaced_forward_is_never_kept(work: dict[str, int], folder: Path) -> None:
    for _ in range(2):
        module = gate()
        own = module.forward
        module.forward = lambda x, own=own: own(x) + 1  # type: ignore[method-assign]
        start(module, example())
        assert spared(work)["traces"] == 1
    assert not list(folder.glob("trace-*"))


def test_what_has_no_content_is_never_kept(work: dict[str, int], folder: Path) -> None:
    for _ in range(2):
        module = configured(gate(), hidden=functools.partial(print))
        assert start(module, example()).status == "optimised"
        assert spared(work)["traces"] == 1
    assert not list(folder.glob("trace-*"))
    with pytest.raises(NotPortable, match=r"functools\.partial"):
        portable_digest(Snapshot(module))
    with pytest.raises(NotPortable, match="large tensor"):
        portable_digest(Snapshot(configured(gate(), table=torch.zeros(1 << 20))))


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor, power: int) -> torch.Tensor:
        for _ in range(power):
            x = F.silu(x) * 0.5
        return x


def test_what_was_learned_about_numbers_is_kept_too(work: dict[str, int]) -> None:
    start(Branching(), example(), 2)
    assert spared(work)["traces"] == 2
    found = start(Branching(), example(), 2)
    assert spared(work) == NOTHING
    assert any("power becomes a constant" in message for message in found.messages)
    start(Branching(), example(), 3)
    assert spared(work)["traces"] == 1


def test_live_numbers_stay_live(work: dict[str, int]) -> None:
    start(gate(), example(), 1.5)
    spared(work)
    module, twin = gate(), gate()
    start(module, example(), 1.5)
    for gain in (-3.0, 0.0, 7.5):
        torch.testing.assert_close(module(example(), gain), twin(example(), gain))
    assert spared(work) == NOTHING


def test_scopes_are_kept(unet: torch.nn.Module, inputs: Callable[..., dict[str, Any]]) -> None:
    other = copy.deepcopy(unet)
    explained = []
    for module in (unet, other):
        rewriter.optimize(module, measure=False)
        module(**inputs())
        (part,) = rewriter.explain(module).components.values()
        explained.append(sorted((fired.rule, fired.scope) for fired in part.fired))
    assert explained[0] == explained[1]
    assert any("attentions" in scope for _, scope in explained[0])


def test_code_is_followed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [code_digest([Gate])]
    monkeypatch.setattr(second_starts, "activation", lambda x: F.silu(x) + 1)
    digests.append(code_digest([Gate]))
    monkeypatch.setattr(Gate, "__call__", lambda _, x: x, raising=False)
    digests.append(code_digest([Gate]))
    assert len(set(digests)) == 3
    assert code_digest([Gate]) == digests[-1]


PROCESS = """
import json, sys
import diffusers, torch
import rewriter
from rewriter import torch_ir
from rewriter.measure import regions, whole

done = dict(traces=0, timings=0)
def count(owner, name, what):
    original = getattr(owner, name)
    def counted(*args, **kwargs):
        done[what] += 1
        return original(*args, **kwargs)
    setattr(owner, name, counted)
count(torch_ir, "record", "traces")
count(regions, "compare", "timings")
count(whole, "best_of", "timings")
torch.set_num_threads(1)
torch.set_grad_enabled(False)
torch.manual_seed(0)
unet = diffusers.UNet2DConditionModel(
    block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=8, attention_head_dim=4,
    norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
).eval()
inputs = dict(sample=torch.randn(2, 4, 8, 8), timestep=torch.tensor(7), encoder_hidden_states=torch.randn(2, 5, 8))
expected = unet(**inputs).sample
rewriter.optimize(unet)
unet(**inputs)
found = unet(**inputs).sample
(part,) = rewriter.report(unet).components.values()
error = float((found - expected).norm() / expected.norm())
print(json.dumps(dict(done, status=part.status, matches=repr(part.matches), error=error)))
"""


def processes(count: int) -> list[dict[str, Any]]:
    """What so many processes print that start at the same time."""
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, env=os.environ, text=True)
        for _ in range(count)
    ]
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * count
    return [json.loads(text.splitlines()[-1]) for text in printed]


def test_processes_share_what_they_keep() -> None:
    """Two at the same time, which write the same files, and one after them."""
    first = processes(2)
    (second,) = processes(1)
    assert {each["status"] for each in (*first, second)} == {"optimised"}
    assert all(each["error"] < 1e-5 for each in (*first, second))
    # The slower one may find what the other has already kept.
    assert max(each["traces"] for each in first) == 1
    assert (second["traces"], second["timings"]) == (0, 0)
    assert second["matches"] in [each["matches"] for each in first]

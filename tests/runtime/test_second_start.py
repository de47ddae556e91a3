"""A second process takes graphs from the disk, compares them with eager, and makes anew what does not hold."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import rewriter
from rewriter import torch_ir
from rewriter.capture.code import code_digest
from rewriter.capture.portable import NotPortable, portable_digest
from rewriter.capture.state import Snapshot
from rewriter.graph import engine
from rewriter.graph.canonical import canonicalise
from rewriter.graph.text import NotText, from_data, to_data
from rewriter.language import RuleSet, load_rules
from rewriter.measure import choice, regions, whole
from rewriter.runtime import shelf

RULES = load_rules("default")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path))
    monkeypatch.setenv("REWRITER_GRAPHS", "on")
    return tmp_path / "graphs"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts what a second start is to be spared."""
    counts = {"traces": 0, "rewrites": 0, "timings": 0}

    def count(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(torch_ir, "record", "traces")
    for module in (engine, choice, regions):
        count(module, "rewrite", "rewrites")
    count(regions, "compare", "timings")
    count(whole, "best_of", "timings")
    return counts


class Gate(torch.nn.Module):
    """scale: becomes a part of the graph. table: a tensor that is no buffer."""

    def __init__(self, scale: float = 2.0, groups: int = 2) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(groups, 8)
        self.linear = torch.nn.Linear(6, 6)
        self.scale = scale
        self.table = torch.arange(6.0)

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        return activation(self.norm(x)) * self.scale + self.linear(x).softmax(-1) * self.table + gain


def activation(x: torch.Tensor) -> torch.Tensor:
    return F.silu(x)


def gate(**options: Any) -> Gate:
    torch.manual_seed(0)
    return Gate(**options).eval().requires_grad_(False)


def example(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape or (2, 8, 6), generator=torch.Generator().manual_seed(1)).to(dtype)


def start(
    module: torch.nn.Module, *args: Any, rules: RuleSet | None = None, measure: bool = False, **options: Any
) -> rewriter.ComponentReport:
    """As a process would with this module and an empty memory: the first calls must equal eager's."""
    twin = copy.deepcopy(module)
    rewriter.optimize(module, rules=rules or RULES, measure=measure, **options)
    for _ in range(2):
        torch.testing.assert_close(module(*copy.deepcopy(args)), twin(*args), rtol=1e-5, atol=1e-6)
    (found,) = rewriter.report(module).components.values()
    return found


def spared(work: dict[str, int]) -> dict[str, int]:
    """What was done since the last look."""
    found = dict(work)
    work.update(dict.fromkeys(work, 0))
    return found


NOTHING = {"traces": 0, "rewrites": 0, "timings": 0}


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
    fewer = RULES.without([next(rule.id for rule in RULES if rule.id == "group-norm-silu")])
    found = start(gate(), example(), rules=fewer)
    assert spared(work) == {"traces": 0, "rewrites": 1, "timings": 0}
    assert "group-norm-silu" not in found.matches


def configured(module: Gate, **values: Any) -> Gate:
    for name, value in values.items():
        setattr(module, name, value)
    return module


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
    monkeypatch.setitem(globals(), "activation", lambda x: F.relu(x))
    start(gate(), example())
    assert spared(work)["traces"] == 1
    monkeypatch.setattr(Gate, "forward", lambda self, x: activation(self.norm(x)))
    start(gate(), example())
    assert spared(work)["traces"] == 1
    monkeypatch.setattr(F, "relu", F.silu)
    start(gate(), example())
    assert spared(work)["traces"] == 1


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


def damaged(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda data: data.replace(b"aten::silu", b"aten::relu").replace(b"silu", b"relu"), id="altered"),
        pytest.param(lambda _: b"[]", id="list"),
        pytest.param(lambda data: b"\xff\x00" + data, id="binary"),
        pytest.param(lambda data: data.replace(b'"format": 1', b'"format": 99'), id="format"),
        pytest.param(lambda data: data.replace(b'"versions"', b'"fashions"'), id="foreign"),
        pytest.param(lambda _: b"[" * 100_000, id="nested"),
    ],
)
def test_a_damaged_file_is_made_anew(work: dict[str, int], folder: Path, damage: Callable[[bytes], bytes]) -> None:
    start(gate(), example())
    files = sorted(folder.iterdir())
    assert [path.name.partition("-")[0] for path in files] == ["rules", "trace"]
    for path in files:
        damaged(path, damage)
    spared(work)
    start(gate(), example())
    assert spared(work) == {"traces": 1, "rewrites": 1, "timings": 0}
    start(gate(), example())
    assert spared(work) == NOTHING


@pytest.mark.parametrize("kind", ["trace", "rules"])
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda text: text.replace("softmax", "log_softmax"), id="another result"),
        pytest.param(lambda text: text.replace("aten::", "aten::no_such_"), id="unknown ops"),
        pytest.param(lambda text: text.replace("return", "reply"), id="not IR"),
    ],
)
def test_a_kept_graph_that_is_wrong_is_made_anew(
    work: dict[str, int], folder: Path, kind: str, edit: Callable[[str], str]
) -> None:
    """As it would be if a trace depended on something that its key does not say."""
    start(gate(), example())
    (path,) = folder.glob(f"{kind}-*")
    data = json.loads(path.read_text())
    data["content"]["graph"]["text"] = edit(data["content"]["graph"]["text"])
    data["checksum"] = shelf.checksum(data["content"])
    path.write_text(json.dumps(data))
    spared(work)
    found = start(gate(), example())
    assert spared(work)["traces"] == 1
    assert any("was made anew" in message for message in found.messages)
    start(gate(), example())
    assert spared(work) == NOTHING


def test_without_verification_no_trace_is_taken(work: dict[str, int]) -> None:
    start(gate(), example())
    spared(work)
    start(gate(), example(), verify=False)
    assert spared(work)["traces"] == 1


def test_nothing_unverified_is_kept(folder: Path) -> None:
    start(gate(), example(), verify=False)
    assert not folder.exists()


def test_it_can_be_switched_off(work: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRITER_GRAPHS", "off")
    for _ in range(2):
        start(gate(), example())
        assert spared(work)["traces"] == 1
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_only_time(work: dict[str, int], folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    for _ in range(2):
        assert start(gate(), example()).status == "optimised"
        assert spared(work)["traces"] == 1


def test_the_folder_stays_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        shelf.put("trace", {"index": index}, "x" * 1000)
        os.utime(folder / sorted(folder.iterdir(), key=os.path.getmtime)[-1].name, (index, index))
    assert shelf.get("trace", {"index": 0}) is not None
    abandoned = folder / "left.part"
    abandoned.write_text("")
    os.utime(abandoned, (0, 0))
    monkeypatch.setattr(shelf, "_MOST_BYTES", 3500)
    shelf.put("trace", {"index": 4}, "x" * 1000)
    assert [shelf.get("trace", {"index": index}) is not None for index in range(5)] == [True, False, False, True, True]
    assert not abandoned.exists()


def test_writers_at_the_same_time_leave_whole_files() -> None:
    contents = ["a" * 50_000, "b" * 90_000]
    found: list[Any] = []

    def write(content: str) -> None:
        for _ in range(40):
            shelf.put("trace", {}, content)
            found.append(shelf.get("trace", {}))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(content in contents for content in found)


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


class Constants(torch.nn.Module):
    """Constants of all kinds that graphs hold; `x * 3` holds a tensor that promotes like a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 3 + 0.1 - 1e-30 + float("inf") * 0.5
        x = torch.where(x.isnan(), torch.full_like(x, float("nan")), x)
        x = F.gelu(x, approximate="tanh").to(torch.float16) * torch.tensor([1.5, -0.0], dtype=torch.float16)
        x = x.to("cpu", torch.bfloat16).reshape(2, -1).clamp(min=-(2**31)) + torch.tensor(7)
        return F.pad(x, [1, 0], value=float("-inf")) * torch.ones(3, 2).t().to(torch.int64)


def graph_of(module: torch.nn.Module, *tensors: torch.Tensor) -> torch_ir.Graph:
    graph, _ = torch_ir.trace(module, tensors)
    canonicalise(graph)
    return graph


def test_a_graph_survives_being_written_down() -> None:
    x = torch.randn(2, 2)
    graph = graph_of(Constants(), x)
    data = json.loads(json.dumps(to_data(graph)))
    read = from_data(data)
    expected, found = (torch_ir.function_from_graph(each)(x) for each in (graph, read))
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert to_data(read) == data
    kinds = {kind for kind, *_ in data["constants"]}
    assert {"promotes", "tensor", "float", "str", "int"} <= kinds


class Large(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros(600, 600)


def test_large_constants_are_not_written_down() -> None:
    with pytest.raises(NotText, match="too large"):
        to_data(graph_of(Large(), torch.zeros(600, 600)))


@pytest.mark.parametrize("data", [{}, {"text": 3}, {"text": "graph():\n  return ()", "constants": [["none"]]}])
def test_what_is_no_graph_is_refused(data: Any) -> None:
    with pytest.raises(NotText):
        from_data(data)


def test_code_is_followed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [code_digest([Gate])]
    monkeypatch.setitem(globals(), "activation", lambda x: F.silu(x) + 1)
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
    assert all(each["traces"] == 1 for each in first)
    assert (second["traces"], second["timings"]) == (0, 0)
    assert second["matches"] in [each["matches"] for each in first]

"""Tiny models, and rule sets that do nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

import rewriter
from rewriter import torch_ir
from rewriter.graph import engine
from rewriter.language import RuleSet
from rewriter.measure import choice, regions, whole
from rewriter.runtime import adoption


@pytest.fixture(autouse=True)
def _quiet_and_single_threaded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_rules() -> RuleSet:
    return RuleSet(rules=())


@pytest.fixture
def optimized(no_rules: RuleSet) -> Callable[..., Any]:
    """Optimises with no rules and without timing anything."""

    def run(target: Any, **options: Any) -> Any:
        return rewriter.optimize(target, rules=no_rules, measure=False, **options)

    return run


@pytest.fixture
def rewriting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Puts a function that edits the graph in the place of the rules."""

    def install(edit: Callable[[Any], None], **changes: Any) -> None:
        original = engine.rewrite

        def rewrite(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            graph = result.graph.copy()
            edit(graph)
            return dataclasses.replace(result, graph=graph, **changes)

        monkeypatch.setattr(engine, "rewrite", rewrite)

    return install


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this test keeps graphs, alone."""
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


def new_unet() -> torch.nn.Module:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def new_vae() -> torch.nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        sample_size=16,
    ).eval()


@pytest.fixture
def make_unet() -> Callable[[], torch.nn.Module]:
    return new_unet


@pytest.fixture
def unet() -> torch.nn.Module:
    return new_unet()


@pytest.fixture
def pipeline() -> Any:
    """Stable Diffusion with an untrained UNet and VAE and without text encoder."""
    pipe = diffusers.StableDiffusionPipeline(
        unet=new_unet(),
        vae=new_vae(),
        text_encoder=None,
        tokenizer=None,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet_inputs(batch: int = 2, size: int = 8, **extra: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(batch * 100 + size)
    return {
        "sample": torch.randn(batch, 4, size, size, generator=generator),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(batch, 5, 8, generator=generator),
        **extra,
    }


@pytest.fixture
def inputs() -> Callable[..., dict[str, Any]]:
    return unet_inputs


@pytest.fixture
def equal_to_eager() -> Callable[..., None]:
    """Calls a module and its un-optimised twin, and compares what they return."""

    def check(module: torch.nn.Module, twin: torch.nn.Module, **arguments: Any) -> None:
        expected = tensors_of(twin(**copy.deepcopy(arguments)))
        actual = tensors_of(module(**arguments))
        assert len(actual) == len(expected) > 0
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    return check


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, list | tuple) else []


@pytest.fixture
def weights_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's convolution weights move into channels-last memory, as they do everywhere but on a CPU."""
    monkeypatch.setattr(adoption, "_ORDER_KEPT", frozenset())

"""Names, folders and hub ids, and what is said of those that lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from rewriter.errors import UnknownTarget
from rewriter.models import BUILT_IN, Target, load_target


def draw(target: Target, **arguments: Any) -> Any:
    target.pipeline.set_progress_bar_config(disable=True)
    return target.pipeline(**{**target.example(), "num_inference_steps": 2, "output_type": "np", **arguments}).images


def test_a_saved_folder_draws_what_the_original_draws(tmp_path: Path) -> None:
    original = load_target("sd15-tiny")
    original.pipeline.save_pretrained(tmp_path / "saved")
    loaded = load_target(str(tmp_path / "saved"))
    assert loaded.denoiser == "unet"
    assert (loaded.call["height"], loaded.call["width"]) == (64, 64)
    saved, stored = original.pipeline.unet.state_dict(), loaded.pipeline.unet.state_dict()
    assert all(torch.equal(weight, stored[name]) for name, weight in saved.items())
    # Weights mapped from a file may be aligned differently and take another kernel, which rounds differently.
    np.testing.assert_allclose(draw(loaded), draw(original), atol=1e-3)
    inputs = loaded.denoiser_inputs(batch=1)
    assert inputs["sample"].shape == (1, 4, 8, 8)


def test_a_folder_is_loaded_in_the_wanted_dtype(tmp_path: Path) -> None:
    load_target("sd15-controlnet-tiny").pipeline.save_pretrained(tmp_path / "saved")
    loaded = load_target(str(tmp_path / "saved"), dtype=torch.bfloat16)
    assert loaded.pipeline.unet.dtype == torch.bfloat16
    assert loaded.call["image"].size == (64, 64)


def test_the_bundled_folder_loads_by_its_path() -> None:
    folder = Path(load_target("digits").pipeline.config._name_or_path)
    assert draw(load_target(str(folder)), digits=[4]).shape == (1, 16, 16, 1)


def test_examples_are_fresh_and_seeded() -> None:
    target = load_target("digits")
    first, again, other = target.example(1), target.example(1), target.example(2)
    assert first["generator"] is not again["generator"]
    assert first["generator"].initial_seed() == again["generator"].initial_seed()
    assert first["generator"].initial_seed() != other["generator"].initial_seed()


@pytest.mark.parametrize(
    ("text", "problem", "suggestion"),
    [
        ("sdlx", "found no such folder and no built-in architecture of that name", "sdxl"),
        ("SD15", "found no such folder and no built-in architecture of that name", "sd15"),
        ("flux", "found no such folder and no built-in architecture of that name", "flux-dev"),
        ("./sd15-tinny", "found no such folder and no built-in architecture of that name", "sd15-tiny"),
        ("/no/such/folder", "found no such folder and no built-in architecture of that name", None),
        ("x" * 5000, "found no such folder and no built-in architecture of that name", None),
        ("", "found an empty name", None),
    ],
)
def test_unknown_names(text: str, problem: str, suggestion: str | None) -> None:
    with pytest.raises(UnknownTarget) as caught:
        load_target(text)
    message = str(caught.value)
    assert problem in message
    assert all(name in message for name in BUILT_IN)
    assert (f"Did you mean {suggestion}?" in message) if suggestion else ("Did you mean" not in message)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownTarget, match=r"found a folder without model_index\.json"):
        load_target(str(tmp_path))


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UnknownTarget, match="found a file, expected a folder"):
        load_target(str(file))


@pytest.mark.parametrize("index", ["{", "[]", json.dumps({"_class_name": "NoSuchPipeline"})])
def test_a_broken_folder_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(UnknownTarget, match="diffusers cannot load this folder"):
        load_target(str(tmp_path))


def test_a_hub_id_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host\nand a second line")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", offline)
    with pytest.raises(UnknownTarget, match=r"hub did not deliver it \(OSError: no route to host\)") as caught:
        load_target("somebody/sd15")
    assert "Did you mean sd15?" in str(caught.value)
    assert "second line" not in str(caught.value)


def test_a_pipeline_without_a_denoiser_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiffusionPipeline"}))
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *_, **__: torch.nn.Module())
    with pytest.raises(UnknownTarget, match="has none of the components unet, transformer"):
        load_target(str(tmp_path))

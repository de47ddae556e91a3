"""From the name that a user types to a pipeline that can be called."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rewriter.causes import described
from rewriter.errors import UnknownTarget
from rewriter.models.catalogue import ARCHITECTURES
from rewriter.models.denoiser_inputs import denoiser_inputs, rows_per_picture
from rewriter.models.pictures import lighthouse
from rewriter.models.published import PROMPT

DENOISERS = ("unet", "transformer", "prior", "decoder")
BUILT_IN: dict[str, str] = {
    "digits": "the bundled pipeline, trained on handwritten digits, 16x16",
    **{name: architecture.summary for name, architecture in ARCHITECTURES.items()},
}
# Below this a folder loads before a progress bar could be read.
_LARGE_FOLDER = 500_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A pipeline, what to call it with, and which of its components is the denoiser."""

    name: str
    pipeline: Any
    denoiser: str
    call: Mapping[str, Any]

    def example(self, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments for `pipeline(...)`, with a fresh generator: equal seeds give equal pictures."""
        arguments = dict(self.call)
        arguments["generator"] = torch.Generator().manual_seed(seed)
        return arguments

    def denoiser_inputs(
        self, batch: int | None = None, height: int | None = None, width: int | None = None, *, seed: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments for one call of the denoiser, random but seeded.

        `batch` counts rows (default: those of one picture), `height` and `width` are in pixels (default: as in
        `example`). Raises UnknownTarget where the denoiser's class is not known, ValueError for impossible sizes.
        """
        default_height, default_width = picture_size(self.pipeline, self.denoiser, self.call)
        return denoiser_inputs(
            self.pipeline,
            self.denoiser,
            batch=batch if batch is not None else rows_per_picture(self.pipeline, self.denoiser),
            height=height if height is not None else default_height,
            width=width if width is not None else default_width,
            seed=seed,
            text_length=self.call.get("max_sequence_length"),
        )


def load_target(
    text: str, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None, seed: int = 0
) -> Target:
    """A built-in name, a local folder written by `save_pretrained`, or a hub id, as a pipeline on `device`.

    `device` defaults to the CPU, `dtype` to float32 on a CPU and to the half precision that suits the model elsewhere.
    `seed` sets the random weights of a built-in architecture. Raises UnknownTarget, with the nearest built-in name,
    for anything that cannot be loaded, and where nothing in the pipeline is a denoiser.
    """
    place = torch.device(device if device is not None else "cpu")
    if text == "digits":
        return _digits(dtype or torch.float32, place)
    if text in ARCHITECTURES:
        return _built_in(text, dtype, place, seed)
    kind = dtype or (torch.float32 if place.type == "cpu" else torch.float16)
    if not text.strip():
        raise _unknown(text, "found an empty name, expected a built-in architecture, a folder or a hub id")
    folder = Path(text).expanduser()
    # `Path.is_dir` and `Path.exists` raise for a name that no file can have.
    if os.path.isdir(folder):  # noqa: PTH112
        return _wrap(text, _from_folder(folder, text, kind), place)
    if os.path.exists(folder):  # noqa: PTH110
        raise _unknown(text, "found a file, expected a folder that save_pretrained has written")
    if text.count("/") != 1 or text.startswith(("/", ".", "~")):
        raise _unknown(text, "found no such folder and no built-in architecture of that name")
    return _wrap(text, _from_hub(text, kind), place)


def _digits(dtype: torch.dtype, device: torch.device) -> Target:
    from rewriter.models.digits import load_digits
    from rewriter.models.libraries import quiet

    with quiet():
        pipeline = load_digits(dtype=dtype).to(device)
    call = {"digits": tuple(range(10)) * 3, "num_inference_steps": 20}
    return Target(name="digits", pipeline=pipeline, denoiser="unet", call=call)


def _built_in(name: str, dtype: torch.dtype | None, device: torch.device, seed: int) -> Target:
    from rewriter.models.architectures import build

    architecture = ARCHITECTURES[name]
    half: torch.dtype = getattr(torch, architecture.half)
    kind = dtype or (torch.float32 if device.type == "cpu" else half)
    pipeline = build(architecture, dtype=kind, device=device, seed=seed)
    call = dict(architecture.call)
    if _takes_picture(pipeline):
        call["image"] = lighthouse(call["width"], call["height"])
    return Target(name=name, pipeline=pipeline, denoiser=architecture.denoiser, call=call)


def _from_folder(folder: Path, text: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    from rewriter.models.digits import DigitsPipeline
    from rewriter.models.libraries import dtype_argument, quiet

    index = folder / "model_index.json"
    if not index.is_file():
        raise _unknown(text, "found a folder without model_index.json, expected one that save_pretrained has written")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        ours = json.loads(index.read_text()).get("_class_name") == DigitsPipeline.__name__
        loader = DigitsPipeline if ours else DiffusionPipeline
        with quiet(bars=size > _LARGE_FOLDER):
            return loader.from_pretrained(str(folder), local_files_only=True, **dtype_argument(dtype))
    # Broken files make diffusers, transformers and safetensors raise classes of their own without a common base.
    except Exception as error:
        raise _unknown(text, f"diffusers cannot load this folder ({_shortened(error)})") from error


def _from_hub(text: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    from rewriter.models.libraries import dtype_argument, quiet

    try:
        with quiet(bars=True):
            return DiffusionPipeline.from_pretrained(text, **dtype_argument(dtype))
    # The same holds for the hub client's errors: offline, not found, gated, interrupted.
    except Exception as error:
        offline = os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0")
        reason = "HF_HUB_OFFLINE is set and the local cache lacks it" if offline else _shortened(error)
        raise _unknown(text, f"no such folder here, and the Hugging Face hub did not deliver it ({reason})") from error


def _wrap(name: str, pipeline: Any, device: torch.device) -> Target:
    denoiser = next((part for part in DENOISERS if isinstance(getattr(pipeline, part, None), torch.nn.Module)), None)
    if denoiser is None:
        raise _unknown(name, f"{type(pipeline).__name__} has none of the components {', '.join(DENOISERS)}")
    return Target(name=name, pipeline=pipeline.to(device), denoiser=denoiser, call=_call_for(pipeline, denoiser))


def _call_for(pipeline: Any, denoiser: str) -> dict[str, Any]:
    """Arguments for a pipeline known by its signature only."""
    accepted = inspect.signature(pipeline.__call__).parameters
    call: dict[str, Any] = {"num_inference_steps": 20} if "num_inference_steps" in accepted else {}
    if "prompt" in accepted:
        call["prompt"] = PROMPT
    height, width = picture_size(pipeline, denoiser, call)
    if {"height", "width"} <= accepted.keys():
        call |= {"height": height, "width": width}
    if "num_frames" in accepted and "num_frames" in getattr(pipeline, denoiser).config:
        call["num_frames"] = getattr(pipeline, denoiser).config.num_frames
    if _takes_picture(pipeline):
        call["image"] = lighthouse(width, height)
    return call


def _takes_picture(pipeline: Any) -> bool:
    image = inspect.signature(pipeline.__call__).parameters.get("image")
    return image is not None and (image.default is inspect.Parameter.empty or hasattr(pipeline, "controlnet"))


def picture_size(pipeline: Any, denoiser: str, call: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels that `call` asks for, or that the pipeline draws by default."""
    sample = getattr(getattr(pipeline, denoiser).config, "sample_size", None) or getattr(
        pipeline, "default_sample_size", 64
    )
    scale = int(getattr(pipeline, "vae_scale_factor", 1))
    height, width = sample if isinstance(sample, list | tuple) else (sample, sample)
    return int(call.get("height", height * scale)), int(call.get("width", width * scale))


def _shortened(error: Exception) -> str:
    return textwrap.shorten(described(error), 180, placeholder=" ...")


def _unknown(text: str, reason: str) -> UnknownTarget:
    nearest = difflib.get_close_matches(text.lower().rsplit("/")[-1], BUILT_IN, n=1, cutoff=0.6)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return UnknownTarget(f"target {text!r}: {reason}.{hint} Built-in: {', '.join(BUILT_IN)}.")

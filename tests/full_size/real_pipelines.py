"""Pipelines with random weights, drawn with from fixed latents: eagerly, in twice the precision, and optimised."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.models import architectures
from rewriter.models.catalogue import ARCHITECTURES
from rewriter.models.libraries import quiet
from rewriter.models.pictures import lighthouse
from rewriter.runtime.session import components_of

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
# Beside a share of eager's own error: a quarter of a rounding, and what the tiny networks make of one on a CPU.
FLOORS = {torch.float16: 2.5e-4, torch.bfloat16: 2e-3, torch.float32: 1e-4}
# Optimised against eager's own error, both measured against the same pipeline in twice the precision.
AS_EXACT = 1.1
# Where neither is exact, the two errors may add up, and differ between calls of one kind.
APART = 3.0
# The narrow twins amplify rounding: two ways to round are further apart than that.
AMPLIFIED = 4.0
# An adapter is added into a weight, and the sum is rounded once more.
MERGED = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """full: the published sizes, or the narrow twins of them."""

    full: bool
    device: torch.device

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def name(self, architecture: str) -> str:
        return architecture if self.full else f"{architecture}-tiny"

    def dtype(self, architecture: str) -> torch.dtype:
        half: torch.dtype = getattr(torch, ARCHITECTURES[architecture].half)
        return half if self.cuda else torch.float32

    def optimise(self, target: Any, rules: Any = "default") -> Any:
        """What is kept is measured where that is meant: the narrow twins would gain nothing by it."""
        return rewriter.optimize(target, rules=rules, measure=self.full)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """The latents after the last step and the picture, in float32 or wider on the CPU. picture: None where not asked
    for. seconds: from the call to the last kernel."""

    latents: torch.Tensor
    picture: torch.Tensor | None
    seconds: float


class Painter:
    """A pipeline and what it is called with."""

    def __init__(self, architecture: str, place: Place, **changes: Any) -> None:
        self.architecture, self.place, self.dtype = architecture, place, place.dtype(architecture)
        found = ARCHITECTURES[place.name(architecture)]
        call = {**found.call, "num_inference_steps": 3 if place.full else 2}
        if architecture == "flux-dev":
            # Its T5 encoder would be half of the pipeline's memory for one call.
            found = dataclasses.replace(
                found,
                networks={name: found.networks[name] for name in ("transformer", "vae")},
                tokenizers={},
                arguments=dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
            )
            options, length = found.networks["transformer"].options, call.pop("max_sequence_length")
            del call["prompt"]
            call |= {
                "prompt_embeds": noise(1, length, options.get("joint_attention_dim", 4096), seed=5),
                "pooled_prompt_embeds": noise(1, options.get("pooled_projection_dim", 768), seed=6),
            }
        if architecture == "svd-xt":
            call |= {"num_frames": 8, "decode_chunk_size": 4} if place.full else {"decode_chunk_size": 3}
        if architecture in ("svd-xt", "sd15-controlnet"):
            call["image"] = lighthouse(call["width"], call["height"])
        if not place.full:
            # At 64 pixels the innermost block has one, and its norms make much of a rounding.
            call |= {"height": 128, "width": 128}
        self.call: dict[str, Any] = {**call, **changes}
        self.denoiser_name = found.denoiser
        self.pipe = architectures.build(found, dtype=self.dtype, device=place.device)
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipe, self.denoiser_name)

    def optimise(self, rules: Any = "default") -> None:
        self.place.optimise(self.pipe, rules)

    def draw(self, *, picture: bool = False, **changes: Any) -> Drawn:
        """One call from the same noise as every call of the size. Tensors among the arguments are cast."""
        call = {**self.call, **changes}
        kept: list[torch.Tensor] = []

        def keep(_pipe: Any, _step: int, _timestep: Any, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            kept[:] = [given["latents"]]
            return {}

        arguments = {
            **{name: self.cast(value) if isinstance(value, torch.Tensor) else value for name, value in call.items()},
            "latents": self.cast(self._latents(call)),
            "generator": torch.Generator().manual_seed(0),
            "callback_on_step_end": keep,
            "output_type": "pt" if picture else "latent",
        }
        synchronise(self.place)
        start = time.perf_counter()
        result = self.pipe(**copy.copy(arguments))
        synchronise(self.place)
        seconds = time.perf_counter() - start
        shown = (result.images if hasattr(result, "images") else result.frames) if picture else None
        return Drawn(latents=_out(kept[0]), picture=None if shown is None else _out(shown), seconds=seconds)

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device in the denoiser's present dtype, with values that the pipeline's own dtype has."""
        present = next(weight.dtype for weight in self.denoiser.parameters() if weight.is_floating_point())
        return tensor.to(self.dtype).to(self.place.device, present)

    def _latents(self, call: Mapping[str, Any]) -> torch.Tensor:
        height, width = call["height"] // self.pipe.vae_scale_factor, call["width"] // self.pipe.vae_scale_factor
        pictures = call.get("num_images_per_prompt", 1)
        if self.architecture == "flux-dev":
            return noise(pictures, height * width // 4, self.denoiser.config.in_channels)
        if self.architecture == "svd-xt":
            return noise(1, call["num_frames"], 4, height, width)
        return noise(pictures, 4, height, width)

    @contextlib.contextmanager
    def widened(self) -> Iterator[None]:
        """The same weights in twice the precision; casting them there and back loses nothing."""
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        with quiet():
            self.pipe.to(WIDER[self.dtype])
        try:
            yield
        finally:
            with quiet():
                self.pipe.to(self.dtype)
            torch.backends.cudnn.allow_tf32 = before
            free(self.place)

    def fits_widened(self) -> bool:
        """Whether the memory suffices to hold all weights in twice the precision, and to draw."""
        if not self.place.cuda:
            return True
        held = sum(
            weight.numel() * weight.element_size()
            for network in self.pipe.components.values()
            if isinstance(network, torch.nn.Module)
            for weight in network.parameters()
        )
        free(self.place)
        return torch.cuda.mem_get_info(self.place.device)[0] > held + (12 << 30)

    def spend(self) -> None:
        """Lets go of all memory, whoever still holds the pipeline."""
        with contextlib.suppress(Exception):
            self.pipe.remove_all_hooks()
        rewriter.restore(self.pipe)
        for network in self.pipe.components.values():
            if isinstance(network, torch.nn.Module):
                for weight in (*network.parameters(), *network.buffers()):
                    weight.data = weight.data.new_empty(0)
        free(self.place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What eager draws, and how far it is itself from the same in twice the precision (None: not known)."""

    eager: Drawn
    exact: Drawn | None

    def compare(self, drawn: Drawn, painter: Painter, share: float = AS_EXACT) -> dict[str, float]:
        """Asserts that `drawn` is as good as eager. Returns the largest error and the largest ratio to eager's own."""
        dtype, share = painter.dtype, share if painter.place.full else max(share, AMPLIFIED)
        worst = {"error": 0.0, "eagers_error": 0.0, "ratio": 0.0, "apart": 0.0}
        for what in ("latents", "picture"):
            actual, eager = getattr(drawn, what), getattr(self.eager, what)
            if eager is None:
                continue
            assert actual.shape == eager.shape
            assert bool(actual.isfinite().all()), f"{what}: NaN or Inf"
            assert float(actual.std()) > 1e-4, f"{what}: constant"
            apart = relative_error(actual, eager)
            if self.exact is None:
                error, own = apart, 0.0
                # Three steps of a network of a hundred layers: some roundings of each.
                limit = 16 * torch.finfo(dtype).eps
            else:
                exact = getattr(self.exact, what)
                error, own = relative_error(actual, exact), relative_error(eager, exact)
                limit = share * own + FLOORS[dtype]
            found = {"error": error, "eagers_error": own, "ratio": error / max(own, 1e-12), "apart": apart}
            worst = {name: max(value, found[name]) for name, value in worst.items()}
            assert error <= limit, f"{what}: off by {error:.3g}, eager by {own:.3g}, allowed {limit:.3g}"
        return worst


def expected(painter: Painter, **call: Any) -> Expected:
    """Drawn before the pipeline is optimised."""
    eager = painter.draw(**call)
    if not painter.fits_widened():
        return Expected(eager=eager, exact=None)
    with painter.widened():
        return Expected(eager=eager, exact=painter.draw(**call))


def adapter(painter: Painter, *, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """What the file of a LoRA over the attention of the UNet holds: it changes what a layer returns by a third."""
    generator = torch.Generator(painter.place.device).manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for name, layer in painter.denoiser.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down, up = (rank, layer.in_features), (layer.out_features, rank)
            for part, shape, factor in (("A", down, layer.in_features**-0.5), ("B", up, 0.2 * rank**-0.5)):
                random = torch.randn(*shape, generator=generator, device=painter.place.device)
                made[f"unet.{name}.lora_{part}.weight"] = (factor * random).to(painter.dtype)
    return made


def worst(found: list[dict[str, float]]) -> dict[str, float]:
    """The largest of each figure."""
    return {name: max(each[name] for each in found) for name in found[0]}


def traces(pipe: Any) -> dict[str, int]:
    return {name: part.captures for name, part in rewriter.report(pipe).components.items()}


def graphs(target: Any) -> dict[str, int]:
    """How many sets of extents each network replays now: none on a CPU."""
    return {
        name: sum(program.replays for program in component.programs)
        for name, component in components_of(target).items()
    }


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def free(place: Place) -> None:
    gc.collect()
    if place.cuda:
        torch.cuda.empty_cache()


def synchronise(place: Place) -> None:
    if place.cuda:
        torch.cuda.synchronize(place.device)


def _out(value: Any) -> torch.Tensor:
    tensor = value if isinstance(value, torch.Tensor) else torch.stack([torch.as_tensor(each) for each in value])
    return tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32))

"""Random inputs for one call of a pipeline's denoiser, as the pipeline itself would make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rewriter.errors import UnknownTarget

Inputs = dict[str, Any]


def denoiser_inputs(
    pipeline: Any, denoiser: str, *, batch: int, height: int, width: int, seed: int = 0, text_length: int | None = None
) -> Inputs:
    """Keyword arguments for `getattr(pipeline, denoiser)(...)`, on its device and in its dtype.

    `batch` counts the rows that the denoiser sees (two per picture under classifier-free guidance), `height` and
    `width` are those of the pictures in pixels; a video model gets as many frames as its configuration says.
    `text_length` is the number of text tokens (default: 512 for Flux, 77 elsewhere). With a ControlNet the residuals
    come from one call of it. The result has `return_dict=False`.
    Raises UnknownTarget for a denoiser of another class than those known here, ValueError for a size that the
    denoiser cannot have.
    """
    module = getattr(pipeline, denoiser)
    kind = type(module).__name__
    maker = _MAKERS.get(kind)
    if maker is None:
        raise UnknownTarget(
            f"{denoiser}: no inputs are known for a {kind}; known: {', '.join(sorted(_MAKERS))}. "
            "Call the whole pipeline instead."
        )
    scale = int(getattr(pipeline, "vae_scale_factor", 1))
    for name, extent in (("height", height), ("width", width)):
        if extent <= 0 or extent % scale:
            raise ValueError(f"{name}: found {extent}, expected a positive multiple of {scale}")
    source = _Source(module, batch=batch, height=height // scale, width=width // scale, seed=seed, text=text_length)
    with torch.no_grad():
        inputs = maker(source)
        if getattr(pipeline, "controlnet", None) is not None and kind == "UNet2DConditionModel":
            inputs |= _control_residuals(pipeline.controlnet, inputs, source.uniform(batch, 3, height, width))
    return {**inputs, "return_dict": False}


def rows_per_picture(pipeline: Any, denoiser: str) -> int:
    """The rows that the denoiser sees for one picture: two under classifier-free guidance, one where the guidance was
    distilled into the model."""
    return 1 if type(getattr(pipeline, denoiser)).__name__ == "FluxTransformer2DModel" else 2


class _Source:
    """Seeded random tensors with the dtype and device of `module`, and the extents that were asked for."""

    def __init__(self, module: Any, *, batch: int, height: int, width: int, seed: int, text: int | None) -> None:
        parameter = next(module.parameters())
        self.config, self.dtype, self.device = module.config, parameter.dtype, parameter.device
        self.batch, self.height, self.width, self.text = batch, height, width, text
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        # Drawn on the CPU in float32, so that every device and dtype gets the same numbers.
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device, self.dtype)

    def rows(self, *values: float) -> torch.Tensor:
        return torch.tensor([values] * self.batch, device=self.device, dtype=self.dtype)

    def latent(self) -> torch.Tensor:
        return self.normal(self.batch, int(self.config.in_channels), self.height, self.width)

    def timestep(self) -> torch.Tensor:
        return torch.tensor(500, device=self.device)


def _plain_unet(source: _Source) -> Inputs:
    inputs: Inputs = {"sample": source.latent(), "timestep": source.timestep()}
    classes = source.config.num_class_embeds
    if classes is not None:
        inputs["class_labels"] = torch.arange(source.batch, device=source.device) % classes
    return inputs


def _text_unet(source: _Source) -> Inputs:
    config = source.config
    inputs: Inputs = {
        "sample": source.latent(),
        "timestep": source.timestep(),
        "encoder_hidden_states": source.normal(source.batch, source.text or 77, int(config.cross_attention_dim)),
    }
    if config.addition_embed_type == "text_time":
        height, width = source.height * 8.0, source.width * 8.0
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": source.normal(source.batch, pooled),
            "time_ids": source.rows(height, width, 0.0, 0.0, height, width),
        }
    return inputs


def _control_residuals(controlnet: Any, inputs: Inputs, picture: torch.Tensor) -> Inputs:
    down, middle = controlnet(**inputs, controlnet_cond=picture, conditioning_scale=1.0, return_dict=False)
    return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}


def _video_unet(source: _Source) -> Inputs:
    config = source.config
    shape = (source.batch, int(config.num_frames), int(config.in_channels), source.height, source.width)
    return {
        "sample": source.normal(*shape),
        "timestep": torch.tensor(1.0, device=source.device),
        "encoder_hidden_states": source.normal(source.batch, 1, int(config.cross_attention_dim)),
        "added_time_ids": source.rows(6.0, 127.0, 0.02),
    }


def _flux(source: _Source) -> Inputs:
    if source.height % 2 or source.width % 2:
        raise ValueError(f"latent of {source.height}x{source.width}: Flux packs 2x2 patches, expected even extents")
    config, batch, length = source.config, source.batch, source.text or 512
    rows, columns = source.height // 2, source.width // 2
    places = torch.zeros(rows, columns, 3, device=source.device, dtype=source.dtype)
    places[..., 1] += torch.arange(rows, device=source.device)[:, None]
    places[..., 2] += torch.arange(columns, device=source.device)
    inputs: Inputs = {
        "hidden_states": source.normal(batch, rows * columns, int(config.in_channels)),
        "encoder_hidden_states": source.normal(batch, length, int(config.joint_attention_dim)),
        "pooled_projections": source.normal(batch, int(config.pooled_projection_dim)),
        "timestep": torch.full((batch,), 0.5, device=source.device, dtype=source.dtype),
        "img_ids": places.reshape(rows * columns, 3),
        "txt_ids": torch.zeros(length, 3, device=source.device, dtype=source.dtype),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((batch,), 3.5, device=source.device, dtype=torch.float32)
    return inputs


_MAKERS: dict[str, Callable[[_Source], Inputs]] = {
    "FluxTransformer2DModel": _flux,
    "UNet2DConditionModel": _text_unet,
    "UNet2DModel": _plain_unet,
    "UNetSpatioTemporalConditionModel": _video_unet,
}

"""The bundled pipeline: a DDIM sampler that draws the digits it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from rewriter.models.libraries import dtype_argument

DIGITS_FOLDER = Path(__file__).parent.parent / "demo" / "digits"


class DigitsPipeline(DDIMPipeline):  # type: ignore[misc]
    """`DDIMPipeline` over a class-conditional `UNet2DModel`: one class per digit.

    Like its base class it is saved with `save_pretrained` and loaded with `from_pretrained`.
    """

    @torch.no_grad()
    def __call__(
        self,
        digits: Sequence[int] = tuple(range(10)),
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 20,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any, ...]:
        """Draws one picture per entry of `digits`.

        `generator` seeds the noise: one for the whole batch, or a list with one per picture. `output_type` is "pil"
        (grey `PIL.Image`s), "np" (`[N, H, W, 1]`) or "pt" (`[N, 1, H, W]` tensor), the latter two in 0..1.
        Raises ValueError for a digit outside 0..9 and for another `output_type`.
        """
        strange = [digit for digit in digits if not 0 <= digit <= 9]
        if strange:
            raise ValueError(f"digits: found {strange[0]}, expected whole numbers from 0 to 9")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: found {output_type!r}, expected 'pil', 'np' or 'pt'")
        device = self._execution_device
        size = self.unet.config.sample_size
        shape = (len(digits), self.unet.config.in_channels, size, size)
        image = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        labels = torch.tensor(list(digits), device=device)
        self.scheduler.set_timesteps(num_inference_steps)
        for step in self.progress_bar(self.scheduler.timesteps):
            prediction = self.unet(image, step, class_labels=labels).sample
            image = self.scheduler.step(prediction, step, image).prev_sample
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.float().cpu().permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                image = self.numpy_to_pil(image)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=image) if return_dict else (image,)


def load_digits(folder: str | Path = DIGITS_FOLDER, *, dtype: torch.dtype = torch.float32) -> DigitsPipeline:
    """The trained pipeline in `folder`, by default the one that ships with the package, on the CPU."""
    pipeline: DigitsPipeline = DigitsPipeline.from_pretrained(
        str(folder), local_files_only=True, **dtype_argument(dtype)
    )
    pipeline.unet.eval().requires_grad_(False)
    return pipeline

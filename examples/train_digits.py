"""Trains the small diffusion pipeline that `rewriter demo` draws with.

    python examples/train_digits.py --out digits --sheet digits.png     # about 17 minutes on one CPU core
    python examples/train_digits.py --steps 200 --out digits            # a quick try, already legible in part

The data are scikit-learn's 1,797 handwritten digits (8x8 pixels, 17 grey levels), enlarged to 16x16. The result is a
`DigitsPipeline` folder whose weights are stored as float16: they are rounded once, at the end, so that a float32 load
gives exactly the network whose samples were inspected.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits as handwritten_digits
from torch.nn.functional import interpolate, mse_loss
from tqdm import tqdm

from rewriter.demo.drawing import grid
from rewriter.models.digits import DIGITS_FOLDER, DigitsPipeline, load_digits
from rewriter.models.libraries import quiet

SIZE = 16


def training_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """All digits as [N, 1, 16, 16] float32 in -1..1, and their labels [N]."""
    data = handwritten_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    pictures = interpolate(pictures, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return pictures, torch.tensor(data.target)


def new_unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=32,
        num_class_embeds=10,
    )


def new_scheduler() -> DDIMScheduler:
    # Velocity prediction down to pure noise keeps the first of few sampling steps meaningful.
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=True,
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then half a cosine down to zero."""
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(*, steps: int, batch: int, peak: float, seed: int) -> tuple[UNet2DModel, DDIMScheduler]:
    """The trained network, its weights averaged over the last steps, and the scheduler that samples from it."""
    torch.manual_seed(seed)
    pictures, labels = training_pictures()
    unet, scheduler = new_unet().to(memory_format=torch.channels_last), new_scheduler()
    optimiser = torch.optim.AdamW(unet.parameters(), lr=peak, weight_decay=1e-3)
    average = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    unet.train()
    losses: list[float] = []
    bar = tqdm(range(steps), unit="step", mininterval=2)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        chosen = torch.randint(len(pictures), (batch,))
        clean, noise = pictures[chosen], torch.randn(batch, 1, SIZE, SIZE)
        times = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        noisy = scheduler.add_noise(clean, noise, times)
        velocity = scheduler.get_velocity(clean, noise, times)
        loss = mse_loss(unet(noisy, times, class_labels=labels[chosen]).sample, velocity)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        average.step(unet.parameters())
        losses = [*losses[-199:], loss.item()]
        bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", refresh=False)
    average.copy_to(unet.parameters())
    return unet, scheduler


def save(unet: UNet2DModel, scheduler: DDIMScheduler, out: Path) -> None:
    stored = new_unet()
    stored.load_state_dict(unet.state_dict())
    torch.nn.Module.to(stored, torch.float16)
    with quiet():
        DigitsPipeline(unet=stored, scheduler=scheduler).save_pretrained(out)


def draw(folder: Path, sheet: Path) -> None:
    """What the stored weights draw: eight rows of all digits."""
    with quiet():
        pipeline = load_digits(folder)
    generator = torch.Generator().manual_seed(0)
    grid(pipeline(tuple(range(10)) * 8, generator=generator, output_type="np").images, columns=10).save(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DIGITS_FOLDER, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="pictures per step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="also draw samples into this PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    unet, scheduler = train(steps=arguments.steps, batch=arguments.batch, peak=arguments.rate, seed=arguments.seed)
    save(unet, scheduler, arguments.out)
    if arguments.sheet:
        draw(arguments.out, arguments.sheet)


if __name__ == "__main__":
    main()

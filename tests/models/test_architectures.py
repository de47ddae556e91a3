"""The built-in architectures: published sizes, the same blocks in the tiny twins, seeded weights, calls that work."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

from rewriter.models import Target, load_target
from rewriter.models.architectures import new_network
from rewriter.models.catalogue import ARCHITECTURES

# diffusers' Euler scheduler and numpy 2 disagree about a keyword; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU, META = torch.device("cpu"), torch.device("meta")
TINY = [name for name in ARCHITECTURES if name.endswith("-tiny")]

# Millions of parameters of the published models.
PUBLISHED = {
    ("sd15", "unet"): 859.521,
    ("sd15", "vae"): 83.654,
    ("sd15", "text_encoder"): 123.060,
    ("sd15-controlnet", "controlnet"): 361.279,
    ("sdxl", "unet"): 2567.464,
    ("sdxl", "text_encoder_2"): 694.660,
    ("svd-xt", "unet"): 1524.623,
    ("svd-xt", "vae"): 97.743,
    ("svd-xt", "image_encoder"): 632.077,
    ("flux-dev", "transformer"): 11901.408,
    ("flux-dev", "vae"): 83.820,
    ("flux-dev", "text_encoder_2"): 4762.310,
}


@pytest.fixture(scope="module", params=TINY)
def tiny(request: pytest.FixtureRequest) -> Target:
    target = load_target(request.param)
    target.pipeline.set_progress_bar_config(disable=True)
    return target


@pytest.mark.parametrize(("architecture", "network"), PUBLISHED)
def test_full_size_has_the_published_number_of_parameters(architecture: str, network: str) -> None:
    module = new_network(ARCHITECTURES[architecture].networks[network], dtype=torch.float16, device=META)
    assert sum(weight.numel() for weight in module.parameters()) / 1e6 == pytest.approx(
        PUBLISHED[architecture, network], abs=1e-3
    )


@pytest.mark.parametrize("name", ["sd15", "sd15-controlnet", "sdxl", "svd-xt"])
def test_tiny_unet_has_the_layers_of_its_original(name: str) -> None:
    def layers(architecture: str) -> collections.Counter[str]:
        unet = new_network(ARCHITECTURES[architecture].networks["unet"], dtype=torch.float32, device=META)
        # The 1x1 shortcuts, and there alone, depend on widths being equal.
        return collections.Counter(
            type(module).__name__ for path, module in unet.named_modules() if not path.endswith("conv_shortcut")
        )

    assert layers(f"{name}-tiny") == layers(name)


def test_a_call_draws_a_picture(tiny: Target) -> None:
    arguments = {**tiny.example(seed=3), "num_inference_steps": 1, "output_type": "np"}
    output = tiny.pipeline(**arguments)
    pictures = np.asarray(getattr(output, "images", getattr(output, "frames", None)))
    assert pictures.shape[-3:] == (64, 64, 3)
    assert np.isfinite(pictures).all()
    assert pictures.std() > 0.01


def test_every_component_has_varied_weights_in_eval_mode(tiny: Target) -> None:
    for name, network in tiny.pipeline.components.items():
        if not isinstance(network, torch.nn.Module):
            continue
        assert not network.training, name
        for path, weight in network.named_parameters():
            assert not weight.requires_grad, f"{name}.{path}"
            assert weight.numel() == 1 or weight.unique().numel() > 1, f"{name}.{path} is constant"


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (2, 96, 64)])
def test_denoiser_inputs_fit_the_denoiser(tiny: Target, batch: int, height: int, width: int) -> None:
    denoiser = getattr(tiny.pipeline, tiny.denoiser)
    with torch.no_grad():
        (result,) = denoiser(**tiny.denoiser_inputs(batch, height, width))
    pixels = height // 8 * (width // 8)
    assert result.shape[0] == batch
    assert result.numel() % pixels == 0
    assert torch.isfinite(result).all()


def test_denoiser_inputs_are_seeded(tiny: Target) -> None:
    def latent(seed: int) -> torch.Tensor:
        value = next(iter(tiny.denoiser_inputs(seed=seed).values()))
        assert isinstance(value, torch.Tensor)
        return value

    assert torch.equal(latent(1), latent(1))
    assert not torch.equal(latent(1), latent(2))


def test_denoiser_inputs_refuse_a_size_between_latent_pixels(tiny: Target) -> None:
    with pytest.raises(ValueError, match=r"width: found 60, expected a positive multiple of (8|16)"):
        tiny.denoiser_inputs(1, 64, 60)


def test_controlnet_inputs_carry_its_residuals() -> None:
    inputs = load_target("sd15-controlnet-tiny").denoiser_inputs()
    assert len(inputs["down_block_additional_residuals"]) == 12
    assert inputs["mid_block_additional_residual"].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_are_created_in_the_wanted_dtype(dtype: torch.dtype) -> None:
    target = load_target("flux-dev-tiny", dtype=dtype)
    for network in target.pipeline.components.values():
        if isinstance(network, torch.nn.Module):
            assert {weight.dtype for weight in network.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


def test_weights_follow_the_seed_and_leave_the_callers_random_state_alone() -> None:
    part = ARCHITECTURES["sd15-tiny"].networks["unet"]
    before = torch.random.get_rng_state()
    first, again, other = (new_network(part, dtype=torch.float32, device=CPU, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [next(network.parameters()) for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])

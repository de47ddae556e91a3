"""Schedulers step without asking the GPU for a number, which is played by tensors that refuse to tell theirs."""

from __future__ import annotations

import copy
import inspect
import pathlib
import pickle
from typing import Any

import diffusers
import pytest
import torch

import rewriter
from rewriter.runtime import schedulers
from rewriter.runtime.schedulers import HostStep

WAITING = [getattr(diffusers, name) for name in schedulers._WAITING]


class OnGpu(torch.Tensor):
    """A tensor on the CPU that says that it is on a GPU, and raises where a value would have to come from there."""

    is_cuda = True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "cpu":
            return args[0].as_subclass(torch.Tensor)
        if name in ("item", "__bool__", "__index__", "tolist", "__int__", "nonzero"):
            raise AssertionError(f"{name} waits for the GPU")
        if name == "__getitem__" and not isinstance(args[0], cls):
            raise AssertionError("a table on the host is indexed with a number on the GPU")
        return super().__torch_function__(func, types, args, kwargs or {})


class Pipeline(diffusers.DiffusionPipeline):
    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


def pipeline(scheduler: Any) -> Pipeline:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    return Pipeline(diffusers.UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks), scheduler)


def walk(scheduler: Any, kind: type[torch.Tensor]) -> torch.Tensor:
    """A sample after all steps, of results that are drawn."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(5)
    scheduler.timesteps = scheduler.timesteps.as_subclass(kind)
    sample = torch.randn(1, 3, 8, 8, generator=generator)
    for timestep in scheduler.timesteps:
        assert type(timestep) is kind
        output = torch.randn(sample.shape, generator=generator)
        more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        sample = scheduler.step(output, timestep, sample, **more).prev_sample
    assert type(scheduler.timesteps) is kind
    return sample


@pytest.mark.parametrize("kind", WAITING)
def test_it_steps_alike_without_waiting(kind: Any) -> None:
    expected = walk(kind(), torch.Tensor)
    with pytest.raises(AssertionError, match="GPU"):
        walk(kind(), OnGpu)
    pipe = rewriter.optimize(pipeline(kind()))
    for _ in range(2):
        assert torch.equal(walk(pipe.scheduler, OnGpu), expected)
    assert torch.equal(walk(pipe.scheduler, torch.Tensor), expected)
    with torch.inference_mode():
        assert torch.equal(walk(pipe.scheduler, OnGpu), expected)
    rewriter.restore(pipe)
    assert "step" not in vars(pipe.scheduler)


def test_pipelines_see_the_arguments_of_step() -> None:
    pipe = rewriter.optimize(pipeline(diffusers.DDIMScheduler()))
    assert isinstance(pipe.scheduler.step, HostStep)
    assert "eta" in inspect.signature(pipe.scheduler.step).parameters
    rewriter.restore(pipe)


def test_the_timestep_may_be_named_or_another_number() -> None:
    scheduler = diffusers.DDIMScheduler()
    pipe = rewriter.optimize(pipeline(scheduler))
    scheduler.set_timesteps(5)
    output, sample = torch.randn(2, 1, 3, 8, 8)
    expected = diffusers.DDIMScheduler.step(scheduler, output, int(scheduler.timesteps[1]), sample).prev_sample
    assert torch.equal(scheduler.step(output, int(scheduler.timesteps[1]), sample).prev_sample, expected)
    alone = scheduler.timesteps[1].clone()
    assert torch.equal(scheduler.step(output, alone, sample).prev_sample, expected)
    scheduler.timesteps = scheduler.timesteps.as_subclass(OnGpu)
    named = scheduler.step(model_output=output, timestep=scheduler.timesteps[1], sample=sample).prev_sample
    assert torch.equal(named, expected)
    part = scheduler.timesteps[1:]
    assert torch.equal(scheduler.step(output, part[0], sample).prev_sample, expected)
    rewriter.restore(pipe)


def test_an_error_of_the_scheduler_leaves_its_timesteps() -> None:
    scheduler = diffusers.DDIMScheduler()
    pipe = rewriter.optimize(pipeline(scheduler))
    scheduler.set_timesteps(5)
    scheduler.timesteps = every = scheduler.timesteps.as_subclass(OnGpu)
    with pytest.raises(RuntimeError):
        scheduler.step(torch.randn(1, 3, 8, 8), every[0], torch.randn(1, 3, 7, 7))
    assert scheduler.timesteps is every
    rewriter.restore(pipe)


def test_a_shared_scheduler_is_given_back_by_the_last() -> None:
    scheduler = diffusers.PNDMScheduler()
    one, two = rewriter.optimize(pipeline(scheduler)), rewriter.optimize(pipeline(scheduler))
    rewriter.restore(one)
    assert isinstance(scheduler.step, HostStep)
    rewriter.restore(two)
    assert "step" not in vars(scheduler)


def test_one_that_is_exchanged_later_is_followed() -> None:
    first = diffusers.PNDMScheduler()
    pipe = rewriter.optimize(pipeline(first))
    second = pipe.scheduler = diffusers.DDIMScheduler.from_config(first.config)
    pipe.unet(torch.randn(1, 3, 8, 8), 1)
    assert isinstance(second.step, HostStep)
    rewriter.restore(pipe)
    assert "step" not in vars(first)
    assert "step" not in vars(second)


def test_copies_and_files_have_the_own_step(tmp_path: pathlib.Path) -> None:
    scheduler = diffusers.DDIMScheduler()
    pipe = rewriter.optimize(pipeline(scheduler))
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert not isinstance(other.step, HostStep)
        assert other.step.__self__ is other
        walk(other, torch.Tensor)
    scheduler.save_pretrained(tmp_path / "optimised")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "plain")
    (optimised,), (plain,) = (list((tmp_path / name).iterdir()) for name in ("optimised", "plain"))
    assert optimised.read_bytes() == plain.read_bytes()
    rewriter.restore(pipe)


def test_other_schedulers_are_left_alone() -> None:
    class Mine(diffusers.DDIMScheduler):
        pass

    for scheduler in (diffusers.EulerDiscreteScheduler(), Mine()):
        pipe = rewriter.optimize(pipeline(scheduler))
        assert "step" not in vars(scheduler)
        rewriter.restore(pipe)

"""LoRA files, loaded into whole pipelines and compared with eager network by network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import rewriter
from rewriter.language import RuleSet
from rewriter.models.libraries import quiet
from rewriter.models.targets import Target, load_target

Step = Callable[[Any, Path], Any]

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """scaled: the argument of the call that holds the scale. targets: layers of the denoiser with an adapter.

    limit: the largest relative L2 error of a network. The random sd15-tiny amplifies rounding: eager itself is up to
    3e-4 from its result in float64.
    """

    scaled: str
    targets: tuple[str, ...]
    limit: float = 1e-5


CASES = {
    "sd15-tiny": Case(
        "cross_attention_kwargs", ("to_q", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "proj_in"), 1e-3
    ),
    "sdxl-tiny": Case("cross_attention_kwargs", ("to_q", "to_k", "to_v", "to_out.0")),
    "flux-dev-tiny": Case("joint_attention_kwargs", ("to_q", "to_k", "add_q_proj", "proj_out")),
}
STEPS: tuple[Step, ...] = (
    lambda pipe, folder: pipe.load_lora_weights(folder / "one", adapter_name="one"),
    lambda pipe, _: pipe.set_adapters("one", 0.7),
    lambda pipe, folder: pipe.load_lora_weights(folder / "two", adapter_name="two"),
    lambda pipe, _: pipe.set_adapters(["one", "two"], [0.5, 1.2]),
    lambda pipe, _: pipe.disable_lora(),
    lambda pipe, _: pipe.enable_lora(),
    lambda pipe, _: pipe.fuse_lora(lora_scale=0.8),
    lambda pipe, _: pipe.unfuse_lora(),
    lambda pipe, _: pipe.delete_adapters("one"),
    lambda pipe, _: pipe.unload_lora_weights(),
    lambda pipe, folder: pipe.load_lora_weights(folder / "one"),
    lambda pipe, _: pipe.unload_lora_weights(),
)
FEW_STEPS = (STEPS[0], STEPS[6], STEPS[7], STEPS[9])


def new_target(name: str) -> Target:
    with quiet():
        target = load_target(name)
    target.pipeline.set_progress_bar_config(disable=True)
    return target


def write_lora(name: str, folder: Path, *, rank: int, text: bool) -> None:
    """Writes a file as trainers do: the adapters of the denoiser and, with `text`, of CLIP's text encoders."""
    target = new_target(name)
    pipe, layers = target.pipeline, {}
    targets = {target.denoiser: list(CASES[name].targets)}
    if text:
        encoders = {
            part: network for part, network in pipe.components.items() if type(network).__name__.startswith("CLIPText")
        }
        targets |= {part: ["q_proj", "v_proj", "fc1"] for part in encoders}
    torch.manual_seed(rank)
    for part, names in targets.items():
        network = getattr(pipe, part)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, init_lora_weights=False)
        network.add_adapter(config, adapter_name="default")
        state = get_peft_model_state_dict(network)
        layers[f"{part}_lora_layers"] = state if part == "transformer" else convert_state_dict_to_diffusers(state)
    type(pipe).save_lora_weights(folder, **layers)


class Twins:
    """An optimised pipeline whose networks are each compared with those of an eager one, call by call."""

    def __init__(self, name: str, rules: Any) -> None:
        self.target, self.eager = new_target(name), new_target(name)
        rewriter.optimize(self.target.pipeline, rules=rules, measure=False)
        self.worst = 0.0
        self.result: torch.Tensor | None = None
        for part in self.components():
            network, twin = getattr(self.target.pipeline, part), getattr(self.eager.pipeline, part)
            network.register_forward_hook(self._comparing(twin), with_kwargs=True)

    def components(self) -> dict[str, Any]:
        found = rewriter.runtime.session.components_of(self.target.pipeline)
        return {name: component for name, component in found.items() if "." not in name}

    def step(self, step: Step, folder: Path) -> None:
        with quiet():
            step(self.target.pipeline, folder)
            step(self.eager.pipeline, folder)

    def call(self, **options: Any) -> torch.Tensor:
        arguments = self.target.example() | {"num_inference_steps": 1, "output_type": "latent"} | options
        self.worst = 0.0
        result: torch.Tensor = self.target.pipeline(**arguments).images
        return result

    def _comparing(self, twin: torch.nn.Module) -> Callable[..., None]:
        def compare(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            # The scale of a text encoder's adapters is set from outside, for the length of its call.
            scales = [scaling for m in module.modules() if isinstance(scaling := getattr(m, "scaling", None), dict)]
            others = [scaling for m in twin.modules() if isinstance(scaling := getattr(m, "scaling", None), dict)]
            before = [dict(scaling) for scaling in others]
            for mine, its in zip(scales, others, strict=True):
                its.update(mine)
            expected = twin(*args, **kwargs)
            for scaling, old in zip(others, before, strict=True):
                scaling.update(old)
            results = (value[0] if isinstance(value, tuple) else value.to_tuple()[0] for value in (output, expected))
            a, b = results
            self.worst = max(self.worst, float((a - b).norm() / b.norm()))

        return compare


@pytest.mark.parametrize(
    ("name", "rules", "steps"),
    [("sd15-tiny", "default", STEPS), ("flux-dev-tiny", "none", STEPS), ("sdxl-tiny", "none", FEW_STEPS)],
    ids=["sd15", "flux", "sdxl"],
)
def test_lora_files_take_effect_on_the_next_call_without_another_trace(
    name: str, rules: str, steps: tuple[Step, ...], tmp_path: Path
) -> None:
    write_lora(name, tmp_path / "one", rank=2, text=True)
    write_lora(name, tmp_path / "two", rank=5, text=False)
    twins = Twins(name, RuleSet(rules=()) if rules == "none" else rules)
    bare = twins.call()
    twins.call()
    used = {part: component for part, component in twins.components().items() if component.journal.calls}
    assert len(used) >= 2
    held = {part: component.memory() for part, component in used.items()}
    effects = 0
    for number, step in enumerate(steps):
        twins.step(step, tmp_path)
        for extra in ({CASES[name].scaled: {"scale": 0.4}}, {}):
            picture = twins.call(**extra)
            assert twins.worst <= CASES[name].limit, (number, extra)
        effects += not torch.allclose(picture, bare, rtol=1e-2, atol=1e-2)
    assert effects >= len(steps) // 2
    for part, component in used.items():
        assert component.journal.captures == 1, part
        assert component.journal.reason is None
        assert component.memory() == held[part]
    torch.testing.assert_close(twins.call(), bare, rtol=1e-2, atol=1e-2)


def test_a_hot_swapped_adapter_takes_effect(tmp_path: Path) -> None:
    write_lora("flux-dev-tiny", tmp_path / "one", rank=2, text=False)
    write_lora("flux-dev-tiny", tmp_path / "two", rank=5, text=False)
    twins = Twins("flux-dev-tiny", RuleSet(rules=()))
    twins.call()
    twins.step(lambda pipe, _: pipe.enable_lora_hotswap(target_rank=8), tmp_path)
    pictures = []
    for file, swap in (("one", False), ("two", True), ("one", True)):
        twins.step(
            lambda pipe, folder, file=file, swap=swap: pipe.load_lora_weights(  # type: ignore[misc]
                folder / file, adapter_name="default", hotswap=swap
            ),
            tmp_path,
        )
        pictures.append(twins.call())
        assert twins.worst <= 1e-5
    assert not torch.allclose(pictures[0], pictures[1], rtol=1e-2)
    torch.testing.assert_close(pictures[0], pictures[2], rtol=1e-3, atol=1e-3)
    assert twins.components()["transformer"].journal.captures == 1


def test_nothing_of_an_unloaded_lora_stays(tmp_path: Path) -> None:
    import gc

    write_lora("sd15-tiny", tmp_path, rank=2, text=True)
    target = new_target("sd15-tiny")
    pipe = target.pipeline
    rewriter.optimize(pipe, rules=RuleSet(rules=()), measure=False)
    arguments = {"num_inference_steps": 1, "output_type": "latent"}

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(item, torch.nn.Parameter) for item in gc.get_objects())

    pipe(**target.example() | arguments)
    pipe(**target.example() | arguments)
    before = tensors()
    for _ in range(2):
        with quiet():
            pipe.load_lora_weights(tmp_path)
            pipe(**target.example() | arguments)
            pipe.unload_lora_weights()
        pipe(**target.example() | arguments)
        assert tensors() == before
    assert isinstance(pipe, diffusers.StableDiffusionPipeline)

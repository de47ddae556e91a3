"""Whatever is done to a network in whatever order, it gives what a twin gives to which the same is done eagerly."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig

import rewriter
from rewriter.capture.compare import relative_error
from rewriter.runtime.networks import component_of

# Relative L2. Half precision is what a rounding of each layer makes of it.
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 1e-1}
# With --thorough, and without.
THOROUGH, SEQUENCES, LENGTH = 100, 25, 8
_TEMPLATE: list[torch.nn.Module] = []


def new_unet() -> torch.nn.Module:
    if not _TEMPLATE:
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(8,),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        _TEMPLATE.append(unet.eval().requires_grad_(False))
    return copy.deepcopy(_TEMPLATE[0])


def half_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: 0.5 * weight for name, weight in state.items()}


EDITS: dict[str, Callable[[Any], Any]] = {
    "multiply in place": lambda unet: unet.conv_in.weight.mul_(1.5),
    "multiply through data": lambda unet: unet.down_blocks[0].resnets[0].conv1.weight.data.mul_(0.5),
    "load a state": lambda unet: unet.conv_out.load_state_dict(half_of(unet.conv_out.state_dict())),
    "set a parameter": lambda unet: setattr(
        unet.conv_norm_out, "weight", torch.nn.Parameter(2 * unet.conv_norm_out.weight.data, requires_grad=False)
    ),
    "move a parameter": lambda unet: setattr(unet.conv_out.weight, "data", unet.conv_out.weight.data.clone()),
}
MODES: dict[str, Callable[[Any], Any]] = {
    "freeu on": lambda unet: unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "freeu off": lambda unet: unet.disable_freeu(),
    "plain attention": lambda unet: unet.set_attn_processor(AttnProcessor()),
    "fused attention": lambda unet: unet.set_attn_processor(AttnProcessor2_0()),
    "train": lambda unet: unet.train(),
    "eval": lambda unet: unet.eval(),
    "gradients wanted": lambda unet: unet.requires_grad_(True),
    "gradients unwanted": lambda unet: unet.requires_grad_(False),
    "channels last": lambda unet: unet.to(memory_format=torch.channels_last),
    "circular": lambda unet: setattr(unet.conv_in, "padding_mode", "circular"),
    "zeros": lambda unet: setattr(unet.conv_in, "padding_mode", "zeros"),
}


def added(name: str, rank: int, targets: list[str]) -> Callable[[Any], Any]:
    def run(unet: Any) -> None:
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
        unet.add_adapter(config, name)
        unet.eval()

    return run


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "add attention": added("attention", 2, ["to_q", "to_v"]),
    "add convolutions": added("convolutions", 3, ["conv1", "to_out.0"]),
    "scale attention": lambda unet: unet.set_adapters("attention", 0.3),
    "scale both": lambda unet: unet.set_adapters(["attention", "convolutions"], [0.5, 2.0]),
    "disable": lambda unet: unet.disable_lora(),
    "enable": lambda unet: unet.enable_lora(),
    "fuse": lambda unet: unet.fuse_lora(),
    "unfuse": lambda unet: unet.unfuse_lora(),
    "delete": lambda unet: unet.delete_adapters("attention"),
    "unload": lambda unet: unet.unload_lora(),
}
# Drawn twice as often as the rest.
ADAPTERS_AGAIN = {f"{name} again": change for name, change in ADAPTERS.items()}
GRADIENTS = {"none": torch.no_grad, "inference": torch.inference_mode, "on": torch.enable_grad}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    batch: int = 2
    extents: tuple[int, int] = (8, 8)
    texts: int = 5
    timestep: Any = 7
    scale: float | None = None
    as_dict: bool = True
    gradients: str = "none"

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.batch)
        scale = {} if self.scale is None else {"cross_attention_kwargs": {"scale": self.scale}}
        return {
            "sample": torch.randn(self.batch, 4, *self.extents, generator=generator).to(dtype),
            "timestep": self.timestep,
            "encoder_hidden_states": torch.randn(self.batch, self.texts, 8, generator=generator).to(dtype),
            "return_dict": self.as_dict,
            **scale,
        }


CALLS = (
    Call(),
    Call(batch=1),
    Call(extents=(4, 8)),
    Call(batch=3, extents=(12, 4), texts=7),
    Call(timestep=3.5),
    Call(timestep=torch.tensor([2.0, 9.0])),
    Call(scale=1.0),
    Call(scale=0.25),
    Call(as_dict=False),
    Call(gradients="inference"),
    Call(gradients="on"),
)


class Twins:
    """`unet` may be optimised, `twin` never is."""

    def __init__(self) -> None:
        self.unet: Any = new_unet()
        self.twin: Any = new_unet()
        self.dtype = torch.float32
        rewriter.optimize(self.unet, measure=False)
        self.call(CALLS[0])

    def optimise(self) -> None:
        assert rewriter.optimize(self.unet, measure=False) is self.unet

    def optimise_with_other_rules(self) -> None:
        rewriter.optimize(self.unet, ["default", "-linear-geglu", "-group-norm-silu"], measure=False)

    def restore(self) -> None:
        rewriter.restore(self.unet)
        assert component_of(self.unet) is None

    def go_on_with_a_copy(self) -> None:
        self.unet = copy.deepcopy(self.unet)
        assert component_of(self.unet) is None
        rewriter.optimize(self.unet, measure=False)

    def cast(self, dtype: torch.dtype) -> None:
        self.change(lambda unet: unet.to(dtype))
        self.dtype = dtype

    def change(self, change: Callable[[Any], Any]) -> None:
        """Does the same to both; what one of them refuses, the other refuses too."""
        errors = []
        for unet in (self.twin, self.unet):
            with torch.no_grad():
                try:
                    change(unet)
                    errors.append(None)
                except Exception as error:
                    errors.append(type(error))
        assert errors[0] is errors[1]
        for (name, mine), (_, theirs) in zip(
            self.unet.state_dict().items(), self.twin.state_dict().items(), strict=True
        ):
            assert torch.equal(mine, theirs), name

    def call(self, call: Call) -> None:
        given = call.arguments(self.dtype)
        with GRADIENTS[call.gradients]():
            expected, error = _result(self.twin, given)
            for _ in range(2):
                actual, failure = _result(self.unet, given)
                assert type(error) is type(failure), (error, failure)
                if error is None:
                    assert type(actual) is type(expected)
                    assert (actual[0].dtype, actual[0].shape) == (expected[0].dtype, expected[0].shape)
                    assert relative_error(actual[0], expected[0]) <= LIMITS[self.dtype]
                    assert actual[0].requires_grad == expected[0].requires_grad


def _result(unet: Any, given: dict[str, Any]) -> tuple[Any, Exception | None]:
    try:
        return unet(**given), None
    except Exception as error:
        return None, error


OPERATIONS: dict[str, Callable[[Twins], Any]] = {
    "optimise": Twins.optimise,
    "optimise with other rules": Twins.optimise_with_other_rules,
    "restore": Twins.restore,
    "go on with a copy": Twins.go_on_with_a_copy,
    **{f"cast to {dtype}": functools.partial(Twins.cast, dtype=dtype) for dtype in LIMITS},
    **{
        name: functools.partial(Twins.change, change=change)
        for name, change in {**EDITS, **MODES, **ADAPTERS, **ADAPTERS_AGAIN}.items()
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:diffusers")
def test_sequences_of_calls_and_changes(request: pytest.FixtureRequest) -> None:
    steps = st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(CALLS))

    @settings(
        max_examples=THOROUGH if request.config.getoption("--thorough") else SEQUENCES,
        deadline=None,
        derandomize=True,
        database=None,
        # Each sequence takes most of a second: one that fails is shown as it is.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps, min_size=LENGTH, max_size=LENGTH))
    def check(sequence: list[tuple[str, Call]]) -> None:
        twins = Twins()
        for name, call in sequence:
            OPERATIONS[name](twins)
            twins.call(call)

    check()

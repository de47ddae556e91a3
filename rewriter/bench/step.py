"""One step of a denoising loop: which networks it calls, and which of their inputs are new each time."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

# What a pipeline hands over as a new tensor at each step; text and other conditions stay the same objects.
_RENEWED = ("sample", "hidden_states", "timestep")


class ControlledUNet(torch.nn.Module):
    """A ControlNet and the UNet that takes its residuals, called as the pipeline calls them in each step."""

    def __init__(self, controlnet: torch.nn.Module, unet: torch.nn.Module) -> None:
        super().__init__()
        self.controlnet, self.unet = controlnet, unet

    def forward(self, controlnet_cond: torch.Tensor, **inputs: Any) -> Any:
        """`controlnet_cond`: [N, 3, H, W] in pixels; `inputs`: what both networks take."""
        down, middle = self.controlnet(**inputs, controlnet_cond=controlnet_cond, conditioning_scale=1.0)
        return self.unet(**inputs, down_block_additional_residuals=down, mid_block_additional_residual=middle)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One call of one module: `getattr(module, method)(*args, **kwargs)`. `component` names it for people."""

    component: str
    module: torch.nn.Module
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: torch.device

    @property
    def description(self) -> str:
        """The dtype and shape of the first tensor, which is the sample or the text."""
        tensors = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, torch.Tensor)]
        return f"{str(tensors[0].dtype).removeprefix('torch.')} {list(tensors[0].shape)}" if tensors else "no tensors"

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """What is optimised: the networks that the step calls, each by itself."""
        if isinstance(self.module, ControlledUNet):
            return self.module.controlnet, self.module.unet
        return (self.module,)

    @property
    def function(self) -> Callable[..., Any]:
        """What is called: the module itself for a forward, so that its hooks run."""
        return self.module if self.method == "forward" else getattr(self.module, self.method)

    @property
    def dtype(self) -> torch.dtype:
        """Of the first weight."""
        return next(self.module.parameters()).dtype

    @property
    def renewed(self) -> tuple[int | str, ...]:
        """Positions and names of the arguments that a loop renews: sample and timestep, else the first tensor."""
        names: list[str] = []
        with contextlib.suppress(ValueError):
            names = list(inspect.signature(getattr(self.module, self.method)).parameters)
        given: dict[int | str, Any] = dict([*enumerate(self.args), *self.kwargs.items()])
        tensors = [key for key, value in given.items() if isinstance(value, torch.Tensor)]
        known = [
            key for key in tensors if (names[key] if isinstance(key, int) and key < len(names) else key) in _RENEWED
        ]
        return tuple(known or tensors[:1])

    def renewing(self) -> Callable[[], Arguments]:
        """Makes a call's arguments: clones of the renewed ones, the very same objects for the others."""
        renewed = frozenset(self.renewed)
        args, kwargs = self.args, self.kwargs

        def arguments() -> Arguments:
            return (
                tuple(value.clone() if index in renewed else value for index, value in enumerate(args)),
                {name: value.clone() if name in renewed else value for name, value in kwargs.items()},
            )

        return arguments

    def twin(self) -> Step:
        """The same step on a second module in the same memory, so that optimising one leaves the other as it is."""
        return dataclasses.replace(self, module=twin(self.module))


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """A second module with submodules and parameters of its own, which lie in the same memory.

    Parameters of its own, because an optimised network may move them.
    """
    memo: dict[int, Any] = {id(buffer): buffer.detach() for buffer in module.buffers()}
    for weight in module.parameters():
        memo[id(weight)] = torch.nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    return copy.deepcopy(module, memo=memo)

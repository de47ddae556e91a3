"""Finds the networks of a pipeline or module, and puts components in the place of their `forward`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rewriter.capture.state import diffusers_hooks
from rewriter.runtime.component import Component, own_forward
from rewriter.runtime.program import Options

# Looks at pictures once per call and works on numpy arrays.
_LEFT_ALONE = frozenset({"safety_checker"})
# Wrappers around several networks of one kind that call each by itself (MultiControlNetModel, MultiAdapter).
_COLLECTIONS = ("nets", "adapters")


def is_pipeline(target: object) -> bool:
    """Whether `target` is a diffusers pipeline. Does not import diffusers."""
    module = sys.modules.get("diffusers.pipelines.pipeline_utils")
    return module is not None and isinstance(target, module.DiffusionPipeline)


def find_networks(target: object) -> dict[str, torch.nn.Module]:
    """The networks to optimise, by name: `unet`, `controlnet.0`, `vae.decoder`; a module's own is its class name.

    Raises TypeError for anything but a diffusers pipeline or a module.
    """
    if isinstance(target, torch.nn.Module):
        candidates: dict[str, Any] = {type(target).__name__: target}
    elif is_pipeline(target):
        candidates = dict(target.components)  # type: ignore[attr-defined]
    else:
        raise TypeError(
            f"rewriter accepts a diffusers DiffusionPipeline or a torch.nn.Module, "
            f"found {type(target).__module__}.{type(target).__qualname__}"
        )
    found: dict[str, torch.nn.Module] = {}
    for name, candidate in candidates.items():
        if isinstance(candidate, torch.nn.Module) and name not in _LEFT_ALONE:
            for full_name, module in _parts(name, candidate):
                if all(module is not other for other in found.values()):
                    found[full_name] = module
    return found


def _parts(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The module itself, or the submodules that its own Python code calls one by one."""
    for attribute in _COLLECTIONS:
        members = getattr(module, attribute, None)
        if isinstance(members, torch.nn.ModuleList) and "Multi" in type(module).__name__:
            for index, member in enumerate(members):
                yield f"{name}.{index}", member
            return
    # An autoencoder slices and tiles in Python around these two.
    halves = [half for half in ("encoder", "decoder") if isinstance(getattr(module, half, None), torch.nn.Module)]
    if halves and callable(getattr(module, "decode", None)):
        for half in halves:
            yield f"{name}.{half}", getattr(module, half)
        return
    yield name, module


def compiled(module: torch.nn.Module) -> str | None:
    """Why calls of this network never reach a component: torch.compile has it. None where it has not."""
    if module._compiled_call_impl is not None or type(module).__module__.startswith("torch._dynamo"):
        return (
            "torch.compile is on top of it and runs what it makes of the module itself; use rewriter or torch.compile "
            "for a network, not both"
        )
    return None


def component_of(module: torch.nn.Module) -> Component | None:
    """The component that stands in for the module's forward, or None."""
    for place in ("forward", "_old_forward"):
        found = module.__dict__.get(place)
        if isinstance(found, Component) and found.module is module:
            return found
    return None


def install(module: torch.nn.Module, name: str, options: Options) -> Component:
    """Puts a new component in the place of the module's forward, inside of accelerate's wrapping if there is one."""
    place = "_old_forward" if "_hf_hook" in module.__dict__ and "_old_forward" in module.__dict__ else "forward"
    found: Callable[..., Any] | None = module.__dict__.get(place)
    closed = compiled(module)
    if names := diffusers_hooks(module):
        closed = f"it has hooks of diffusers ({', '.join(names)}) around it; optimise it before adding them"
    component = Component(module, name=name, options=options, place=place, found=found, closed=closed)
    module.__dict__[place] = component
    return component


def remove(module: torch.nn.Module) -> None:
    """Puts back what `install` found, if anything is installed. Hooks that were added since stay."""
    component = component_of(module)
    if component is not None:
        _put_back(module, component)
        component.retire()


def _put_back(module: torch.nn.Module, component: Component) -> None:
    for place in ("forward", "_old_forward"):
        if module.__dict__.get(place) is component:
            if component.found is not None:
                module.__dict__[place] = component.found
            elif place == component.place:
                del module.__dict__[place]
            else:
                # accelerate wrapped the component later on and will put this back as `forward`.
                module.__dict__[place] = own_forward(module)

"""TARGET on the command line: the arguments that choose and load it, and the inputs of one of its networks."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING, Any

from rewriter.cli.output import WrongUsage
from rewriter.errors import RewriterError, UnknownTarget

if TYPE_CHECKING:
    import torch

    from rewriter.bench.step import Step
    from rewriter.language import RuleSet
    from rewriter.models import Target

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class _Recorded(BaseException):
    """Ends a pipeline's run once the wanted call is known. No `except Exception` of a library may stop it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds TARGET, --device and --dtype."""
    parser.add_argument(
        "target", metavar="TARGET", help="a built-in architecture such as sd15-tiny, a local folder, or a hub id"
    )
    add_placement(parser)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Adds --device and --dtype."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to run (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="(default: f32 on a CPU, elsewhere the half that suits the model)",
    )


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Adds --rules and --without."""
    parser.add_argument(
        "--rules", action="append", metavar="R", help="a pack, rule file or folder; may be repeated (default: default)"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="RULE",
        help="leave this rule out, or several: fp8-*conv*; may be repeated",
    )


def rules(arguments: argparse.Namespace) -> RuleSet:
    """The rules that were asked for. Raises RuleError."""
    from rewriter.language import load_rules

    return load_rules([*(arguments.rules or ["default"]), *(f"-{rule}" for rule in arguments.without)])


def placement(arguments: argparse.Namespace) -> tuple[torch.dtype | None, torch.device]:
    """The dtype and device that were asked for. Raises WrongUsage if there is no such device."""
    import torch

    available = torch.cuda.is_available()
    if arguments.device == "cuda" and not available:
        raise WrongUsage("--device: found cuda, but torch sees no CUDA device here; expected cpu")
    dtype = getattr(torch, DTYPES[arguments.dtype]) if arguments.dtype else None
    return dtype, torch.device(arguments.device or ("cuda" if available else "cpu"))


def load(arguments: argparse.Namespace) -> Target:
    """The target that was asked for, on its device. Raises UnknownTarget."""
    from rewriter.models import load_target

    dtype, device = placement(arguments)
    return load_target(arguments.target, dtype=dtype, device=device)


def step_of(target: Target, component: str | None, sizes: dict[str, int]) -> Step:
    """One call of the named network, or of the denoiser.

    `sizes` may hold `batch`, `height` and `width`; the denoiser takes them all, another network sees what the pipeline
    makes of the height and width. Raises WrongUsage where the pipeline has no such network or never calls it.
    """
    name = component or target.denoiser
    module = _network(target, name)
    if name == target.denoiser:
        try:
            kwargs = target.denoiser_inputs(**sizes)
        except UnknownTarget:
            pass  # a class that has no made-up inputs: the pipeline's own do
        except ValueError as error:
            raise WrongUsage(f"{target.name}: {error}") from error
        else:
            return _step(name, module, "forward", (), kwargs)
    if "batch" in sizes:
        raise WrongUsage(
            f"--batch: the inputs of {name} come from the pipeline's own call; only the denoiser's have a batch size"
        )
    return _recorded(target, name, module, sizes)


def whole_step_of(target: Target, sizes: dict[str, int]) -> Step:
    """What the pipeline calls in each step of its loop: the denoiser, after its ControlNet where it has one.

    `sizes` as for `step_of`. Raises WrongUsage for sizes that the denoiser cannot have.
    """
    import torch

    from rewriter.bench.step import ControlledUNet

    step = step_of(target, None, sizes)
    control = getattr(target.pipeline, "controlnet", None)
    if control is None or "down_block_additional_residuals" not in step.kwargs:
        return step
    kwargs = {name: value for name, value in step.kwargs.items() if not name.startswith(("down_block", "mid_block"))}
    rows, _, height, width = kwargs["sample"].shape
    scale = int(target.pipeline.vae_scale_factor)
    picture = torch.rand(rows, 3, height * scale, width * scale, generator=torch.Generator().manual_seed(0))
    kwargs["controlnet_cond"] = picture.to(kwargs["sample"])
    module = ControlledUNet(control, step.module).eval()
    return _step(f"controlnet + {step.component}", module, "forward", (), kwargs)


def _network(target: Target, name: str) -> torch.nn.Module:
    import torch

    networks = {key: part for key, part in target.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    if name not in networks:
        raise WrongUsage(f"{target.name} has no network {name!r}; it has {', '.join(sorted(networks))}")
    return networks[name]


def _recorded(target: Target, name: str, module: torch.nn.Module, sizes: dict[str, int]) -> Step:
    """The first call that the pipeline itself makes. A VAE is called through its methods."""
    method = "decode" if hasattr(module, "decode") else "forward"
    original = getattr(module, method)
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        found.append((args, kwargs))
        raise _Recorded

    # Transformers looks at a forward's signature to decide what to pass it.
    record.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    setattr(module, method, record)
    target.pipeline.set_progress_bar_config(disable=None)
    try:
        target.pipeline(**{**target.example(), **sizes})
    except _Recorded:
        pass
    except (TypeError, ValueError) as error:
        raise RewriterError(f"{target.name}: the pipeline failed before it called {name}: {error}") from error
    finally:
        delattr(module, method)
    if not found:
        raise WrongUsage(f"{target.name}: the pipeline never calls {name}.{method}")
    args, kwargs = found[0]
    return _step(name, module, method, args, kwargs)


def _step(component: str, module: torch.nn.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    from rewriter.bench.step import Step

    device = next(module.parameters()).device
    return Step(component=component, module=module, method=method, args=args, kwargs=kwargs, device=device)

"""Calls a pipeline ahead of its first real call, so that this one finds everything captured, compared and recorded."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from rewriter.runtime.networks import is_pipeline
from rewriter.runtime.random_state import RandomState
from rewriter.runtime.session import components_of

Pipeline = TypeVar("Pipeline")
# (height, width), (pictures, height, width), or arguments of the call by name.
Shape = Sequence[int] | Mapping[str, Any]

# A network that is called once per picture is captured by the first call and compared at a new size by the next. On a
# GPU a recording follows at the third call of a size.
_CALLS = {"cpu": 1, "cuda": 3}
_STEPS = 4
_FORMS = "(height, width), (pictures, height, width) or arguments of the call by name"
_NAMES = ("num_images_per_prompt", "num_videos_per_prompt")


def warmup(pipeline: Pipeline, shapes: Sequence[Shape] = ((),), **call: Any) -> Pipeline:
    """Calls an optimised pipeline at each of `shapes` and throws the pictures away. Returns the pipeline.

    A shape is (height, width) or (pictures, height, width) in pixels, or a mapping from parameter names to arguments;
    without any, the pipeline's own default is called. `call`: further arguments of each call, such as the prompt, an
    image or `guidance_scale`; give those that the later calls have, for a call of another kind is captured by itself.
    Without a prompt a made-up one is used. The random state and the scheduler are left as they were.

    Raises RewriterError where the pipeline is not optimised, TypeError for anything but a pipeline, ValueError for a
    shape of another form, and what the pipeline raises.
    """
    if not is_pipeline(pipeline):
        raise TypeError(
            f"warmup accepts a diffusers DiffusionPipeline, found {type(pipeline).__module__}."
            f"{type(pipeline).__qualname__}; call a single module itself"
        )
    components_of(pipeline)
    if isinstance(shapes, Mapping | str) or not isinstance(shapes, Iterable):
        raise _wrong("shapes", shapes, "a list of shapes, each of them " + _FORMS)
    requests = [_arguments(pipeline, shape, call) for shape in shapes]
    device = torch.device(getattr(pipeline, "_execution_device", "cpu"))
    with RandomState([device]).kept(), _aside(pipeline):
        for request in requests:
            for _ in range(_CALLS.get(device.type, 1)):
                generator = torch.Generator().manual_seed(0)
                pipeline(**copy.copy(request), generator=generator)  # type: ignore[operator]
    return pipeline


def _arguments(pipeline: Any, shape: Shape, call: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(pipeline.__call__).parameters
    arguments: dict[str, Any] = {"num_inference_steps": _STEPS} if "num_inference_steps" in known else {}
    given = {**call, **_named(shape, known)}
    texts = ("prompt", "prompt_embeds")
    if "prompt" in known and not any(name in given for name in texts):
        arguments["prompt"] = "a lighthouse on a cliff at dawn"
    arguments |= given
    unknown = sorted(arguments.keys() - known.keys())
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        raise ValueError(f"{type(pipeline).__name__} has no parameter {', '.join(unknown)}")
    return arguments


def _named(shape: Shape, known: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(shape, Mapping):
        return dict(shape)
    if not isinstance(shape, Sequence):
        raise _wrong("shape", shape, _FORMS + ", in a list of such shapes")
    numbers = tuple(shape)
    if not all(type(number) is int and number > 0 for number in numbers) or len(numbers) not in (0, 2, 3):
        raise _wrong("shape", shape, _FORMS)
    if not numbers:
        return {}
    named: dict[str, Any] = dict(zip(("height", "width"), numbers[-2:], strict=True))
    if len(numbers) == 3:
        many = next((name for name in _NAMES if name in known), None)
        if many is None:
            raise ValueError(f"shape {shape!r}: this pipeline makes one picture per call; give (height, width)")
        named[many] = numbers[0]
    return named


def _wrong(what: str, found: object, expected: str) -> ValueError:
    return ValueError(f"{what} {found!r}: expected {expected}")


@contextlib.contextmanager
def _aside(pipeline: Any) -> Iterator[None]:
    """Without progress bars, and with a copy of the scheduler."""
    missing = object()
    bars = getattr(pipeline, "_progress_bar_config", missing)
    scheduler = getattr(pipeline, "scheduler", missing)
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    if scheduler is not missing:
        pipeline.scheduler = copy.deepcopy(scheduler)
    try:
        yield
    finally:
        if scheduler is not missing:
            pipeline.scheduler = scheduler
        if bars is not missing:
            pipeline._progress_bar_config = bars
        elif hasattr(pipeline, "_progress_bar_config"):
            del pipeline._progress_bar_config

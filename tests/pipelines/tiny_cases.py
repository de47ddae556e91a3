"""What a tested pipeline is made of, and what all of them are called with: small pictures and short texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
from PIL import Image

from rewriter.models.libraries import quiet
from rewriter.models.pictures import lighthouse

PROMPT = "a lighthouse"
SIDE = 16
SIZE = {"height": SIDE, "width": SIDE}
TEXT = {"prompt": PROMPT, "negative_prompt": "blurry"}
FLOW_TEXT = {"prompt": PROMPT, "max_sequence_length": 24}
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """make: builds the pipeline. call: what it is called with beside a generator and the number of steps."""

    make: Callable[[], Any]
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self) -> Any:
        with quiet():
            pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        return pipe


def picture(side: int = SIDE) -> Image.Image:
    return lighthouse(side, side)


def mask(side: int = SIDE) -> Image.Image:
    whole = Image.new("L", (side, side), 0)
    whole.paste(255, (0, 0, side // 2, side))
    return whole


def scheduler(kind: str, **options: Any) -> Any:
    return getattr(diffusers, kind)(**options)


def euler(**options: Any) -> Any:
    return scheduler("EulerDiscreteScheduler", **SD_BETAS, **options)


def flow(**options: Any) -> Any:
    return scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, **options)

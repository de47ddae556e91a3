"""Every pipeline that is tested, built from its classes with random weights, by the name that tests give it."""

from __future__ import annotations

import tiny_controls
import tiny_flux
import tiny_stable_diffusion
import tiny_transformers
import tiny_videos
from tiny_cases import Case

FAMILIES = (tiny_stable_diffusion, tiny_controls, tiny_flux, tiny_transformers, tiny_videos)
CASES: dict[str, Case] = {name: case for family in FAMILIES for name, case in family.CASES.items()}

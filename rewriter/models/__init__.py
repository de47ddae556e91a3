"""Pipelines to work on: built-in architectures with random weights, local folders and hub ids.

`load_target(text)` resolves what a user types to a `Target`: a diffusers pipeline, arguments to call it with, and
inputs for one call of its denoiser. `BUILT_IN` maps every built-in name to a line of description.
"""

from rewriter.models.targets import BUILT_IN, Target, load_target

__all__ = ["BUILT_IN", "Target", "load_target"]

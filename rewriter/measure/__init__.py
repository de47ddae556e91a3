"""Measured choice: each rewritten region is timed against what it replaces, and what does not pay is not kept."""

from rewriter.measure.choice import choose

__all__ = ["choose"]

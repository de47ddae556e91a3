"""README.md: which pipelines are compared with eager at which features, a row for each pipeline."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping

from features import FEATURES

README = pathlib.Path(__file__).with_name("README.md")
COMPARED, REFUSED = "x", "r"


def row(name: str, asked: Collection[str], refused: Collection[str], eager: Mapping[str, str]) -> str:
    """`refused`: those of the features at which diffusers itself raises; `eager`: the networks that run eagerly."""
    cells = [(REFUSED if each.name in refused else COMPARED) if each.name in asked else "" for each in FEATURES]
    return f"| {' | '.join([name, *cells, ', '.join(eager)])} |"


def head() -> str:
    """The two lines above the rows."""
    titles = ["pipeline", *(str(number) for number, _ in enumerate(FEATURES, 1)), "runs eagerly"]
    return f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}"


def legend() -> str:
    """What the numbers stand for."""
    return ", ".join(f"{number} {feature.name}" for number, feature in enumerate(FEATURES, 1))

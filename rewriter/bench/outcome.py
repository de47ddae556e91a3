"""What a benchmark found out: as data, as text, and as files."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from rewriter.bench.document import write_json, write_text
from rewriter.bench.plot import Bar, bars
from rewriter.bench.tables import Rows, aligned, markdown


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """`document` is for JSON, `tables` are a heading and rows each, `failures` what the exit status stands for."""

    title: str
    document: dict[str, Any]
    tables: list[tuple[str, Rows]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    bars: list[Bar] = dataclasses.field(default_factory=list)
    profile: str = ""

    def text(self) -> str:
        """For a terminal."""
        parts = [self.title]
        for heading, rows in self.tables:
            parts += ["", heading] if heading else []
            parts.append(aligned(rows))
        return "\n".join([*parts, *self.notes])

    def markdown(self) -> str:
        """For a page."""
        parts = [f"**{self.title}**", ""]
        for heading, rows in self.tables:
            parts += [heading, ""] if heading else []
            parts += [markdown(rows), ""]
        return "\n".join([*parts, *self.notes, *(f"- {failure}" for failure in self.failures)])

    def write(self, folder: pathlib.Path) -> None:
        """Writes bench.json, table.md, plot.png and, where there is one, profile.txt. Raises OSError."""
        write_json(folder, "bench.json", self.document)
        write_text(folder, "table.md", self.markdown())
        if self.bars:
            bars(self.title, self.bars).save(folder / "plot.png")
        if self.profile:
            write_text(folder, "profile.txt", self.profile)

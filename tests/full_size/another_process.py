"""Draws with an optimised pipeline and writes what and how long it took into a folder: FOLDER [--full-size]."""

from __future__ import annotations

import json
import pathlib
import sys
import time

import torch
from real_pipelines import Painter, Place

import rewriter


def start(place: Place) -> tuple[dict[str, object], torch.Tensor, torch.Tensor]:
    """Facts, the latents and the picture."""
    with torch.no_grad():
        subject = Painter("sd15", place)
        eager = subject.draw(picture=True)
        begin = time.perf_counter()
        subject.optimise()
        first = subject.draw(picture=True)
        ready = time.perf_counter() - begin
        second = subject.draw(picture=True)
    parts = {name: part for name, part in rewriter.report(subject.pipe).components.items() if part.calls}
    facts: dict[str, object] = {
        "ready_s": ready,
        "first_picture_s": first.seconds,
        "picture_s": second.seconds,
        "eager_s": eager.seconds,
        "phases": {name: part.seconds for name, part in parts.items()},
        "status": {name: part.status for name, part in parts.items()},
        "messages": sorted({message for part in parts.values() for message in part.messages}),
    }
    assert second.picture is not None
    subject.spend()
    return facts, second.latents, second.picture


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    facts, latents, picture = start(Place(full="--full-size" in sys.argv, device=device))
    torch.save({"latents": latents, "picture": picture}, folder / "drawn.pt")
    (folder / "facts.json").write_text(json.dumps(facts))

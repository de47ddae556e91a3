"""What a process leaves for the next one: the graph that a call was traced to, and what the rules made of it.

Both are kept after they were compared with eager, and whoever takes them from the disk compares them again. A trace is
found by all that it depends on: versions, the module tree, the code that it can reach, and the call. What the rules
made, measured, is found by the graph itself, the rules and the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import logging
import os
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.capture.outcome import Outcome
from rewriter.capture.portable import NotPortable, portable_digest
from rewriter.capture.recording import NumbersBaked, Recording
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Flat, tensor_class
from rewriter.graph.prepare import PREPARE, Prepared
from rewriter.graph.text import GraphData, NotText, from_data, to_data
from rewriter.measure.cache import machine
from rewriter.runtime import shelf
from rewriter.runtime.program import Applied, Summary

if TYPE_CHECKING:
    from rewriter.graph.conditions import Target
    from rewriter.language import RuleSet

_TRACE, _RULES = "trace", "rules"
# Whose code takes part in a trace, beside what is followed function by function.
_LIBRARIES = ("accelerate", "diffusers", "numpy", "peft", "transformers", "triton")
_SWITCHES = ("DIFFUSERS_", "TRANSFORMERS_")
# Whose sources decide what becomes of a call; others only show or prove it.
_DECIDING = ("capture", "graph", "language", "measure", "runtime")
_SOURCES = frozenset({".py", ".cu", ".cpp", ".h"})

_log = logging.getLogger("rewriter")


class SecondStart:
    """What is kept for one call of a module. `taken`: whether anything came from the disk."""

    def __init__(self) -> None:
        self._off = shelf.switched_off()
        self._trace_key: shelf.Key | None = None
        self._rules_key: shelf.Key | None = None
        self._graph: GraphData | None = None
        self._unread = False
        self.taken = False

    def look_for(
        self,
        module: torch.nn.Module,
        forward: Callable[..., Any],
        snapshot: Snapshot,
        flat: Flat,
        live: Sequence[bool],
        expected: Outcome | None,
        target: Target,
    ) -> None:
        """Finds out under which key the trace of `forward` for a call is kept, if it may be kept at all.

        Without `expected`, eager's result, it may not: nothing would show that a kept trace is wrong here.
        """
        if self._off or expected is None:
            return
        own = isinstance(forward, types.MethodType) and forward.__func__ is type(module).forward
        if not own:
            _log.info("the trace is not kept: the module's forward was replaced")
            return
        try:
            tree = portable_digest(snapshot)
        except NotPortable as reason:
            _log.info("the trace is not kept: %s", reason)
            return
        fixed = [repr(number) for number, is_live in zip(flat.numbers, live, strict=True) if not is_live]
        tensors = [(tensor_class(tensor), tuple(tensor.shape), tensor.stride()) for tensor in flat.tensors]
        self._trace_key = {
            "versions": versions(target.device),
            "tree": tree,
            "arguments": repr(flat.structure),
            "tensors": repr(tensors),
            "live": [bool(each) for each in live],
            "fixed": fixed,
            "form": repr(expected.form),
            "default_dtype": str(torch.get_default_dtype()),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "switches": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SWITCHES)},
        }

    def recording(self, expected: Outcome | None) -> Recording | None:
        """The kept trace of the call. Raises NumbersBaked where that is what came of tracing it."""
        content = self._get(_TRACE, self._trace_key)
        if content is None or expected is None:
            return None
        if "baked" in content:
            raise NumbersBaked({int(index): str(place) for index, place in content["baked"]})
        graph = from_data(content["graph"])
        self._graph = content["graph"]
        return Recording(
            graph=graph,
            weights=tuple(map(int, content["weights"])),
            outcome=dataclasses.replace(expected, tensors=()),
            baked_numbers={},
            baked_data=None,
            reads_shapes=bool(content["reads_shapes"]),
        )

    def keep_recording(self, recording: Recording) -> None:
        """Keeps a trace that was compared with eager."""
        if self._trace_key is not None and (graph := self._data(recording)) is not None:
            content = {"graph": graph, "weights": list(recording.weights), "reads_shapes": recording.reads_shapes}
            shelf.put(_TRACE, self._trace_key, content)

    def keep_baked(self, baked: NumbersBaked) -> None:
        """Keeps what was learned from a trace of which nothing else can be used."""
        if self._trace_key is not None:
            shelf.put(_TRACE, self._trace_key, {"baked": list(map(list, baked.indices.items()))})

    def applied(
        self, recording: Recording, rules: RuleSet, target: Target, circumstances: Sequence[str], *, measured: bool
    ) -> Applied | None:
        """What these rules made of this graph on this machine. `circumstances`: what else the choice depended on."""
        if self._off or (graph := self._data(recording)) is None:
            return None
        self._rules_key = {
            "versions": versions(target.device),
            "machine": machine(target.device),
            "target": repr(target),
            "graph": shelf.checksum([graph["text"], graph["constants"]]),
            "weights": len(recording.weights),
            "rules": rules.digest,
            "circumstances": list(circumstances),
            "measured": measured,
        }
        content = self._get(_RULES, self._rules_key)
        return None if content is None else _read(content)

    def keep_applied(self, applied: Applied) -> None:
        """Keeps a rewritten graph that was compared with eager."""
        if self._rules_key is None:
            return
        try:
            shelf.put(_RULES, self._rules_key, _written(applied))
        except NotText as reason:
            _log.info("the rewritten graph is not kept: %s", reason)

    def discard(self) -> None:
        """Removes what was taken, and takes nothing more."""
        for kind, key in ((_TRACE, self._trace_key), (_RULES, self._rules_key)):
            if key is not None:
                shelf.discard(kind, key)
        self._graph, self._unread, self.taken = None, True, False

    def _get(self, kind: str, key: shelf.Key | None) -> Any:
        if key is None or self._unread:
            return None
        content = shelf.get(kind, key)
        self.taken = self.taken or content is not None
        return content

    def _data(self, recording: Recording) -> GraphData | None:
        if self._graph is None:
            try:
                self._graph = to_data(recording.graph)
            except NotText as reason:
                _log.info("the trace is not kept: %s", reason)
        return self._graph


def versions(device: str) -> dict[str, str]:
    """Of all whose code has a part in a graph."""
    found = {"rewriter": _sources(), "python": sys.version, "torch": torch.__version__, "device": device}
    found |= {name: _version(name) for name in _LIBRARIES}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


@functools.cache
def _version(library: str) -> str:
    """As it is installed: what a process has imported by now must not make its keys different from another's."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        found = importlib.machinery.PathFinder.find_spec(library)
        return "none" if found is None else f"in {found.origin}"


@functools.cache
def _sources() -> str:
    """A hash of this package's code."""
    import rewriter
    import rewriter.csrc
    import rewriter.ops

    root = pathlib.Path(rewriter.__path__[0])
    folders = [root / name for name in _DECIDING]
    folders += [pathlib.Path(module.__path__[0]) for module in (rewriter.ops, rewriter.csrc)]
    files = [*root.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.*"))]
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.suffix in _SOURCES:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _written(applied: Applied) -> dict[str, Any]:
    return {
        "graph": to_data(applied.graph),
        "prepared": [[each.function, list(each.sources), list(each.options)] for each in applied.prepared],
        "specialised": applied.specialised,
        "rewrites": [list(rewrite) for rewrite in applied.summary.rewrites],
        "refusals": [list(refusal) for refusal in applied.summary.refusals],
        "nodes": [applied.summary.nodes_before, applied.summary.nodes_after],
        "messages": list(applied.messages),
    }


def _read(content: Any) -> Applied:
    """Raises NotText, or what reading other data than `_written` gives raises."""
    recipes = []
    for function, sources, options in content["prepared"]:
        if function not in PREPARE:
            raise NotText(f"no recipe {function!r} is known")
        options = tuple((name, tuple(option) if isinstance(option, list) else option) for name, option in options)
        recipes.append(Prepared(function=function, sources=tuple(sources), options=options))
    before, after = content["nodes"]
    return Applied(
        graph=from_data(content["graph"]),
        prepared=tuple(recipes),
        specialised=bool(content["specialised"]),
        summary=Summary(
            rewrites=tuple((str(rule), bool(kept)) for rule, kept in content["rewrites"]),
            refusals=tuple((str(rule), str(node), str(reason)) for rule, node, reason in content["refusals"]),
            nodes_before=int(before),
            nodes_after=int(after),
        ),
        messages=tuple(map(str, content["messages"])),
    )

"""The captures of one component: found by key and trust, bounded, with a memory of what could not be captured."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from rewriter.runtime.calls import Call, Key
from rewriter.runtime.program import Program
from rewriter.runtime.trust import Standing

_MOST_PROGRAMS = 8
_MOST_FAILURES = 64


class Library:
    """Programs by key, the least recently used first. Several programs of one key hold for different extents.

    latest: the program added last, or None where it has been dropped.
    """

    def __init__(self) -> None:
        self.latest: Program | None = None
        self._programs: OrderedDict[Key, list[Program]] = OrderedDict()
        self._failures: OrderedDict[tuple[Any, ...], str] = OrderedDict()

    def programs(self) -> list[Program]:
        """All programs, least recently used first."""
        return [program for group in self._programs.values() for program in group]

    def copied(self) -> frozenset[int]:
        """The slots of the weights that something was computed from ahead of calls, for any program."""
        return frozenset().union(*(program.copied() for program in self.programs()))

    def find(self, call: Call) -> tuple[Program, Standing] | None:
        """A program for the call, one that may be trusted with it if there is one."""
        key = call.key
        best: tuple[Program, Standing] | None = None
        for program in self._programs.get(key, ()):
            standing = program.trust.standing(call.signature, program.live_numbers(call.flat.numbers))
            if standing is Standing.TRUSTED or (standing is Standing.UNPROVED and best is None):
                best = (program, standing)
            if standing is Standing.TRUSTED:
                break
        if best is not None:
            self._programs.move_to_end(key)
        return best

    def add(self, call: Call, program: Program) -> None:
        """Keeps a program for calls like this one, at the cost of the least recently used."""
        self._programs.setdefault(call.key, []).append(program)
        self._programs.move_to_end(call.key)
        while sum(map(len, self._programs.values())) > _MOST_PROGRAMS:
            self.drop(next(iter(self._programs.values()))[0])
        self.latest = program

    def drop(self, program: Program) -> None:
        """Forgets a program."""
        if self.latest is program:
            self.latest = None
        for key, group in list(self._programs.items()):
            if program in group:
                group.remove(program)
                if not group:
                    del self._programs[key]

    def failure(self, call: Call) -> str | None:
        """Why there is no use in capturing this call, if that was tried before."""
        return self._failures.get((call.key,)) or self._failures.get((call.key, call.signature))

    def fail(self, call: Call, reason: str) -> None:
        """Remembers that this call cannot be captured: for all extents, unless others of its key were."""
        key = (call.key, call.signature) if call.key in self._programs else (call.key,)
        self._failures[key] = reason
        while len(self._failures) > _MOST_FAILURES:
            self._failures.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything."""
        self._programs.clear()
        self._failures.clear()
        self.latest = None

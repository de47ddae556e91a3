"""Which rewrites have to be judged together."""

from __future__ import annotations

from collections.abc import Iterable

from rewriter.graph.engine import Rewrite


def regions(rewrites: Iterable[Rewrite]) -> list[tuple[frozenset[int], list[Rewrite]]]:
    """Rewrites that touch common original nodes, directly or through others, together: they pay or lose as one."""
    parent: dict[int, int] = {}

    def find(origin: int) -> int:
        while parent.setdefault(origin, origin) != origin:
            parent[origin] = parent[parent[origin]]
            origin = parent[origin]
        return origin

    found = list(rewrites)
    for done in found:
        first, *rest = done.origins
        for origin in rest:
            parent[find(origin)] = find(first)
    groups: dict[int, tuple[set[int], list[Rewrite]]] = {}
    for done in found:
        origins, members = groups.setdefault(find(next(iter(done.origins))), (set(), []))
        origins |= done.origins
        members.append(done)
    return [(frozenset(origins), members) for origins, members in groups.values()]

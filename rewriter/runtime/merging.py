"""Adapters as part of the weights that graphs read: those weights for a call, and where they are known to be right."""

from __future__ import annotations

from rewriter.causes import described
from rewriter.runtime.calls import Call, CallReader, Declined
from rewriter.runtime.effective import EffectiveWeights
from rewriter.runtime.journal import Journal
from rewriter.runtime.library import Library
from rewriter.runtime.prepared import PreparedStore


class Merging:
    """That of one component.

    A kind of adapter is proved when a graph that read it out of its weights has equalled eager. One that has not, and
    is there when a graph does not equal eager, is traced as part of the module from then on. verify: whether kinds
    need a proof at all.
    """

    def __init__(
        self, reader: CallReader, library: Library, store: PreparedStore, journal: Journal, *, verify: bool
    ) -> None:
        self.effective = EffectiveWeights(store)
        self._reader, self._library, self._journal, self._verify = reader, library, journal, verify
        self._proved: set[str] = set()

    def resolve(self, call: Call) -> Declined | None:
        """Computes the weights that the call's graph reads; says why it has to run eagerly where that cannot be."""
        try:
            factor = 1.0 if call.factor is None else call.factor
            call.weights, call.stamp = self.effective.resolve(
                call.snapshot, factor, probe=self._library.copied if call.probe else None
            )
        except Exception as error:
            return Declined(reason=f"the adapters cannot be added to the weights: {described(error)}", failure=True)
        return None

    def proved(self, call: Call) -> bool:
        """Whether the weights of this call may be relied on without a comparison."""
        return not self._verify or call.kinds <= self._proved

    def prove(self, call: Call) -> None:
        """Records that a graph with the weights of this call equalled eager."""
        self._proved |= call.kinds

    def refuse(self, call: Call, problem: str) -> bool:
        """Takes adapters into graphs from now on where it is not known that weights can stand for them.

        False where the call has none of these, so that they are not to blame for `problem`.
        """
        unproved = call.kinds - self._proved
        if unproved:
            self._reader.refuse(unproved)
            self._journal.note(f"adapters become part of the graph ({', '.join(sorted(unproved))}): {problem}")
        return bool(unproved)

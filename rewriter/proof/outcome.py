"""What a proof is made of and what comes out of it: an example, a failure, the proof of a rule in one dtype."""

from __future__ import annotations

import dataclasses

# How an example is written where each operand has a layout of its own.
MIXED = "mixed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One drawn example, reproducible from these fields alone.

    `values`: a value class; `layout`: a layout for every operand that may have it, "usual" for what networks have, or
    None, which draws one for each; `choice`: which of a statement's alternative ops; `dims`: the extents of the rule's
    symbols, drawn from the seed where it is None.
    """

    seed: int
    dtype: str
    values: str
    layout: str | None
    choice: int
    dims: tuple[tuple[str, int], ...] | None = None

    def __str__(self) -> str:
        fields = [self.dtype, self.values, self.layout or MIXED, f"choice={self.choice}", f"seed={self.seed}"]
        return ",".join([*fields, *(f"{name}={extent}" for name, extent in self.dims or ())])

    @classmethod
    def parse(cls, text: str) -> Example:
        """The example that `str` wrote. Raises ValueError for any other text."""
        try:
            dtype, values, layout, *rest = text.split(",")
            numbers = [(name, int(number)) for name, number in (field.split("=") for field in rest)]
            (first, choice), (second, seed), *dims = numbers
        except ValueError:
            first = second = ""
        if (first, second) != ("choice", "seed"):
            raise ValueError(
                f"not an example: found {text!r}, expected DTYPE,VALUES,LAYOUT,choice=N,seed=N and then the dims, "
                "such as f16,normal,sliced,choice=0,seed=17,C=3"
            )
        return cls(
            seed=seed,
            dtype=dtype,
            values=values,
            layout=None if layout == MIXED else layout,
            choice=choice,
            dims=tuple(dims) or None,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a rule is not proved.

    `kind`: "does not fire", "does not end", "not called", "raises", "wrong result", "wrong NaN", "wrong shape",
    "out of bounds", "unwritten", "writes an input", "aliases", "no example" or "crashes". `message` points at the
    cause; `operands`: the example in words, such as "x [1, 4, 3, 3] f16 sliced, groups 2, eps 1e-05".
    """

    kind: str
    message: str
    example: Example | None
    operands: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A rule in one dtype on one device by one provider.

    `provider`: "torch" is the references of the ops, "graph" a replacement without ops of this package. `examples`:
    run; `unsupported`: drawn, but not taken by the provider, mostly for the reason `refusal`. `worst`: the largest
    error(fused) / allowed, at most 1 when proved; `ratio`: the largest error(fused) / max(error(unfused), floor), with
    error(unfused) as the tolerance takes it: not below what rounding may cost.
    """

    rule: str
    dtype: str
    device: str
    provider: str
    examples: int
    unsupported: int
    worst: float
    ratio: float
    failure: Failure | None
    refusal: str | None = None

    @property
    def proved(self) -> bool:
        return self.failure is None

"""The kernels of attention: one that holds all keys at once, and one that streams them in blocks.

A program takes ROWS queries of one head. Sizes that are no powers of two are split into two parts that are, FIRST and
REST, the second at least 16 wide and filled with zeros, each with its own products: a head of 40 costs 48 columns
instead of 64. V_FIRST and V_REST are those of the values, whose products may be faster undivided. REST is 0 where there
is one part, and what is named after it the same as the first.

Scores, their exponentials and sums are in f32; the exponentials are rounded to the operands' dtype before they are
multiplied by the values, and sums rescaled, as in FlashAttention-2 (Dao, 2023). The largest score of a row is
subtracted before the scale is applied: that is exact, and leaves no difference of two large products. A row whose
scores are all -inf so far has no largest one; 0 takes its place.

Strides are in units of UNIT elements, which tells the compiler how wide accesses may be.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rewriter.ops.triton.overlap import wait_for_earlier
from rewriter.ops.triton.product import product


@triton.jit
def _place(q, k, v, pair, heads, q_batch, q_head, k_batch, k_head, v_batch, v_head, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the queries, keys and values of a head begin; `pair`: of a sample and a head."""
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    q += (batch * q_batch + head * q_head) * UNIT
    k += (batch * k_batch + head * k_head) * UNIT
    v += (batch * v_batch + head * v_head) * UNIT
    return q, k, v


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    base, row, step, rows, MASKED: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr
):
    """Columns START to START + WIDTH of some rows, with zeros beyond DEPTH columns and, if MASKED, beyond `rows`."""
    column = START + tl.arange(0, WIDTH)
    place = base + row[:, None] * step + column[None, :]
    if START + WIDTH > DEPTH:
        inside = (column < DEPTH)[None, :]
        if MASKED:
            inside = inside & (row < rows)[:, None]
        return tl.load(place, mask=inside, other=0.0)
    if MASKED:
        return tl.load(place, mask=(row < rows)[:, None], other=0.0)
    return tl.load(place)


@triton.jit
def _load(  # type: ignore[no-untyped-def]
    base, row, step, rows, MASKED: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, DEPTH: tl.constexpr
):
    """Both parts of some rows."""
    first = _part(base, row, step, rows, MASKED, 0, FIRST, DEPTH)
    rest = first
    if REST:
        rest = _part(base, row, step, rows, MASKED, FIRST, REST, DEPTH)
    return first, rest


@triton.jit
def _queries(q, row, step, rows, FIRST: tl.constexpr, REST: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both parts of some queries; beyond the end the last one again, whose results are not stored."""
    return _load(q, tl.minimum(row, rows - 1).to(tl.int64), step, rows, False, FIRST, REST, DEPTH)


@triton.jit
def _scores(  # type: ignore[no-untyped-def]
    q_first, q_rest, k_first, k_rest, key, keys,
    MASKED: tl.constexpr, WIDEN: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """[ROWS, KEYS] in f32, if MASKED -inf for keys that are not there."""
    scores = product(q_first, tl.trans(k_first), tl.zeros((ROWS, KEYS), dtype=tl.float32), WIDEN)
    if REST:
        scores = product(q_rest, tl.trans(k_rest), scores, WIDEN)
    if MASKED:
        scores = tl.where((key < keys)[None, :], scores, -float("inf"))
    return scores


@triton.jit
def _weigh(weights, v_first, v_rest, first, rest, WIDEN: tl.constexpr, V_REST: tl.constexpr):  # type: ignore[no-untyped-def]
    """first and rest plus the values times their weights: [ROWS, KEYS]."""
    weights = weights.to(v_first.dtype)
    first = product(weights, v_first, first, WIDEN)
    if V_REST:
        rest = product(weights, v_rest, rest, WIDEN)
    return first, rest


@triton.jit
def _finite(largest):  # type: ignore[no-untyped-def]
    """What to subtract from scores of which this is the largest."""
    return tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def _nothing(ROWS: tl.constexpr, V_FIRST: tl.constexpr, V_REST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of both parts to begin with."""
    first = tl.zeros((ROWS, V_FIRST), dtype=tl.float32)
    rest = first
    if V_REST:
        rest = tl.zeros((ROWS, V_REST), dtype=tl.float32)
    return first, rest


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    out, first, rest, total, row, rows, heads, pair,
    DEPTH: tl.constexpr, V_FIRST: tl.constexpr, V_REST: tl.constexpr,
):  # fmt: skip
    """Fills out: [B, S, H, DEPTH], dense, with the sums divided by those of their weights."""
    batch = (pair // heads).to(tl.int64)
    place = out + (batch * rows * heads + pair % heads) * DEPTH
    place += row.to(tl.int64)[:, None] * (heads * DEPTH)
    share = (1.0 / total)[:, None]
    inside = (row < rows)[:, None]
    column = tl.arange(0, V_FIRST)[None, :]
    tl.store(place + column, (first * share).to(out.dtype.element_ty), mask=inside & (column < DEPTH))
    if V_REST:
        column = V_FIRST + tl.arange(0, V_REST)[None, :]
        tl.store(place + column, (rest * share).to(out.dtype.element_ty), mask=inside & (column < DEPTH))


@triton.jit
def at_once(  # type: ignore[no-untyped-def]
    out, q, k, v,
    rows, keys, heads, scale,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    UNIT: tl.constexpr, WIDEN: tl.constexpr, OVERLAP: tl.constexpr,
    DEPTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, V_FIRST: tl.constexpr, V_REST: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """All keys: KEYS of them, and MORE if that is not 0, of which only the last part may reach beyond the end."""
    tiles = tl.cdiv(rows, ROWS)
    pair = tl.program_id(0) // tiles
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    q, k, v = _place(q, k, v, pair, heads, q_batch, q_head, k_batch, k_head, v_batch, v_head, UNIT)
    key = tl.arange(0, KEYS)
    last: tl.constexpr = MORE == 0
    wait_for_earlier(OVERLAP)
    # Everything is on its way before the first product waits for its operands.
    q_first, q_rest = _queries(q, row, q_row * UNIT, rows, FIRST, REST, DEPTH)
    k_first, k_rest = _load(k, key, k_row * UNIT, keys, last, FIRST, REST, DEPTH)
    if MORE:
        more = KEYS + tl.arange(0, MORE)
        more_k_first, more_k_rest = _load(k, more, k_row * UNIT, keys, True, FIRST, REST, DEPTH)
    v_first, v_rest = _load(v, key, v_row * UNIT, keys, last, V_FIRST, V_REST, DEPTH)
    if MORE:
        more_v_first, more_v_rest = _load(v, more, v_row * UNIT, keys, True, V_FIRST, V_REST, DEPTH)
    scores = _scores(q_first, q_rest, k_first, k_rest, key, keys, last, WIDEN, REST, ROWS, KEYS)
    largest = tl.max(scores, axis=1)
    if MORE:
        others = _scores(q_first, q_rest, more_k_first, more_k_rest, more, keys, True, WIDEN, REST, ROWS, MORE)
        largest = tl.maximum(largest, tl.max(others, axis=1))
    base = _finite(largest)[:, None]
    weights = tl.exp2((scores - base) * scale)
    total = tl.sum(weights, axis=1)
    first, rest = _nothing(ROWS, V_FIRST, V_REST)
    first, rest = _weigh(weights, v_first, v_rest, first, rest, WIDEN, V_REST)
    if MORE:
        weights = tl.exp2((others - base) * scale)
        total += tl.sum(weights, axis=1)
        first, rest = _weigh(weights, more_v_first, more_v_rest, first, rest, WIDEN, V_REST)
    _store(out, first, rest, total, row, rows, heads, pair, DEPTH, V_FIRST, V_REST)


@triton.jit
def _step(  # type: ignore[no-untyped-def]
    first, rest, total, largest, q_first, q_rest, k, v, key, k_row, v_row, keys, scale,
    MASKED: tl.constexpr, WIDEN: tl.constexpr, DEPTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    V_FIRST: tl.constexpr, V_REST: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The sums with a further block of keys, all relative to the largest score so far."""
    k_first, k_rest = _load(k, key, k_row, keys, MASKED, FIRST, REST, DEPTH)
    scores = _scores(q_first, q_rest, k_first, k_rest, key, keys, MASKED, WIDEN, REST, ROWS, KEYS)
    larger = tl.maximum(largest, tl.max(scores, axis=1))
    base = _finite(larger)
    weights = tl.exp2((scores - base[:, None]) * scale)
    fading = tl.exp2((largest - base) * scale)
    total = total * fading + tl.sum(weights, axis=1)
    first = first * fading[:, None]
    if V_REST:
        rest = rest * fading[:, None]
    v_first, v_rest = _load(v, key, v_row, keys, MASKED, V_FIRST, V_REST, DEPTH)
    first, rest = _weigh(weights, v_first, v_rest, first, rest, WIDEN, V_REST)
    return first, rest, total, larger


@triton.jit
def streamed(  # type: ignore[no-untyped-def]
    out, q, k, v,
    rows, keys, heads, scale,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    UNIT: tl.constexpr, WIDEN: tl.constexpr, OVERLAP: tl.constexpr,
    DEPTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, V_FIRST: tl.constexpr, V_REST: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The keys in blocks of KEYS. WHOLE: they are a multiple of that; else the last block asks which are there."""
    tiles = tl.cdiv(rows, ROWS)
    pair = tl.program_id(0) // tiles
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    q, k, v = _place(q, k, v, pair, heads, q_batch, q_head, k_batch, k_head, v_batch, v_head, UNIT)
    key = tl.arange(0, KEYS)
    first, rest = _nothing(ROWS, V_FIRST, V_REST)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    largest = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
    wait_for_earlier(OVERLAP)
    q_first, q_rest = _queries(q, row, q_row * UNIT, rows, FIRST, REST, DEPTH)
    for _ in range(keys // KEYS):
        first, rest, total, largest = _step(
            first, rest, total, largest, q_first, q_rest, k, v, key, k_row * UNIT, v_row * UNIT, KEYS, scale,
            False, WIDEN, DEPTH, FIRST, REST, V_FIRST, V_REST, ROWS, KEYS,
        )  # fmt: skip
        k += k_row * (UNIT * KEYS)
        v += v_row * (UNIT * KEYS)
    if not WHOLE:
        first, rest, total, largest = _step(
            first, rest, total, largest, q_first, q_rest, k, v, key, k_row * UNIT, v_row * UNIT, keys % KEYS, scale,
            True, WIDEN, DEPTH, FIRST, REST, V_FIRST, V_REST, ROWS, KEYS,
        )  # fmt: skip
    _store(out, first, rest, total, row, rows, heads, pair, DEPTH, V_FIRST, V_REST)

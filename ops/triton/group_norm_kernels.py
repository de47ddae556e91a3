"""The kernels of the group norms: one that holds whole groups, and two that share the rows of a group.

All of them walk tensors as `planes` describes: n samples, frames, places inside a frame, channels. A tile is places by
channels; whichever of the two lies densely in memory is read in wide accesses. Statistics are in f32: deviations from a
mean are squared, and parts are merged by Chan, Golub and LeVeque's formula (Updating formulae and a pairwise algorithm
for computing sample variances, 1979): M2 = sum M2_i + sum n_i (mean_i - mean)^2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rewriter.ops.triton.overlap import let_next_begin, wait_for_earlier
from rewriter.ops.triton.quantised_rows import f8e4m3, power_of_two


@triton.jit
def _shift(channel_bias, addend, addend_at, c, known, ROW: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """What every place of a frame adds to a channel: [WIDTH] f32."""
    shift = tl.zeros([WIDTH], dtype=tl.float32)
    if channel_bias is not None:
        shift += tl.load(channel_bias + c, mask=known, other=0.0).to(tl.float32)
    if ROW:
        shift += tl.load(addend + addend_at, mask=known, other=0.0).to(tl.float32)
    return shift


@triton.jit
def _tile(x, addend, shift, inside, SUM: tl.constexpr, FULL: tl.constexpr, TOTAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """x + shift + addend in f32, rounded as the sum is where it is kept; x and addend: tiles of pointers."""
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    if SUM:
        value += shift[None, :]
        if FULL:
            value += tl.load(addend, mask=inside, other=0.0).to(tl.float32)
        value = value.to(TOTAL).to(tl.float32)
    return value


@triton.jit
def _silu(y):  # type: ignore[no-untyped-def]
    return y / (1.0 + tl.exp(-y))


@triton.jit
def _factor(gain, offset, root, scale):  # type: ignore[no-untyped-def]
    """What a norm's numbers are multiplied by to be stored, see `ops.quantised_conv`; its inverse to `scale`."""
    bound = tl.load(gain) * root + tl.load(offset)
    factor, size = power_of_two(bound)
    tl.store(scale, tl.where(bound < float("inf"), size, float("nan")), mask=tl.program_id(0) == 0)
    return factor


@triton.jit
def _stored(result, y, factor, SILU: tl.constexpr, CODES: tl.constexpr, EMULATED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The norm's result as y keeps it. CODES: in f8e4m3, times `factor`; EMULATED: made by hand and stored as u8."""
    if SILU:
        result = _silu(result)
    if CODES:
        result *= factor
    return f8e4m3(result) if EMULATED else result.to(y.dtype.element_ty)


@triton.jit(do_not_specialize=["groups", "units"])
def whole_groups(  # type: ignore[no-untyped-def]
    x, channel_bias, addend, total, y, weight, bias, eps, gain, offset, root, y_scale,
    groups, units, places, count,
    x_n, x_f, x_p, x_c, a_n, a_f, a_p, a_c, t_n, t_f, t_p, t_c, y_n, y_f, y_p, y_c,
    SUM: tl.constexpr, ROW: tl.constexpr, FULL: tl.constexpr, TOTAL: tl.constexpr, SILU: tl.constexpr,
    CODES: tl.constexpr, EMULATED: tl.constexpr, FRAMES: tl.constexpr, HELD: tl.constexpr, ALIGN: tl.constexpr,
    OVERLAP: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A program holds HELD neighbouring groups of a sample, [PLACES, WIDTH], in registers. Grid: n * groups / HELD.

    units: of ALIGN channels in HELD groups, so that the compiler knows the alignment; places: of a frame; count: places
    of all frames. HELD is a power of two.
    """
    blocks = groups // HELD
    width = units * ALIGN
    size = width // HELD
    n = (tl.program_id(0) // blocks).to(tl.int64)
    base = ((tl.program_id(0) % blocks) * width).to(tl.int64)
    j = tl.arange(0, WIDTH)
    c = base + j
    known = j < width
    p = tl.arange(0, PLACES)
    inside = (p < count)[:, None] & known[None, :]
    if FRAMES:
        f = p // places
        p = p % places
        x_at = (f * x_f + p * x_p)[:, None] + (j * x_c)[None, :]
        y_at = (f * y_f + p * y_p)[:, None] + (j * y_c)[None, :]
    else:
        x_at = (p * x_p)[:, None] + (j * x_c)[None, :]
        y_at = (p * y_p)[:, None] + (j * y_c)[None, :]
    addend_tile = addend
    if FULL:
        if FRAMES:
            addend_tile = addend + n * a_n + base * a_c + (f * a_f + p * a_p)[:, None] + (j * a_c)[None, :]
        else:
            addend_tile = addend + n * a_n + base * a_c + (p * a_p)[:, None] + (j * a_c)[None, :]
    wait_for_earlier(OVERLAP)
    factor = 1.0
    if CODES:
        factor = _factor(gain, offset, root, y_scale)
    shift = _shift(channel_bias, addend, n * a_n + c * a_c, c, known, ROW, WIDTH)
    value = _tile(x + n * x_n + base * x_c + x_at, addend_tile, shift, inside, SUM, FULL, TOTAL)
    if total is not None:
        if FRAMES:
            total_at = (f * t_f + p * t_p)[:, None] + (j * t_c)[None, :]
        else:
            total_at = (p * t_p)[:, None] + (j * t_c)[None, :]
        tl.store(total + n * t_n + base * t_c + total_at, value.to(TOTAL), mask=inside)

    elements = (count * size).to(tl.float32)
    if HELD == 1:
        mean = tl.sum(tl.sum(tl.where(inside, value, 0.0), axis=0), axis=0) / elements
        centred = value - mean
        deviation = tl.where(inside, centred, 0.0)
        rstd = tl.rsqrt(tl.sum(tl.sum(deviation * deviation, axis=0), axis=0) / elements + eps)
        scale = tl.zeros([WIDTH], dtype=tl.float32) + rstd
    else:
        member = (j // size)[None, :] == tl.arange(0, HELD)[:, None]
        sums = tl.sum(tl.where(inside, value, 0.0), axis=0)
        mean = tl.sum(tl.where(member, sums[None, :], 0.0), axis=1) / elements
        centred = value - tl.sum(tl.where(member, mean[:, None], 0.0), axis=0)[None, :]
        deviation = tl.where(inside, centred, 0.0)
        squares = tl.sum(deviation * deviation, axis=0)
        rstd = tl.rsqrt(tl.sum(tl.where(member, squares[None, :], 0.0), axis=1) / elements + eps)
        scale = tl.sum(tl.where(member, rstd[:, None], 0.0), axis=0)
    if weight is not None:
        scale *= tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    result = centred * scale[None, :]
    if bias is not None:
        result += tl.load(bias + c, mask=known, other=0.0).to(tl.float32)[None, :]
    tl.store(y + n * y_n + base * y_c + y_at, _stored(result, y, factor, SILU, CODES, EMULATED), mask=inside)


@triton.jit(do_not_specialize=["groups", "size", "chunks", "parts", "splits", "entries"])
def partial_statistics(  # type: ignore[no-untyped-def]
    x, channel_bias, addend, total, means, squares,
    channels, groups, size, places, chunks, parts, rows, splits, entries,
    x_n, x_f, x_p, x_c, a_n, a_f, a_p, a_c, t_n, t_f, t_p, t_c,
    SUM: tl.constexpr, ROW: tl.constexpr, FULL: tl.constexpr, TOTAL: tl.constexpr, LOOP: tl.constexpr,
    OVERLAP: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """Mean and M2 of `rows` places of a frame by WIDTH channels, per group. Grid: n * splits * chunks.

    A frame has `parts` splits, a sample frames * parts = splits, the channels `chunks` chunks of WIDTH. means, squares:
    [N, groups, entries] f32, entry = splits * (chunk - the group's first chunk) + split. total: written where given.
    """
    chunk = tl.program_id(0) % chunks
    split = (tl.program_id(0) // chunks) % splits
    n = (tl.program_id(0) // (chunks * splits)).to(tl.int64)
    frame = (split // parts).to(tl.int64)
    start = (split % parts) * rows
    count = tl.minimum(rows, places - start)
    base = (chunk * WIDTH).to(tl.int64)
    at = start.to(tl.int64)
    j = tl.arange(0, WIDTH)
    c = chunk * WIDTH + j
    known = c < channels
    p = tl.arange(0, PLACES)
    x_tile = x + n * x_n + frame * x_f + at * x_p + base * x_c + (p * x_p)[:, None] + (j * x_c)[None, :]
    addend_tile = addend
    total_tile = total
    if FULL:
        addend_tile = addend + n * a_n + frame * a_f + at * a_p + base * a_c + (p * a_p)[:, None] + (j * a_c)[None, :]
    if total is not None:
        total_tile = total + n * t_n + frame * t_f + at * t_p + base * t_c + (p * t_p)[:, None] + (j * t_c)[None, :]
    wait_for_earlier(OVERLAP)
    shift = _shift(channel_bias, addend, n * a_n + frame * a_f + (base + j) * a_c, c, known, ROW, WIDTH)

    valid = p < count
    inside = valid[:, None] & known[None, :]
    mean = _tile(x_tile, addend_tile, shift, inside, SUM, FULL, TOTAL)
    if total is not None:
        tl.store(total_tile, mean.to(TOTAL), mask=inside)
    m2 = tl.zeros([PLACES, WIDTH], dtype=tl.float32)
    seen = valid.to(tl.float32)
    if LOOP:
        for done in range(PLACES, count, PLACES):
            x_tile += PLACES * x_p
            valid = done + p < count
            inside = valid[:, None] & known[None, :]
            if FULL:
                addend_tile += PLACES * a_p
            value = _tile(x_tile, addend_tile, shift, inside, SUM, FULL, TOTAL)
            if total is not None:
                total_tile += PLACES * t_p
                tl.store(total_tile, value.to(TOTAL), mask=inside)
            # Welford's update of each place of the tile; places past the end neither count nor move.
            now = valid.to(tl.float32)
            share = now / (seen + 1.0)
            delta = value - mean
            mean += delta * share[:, None]
            m2 += delta * (share * seen)[:, None] * delta
            seen += now

    length = count.to(tl.float32)
    by_channel = tl.sum(tl.where(known[None, :], mean * seen[:, None], 0.0), axis=0) / length
    delta = mean - by_channel[None, :]
    m2_by_channel = tl.sum(tl.where(known[None, :], m2 + seen[:, None] * delta * delta, 0.0), axis=0)
    g = (chunk * WIDTH) // size + tl.arange(0, MEMBERS)
    member = ((c // size)[None, :] == g[:, None]) & known[None, :]
    held = tl.sum(member.to(tl.float32), axis=1)
    group_mean = tl.sum(tl.where(member, by_channel[None, :], 0.0), axis=1) / tl.maximum(held, 1.0)
    delta = tl.where(member, by_channel[None, :] - group_mean[:, None], 0.0)
    group_m2 = tl.sum(tl.where(member, m2_by_channel[None, :], 0.0) + length * delta * delta, axis=1)
    slot = chunk - (g * size) // WIDTH
    entry = (n * groups + g) * entries + slot * splits + split
    let_next_begin(OVERLAP)
    tl.store(means + entry, group_mean, mask=held > 0)
    tl.store(squares + entry, group_m2, mask=held > 0)


@triton.jit(do_not_specialize=["groups", "size", "chunks", "parts", "splits", "entries"])
def normalise_parts(  # type: ignore[no-untyped-def]
    x, channel_bias, addend, y, weight, bias, means, squares, eps, gain, offset, root, y_scale,
    channels, groups, size, places, chunks, parts, rows, splits, entries,
    x_n, x_f, x_p, x_c, a_n, a_f, a_p, a_c, y_n, y_f, y_p, y_c,
    SUM: tl.constexpr, ROW: tl.constexpr, FULL: tl.constexpr, TOTAL: tl.constexpr, SILU: tl.constexpr,
    CODES: tl.constexpr, EMULATED: tl.constexpr, LOOP: tl.constexpr, OVERLAP: tl.constexpr, PLACES: tl.constexpr,
    WIDTH: tl.constexpr, MEMBERS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Merges the partial statistics of its groups, then normalises what `partial_statistics` read in one program.

    Arguments and grid as there. ENTRIES: a power of two that is at least entries.
    """
    # Backwards: of a tensor larger than the cache, the end was read last.
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    chunk = pid % chunks
    split = (pid // chunks) % splits
    n = (pid // (chunks * splits)).to(tl.int64)
    frame = (split // parts).to(tl.int64)
    start = (split % parts) * rows
    count = tl.minimum(rows, places - start)
    base = (chunk * WIDTH).to(tl.int64)
    at = start.to(tl.int64)
    j = tl.arange(0, WIDTH)
    c = chunk * WIDTH + j
    known = c < channels
    p = tl.arange(0, PLACES)
    x_tile = x + n * x_n + frame * x_f + at * x_p + base * x_c + (p * x_p)[:, None] + (j * x_c)[None, :]
    y_tile = y + n * y_n + frame * y_f + at * y_p + base * y_c + (p * y_p)[:, None] + (j * y_c)[None, :]
    addend_tile = addend
    if FULL:
        addend_tile = addend + n * a_n + frame * a_f + at * a_p + base * a_c + (p * a_p)[:, None] + (j * a_c)[None, :]
    wait_for_earlier(OVERLAP)
    shift = _shift(channel_bias, addend, n * a_n + frame * a_f + (base + j) * a_c, c, known, ROW, WIDTH)
    factor = 1.0
    if CODES:
        factor = _factor(gain, offset, root, y_scale)
    # The first tile is under way while the statistics are merged.
    inside = (p < count)[:, None] & known[None, :]
    value = _tile(x_tile, addend_tile, shift, inside, SUM, FULL, TOTAL)

    g = (chunk * WIDTH) // size + tl.arange(0, MEMBERS)
    e = tl.arange(0, ENTRIES)
    lengths = tl.minimum(rows, places - ((e % splits) % parts) * rows)
    holder = ((g * size) // WIDTH)[:, None] + (e // splits)[None, :]
    held = tl.minimum(((g + 1) * size)[:, None], (holder + 1) * WIDTH) - tl.maximum((g * size)[:, None], holder * WIDTH)
    there = (held > 0) & (g < groups)[:, None] & (e < entries)[None, :]
    weights = tl.where(there, held * lengths[None, :], 0).to(tl.float32)
    entry = ((n * groups + g) * entries)[:, None] + e[None, :]
    parts_mean = tl.load(means + entry, mask=there, other=0.0)
    parts_m2 = tl.load(squares + entry, mask=there, other=0.0)
    elements = tl.maximum(tl.sum(weights, axis=1), 1.0)
    mean = tl.sum(weights * parts_mean, axis=1) / elements
    delta = tl.where(there, parts_mean - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(parts_m2 + weights * delta * delta, axis=1) / elements + eps)

    member = (c // size)[None, :] == g[:, None]
    centre = tl.sum(tl.where(member, mean[:, None], 0.0), axis=0)
    scale = tl.sum(tl.where(member, rstd[:, None], 0.0), axis=0)
    if weight is not None:
        scale *= tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    move = tl.zeros([WIDTH], dtype=tl.float32)
    if bias is not None:
        move += tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    result = (value - centre[None, :]) * scale[None, :] + move[None, :]
    tl.store(y_tile, _stored(result, y, factor, SILU, CODES, EMULATED), mask=inside)
    if LOOP:
        for done in range(PLACES, count, PLACES):
            x_tile += PLACES * x_p
            y_tile += PLACES * y_p
            if FULL:
                addend_tile += PLACES * a_p
            inside = (done + p < count)[:, None] & known[None, :]
            value = _tile(x_tile, addend_tile, shift, inside, SUM, FULL, TOTAL)
            result = (value - centre[None, :]) * scale[None, :] + move[None, :]
            tl.store(y_tile, _stored(result, y, factor, SILU, CODES, EMULATED), mask=inside)

"""The kernels for a GPU, in Triton: each entry read once, one row written, nothing for the host to wait for.

A tensor is cut into fixed chunks, one a program. A program takes Σ(x − shift) and Σ(x − shift)² in float64 about one
finite entry of its own, so that they lose no more than n·2⁻⁵³ however far the mean lies from 0, and squares of float32
entries leave float64 nowhere; float64 entries are divided by the power of two below the largest. The program that ends
last merges all parts in their order (Chan, Golub & LeVeque 1983, eq. 2.1): the same bits every time.

Zeros, subnormals, infinities and NaNs are told by the bits of an entry, never by arithmetic that may flush them.
float64 is what binds on a GPU with few units for it (1/64 of float32's rate); elsewhere it is memory.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator, import-not-found, import-untyped"
# Triton compiles these functions from their source: it knows no type but `constexpr`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # then nobody calls what is below
    triton = tl = None

AVAILABLE = triton is not None


def type_named(name: str) -> Any:
    """The type of entries that kernels are compiled for."""
    return getattr(tl, name)


def _jit(**options: Any) -> Callable[[Any], Any]:
    compiled: Callable[[Any], Any] = (lambda function: function) if triton is None else triton.jit(**options)
    return compiled


@_jit()
def _magnitude(value, FULL: tl.constexpr):
    """The bits but the sign: ordered as the magnitudes are, those of an infinity first of what is not finite.

    Of a float64 the upper half, unless they are to be in `FULL`: it tells all there is to tell of what is no more than
    the difference of two narrower numbers.
    """
    if value.dtype != tl.float64:
        bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    elif FULL:
        bits = value.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = (value.to(tl.int64, bitcast=True) >> 32).to(tl.int32) & 0x7FFFFFFF
    return bits


@_jit()
def _at_least(bits, limit: tl.constexpr):
    """1 where bits, of which the first is 0, are not below a limit, else 0: two instructions, a choice takes three."""
    width: tl.constexpr = bits.dtype.primitive_bitwidth
    unsigned: tl.constexpr = tl.uint64 if width == 64 else tl.uint32
    carried: tl.constexpr = (1 << (width - 1)) - limit
    return ((bits.to(unsigned, bitcast=True) + carried) >> (width - 1)).to(tl.int32)


@_jit()
def _widened(value):
    """In float32, exactly; a bfloat16 is its upper half. What is float64 stays that."""
    if value.dtype == tl.bfloat16:  # by its bits: no conversion that may take a subnormal for 0
        value = (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value


@_jit()
def _read(x, y, place, inside, MASKED: tl.constexpr):
    """Entries in float32, or in float64 what is left of them without `y`; NaN for those outside."""
    if MASKED:  # the compiler cannot read several entries at once where each may be outside
        value = _widened(tl.load(x + place, mask=place < inside, other=float("nan")))
    else:
        value = _widened(tl.load(x + place))
    if y is not None:
        if MASKED:
            minus = _widened(tl.load(y + place, mask=place < inside, other=float("nan")))
        else:
            minus = _widened(tl.load(y + place))
        value = value.to(tl.float64) - minus.to(tl.float64)
    return value


@_jit()
def _highest(x, y, place, inside, INFINITY: tl.constexpr, FULL: tl.constexpr):
    """The highest finite entry of a few, −inf where there is none."""
    value = _read(x, y, place, inside, True)
    return tl.max(tl.where(_magnitude(value, FULL) < INFINITY, value, float("-inf")), axis=0)


@_jit()
def _power_below_largest(x, y, threads, inside, INFINITY: tl.constexpr, THREADS: tl.constexpr):
    """The power of two below the largest magnitude of finite float64 entries, 1 where all are 0."""
    largest = tl.zeros([THREADS], tl.int64)
    for start in range(0, inside, THREADS):
        bits = _magnitude(_read(x + start, y if y is None else y + start, threads, inside - start, True), True)
        largest = tl.maximum(largest, tl.where(bits < INFINITY, bits, 0))
    most = tl.max(largest, axis=0)
    field = tl.where(most == 0, 1023, tl.maximum(most >> 52, 1))
    return (field << 52).to(tl.float64, bitcast=True)


@_jit()
def _sum(of):
    """Over the entries a thread reads at once: no other thread has to do with it."""
    return tl.sum(tl.sum(of, axis=2), axis=0)


@_jit()
def _add(
    value,
    shift,
    unscale,
    sums,
    bins,
    unit,
    TINY: tl.constexpr,
    INFINITY: tl.constexpr,
    COUNTING: tl.constexpr,
    FULL: tl.constexpr,
):
    """The sums of each thread with one more tile, `(lines, threads, entries of a thread in a line)`."""
    total, square, low, high, nonzero, normal, odd, nans, counts = sums
    bits = _magnitude(value, FULL)
    finite = bits < INFINITY
    nonzero += _sum(_at_least(bits, 1))
    normal += _sum(_at_least(bits, TINY))
    odd += _sum(_at_least(bits, INFINITY))
    nans += _sum(_at_least(bits, INFINITY + 1))
    value = tl.where(finite, value, shift)
    low = tl.minimum(low, tl.min(tl.min(value, axis=2), axis=0))
    high = tl.maximum(high, tl.max(tl.max(value, axis=2), axis=0))
    if FULL:
        wide = value * unscale - shift * unscale
    else:
        wide = value.to(tl.float64) - shift.to(tl.float64)
    total += _sum(wide)
    square += _sum(wide * wide)
    if COUNTING:
        # The exponent of a quotient is the difference of the exponents, and one less where the first mantissa is the
        # smaller one: it borrows. The shift by 52 bits is arithmetic.
        exponent = 1023 + ((_magnitude(value.to(tl.float64), True) - unit) >> 52)
        exponent = tl.minimum(tl.maximum(exponent, 0), 2047).to(tl.int32)
        exponent = tl.where(finite & (bits > 0), exponent, 0)
        counts += tl.histogram(tl.reshape(tl.load(bins + exponent), [value.numel]), 64)
    return total, square, low, high, nonzero, normal, odd, nans, counts


@_jit()
def _reduce_chunk(
    x,
    y,
    inside,
    out,
    counts,
    bins,
    unit,
    TINY: tl.constexpr,
    LINES: tl.constexpr,
    THREADS: tl.constexpr,
    EACH: tl.constexpr,
):
    """Write the row of the first `inside` entries from x on, and add to the counts."""
    TILE: tl.constexpr = LINES * THREADS * EACH
    COUNTING: tl.constexpr = counts is not None
    FULL: tl.constexpr = x.dtype.element_ty == tl.float64
    OF_HALF: tl.constexpr = 0x7F800000 if y is None else 0x7FF00000
    INFINITY: tl.constexpr = 0x7FF0000000000000 if FULL else OF_HALF
    threads = tl.arange(0, THREADS)
    place = tl.arange(0, LINES)[:, None, None] * (THREADS * EACH)
    place = place + threads[None, :, None] * EACH + tl.arange(0, EACH)[None, None, :]

    shift = _highest(x, y, threads, inside, INFINITY, FULL)
    searched = THREADS
    while (shift == float("-inf")) & (searched < inside):
        shift = _highest(x + searched, y if y is None else y + searched, threads, inside - searched, INFINITY, FULL)
        searched += THREADS
    shift = tl.where(shift == float("-inf"), 0.0, shift).to(shift.dtype)
    scale = tl.full([], 1.0, tl.float64)
    if FULL:
        scale = _power_below_largest(x, y, threads, inside, INFINITY, THREADS)
    unscale = 1.0 / scale
    unit_bits = 0
    if COUNTING:
        unit_bits = _magnitude(tl.load(unit).to(tl.float64), True)

    floats = tl.zeros([THREADS], tl.float64)
    ends = tl.zeros([THREADS], shift.dtype) + shift
    ints = tl.zeros([THREADS], tl.int32)
    sums = (floats, floats, ends, ends, ints, ints, ints, ints, tl.zeros([64], tl.int32))
    whole = inside // TILE * TILE
    for start in range(0, whole, TILE):
        value = _read(x + start, y if y is None else y + start, place, TILE, False)
        sums = _add(value, shift, unscale, sums, bins, unit_bits, TINY, INFINITY, COUNTING, FULL)
    outside = 0
    if whole < inside:
        value = _read(x + whole, y if y is None else y + whole, place, inside - whole, True)
        sums = _add(value, shift, unscale, sums, bins, unit_bits, TINY, INFINITY, COUNTING, FULL)
        outside = TILE - (inside - whole)

    total = tl.sum(sums[0], axis=0)
    nonzero = tl.sum(sums[4], axis=0)
    normal = tl.sum(sums[5], axis=0)  # or not finite, as those outside are
    odd = tl.sum(sums[6], axis=0)
    nans = tl.sum(sums[7], axis=0)
    entries = tl.maximum(inside + outside - odd, 1).to(tl.float64)
    spread = tl.sum(sums[1], axis=0) - total * (total / entries)
    tl.store(out, inside.to(tl.float64))
    tl.store(out + 1, (shift.to(tl.float64) * unscale + total / entries) * scale)
    tl.store(out + 2, tl.maximum(spread, 0.0))
    tl.store(out + 3, tl.min(sums[2], axis=0).to(tl.float64))
    tl.store(out + 4, tl.max(sums[3], axis=0).to(tl.float64))
    tl.store(out + 5, (inside + outside - nonzero).to(tl.float64))
    tl.store(out + 6, (nans - outside).to(tl.float64))
    tl.store(out + 7, (odd - nans).to(tl.float64))
    tl.store(out + 8, (nonzero - normal).to(tl.float64))
    tl.store(out + 9, scale)
    if COUNTING:  # what is in no bin was taken for the first one's
        bin = tl.arange(0, 64)
        found = sums[8] - tl.where(bin == 0, inside + outside - nonzero + odd, 0)
        tl.atomic_add(counts + bin, found.to(tl.int64), mask=found != 0, sem="relaxed")


@_jit()
def _merge(parts, many, row, PARTS: tl.constexpr):
    """`_rows.merged`, of parts that other programs wrote."""
    part = tl.arange(0, PARTS)
    there = part < many
    at = parts + part * 10
    count = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
    mean = tl.load(at + 1, mask=there, other=0.0, cache_modifier=".cg")
    spread = tl.load(at + 2, mask=there, other=0.0, cache_modifier=".cg")
    low = tl.load(at + 3, mask=there, other=0.0, cache_modifier=".cg")
    high = tl.load(at + 4, mask=there, other=0.0, cache_modifier=".cg")
    nans = tl.load(at + 6, mask=there, other=0.0, cache_modifier=".cg")
    infs = tl.load(at + 7, mask=there, other=0.0, cache_modifier=".cg")
    scale = tl.load(at + 9, mask=there, other=1.0, cache_modifier=".cg")
    finite = count - nans - infs
    entries = tl.sum(finite, axis=0)
    some = finite > 0
    largest = tl.max(tl.where(some, scale, 0.0), axis=0)
    largest = tl.where(entries > 0, largest, 1.0)
    centre = tl.sum(finite / tl.maximum(entries, 1.0) * (mean / largest), axis=0)
    ratio, apart = scale / largest, mean / largest - centre
    spread = tl.sum(tl.where(some, spread * (ratio * ratio) + finite * (apart * apart), 0.0), axis=0)
    low = tl.min(tl.where(some, low, float("inf")), axis=0)
    high = tl.max(tl.where(some, high, float("-inf")), axis=0)
    tl.store(row, tl.sum(count, axis=0))
    tl.store(row + 1, centre * largest)
    tl.store(row + 2, spread)
    tl.store(row + 3, tl.where(entries > 0, low, 0.0))
    tl.store(row + 4, tl.where(entries > 0, high, 0.0))
    tl.store(row + 5, tl.sum(tl.load(at + 5, mask=there, other=0.0, cache_modifier=".cg"), axis=0))
    tl.store(row + 6, tl.sum(nans, axis=0))
    tl.store(row + 7, tl.sum(infs, axis=0))
    tl.store(row + 8, tl.sum(tl.load(at + 8, mask=there, other=0.0, cache_modifier=".cg"), axis=0))
    tl.store(row + 9, largest)


@_jit()
def _merge_if_last(parts, many, ticket, row, PARTS: tl.constexpr):
    """Of the programs of one tensor the last merges what all of them wrote, and leaves the ticket at 0."""
    tl.debug_barrier()  # every thread's part is written before one of them says so
    before = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
    if before == many - 1:
        tl.debug_barrier()
        _merge(parts, many, row, PARTS)
        tl.store(ticket, 0)


@_jit(do_not_specialize=["entries", "tiles"])
def reduce_one(
    x,
    y,
    entries,
    tiles,
    row,
    counts,
    bins,
    unit,
    parts,
    ticket,
    TINY: tl.constexpr,
    LINES: tl.constexpr,
    THREADS: tl.constexpr,
    EACH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Write one row, and add to its counts; a program reads `tiles` tiles.

    Args:
        x: the entries; y: as many that are taken from them, or None.
        row: ten float64; counts: 64 int64, or None.
        bins: the bin of each exponent of a float64, int32 `(2048,)`; unit: the divisor of what is counted.
        parts: float64 `(PARTS, 10)`, for no other stream; ticket: int32, 0 between two calls.
        TINY: the smallest normal number of x's dtype, as `_magnitude` gives it.
    """
    part = tl.program_id(0)
    many = tl.num_programs(0)
    first = part.to(tl.int64) * tiles * (LINES * THREADS * EACH)
    inside = tl.minimum(entries - first, tiles * (LINES * THREADS * EACH)).to(tl.int32)
    out = parts + part * 10
    if many == 1:
        out = row
    _reduce_chunk(x + first, y if y is None else y + first, inside, out, counts, bins, unit, TINY, LINES, THREADS, EACH)
    if many > 1:
        _merge_if_last(parts, many, ticket, row, PARTS)


@_jit(do_not_specialize=["begin"])
def reduce_many(
    chunks,
    rows,
    bins,
    unit,
    parts,
    tickets,
    begin,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    MINUS: tl.constexpr,
    COUNTING: tl.constexpr,
    TINY: tl.constexpr,
    LINES: tl.constexpr,
    THREADS: tl.constexpr,
    EACH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Write one row each of many tensors, and add to their counts; a program reads one chunk.

    Args:
        chunks: int64 `(programs, 6)`: address, address of what is taken from it, entries, number of the tensor, its
            first program, how many programs it has, at most `PARTS`.
        rows: int64 `(tensors, 2)`: addresses of the row and of the counts.
        bins, unit, TINY: as in `reduce_one`.
        parts: float64 `(programs, 10)`; tickets: int32 `(tensors,)`, 0 between two calls.
        begin: the first line of those to be read.
        DTYPE: of the entries; ALIGNED: all addresses are multiples of 16 bytes.
    """
    part = begin + tl.program_id(0)
    line = chunks + part * 6
    address = tl.load(line)
    minus = tl.load(line + 1)
    inside = tl.load(line + 2).to(tl.int32)
    tensor = tl.load(line + 3)
    first = tl.load(line + 4)
    many = tl.load(line + 5).to(tl.int32)
    row = tl.load(rows + tensor * 2).to(tl.pointer_type(tl.float64))
    x = address.to(tl.pointer_type(DTYPE))
    y = minus.to(tl.pointer_type(DTYPE)) if MINUS else None
    if ALIGNED:
        x = tl.multiple_of(x, 16)
        if MINUS:
            y = tl.multiple_of(y, 16)
    counts = tl.load(rows + tensor * 2 + 1).to(tl.pointer_type(tl.int64)) if COUNTING else None
    out = parts + part * 10
    if many == 1:
        out = row
    _reduce_chunk(x, y, inside, out, counts, bins, unit, TINY, LINES, THREADS, EACH)
    if many > 1:
        _merge_if_last(parts + first * 10, many, tickets + tensor, row, PARTS)

"""What becomes of the entries of a tensor in a type of reduced precision, read off its histogram and its extremes.

A type keeps 2^normal and more in full, less down to 2^flush as subnormal numbers with ever fewer digits, and makes
0 of the rest (2^flush is half its smallest number, and a tie goes to the even neighbour, 0). What rounds beyond its
largest number overflows: to infinity, or in float8_e4m3fn, which has none, to NaN (torch before 2.12) or to 448.
(IEEE 754-2019, section 3.3; Micikevicius et al. 2022, "FP8 formats for deep learning", table 1.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gradscope.recording._errors import unknown_name
from gradscope.recording._moments import Floats, Ints, Moments
from gradscope.recording._site import Site


class Format(NamedTuple):
    """The limits of a floating type: the first two as powers of two, the third the smallest size that overflows."""

    flush: int
    normal: int
    overflow: float


FORMATS: dict[str, Format] = {
    "float16": Format(-25, -14, 65520.0),
    "bfloat16": Format(-134, -126, float(np.ldexp(2 - 2.0**-8, 127))),
    "float8_e4m3fn": Format(-10, -6, float(np.nextafter(464.0, 465.0))),  # 464 itself goes to the even 448
    "float8_e5m2": Format(-17, -14, 61440.0),
}
"""The types that `precision` knows."""

_NORMAL = {name: limits.normal for name, limits in FORMATS.items()} | {"float32": -126}


@dataclass(frozen=True)
class PrecisionShare:
    """What would become of one site's entries in a type of reduced precision, as fractions in [0, 1] of all entries.

    All are NaN for a tensor without entries. Where the histogram is a sample, those that come from it are estimates:
    shares of the sample. Whether any entry overflows is still known, by the extremes, which are never sampled.

    Attributes:
        site: where.
        dtype: the type of reduced precision.
        zero: entries that are 0 already.
        flushed: entries that are not 0 and would become 0. (Those of exactly half the type's smallest number, which
            would too, are not counted.)
        subnormal: entries that would stay and are below the type's smallest normal number: kept with fewer digits
            than the type has (the largest of them may round up to that number itself).
        overflowed: entries that would surely overflow: become infinite (float8_e4m3fn: NaN, or the largest number).
        overflowed_at_most: entries that may overflow. More than `overflowed` only where an entry near the type's
            largest number is in doubt: the histogram gives sizes to within a power of two, or, beyond 2^17, less.
        subnormal_already: entries that are subnormal in the site's own dtype; NaN where that cannot be told (float64).
    """

    site: Site
    dtype: str
    zero: float
    flushed: float
    subnormal: float
    overflowed: float
    overflowed_at_most: float
    subnormal_already: float


def known_dtype(dtype: object) -> str:
    """The name of a type given by its name or as `torch.float16`; ValueError where it is not one of `FORMATS`."""
    name = str(dtype).removeprefix("torch.")
    if name not in FORMATS:
        raise unknown_name("dtype", dtype, FORMATS)
    return name


def precision_share(
    site: Site, dtype: str, edges: Floats, histogram: Ints, moments: Moments, sampled: bool = False
) -> PrecisionShare:
    """The share of one site, from its histogram `(bins,)`, which may be a sample, and its one row of moments.

    Raises:
        ValueError: the histogram's edges (log2, `(bins + 1,)`) do not separate what the type tells apart.
    """
    limits = FORMATS[dtype]
    flushed = _below(limits.flush, edges, histogram)
    small = _below(limits.normal, edges, histogram)
    if flushed is None or small is None:
        raise ValueError(
            f"the histograms of this recording have no edges at 2^{limits.flush} and 2^{limits.normal}, "
            f"so they cannot tell what {dtype} loses: record it again"
        )
    entries, counted, zeros = int(moments.count[0]), int(histogram.sum()), int(moments.zeros[0])
    sizes = entries - zeros - int(moments.nans[0]) - int(moments.infs[0])  # what a whole histogram counts
    weight = max(sizes, 0) / counted if sampled and counted else 1.0  # entries that one in the histogram stands for
    surely, at_most = _overflowed(limits.overflow, edges, histogram, moments, weight)

    def share(n: float) -> float:
        return n / entries if entries else float("nan")

    return PrecisionShare(
        site=site,
        dtype=dtype,
        zero=share(zeros),
        flushed=share(weight * flushed),
        subnormal=share(weight * (small - flushed)),
        overflowed=share(surely),
        overflowed_at_most=share(at_most),
        subnormal_already=share(weight * _subnormal_in(site.dtype, edges, histogram)),
    )


def _below(log2: int, edges: Floats, histogram: Ints) -> int | None:
    """How many entries are smaller than a power of two; None where it is no edge, so that nobody knows."""
    at = int(np.searchsorted(edges, log2))
    if at in (0, len(edges)) or edges[at] != log2:
        return None
    return int(histogram[:at].sum())


def _subnormal_in(dtype: str, edges: Floats, histogram: Ints) -> float:
    if dtype == "float64":  # its smallest normal number is far below the first edge
        return float("nan") if histogram[0] else 0
    below = _below(_NORMAL[dtype], edges, histogram) if dtype in _NORMAL else None
    return float("nan") if below is None else below


def _overflowed(limit: float, edges: Floats, histogram: Ints, moments: Moments, weight: float) -> tuple[float, float]:
    """How many entries are surely, and how many are at most, of at least this size."""
    at = _bin_of(limit, edges)
    surely = weight * int(histogram[at + 1 :].sum())
    at_most = surely + weight * int(histogram[at])
    low, high = float(moments.min[0]), float(moments.max[0])
    largest, counted = max(-low, high), np.flatnonzero(histogram)
    # The extremes only count where they are those of the histogram's entries: a loss scale, say, may have been
    # divided out of the one and not of the other.
    if not counted.size or not np.isfinite(largest):
        return surely, at_most
    beyond = _bin_of(largest, edges) - int(counted[-1])
    if beyond < 0 or (beyond and weight == 1.0):  # a sample may have missed the largest
        return surely, at_most
    extremes = int(high >= limit) + int(-low >= limit)
    return (max(surely, extremes), max(at_most, extremes)) if extremes else (0.0, 0.0)


def _bin_of(size: float, edges: Floats) -> int:
    log2 = int(np.frexp(size)[1]) - 1  # exact, where a logarithm rounds
    return int(np.clip(np.searchsorted(edges, log2, side="right") - 1, 0, len(edges) - 2))

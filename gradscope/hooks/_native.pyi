"""Moments and histograms of tensors on the CPU, each entry read once: an optional extension in plain C.

Addresses and counts are plain integers; nothing checks what lies at an address. A row is ten float64, `COLUMNS`:

    count       all entries
    mean        of the finite ones, as min and max; all four of mean, m2, min and max are 0 where there is none
    m2          Σ(x − mean)²/scale² over them, so that std = scale·√(m2/(count − nans − infs))
    min, max
    zeros       entries that are 0 or −0
    nans, infs
    subnormals  finite entries other than 0 below the smallest normal number of the dtype
    scale       1.0; another power of two only for float64 entries whose squares leave float64's range

An address may be misaligned; a row's and a histogram's may not. Bad values are a ValueError before anything is read.
The GIL is released for 16,384 entries and more. Sums are the same bits for any number of threads; between variants
they agree to rounding.

Sampling reads one chunk of 16 entries in a row of every `s = min(stride, chunks)` chunks, of the k-th s the one with
number `k·s + (offset + ⌊s·turn⌋) mod s`, where turn is the fraction of k²/1.618…; the last s may give none, and the
tensor's last chunk may have fewer entries. Of the moments, mean, m2, zeros and subnormals are then the sample's, the
last three scaled up to all entries; count, min, max, nans and infs are always of all. Of the histogram, the counts are
then the sample's as they are. Where the largest entry is more than 10 times the sample's root mean square, or the
sample has no finite entry, the moments are of all entries.
"""

from typing import Final

COLUMNS: Final[tuple[str, ...]]
FLOAT32: Final[int]
FLOAT64: Final[int]
FLOAT16: Final[int]
BFLOAT16: Final[int]
VARIANTS: Final[tuple[str, ...]]
"""The variants this processor can run: "generic", "avx2" (with FMA and F16C), "avx512" (as of Ice Lake and Zen 4)."""
VARIANT: str
"""The one in use; at first the last of `VARIANTS`."""

def set_variant(name: str, /) -> None:
    """Uses another variant from now on; a ValueError if this processor lacks it."""

def reduce(address: int, entries: int, dtype: int, row: int, threads: int = 1, /) -> int:
    """Writes the row of contiguous entries, and returns how many of them are NaN or infinite.

    Args:
        address: of the first entry.
        entries: how many, from 0.
        dtype: `FLOAT32`, `FLOAT64`, `FLOAT16` or `BFLOAT16`.
        row: address of ten float64.
        threads: the most threads to use; more than one are used from 262,144 entries on.
    """

def run(table: int, jobs: int, threads: int, /) -> None:
    """Writes the rows of many tensors of contiguous entries.

    Args:
        table: address of int64 `(jobs, 12)`; a line is

            0 address, 1 entries, 2 dtype, 3 row   as in `reduce`
            4 histogram   0, or the address of 64 int64: the counts over `gradscope.recording.HISTOGRAM_EDGES` of
                          the finite entries other than zero, each divided by the unit, are added to what is there
            5 minus       0, or the address of as many entries of the same dtype: x − minus in float64 is read in
                          place of x
            6 copy        0, or an address to which the entries themselves are copied; may be `minus`, which is read
                          first, unless the moments are sampled
            7 moment stride, 8 moment offset, 9 histogram stride, 10 histogram offset   1 and 0: all entries
            11 unit       the bits of a float64, positive

        jobs: how many lines.
        threads: as in `reduce`, of the entries of all tensors.
    """

def reduce_strided(
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: int,
    row: int,
    histogram: int = 0,
    minus: int = 0,
    copy: int = 0,
    moment_stride: int = 1,
    moment_offset: int = 0,
    histogram_stride: int = 1,
    histogram_offset: int = 0,
    unit: float = 1.0,
    threads: int = 1,
    /,
) -> int:
    """Writes the row of entries that lie apart; the rest is as in `run`.

    They are read in the order of their indices; where they leave no gap, and neither `minus` nor `copy` is given, as
    they lie in memory. Returns how many of them are NaN or infinite.

    Args:
        address: of the first entry.
        shape: sizes of the dimensions, at most 64.
        strides: of each, in entries, from 0.
        dtype, row: as in `reduce`.
        histogram, minus, copy: as in `run`; `minus` and `copy` are contiguous, in the order of the indices.
        moment_stride, moment_offset, histogram_stride, histogram_offset: as in `run`.
        unit: as in `run`.
        threads: as in `reduce`.
    """

def some_entries(table: int, tensors: int, found: int, /) -> None:
    """Copies up to eight entries of each tensor, evenly spaced from its first on.

    Args:
        table: address of int64 `(tensors, 3)`; a line is address, entries, dtype.
        tensors: how many lines.
        found: address of float64 `(tensors, 8)`; what a tensor has no entry for is left as it is.
    """

"""Pairs: packed into single integers while they are candidates, then on disk in their order."""

import h5py
import numpy as np

PAIR = np.dtype([("row_a", "<i8"), ("row_b", "<i8"), ("similarity", "<f8")])
MOST_ROWS = 2**32  # that two row numbers pack into 64 bits
_SAMPLED = 64  # packed pairs between two that are looked at to cut them
_BLOCK = 1 << 20  # pairs read together: 24 MB


def pack(rows_a, rows_b):
    """Two row numbers, in any order, as one uint64 that sorts by the lower, then the higher. Two (p,) int64 arrays."""
    low, high = np.minimum(rows_a, rows_b).astype(np.uint64), np.maximum(rows_a, rows_b).astype(np.uint64)
    return low << np.uint64(32) | high


def unpack(packed):
    """row_a and row_b, (p,) int64 each, of packed pairs."""
    return (packed >> np.uint64(32)).astype(np.int64), (packed & np.uint64(MOST_ROWS - 1)).astype(np.int64)


def split_sorted(parts, most):
    """Cut sorted arrays of packed pairs, no two of which overlap in content, at common places.

    Yields lists of slices, one an array, that together hold about `most` pairs (at most `most` + 64 an array more),
    each above those before it. Memory: 1/8 byte a pair.
    """
    samples = np.sort(np.concatenate([p[_SAMPLED - 1 :: _SAMPLED] for p in parts])) if parts else []
    cuts = samples[max(1, most // _SAMPLED) - 1 :: max(1, most // _SAMPLED)]
    ends = [[*np.searchsorted(p, cuts, side="right").tolist(), len(p)] for p in parts]
    starts = [[0, *e[:-1]] for e in ends]
    for low, high in zip(zip(*starts, strict=True), zip(*ends, strict=True), strict=True):
        yield [slice(a, b) for a, b in zip(low, high, strict=True)]


def read_pairs(path):
    """Yield the pairs of neighbors.h5 as (p,) PAIR arrays, in order. Memory: 24 MB."""
    with h5py.File(path) as file:
        for start in range(0, len(file["row_a"]), _BLOCK):
            columns = {name: file[name][start : start + _BLOCK] for name in PAIR.names}
            pairs = np.empty(len(columns["row_a"]), dtype=PAIR)
            for name, values in columns.items():
                pairs[name] = values
            yield pairs

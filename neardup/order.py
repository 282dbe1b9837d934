"""Sorting with the order of equal values kept, as quick as sorting without."""

import numpy as np

_PLACE = np.uint64(32)  # bits that a place takes


def stable_order(values):
    """As np.argsort(values, kind="stable"), (n,) int64, which takes 3 to 13 times as long. values: (n,), n < 2^32.

    Values and their places are sorted as single integers; where values are no integers below 2^32, their ranks are.
    Memory: 24 n bytes.
    """
    places = np.arange(len(values), dtype=np.uint64)
    if values.dtype.kind not in "iu" or (len(values) and not 0 <= values.min() <= values.max() < 1 << 32):
        places = np.argsort(values).astype(np.uint64)
        in_order = values[places]
        values = np.zeros(len(places), dtype=np.uint64)
        np.cumsum(in_order[1:] != in_order[:-1], dtype=np.uint64, out=values[1:])
    packed = np.sort(values.astype(np.uint64) << _PLACE | places)
    return (packed & np.uint64((1 << 32) - 1)).astype(np.int64)

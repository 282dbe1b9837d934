"""Ranges cut into parts: equal ones, or as much as fits together."""

import numpy as np


def block_ranges(start, stop, block_rows):
    """A range of rows in equal blocks of at most `block_rows`; none of an empty one. Returns [(start, stop)]."""
    return equal_parts(start, stop, block_rows) if start < stop else []


def equal_parts(start, stop, most):
    """A range in equal parts of at most `most`, at least one. Returns [(start, stop)]."""
    count = max(1, -(-(stop - start) // most))
    bounds = [start + i * (stop - start) // count for i in range(count + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def size_ranges(bounds, most):
    """Ranges [low, high) of things that together hold at most `most`, or of a single larger one.

    bounds: (N + 1,) ascending integers; thing i holds bounds[i + 1] - bounds[i].
    """
    ranges, low = [], 0
    while low < len(bounds) - 1:
        high = max(low + 1, int(np.searchsorted(bounds, bounds[low] + most, side="right")) - 1)
        ranges.append((low, high))
        low = high
    return ranges

"""Range search over sketches: all pairs of two sets that are within a distance, a superset of the true pairs."""

from typing import NamedTuple

import numpy as np

from neardup import geometry

_FIRST_DIMS = 32  # coordinates of the sketch that are compared first; the rest only for what they let through
_TILE = 256, 1024  # rows compared at a time: their products stay in a core's cache


class Searchable(NamedTuple):
    """Sketches (n, m + 1) float32, and the same as `lay_out` gives them."""

    sketches: np.ndarray
    layout: np.ndarray


def lay_out(sketches):
    """Sketches laid out for search: -|x-y|^2 / 2 is one dot product. (n, m + 1) float32 to (n, min(m, 32) + 3)."""
    short = geometry.shorten(sketches, _FIRST_DIMS)
    half = np.vecdot(short, short)[:, None] / -2
    return np.hstack([short, half, np.ones_like(half)])


def search(x, y, reach, places=None, margins=None):
    """Rows of two `Searchable`, or of x alone where y is None, that are at most `reach` apart, and perhaps a few more.

    places: which rows of x and of y to compare, two (v,) int64 arrays; all where None. margins: a number for each of
    those, ascending, such that no two rows are nearer than the sum of theirs; only where it is within `reach` are
    they compared. FAISS's range search takes twice as long
    (benchmarks/results/kernel.json): it looks at every distance, this first at the least of each row of a tile.
    Returns two (c,) int64 arrays of places in x and y, and the number of distances computed. Memory: that of a tile,
    and of the rows compared.
    """
    alone, y = y is None, x if y is None else y
    places = places or (slice(None), slice(None))
    left, right = x.layout[places[0]], y.layout[places[1]]
    left = np.concatenate([left[:, :-2], left[:, :-3:-1]], axis=1)  # the last two columns change places
    limit = _limit(left.shape[1], reach)
    found, n_compared = [], 0
    for start in range(0, len(left), _TILE[0]):
        stop = min(start + _TILE[0], len(left))
        first, last = (start if alone else 0), len(right)
        if margins is not None:
            last = int(np.searchsorted(margins[1], reach - margins[0][start], side="right"))
        for low in range(first, last, _TILE[1]):
            high = min(low + _TILE[1], last)
            i, j = _near(left[start:stop], right[low:high], limit)
            n_compared += (stop - start) * (high - low)
            if len(i):
                found.append((i + start, j + low))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), n_compared
    i, j = (np.concatenate(a) for a in zip(*found, strict=True))
    if alone:
        i, j = i[i < j], j[i < j]
    else:
        i, j = (p[a] if isinstance(p, np.ndarray) else a for p, a in zip(places, (i, j), strict=True))
    near = _within(x.sketches, y.sketches, i, j, reach)
    return i[near], j[near], n_compared


def _limit(width, reach):
    """Least value of `left` times `right` at this distance: both are of sketches no longer than `LONGEST`.

    Rounding: the product's, and that of `shorten` (under 1e-5 a row), for which the width is taken 16 wider.
    """
    return np.float32(-(reach**2 + geometry.squared_distance_error(width + 16, geometry.LONGEST, geometry.LONGEST)) / 2)


def _near(left, right, limit):
    """Where the product of two small matrices is at least `limit`."""
    product = left @ right.T
    rows = np.nonzero(product.max(axis=1) >= limit)[0]
    if not len(rows):
        return rows, rows
    i, j = np.nonzero(product[rows] >= limit)
    return rows[i], j


def _within(sketches_x, sketches_y, i, j, reach):
    """Which of the rows (i, j) are within `reach` in all coordinates. Memory: 3 MB a step."""
    near = np.ones(len(i), dtype=bool)
    if sketches_x.shape[1] - 1 <= _FIRST_DIMS:
        return near
    step = max(1, (1 << 18) // sketches_x.shape[1])
    for start in range(0, len(i), step):
        here = slice(start, start + step)
        difference = sketches_x[i[here]] - sketches_y[j[here]]
        near[here] = np.vecdot(difference, difference) <= np.float32(reach**2 * (1 + 1e-4) + 1e-12)
    return near

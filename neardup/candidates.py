"""Range search over sketches: all pairs of two sets that are within a distance, a superset of the true pairs."""

import numpy as np

from neardup import geometry

_FIRST_DIMS = 32  # coordinates of the sketch that are compared first; the rest only for what they let through
_DENSE = 64  # distances for each that is near, where comparing all coordinates at once is quicker
_TILE = 256, 1024  # rows compared at a time: their products stay in a core's cache


def lay_out(sketches, n_coordinates=_FIRST_DIMS):
    """Sketches laid out for search: -|x-y|^2 / 2 is one dot product, once two columns have changed places.

    sketches: (n, m + 1) float32. Returns (n, min(m, n_coordinates) + 3) float32.
    """
    short = geometry.shorten(sketches, n_coordinates)
    half = np.vecdot(short, short)[:, None] / -2
    return np.hstack([short, half, np.ones_like(half)])


def search(x, y, reach, places=None, margins=None, joined=None):
    """Rows of two clusters, or of x alone where y is None, that are at most `reach` apart, and perhaps a few more.

    x, y: have `layout`, as of `lay_out`, and `sketches`, (n, m + 1) float32, which are looked at where rows are near.
    places: which rows of x and of y to compare, two (v,) integer arrays; all where None. margins: a number for each of
    those, ascending, such that no two rows are nearer than the sum of theirs; only where it is within `reach` are
    they compared. joined: a component for each row of x and of y; only rows of different ones are of interest.
    Yields, a tile at a time, two (c,) int64 arrays of places in x and y and the number of distances computed.
    Memory: that of a tile, and of the rows compared. FAISS's range search takes 2 to 6 times as
    long (benchmarks/results/kernel.json), for it looks at each distance by itself.
    """
    alone, y = y is None, x if y is None else y
    places = places or (np.arange(len(x.layout)), np.arange(len(y.layout)))
    left, right = _swapped(x.layout.take(places[0], axis=0)), y.layout.take(places[1], axis=0)
    limit = _limit(left.shape[1], reach)
    for start in range(0, len(left), _TILE[0]):
        rows_x = places[0][start : start + _TILE[0]]
        first, last = (start if alone else 0), len(right)
        if margins is not None:
            last = int(np.searchsorted(margins[1], reach - margins[0][start], side="right"))
        for low in range(first, last, _TILE[1]):
            rows_y = places[1][low : min(low + _TILE[1], last)]
            i, j = _near(left[start : start + _TILE[0]], right[low : low + len(rows_y)], limit)
            dense = len(i) * _DENSE > len(rows_x) * len(rows_y)
            if not len(i):
                yield i, j, len(rows_x) * len(rows_y)
                continue
            if dense:
                i, j = _near_in_all(x.sketches[rows_x], y.sketches[rows_y], reach)
            i, j = rows_x[i].astype(np.int64), rows_y[j].astype(np.int64)
            if alone:
                i, j = i[i < j], j[i < j]
            if joined is not None:
                apart = joined[0][i] != joined[1][j]
                i, j = i[apart], j[apart]
            if not dense:
                near = _within(x.sketches, y.sketches, i, j, reach)
                i, j = i[near], j[near]
            yield i, j, len(rows_x) * len(rows_y)


def _swapped(layout):
    """The other side of the product: the last two columns change places. layout: (n, w) float32, overwritten."""
    layout[:, -2:] = layout[:, :-3:-1].copy()
    return layout


def _limit(width, reach):
    """Least value of `left` times `right` at this distance: both are of sketches no longer than `LONGEST`.

    Rounding: the product's, and that of `shorten` (u of the tail a row), for which the width is taken 16 wider.
    """
    return np.float32(-(reach**2 + geometry.squared_distance_error(width + 16, geometry.LONGEST, geometry.LONGEST)) / 2)


def _near_in_all(sketches_x, sketches_y, reach):
    """As `_near`, by all coordinates: where many rows are near, quicker than `_within` for each two of them."""
    width = sketches_x.shape[1]
    left, right = _swapped(lay_out(sketches_x, width)), lay_out(sketches_y, width)
    return _near(left, right, _limit(left.shape[1], reach))


def _near(left, right, limit):
    """Where the product of two small matrices is at least `limit`."""
    product = left @ right.T
    return np.divmod(np.flatnonzero(product.ravel() >= limit), product.shape[1])


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

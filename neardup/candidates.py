"""Range search over sketches: all pairs of two sets that are within a distance, a superset of the true pairs."""

import numpy as np

from neardup import geometry

_FIRST_DIMS = 32  # coordinates of the sketch that are compared first; the rest only for what they let through
_DENSE = 64  # distances for each that is near, where comparing all coordinates at once is quicker
_TILE = 256, 1024  # rows compared at a time: their products stay in a core's cache
_LEVELS = ("sketches", 0), ("coordinates", 128)  # what is compared next, where more than so many of a tile are near


def lay_out(sketches, n_coordinates=_FIRST_DIMS):
    """Sketches laid out for search: -|x-y|^2 / 2 is one dot product, once two columns have changed places.

    sketches: (n, m + 1) float32. Returns (n, min(m, n_coordinates) + 3) float32.
    """
    short = geometry.shorten(sketches, n_coordinates)
    half = np.vecdot(short, short)[:, None] / -2
    return np.hstack([short, half, np.ones_like(half)])


def search(x, y, reaches, places=None, margins=None, joined=None):
    """Rows of two clusters, or of x alone where y is None, that are within reach, and perhaps a few more.

    x, y: have `layout`, as of `lay_out`; `sketches`, (n, m + 1) float32, which are looked at where rows are near; and
    `coordinates`, (n, k) float32, where many still are. reaches: greatest distance of two sketches, and of coordinates.
    places: which rows of x and of y to compare, two (v,) integer arrays; all where None. margins: a number for each of
    those, ascending, such that no two rows are nearer than the sum of theirs; only where it is within the first reach
    are they compared. joined: a component for each row of x and of y; only rows of different ones are of interest.
    Yields, a tile at a time, two (c,) int64 arrays of places in x and y and the number of distances computed.
    Memory: that of a tile, and of the rows compared. FAISS's range search takes 2 to 6 times as
    long (benchmarks/results/kernel.json), for it looks at each distance by itself.
    """
    alone, y = y is None, x if y is None else y
    places = places or (np.arange(len(x.layout)), np.arange(len(y.layout)))

    def of_interest(i, j):
        chosen = i < j if alone else np.ones(len(i), dtype=bool)
        if joined is not None:
            chosen &= joined[0][i] != joined[1][j]
        return i[chosen], j[chosen]

    for rows_x, rows_y, i, j in _tiles(x.layout, y.layout, reaches[0], (places, margins, alone)):
        size = len(rows_x) * len(rows_y)
        if not len(i):
            yield i, j, size
            continue
        i, j = of_interest(rows_x[i].astype(np.int64), rows_y[j].astype(np.int64))
        for (level, few), reach in zip(_LEVELS, reaches, strict=False):
            if len(i) * _DENSE > size:
                i, j = _near_in_all(getattr(x, level)[rows_x], getattr(y, level)[rows_y], reach)
                i, j = of_interest(rows_x[i].astype(np.int64), rows_y[j].astype(np.int64))
            elif len(i) > few:
                near = within(getattr(x, level), getattr(y, level), i, j, reach)
                i, j = i[near], j[near]
        yield i, j, size


def _tiles(layout_x, layout_y, reach, which):
    """Yield the rows of a tile on either side, and where among them are those near in the first coordinates.

    which: places, margins and whether x is alone, as in `search`.
    """
    places, margins, alone = which
    left, right = _swapped(layout_x.take(places[0], axis=0)), layout_y.take(places[1], axis=0)
    limit, starts = _limit(left.shape[1], reach), range(0, len(left), _TILE[0])
    lasts = [len(right)] * len(starts)
    if margins is not None:
        lasts = np.searchsorted(margins[1], reach - margins[0][:: _TILE[0]], side="right").tolist()
    for start, last in zip(starts, lasts, strict=True):
        rows_x, first = places[0][start : start + _TILE[0]], start if alone else 0
        for low in range(first, last, _TILE[1]):
            rows_y = places[1][low : min(low + _TILE[1], last)]
            yield rows_x, rows_y, *_near(left[start : start + _TILE[0]], right[low : low + len(rows_y)], limit)


def _swapped(layout):
    """The other side of the product: the last two columns change places. layout: (n, w) float32, overwritten."""
    layout[:, -2:] = layout[:, :-3:-1].copy()
    return layout


def _limit(width, reach):
    """Least value of `left` times `right` at this distance: both are of sketches no longer than `LONGEST`.

    Rounding: the product's, and that of `shorten` (u of the tail a row), for which the width is taken 16 wider.
    """
    return np.float32(-(reach**2 + geometry.squared_distance_error(width + 16, geometry.LONGEST, geometry.LONGEST)) / 2)


def _near_in_all(vectors_x, vectors_y, reach):
    """As `_near`, by all coordinates: where many rows are near, quicker than `within` for each two of them."""
    width = vectors_x.shape[1]
    left, right = _swapped(lay_out(vectors_x, width)), lay_out(vectors_y, width)
    return _near(left, right, _limit(left.shape[1], reach))


def _near(left, right, limit):
    """Where the product of two small matrices is at least `limit`."""
    product = left @ right.T
    return np.divmod(np.flatnonzero(product.ravel() >= limit), product.shape[1])


def within(vectors_x, vectors_y, i, j, reach):
    """Which of the rows (i, j) are within `reach` in all coordinates. Memory: 3 MB a step."""
    near, width = np.empty(len(i), dtype=bool), vectors_x.shape[1]
    limit = np.float32(reach**2 * (1 + 4 * (width + 8) * geometry.UNIT32) + 1e-12)
    step = max(1, (1 << 18) // width)
    for start in range(0, len(i), step):
        here = slice(start, start + step)
        difference = vectors_x[i[here]] - vectors_y[j[here]]
        near[here] = np.vecdot(difference, difference) <= limit
    return near

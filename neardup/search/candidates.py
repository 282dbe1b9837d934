"""Range search over sketches: all pairs of two sets that are within a distance, a superset of the true pairs."""

from functools import lru_cache

import numpy as np

from neardup.machine.threads import scratch
from neardup.search import geometry

DENSE = 64  # distances for each that is near, where comparing all coordinates at once is quicker
_TILE = 1024, 256  # rows compared at a time: their products stay in a core's cache
_BLOCK = 64  # rows of one product of many: OpenBLAS multiplies matrices as small without packing them, a third quicker
_FAR = 1e30
_NO_PLACES = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
# what is compared next, where more than so many of a tile are near
_LEVELS = ("sketches", 0), ("longer", 1024), ("coordinates", 128)
_SAMPLED = 64  # places of a tile that tell whether comparing the rows themselves would leave most of them
_ROWS_AT_ONCE = 256  # of a tile that are compared themselves together, with all of the other side
_UNIT = 1.01  # no row of unit length is longer, however rounded


def lay_out(sketches, n_coordinates):
    """Sketches laid out for search: -|x-y|^2 / 2 is one dot product, once two columns have changed places.

    sketches: (n, m + 1) float32. Returns (n, min(m, n_coordinates) + 3) float32.
    """
    layout = np.empty((len(sketches), min(sketches.shape[1] - 1, n_coordinates) + 3), dtype=np.float32)
    short = geometry.shorten(sketches, n_coordinates, out=layout[:, :-2])
    layout[:, -2], layout[:, -1] = np.vecdot(short, short) / -2, 1
    return layout


def swapped(layout):
    """The other side of the product: the last two columns change places."""
    return layout.take([*range(layout.shape[1] - 2), -1, -2], axis=1)


def search(x, y, reaches, places=None, margins=None, joined=None):
    """Rows of two clusters, or of x alone where y is None, that are within reach, and perhaps a few more.

    x, y: have `layout`, as in `lay_out`; `left`, that `swapped`; and where rows are near, of those that are in
    reaches, `sketches`, (n, m + 1) float32, and where many still are `longer` ones, (n, l + 1) float32, `coordinates`,
    (n, k) float32, and the rows themselves, `unit`, `opened.UnitRows`. reaches: {what is compared: greatest distance}.
    places: which rows of x and of y to compare, two (v,) integer arrays; all where None.
    margins: a number for each of those, ascending, such that no two rows are nearer than the sum of theirs; only where
    it is within the first reach are they compared. joined: a component for each row of x and of y; only rows of
    different ones are of interest.
    Yields, a tile at a time where rows are near, two (c,) int64 arrays of places in x and y and the number of distances
    computed since. Memory: that of a tile, and of the rows compared. FAISS's range search takes 1.3 to 9 times as
    long (benchmarks/results/kernel.json), for it looks at each distance by itself.
    """
    alone, y, reach = y is None, x if y is None else y, reaches["first"]
    places = places or (np.arange(len(x.left)), np.arange(len(y.layout)))
    if margins is not None:
        least = margins[1][0], margins[0][0]
        places = [p[: m.searchsorted(reach - o, "right")] for p, m, o in zip(places, margins, least, strict=True)]
    left, right = _padded(x.left, places[0]), y.layout.take(places[1], axis=0)
    limit, compared = _limit(left.shape[2], reach), 0

    def of_interest(i, j):
        """Which of these places are, as arrays of one shape or as rows and columns; np.True_ where all are."""
        chosen = i < j if alone and i.size and i.max() >= j.min() else np.True_
        return chosen if joined is None else chosen & (joined[0][i] != joined[1][j])

    for low in range(0, len(right), _TILE[1]):
        rows_y = places[1][low : low + _TILE[1]]
        of_y, last = right[low : low + _TILE[1]].T.copy(), len(places[0])
        if alone:
            last = low + len(rows_y)
        elif margins is not None:
            last = margins[0].searchsorted(reach - margins[1][low], "right")
        for start in range(0, last, _TILE[0]):
            rows_x = places[0][start : min(start + _TILE[0], -(-last // _BLOCK) * _BLOCK)]
            blocks = left[start // _BLOCK : -(-(start + len(rows_x)) // _BLOCK)]
            is_near = _near(blocks, of_y, limit)[: len(rows_x)]
            compared += len(rows_x) * len(rows_y)
            if is_near.any():
                yield *_refined(x, y, (rows_x, rows_y), is_near, reaches, of_interest), compared
                compared = 0
    if compared:
        yield *_NO_PLACES, compared


def search_joining(x, reaches, joined):
    """As `search` of a cluster alone, where who takes the rows that are near updates `joined` before the next tile.

    Once all rows of a crowd have met a few of it they are one component, and needn't meet each other any more: a crowd
    of g rows costs about g, not g^2 / 2. joined: (n,) int64, a component for each row.
    """
    every, both = np.arange(len(x.left)), (joined, joined)
    few = every[:: -(-len(every) // _TILE[1]) or 1]
    others = np.setdiff1d(every, few, assume_unique=True)
    yield from search(x, None, reaches, (few, few), joined=both)
    yield from search(x, x, reaches, (others, few), joined=both)
    while (crowd := _largest(joined[others])).any():
        members, others = others[crowd], others[~crowd]
        yield from search(x, x, reaches, (others, members), joined=both)
    yield from search(x, None, reaches, (others, others), joined=both)


def search_two_joining(x, y, reaches, places, margins, joined):
    """As `search_joining`, of two clusters. places, margins, joined: as in `search`."""

    def meet(of_x, of_y):
        """The search of some of the places on either side."""
        some = [(p[0][of_x], p[1][of_y]) for p in (places, margins)]
        return search(x, y, reaches, *some, joined) if len(some[0][0]) and len(some[0][1]) else ()

    left = np.arange(len(places[1]))
    while (crowd := _largest(joined[1][places[1][left]])).any():
        members, left = left[crowd], left[~crowd]
        for some in (members[: _TILE[1]], members[_TILE[1] :]):  # what the first ones join is of the crowd then
            yield from meet(joined[0][places[0]] != joined[1][places[1][members[0]]], some)
    yield from meet(slice(None), left)


def _largest(labels):
    """Which rows are in the largest component, (n,) bool; none where it has fewer than a tile has on a side."""
    found, counts = np.unique(labels, return_counts=True)
    if counts.max(initial=0) < _TILE[1]:
        return np.zeros(len(labels), dtype=bool)
    return labels == found[np.argmax(counts)]


def _near(blocks, columns, limit):
    """Where `_padded` rows times columns are at least `limit`, (r, c) bool, which the next call overwrites."""
    product, is_near = _tile(len(blocks) * _BLOCK, columns.shape[1])
    np.matmul(blocks, columns, out=product.reshape(len(blocks), _BLOCK, -1))
    return np.greater_equal(product, limit, out=is_near)


def _tile(n_rows, n_columns):
    """A float32 and a bool array of this shape, the same memory each time in a thread."""
    size = n_rows * n_columns
    buffer = scratch((size + -(-size // 4),))
    return (part.reshape(n_rows, n_columns) for part in (buffer[:size], buffer[size:].view(bool)[:size]))


def _padded(left, places):
    """Rows of `left` in blocks, (b, `_BLOCK`, w) float32; what the last one lacks is far from everything."""
    blocks = np.zeros((-(-len(places) // _BLOCK), _BLOCK, left.shape[1]), dtype=np.float32)
    rows = blocks.reshape(-1, left.shape[1])
    left.take(places, axis=0, out=rows[: len(places)], mode="clip")
    rows[len(places) :, -1] = -_FAR
    return blocks


def _refined(x, y, tile, is_near, reaches, of_interest):
    """Those of the near places in a tile that are within reach in more coordinates, as places in x and y.

    tile: which rows of x and of y it has, (r,) and (c,); is_near: where rows are near, (r, c) bool; of_interest(i, j):
    which of these places are. Where rows are near nearly everywhere, they aren't listed before all levels are compared,
    the rows themselves at last: what tells them apart may lie in what the PCA left out.
    """
    rows_x, rows_y = (rows.astype(np.int64) for rows in tile)
    few_of = dict(_LEVELS) | ({"coordinates": 0} if "longer" in reaches else {})  # of which those are made
    levels = [(level, few, reaches[level]) for level, few in few_of.items() if level in reaches]
    if np.count_nonzero(is_near) * DENSE > is_near.size:
        chosen = of_interest(rows_x[:, None], rows_y)
        is_near = is_near if chosen is np.True_ else np.logical_and(is_near, chosen, out=is_near)
    while (levels or "unit" in reaches) and (count := np.count_nonzero(is_near)) * DENSE > is_near.size:
        if not levels:
            is_near = _near_themselves(x, y, tile, is_near.copy(), reaches["unit"])
            break
        level, few, reach = levels.pop(0)
        if count > few:
            before = is_near.copy()  # in memory that is overwritten next; rounding may let in what went already
            is_near = before & near_in_all(getattr(x, level)[rows_x], getattr(y, level)[rows_y], reach)
    i, j = np.divmod(np.flatnonzero(is_near), len(rows_y))
    i, j = rows_x[i], rows_y[j]
    chosen = of_interest(i, j)
    i, j = (i, j) if chosen is np.True_ else (i[chosen], j[chosen])
    for level, few, reach in levels:
        if len(i) > few:
            some = within(getattr(x, level), getattr(y, level), i, j, reach)
            i, j = i[some], j[some]
    return i, j


def _near_themselves(x, y, tile, is_near, reach):
    """Where rows of a tile are near themselves; as they were, where some of them tell that most would stay so.

    tile: as in `_refined`; is_near: (r, c) bool, written to. Memory: of 512 rows, as stored and twice in float32.
    """
    near = np.flatnonzero(is_near)
    i, j = np.divmod(near[np.linspace(0, len(near) - 1, _SAMPLED).astype(np.int64)], is_near.shape[1])
    difference = x.unit[tile[0][i]] - y.unit[tile[1][j]]
    most = -2 * _limit(difference.shape[1] + 2, reach, _UNIT)
    if 2 * np.count_nonzero(np.vecdot(difference, difference) <= most) > _SAMPLED:
        return is_near
    unit_y = y.unit[tile[1]]
    for start in range(0, len(is_near), _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        is_near[here] &= near_in_all(x.unit[tile[0][here]], unit_y, reach, _UNIT)
    return is_near


@lru_cache(maxsize=16)
def _limit(width, reach, longest=geometry.LONGEST):
    """Least value of `left` times `right` at this distance, of sketches, or of rows themselves; none is longer.

    Rounding: the product's, and that of `shorten` (u of the tail a row), for which the width is taken 16 wider.
    """
    return np.float32(-(reach**2 + geometry.squared_distance_error(width + 16, longest)) / 2)


def near_in_all(vectors_x, vectors_y, reach, longest=geometry.LONGEST):
    """Where rows are near in all coordinates, as `_near`: where many are, quicker than `within` for each two of them.

    The product is that of `lay_out`, whose last two terms are added one by one. longest: no row is longer.
    """
    product, is_near = _tile(len(vectors_x), len(vectors_y))
    np.matmul(vectors_x, vectors_y.T, out=product)
    product -= (np.vecdot(vectors_x, vectors_x) / 2)[:, None]
    product -= np.vecdot(vectors_y, vectors_y) / 2
    return np.greater_equal(product, _limit(vectors_x.shape[1] + 2, reach, longest), out=is_near)


def within(vectors_x, vectors_y, i, j, reach):
    """Which of the rows (i, j) are within `reach` in all coordinates. Memory: 3 MB a step."""
    near, width = np.empty(len(i), dtype=bool), vectors_x.shape[1]
    limit = np.float32(reach**2 * (1 + 4 * (width + 8) * geometry.UNIT32) + 1e-12)  # where squares underflow
    step = max(1, (1 << 18) // width)
    for start in range(0, len(i), step):
        here = slice(start, start + step)
        difference = vectors_x[i[here]] - vectors_y[j[here]]
        near[here] = np.vecdot(difference, difference) <= limit
    return near

"""Visits: which rows of a cluster come near the border to which other, within the reach of a pair."""

import numpy as np

from neardup.ranges import block_ranges, equal_parts

_STEPS = 30_000  # of a visit's margin, from 0 to the reach
_ROW_BITS, _STEP_BITS = 32, 16  # of a packed visit; the cluster it goes to has the rest
_COUNTED_ROWS, _VISITS = 256, 1 << 18  # rows whose visits tell how many all have; visits that are sorted together
_CAST = 1e-6  # far more than float32 is off of a sum below 4: 2.4e-7
CLUSTER_SHIFT = np.uint64(_ROW_BITS + _STEP_BITS)
MOST_CLUSTERS = 2 ** (64 - _ROW_BITS - _STEP_BITS) - 1  # files, of which one cluster may have several
_ROW_MASK, _STEP_MASK = np.uint64(2**_ROW_BITS - 1), np.uint64(2**_STEP_BITS - 1)


def list_visits(sketches, own, borders, radius, numbers=None):
    """The visits of some of a cluster's rows: which are within the radius of the border to which other cluster.

    sketches: (n, m + 1) float32; own: the place of their cluster among those that have borders, None where it is none
    of these; borders: of `geometry.borders`; radius: the greatest distance of a pair; numbers: of those clusters, (K,),
    all where None.
    Returns (v,) uint64, each a cluster, a margin and a row's place among the sketches, packed to sort in this order.
    Memory: 5 n K bytes.
    """
    normals, offsets, below = borders
    products = sketches @ normals
    listed = products <= (radius + below - offsets + _CAST).astype(np.float32)
    if own is not None:
        listed[:, own] = False
    row, cluster = np.divmod(np.flatnonzero(listed.ravel()), len(offsets))
    margins = products[row, cluster] + offsets[cluster]
    steps = np.floor(margins * (_STEPS / radius) - 1e-3) + _STEPS  # down: float64 is off by less than 1e-11 of a step
    packed = np.clip(steps, 0, int(_STEP_MASK)).astype(np.uint64) << np.uint64(_ROW_BITS)
    cluster = cluster if numbers is None else numbers[cluster]
    return packed | row.astype(np.uint64) | (cluster.astype(np.uint64) << CLUSTER_SHIFT)


def flatten_visits(packed, n_clusters, radius):
    """Sorted packed visits as one uint32 array: where those to each cluster begin (K + 1), places (v), margins (v).

    Margins are float32 bits, rounded down, by 0.01 steps, of which float32 is off by less than 0.004; -inf is
    unbounded.
    """
    bounds = np.arange(n_clusters + 1, dtype=np.uint64) << CLUSTER_SHIFT
    steps = ((packed >> np.uint64(_ROW_BITS)) & _STEP_MASK).astype(np.int64)
    margins = np.where(steps == 0, -np.inf, (steps - _STEPS - 0.01) * (radius / _STEPS)).astype(np.float32)
    return np.concatenate(
        [np.searchsorted(packed, bounds), packed & _ROW_MASK, margins.view(np.uint32)],
        dtype=np.uint32,
        casting="unsafe",
    )


def joined_visits(some, n_clusters):
    """As in `flatten_visits`, of several of those, each of visits to clusters of higher numbers than the one before."""
    offsets, rest = zip(*(np.split(visits, [n_clusters + 1]) for visits in some), strict=True)
    places, margins = zip(*(values.reshape(2, -1) for values in rest), strict=True)
    return np.concatenate([np.sum(offsets, axis=0, dtype=np.uint32), *places, *margins])


def visits_of_cluster(sketches, own, borders, radius, numbers, n_clusters, block_rows):
    """All visits of a cluster's rows, as in `flatten_visits`, listed a block of rows and some clusters at a time.

    Arguments as in `list_visits`. Memory: 5 K bytes a row of a block, 16 bytes a visit, and 12 MB.
    """
    some = sketches[:_COUNTED_ROWS]
    count = len(list_visits(some, own, borders, radius)) * len(sketches) / max(1, len(some))
    most, visits = max(1, int(len(numbers) * min(1, _VISITS / max(1, count)))), []
    for low, high in equal_parts(0, len(numbers), most):  # visits sort by cluster: those to some at a time
        part, others = tuple(values[..., low:high] for values in borders), numbers[low:high]
        place, found = own - low if low <= own < high else None, [np.empty(0, dtype=np.uint64)]
        for start, stop in block_ranges(0, len(sketches), block_rows):
            found.append(list_visits(sketches[start:stop], place, part, radius, others) + np.uint64(start))
        visits.append(flatten_visits(np.sort(np.concatenate(found)), n_clusters, radius))
    return joined_visits(visits, n_clusters)

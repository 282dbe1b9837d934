"""Groups without chains: each row that isn't kept is near a kept one, and no two kept ones are near each other."""

import numpy as np

from neardup.groups import Groups, members_and_bounds

_BYTES_OF_EDGE = 100  # of a pair whose rows are both undecided


def stars(neighbors, preferred_and_labels, n_rows, budget, kept=None):
    """Groups around rows that are taken one by one: as preferred, then by how many rows they are near, then in order.

    Each other row joins the one of these that it is nearest to. neighbors(): yields the pairs; budget: bytes for pairs
    that are held in memory; kept: rows that are taken before all others, (n,) bool. Memory: the budget, and 100 bytes a
    row.
    """
    preferred, labels = preferred_and_labels
    degree = degrees(neighbors(), n_rows)
    order = np.lexsort((-degree,) if preferred is None else (-degree, preferred))
    rank = np.empty(n_rows, dtype=np.int64)
    rank[order] = np.arange(n_rows)
    is_centre = centres(neighbors, rank, int(budget / _BYTES_OF_EDGE), kept)
    nearest, similarity = nearest_centre(neighbors, is_centre, rank)
    members, bounds = members_and_bounds(smallest_rows(nearest))
    centre = nearest[members[bounds[:-1]]]
    return Groups(members, bounds, similarity[members], centre, labels[centre])


def degrees(pair_blocks, n_rows):
    """How many rows each row is near, (n_rows,) int64."""
    counts = np.zeros(n_rows, dtype=np.int64)
    for pairs in pair_blocks:
        counts += np.bincount(pairs["row_a"], minlength=n_rows) + np.bincount(pairs["row_b"], minlength=n_rows)
    return counts


def centres(neighbors, rank, budget, kept=None):
    """The rows that a greedy choice takes, (n,) bool: in order of their ranks each row that is near none taken before.

    neighbors(): yields the pairs; rank: (n,) int64, a permutation; budget: pairs that are held in memory at once; kept:
    rows that are taken whatever they are near, (n,) bool. All rows that no undecided neighbour comes before are taken
    together, which gives the same (Blelloch, Fineman and Shun 2012, "Greedy sequential maximal independent set and
    matching are parallel on average").
    """
    kept = np.zeros(len(rank), dtype=bool) if kept is None else kept
    covered, beaten = kept.copy(), np.zeros(len(rank), dtype=bool)
    for pairs in neighbors() if kept.any() else ():
        covered[pairs["row_b"][kept[pairs["row_a"]]]] = covered[pairs["row_a"][kept[pairs["row_b"]]]] = True
    while True:
        held, left = [], 0
        for first, second in _undecided(neighbors, rank, covered):
            beaten[second] = True
            left += len(first)
            held = [*held, (first, second)] if left <= budget else []
        if left <= budget:
            break
        taken = [np.unique(f[~beaten[f]]) for f, _ in _undecided(neighbors, rank, covered)]
        taken = np.unique(np.concatenate(taken))
        is_taken = np.zeros(len(rank), dtype=bool)
        is_taken[taken] = True
        for first, second in _undecided(neighbors, rank, covered):
            covered[second[is_taken[first]]] = True
        beaten[:] = False
    first, second = (np.concatenate([np.empty(0, np.int64), *(h[end] for h in held)]) for end in (0, 1))
    while len(first):
        taken = ~beaten[first]
        covered[second[taken]] = True
        left = ~(taken | covered[first] | covered[second])
        beaten[second] = False
        first, second = first[left], second[left]
        beaten[second] = True
    return ~covered | kept


def _undecided(neighbors, rank, covered):
    """Yield (earlier rows, later rows) of the pairs, a block at a time, that have no covered row."""
    for pairs in neighbors():
        a, b = pairs["row_a"], pairs["row_b"]
        open_ = ~(covered[a] | covered[b])
        a, b = a[open_], b[open_]
        swapped = rank[a] > rank[b]
        yield np.where(swapped, b, a), np.where(swapped, a, b)


def nearest_centre(neighbors, is_centre, rank):
    """The centre that each row is nearest to, of equally near ones the first by rank, and its similarity to that.

    neighbors, rank: as of `centres`. Returns (n,) int64 and (n,) float64, of a centre itself and 1. Memory: 32 bytes a
    row, and a block.
    """
    nearest = np.arange(len(rank))
    best = np.full(len(rank), -np.inf)
    for pairs in neighbors():
        ends = [np.concatenate([pairs[x], pairs[y]]) for x, y in (("row_a", "row_b"), ("row_b", "row_a"))]
        row, centre, similarity = *ends, np.tile(pairs["similarity"], 2)
        towards = is_centre[centre] & ~is_centre[row]
        row, centre, similarity = row[towards], centre[towards], similarity[towards]
        order = np.lexsort((rank[centre], -similarity, row))
        row, first = np.unique(row[order], return_index=True)
        centre, similarity = centre[order][first], similarity[order][first]
        better = (similarity > best[row]) | ((similarity == best[row]) & (rank[centre] < rank[nearest[row]]))
        nearest[row[better]], best[row[better]] = centre[better], similarity[better]
    best[is_centre] = 1
    return nearest, best


def smallest_rows(nearest):
    """The smallest row of each row's star, (n,) int64, as of `groups.components`. nearest: of `nearest_centre`."""
    smallest = np.full(len(nearest), len(nearest), dtype=np.int64)
    np.minimum.at(smallest, nearest, np.arange(len(nearest)))
    return smallest[nearest]

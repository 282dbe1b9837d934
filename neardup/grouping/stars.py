"""Groups without chains: each row that isn't kept is near a kept one, and no two kept ones are near each other."""

import numpy as np

from neardup.grouping.groups import Groups, members_and_bounds
from neardup.search.pairs import strongest_of_each

_BYTES_OF_EDGE = 100  # of a pair whose rows are both undecided
_EDGES_AT_ONCE = 1 << 16  # of those, as Python's numbers


def stars(found, preferred, labels, kept):
    """Groups around rows that are taken one by one: as preferred, then by how many rows they are near, then in order.

    Each other row joins the one of these that it is nearest to. found: `Found`; preferred, labels: as of
    `Representatives`; kept: rows that are taken before all others, (n,) bool. Memory: that of `found`, and 100 bytes a
    row.
    """
    neighbors, n_rows = found.blocks, found.n_rows
    degree = degrees(neighbors(), n_rows)
    order = np.lexsort((-degree,) if preferred is None else (-degree, preferred))
    rank = np.empty(n_rows, dtype=np.int64)
    rank[order] = np.arange(n_rows)
    is_centre = centres(neighbors, rank, int(found.memory / _BYTES_OF_EDGE), kept)
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


def centres(neighbors, rank, most_pairs, kept=None):
    """The rows that a greedy choice takes, (n,) bool: in order of their ranks each row that is near none taken before.

    neighbors(): yields the pairs; rank: (n,) int64, a permutation; most_pairs: that are held in memory at once; kept:
    rows that are taken whatever they are near, (n,) bool. Where more are undecided, all rows that no undecided
    neighbour comes before are taken together, which gives the same (Blelloch, Fineman and Shun 2012, "Greedy sequential
    maximal independent set and matching are parallel on average"). A chain that is ranked along its length loses a row
    a round that way: where over half of the pairs are left, those of the first ranks are decided one by one.
    """
    kept = np.zeros(len(rank), dtype=bool) if kept is None else kept
    covered, before = kept.copy(), np.inf
    for pairs in neighbors() if kept.any() else ():
        covered[pairs["row_b"][kept[pairs["row_a"]]]] = covered[pairs["row_a"][kept[pairs["row_b"]]]] = True
    while True:
        of_rank, beaten = np.zeros(len(rank), dtype=np.int64), np.zeros(len(rank), dtype=bool)
        held, left = [], 0
        for first, second in _undecided(neighbors, rank, covered):
            np.add.at(of_rank, rank[first], 1)
            beaten[second] = True
            left += len(first)
            held = [*held, (first, second)] if left <= most_pairs else []
        if left <= most_pairs:
            _cover_in_order(held, rank, covered)
            return ~covered | kept
        if left <= before / 2:
            _take_unbeaten(neighbors, rank, covered, beaten)
        else:
            end = max(np.searchsorted(np.cumsum(of_rank), most_pairs, side="right"), np.argmax(of_rank > 0) + 1)
            of_first = ((f[rank[f] < end], s[rank[f] < end]) for f, s in _undecided(neighbors, rank, covered))
            _cover_in_order([*of_first], rank, covered)
        before = left


def _take_unbeaten(neighbors, rank, covered, beaten):
    """Cover the neighbours of all rows that no undecided one comes before. beaten: the other rows, (n,) bool."""
    is_taken = np.zeros(len(rank), dtype=bool)
    for first, _ in _undecided(neighbors, rank, covered):
        is_taken[first[~beaten[first]]] = True
    for first, second in _undecided(neighbors, rank, covered):
        covered[second[is_taken[first]]] = True


def _cover_in_order(blocks, rank, covered):
    """Cover the neighbours of each row that isn't covered when its turn comes. blocks: [(earlier rows, later rows)]."""
    first, second = (np.concatenate([np.empty(0, np.int64), *(b[end] for b in blocks)]) for end in (0, 1))
    order, is_covered = np.argsort(rank[first]), memoryview(covered)
    for start in range(0, len(order), _EDGES_AT_ONCE):
        here = order[start : start + _EDGES_AT_ONCE]
        for before, after in zip(first[here].tolist(), second[here].tolist(), strict=True):
            if not is_covered[before]:
                is_covered[after] = True


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

    neighbors, rank: as in `centres`. Returns (n,) int64 and (n,) float64, of a centre itself and 1. Memory: 32 bytes a
    row, and a block.
    """
    nearest = np.arange(len(rank))
    best = np.full(len(rank), -np.inf)
    for pairs in neighbors():
        ends = [np.concatenate([pairs[x], pairs[y]]) for x, y in (("row_a", "row_b"), ("row_b", "row_a"))]
        row, centre, similarity = *ends, np.tile(pairs["similarity"], 2)
        towards = is_centre[centre] & ~is_centre[row]
        row, centre, similarity = row[towards], centre[towards], similarity[towards]
        row, centre, similarity = strongest_of_each(row, centre, similarity, rank[centre])
        better = (similarity > best[row]) | ((similarity == best[row]) & (rank[centre] < rank[nearest[row]]))
        nearest[row[better]], best[row[better]] = centre[better], similarity[better]
    best[is_centre] = 1
    return nearest, best


def smallest_rows(nearest):
    """The smallest row of each row's star, (n,) int64, as in `components`. nearest: of `nearest_centre`."""
    smallest = np.full(len(nearest), len(nearest), dtype=np.int64)
    np.minimum.at(smallest, nearest, np.arange(len(nearest)))
    return smallest[nearest]

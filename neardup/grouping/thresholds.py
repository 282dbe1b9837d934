"""What each threshold would give, all from one search: a maximum spanning forest of the pairs joins what they join."""

import numpy as np

from neardup import NeardupError
from neardup.grouping.groups import members_and_bounds
from neardup.order import stable_order
from neardup.search.components import components, numbered
from neardup.search.pairs import PAIR
from neardup.words import exact

STEPS = 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0
_BINS = 40  # of the histogram of similarities
_AT_ONCE, _MOST = 1 << 18, 1 << 20  # pairs that are put into the forest together, at least, and as memory allows
_BYTES_A_PAIR = 130  # of the forest or beside it, while it is made
_SHARES = 0.5, 0.9, 0.99  # of a block's pairs: below each such quantile it drops those that stronger ones join anyhow


def steps(lowest, chosen):
    """The thresholds that are tabulated, descending: round ones from the lowest on, that one, and the chosen one."""
    return sorted({lowest, chosen, *(s for s in STEPS if s > lowest)}, reverse=True)


def spanning_forest(pair_blocks, memory=0):
    """The maximum spanning forest of the pairs, (f,) PAIR, by similarity, descending, then by rows.

    At every threshold its pairs join the same rows as all pairs do (Kruskal 1956: a pair that closes a cycle is the
    weakest of it). pair_blocks: in order; memory: bytes that may be held of them: the more, the more pairs of a crowd
    are seen not to be needed before they are sorted. Memory: that, or 34 MB; 130 bytes for each pair of the forest, of
    a row at most one, and for as many others; 24 bytes a row, where there are many.
    """
    forest, held = np.empty(0, dtype=PAIR), []
    at_once = max(_AT_ONCE, min(memory / _BYTES_A_PAIR, _MOST))
    for pairs in pair_blocks:
        held.append(pairs)
        many = max(at_once, len(forest))  # so that the forest isn't sorted too often
        if sum(map(len, held)) >= many:
            held = [_still_needed(np.concatenate(held), forest)]
            if len(held[0]) >= many / 2:
                forest, held = _forest_of([forest, *held]), []
    return _forest_of([forest, *held])


def _still_needed(pairs, forest):
    """The pairs without those whose rows the forest of pairs before them joins by none weaker: in a crowd, most."""
    for share in _SHARES:
        if len(pairs) < len(forest) or not len(forest):
            break
        level = np.quantile(pairs["similarity"], share, method="lower")
        n_rows = 1 + max(pairs["row_b"].max(), forest["row_b"].max())
        joined = components([forest.compress(forest["similarity"] >= level)], n_rows)
        needed = (pairs["similarity"] > level) | (joined[pairs["row_a"]] != joined[pairs["row_b"]])
        few = len(pairs) - np.count_nonzero(needed) < share / 2 * len(pairs)
        pairs = pairs.compress(needed)
        if few:
            break
    return pairs


def _forest_of(parts):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    pairs = np.concatenate(parts)
    order = stable_order(-pairs["similarity"])  # equal ones are in order: those of the forest first
    pairs = pairs.take(order)
    nodes, ends = numbered([pairs["row_a"], pairs["row_b"]])
    places = np.arange(1, len(pairs) + 1, dtype=np.float64)  # as weights: exact, and no two are the same
    graph = coo_array((places, tuple(ends)), shape=(len(nodes), len(nodes)))
    return pairs.take(np.sort(minimum_spanning_tree(graph).data.astype(np.int64)) - 1) if len(pairs) else pairs


def groups_at(forest, n_rows, threshold):
    """Members and bounds, as in `members_and_bounds`, of the groups that pairs at or above a threshold form."""
    return members_and_bounds(components([forest.compress(forest["similarity"] >= threshold)], n_rows))


def threshold_for(forest, n_rows, target_rows, lowest):
    """The highest threshold that leaves at most `target_rows` of `n_rows` rows, each group's representative kept.

    Raises NeardupError where the lowest that was searched leaves more.
    """
    needed = n_rows - target_rows
    if needed > len(forest):
        raise NeardupError(
            f"at {exact(lowest)}, the lowest threshold searched, {n_rows - len(forest):,} rows are left, more than the "
            f"{target_rows:,} of target_rows: set a lower report_threshold and run faiss_04_neighbor_search.py again"
        )
    return float(forest["similarity"][needed - 1]) if needed > 0 else 1.0


def strongest_pairs(forest, n_rows):
    """Similarity of each row's strongest pair, (n_rows,) float64, 0 where it has none. forest: spans all pairs."""
    found = np.zeros(n_rows)
    for name in ("row_a", "row_b"):
        np.maximum.at(found, forest[name], forest["similarity"])
    return found


def pair_counts(pair_blocks, thresholds):
    """How many pairs are at or above each of the thresholds, (t,) int64. thresholds: descending."""
    ascending, counts = np.array(thresholds[::-1]), np.zeros(len(thresholds), dtype=np.int64)
    for pairs in pair_blocks:
        reached = np.searchsorted(ascending, pairs["similarity"], side="right")
        counts += np.cumsum(np.bincount(reached, minlength=len(ascending) + 1)[::-1])[:-1]
    return counts


def histogram(pair_blocks, lowest):
    """How many pairs have which similarity: counts (b,) and edges (b + 1,) from the lowest threshold to 1."""
    edges = np.linspace(min(lowest, 1 - 1e-6), 1, _BINS + 1)
    counts = np.zeros(_BINS, dtype=np.int64)
    for pairs in pair_blocks:
        counts += np.histogram(np.clip(pairs["similarity"], edges[0], 1), edges)[0]
    return counts, edges


def examples(pair_blocks, thresholds, count):
    """Some pairs from each of the thresholds on, up to the next higher one, to look at: [(e,) PAIR].

    Those of the lowest similarities in each, for it is these that a threshold decides on. pair_blocks: in order;
    thresholds: descending. Memory: a block.
    """
    uppers = [np.inf, *thresholds[:-1]]
    found = [np.empty(0, dtype=PAIR) for _ in thresholds]
    for pairs in pair_blocks:
        similarity = pairs["similarity"].copy()
        for i, (low, high) in enumerate(zip(thresholds, uppers, strict=True)):
            weakest = found[i]["similarity"][-1] if len(found[i]) == count else high  # that may be shown
            more = pairs.compress((similarity >= low) & (similarity < min(high, weakest)))
            some = np.concatenate([found[i], more])
            found[i] = some.take(stable_order(some["similarity"])[:count])
    return found

"""What a run decided otherwise than the one before it in the same work folder, and how its decisions are kept."""

import numpy as np

from neardup.grouping.outputs import read_groups
from neardup.search.components import components, numbered


class Decisions:
    """Of the run before: the group of each of today's rows, (n,) int64, -1 of single ones, and which rows were kept.

    stage: 045, that has a previous one; rejected: rows that are neither kept nor dropped. Memory: 9 bytes a row, and
    what the groups take.
    """

    def __init__(self, stage, rejected):
        growth, groups = stage.growth, read_groups(stage.previous.path("merged_clusters.h5"))
        n_rows, n_before = int(growth.now[-1]), int(growth.before[-1])
        rows = growth.renumbered(groups.rows)
        there = rows >= 0
        self.group = np.full(n_rows, -1, dtype=np.int64)
        self.group[rows[there]] = np.repeat(np.arange(len(groups)), groups.sizes)[there]
        dropped = np.zeros(n_rows, dtype=bool)
        dropped[rows[there & groups.dropped(n_before)[groups.rows]]] = True
        self.kept = ~dropped & ~growth.each_is_fresh()
        self.kept[rejected] = False
        self.new, self.gone = growth.n_fresh, n_before - (n_rows - growth.n_fresh)

    def compared(self, groups):
        """How the groups of today differ, as small JSON values."""
        of_group = np.repeat(np.arange(len(groups)), groups.sizes)
        both = np.unique(np.stack([of_group, self.group[groups.rows]], axis=1), axis=0)
        earlier = np.bincount(both[both[:, 1] >= 0, 0], minlength=len(groups))
        more = np.bincount(both[both[:, 1] < 0, 0], minlength=len(groups)) > 0
        return {
            "new_rows": self.new,
            "gone_rows": self.gone,
            "grown": int(np.count_nonzero((earlier == 1) & more)),
            "joined": int(np.count_nonzero(earlier > 1)),
            "new": int(np.count_nonzero(earlier == 0)),
            "kept_before_and_dropped": int(np.count_nonzero(self.kept & groups.dropped(len(self.kept)))),
        }


def apart(forest, kept):
    """The pairs of a forest but those that would join two kept rows: each is a component's only one, at any threshold.

    forest: (f,) PAIR, by similarity, descending, as in `thresholds.spanning_forest`; kept: (n,) bool. A row that is
    joined with several stays with the one that it has the strongest path to, for weaker pairs come later (Kruskal).
    """
    from scipy.cluster.hierarchy import DisjointSet

    smallest = components([forest], len(kept))
    several = np.bincount(smallest[kept], minlength=len(kept)) > 1
    unclear = np.nonzero(several[smallest[forest["row_a"]]])[0]
    pairs, stays = forest.take(unclear), np.ones(len(forest), dtype=bool)
    rows, _ = numbered([pairs["row_a"], pairs["row_b"]])
    sets, has_kept = DisjointSet(rows.tolist()), dict(zip(rows.tolist(), kept[rows].tolist(), strict=True))
    for place, a, b in zip(unclear.tolist(), pairs["row_a"].tolist(), pairs["row_b"].tolist(), strict=True):
        of_a, of_b = sets[a], sets[b]
        if has_kept[of_a] and has_kept[of_b]:
            stays[place] = False
        else:
            sets.merge(of_a, of_b)
            has_kept[sets[a]] = has_kept[of_a] or has_kept[of_b]
    return forest.compress(stays)

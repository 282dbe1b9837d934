"""The search in tasks of about as much work: some clusters alone, or the borders of some with some others."""

from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from neardup.machine import budget
from neardup.ranges import equal_parts, size_ranges

_TASKS, _MOST_TASKS, _TASK_WORK = 24, 20_000, 4e9  # fewest and most tasks of each kind; distances that one is to have
_LEAST_WORK = 1e8  # distances of a task, below which there are fewer: its files take longer
_OPENED = 1e5  # distances that take as long as to open a cluster
_SCANNED = 131_072  # rows that are read through together, at most
_PARTS, _LEAST_SCANNED = 8, 8192  # of all such rows, at least, for several workers; but of no fewer rows
_GROUPS = 4  # of clusters that a task holds open, at least: small enough to be many, large enough to be opened seldom


class Task(NamedTuple):
    """A part of the search, "inside" clusters (the homes) or "across" their borders to others; its number among those.

    homes, others: numbers of clusters; the others where rows are in no cluster files, ranges of those.
    """

    kind: str
    number: int
    homes: list
    others: list


def search_tasks(prepared, config, which):
    """What to search, a task each: clusters alone, and groups of clusters with some of those of higher number.

    which: of a run that grows, which clusters have rows that visit, and which have those and rows that these have to
    meet, (K,) bool each; none is searched alone then. Groups stay as they were when an interrupted run goes on.
    Returns two lists of `Task`. Memory: 4 K^2 bytes.
    """
    if prepared.scan:
        return scan_tasks(prepared, config, which[0])
    stage, clusters, n_clusters = prepared.stage, prepared.clusters, len(prepared.clusters)
    most = min(prepared.most, int(clusters.bounds[-1] / _GROUPS))
    groups = stage.once(partial(size_ranges, clusters.bounds, most), "groups").tolist()
    homes, alone = [range(*group) for group in groups], np.arange(n_clusters)
    met = np.ones(n_clusters, dtype=bool)
    if which is not None:
        visiting, met = which[0], ~which[0] | which[1]
        homes, alone = [h for h in ([c for c in some if visiting[c]] for some in homes) if h], alone[:0]
    # once: visits that are listed anew, on another processor, may differ by a row
    found = stage.once(partial(shares_across, prepared, homes, which), "shares").tolist()
    across = [(homes[i], (low + np.nonzero(met[low:high])[0]).tolist()) for i, low, high in found]
    of_each = np.diff(clusters.bounds)[alone].astype(float) ** 2 / 2 + _OPENED
    inside = [(alone[slice(*share)].tolist(), []) for share in shares(of_each, most_work(of_each.sum()))]
    return [[Task(kind, i, *t) for i, t in enumerate(ts)] for kind, ts in (("inside", inside), ("across", across))]


def scan_tasks(prepared, config, visiting):
    """As `search_tasks`, where the clusters that are `visiting`, (K,) bool, visit rows which are read through."""
    stage, clusters, scan = prepared.stage, prepared.clusters, prepared.scan
    groups = stage.once(partial(size_ranges, clusters.bounds, prepared.most), "groups").tolist()
    homes = [[c for c in range(*group) if visiting[c]] for group in groups]
    most = min(_SCANNED, max((scan.stop - scan.start) // _PARTS, _LEAST_SCANNED))
    most = budget.block_rows(stage.memory / 2, config.n_workers, 8 * clusters.width, most)
    ranges = stage.once(lambda: np.array(equal_parts(scan.start, scan.stop, most)), "scanned").tolist()
    both = product(filter(None, homes), ranges)
    return [], [Task("across", number, some, [scanned]) for number, (some, scanned) in enumerate(both)]


def shares_across(prepared, homes, which):
    """The search across borders in tasks: which of `homes`, with clusters from which on to before which, (t, 3)."""
    clusters, n_clusters = prepared.clusters, len(prepared.clusters)
    visits = np.zeros((n_clusters, n_clusters), dtype=np.uint32)
    for cluster in range(n_clusters) if which is None else np.nonzero(which[0])[0].tolist():
        visits[cluster] = prepared.count_visits(cluster)
    if which is None:
        starts = [h[0] + 1 for h in homes]
        work = [meetings(visits, h[0], h[-1] + 1) for h in homes]
    else:
        sizes, meeting, starts = np.diff(clusters.bounds), which[1], [0] * len(homes)
        visits[meeting, meeting] = sizes[meeting]
        come = [visits[h].sum(axis=0, dtype=float) for h in homes]
        work = [c * sizes + _OPENED * (c > 0) for c in come]
    most = most_work(sum(w.sum() for w in work))
    ranges = [(i, *share) for i, of_group in enumerate(work) for share in shares(of_group, most) if of_group.any()]
    return np.array([(i, starts[i] + low, starts[i] + high) for i, low, high in ranges], np.int64).reshape(-1, 3)


def meetings(visits, low, high):
    """Distances of the clusters low to high and each of those from low + 1 on, of any two once, about.

    visits: (K, K), how many rows of one are near the border to another. Returns (K - low - 1,).
    """
    products = visits[low:high, low + 1 :].astype(np.float32) * visits[low + 1 :, low:high].T
    return np.triu(products).sum(axis=0, dtype=float) + _OPENED


def most_work(total):
    """Distances of a task, at most, of so many in all: few enough to be many tasks, enough to be begun seldom."""
    return max(total / np.clip(total / _TASK_WORK, _TASKS, _MOST_TASKS), _LEAST_WORK)


def shares(work, most):
    """Ranges of things that follow each other, of at most so much work, or a single one. work: (n,) distances."""
    return size_ranges(np.cumulative_sum(work, include_initial=True), most)

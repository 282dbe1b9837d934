"""The search in tasks of about as much work: some clusters alone, or the borders of some with some others."""

import numpy as np

from neardup import engine
from neardup.clusters import count_visits
from neardup.files import write_npy
from neardup.npy import read_npy

_TASKS, _MOST_TASKS, _TASK_WORK = 24, 20_000, 4e9  # of either part of the search; distances of one, in between
_LEAST_WORK = 1e8  # distances of a task, below which there are fewer: its files take longer
_OPENED = 1e5  # distances that take as long as to open a cluster
_GROUPS = 4  # of clusters that a task holds open, at least: small enough to be many, large enough to be opened seldom


def search_tasks(stage, clusters, more, config, which=None):
    """What to search, a task each: clusters alone, and groups of clusters with some of those of higher number.

    which: of a run that grows, which clusters have rows that visit, and which have those and rows that these have to
    meet, (K,) bool each; none is searched alone then.
    more: bytes a row of an open cluster, beyond its sketch, layout and visits. A group fits a quarter of
    the working memory, all workers together. Groups stay as they were when an interrupted run goes on.
    Returns two lists of (kind, number, homes, others). Memory: 4 K^2 bytes.
    """
    path, n_clusters = stage.part("groups"), len(clusters)
    if not path.exists():
        budget = stage.memory / 4 / engine.worker_count(config.n_workers)
        most = min(budget / (8 * clusters.width + more), clusters.bounds[-1] / _GROUPS)
        write_npy(path, np.array(engine.size_ranges(clusters.bounds, int(most))))
    visits = np.zeros((n_clusters, n_clusters), dtype=np.uint32)
    for cluster in range(n_clusters) if which is None else np.nonzero(which[0])[0].tolist():
        visits[cluster] = count_visits(stage, clusters, cluster)
    homes = [range(low, high) for low, high in read_npy(path).tolist()]
    sizes = np.diff(clusters.bounds).astype(float)
    if which is None:
        work, alone = [meetings(visits, h[0], h[-1] + 1) for h in homes], np.arange(n_clusters)
        others = [np.arange(h[0] + 1, n_clusters) for h in homes]
    else:
        (visiting, meeting), alone = which, np.empty(0, dtype=int)
        visits[meeting, meeting] = sizes[meeting]
        homes = [h for h in ([c for c in some if visiting[c]] for some in homes) if h]
        come = [visits[h].sum(axis=0, dtype=float) for h in homes]
        others = [np.nonzero(c)[0] for c in come]
        work = [c[o] * sizes[o] + _OPENED for c, o in zip(come, others, strict=True)]
    most, across = most_work(sum(w.sum() for w in work)), []
    for group, some, of_group in zip(homes, others, work, strict=True):
        across += [(group, some[slice(*share)].tolist()) for share in shares(of_group, most)]
    of_each = sizes[alone] ** 2 / 2 + _OPENED
    inside = [(alone[slice(*share)].tolist(), ()) for share in shares(of_each, most_work(of_each.sum()))]
    return [[(kind, i, *t) for i, t in enumerate(ts)] for kind, ts in (("inside", inside), ("across", across))]


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
    return engine.size_ranges(np.concatenate([[0], np.cumsum(work)]), most)

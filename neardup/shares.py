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


def search_tasks(stage, clusters, more, config, with_fresh=None):
    """What to search, a task each: clusters alone, and groups of clusters with some of those of higher number.

    with_fresh: which clusters hold rows that have to meet others of theirs, (K,) bool; all where None.
    more: bytes a row of an open cluster, beyond its sketch, layout and visits. A group fits a quarter of
    the working memory, all workers together. Groups stay as they were when an interrupted run goes on.
    Returns two lists of (kind, number, homes, others). Memory: 4 K^2 bytes.
    """
    path, n_clusters = stage.part("groups"), len(clusters)
    if not path.exists():
        budget = stage.memory / 4 / engine.worker_count(config.n_workers)
        most = min(budget / (8 * clusters.width + more), clusters.bounds[-1] / _GROUPS)
        write_npy(path, np.array(engine.size_ranges(clusters.bounds, int(most))))
    visits = np.stack([count_visits(stage, clusters, cluster) for cluster in range(n_clusters)])
    groups, across = read_npy(path).tolist(), []
    work = [meetings(visits, low, high) for low, high in groups]
    most = most_work(sum(w.sum() for w in work))
    for (low, high), of_group in zip(groups, work, strict=True):
        others = range(low + 1, n_clusters)
        across += [(range(low, high), others[slice(*some)]) for some in shares(of_group, most)]
    some = np.arange(n_clusters) if with_fresh is None else np.nonzero(with_fresh)[0]
    alone = np.diff(clusters.bounds)[some].astype(float) ** 2 / 2 + _OPENED
    inside = [(some[slice(*share)].tolist(), ()) for share in shares(alone, most_work(alone.sum()))]
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

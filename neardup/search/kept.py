"""Clusters that stay when rows come to a finished run: those rows get files of their own beside them."""

from functools import partial
from typing import NamedTuple

import numpy as np

from neardup.machine import engine
from neardup.machine.npy import read_npy
from neardup.search.clusters import Clusters, cluster_name, cluster_path, write_cluster


class Kept(NamedTuple):
    """The clusters of a finished run, without the rows that came to it: their files stay.

    centroids: (F, m + 1) float32, of each file; labels: (n,) int32, the file of each of today's rows; others: [(start,
    stop)] of the rows that have none in them.
    """

    centroids: np.ndarray
    labels: np.ndarray
    others: list

    @classmethod
    def none(cls, n_rows, width):
        """Nothing is kept: a run from scratch."""
        return cls(np.empty((0, width), np.float32), np.full(n_rows, -1, dtype=np.int32), [(0, n_rows)])


def keep_clusters(stage, ids, config):
    """Take the files of the clusters of the finished run, anew where rows of theirs are gone or have other numbers.

    Returns `Kept`. The rows that came to it before are among the others, whose files are made anew; but where today's
    are just read through, so that nothing else gets a file.
    """
    previous, growth = stage.previous, stage.growth
    n_base, then = previous.results["n_clusters" if stage.scans else "made"], read_npy(previous.path("labels.npy"))
    labels = np.full(int(growth.now[-1]), -1, dtype=np.int32)
    others = growth.fresh.copy()
    for today, low, high in zip(growth.of.tolist(), growth.before[:-1], growth.before[1:], strict=True):
        if today >= 0:
            others[today] = (then[low:high] >= n_base).any()
            labels[growth.now[today] : growth.now[today + 1]] = then[low:high]
    names = [cluster_name(number) for number in range(n_base)]
    if growth.moves:
        task = partial(renumber, stage, growth, ids)
        engine.run(task, enumerate(previous.paths(names, config.n_workers)), config.n_workers, "03 renumber")
    else:
        stage.take_over(names)
    ranges = zip(growth.now[:-1].tolist(), growth.now[1:].tolist(), strict=True)
    some = [r for r, is_other in zip(ranges, others, strict=True) if is_other]
    return Kept(read_npy(previous.path("centroids.npy"))[:n_base], labels, some or [(0, 0)])


def renumber(stage, growth, ids, number, then):
    """Write a cluster file of the finished run, then, with today's numbers of its rows."""
    path = cluster_path(stage, number)
    if not path.exists():
        rows, sketches = Clusters([then]).load(0)
        rows = growth.renumbered(rows)
        write_cluster(path, rows[rows >= 0], sketches[rows >= 0], ids, rows[rows >= 0])


def gain(of_centroid, base, n_clusters):
    """How many times fewer distances inside clusters there would be, about, were so many clusters made of all rows.

    of_centroid: (F,) rows of each centroid now; base: (F,) of those the rows in the files that stayed, taken to be as
    uneven as new clusters would be.
    """
    of_centroid, base = of_centroid.astype(float), base.astype(float)
    share = np.sum(base**2) / max(1, base.sum()) ** 2
    made_anew = share * len(base) / n_clusters * of_centroid.sum() ** 2
    return round(float(np.sum(of_centroid**2) / max(1, made_anew)), 2)

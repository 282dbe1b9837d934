"""The rows of the far larger of two sets: read through as they lie, for those of the smaller one visit them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from neardup.input.embeddings import RowFiles
from neardup.machine.npy import map_npy
from neardup.order import stable_order
from neardup.ranges import equal_parts

_SAMPLED = 16_384  # rows from all over the set that tell how near each other those of a cluster are


class Scan(NamedTuple):
    """Rows that are in no cluster file: start to stop. sketches: of both sets; labels: the path of labels.npy."""

    sketches: RowFiles
    labels: Path
    start: int
    stop: int

    def block(self, start, stop):
        """Rows start to stop as a `Block`. Memory: their sketches, twice."""
        return self._by_cluster(np.arange(start, stop))

    def sample(self):
        """Some rows of all as a `Block`, which is empty if those were rejected; the same each time."""
        return self._by_cluster(np.unique(np.random.default_rng(0).integers(self.start, self.stop, _SAMPLED)))

    def _by_cluster(self, rows):
        labels = map_npy(self.labels)[rows]
        order = stable_order(labels)[np.count_nonzero(labels < 0) :]  # without rejected rows
        bounds = np.searchsorted(labels[order], np.arange(labels.max(initial=-1) + 2))
        return Block(bounds, rows[order], self.sketches.gather(rows)[order])


class Block(NamedTuple):
    """Rows by cluster, in memory, as `clusters.Clusters` are on disk.

    bounds: (K + 1,), where those of each begin, up to the last that has any; rows: (r,) int64; sketches: (r, m + 1)
    float32.
    """

    bounds: np.ndarray
    rows: np.ndarray
    sketches: np.ndarray

    def load(self, cluster):
        """Row numbers (n,) and sketches (n, m + 1) of a cluster."""
        return self._some(*self.bounds[cluster : cluster + 2])

    def parts(self, cluster, most):
        """As `load`, at most so many rows at a time."""
        return [self._some(*part) for part in equal_parts(*self.bounds[cluster : cluster + 2].tolist(), most)]

    def _some(self, start, stop):
        return self.rows[start:stop], self.sketches[start:stop]

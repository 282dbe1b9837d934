"""Clusters on disk, and which of their rows come near which border, the visits."""

from functools import cached_property
from typing import NamedTuple

import h5py
import numpy as np

from neardup import NeardupError, geometry

_STEPS = 30_000  # of a visit's margin, from 0 to the reach
_ROW_BITS, _STEP_BITS = 32, 16  # of a packed visit; the cluster it goes to has the rest
_ROW_MASK, _STEP_MASK = np.uint64(2**_ROW_BITS - 1), np.uint64(2**_STEP_BITS - 1)


class Clusters:
    """The cluster files of stage 3: `rows` and `vectors` of one at a time, memory-mapped."""

    def __init__(self, folder, n_clusters):
        self.paths = [folder / "clusters" / f"cluster_{c:05d}.h5" for c in range(n_clusters)]
        self.rows, self.vectors = zip(*map(_data_sets, self.paths), strict=True)

    def __len__(self):
        return len(self.paths)

    def fitting(self, memory_bytes):
        """How many clusters of middling size may be held open in so much memory, at least 2."""
        total = sum(v.shape[0] * v.shape[1] * 8 for v in self.vectors)  # sketches, and as much for layout and visits
        return max(2, int(memory_bytes * len(self) / max(total, 1)))

    def load(self, cluster):
        """Row numbers (n,) int64 and sketches (n, m + 1) float32 of a cluster, read-only. Memory: mapped while held."""
        path = self.paths[cluster]
        return _map(path, self.rows[cluster]), _map(path, self.vectors[cluster])


class _DataSet(NamedTuple):
    shape: tuple
    dtype: np.dtype
    offset: int | None  # bytes into the file; None where nothing is stored


def _data_sets(path):
    with h5py.File(path) as file:
        found = [_DataSet(file[n].shape, file[n].dtype, file[n].id.get_offset()) for n in ("row", "vector")]
    if found[0].shape != found[1].shape[:1] or found[0].dtype != np.int64 or found[1].dtype != np.float32:
        raise NeardupError(f"{path} is damaged: remove {path.parent.parent} and run faiss_03_kmeans.py again")
    return found


def _map(path, data):
    if data.offset is None:
        return np.empty(data.shape, data.dtype)
    return np.memmap(path, data.dtype, "r", data.offset, data.shape).view(np.ndarray)


class OpenCluster:
    """What the search needs of a cluster; row numbers and sketches are opened where rows are near.

    layout: (n, w) float32, of `candidates.lay_out`; visits: (v,) uint64, of `list_visits`, sorted.
    """

    def __init__(self, clusters, number, layout, visits):
        self._load, self.layout, self.visits = (lambda: clusters.load(number)), layout, visits

    def __len__(self):
        return len(self.layout)

    @cached_property
    def rows(self):
        """Row numbers, (n,) int64."""
        return self._load()[0]

    @cached_property
    def sketches(self):
        """Sketches, (n, m + 1) float32."""
        return self._load()[1]


def list_visits(sketches, own, centroids, error, reach):
    """The visits of a cluster's rows: which are within `reach` of the border to which other cluster.

    Arguments: as of `geometry.border_margins`; reach: the greatest distance of a pair. Returns (v,) uint64, each a
    cluster, a margin and a row's place in its cluster, packed so that they sort in this order. Memory: 8 n K bytes.
    """
    margins, below = geometry.border_margins(sketches, own, centroids, error)
    listed = margins <= np.float32(reach) + below + np.float32(1e-6)
    listed[:, own] = False
    row, cluster = np.nonzero(listed)
    steps = np.floor(margins[row, cluster].astype(np.float64) * (_STEPS / reach) - 1e-3) + _STEPS  # rounded down
    packed = np.clip(steps, 0, int(_STEP_MASK)).astype(np.uint64) << np.uint64(_ROW_BITS)
    return packed | row.astype(np.uint64) | (cluster.astype(np.uint64) << np.uint64(_ROW_BITS + _STEP_BITS))


def visits_to(packed, cluster):
    """Those of a cluster's sorted visits that go to another one."""
    bounds = np.array([cluster, cluster + 1], dtype=np.uint64) << np.uint64(_ROW_BITS + _STEP_BITS)
    return packed[slice(*np.searchsorted(packed, bounds))]


def unpack(packed, reach):
    """Places (v,) int64 of visitors in their cluster, and their margins (v,) float64, ascending; -inf is unbounded."""
    steps = ((packed >> np.uint64(_ROW_BITS)) & _STEP_MASK).astype(np.int64)
    margins = np.where(steps == 0, -np.inf, (steps - _STEPS) * (reach / _STEPS))
    return (packed & _ROW_MASK).astype(np.int64), margins

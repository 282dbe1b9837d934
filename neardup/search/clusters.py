"""Cluster files: the rows of a cluster, their sketches and their ids."""

from typing import NamedTuple

import numpy as np

from neardup.input.id_table import store_ids
from neardup.machine.files import damaged, hdf5, opened_data_sets
from neardup.machine.npy import map_array
from neardup.search import geometry

_SHORT_DIMS = 8  # coordinates of the sketch that a few rows are compared with all by (neardup/query.py)


def cluster_path(stage, number):
    """Where a cluster file is."""
    return stage.path(cluster_name(number))


def cluster_name(number):
    """The name of a cluster file in its stage."""
    return f"clusters/cluster_{number:05d}.h5"


def write_cluster(path, rows, sketches, ids, places):
    """A cluster file: row, vector (its sketch), short (a shorter one) and id of each member, rows ascending.

    places: of the ids in a table. The folder is left to flush, once for all files.
    """
    with hdf5(path, alone=False) as file:
        file["row"], file["vector"], file["short"] = rows, sketches, geometry.shorten(sketches, _SHORT_DIMS)
        store_ids(file, ids, places)


class Clusters:
    """The cluster files of stage 3, of which `load` maps one at a time.

    bounds: (K + 1,) int64, rows of the clusters added up; width: values of a sketch.
    """

    def __init__(self, paths):
        self.paths = paths
        self._rows, self._vectors = zip(*map(data_sets, self.paths), strict=True)
        self.bounds = np.cumsum([0] + [v.shape[0] for v in self._vectors])
        self.width = self._vectors[0].shape[1]

    def __len__(self):
        return len(self.paths)

    def load(self, cluster):
        """Row numbers (n,) int64 and sketches (n, m + 1) float32 of a cluster, read-only. Memory: mapped while held."""
        path = self.paths[cluster]
        return tuple(map_array(path, d.dtype, d.offset, d.shape) for d in (self._rows[cluster], self._vectors[cluster]))


class _DataSet(NamedTuple):
    shape: tuple
    dtype: np.dtype
    offset: int | None  # bytes into the file; None where there is nothing


def data_sets(path, *more):
    """Where the rows of a cluster file lie, its vectors, and more of its data sets, [(shape, dtype, offset)].

    Raises NeardupError where it is damaged.
    """
    with opened_data_sets(path, ("row", "vector", *more), path.parents[1]) as sets:
        found = [_DataSet(s.shape, s.dtype, s.id.get_offset()) for s in sets]
    if found[0].shape != found[1].shape[:1] or found[0].dtype != np.int64 or found[1].dtype != np.float32:
        raise damaged(path, "other shapes or types", path.parents[1])
    return found

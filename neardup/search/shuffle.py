"""The shuffle: rows sorted by cluster in runs that fit memory, then the runs merged, some clusters at a time."""

from functools import partial

import numpy as np
import pyarrow as pa

from neardup.input.id_table import IdTable, bytes_of, positions
from neardup.machine import engine
from neardup.machine.files import atomic, write_npy
from neardup.machine.npy import map_npy, read_array, read_npy
from neardup.order import stable_order
from neardup.ranges import equal_parts, size_ranges
from neardup.search.clusters import cluster_path, write_cluster

_LEAST_CUT = 4096  # rows of a cluster that stays whole whatever its share
_SHARE = 20  # of all distances inside clusters a file has no more than one in so many


def write_run(stage, sketches, ids, n_clusters, number, start, nearest):
    """Sort rows by nearest centroid into a file of their numbers, sketches and ids; beside it where each one's begin.

    sketches: (r, m + 1) float32 of the rows from `start` on, or None where they and ids are taken later from where
    they are; ids: `IdTable` of all rows; nearest: (r,) int32, -1 of rows that are left out.
    """
    order = stable_order(nearest)[np.count_nonzero(nearest < 0) :]
    rows, flush = order + start, stage.flush
    content = [rows]
    if sketches is not None:
        sizes, text = bytes_of(ids.array(rows))
        content += [np.cumulative_sum(sizes, include_initial=True), sketches[order], text]
    with atomic(stage.volatile("run", number), flush) as temporary, temporary.open("wb") as file:
        for values in content:  # plain, so that any part of each can be mapped
            file.write(values.reshape(-1).view(np.uint8).data)
    write_npy(stage.volatile("bounds", number), np.searchsorted(nearest[order], np.arange(n_clusters + 1)), flush)


class Shuffle:
    """Which rows of which sorted run go to which cluster file.

    bounds: of each run, (K + 1,); most: rows of a file; first_file: the number of the first one. A centroid with more
    rows, or with so many that comparing them would take long, has several files of equal parts; one without rows has
    an empty one, or none where there are files of before.
    `cuts`, (F + 1,): where files begin when all rows lie by centroid, then by number; `centroid`, (F,): of each file.
    Memory: 24 bytes a run and centroid.
    """

    def __init__(self, bounds, most, first_file=0):
        self.first_file, self.bounds = first_file, np.stack(bounds)
        self.counts = np.diff(self.bounds, axis=1)
        self.before = np.cumsum(self.counts, axis=0) - self.counts
        sizes = self.counts.sum(axis=0)
        self.starts = np.cumulative_sum(sizes, include_initial=True)
        work = float(np.sum(sizes.astype(float) ** 2)) / 2 / _SHARE
        whole, part = (max(_LEAST_CUT, int(np.sqrt(w))) for w in (2 * work, work))
        parts = [
            equal_parts(start, start + size, min(most, size if size <= whole else part) or 1)
            if size or not first_file
            else []
            for start, size in zip(self.starts[:-1].tolist(), sizes.tolist(), strict=True)
        ]
        self.cuts = np.array([low for some in parts for low, _ in some] + [self.starts[-1]])
        self.centroid = np.repeat(np.arange(len(sizes)), [len(some) for some in parts])

    def label(self, stage, runs, labels):
        """Note the number of the cluster file of each row of the runs in labels, (n,) int32; -1 of rows left out."""
        first = np.searchsorted(self.centroid, np.arange(len(self.starts))).astype(np.int32)
        is_cut = np.diff(first) > 1
        for number, (start, stop) in enumerate(runs):
            nearest = read_npy(stage.part("nearest", number))
            found = np.where(nearest < 0, np.int32(-1), self.first_file + first[nearest])
            some = np.nonzero((nearest >= 0) & is_cut[nearest])[0]
            some = some[stable_order(nearest[some])]
            cluster = nearest[some]
            rank = np.arange(len(some)) - np.searchsorted(cluster, cluster)
            at = self.starts[cluster] + self.before[number, cluster] + rank
            found[some] = self.first_file + np.searchsorted(self.cuts, at, side="right") - 1
            labels[start:stop] = found

    def write_clusters(self, stage, width, sources, most, n_workers):
        """cluster_00000.h5, …; those that an interrupted run finished stay.

        width: values of a sketch; sources: the sketches and ids of all rows, or None where the runs hold them; most:
        rows that a task holds, twice.
        """
        some = size_ranges(self.cuts, most)
        task = partial(merge_runs, stage, width, sources)
        engine.run(task, [self._task(*s) for s in some], n_workers, "03 clusters")

    def _task(self, low, high):
        """What `merge_runs` takes to write the files low to high."""
        here = slice(self.centroid[low], self.centroid[high - 1] + 1)
        ends = self.cuts[[low, high], None, None] - self.starts[here] - self.before[:, here]
        first, last = np.clip(ends, 0, self.counts[:, here])
        return (
            self.first_file + low,
            self.cuts[low : high + 1] - self.cuts[low],
            self.bounds[:, here.start] + first[:, 0],
            last - first,
        )


def merge_runs(stage, width, sources, low, cuts, begins, counts):
    """The cluster files from `low` on: row, vector (its sketch) and id of each member, rows ascending.

    width, sources: of `Shuffle.write_clusters`; cuts: where files begin among the rows taken from all runs; begins:
    where those are in each run, (P,); counts: how many of each centroid, (P, C). Memory: their sketches, twice, and
    their ids.
    """
    paths = [cluster_path(stage, low + i) for i in range(len(cuts) - 1)]
    if all(path.exists() for path in paths):
        return
    some = list(enumerate(zip(begins.tolist(), counts.sum(axis=1).tolist(), strict=True)))
    order = stable_order(np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel()))
    rows = np.concatenate([_rows_of_run(stage, number, *part) for number, part in some])[order]
    if sources:
        sketches, places, ids = sources[0].gather(rows), rows, sources[1]
    else:
        parts = [_rest_of_run(stage, width, number, *part) for number, part in some]
        sketches, places = np.concatenate([part[0] for part in parts]), np.arange(len(rows))
        ids = IdTable([pa.concat_arrays([part[1] for part in parts]).take(positions(order))])
        del parts
        sketches = sketches[order]
    for path, start, stop in zip(paths, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        write_cluster(path, rows[start:stop], sketches[start:stop], ids, places[start:stop])


def _rows_of_run(stage, number, start, size):
    """Rows of some of a sorted run, (s,) int64; read, not mapped, for each map of many would hold a file."""
    return read_array(stage.volatile("run", number), np.dtype(np.int64), 8 * start, (size,))


def _rest_of_run(stage, width, number, start, size):
    """Sketches (s, width) float32 and ids, an Arrow array, of some of a sorted run."""
    path, n_rows = stage.volatile("run", number), int(map_npy(stage.volatile("bounds", number))[-1])
    offsets = read_array(path, np.dtype(np.int64), 8 * (n_rows + start), (size + 1,))
    vectors = 8 * (2 * n_rows + 1)
    sketches = read_array(path, np.dtype(np.float32), vectors + 4 * width * start, (size, width))
    text_at = vectors + 4 * width * n_rows + int(offsets[0])
    text = read_array(path, np.dtype(np.uint8), text_at, (int(offsets[-1] - offsets[0]),))
    buffers = [None, pa.py_buffer(offsets - offsets[0]), pa.py_buffer(text)]
    return sketches, pa.Array.from_buffers(pa.large_string(), size, buffers)

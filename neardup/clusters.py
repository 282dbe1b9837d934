"""Clusters on disk, and which of their rows come near which border, the visits."""

from functools import cached_property, lru_cache
from threading import Lock
from typing import NamedTuple

import h5py
import numpy as np

from neardup import geometry
from neardup.candidates import lay_out, n_longer, swapped
from neardup.embeddings import block_ranges, equal_parts, open_pieces, pieces
from neardup.files import atomic, damaged, hdf5, npy_rows
from neardup.ids import store_ids
from neardup.mirror import here
from neardup.npy import map_array, map_npy, read_npz

_STEPS = 30_000  # of a visit's margin, from 0 to the reach
_ROW_BITS, _STEP_BITS = 32, 16  # of a packed visit; the cluster it goes to has the rest
_GATHERED_ROWS = 8192  # reduced vectors that are copied together
_PROJECTED_ROWS = 1024  # that are projected together
_COUNTED_ROWS, _VISITS = 256, 1 << 18  # rows whose visits tell how many all have; visits that are sorted together
_SHORT_DIMS = 8  # coordinates of the sketch that a few rows are compared with all by (neardup/query.py)
_GATHERING = Lock()  # one thread at a time writes those of a cluster, whichever
CLUSTER_SHIFT = np.uint64(_ROW_BITS + _STEP_BITS)
MOST_CLUSTERS = 2 ** (64 - _ROW_BITS - _STEP_BITS) - 1  # files, of which one cluster may have several
_ROW_MASK, _STEP_MASK = np.uint64(2**_ROW_BITS - 1), np.uint64(2**_STEP_BITS - 1)


def cluster_path(stage, number):
    """Where a cluster file is."""
    return stage.path(cluster_name(number))


def cluster_name(number):
    """The name of a cluster file in its stage."""
    return f"clusters/cluster_{number:05d}.h5"


def write_cluster(path, rows, sketches, ids, places):
    """A cluster file: row, vector (its sketch), short (a shorter one) and id of each member, rows ascending.

    places: of the ids in a table.
    """
    with hdf5(path) as file:
        file["row"], file["vector"], file["short"] = rows, sketches, geometry.shorten(sketches, _SHORT_DIMS)
        store_ids(file, ids, places)


class Clusters:
    """The cluster files of stage 3: `rows` and `vectors` of one at a time, memory-mapped.

    bounds: (K + 1,) int64, rows of the clusters added up; width: values of a sketch.
    """

    def __init__(self, paths):
        self.paths = paths
        self.rows, self.vectors = zip(*map(data_sets, self.paths), strict=True)
        self.bounds = np.cumsum([0] + [v.shape[0] for v in self.vectors])
        self.width = self.vectors[0].shape[1]

    def __len__(self):
        return len(self.paths)

    def load(self, cluster):
        """Row numbers (n,) int64 and sketches (n, m + 1) float32 of a cluster, read-only. Memory: mapped while held."""
        path = self.paths[cluster]
        return tuple(map_array(path, d.dtype, d.offset, d.shape) for d in (self.rows[cluster], self.vectors[cluster]))


class _DataSet(NamedTuple):
    shape: tuple
    dtype: np.dtype
    offset: int | None  # bytes into the file; None where there is nothing


def data_sets(path, *more):
    """Where the rows of a cluster file lie, its vectors, and more of its data sets, [(shape, dtype, offset)].

    Raises NeardupError where it is damaged.
    """
    try:
        with h5py.File(here(path)) as file:
            sets = [file[name] for name in ("row", "vector", *more)]
            found = [_DataSet(s.shape, s.dtype, s.id.get_offset()) for s in sets]
    except (OSError, KeyError, RuntimeError) as error:
        if getattr(error, "errno", None):  # the system's, not HDF5's
            raise
        raise damaged(path, error, path.parents[1]) from error
    if found[0].shape != found[1].shape[:1] or found[0].dtype != np.int64 or found[1].dtype != np.float32:
        raise damaged(path, "other shapes or types", path.parents[1])
    return found


class Prepared(NamedTuple):
    """Clusters as the search wants them, in files of its stage. n_first: coordinates that are compared first."""

    stage: object
    clusters: Clusters
    n_first: int

    def path(self, cluster):
        """Where `prepare_cluster` writes."""
        return self.stage.volatile("search", cluster)

    def read(self, cluster):
        """What it wrote: visits, as of `flatten_visits`, and the layout, (n, w) float32; memory-mapped."""
        path, n_clusters = here(self.path(cluster)), len(self.clusters)
        values = map_array(path, np.dtype(np.uint32), 0, (path.stat().st_size // 4,))
        layout_at = n_clusters + 2 + 2 * int(values[n_clusters + 1])
        return values[1:layout_at], values[layout_at:].view(np.float32).reshape(-1, int(values[0]))

    def count_visits(self, cluster):
        """How many rows of a cluster are near the border to each of the others, (K,) uint32."""
        return np.diff(self.read(cluster)[0][: len(self.clusters) + 1])


def longer_sketches(rows):
    """The first of the PCA coordinates of rows, and the length of the others, (n, l + 1) float32. rows: have both."""
    coordinates, sketch_dims = rows.coordinates, rows.sketches.shape[1] - 1
    return geometry.shorten(coordinates, n_longer(sketch_dims, coordinates.shape[1]))


class OpenCluster:
    """What the search needs of a cluster, memory-mapped; most arrays are opened where rows are near.

    prepared: `Prepared`; reduced: a function that opens all PCA coordinates of all rows; visits: whether its rows are
    visitors, prepared by `prepare_cluster`. growth: a `Growth`, whose earlier rows have met each other.
    """

    def __init__(self, prepared, reduced, number, visits=True):
        self._prepared, self.reduced, self.number, self.growth = prepared, reduced, number, prepared.stage.growth
        if visits:
            (listed, self.layout), n_offsets = prepared.read(number), len(prepared.clusters) + 1
            self.offsets = listed[:n_offsets].tolist()
            self.places, self.margins = listed[n_offsets:].reshape(2, -1)
            self.margins = self.margins.view(np.float32)

    def __len__(self):
        return len(self.layout)

    @cached_property
    def layout(self):
        """Sketches as of `candidates.lay_out`, (n, w) float32."""
        return lay_out(self.sketches, self._prepared.n_first)

    @cached_property
    def left(self):
        """The layout as the left side of a product, (n, w) float32."""
        return swapped(self.layout)

    @cached_property
    def rows(self):
        """Row numbers, (n,) int64."""
        return self._prepared.clusters.load(self.number)[0]

    @cached_property
    def sketches(self):
        """Sketches, (n, m + 1) float32."""
        return self._prepared.clusters.load(self.number)[1]

    @cached_property
    def coordinates(self):
        """All PCA coordinates, (n, k) float32, which the first one who needs them gathers."""
        stage = self._prepared.stage
        path, flush = stage.volatile("coordinates", self.number), stage.flush
        with _GATHERING:
            if not path.exists():
                with npy_rows(path, (len(self), self.reduced().dim), flush=flush) as write:
                    for start in range(0, len(self), _GATHERED_ROWS):
                        write(self.reduced().gather(self.rows[start : start + _GATHERED_ROWS]))
        return map_npy(path)

    @cached_property
    def longer(self):
        """Longer sketches, (n, l + 1) float32."""
        return longer_sketches(self)

    @cached_property
    def fresh(self):
        """Which rows are new, (n,) bool, or None where all have to be compared."""
        return self.growth and self.growth.is_fresh(self.rows)

    def has_visits_to(self, cluster):
        """Whether any row comes near the border to another cluster."""
        return self.offsets[cluster] < self.offsets[cluster + 1]

    def visits_to(self, cluster):
        """Rows near the border to another cluster: places (v,) uint32, and margins (v,) float32, ascending."""
        here = slice(self.offsets[cluster], self.offsets[cluster + 1])
        return self.places[here], self.margins[here]


def list_visits(sketches, own, borders, radius, numbers=None):
    """The visits of some of a cluster's rows: which are within the radius of the border to which other cluster.

    sketches: (n, m + 1) float32; own: the place of their cluster among those that have borders, None where it is none
    of these; borders: of `geometry.borders`; radius: the greatest distance of a pair; numbers: of those clusters, (K,),
    all where None.
    Returns (v,) uint64, each a cluster, a margin and a row's place among the sketches, packed to sort in this order.
    Memory: 5 n K bytes.
    """
    normals, offsets, below = borders
    products = sketches @ normals
    listed = products <= (radius + below - offsets + 1e-6).astype(np.float32)
    if own is not None:
        listed[:, own] = False
    row, cluster = np.divmod(np.flatnonzero(listed.ravel()), len(offsets))
    margins = products[row, cluster] + offsets[cluster]
    steps = np.floor(margins * (_STEPS / radius) - 1e-3) + _STEPS  # rounded down
    packed = np.clip(steps, 0, int(_STEP_MASK)).astype(np.uint64) << np.uint64(_ROW_BITS)
    cluster = cluster if numbers is None else numbers[cluster]
    return packed | row.astype(np.uint64) | (cluster.astype(np.uint64) << CLUSTER_SHIFT)


def flatten_visits(packed, n_clusters, radius):
    """Sorted packed visits as one uint32 array: where those to each cluster begin (K + 1), places (v), margins (v).

    Margins are float32 bits, rounded down; -inf is unbounded.
    """
    bounds = np.arange(n_clusters + 1, dtype=np.uint64) << CLUSTER_SHIFT
    steps = ((packed >> np.uint64(_ROW_BITS)) & _STEP_MASK).astype(np.int64)
    margins = np.where(steps == 0, -np.inf, (steps - _STEPS - 0.01) * (radius / _STEPS)).astype(np.float32)
    return np.concatenate(
        [np.searchsorted(packed, bounds), packed & _ROW_MASK, margins.view(np.uint32)],
        dtype=np.uint32,
        casting="unsafe",
    )


def joined_visits(some, n_clusters):
    """As of `flatten_visits`, of several of those, each of visits to clusters of higher numbers than the one before."""
    offsets, rest = zip(*(np.split(visits, [n_clusters + 1]) for visits in some), strict=True)
    places, margins = zip(*(values.reshape(2, -1) for values in rest), strict=True)
    return np.concatenate([np.sum(offsets, axis=0, dtype=np.uint32), *places, *margins])


def flat_visits(sketches, own, borders, radius, numbers, n_clusters, block_rows):
    """All visits of a cluster's rows, as of `flatten_visits`, listed a block of rows and some clusters at a time.

    Arguments as of `list_visits`. Memory: 5 K bytes a row of a block, 16 bytes a visit, and 12 MB.
    """
    some = sketches[:_COUNTED_ROWS]
    count = len(list_visits(some, own, borders, radius)) * len(sketches) / max(1, len(some))
    most, visits = max(1, int(len(numbers) * min(1, _VISITS / max(1, count)))), []
    for low, high in equal_parts(0, len(numbers), most):  # visits sort by cluster: those to some at a time
        part, others = tuple(values[..., low:high] for values in borders), numbers[low:high]
        place, found = own - low if low <= own < high else None, [np.empty(0, dtype=np.uint64)]
        for start, stop in block_ranges(0, len(sketches), block_rows):
            found.append(list_visits(sketches[start:stop], place, part, radius, others) + np.uint64(start))
        visits.append(flatten_visits(np.sort(np.concatenate(found)), n_clusters, radius))
    return joined_visits(visits, n_clusters)


def prepare_cluster(prepared, centroids, reach, block_rows, cluster, numbers):
    """Write the sketches of a cluster as the search wants them, and its visits.

    reach: `Reach`; numbers: of the clusters that it may visit, its own among them, (N,). Memory: 5 K bytes a row of a
    block, 16 bytes a visit, and 12 MB.
    """
    path, (stage, clusters, n_first) = prepared.path(cluster), prepared
    if path.exists():
        return
    sketches, own = clusters.load(cluster)[1], int(np.searchsorted(numbers, cluster))
    borders = geometry.borders(own, centroids[numbers], reach.error)
    visits = flat_visits(sketches, own, borders, reach.radius, numbers, len(clusters), block_rows)
    layout = lay_out(sketches, n_first)
    with atomic(path, flush=stage.flush) as temporary, temporary.open("wb") as file:
        for values in (np.uint32(layout.shape[1:]), visits, layout):  # plain: numpy's header takes long to read
            file.write(values.reshape(-1).view(np.uint8).data)


@lru_cache(maxsize=1)
def open_reduced(reduction, starts):
    """The reduced vectors of all rows. starts: a tuple, of the shards; opened once in a process."""
    return open_pieces([reduction.path(f"reduced_{piece.name}.npy") for piece in pieces(starts)], starts)


@lru_cache(maxsize=1)
def open_projection(reduction, rows):
    """As `open_reduced`, made of the rows as they are asked for. rows: `RowFiles` of all of them."""
    model = read_npz(reduction.path("pca.npz"))
    return Projection(rows, geometry.projection(model["mean_"], model["components_"]))


class Projection:
    """All PCA coordinates of rows. projection: of `geometry.projection`."""

    def __init__(self, rows, projection):
        self._rows, self._projection, self.dim = rows, projection, len(projection[1])

    def gather(self, rows):
        """Those of some rows, (r, k) float32. Memory: that, and 1,024 rows, three times."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for start, stop in block_ranges(0, len(rows), _PROJECTED_ROWS):
            values, scales, _ = geometry.scaled_rows32(self._rows.gather(rows[start:stop]))
            out[start:stop] = geometry.project(values, scales, *self._projection)[0]
        return out

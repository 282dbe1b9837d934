"""Clusters as the search wants them: laid out with their visits, and opened, as much of each as it needs."""

from functools import cached_property, lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np

from neardup.input.embeddings import open_pieces, pieces
from neardup.machine.files import atomic, npy_rows
from neardup.machine.mirror import here
from neardup.machine.npy import map_array, map_npy, read_npz
from neardup.ranges import block_ranges
from neardup.search import geometry
from neardup.search.candidates import lay_out, swapped
from neardup.search.clusters import Clusters
from neardup.search.scan import Scan
from neardup.search.visits import visits_of_cluster

_GATHERED_ROWS = 8192  # reduced vectors that are copied together
_PROJECTED_ROWS = 1024  # that are projected together
_GATHERING = Lock()  # one thread at a time writes those of a cluster, whichever


class Prepared(NamedTuple):
    """Clusters as the search wants them, in files of its stage.

    n_first: coordinates that are compared first; n_longer: those of longer sketches, where rows are compared by such;
    scan: the rows that are in no file, where there are such; most: rows that a task holds open.
    """

    stage: object
    clusters: Clusters
    n_first: int = 0
    n_longer: int = 0
    scan: Scan | None = None
    most: int = 0

    def sample(self):
        """Rows by cluster that tell how near each other they are: `Clusters`, or a `Block` of the scan."""
        block = self.scan and self.scan.sample()
        return block if block and len(block.rows) else self.clusters

    def path(self, cluster):
        """Where `prepare_cluster` writes."""
        return self.stage.volatile("search", cluster)

    def read(self, cluster):
        """What it wrote: visits, as in `flatten_visits`, and the layout, (n, w) float32; memory-mapped."""
        path, n_clusters = here(self.path(cluster)), len(self.clusters)
        values = map_array(path, np.dtype(np.uint32), 0, (path.stat().st_size // 4,))
        layout_at = n_clusters + 2 + 2 * int(values[n_clusters + 1])
        return values[1:layout_at], values[layout_at:].view(np.float32).reshape(-1, int(values[0]))

    def count_visits(self, cluster):
        """How many rows of a cluster are near the border to each of the others, (K,) uint32."""
        return np.diff(self.read(cluster)[0][: len(self.clusters) + 1])


def prepare_cluster(prepared, centroids, reach, block_rows, meeting, cluster):
    """Write the sketches of a cluster as the search wants them, and its visits.

    reach: `Reach`; meeting: which clusters it may visit, (K,) bool. Memory: 5 K bytes a row of a block, 16 bytes a
    visit, and 12 MB.
    """
    path, clusters = prepared.path(cluster), prepared.clusters
    if path.exists():
        return
    sketches, numbers = clusters.load(cluster)[1], np.nonzero(meeting | (np.arange(len(meeting)) == cluster))[0]
    own = int(np.searchsorted(numbers, cluster))
    borders = geometry.borders(own, centroids[numbers], reach.error)
    visits = visits_of_cluster(sketches, own, borders, reach.radius, numbers, len(clusters), block_rows)
    layout = lay_out(sketches, prepared.n_first)
    with atomic(path, flush=prepared.stage.flush) as temporary, temporary.open("wb") as file:
        for values in (np.uint32(layout.shape[1:]), visits, layout):  # plain: numpy's header takes long to read
            file.write(values.reshape(-1).view(np.uint8).data)


class OpenCluster:
    """What the search needs of a cluster, memory-mapped; most arrays are opened where rows are near.

    prepared: `Prepared`; reduced: a function that opens all PCA coordinates of all rows; visits: whether its rows are
    visitors, prepared by `prepare_cluster`; vectors: `RowFiles` of all rows, where the search has a reach for `unit`;
    members: its rows and sketches, where they are in no file.
    growth: a `Growth`, whose earlier rows have met each other.
    """

    def __init__(self, prepared, reduced, number, visits=True, vectors=None, members=None):
        self.vectors, self.members = vectors, members
        self.prepared, self.reduced, self.number, self.growth = prepared, reduced, number, prepared.stage.growth
        if visits:
            (listed, self.layout), n_offsets = prepared.read(number), len(prepared.clusters) + 1
            self.offsets = listed[:n_offsets].tolist()
            self.places, self.margins = listed[n_offsets:].reshape(2, -1)
            self.margins = self.margins.view(np.float32)

    def __len__(self):
        return len(self.layout)

    @cached_property
    def layout(self):
        """Sketches as in `candidates.lay_out`, (n, w) float32."""
        return lay_out(self.sketches, self.prepared.n_first)

    @cached_property
    def left(self):
        """The layout as the left side of a product, (n, w) float32."""
        return swapped(self.layout)

    @cached_property
    def rows(self):
        """Row numbers, (n,) int64."""
        return self.loaded[0]

    @cached_property
    def sketches(self):
        """Sketches, (n, m + 1) float32."""
        return self.loaded[1]

    @property
    def loaded(self):
        """Both, as `Clusters.load` has them."""
        return self.members or self.prepared.clusters.load(self.number)

    @cached_property
    def coordinates(self):
        """All PCA coordinates, (n, k) float32, which the first one who needs those of a file gathers."""
        if self.members:
            return self.reduced().gather(self.rows)
        stage = self.prepared.stage
        path, flush = stage.volatile("coordinates", self.number), stage.flush
        with _GATHERING:
            if not path.exists():
                with npy_rows(path, (len(self), self.reduced().dim), flush=flush) as write:
                    for start in range(0, len(self), _GATHERED_ROWS):
                        write(self.reduced().gather(self.rows[start : start + _GATHERED_ROWS]))
        return map_npy(path)

    @cached_property
    def unit(self):
        """The rows themselves, as `UnitRows`."""
        return UnitRows(self.vectors, self.rows)

    @cached_property
    def longer(self):
        """Longer sketches, (n, l + 1) float32."""
        return longer_sketches(self, self.prepared)

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


def longer_sketches(rows, prepared):
    """The first of the PCA coordinates of rows, and the length of the others, (n, l + 1) float32."""
    return geometry.shorten(rows.coordinates, prepared.n_longer)


@lru_cache(maxsize=1)
def open_reduced(reduction, starts):
    """The reduced vectors of all rows. starts: a tuple, of the shards; opened once in a process."""
    return open_pieces([reduction.path(f"reduced_{piece.name}.npy") for piece in pieces(starts)], starts)


def open_sketches(reduction, starts, n_workers):
    """The sketches of all rows, which a script looks at first. starts: of the shards."""
    names = [f"sketch_{piece.name}.npy" for piece in pieces(starts)]
    return open_pieces(reduction.paths(names, n_workers), starts)


@lru_cache(maxsize=1)
def open_projection(reduction, rows):
    """As `open_reduced`, made of the rows as they are asked for. rows: `RowFiles` of all of them."""
    model = read_npz(reduction.path("pca.npz"))
    return ProjectedRows(rows, geometry.projection(model["mean_"], model["components_"]))


class UnitRows:
    """Rows scaled to unit length, (n, d) float32, each time that some are asked for. vectors: `RowFiles`."""

    def __init__(self, vectors, rows):
        self._vectors, self._rows = vectors, rows

    def __getitem__(self, places):
        return geometry.unit_rows32(self._vectors.gather(self._rows[places]))[0]


class ProjectedRows:
    """All PCA coordinates of rows. projection: a `geometry.Projection`."""

    def __init__(self, rows, projection):
        self._rows, self._projection, self.dim = rows, projection, len(projection.offset)

    def gather(self, rows):
        """Those of some rows, (r, k) float32. Memory: that, and 1,024 rows, three times."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for start, stop in block_ranges(0, len(rows), _PROJECTED_ROWS):
            values, scales, _ = geometry.scaled_rows32(self._rows.gather(rows[start:stop]))
            out[start:stop] = geometry.project(values, scales, *self._projection)[0]
        return out

"""Stage 3 of 5: split the rows into K-means clusters, and list which rows visit which neighbouring cluster.

A row visits another cluster when a pair of it could lie there: when it is within the radius of the border.
Of two clusters the one with the lower number sends its rows, so each pair of rows meets once.
"""

import shutil
from functools import partial

import faiss
import h5py
import numpy as np

from neardup import engine, geometry
from neardup.artifacts import atomic, begin, write_npy
from neardup.embeddings import RowFiles, block_ranges, shard_starts
from neardup.ids import IdTable, store_ids
from neardup.script import main

_SAMPLE_PER_CLUSTER = 256  # training rows a centroid: what faiss.Kmeans keeps by default, too
_ITERATIONS = 20
_CLUSTER_DIMS = 64  # leading PCA coordinates that clusters are made in: a contraction too, and cheaper than all
_VISIT = np.dtype([("row", "<i8"), ("margin", "<f4")])
_VISIT_BYTES = 64  # memory a visit takes while a block's visits are sorted


def run(config):
    """Write work/03_kmeans, or find it finished."""
    stage, shards, earlier = begin(config, "03_kmeans")
    if not stage.finished:
        variance, reduction = earlier["01_pca_variance"], earlier["02_pca_reduce"]
        starts = shard_starts(shards)
        reduced = open_rows(reduction, "reduced", starts)
        rejected = np.load(variance.path("rejected_rows.npy"))
        centroids = train(stage, reduced, rejected, config)
        reach = geometry.radius(stage.key["settings"]["visit_threshold"], shards[0].dim)
        error = geometry.projection_error(shards[0].dim, centroids.shape[1])
        blocks = assign_blocks(stage, reduced, rejected, centroids, (reach, error), config)
        labels = collect_labels(stage, blocks, len(reduced))
        sources = reduced, open_rows(reduction, "sketch", starts), IdTable(variance.path("ids.arrow"))
        visits = write_clusters(stage, sources, blocks, len(centroids), config)
        sizes = np.bincount(labels[labels >= 0], minlength=len(centroids))
        remove_parts(stage)
        stage = stage.finish(
            {
                "rows": int(sizes.sum()),
                "n_clusters": len(centroids),
                "smallest": int(sizes.min()),
                "largest": int(sizes.max()),
                "visits": int(sum(visits)),
            }
        )
    report(stage)


def open_rows(reduction, kind, starts):
    """Stage 2's files of one kind as one array of rows."""
    return RowFiles([reduction.path(f"{kind}_{s:05d}.npy") for s in range(len(starts) - 1)], starts)


def train(stage, reduced, rejected, config):
    """Centroids from a seeded sample of the rows, (K, c) float32; kept in centroids.npy.

    faiss.Kmeans, not scikit-learn's: see docs/architecture.md. Memory: 256 K c floats.
    """
    path = stage.path("centroids.npy")
    if not path.exists():
        n_rows = len(reduced) - len(rejected)
        n_clusters = min(config.n_clusters or max(1, round(n_rows**0.5)), n_rows)
        rng = np.random.default_rng(config.random_state)
        size = min(n_rows, _SAMPLE_PER_CLUSTER * n_clusters)
        sample = np.sort(rng.choice(n_rows, size, replace=False))
        sample += np.searchsorted(rejected - np.arange(len(rejected)), sample, side="right")  # skips rejected rows
        write_npy(path, kmeans(reduced.gather(sample)[:, :_CLUSTER_DIMS], n_clusters, config.random_state))
    return np.load(path)


def kmeans(points, n_clusters, seed):
    """K-means by faiss. points: (n, c) float32. Returns centroids (n_clusters, c) float32."""
    model = faiss.Kmeans(
        points.shape[1],
        n_clusters,
        niter=_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max(_SAMPLE_PER_CLUSTER, len(points)),
    )
    model.train(np.ascontiguousarray(points))
    return model.centroids


def assign_blocks(stage, reduced, rejected, centroids, reach_and_error, config):
    """Label every row and list its visits, a file a block; those that an interrupted run finished stay.

    Returns (start, stop) of the blocks.
    """
    n_clusters, dims = centroids.shape
    # a row of every matrix of a block, and a quarter of the visits that it can make
    bytes_per_row = 12 * n_clusters + 8 * dims + _VISIT_BYTES * n_clusters // 4
    blocks = _kept_blocks(
        stage, reduced.starts, engine.block_rows(config.memory_limit, config.n_workers, bytes_per_row)
    )
    borders = border_lengths(centroids)
    task = partial(assign_block, stage.folder, reduced, rejected, centroids, borders, reach_and_error)
    engine.run(task, blocks, config.n_workers, "03 assign")
    return blocks


def _kept_blocks(stage, starts, block_rows):
    """The blocks, as the run that began this stage cut them: its files hold those."""
    path = stage.path("blocks.npy")
    if not path.exists():
        write_npy(path, np.array(block_ranges(starts, block_rows), dtype=np.int64))
    return [tuple(map(int, b)) for b in np.load(path)]


def border_lengths(centroids):
    """Distances between centroids, (K, K) float32. Memory: 12 K^2 bytes."""
    from scipy.spatial.distance import cdist

    return cdist(centroids, centroids).astype(np.float32)


def assign_block(folder, reduced, rejected, centroids, borders, reach_and_error, start, stop):
    """Write the rows of a block sorted by cluster, and their visits sorted by the cluster visited."""
    path = part_path(folder, "visits", start)
    if path.exists():
        return
    points = np.ascontiguousarray(reduced.read(start, stop)[:, : centroids.shape[1]])
    labels, visitor, target, margin = label_and_visit(points, centroids, borders, *reach_and_error)
    bad = np.isin(np.arange(start, stop), rejected)
    labels[bad] = -1
    keep = ~bad[visitor]
    order = np.argsort(target[keep], kind="stable")  # by cluster, then by row
    visits = np.empty(len(order), dtype=_VISIT)
    visits["row"], visits["margin"] = start + visitor[keep][order], margin[keep][order]
    offsets = np.searchsorted(target[keep][order], np.arange(len(centroids) + 1))
    write_npy(part_path(folder, "labels", start), labels)
    write_npy(part_path(folder, "offsets", start), offsets)
    write_npy(path, visits)


def part_path(folder, kind, start):
    """What a block, named by its first row, leaves for `write_clusters`."""
    return folder / "parts" / f"{kind}_{start:012d}.npy"


def label_and_visit(points, centroids, borders, reach, error):
    """The nearest centroid of each point, and the clusters of higher number that it visits.

    points: (n, c) float32, each within `error` of its exact place; centroids: (K, c) float32;
    borders: (K, K), distances between centroids. A pair (x in A, y in B > A) at a distance of at most `reach` has
    |x-c_B|^2 - |x-c_A|^2 <= 2 |c_A-c_B| (reach + 2 error) + rounding, since y is no farther from c_B than
    from c_A, and the signed distance to the border changes by at most |x-y|.
    Returns labels (n,) int32; and for each visit its point (v,), cluster (v,) and margin (v,) float32: the
    smallest radius at which it is needed.  Memory: 12 n K bytes.
    """
    n_clusters, dims = centroids.shape
    excess = geometry.border_excess(points, None, centroids, np.einsum("ij,ij->i", centroids, centroids))
    labels = np.argmin(excess, axis=1).astype(np.int32)
    excess -= np.take_along_axis(excess, labels[:, None], axis=1)
    lengths = [np.sqrt(np.einsum("ij,ij->i", a, a).max()) for a in (points, centroids)]
    rounding = 4 * geometry.squared_distance_error(dims, *lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = (excess - rounding) / (2 * borders[labels])
    margins[borders[labels] == 0] = -np.inf  # no border between equal centroids: always visit
    margins -= np.float32(2 * error)
    margins -= np.abs(margins) * np.float32(8 * geometry.UNIT32)  # rounding of these last steps
    margins[np.arange(n_clusters) <= labels[:, None]] = np.inf
    visitor, target = np.nonzero(margins <= reach)
    return labels, visitor, target, margins[visitor, target]


def collect_labels(stage, blocks, n_rows):
    """Labels of all rows, (n,) int32, -1 for rejected rows; kept in labels.npy. Memory: 4 n bytes."""
    labels = np.empty(n_rows, dtype=np.int32)
    for start, stop in blocks:
        labels[start:stop] = np.load(part_path(stage.folder, "labels", start))
    write_npy(stage.path("labels.npy"), labels)
    return labels


def write_clusters(stage, sources, blocks, n_clusters, config):
    """A file a cluster, from the parts of all blocks. Returns the number of visitors of each."""
    visits = [np.load(part_path(stage.folder, "visits", start), mmap_mode="r") for start, _ in blocks]
    offsets = [np.load(part_path(stage.folder, "offsets", start)) for start, _ in blocks]
    labels = np.load(stage.path("labels.npy"))
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(n_clusters + 1))
    task = partial(write_cluster, stage.folder, sources, (order, bounds), (visits, offsets))
    return engine.run(task, [(c,) for c in range(n_clusters)], config.n_workers, "03 clusters")


def write_cluster(folder, sources, members, visits, cluster):
    """cluster_00000.h5: row, vector, sketch and id of each member; row and margin of each visitor.

    Rows ascend; a visit is needed at radius r if its margin is at most r. Memory: that of one cluster.
    """
    path = folder / "clusters" / f"cluster_{cluster:05d}.h5"
    order, bounds = members
    visitors = np.concatenate([v[o[cluster] : o[cluster + 1]] for v, o in zip(*visits, strict=True)])
    if not path.exists():
        reduced, sketches, ids = sources
        rows = order[bounds[cluster] : bounds[cluster + 1]]
        with atomic(path) as temporary, h5py.File(temporary, "w") as file:
            file["row"] = rows
            file["vector"] = reduced.gather(rows)
            file["sketch"] = sketches.gather(rows)
            file["visitor_row"] = visitors["row"]
            file["visitor_margin"] = visitors["margin"]
            store_ids(file, ids, rows)
    return len(visitors)


def remove_parts(stage):
    """The parts are in the cluster files now."""
    shutil.rmtree(stage.path("parts"))
    stage.path("blocks.npy").unlink()


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    each = found["visits"] / found["rows"]
    print(f"{found['rows']:,} rows in {found['n_clusters']} clusters of {found['smallest']:,} to {found['largest']:,}")
    print(f"{found['visits']:,} visits to neighbouring clusters, {each:.1f} a row")
    print(f"-> {stage.folder} (clusters/, labels.npy, centroids.npy)")


if __name__ == "__main__":
    main(run, __doc__)

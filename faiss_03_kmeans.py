"""Stage 3 of 5: split the rows into K-means clusters, a file each, so that stage 4 compares neighbours only.

Clusters never decide which rows are compared: stage 4 searches across their borders wherever a pair could lie.
"""

from functools import partial

import faiss
import numpy as np

from neardup import engine
from neardup.artifacts import begin
from neardup.embeddings import RowFiles, block_ranges, shard_starts
from neardup.files import hdf5, write_npy
from neardup.ids import IdTable, store_ids
from neardup.layout import npy_layout
from neardup.npy import read_npy
from neardup.script import main, tell

_SAMPLE_PER_CLUSTER = 256  # training rows a centroid: what faiss.Kmeans keeps by default, too
_TASK_ROWS = 65_536  # rows of a task that writes cluster files
_ITERATIONS = 10  # 20 take twice as long for a sum of squares 0.5 % smaller (docs/architecture.md)


def run(config):
    """Write work/03_kmeans, or find it finished."""
    stage, shards, earlier = begin(config, "03_kmeans")
    if not stage.finished:
        variance, reduction = earlier["01_pca_variance"], earlier["02_pca_reduce"]
        starts = shard_starts(shards)
        sketches = RowFiles([npy_layout(reduction.path(f"sketch_{s:05d}.npy")) for s in range(len(shards))], starts)
        rejected = read_npy(variance.path("rejected_rows.npy"))
        stage.needs(len(sketches) * (4 * sketches.dim + 20) + variance.path("ids.arrow").stat().st_size)
        centroids = train(stage, sketches, rejected, config)
        labels = assign(stage, sketches, rejected, centroids, config)
        sizes = write_clusters(
            stage, (sketches, IdTable.open(variance.path("ids.arrow"))), labels, len(centroids), config
        )
        results = {"rows": int(sizes.sum()), "n_clusters": len(centroids)}
        stage = stage.finish(results | {"smallest": int(sizes.min()), "largest": int(sizes.max())})
    tell(config, stage, report)


def train(stage, sketches, rejected, config):
    """Centroids of a seeded sample of the rows, (K, m) float32; kept in centroids.npy. Memory: 512 K m floats.

    In the sketch, not in all reduced coordinates: it holds most of the variance and costs a tenth.
    """
    path = stage.path("centroids.npy")
    if not path.exists():
        n_rows = len(sketches) - len(rejected)
        n_clusters = min(config.n_clusters or max(1, round(n_rows ** (2 / 3) / 67)), n_rows)
        rng = np.random.default_rng(config.random_state)
        size = min(n_rows, _SAMPLE_PER_CLUSTER * n_clusters)
        sample = np.sort(rng.choice(n_rows, size, replace=False))
        sample += np.searchsorted(rejected - np.arange(len(rejected)), sample, side="right")  # skips rejected rows
        arguments = sketches.gather(sample), n_clusters, config.random_state
        write_npy(path, engine.run_here(kmeans, *arguments, label="03 k-means"))
    return read_npy(path)


def kmeans(points, n_clusters, seed):
    """K-means by faiss, not scikit-learn's: see docs/architecture.md.

    points: (n, m) float32. Returns centroids (n_clusters, m) float32.
    """
    model = faiss.Kmeans(
        points.shape[1],
        n_clusters,
        niter=_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max(_SAMPLE_PER_CLUSTER, len(points)),
    )
    model.train(points)
    return model.centroids


def assign(stage, sketches, rejected, centroids, config):
    """The cluster of each row, (n,) int32, -1 for rejected rows; kept in labels.npy. Memory: 8 bytes a row.

    Never made twice, for cluster files follow them and other blocks may round otherwise. Work: K m products a row.
    """
    path = stage.path("labels.npy")
    if path.exists():
        return read_npy(path)
    blocks = block_ranges(sketches.starts, engine.block_rows(stage.memory, config.n_workers, 4 * sketches.dim))
    task = partial(nearest_centroids, sketches, centroids)
    labels = np.concatenate(engine.run(task, blocks, config.n_workers, "03 assign"))
    labels[rejected] = -1
    write_npy(path, labels)
    return labels


def nearest_centroids(sketches, centroids, start, stop):
    """The cluster of each row of a block, (stop - start,) int32."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return index.search(sketches.read(start, stop), 1)[1][:, 0].astype(np.int32)


def write_clusters(stage, sources, labels, n_clusters, config):
    """A file a cluster; those that an interrupted run finished stay. Returns their sizes.

    sources: the sketches of all rows, and their ids. Memory: 16 bytes a row, and the rows of one task a worker.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels, np.arange(n_clusters + 1), sorter=order)
    most = engine.block_rows(stage.memory, config.n_workers, 16 * sources[0].dim, _TASK_ROWS)
    task = partial(write_some, stage.folder, sources, order, bounds)
    engine.run(task, engine.size_ranges(bounds, most), config.n_workers, "03 clusters")
    assert bounds[-1] - bounds[0] == np.count_nonzero(labels >= 0)
    return np.diff(bounds)


def write_some(folder, sources, order, bounds, low, high):
    """cluster_00000.h5, … of the clusters low to high: row, vector (its sketch) and id of each member, rows ascending.

    Several together, for the rows of each come from everywhere. Memory: their sketches, twice, and their ids.
    """
    paths = [folder / "clusters" / f"cluster_{cluster:05d}.h5" for cluster in range(low, high)]
    if all(path.exists() for path in paths):
        return
    rows, first = order[bounds[low] : bounds[high]], bounds[low]
    sketches, ids = sources[0].gather(rows), IdTable([sources[1].array(rows)])
    for cluster, path in enumerate(paths, start=low):
        here = slice(bounds[cluster] - first, bounds[cluster + 1] - first)
        with hdf5(path) as file:
            file["row"], file["vector"] = rows[here], sketches[here]
            store_ids(file, ids, range(here.start, here.stop))


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    print(f"{found['rows']:,} rows in {found['n_clusters']} clusters of {found['smallest']:,} to {found['largest']:,}")
    print(f"-> {stage.folder} (clusters/, labels.npy, centroids.npy)")


if __name__ == "__main__":
    main(run, __doc__)

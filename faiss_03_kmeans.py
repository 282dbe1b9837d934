"""Stage 3 of 5: split the rows into K-means clusters, a file each, so that stage 4 compares neighbours only.

Clusters never decide which rows are compared: stage 4 searches across their borders wherever a pair could lie. Rows
that came to a finished run get files of their own beside those of the clusters that it made, one for each centroid.
Rows that are held against a far smaller second set just learn which of its centroids is nearest: they are in no file.
"""

from functools import partial

import faiss
import numpy as np

from neardup import NeardupError
from neardup.input.embeddings import shard_starts
from neardup.input.id_table import IdTable
from neardup.machine import budget, engine
from neardup.machine.files import write_npy
from neardup.machine.npy import read_npy
from neardup.notices import notice
from neardup.ranges import equal_parts
from neardup.script import main, tell
from neardup.search.clusters import cluster_name
from neardup.search.kept import Kept, gain, keep_clusters
from neardup.search.opened import open_sketches
from neardup.search.shuffle import Shuffle, write_run
from neardup.search.visits import MOST_CLUSTERS
from neardup.stages.runs import begin
from neardup.words import counted

_SAMPLE_PER_CLUSTER = 256  # training rows a centroid: what faiss.Kmeans keeps by default, too
_ITERATIONS = 10  # 20 take twice as long for a sum of squares 0.5 % smaller (docs/architecture.md)
RUN_ROWS, MOST_RUNS = 32_768, 2_000  # rows of a sorted run, and of the clusters written together; runs, about
_MUCH = 1.5  # times fewer distances, from which on clusters should be made anew
_MANY, _TIMES_USUAL = 500, 10  # clusters set, and times those by the number of rows, from which on they are too many
_ASSIGNED_ROWS = 16_384  # rows compared with the centroids together, at most
_REFERENCE_ROWS, _REFERENCE_CLUSTERS = 128, 256  # rows of a second set's cluster, about; clusters of a small set
_CACHED = 1 << 30  # bytes of sketches that the system's cache holds, so that they needn't be sorted through files


def run(config):
    """Write work/03_kmeans, or find it finished."""
    stage, shards, earlier = begin(config, "03_kmeans")
    if not stage.finished:
        variance, reduction = earlier["01_pca_variance"], earlier["02_pca_reduce"]
        sketches = open_sketches(reduction, shard_starts(shards), config.n_workers)
        rejected = read_npy(variance.path("rejected_rows.npy"))
        stage.needs(disk_needed(stage, sketches, variance.path("ids.arrow")))
        ids, basis = IdTable.open(variance.path("ids.arrow")), [reduction.results[n] for n in ("basis", "sketch_dims")]
        if stage.growth and stage.previous.results["basis"] != basis:
            stage.growth = None
        kept = keep_clusters(stage, ids, config) if stage.growth else Kept.none(len(sketches), sketches.dim)
        runs = row_ranges(stage, sketches, kept.others, config)
        trained = partial(train, stage, sketches, rejected, runs, config)
        centroids = kept.centroids if stage.growth else stage.once(trained, "centroids")
        in_place = 4 * sketches.dim * len(sketches) <= _CACHED
        assign(stage, (sketches, ids), rejected, centroids, runs, in_place, config)
        n_kept, of_files = len(kept.centroids), place(stage, (sketches, ids), runs, kept, in_place, config)
        stage.sync_names([cluster_name(0)])
        write_npy(stage.path("labels.npy"), kept.labels)
        write_npy(stage.path("centroids.npy"), np.concatenate([kept.centroids, centroids[of_files]]))
        sizes = np.bincount(kept.labels[kept.labels >= 0], minlength=n_kept + len(of_files))
        results = {"rows": int(sizes.sum()), "n_clusters": len(sizes)}
        results |= {"smallest": int(sizes.min()), "largest": int(sizes.max()), "basis": basis}
        stage = stage.finish(results | made_of(stage, sizes, n_kept, of_files, config))
    tell(config, stage, report)


def disk_needed(stage, sketches, ids):
    """Bytes that this stage writes, about: sketches and ids of what is in cluster files, twice, and labels."""
    rows = int(stage.growth.before[-1]) if stage.scans else len(sketches)
    return 8 * len(sketches) + 2 * rows * (4 * sketches.dim + 20 + ids.stat().st_size // len(sketches))


def place(stage, sources, runs, kept, in_place, config):
    """Note the cluster of each row of the runs in the labels of `Kept`, and write the files of those clusters.

    Rows that are only read through get none. sources, in_place: as in `assign`. Returns the centroid of each new file.
    """
    if stage.scans:
        for number, (start, stop) in enumerate(runs):
            kept.labels[start:stop] = read_npy(stage.part("nearest", number))
        return np.empty(0, dtype=np.int64)
    most, bounds = max(stop - start for start, stop in runs), [stage.volatile("bounds", n) for n in range(len(runs))]
    shuffle = Shuffle([read_npy(path) for path in bounds], most, len(kept.centroids))
    check_count(stage, len(kept.centroids) + len(shuffle.centroid), len(sources[0]))
    shuffle.write_clusters(stage, sources[0].dim, sources if in_place else None, most, config.n_workers)
    shuffle.label(stage, runs, kept.labels)
    return shuffle.centroid


def made_of(stage, sizes, n_kept, centroid, config):
    """What later runs need to know of the clusters: how many files were `made` together, `made_of` how many rows; how
    many rows `came` since and are still there; and the `gain`, how many times fewer distances k-means anew would leave.

    sizes: rows of each file, the first `n_kept` of which are of the earlier run; centroid: of each of the others, the
    number of that which has its centroid.
    """
    if not stage.growth or stage.growth.against:
        return {"made": len(sizes), "made_of": int(sizes.sum()), "came": 0, "gain": 1.0}
    of_centroid = sizes[:n_kept] + np.bincount(centroid, sizes[n_kept:], minlength=n_kept)
    found = {name: stage.previous.results[name] for name in ("made", "made_of")}
    found["came"], n_rows = int(sizes[n_kept:].sum()), int(sizes.sum())
    return found | {"gain": gain(of_centroid, sizes[:n_kept], wanted_clusters(stage, n_rows, config))}


def row_ranges(stage, sketches, ranges, config):
    """(start, stop) of the rows of some ranges that a task sorts in memory, their sketches twice.

    Those of an interrupted run stay.
    """
    most = max(RUN_ROWS, len(sketches) // MOST_RUNS)
    most = budget.block_rows(stage.memory, config.n_workers, 16 * sketches.dim, most)
    return stage.once(lambda: np.array([part for some in ranges for part in equal_parts(*some, most)]), "runs").tolist()


def train(stage, sketches, rejected, runs, config):
    """Centroids of a seeded sample of the rows, (K, m + 1) float32. Memory: 512 K m floats.

    In the sketch, not in all reduced coordinates: it holds most of the variance and costs a tenth.
    """
    n_rows = len(sketches) - len(rejected)
    n_clusters = wanted_clusters(stage, n_rows, config)
    check_count(stage, n_clusters, len(sketches))
    usual = default_clusters(n_rows, config.is_reference)
    if n_clusters >= max(_MANY, _TIMES_USUAL * usual):
        notice(
            f"n_clusters = {n_clusters:,} is many for these rows: with None there are {usual:,}, which is far quicker"
        )
    rng = np.random.default_rng(config.random_state)
    size = min(n_rows, _SAMPLE_PER_CLUSTER * n_clusters)
    sample = np.sort(rng.choice(n_rows, size, replace=False))
    sample += np.searchsorted(rejected - np.arange(len(rejected)), sample, side="right")  # skips rejected rows
    parts = np.split(sample, np.searchsorted(sample, [stop for _, stop in runs[:-1]]))
    engine.run(partial(take, stage, sketches), enumerate(parts), config.n_workers, "03 sample")
    points = np.concatenate([read_npy(stage.volatile("sample", number)) for number in range(len(parts))])
    return engine.run_here(kmeans, points, n_clusters, config.random_state, label="03 k-means")


def most_clusters(stage, n_rows):
    """Most cluster files: stage 4's table of visits, 4 bytes for any two of them, has to fit half of the working memory
    and 8 bytes a row.
    """
    return min(MOST_CLUSTERS, int(((stage.memory / 2 + 8 * n_rows) / 4) ** 0.5))


def check_count(stage, n_files, n_rows):
    """Raises NeardupError where `n_files` are more than `most_clusters`."""
    most = most_clusters(stage, n_rows)
    if n_files > most:
        raise NeardupError(
            f"{n_files:,} cluster files are more than the {most:,} that memory_limit has room for: set n_clusters to "
            f"at most {most // 2:,}, and remove the folder 03_kmeans of work_dir if it is there"
        )


def wanted_clusters(stage, n_rows, config):
    """How many clusters so many rows are split into."""
    default = min(default_clusters(n_rows, config.is_reference), most_clusters(stage, n_rows) // 2)
    return min(config.n_clusters or default, n_rows)


def default_clusters(n_rows, is_reference=False):
    """How many clusters so many rows are split into where nothing is set.

    is_reference: whether they are a second set, for the rows of perhaps far more to be split by.
    """
    alone = max(1, round(min(n_rows ** (3 / 4) / 150, n_rows ** (2 / 3) / 45)))
    return max(alone, min(n_rows // _REFERENCE_ROWS, _REFERENCE_CLUSTERS)) if is_reference else alone


def take(stage, sketches, number, rows):
    """Write the sketches of some rows."""
    write_npy(stage.volatile("sample", number), sketches.gather(rows), flush=stage.flush)


def kmeans(points, n_clusters, seed):
    """K-means by faiss, not scikit-learn's: see docs/architecture.md.

    points: (n, m + 1) float32. Returns centroids (n_clusters, m + 1) float32.
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


def assign(stage, sources, rejected, centroids, runs, in_place, config):
    """Sort the runs by nearest centroid; what an interrupted run finished stays.

    sources: the sketches of all rows, and their ids; in_place: whether those stay where they are.
    """
    left_out = [rejected[slice(*np.searchsorted(rejected, run))] for run in runs]
    block_rows = budget.block_rows(stage.memory, config.n_workers, 4 * sources[0].dim, _ASSIGNED_ROWS)
    task = partial(assign_run, stage, sources, centroids, in_place, block_rows)
    arguments = [(number, *run, some) for number, (run, some) in enumerate(zip(runs, left_out, strict=True))]
    engine.run(task, arguments, config.n_workers, "03 assign")


def assign_run(stage, sources, centroids, in_place, block_rows, number, start, stop, rejected):
    """Find the nearest centroids of some rows; sort the rows that get files by them. Memory: their sketches, twice.

    Centroids are never looked for twice: other blocks may round otherwise, and clusters follow them.
    """
    if (stage.part("nearest", number) if stage.scans else stage.volatile("bounds", number)).exists():
        return
    sketches = sources[0].gather(np.arange(start, stop))

    def find():
        nearest = nearest_centroids(sketches, centroids, block_rows)
        nearest[rejected - start] = -1
        return nearest

    nearest = stage.once(find, "nearest", number)
    if not stage.scans:
        write_run(stage, None if in_place else sketches, sources[1], len(centroids), number, start, nearest)


def nearest_centroids(sketches, centroids, block_rows):
    """The nearest centroid of each row, (n,) int32. Work: K m products a row."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    blocks = [sketches[start : start + block_rows] for start in range(0, max(1, len(sketches)), block_rows)]
    return np.concatenate([index.search(block, 1)[1][:, 0] for block in blocks]).astype(np.int32)


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    print(f"{counted(found['rows'], 'row')} in {counted(found['n_clusters'], 'cluster')} of ", end="")
    print(f"{found['smallest']:,} to {found['largest']:,}")
    if found["came"]:
        print(f"{found['made']} of them were made of {counted(found['made_of'], 'row')}; ", end="")
        print(f"the {found['came']:,} that came since lie beside them")
    if found["gain"] >= _MUCH:
        print(
            f"made of all rows, clusters would have about {found['gain']:.1f} times fewer distances inside: to have "
            f"them so, remove {stage.shown}, and run this and the later scripts again"
        )
    print(f"-> {stage.shown} (clusters/, labels.npy, centroids.npy)")


if __name__ == "__main__":
    main(run, __doc__)

"""Stage 4 of 5: find every pair at or above the threshold, and prove it on a sample.

In each cluster and across each border, a range search over sketches gives candidates; those are verified on the
original vectors in float64. Then random rows are compared with all rows by brute force.
"""

from functools import lru_cache, partial
from threading import Lock

import dask
import h5py
import numpy as np

from neardup import NeardupError, engine, geometry, pairs
from neardup.artifacts import atomic, begin, npy_rows, write_json, write_npy
from neardup.audit import audit_pairs
from neardup.candidates import lay_out, search
from neardup.clusters import Clusters, OpenCluster, flatten_visits, list_visits
from neardup.embeddings import RowFiles, block_ranges, open_shards
from neardup.groups import joining
from neardup.ids import IdTable, store_ids
from neardup.npy import map_npy, read_header, read_npy
from neardup.outputs import write_neighbors_pickle
from neardup.pairs import PAIR, cuts, read_pairs, slices_between
from neardup.script import main

_TASKS = 32  # of either part of the search, at most: each opens most clusters once
_BLOCK_PAIRS = 65_536  # candidates of a task that verifies, at most
_NONE = np.empty(0, dtype=np.uint64)
_GATHERED_ROWS = 8192  # reduced vectors that are copied together
_GATHERING = Lock()  # one thread at a time writes those of a cluster


def run(config):
    """Write work/04_neighbor_search, or find it finished."""
    stage, shards, earlier = begin(config, "04_neighbor_search")
    if not stage.finished:
        rows, ids = open_shards(shards), IdTable(earlier["01_pca_variance"].path("ids.arrow"))
        labels = read_npy(earlier["03_kmeans"].path("labels.npy"))
        repeated = read_npy(earlier["01_pca_variance"].path("repeated_rows.npy"))
        candidates, compared = find_candidates(stage, rows, earlier, config)
        parts = verify_candidates(stage, candidates, rows, config)
        n_pairs, rows_in_pairs = join_parts(stage, parts, len(rows), ids, config.threshold)
        audit = audit_and_pickle(stage, rows, (labels, ids, repeated), config)
        stage = stage.finish(
            {
                "rows": len(rows),
                "threshold": config.threshold,
                "pairs": n_pairs,
                "rows_in_pairs": rows_in_pairs,
                "compared": compared,
                "candidates": sum(map(len, candidates)),
                "audit": audit,
            }
        )
    report(stage)


def find_candidates(stage, rows, earlier, config):
    """All two rows that may be pairs, in files of sorted packed pairs; those an interrupted run finished stay.

    Returns them, memory-mapped, and the number of distances computed.
    """
    reduction, kmeans = earlier["02_pca_reduce"], earlier["03_kmeans"]
    clusters = Clusters(kmeans.folder, kmeans.results["n_clusters"])
    radius, error = geometry.radius(config.threshold, rows.dim), reduction.results["sketch_error"]
    centroids = read_npy(kmeans.path("centroids.npy"))
    block_rows = engine.block_rows(config.memory_limit, config.n_workers, 20 * len(clusters))
    prepare = partial(prepare_cluster, stage, clusters, centroids, (radius, error), block_rows)
    engine.run(prepare, [(c,) for c in range(len(clusters))], config.n_workers, "04 visits")

    def joins(rows_a, rows_b):
        return similarity_of(rows, verified_at_once(rows, config), rows_a, rows_b) >= config.threshold

    budget = config.memory_limit / 8 / engine.worker_count(config.n_workers)
    reduced = open_reduced(reduction, rows.starts)
    opened = partial(open_cluster, stage, clusters, reduced)
    opened = lru_cache(clusters.fitting(config.memory_limit / 4, 4 * reduced.dim))(opened)
    reaches = [radius + 2 * error, radius + 2 * geometry.projection_error(rows.dim, reduced.dim)]
    reaches = reaches[: 2 if reduced.dim > reduction.results["sketch_dims"] else 1]  # else the sketch holds them all
    task = partial(search_task, stage, opened, reaches, budget, joins if config.pairs == "joining" else None)
    homes = [h.tolist() for h in np.array_split(range(len(clusters)), min(_TASKS, len(clusters)))]
    inside = [("inside", number, h, None) for number, h in enumerate(homes)]
    across = [("across", number, h, len(clusters)) for number, h in enumerate(homes)]
    done = [*engine.run(task, inside, config.n_workers, "04 search inside clusters")]
    done += engine.run(task, across, config.n_workers, "04 search across borders")
    names = [(*t[:2], part) for t, (n_parts, _) in zip(inside + across, done, strict=True) for part in range(n_parts)]
    return [map_npy(stage.part(*n)) for n in names], sum(compared for _, compared in done)


def prepare_cluster(stage, clusters, centroids, radius_and_error, block_rows, cluster):
    """Write the sketches of a cluster as the search wants them, and its visits. Memory: 20 K bytes a row of a block."""
    path = stage.volatile("visits", cluster)
    if path.exists():
        return
    radius, error = radius_and_error
    _, sketches = clusters.load(cluster)
    visits = [_NONE]
    for start, stop in block_ranges((0, len(sketches)), block_rows):
        visits.append(list_visits(sketches[start:stop], cluster, centroids, error, radius) + np.uint64(start))
    write_npy(stage.volatile("layout", cluster), lay_out(sketches), flush=False)
    write_npy(path, flatten_visits(np.sort(np.concatenate(visits)), len(clusters), radius), flush=False)


def open_reduced(reduction, starts):
    """The reduced vectors of all rows."""
    return RowFiles([reduction.path(f"reduced_{s:05d}.npy") for s in range(len(starts) - 1)], starts)


def open_cluster(stage, clusters, reduced, cluster):
    """An `OpenCluster`, memory-mapped."""
    layout, visits = (map_npy(stage.volatile(kind, cluster)) for kind in ("layout", "visits"))
    path = stage.volatile("coordinates", cluster)
    return OpenCluster(clusters, cluster, layout, visits, partial(coordinates_of, path, reduced))


def coordinates_of(path, reduced, rows):
    """The reduced vectors of a cluster's rows, (n, k) float32, memory-mapped; gathered the first time."""
    with _GATHERING:
        if not path.exists():
            with npy_rows(path, (len(rows), reduced.dim), flush=False) as write:
                for start in range(0, len(rows), _GATHERED_ROWS):
                    write(reduced.gather(rows[start : start + _GATHERED_ROWS]))
    return map_npy(path)


def search_task(stage, opened, reaches, most_bytes, joins, kind, number, homes, n_clusters):
    """Write the candidates inside some clusters, or across their borders to those of higher number.

    homes: numbers of clusters; n_clusters: of all, for what is across. Files hold at most so many bytes.
    Returns the number of files and of distances computed.
    """
    done = stage.part(kind, number, "done")
    if done.exists():
        return tuple(read_npy(done).tolist())
    found, held, n_parts, n_compared = [], 0, 0, 0

    def write_part():
        packed = np.sort(np.concatenate([_NONE, *found]))
        write_npy(stage.part(kind, number, n_parts), packed)

    others = range(homes[0] + 1, n_clusters) if kind == "across" else ()
    for couple in [(c, c) for c in homes] if kind == "inside" else ((c, o) for o in others for c in homes if c < o):
        joined = known_components(stage, opened, couple) if joins else None
        for packed, compared in search_two(opened, couple, reaches, joins, joined):
            found.append(packed)
            n_compared, held = n_compared + compared, held + packed.nbytes
            if held > most_bytes:
                write_part()
                found, held, n_parts = [], 0, n_parts + 1
        if joins and kind == "inside":
            write_npy(stage.part("joined", couple[0]), joined)
    write_part()
    write_npy(done, np.array([n_parts + 1, n_compared]))
    return n_parts + 1, n_compared


def known_components(stage, opened, couple):
    """The component of each row of a cluster, of those of two clusters after another, as far as is known. (n,) int64.

    Across borders that is what was joined inside clusters; so the answer doesn't depend on the order of the tasks.
    """
    if couple[0] == couple[1]:
        return np.arange(len(opened(couple[0])))
    first, second = (read_npy(stage.part("joined", c)) for c in couple)
    return np.concatenate([first, len(first) + second])


def search_two(opened, couple, reaches, joins, joined):
    """Yield the candidates of two clusters, or of one with itself, packed, and the number of distances computed.

    Across a border the rows near it on one side meet those on the other, as long as their distances to it add up to
    no more than the radius. joins: None, or which of some candidates are pairs; then just those that join components.
    """
    x, y = map(opened, couple)
    alone, offset = couple[0] == couple[1], len(x)
    if alone:
        tiles, offset = search(x, None, reaches, joined=joins and (joined, joined)), 0
    else:
        places, margins = zip(x.visits_to(couple[1]), y.visits_to(couple[0]), strict=True)
        if not all(map(len, places)):
            return
        tiles = search(x, y, reaches, places, margins, joins and (joined[:offset], joined[offset:]))
    for i, j, compared in tiles:
        if joins and len(i):
            rows = x.rows if alone else np.concatenate([x.rows, y.rows])
            i, j = joining(i, j + offset, joined, lambda i, j, rows=rows: joins(rows[i], rows[j]))
            j -= offset
        yield pairs.pack(x.rows[i], y.rows[j]) if len(i) else _NONE, compared


def verify_candidates(stage, candidates, rows, config):
    """The pairs among the candidates, in files that follow each other; those an interrupted run finished stay.

    Returns the files.
    """
    path = stage.part("cuts")
    if not path.exists():
        share = sum(map(len, candidates)) // (4 * engine.worker_count(config.n_workers))
        write_npy(path, cuts(candidates, min(_BLOCK_PAIRS, share)))
    slices = list(enumerate(slices_between(candidates, read_npy(path))))
    similarity = partial(similarity_of, rows, verified_at_once(rows, config))
    task = partial(verify_block, stage, candidates, similarity, config.threshold)
    engine.run(task, slices, config.n_workers, "04 verify")
    return [stage.part("pairs", block) for block, _ in slices]


def verify_block(stage, candidates, similarity, threshold, block, slices):
    """Write those candidates of a block that are pairs, by their similarity, as PAIR in order."""
    path = stage.part("pairs", block)
    if path.exists():
        return
    packed = np.sort(np.concatenate([c[s] for c, s in zip(candidates, slices, strict=True)]))
    found = np.empty(len(packed), dtype=PAIR)
    found["row_a"], found["row_b"] = pairs.unpack(packed)
    found["similarity"] = similarity(found["row_a"], found["row_b"])
    write_npy(path, found[found["similarity"] >= threshold])


def similarity_of(rows, step, rows_a, rows_b):
    """Similarity of the rows rows_a[i] and rows_b[i], (p,) float64. Memory: that of `step` of them, two rows each."""
    similarity = np.empty(len(rows_a))
    for start in range(0, len(rows_a), step):
        here = slice(start, start + step)
        distinct, places = np.unique(np.concatenate([rows_a[here], rows_b[here]]), return_inverse=True)
        similarity[here] = geometry.similarities_among(rows.gather(distinct), *places.reshape(2, -1))
    return similarity


def verified_at_once(rows, config):
    """Candidates whose rows fit an eighth of `memory_limit`, all workers together: as stored and in float64."""
    budget = config.memory_limit / 8 / engine.worker_count(config.n_workers)
    return max(1, int(budget / (2 * 16 * rows.dim)))


def join_parts(stage, parts, n_rows, ids, threshold):
    """Put the files of pairs together as neighbors.h5. Returns the numbers of pairs and of rows in them.

    Memory: 9 bytes a row.
    """
    total, seen, at = sum(read_header(p).shape[0] for p in parts), np.zeros(n_rows, dtype=bool), 0
    with atomic(stage.path("neighbors.h5")) as temporary, h5py.File(temporary, "w") as file:
        for name in PAIR.names:
            file.create_dataset(name, (total,), PAIR[name])
        for part in map(read_npy, parts):
            for name in PAIR.names:
                file[name][at : at + len(part)] = part[name]
            seen[part["row_a"]] = seen[part["row_b"]] = True
            at += len(part)
        rows = np.nonzero(seen)[0]
        file["row"] = rows
        store_ids(file, ids, rows)
        file.attrs["threshold"] = threshold
    return total, len(rows)


def audit_and_pickle(stage, rows, names, config):
    """Prove the result on a sample, in audit.json, and write neighbors.pkl meanwhile. names: labels, ids, repeated.

    Returns what the audit counted. Raises NeardupError where it isn't 0.
    """
    found = partial(read_pairs, stage.path("neighbors.h5"))
    pickled = dask.delayed(write_neighbors_pickle, pure=False)(stage, names, config.memory_limit / 4)
    audit = audit_pairs(found, rows, np.nonzero(names[0] >= 0)[0], config, [pickled])
    write_json(stage.path("audit.json"), audit)
    if audit["missed"] or audit["false"]:
        stage.drop_parts()
        raise NeardupError(
            f"the audit of {audit['rows']} rows found {audit['missed']} missed and {audit['false']} false pairs of "
            f"{audit['pairs']} ({stage.path('audit.json')}): don't use this result, and report it as a defect"
        )
    return audit


def report(stage):
    """Say what was found and where it is."""
    found, audit = stage.results, stage.results["audit"]
    print(f"{found['pairs']:,} pairs with similarity >= {found['threshold']}", end=", ")
    print(f"among {found['rows_in_pairs']:,} of {found['rows']:,} rows")
    print(f"audit: {audit['rows']:,} random rows against all by brute force", end=": ")
    print(f"{audit['pairs']:,} pairs, {audit['missed']} missed, {audit['false']} false")
    print(f"-> {stage.folder} (neighbors.h5, neighbors.pkl, audit.json)")


if __name__ == "__main__":
    main(run, __doc__)

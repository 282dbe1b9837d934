"""Stage 4 of 5: find every pair at or above the threshold, and prove it on a sample.

In each cluster and across each border, a range search over sketches gives candidates; those are verified on the
original vectors in float64. Then random rows are compared with all rows by brute force.
"""

import shutil
from functools import lru_cache, partial

import dask
import h5py
import numpy as np

from neardup import NeardupError, engine, geometry, pairs
from neardup.artifacts import atomic, begin, write_json, write_npy, write_stream
from neardup.audit import audit_pairs
from neardup.candidates import lay_out, search
from neardup.clusters import Clusters, OpenCluster, list_visits, unpack, visits_to
from neardup.embeddings import open_shards
from neardup.groups import joining
from neardup.ids import IdTable, store_ids
from neardup.npy import map_npy, read_npy
from neardup.pairs import PAIR, read_pairs, split_sorted
from neardup.script import main

_TASKS = 32  # of either part of the search, at most: each opens most clusters once
_NONE = np.empty(0, dtype=np.uint64)
_PAIRS_AT_ONCE = 256  # verified together: 2 x 2 MB in float64 at 1,024 values, which caches hold


def run(config):
    """Write work/04_neighbor_search, or find it finished."""
    stage, shards, earlier = begin(config, "04_neighbor_search")
    if not stage.finished:
        rows, ids = open_shards(shards), IdTable(earlier["01_pca_variance"].path("ids.arrow"))
        labels = read_npy(earlier["03_kmeans"].path("labels.npy"))
        repeated = read_npy(earlier["01_pca_variance"].path("repeated_rows.npy"))
        candidates, compared = find_candidates(stage, rows, earlier, config)
        parts = verify_candidates(stage, candidates, rows, config)
        rows_in_pairs = join_parts(stage, parts, len(rows), ids, config.threshold)
        audit = audit_and_pickle(stage, rows, (labels, ids, repeated), config)
        shutil.rmtree(stage.path("parts"))
        stage = stage.finish(
            {
                "rows": len(rows),
                "threshold": config.threshold,
                "pairs": sum(map(len, parts)),
                "rows_in_pairs": rows_in_pairs,
                "compared": compared,
                "candidates": sum(map(len, candidates)),
                "audit": audit,
            }
        )
    report(stage)


def part_path(stage, *name):
    """A file of work in progress, which an interrupted run leaves to the next."""
    return stage.path("parts", "_".join(f"{n:05d}" if isinstance(n, int) else n for n in name) + ".npy")


def find_candidates(stage, rows, earlier, config):
    """All two rows that may be pairs, in files of sorted packed pairs; those an interrupted run finished stay.

    Returns them, memory-mapped, and the number of distances computed.
    """
    reduction, kmeans = earlier["02_pca_reduce"], earlier["03_kmeans"]
    clusters = Clusters(kmeans.folder, kmeans.results["n_clusters"])
    radius, error = geometry.radius(config.threshold, rows.dim), reduction.results["sketch_error"]
    prepare = partial(prepare_cluster, stage, clusters, read_npy(kmeans.path("centroids.npy")), (radius, error))
    engine.run(prepare, [(c,) for c in range(len(clusters))], config.n_workers, "04 visits")

    def joins(rows_a, rows_b):
        return similarity_of(rows, rows_a, rows_b) >= config.threshold

    budget = config.memory_limit / 8 / engine.worker_count(config.n_workers)
    opened = lru_cache(clusters.fitting(config.memory_limit / 4))(partial(open_cluster, stage, clusters))
    task = partial(search_task, stage, opened, (radius, error), budget, joins if config.pairs == "joining" else None)
    homes = [h.tolist() for h in np.array_split(range(len(clusters)), min(_TASKS, len(clusters)))]
    inside = [("inside", number, [(c, c) for c in h]) for number, h in enumerate(homes)]
    across = [
        ("across", number, [(c, other) for other in range(h[0], len(clusters)) for c in h if c < other])
        for number, h in enumerate(homes)
    ]
    done = [*engine.run(task, inside, config.n_workers, "04 search inside clusters")]
    done += engine.run(task, across, config.n_workers, "04 search across borders")
    names = [(*t[:2], part) for t, (n_parts, _) in zip(inside + across, done, strict=True) for part in range(n_parts)]
    return [map_npy(part_path(stage, *n)) for n in names], sum(compared for _, compared in done)


def prepare_cluster(stage, clusters, centroids, radius_and_error, cluster):
    """Write the sketches of a cluster as the search wants them, and its visits. Memory: 8 K bytes a row of a block."""
    path = part_path(stage, "visits", cluster)
    if path.exists():
        return
    radius, error = radius_and_error
    _, sketches = clusters.load(cluster)
    visits = list_visits(sketches, cluster, centroids, error, radius)
    write_npy(part_path(stage, "layout", cluster), lay_out(sketches))
    write_npy(path, np.sort(visits))


def open_cluster(stage, clusters, cluster):
    """An `OpenCluster`, memory-mapped."""
    layout, visits = (map_npy(part_path(stage, kind, cluster)) for kind in ("layout", "visits"))
    return OpenCluster(clusters, cluster, layout, visits)


def search_task(stage, opened, radius_and_error, most_bytes, joins, kind, number, couples):
    """Write the candidates of some couples of clusters, in files of at most so many bytes.

    Returns the number of files and of distances computed.
    """
    done = part_path(stage, kind, number, "done")
    if done.exists():
        return tuple(read_npy(done).tolist())
    found, held, n_parts, n_compared = [], 0, 0, 0

    def write_part():
        packed = np.sort(np.concatenate([_NONE, *found]))
        write_npy(part_path(stage, kind, number, n_parts), packed)

    for couple in couples:
        joined = known_components(stage, opened, couple) if joins else None
        for packed, compared in search_two(opened, couple, radius_and_error, joins, joined):
            found.append(packed)
            n_compared, held = n_compared + compared, held + packed.nbytes
            if held > most_bytes:
                write_part()
                found, held, n_parts = [], 0, n_parts + 1
        if joins and kind == "inside":
            write_npy(part_path(stage, "joined", couple[0]), joined)
    write_part()
    write_npy(done, np.array([n_parts + 1, n_compared]))
    return n_parts + 1, n_compared


def known_components(stage, opened, couple):
    """The component of each row of a cluster, of those of two clusters after another, as far as is known. (n,) int64.

    Across borders that is what was joined inside clusters; so the answer doesn't depend on the order of the tasks.
    """
    if couple[0] == couple[1]:
        return np.arange(len(opened(couple[0])))
    first, second = (read_npy(part_path(stage, "joined", c)) for c in couple)
    return np.concatenate([first, len(first) + second])


def search_two(opened, couple, radius_and_error, joins, joined):
    """Yield the candidates of two clusters, or of one with itself, packed, and the number of distances computed.

    Across a border the rows near it on one side meet those on the other, as long as their distances to it add up to
    no more than the radius. joins: None, or which of some candidates are pairs; then just those that join components.
    """
    radius, error = radius_and_error
    x, y = map(opened, couple)
    reach, alone, offset = radius + 2 * error, couple[0] == couple[1], len(x)
    if alone:
        tiles, offset = search(x, None, reach, joined=joins and (joined, joined)), 0
    else:
        visits = visits_to(x.visits, couple[1]), visits_to(y.visits, couple[0])
        if not all(map(len, visits)):
            return
        places, margins = zip(*(unpack(v, radius) for v in visits), strict=True)
        tiles = search(x, y, reach, places, margins, joins and (joined[:offset], joined[offset:]))
    for i, j, compared in tiles:
        if joins and len(i):
            rows = x.rows if alone else np.concatenate([x.rows, y.rows])
            i, j = joining(i, j + offset, joined, lambda i, j, rows=rows: joins(rows[i], rows[j]))
            j -= offset
        yield pairs.pack(x.rows[i], y.rows[j]) if len(i) else _NONE, compared


def verify_candidates(stage, candidates, rows, config):
    """The pairs among the candidates, in files that follow each other; those an interrupted run finished stay.

    Returns them, memory-mapped.
    """
    budget = config.memory_limit / 8 / engine.worker_count(config.n_workers)
    most = max(1, int(budget / (2 * rows.dim * 16)))  # two rows each, at most 8 bytes a value, twice
    task = partial(verify_block, stage, candidates, rows, config.threshold)
    blocks = list(enumerate(split_sorted(candidates, most)))
    engine.run(task, blocks, config.n_workers, "04 verify")
    return [map_npy(part_path(stage, "pairs", block)) for block, _ in blocks]


def verify_block(stage, candidates, rows, threshold, block, slices):
    """Write those candidates of a block that are pairs, by their similarity, as PAIR in order."""
    path = part_path(stage, "pairs", block)
    if path.exists():
        return
    packed = np.sort(np.concatenate([c[s] for c, s in zip(candidates, slices, strict=True)]))
    found = np.empty(len(packed), dtype=PAIR)
    found["row_a"], found["row_b"] = pairs.unpack(packed)
    found["similarity"] = similarity_of(rows, found["row_a"], found["row_b"])
    write_npy(path, found[found["similarity"] >= threshold])


def similarity_of(rows, rows_a, rows_b):
    """Similarity of the rows rows_a[i] and rows_b[i], (p,) float64. Each is read once. Memory: theirs, twice."""
    distinct, places = np.unique(np.concatenate([rows_a, rows_b]), return_inverse=True)
    stored = rows.gather(distinct)
    places_a, places_b = places.reshape(2, -1)
    similarity = np.empty(len(rows_a))
    for start in range(0, len(rows_a), _PAIRS_AT_ONCE):
        here = slice(start, start + _PAIRS_AT_ONCE)
        similarity[here] = geometry.similarities(stored[places_a[here]], stored[places_b[here]])
    return similarity


def join_parts(stage, parts, n_rows, ids, threshold):
    """Put the files of pairs together as neighbors.h5. Returns the number of rows in pairs. Memory: 9 bytes a row."""
    seen, at = np.zeros(n_rows, dtype=bool), 0
    with atomic(stage.path("neighbors.h5")) as temporary, h5py.File(temporary, "w") as file:
        for name in PAIR.names:
            file.create_dataset(name, (sum(map(len, parts)),), PAIR[name])
        for part in parts:
            for name in PAIR.names:
                file[name][at : at + len(part)] = part[name]
            seen[part["row_a"]] = seen[part["row_b"]] = True
            at += len(part)
        rows = np.nonzero(seen)[0]
        file["row"] = rows
        store_ids(file, ids, rows)
        file.attrs["threshold"] = threshold
    return len(rows)


def audit_and_pickle(stage, rows, names, config):
    """Prove the result on a sample, in audit.json, and write neighbors.pkl meanwhile. names: labels, ids, repeated.

    Returns what the audit counted. Raises NeardupError where it isn't 0.
    """
    found = partial(read_pairs, stage.path("neighbors.h5"))
    pickled = dask.delayed(write_pickle, pure=False)(stage, names, config)
    audit = audit_pairs(found, rows, np.nonzero(names[0] >= 0)[0], config, [pickled])
    write_json(stage.path("audit.json"), audit)
    if audit["missed"] or audit["false"]:
        raise NeardupError(
            f"the audit of {audit['rows']} rows found {audit['missed']} missed and {audit['false']} false pairs of "
            f"{audit['pairs']} ({stage.path('audit.json')}): don't use this result, and report it as a defect"
        )
    return audit


def write_pickle(stage, names, config):
    """neighbors.pkl: id -> {"cluster": its k-means cluster, "neighbors": {id: similarity}}, for users.

    Where rows share an id, (id, row) stands for it. Memory: a quarter of `memory_limit`.
    """
    write_stream(stage.path("neighbors.pkl"), neighbor_items(stage.path("neighbors.h5"), names, config))


def neighbor_items(path, names, config):
    """Yield (id, cluster and neighbours) of every row that isn't rejected, in row order."""
    labels, ids, repeated = names
    repeated = set(repeated.tolist())

    def named(rows):
        named = ids.take(rows)
        if repeated:
            named = [(n, int(r)) if int(r) in repeated else n for n, r in zip(named, rows, strict=True)]
        return named

    degrees = np.ones(len(labels), dtype=np.int64)  # a row itself takes memory too
    for found in read_pairs(path):
        degrees += np.bincount(found["row_a"], minlength=len(labels))
        degrees += np.bincount(found["row_b"], minlength=len(labels))
    bounds = np.concatenate([[0], np.cumsum(degrees)])
    for low, high in engine.size_ranges(bounds, config.memory_limit / 4 / 512):
        found = pairs_of_range(path, low, high)
        rows, neighbors, similarity = named(range(low, high)), named(found["row_b"]), found["similarity"].tolist()
        firsts = np.searchsorted(found["row_a"], np.arange(low, high + 1)).tolist()
        clusters = labels[low:high].tolist()
        for i, (row, cluster) in enumerate(zip(rows, clusters, strict=True)):
            if cluster >= 0:
                here = slice(firsts[i], firsts[i + 1])
                yield row, {"cluster": cluster, "neighbors": dict(zip(neighbors[here], similarity[here], strict=True))}


def pairs_of_range(path, low, high):
    """All pairs of the rows low to high, seen from them: row_a in the range, row_b the other. Sorted (p,) PAIR."""
    found = [np.empty(0, dtype=PAIR)]
    for block in read_pairs(path):
        found.append(block[(block["row_a"] >= low) & (block["row_a"] < high)])
        back = block[(block["row_b"] >= low) & (block["row_b"] < high)]
        back["row_a"], back["row_b"] = back["row_b"].copy(), back["row_a"].copy()
        found.append(back)
    found = np.concatenate(found)
    return found[np.lexsort((found["row_b"], found["row_a"]))]


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

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
from neardup.candidates import Searchable, lay_out, search
from neardup.clusters import Clusters, list_visits, unpack, visits_to
from neardup.embeddings import block_ranges, open_shards
from neardup.ids import IdTable, store_ids
from neardup.pairs import PAIR, read_pairs, split_sorted
from neardup.script import main

_TASKS = 64  # of the search, at most
_PAIRS_AT_ONCE = 256  # verified together: 2 x 2 MB in float64 at 1,024 values, which caches hold


def run(config):
    """Write work/04_neighbor_search, or find it finished."""
    stage, shards, earlier = begin(config, "04_neighbor_search")
    if not stage.finished:
        rows, ids = open_shards(shards), IdTable(earlier["01_pca_variance"].path("ids.arrow"))
        labels = np.load(earlier["03_kmeans"].path("labels.npy"))
        repeated = np.load(earlier["01_pca_variance"].path("repeated_rows.npy"))
        candidates, compared = find_candidates(stage, rows.dim, earlier, config)
        parts = verify_candidates(stage, candidates, rows, config)
        rows_in_pairs = join_parts(stage, parts, len(rows), ids, config.threshold)
        audit = audit_and_pickle(stage, rows, (labels, ids, repeated), config)
        if audit["missed"] or audit["false"]:
            raise NeardupError(
                f"the audit of {audit['rows']} rows found {audit['missed']} missed and {audit['false']} false pairs of "
                f"{audit['pairs']} ({stage.path('audit.json')}): don't use this result, and report it as a defect"
            )
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


def find_candidates(stage, dim, earlier, config):
    """All two rows that may be pairs, in files of sorted packed pairs; those an interrupted run finished stay.

    Returns them, memory-mapped, and the number of distances computed.
    """
    reduction, kmeans = earlier["02_pca_reduce"], earlier["03_kmeans"]
    clusters = Clusters(kmeans.folder, kmeans.results["n_clusters"])
    radius, error = geometry.radius(config.threshold, dim), reduction.results["sketch_error"]
    task = partial(prepare_cluster, stage, clusters, np.load(kmeans.path("centroids.npy")), (radius, error))
    engine.run(task, [(c,) for c in range(len(clusters))], config.n_workers, "04 visits")
    budget = config.memory_limit / 8 / engine.worker_count(config.n_workers)
    opened = lru_cache(clusters.fitting(budget))(partial(open_cluster, stage, clusters))
    task = partial(search_homes, stage, opened, len(clusters), (radius, error), budget)
    homes = np.array_split(range(len(clusters)), min(_TASKS, len(clusters)))
    done = engine.run(task, enumerate(homes), config.n_workers, "04 search")
    names = [("candidates", task, part) for task, (n_parts, _) in enumerate(done) for part in range(n_parts)]
    return [np.load(part_path(stage, *n), mmap_mode="r") for n in names], sum(compared for _, compared in done)


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
    """What the search needs of a cluster, memory-mapped: row numbers, a `Searchable`, visits."""
    rows, sketches = clusters.load(cluster)
    layout = np.load(part_path(stage, "layout", cluster), mmap_mode="r").view(np.ndarray)
    visits = np.load(part_path(stage, "visits", cluster), mmap_mode="r").view(np.ndarray)
    return rows, Searchable(sketches, layout), visits


def search_homes(stage, opened, n_clusters, radius_and_error, budget, task, homes):
    """Write the candidates inside some clusters, and between them and those of higher number.

    Each file holds at most `budget` bytes. Returns their number and that of distances computed.
    """
    done = part_path(stage, "searched", task)
    if done.exists():
        return tuple(np.load(done).tolist())
    radius, error = radius_and_error
    found, held, n_parts, n_compared = [], 0, 0, 0
    for other in range(homes[0], n_clusters):
        for home in homes[homes <= other]:
            packed, compared = search_two(opened(int(home)), opened(other), (int(home), other), radius, error)
            n_compared += compared
            found.append(packed)
            held += packed.nbytes
            if held > budget:
                write_npy(part_path(stage, "candidates", task, n_parts), np.sort(np.concatenate(found)))
                found, held, n_parts = [], 0, n_parts + 1
    write_npy(part_path(stage, "candidates", task, n_parts), np.sort(np.concatenate([np.empty(0, np.uint64), *found])))
    write_npy(done, np.array([n_parts + 1, n_compared]))
    return n_parts + 1, n_compared


def search_two(home, other, numbers, radius, error):
    """Candidates of one cluster with another or with itself, packed, and the number of distances computed.

    Across a border the rows near it on one side meet those on the other, as long as their distances to it add up to
    no more than the radius.
    """
    (rows_x, x, visits_x), (rows_y, y, visits_y) = home, other
    reach = radius + 2 * error
    if numbers[0] == numbers[1]:
        i, j, compared = search(x, None, reach)
    else:
        visits = visits_to(visits_x, numbers[1]), visits_to(visits_y, numbers[0])
        if not all(map(len, visits)):
            return np.empty(0, dtype=np.uint64), 0
        places, margins = zip(*(unpack(v, radius) for v in visits), strict=True)
        i, j, compared = search(x, y, reach, places, margins)
    return pairs.pack(rows_x[i], rows_y[j]), compared


def verify_candidates(stage, candidates, rows, config):
    """The pairs among the candidates, in files that follow each other; those an interrupted run finished stay.

    Returns them, memory-mapped.
    """
    budget = config.memory_limit / 8 / engine.worker_count(config.n_workers)
    most = max(1, int(budget / (2 * rows.dim * 16)))  # two rows each, as stored and in float64
    task = partial(verify_block, stage, candidates, rows, config.threshold)
    blocks = list(enumerate(split_sorted(candidates, most)))
    engine.run(task, blocks, config.n_workers, "04 verify")
    return [np.load(part_path(stage, "pairs", block), mmap_mode="r") for block, _ in blocks]


def verify_block(stage, candidates, rows, threshold, block, slices):
    """Write those candidates of a block that are pairs, by their similarity, as PAIR in order."""
    path = part_path(stage, "pairs", block)
    if not path.exists():
        packed = np.sort(np.concatenate([c[s] for c, s in zip(candidates, slices, strict=True)]))
        write_npy(path, verify(*pairs.unpack(packed), rows, threshold))


def verify(rows_a, rows_b, rows, threshold):
    """Those of the candidates (rows_a[i], rows_b[i]) that are pairs. Returns (p,) PAIR.

    Each row is read once. Memory: 16 d bytes a distinct row.
    """
    distinct, places = np.unique(np.concatenate([rows_a, rows_b]), return_inverse=True)
    values = geometry.as_float64(rows.gather(distinct))
    squares = geometry.dots(values, values)
    places_a, places_b = places.reshape(2, -1)
    similarity = np.empty(len(rows_a))
    for start in range(0, len(rows_a), _PAIRS_AT_ONCE):
        a, b = (p[start : start + _PAIRS_AT_ONCE] for p in (places_a, places_b))
        products = geometry.dots(values[a], values[b])
        similarity[start : start + _PAIRS_AT_ONCE] = geometry.cosines(products, squares[a], squares[b])
    near = similarity >= threshold
    found = np.empty(np.count_nonzero(near), dtype=PAIR)
    found["row_a"], found["row_b"], found["similarity"] = rows_a[near], rows_b[near], similarity[near]
    return found


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
    """Compare random rows with every row by brute force, and with what was found for them; write neighbors.pkl.

    names: labels, ids and rows of repeated ids. Returns a dict, kept in audit.json: rows audited, true pairs of
    theirs, how many of those are missed, how many found are false.
    """
    labels = names[0]
    candidates = np.nonzero(labels >= 0)[0]
    rng = np.random.default_rng(config.random_state)
    audited = np.sort(rng.choice(candidates, min(config.audit_rows, len(candidates)), replace=False))
    stored = rows.gather(audited)
    sample = audited, stored, geometry.unit_rows32(stored)[0]
    block_rows = engine.block_rows(config.memory_limit, config.n_workers, 8 * rows.dim + 5 * max(len(audited), 1))
    task = partial(audit_block, rows, labels, sample, config.threshold)
    blocks = block_ranges(rows.starts, min(block_rows, 4096)) if len(audited) else []
    pickled = dask.delayed(write_pickle, pure=False)(stage, names, config)
    _, *true = engine.compute([pickled, *engine.tasks(task, blocks, config.n_workers)], config.n_workers, "04 audit")
    found = [
        pairs.pack(p["row_a"], p["row_b"])[_touching(p, audited, len(rows))]
        for p in read_pairs(stage.path("neighbors.h5"))
    ]
    true, found = (np.unique(np.concatenate([np.empty(0, np.uint64), *parts])) for parts in (true, found))
    missed, false = np.setdiff1d(true, found), np.setdiff1d(found, true)
    examples = np.stack(pairs.unpack(np.concatenate([missed, false])[:10]), axis=1).tolist()
    counts = {"rows": len(audited), "pairs": len(true), "missed": len(missed), "false": len(false)}
    write_json(stage.path("audit.json"), counts | {"examples": examples})
    return counts


def _touching(found, audited, n_rows):
    chosen = np.zeros(n_rows, dtype=bool)
    chosen[audited] = True
    return chosen[found["row_a"]] | chosen[found["row_b"]]


def audit_block(rows, labels, sample, threshold, start, stop):
    """True pairs of the audited rows with those of a block, packed.

    sample: their numbers (s,), the rows as stored (s, d), and of unit length (s, d) float32.
    """
    audited, stored, unit = sample
    block = rows.read(start, stop)
    cosines = geometry.unit_rows32(block)[0] @ unit.T
    limit = np.float32(threshold - geometry.cosine_error(rows.dim))
    hit = np.nonzero(cosines.max(axis=1) >= limit)[0]
    at, of = np.nonzero(cosines[hit] >= limit)
    at = hit[at]
    keep = (start + at != audited[of]) & (labels[start + at] >= 0)
    at, of = at[keep], of[keep]
    near = np.empty(len(at), dtype=bool)
    for first in range(0, len(at), _PAIRS_AT_ONCE):
        here = slice(first, first + _PAIRS_AT_ONCE)
        near[here] = geometry.similarities(block[at[here]], stored[of[here]]) >= threshold
    return pairs.pack(start + at[near], audited[of[near]])


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

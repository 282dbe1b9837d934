"""Stage 4 of 5: find every pair at or above the threshold, and prove it on a sample.

In each cluster a FAISS range search over the sketches of members and visitors gives candidates; those are
verified on the original vectors in float64. Then random rows are compared with all rows by brute force.
"""

import shutil
from functools import partial

import faiss
import h5py
import numpy as np

from neardup import NeardupError, engine, geometry
from neardup.artifacts import atomic, begin, write_json, write_npy, write_stream
from neardup.embeddings import RowFiles, block_ranges, open_shards, shard_starts
from neardup.ids import IdTable, store_ids
from neardup.pairs import PAIR, read_pairs
from neardup.script import main


def run(config):
    """Write work/04_neighbor_search, or find it finished."""
    stage, shards, earlier = begin(config, "04_neighbor_search")
    if not stage.finished:
        rows, starts = open_shards(shards), shard_starts(shards)
        ids = IdTable(earlier["01_pca_variance"].path("ids.arrow"))
        parts, candidates = search_clusters(stage, rows, starts, earlier, config)
        rows_in_pairs = merge_parts(stage, parts, len(rows), ids, config)
        labels = np.load(earlier["03_kmeans"].path("labels.npy"))
        repeated = np.load(earlier["01_pca_variance"].path("repeated_rows.npy"))
        write_pickle(stage, (labels, ids, repeated), config)
        audit = audit_sample(stage, rows, labels, config)
        write_json(stage.path("audit.json"), audit)
        if audit["missed"] or audit["false"]:
            raise NeardupError(
                f"the audit of {audit['rows']} rows found {audit['missed']} missed and {audit['false']} false pairs of "
                f"{audit['pairs']} ({stage.path('audit.json')}): don't use this result, and report it as a defect"
            )
        shutil.rmtree(stage.path("parts"))
        pairs = sum(map(len, parts))
        stage = stage.finish(
            {
                "rows": len(rows),
                "threshold": config.threshold,
                "pairs": pairs,
                "rows_in_pairs": rows_in_pairs,
                "candidates": candidates,
                "audit": audit,
            }
        )
    report(stage)


def search_clusters(stage, rows, starts, earlier, config):
    """A file of pairs a cluster; those that an interrupted run finished stay.

    Returns them, memory-mapped, and the number of candidates.
    """
    reduction, clusters = earlier["02_pca_reduce"], earlier["03_kmeans"]
    sketches = RowFiles([reduction.path(f"sketch_{s:05d}.npy") for s in range(len(starts) - 1)], starts)
    budget = config.memory_limit / 4 / engine.worker_count(config.n_workers)
    task = partial(search_cluster, stage.folder, clusters.folder, rows, sketches, config.threshold, budget)
    numbers = range(clusters.results["n_clusters"])
    candidates = engine.run(task, [(c,) for c in numbers], config.n_workers, "04 search")
    return [np.load(_pairs_path(stage.folder, c), mmap_mode="r") for c in numbers], sum(candidates)


def _pairs_path(folder, cluster):
    return folder / "parts" / f"pairs_{cluster:05d}.npy"


def search_cluster(folder, clusters, rows, sketches, threshold, budget, cluster):
    """Write the pairs of a cluster's members with each other and with its visitors. Returns the number of candidates.

    Memory: the sketches of members and visitors, and `budget` bytes for the candidates of a block.
    """
    path, count_path = _pairs_path(folder, cluster), folder / "parts" / f"candidates_{cluster:05d}.npy"
    if path.exists():
        return int(np.load(count_path))
    reach = geometry.radius(threshold, rows.dim)
    with h5py.File(clusters / "clusters" / f"cluster_{cluster:05d}.h5") as file:
        members, member_sketches = file["row"][:], file["sketch"][:]
        visitors = file["visitor_row"][:][file["visitor_margin"][:] <= reach]
    reach += 2 * geometry.sketch_error(rows.dim, sketches.dim - 1)
    found, n_candidates = [np.empty(0, dtype=PAIR)], 0
    step = max(1, int(budget / 64 / max(len(members), 1)))  # 64 bytes a candidate, if all are
    for searched, is_member in ((members, True), (visitors, False)):
        for start in range(0, len(searched), step):
            queries = searched[start : start + step]
            first = start if is_member else 0  # members before this block have met it already
            sketched = member_sketches[start : start + step] if is_member else sketches.gather(queries)
            query, other = range_search(sketched, member_sketches[first:], reach)
            if is_member:
                query, other = query[other > query], other[other > query]
            n_candidates += len(query)
            found.append(verify(queries[query], members[first:][other], rows, threshold, budget))
    pairs = np.concatenate(found)
    write_npy(count_path, np.array(n_candidates))
    write_npy(path, np.sort(pairs, order=("row_a", "row_b")))
    return n_candidates


def range_search(queries, members, reach):
    """All (query, member) at a distance of at most `reach`, and perhaps a few a little beyond.

    queries: (q, m) float32; members: (n, m) float32. Returns two (c,) int64 arrays of positions. faiss computes
    squared distances in float32; `reach` is widened by what that and the shift to a common origin, which makes
    the numbers small, can be off.
    """
    if not len(queries) or not len(members):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    origin = members.mean(axis=0)
    queries, members = queries - origin, members - origin
    longest = [float(np.sqrt(np.einsum("ij,ij->i", a, a).max())) for a in (queries, members)]
    wide = reach + 2 * geometry.UNIT32 * sum(longest)
    squared = wide**2 + geometry.squared_distance_error(members.shape[1], *longest)
    index = faiss.IndexFlatL2(members.shape[1])
    index.add(members)
    limits, _, found = index.range_search(queries, float(np.nextafter(np.float32(squared), np.float32(np.inf))))
    return np.repeat(np.arange(len(queries)), np.diff(limits.astype(np.int64))), found


def verify(rows_a, rows_b, rows, threshold, budget):
    """Those of the candidates (rows_a[i], rows_b[i]) that are pairs, by their similarity. Returns (p,) PAIR.

    Memory: `budget` bytes.
    """
    step = max(1, int(budget / (64 * rows.dim)))
    found = [np.empty(0, dtype=PAIR)]
    for start in range(0, len(rows_a), step):
        a, b = rows_a[start : start + step], rows_b[start : start + step]
        similarity = geometry.similarities(rows.gather(a), rows.gather(b))
        near = similarity >= threshold
        pairs = np.empty(np.count_nonzero(near), dtype=PAIR)
        pairs["row_a"], pairs["row_b"] = np.minimum(a, b)[near], np.maximum(a, b)[near]
        pairs["similarity"] = similarity[near]
        found.append(pairs)
    return np.concatenate(found)


def merge_parts(stage, parts, n_rows, ids, config):
    """Sort the pairs of all clusters into neighbors.h5, a range of row_a at a time.

    Returns the number of rows in pairs. Memory: a quarter of `memory_limit` for a range, and 9 bytes a row.
    """
    counts, seen = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=bool)
    for part in parts:
        counts += np.bincount(part["row_a"], minlength=n_rows)
        seen[part["row_a"]] = seen[part["row_b"]] = True
    with atomic(stage.path("neighbors.h5")) as temporary, h5py.File(temporary, "w") as file:
        bounds = np.concatenate([[0], np.cumsum(counts)])
        total = int(bounds[-1])
        for name, dtype in (("row_a", "<i8"), ("row_b", "<i8"), ("similarity", "<f8")):
            file.create_dataset(name, (total,), dtype)
        at = 0
        for low, high in engine.size_ranges(bounds, config.memory_limit / 4 / (3 * PAIR.itemsize)):
            pieces = [p[slice(*np.searchsorted(p["row_a"], (low, high)))] for p in parts]
            pairs = np.sort(np.concatenate(pieces), order=("row_a", "row_b"))
            for name in PAIR.names:
                file[name][at : at + len(pairs)] = pairs[name]
            at += len(pairs)
        rows = np.nonzero(seen)[0]
        file["row"] = rows
        store_ids(file, ids, rows)
        file.attrs["threshold"] = config.threshold
    return len(rows)


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
        return [(n, int(r)) if int(r) in repeated else n for n, r in zip(ids.take(rows), rows, strict=True)]

    degrees = np.ones(len(labels), dtype=np.int64)  # a row itself takes memory too
    for pairs in read_pairs(path):
        degrees += np.bincount(pairs["row_a"], minlength=len(labels))
        degrees += np.bincount(pairs["row_b"], minlength=len(labels))
    bounds = np.concatenate([[0], np.cumsum(degrees)])
    for low, high in engine.size_ranges(bounds, config.memory_limit / 4 / 512):
        pairs = pairs_of_range(path, low, high)
        rows, neighbors, similarity = named(range(low, high)), named(pairs["row_b"]), pairs["similarity"].tolist()
        bounds = np.searchsorted(pairs["row_a"], np.arange(low, high + 1)).tolist()
        for i, row in enumerate(range(low, high)):
            if labels[row] >= 0:
                here = slice(bounds[i], bounds[i + 1])
                near = dict(zip(neighbors[here], similarity[here], strict=True))
                yield rows[i], {"cluster": int(labels[row]), "neighbors": near}


def pairs_of_range(path, low, high):
    """All pairs of the rows low to high, seen from them: row_a in the range, row_b the other. Sorted (p,) PAIR."""
    found = [np.empty(0, dtype=PAIR)]
    for pairs in read_pairs(path):
        found.append(pairs[(pairs["row_a"] >= low) & (pairs["row_a"] < high)])
        back = pairs[(pairs["row_b"] >= low) & (pairs["row_b"] < high)]
        back["row_a"], back["row_b"] = back["row_b"].copy(), back["row_a"].copy()
        found.append(back)
    return np.sort(np.concatenate(found), order=("row_a", "row_b"))


def audit_sample(stage, rows, labels, config):
    """Compare random rows with every row by brute force, and with what the search found for them.

    Returns a dict: rows audited, true pairs of theirs, how many of those are missed, how many found are false.
    """
    candidates = np.nonzero(labels >= 0)[0]
    rng = np.random.default_rng(config.random_state)
    audited = np.sort(rng.choice(candidates, min(config.audit_rows, len(candidates)), replace=False))
    stored = rows.gather(audited)
    unit = geometry.unit_rows(stored)[0].astype(np.float32)
    block_rows = engine.block_rows(config.memory_limit, config.n_workers, 24 * rows.dim + 16 * max(len(audited), 1))
    task = partial(audit_block, rows, labels, (audited, stored, unit), config.threshold)
    blocks = engine.run(task, block_ranges(rows.starts, block_rows), config.n_workers, "04 audit")
    true = {pair for block in blocks for pair in block}
    found = set()
    for pairs in read_pairs(stage.path("neighbors.h5")):
        touched = np.isin(pairs["row_a"], audited) | np.isin(pairs["row_b"], audited)
        found.update(zip(pairs["row_a"][touched].tolist(), pairs["row_b"][touched].tolist(), strict=True))
    missed, false = sorted(true - found), sorted(found - true)
    return {
        "rows": len(audited),
        "pairs": len(true),
        "missed": len(missed),
        "false": len(false),
        "examples": (missed + false)[:10],
    }


def audit_block(rows, labels, sample, threshold, start, stop):
    """True pairs of the audited rows with those of a block, as (row_a, row_b).

    sample: their numbers (s,), the rows as stored (s, d), and of unit length (s, d) float32.
    """
    audited, stored, unit = sample
    block = rows.read(start, stop)
    cosines = geometry.unit_rows(block)[0].astype(np.float32) @ unit.T
    # a float32 dot product of unit rows rounded to float32 is off by gamma_d and 2 u
    at, of = np.nonzero(cosines >= threshold - (rows.dim + 8) * geometry.UNIT32)
    other = start + at
    keep = (other != audited[of]) & (labels[other] >= 0)
    at, of, other = at[keep], of[keep], other[keep]
    near = np.empty(len(at), dtype=bool)
    step = max(1, len(block))
    for i in range(0, len(at), step):
        here = slice(i, i + step)
        near[here] = geometry.similarities(block[at[here]], stored[of[here]]) >= threshold
    a, b = np.minimum(other, audited[of])[near], np.maximum(other, audited[of])[near]
    return list(zip(a.tolist(), b.tolist(), strict=True))


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

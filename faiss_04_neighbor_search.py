"""Stage 4 of 5: find every pair at or above the threshold, and prove it on a sample.

In each cluster and across each border, a range search over sketches gives candidates; those are verified on the
original vectors in float64. Then random rows are compared with all rows by brute force. Rows that came to a finished
run are searched against all; its pairs stay. Of two sets only pairs between them are searched.
"""

from functools import partial

import numpy as np

from neardup import NeardupError
from neardup.grouping.outputs import write_neighbors_pickle
from neardup.input.embeddings import open_shards, pieces
from neardup.input.id_table import IdTable, store_ids
from neardup.machine import budget, engine, mirror
from neardup.machine.files import damaged, hdf5, write_json
from neardup.machine.npy import read_npy, rows_in
from neardup.notices import notice
from neardup.script import main, tell
from neardup.search import geometry, pairs
from neardup.search.audit import audit_pairs, begin_audit
from neardup.search.clusters import Clusters, cluster_name
from neardup.search.couples import search_task, visitors
from neardup.search.levels import compared_first, compared_next, reaches_of
from neardup.search.opened import OpenCluster, Prepared, open_projection, open_reduced, open_sketches, prepare_cluster
from neardup.search.pairs import BYTES_A_PAIR, BYTES_A_ROW, PAIR, read_pairs
from neardup.search.scan import Scan
from neardup.search.tasks import search_tasks
from neardup.search.verification import are_pairs, verified_at_once, verify_candidates
from neardup.stages.runs import begin
from neardup.words import counted, disk_size

_LISTED, _LISTED_ROWS = 1 << 18, 256  # margins of a block, which a core's cache holds; rows of it, at least
_MUCH = 0.8  # seconds of search in a thread, about, from which on processes repay their start
_ACROSS = 4  # distances searched in all for each that is inside a cluster, about
_QUICK = 0.4  # nanoseconds of a distance under which threads would wait for each other, but where they sort rows, too
_CROWDED = 200  # candidates a row, from which on some rows must repeat by the hundred


def run(config):
    """Write work/04_neighbor_search, or find it finished."""
    stage, shards, earlier = begin(config, "04_neighbor_search")
    if not stage.finished:
        stage = stage.finish(search(stage, shards, earlier, config))
    tell(config, stage, report)


def search(stage, shards, earlier, config):
    """Find all pairs, verify and audit them, and write the stage's files. Returns its results, small JSON values."""
    if config.report_threshold and config.report_threshold > config.threshold:
        notice(f"report_threshold {config.report_threshold} is above threshold {config.threshold}: it changes nothing")
    if stage.previous and (config.pairs == "joining" or not stage.growth.changes):
        stage.growth = None  # a pair that joined no components then may do so when rows are gone
    rows, ids = open_shards(shards), earlier["01_pca_variance"].path("ids.arrow")
    labels_path = earlier["03_kmeans"].path("labels.npy")
    rejected = read_npy(earlier["01_pca_variance"].path("rejected_rows.npy"))
    labels = read_labels(labels_path, len(rows), rejected, earlier["03_kmeans"].results["n_clusters"])
    repeated = read_npy(earlier["01_pca_variance"].path("repeated_rows.npy"))
    stage.needs(len(rows) * BYTES_A_ROW + 2 * ids.stat().st_size)
    audit = begin_audit(stage, rows, labels >= 0, config)
    clusters = open_clusters(earlier["03_kmeans"], config)
    scan = None
    if stage.scans:
        sketches = open_sketches(earlier["02_pca_reduce"], rows.starts, config.n_workers)
        scan = Scan(sketches, labels_path, *stage.growth.sets[1:])
    check_all_are_there(clusters, labels[: scan.start] if scan else labels, labels_path)
    error = earlier["02_pca_reduce"].results["sketch_error"]
    reach = geometry.Reach(geometry.radius(config.search_threshold, rows.dim), error)
    prepared = Prepared(stage, clusters, scan=scan)
    n_first, nanoseconds, dense = compared_first(prepared, reach.of_sketches)
    distances = _ACROSS * float(np.sum(np.diff(clusters.bounds).astype(float) ** 2) / 2)
    with engine.in_processes(config, stage.memory, distances * nanoseconds >= 1e9 * _MUCH and not stage.growth):
        beside = audit.tasks if nanoseconds < _QUICK and not scan else None
        prepared = prepared._replace(n_first=n_first)
        candidates, compared = find_candidates(prepared, reach, dense, rows, labels, earlier, config, beside)
        n_candidates = rows_in(candidates)
        tell_of_crowds(n_candidates, len(rows), config)
        parts = verify_candidates(stage, candidates, rows, config)
        n_pairs, rows_in_pairs = join_parts(stage, parts, len(rows), ids, config.search_threshold)
        named = {"labels_path": labels_path, "repeated": repeated}
        pickle = partial(write_neighbors_pickle, stage, IdTable.open(ids), stage.memory / 4, **named)
        audited = audit_and_pickle(stage, rows, audit, pickle, config)
    return {
        "rows": len(rows),
        "threshold": config.search_threshold,
        "pairs": n_pairs,
        "rows_in_pairs": rows_in_pairs,
        "compared": compared,
        "candidates": n_candidates,
        "audit": audited,
    }


def read_labels(path, n_rows, rejected, n_clusters):
    """The cluster of each row, (n,) int32, -1 of just the rejected ones: none that a stage lost escapes the audit.

    Raises NeardupError where the file holds others.
    """
    labels = read_npy(path)
    if labels.shape != (n_rows,) or labels.dtype != np.int32 or not -1 <= labels.min() <= labels.max() < n_clusters:
        raise damaged(path, "no clusters of these rows")
    if not np.array_equal(np.flatnonzero(labels < 0), rejected):
        raise damaged(path, "other rows without a cluster than the rejected ones")
    return labels


def open_clusters(kmeans, config):
    """The `Clusters` of stage 3."""
    return Clusters(kmeans.paths([cluster_name(c) for c in range(kmeans.results["n_clusters"])], config.n_workers))


def check_all_are_there(clusters, labels, path):
    """Raises NeardupError where cluster files hold fewer rows than have labels. path: of labels.npy."""
    if clusters.bounds[-1] < np.count_nonzero(labels >= 0):
        raise damaged(path, "clusters of rows that are in none of their files")


def find_candidates(prepared, reach, dense, rows, labels, earlier, config, beside):
    """Write all candidates, sorted packed pairs, into files; those an interrupted run finished stay.

    Of a run that grows just those of which one is new. prepared: `Prepared`, of which files are still to be written;
    reach: `Reach`; dense: whether rows are near nearly everywhere, so that it is chosen what to compare next;
    labels: the cluster of each row; beside: tasks for the other threads, where just one is to search. Returns the
    files, and the number of distances computed.
    """
    reduction, stage, clusters = earlier["02_pca_reduce"], prepared.stage, prepared.clusters
    centroids = read_npy(earlier["03_kmeans"].path("centroids.npy"))
    most = max(_LISTED_ROWS, _LISTED // len(clusters))
    block_rows = budget.block_rows(stage.memory, config.n_workers, 5 * len(clusters), most)
    prepare = partial(prepare_cluster, prepared, centroids, reach, block_rows)
    which = find_visits(stage, prepare, labels, len(clusters), config)
    joins = partial(are_pairs, rows, verified_at_once(stage, rows, config), config.search_threshold)
    n_components, sketch_dims = reduction.results["n_components"], reduction.results["sketch_dims"]
    reduced = coordinates_opener(reduction, rows, n_components > sketch_dims, config)
    sketches, longer = True, 0
    if dense and n_components > sketch_dims:
        sketches, longer = compared_next(prepared, reduced, reach.radius)
    of_a_row = 8 * clusters.width + 4 * (n_components + longer)
    most = budget.block_rows(stage.memory / 2, config.n_workers, of_a_row, len(rows))
    prepared = prepared._replace(n_longer=longer, most=most)
    reaches = reaches_of(reach, rows.dim, reduction.results, sketches, longer)
    of_a_task = budget.task_bytes(stage.memory, config.n_workers)
    opened = partial(OpenCluster, prepared, reduced, vectors=rows)
    do = partial(search_task, stage, opened, reaches, of_a_task, joins if config.pairs == "joining" else None)
    inside, across = search_tasks(prepared, config, which)
    runs = [
        (do, [(task,) for task in inside], "04 search inside clusters"),
        (do, [(task,) for task in across], "04 search across borders"),
    ]
    done = [result for results in engine.run_in_turn(runs, beside, config.n_workers) for result in results]
    visitors.cache_clear()
    both = zip(inside + across, done, strict=True)
    files = [stage.part(task.kind, task.number, part) for task, (n_parts, _) in both for part in range(n_parts)]
    return files, sum(compared for _, compared in done)


def coordinates_opener(reduction, rows, needed, config):
    """A function that opens all PCA coordinates of all rows: stage 2's; of two sets they are made of the rows again."""
    if config.against_dir is not None:
        return partial(open_projection, reduction, rows)
    if needed and config.scheduler != "threads":  # or each worker would verify them all when it needs some
        reduction.paths([f"reduced_{piece.name}.npy" for piece in pieces(rows.starts)], config.n_workers)
    return partial(open_reduced, reduction, tuple(rows.starts.tolist()))


def find_visits(stage, prepare, labels, n_clusters, config):
    """List which rows come near which border. prepare: writes those of a cluster; labels: the cluster of each row.

    Of a run that grows only new rows visit, of two sets those of the smaller, and only clusters that hold rows which
    they have to meet. Returns None, or of such a run two (K,) bool: which clusters have rows that visit, and which of
    those also rows to be met.
    """
    if not stage.growth:
        every = partial(prepare, np.ones(n_clusters, dtype=bool))
        engine.run(every, [(cluster,) for cluster in range(n_clusters)], config.n_workers, "04 visits")
        return None
    visit = stage.growth.are_visitors()
    meet = ~visit if stage.growth.against else np.ones(len(visit), dtype=bool)
    visiting, meeting = (np.bincount(labels[of & (labels >= 0)], minlength=n_clusters) > 0 for of in (visit, meet))
    numbers = np.nonzero(visiting)[0].tolist()
    engine.run(partial(prepare, meeting), [(cluster,) for cluster in numbers], config.n_workers, "04 visits")
    return visiting, visiting & meeting


def tell_of_crowds(n_candidates, n_rows, config):
    """Where rows repeat by the hundred, say that there is a choice, while it is early."""
    if config.pairs == "all" and config.against_dir is None and n_candidates > _CROWDED * n_rows:
        size = f"up to {disk_size(n_candidates * BYTES_A_PAIR)} of pairs"
        notice(
            f"{n_candidates:,} candidates for {n_rows:,} rows, {size}: if groups are all you need, pairs = 'joining' "
            "makes the same ones of a few of them"
        )


def join_parts(stage, parts, n_rows, ids, threshold):
    """Put the files of pairs together as neighbors.h5, with those of a run that grows whose rows are still there.

    ids: the path of ids.arrow, mapped no longer than needed. Returns the numbers of pairs and of rows in them. Memory:
    9 bytes a row.
    """
    total, seen, at = rows_in(parts), np.zeros(n_rows, dtype=bool), 0
    total += sum(map(len, pairs_before(stage, threshold)))
    stage.needs(total * BYTES_A_PAIR, more=True)
    with hdf5(stage.path("neighbors.h5")) as file:
        for name in PAIR.names:
            file.create_dataset(name, (total,), PAIR[name])
        for part in pairs.merged(pairs_before(stage, threshold), map(read_npy, parts)):
            for name in PAIR.names:
                file[name][at : at + len(part)] = part[name]
            seen[part["row_a"]] = seen[part["row_b"]] = True
            at += len(part)
        rows = np.nonzero(seen)[0]
        file["row"] = rows
        store_ids(file, IdTable.open(ids), rows)
        file.attrs["threshold"] = threshold
    return total, len(rows)


def pairs_before(stage, threshold):
    """Yield the pairs of a run that grows whose rows are still there, as (p,) PAIR, in order."""
    if not stage.growth or not stage.previous:
        return
    for found in read_pairs(stage.previous.path("neighbors.h5"), int(stage.growth.before[-1]), threshold):
        found["row_a"], found["row_b"] = (stage.growth.renumbered(found[name]) for name in ("row_a", "row_b"))
        yield found.compress((found["row_a"] >= 0) & (found["row_b"] >= 0))


def audit_and_pickle(stage, rows, audit, pickle, config):
    """Prove the result on a sample, in audit.json, and write neighbors.pkl meanwhile.

    audit: of `begin_audit`; pickle: a function that writes it. Returns what was counted. Raises NeardupError where
    pairs are missed or false.
    """
    found = partial(read_pairs, stage.path("neighbors.h5"), len(rows))
    others = [] if config.against_dir else [(engine.apart(pickle),)]  # ids of two sets may be the same
    counts = audit_pairs(stage, found, rows, audit, config, others)
    write_json(stage.path("audit.json"), counts)
    if counts["missed"] or counts["false"]:
        stage.check_input()
        stage.drop_parts()
        told, work_dir = (mirror.shown(path) for path in (stage.path("audit.json"), stage.folder.parent))
        raise NeardupError(
            f"the audit of {counts['rows']} rows found {counts['missed']} missed and {counts['false']} false pairs of "
            f"{counts['pairs']} ({told}): don't use this result; remove the stages' folders of {work_dir}, run all "
            "scripts again, and report it as a defect if it stays"
        )
    return counts


def report(stage):
    """Say what was found and where it is."""
    found, audit = stage.results, stage.results["audit"]
    print(f"{counted(found['pairs'], 'pair')} with similarity >= {found['threshold']}", end=", ")
    print(f"among {found['rows_in_pairs']:,} of {counted(found['rows'], 'row')}")
    print(f"audit: {counted(audit['rows'], 'random row')} by brute force against {audit['against']}", end=": ")
    print(f"{counted(audit['pairs'], 'pair')}, {audit['missed']} missed, {audit['false']} false", end="; ")
    print(f"{counted(audit['anew'], 'random pair')} computed anew")
    print(f"-> {stage.shown} (neighbors.h5, audit.json{', neighbors.pkl' * ('neighbors.pkl' in stage.files)})")


if __name__ == "__main__":
    main(run, __doc__)

"""Candidates -> pairs: the cosine of the original rows in float64, for many candidates at a time."""

from functools import partial

import numpy as np

from neardup.machine import budget, engine
from neardup.machine.files import write_npy
from neardup.machine.npy import map_npy, rows_in
from neardup.order import stable_order
from neardup.search import geometry
from neardup.search.pairs import PAIR, bounds_between, cuts, together, unpack

BLOCK_PAIRS = 1 << 20  # candidates of a task, at most: where 20,000 rows all meet, each of them is in about 50
_BYTES_A_CANDIDATE = 100  # of memory, while it is verified


def verify_candidates(stage, candidates, rows, config):
    """The pairs among the candidates, in files that follow each other; those an interrupted run finished stay.

    Returns the files.
    """

    def cut():
        share = rows_in(candidates) // (4 * engine.task_slots(config.n_workers))
        room = int(budget.task_bytes(stage.memory, config.n_workers) / _BYTES_A_CANDIDATE)
        at = cuts(map(map_npy, candidates), min(BLOCK_PAIRS, room, share))  # none of them mapped for longer
        return bounds_between(map(map_npy, candidates), at)

    blocks = range(len(stage.once(cut, "bounds")) - 1)
    similarity = partial(similarity_of, rows, verified_at_once(stage, rows, config))
    task = partial(verify_block, stage, candidates, similarity, config.search_threshold)
    engine.run(task, [(block,) for block in blocks], config.n_workers, "04 verify")
    return [stage.part("pairs", block) for block in blocks]


def verify_block(stage, candidates, similarity, threshold, block):
    """Write those candidates of a block that are pairs, by their similarity, as PAIR in order. candidates: files."""
    path = stage.part("pairs", block)
    if path.exists():
        return
    starts, stops = map_npy(stage.part("bounds"))[block : block + 2]
    some = [map_npy(candidates[i])[starts[i] : stops[i]].copy() for i in np.nonzero(starts < stops)[0].tolist()]
    packed = together(some)
    found = np.empty(len(packed), dtype=PAIR)
    found["row_a"], found["row_b"] = unpack(packed)
    found["similarity"] = similarity(found["row_a"], found["row_b"])
    write_npy(path, found.compress(found["similarity"] >= threshold))


def similarity_of(rows, step, rows_a, rows_b):
    """Similarity of the rows rows_a[i] and rows_b[i], (p,) float64. Memory: that of `step` of them, two rows each."""
    similarity, order = np.empty(len(rows_a)), by_crowds(rows_a, rows_b)
    for start in range(0, len(order), step):
        here = order[start : start + step]
        distinct, places = np.unique(np.concatenate([rows_b[here], rows_a[here]]), return_inverse=True)
        similarity[here] = geometry.similarities_among(rows.gather(distinct), *places.reshape(2, -1))
    return similarity


def by_crowds(rows_a, rows_b):
    """An order of some pairs, (p,) int64, in which those of a crowd, where each row meets each other, are together.

    So few rows are read for many pairs. Those of the same row_b follow each other, and all that begin with the same
    row_a: in a crowd of pairs sorted by row_a that is the first of its rows.
    """
    order = stable_order(rows_b)
    starts = np.flatnonzero(np.diff(rows_b[order], prepend=-1))
    runs = stable_order(rows_a[order[starts]])
    sizes = np.diff(starts, append=len(order))[runs]
    moved = np.repeat(starts[runs] - (np.cumsum(sizes) - sizes), sizes)
    return order[np.arange(len(order)) + moved]


def are_pairs(rows, step, threshold, rows_a, rows_b):
    """Which of the rows rows_a[i] and rows_b[i] are pairs, (p,) bool."""
    return similarity_of(rows, step, rows_a, rows_b) >= threshold


def verified_at_once(stage, rows, config):
    """Candidates whose rows fit an eighth of the working memory, all workers together: as stored and in float64."""
    return max(1, int(budget.task_bytes(stage.memory, config.n_workers) / (2 * 16 * rows.dim)))

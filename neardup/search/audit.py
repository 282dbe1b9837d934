"""The audit: random rows compared with every row by brute force, and with what was found for them; and similarities of
random pairs computed anew."""

from functools import partial
from typing import NamedTuple

import numpy as np

from neardup import NeardupError
from neardup.input.embeddings import piece_groups
from neardup.machine import budget, engine
from neardup.machine.files import atomic
from neardup.machine.npy import map_array
from neardup.machine.threads import scratch
from neardup.search import geometry, pairs
from neardup.search.components import components

_BLOCK_ROWS = 2048  # compared with the audited rows at a time, at most
_PAIRS_AT_ONCE = 256  # decided together
_DENSE = 16  # comparisons for each that is open, from which on all are made as one product
_DENSE_AT_ONCE = 1 << 16  # decided together then
_AXES = (8, 16, 24, 32, 48, 64), (96, 128, 192, 256)  # that rows may be compared along first, the others if need be
_READ_PAIRS = 1 << 20  # true pairs that are looked up together
_COMPARED = 512  # audited rows, with each other, to choose those
_GATHERED = 70  # how much longer a coordinate takes where rows are compared one by one, not as matrices
_SHOWN = 10  # missed or false pairs that are named


class Audit(NamedTuple):
    """The rows to audit, ascending; which of all rows aren't rejected, (n,) bool; and the `audit_tasks`."""

    audited: np.ndarray
    counted: np.ndarray
    tasks: list


def begin_audit(stage, rows, counted, config):
    """The `Audit` of a run. Arguments, memory and errors as in `audit_tasks`."""
    audited = chosen_rows(np.nonzero(counted)[0], stage.growth, config)
    return Audit(audited, counted, audit_tasks(stage, rows, audited, counted, config))


def audit_tasks(stage, rows, audited, counted, config):
    """Tasks of `engine.compute` that compare the audited rows with every row, a file each; they need no pairs.

    counted: which rows aren't rejected, (n,) bool. Raises NeardupError where the audited rows take too much of the
    memory limit. Memory: a block of rows a worker, and the audited rows twice.
    """
    size, most = (rows.dtype.itemsize + 4) * rows.dim, config.memory_limit // 4  # as stored, and in float32
    if len(audited) * size > most:
        raise NeardupError(
            f"audit_rows = {len(audited):,} take {len(audited) * size / 2**20:.0f}MiB, and may take a quarter of "
            f"memory_limit: set it to at most {most // size:,}, or memory_limit higher"
        )
    stored = rows.gather(audited)
    unit = geometry.unit_rows32(stored)[0]
    axes = best_axes(unit, config.search_threshold) if len(unit) else None
    along = None if axes is None else geometry.split(unit, np.ones(len(unit), np.float32), axes)
    sample = audited, stored, unit, axes, along
    bytes_per_row = 8 * rows.dim + 5 * len(audited)
    block_rows = budget.block_rows(stage.memory, config.n_workers, bytes_per_row, _BLOCK_ROWS)
    how = {"sample": sample, "threshold": config.search_threshold, "block_rows": block_rows}
    task = partial(audit_pieces, stage, rows, counted, **how)
    of_files = stage.growth and stage.growth.fresh ^ stage.growth.against
    groups = piece_groups(rows, of_files) if len(audited) else []
    return [(task, number, some) for number, some in enumerate(groups)]


def audit_pairs(stage, found, rows, audit, config, others):
    """Compare `audit_rows` random rows with every row, and with what was found for them.

    Of a run that grows half of them are new, if there are as many, and all are compared with the new rows: pairs of
    earlier ones were audited when they were found. Of two sets all are of the one, and compared with the other. As many
    random pairs, of earlier rows too, have their similarities computed anew.
    stage: keeps what is compared, a file a task; found: yields the pairs that were found, as (p,) PAIR, each time it
    is called; rows: `RowFiles`; audit: of `begin_audit`, of whose tasks some may be done; others: tasks to be done
    beside those. Where just the pairs that join were looked for, a pair counts as found if its rows are joined.
    Returns a dict: rows audited, true pairs of theirs, how many of those are missed, pairs computed anew, how many of
    those found are false, some missed and false ones, and in words which rows were compared with. Memory: 25 bytes a
    pair found for the audited rows.
    """
    audited, counted, tasks = audit
    growth, compared, against = stage.growth, np.ones(len(rows), dtype=bool), "all"
    if growth:
        compared = growth.each_is_fresh() ^ growth.against
        count = np.count_nonzero(compared & counted)
        against = f"the {count:,} {'of the second set' if growth.against else 'that came'}"
        against = against if count else "none, for no rows came"
    engine.compute([*others, *tasks], config.n_workers, "04 audit")
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[audited] = True
    listed = _union(pairs.pack(p["row_a"], p["row_b"]) for p in _touching(found(), chosen, compared))
    joined = components(found(), len(rows)) if config.pairs == "joining" else None
    count, both, missed, is_true = 0, [], [], np.zeros(len(listed), dtype=bool)
    for true in _blocks([stage.part("audit", number, suffix=".bin") for number in range(len(tasks))]):
        known, places = pairs.among(true, listed)
        is_true[places] = True
        a, b = pairs.unpack(true)
        missed.append(true[~known & (True if joined is None else joined[a] != joined[b])])
        twice = chosen[a] & chosen[b]  # in the files of both, or of one
        both.append(true[twice])
        count += len(true) - np.count_nonzero(twice)
    anew = drawn(found(), len(audited), np.random.default_rng(config.random_state))
    missed, false = _union(missed), _union([listed[~is_true], differing(anew, rows)])
    examples = np.stack(pairs.unpack(np.concatenate([missed, false])[:_SHOWN]), axis=1).tolist()
    counts = {"rows": len(audited), "pairs": int(count) + len(_union(both))}
    counts |= {"missed": len(missed), "anew": len(anew), "false": len(false)}
    return counts | {"against": against, "examples": examples}


def drawn(blocks, count, rng):
    """Random pairs of those in some blocks, (min(p, count),) PAIR, in their order: those of the least random keys."""
    kept, keys = np.empty(0, pairs.PAIR), np.empty(0)
    for block in blocks:
        new = rng.random(len(block))
        some = new < (keys.max(initial=0) if len(keys) == count else 1)
        kept, keys = np.concatenate([kept, block[some]]), np.concatenate([keys, new[some]])
        least = np.sort(np.argsort(keys, kind="stable")[:count])
        kept, keys = kept[least], keys[least]
    return kept


def differing(some, rows):
    """Pairs whose similarity isn't that of their rows, packed: by more than float64 may round on another processor.

    some: (p,) PAIR. Memory: 512 rows, in float64.
    """
    found, most = [pairs.NONE], geometry.similarity_error(rows.dim)
    for start in range(0, len(some), _PAIRS_AT_ONCE):
        here = some[start : start + _PAIRS_AT_ONCE]
        numbers, places = np.unique(np.concatenate([here["row_a"], here["row_b"]]), return_inverse=True)
        similar = geometry.similarities_among(rows.gather(numbers), *np.split(places, 2))
        wrong = here[~(np.abs(similar - here["similarity"]) <= most)]
        found.append(pairs.pack(wrong["row_a"], wrong["row_b"]))
    return np.concatenate(found)


def _blocks(paths):
    """Yield what is in some files of packed pairs, some at a time."""
    for path in paths:
        packed = map_array(path, np.dtype(np.uint64), 0, (path.stat().st_size // 8,))
        yield from (packed[start : start + _READ_PAIRS].copy() for start in range(0, len(packed), _READ_PAIRS))


def _union(packed):
    """All of some arrays of packed pairs, ascending, each once: np.unique takes 20 times as long."""
    together = pairs.together(packed)
    return together[np.diff(together, prepend=~together[:1]) != 0]


def chosen_rows(eligible, growth, config):
    """The rows to audit, ascending. eligible: (e,) int64, the rows that aren't rejected."""
    rng, count = np.random.default_rng(config.random_state), config.audit_rows
    fresh = eligible[growth.is_fresh(eligible)] if growth else eligible[:0]
    if growth and growth.against:
        return np.sort(rng.choice(fresh, min(count, len(fresh)), replace=False))
    some = rng.choice(fresh, min(count // 2, len(fresh)), replace=False)
    others = np.setdiff1d(eligible, some, assume_unique=True)
    more = rng.choice(others, min(count - len(some), len(others)), replace=False)
    return np.sort(np.concatenate([some, more]))


def _touching(blocks, chosen, compared):
    """Of each block of pairs those of an audited row, (n,) bool, and one of those it was compared with, (n,) bool."""
    for block in blocks:
        a, b = block["row_a"], block["row_b"]
        yield block.compress((chosen[a] & compared[b]) | (chosen[b] & compared[a]))


def best_axes(unit, threshold):
    """Axes to compare rows along first, (d, m) float32, or None where all coordinates cost less.

    By how many comparisons of some audited rows they leave open; they are the principal ones of others.
    unit: (s, d) float32 rows of unit length. Memory: 3 MB, and 24 m d bytes.
    """
    some, others = (unit[first :: 2 * (-(-len(unit) // (2 * _COMPARED)) or 1)] for first in (1, 0))
    ones, best, least = np.ones(len(some), np.float32), None, unit.shape[1]
    for counts in _AXES:
        axes = principal_axes(others, max(counts)).astype(np.float32)
        for count in (c for c in counts if c <= axes.shape[1]):
            along = geometry.split(some, ones, axes[:, :count])
            near = np.count_nonzero(along @ along.T >= lowest_product(threshold, len(axes), count)) - len(some)
            cost = count * (1 + len(axes) / max(1, len(unit))) + _GATHERED * len(axes) * near / max(1, len(some) ** 2)
            if cost < least:
                best, least = np.asfortranarray(axes[:, :count]), cost
        if best is not None and best.shape[1] < max(counts):
            break
    return best


def principal_axes(rows, count):
    """Those along which rows are longest, nearly: (d, m) float64, orthonormal columns, m = min(count, n, d).

    rows: (n, d) float32. By Halko, Martinsson and Tropp, Finding structure with randomness (2011), algorithm 4.4 with
    one step; any orthonormal axes would do.
    """
    rng, count = np.random.default_rng(0), min(count, *rows.shape)
    mixed = rows.T @ rng.standard_normal((len(rows), count), np.float32)
    basis = np.linalg.qr((rows.T @ (rows @ mixed)).astype(np.float64))[0]
    along = rows @ basis.astype(np.float32)
    axes = basis @ np.linalg.eigh((along.T @ along).astype(np.float64))[1][:, ::-1]
    assert np.linalg.norm(axes.T @ axes - np.eye(count)) < 2.0**-30, "the bound of what is left out rests on this"
    return axes


def lowest_product(threshold, dim, n_axes):
    """The least product of two rows of `geometry.split` that may be of a pair."""
    return np.float32(threshold - geometry.split_error(dim, n_axes) - geometry.similarity_error(dim))


def audit_pieces(stage, rows, counted, number, some, *, sample, threshold, block_rows):
    """`audit_block` of all blocks of some pieces; kept in a file, from which an interrupted run goes on."""
    path = stage.part("audit", number, suffix=".bin")
    if path.exists():
        return
    with atomic(path) as temporary, temporary.open("wb") as file:
        for block in (block for piece in some for block in piece.blocks(block_rows)):
            file.write(audit_block(rows, counted, *block, sample=sample, threshold=threshold).data)


def audit_block(rows, counted, start, stop, *, sample, threshold):
    """True pairs of the audited rows with those of a block that are counted, packed.

    sample: their numbers (s,), the rows as stored (s, d), of unit length (s, d) float32, `best_axes`, and the `split`
    along these, of which no product is much less than a cosine, which decides nearly all.
    """
    audited, stored, unit, axes, along = sample
    block = rows.read(start, stop)
    (values, scales, _), error = geometry.scaled_rows32(block), geometry.cosine_error(rows.dim)
    most = scratch((len(block), len(unit)))

    def cosines_of_all():
        np.matmul(values, unit.T, out=most)
        return np.multiply(most, scales[:, None], out=most)

    if axes is None:
        lowest, all_cosines = np.float32(threshold - error), cosines_of_all()
    else:
        lowest, all_cosines = lowest_product(threshold, *axes.shape), None
        np.matmul(geometry.split(values, scales, axes), along.T, out=most)
    near = np.flatnonzero(most.ravel() >= lowest)
    at, of = np.divmod(near, len(audited))
    keep = (start + at != audited[of]) & counted[start + at]
    at, of = at[keep], of[keep]
    if all_cosines is None and len(at) * _DENSE > most.size:
        all_cosines = cosines_of_all()
    similar, at_once = np.zeros(len(at), dtype=bool), _PAIRS_AT_ONCE if all_cosines is None else _DENSE_AT_ONCE
    for first in range(0, len(at), at_once):
        i, j = at[first : first + at_once], of[first : first + at_once]
        cosines = np.vecdot(values[i], unit[j]) * scales[i] if all_cosines is None else all_cosines[i, j]
        cosines = cosines.astype(np.float64)
        found = cosines > threshold + error
        unclear = np.nonzero((cosines >= threshold - error) & ~found)[0]
        for low in range(0, len(unclear), _PAIRS_AT_ONCE):
            some = unclear[low : low + _PAIRS_AT_ONCE]
            found[some] = geometry.similarities(block[i[some]], stored[j[some]]) >= threshold
        similar[first : first + at_once] = found
    return pairs.pack(start + at[similar], audited[of[similar]])

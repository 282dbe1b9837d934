"""Pairs: packed into single integers while they are candidates, then on disk in their order."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from uuid import uuid4

import numpy as np

from neardup.input.embeddings import MOST_ROWS
from neardup.machine.files import damaged, opened_data_sets
from neardup.order import stable_order
from neardup.ranges import size_ranges

PAIR = np.dtype([("row_a", "<i8"), ("row_b", "<i8"), ("similarity", "<f8")])
NONE = np.empty(0, dtype=np.uint64)  # packed pairs
BYTES_A_PAIR = 130  # on disk at most: verified, in neighbors.h5, mirrored for neighbors.pkl, and there in both rows
BYTES_A_ROW = 700  # on disk while stage 4 runs: layout, visits of about 20 other clusters, and the row's neighbours
_SAMPLED = 64  # packed pairs between two that are looked at to cut them
_BLOCK = 1 << 18  # pairs read together: 6 MB


@dataclass(frozen=True)
class Found:
    """What stage 4 found among `n_rows` rows, at or above a threshold.

    read(threshold): yields the pairs, as `read_pairs` does, each time anew; complete: whether those are all pairs, not
    just some that join the groups there; memory: bytes that may be held of them.
    """

    read: Callable
    n_rows: int
    threshold: float
    complete: bool
    memory: float

    def blocks(self):
        """Yield the pairs, (p,) PAIR arrays in order."""
        return self.read(self.threshold)

    def at(self, threshold):
        """The same at or above a higher threshold."""
        return replace(self, threshold=threshold)


def found_pairs(search, n_rows, memory=np.inf):
    """The `Found` of stage 4, finished."""
    complete = search.key["settings"]["pairs"] == "all"
    read = partial(read_pairs, search.path("neighbors.h5"), n_rows)
    return Found(read, n_rows, search.results["threshold"], complete, memory)


def pack(rows_a, rows_b):
    """Two row numbers, in any order, as one uint64 that sorts by the lower, then the higher. Two (p,) int64 arrays."""
    low, high = np.minimum(rows_a, rows_b).astype(np.uint64), np.maximum(rows_a, rows_b).astype(np.uint64)
    return low << np.uint64(32) | high


def unpack(packed):
    """row_a and row_b, (p,) int64 each, of packed pairs."""
    return (packed >> np.uint64(32)).astype(np.int64), (packed & np.uint64(MOST_ROWS - 1)).astype(np.int64)


def together(parts):
    """All of some arrays of packed pairs, ascending."""
    return np.sort(np.concatenate([NONE, *parts]))


def among(packed, listed):
    """Which of some packed pairs, or rows, are among others, (p,) bool, and where there. listed: (l,), ascending."""
    packed = np.asarray(packed)
    at = np.searchsorted(listed, packed)
    found = at < len(listed)
    found[found] = listed[at[found]] == packed[found]
    return found, at[found]


def cuts(parts, most):
    """Where to cut sorted arrays of packed pairs so that between two cuts all together hold about `most`.

    At most `most` + 64 an array. parts: looked at one after the other. Returns (c,) uint64, ascending. Memory: 1/8 byte
    a pair.
    """
    samples = together(p[_SAMPLED - 1 :: _SAMPLED].copy() for p in parts)
    step = max(1, most // _SAMPLED)
    return samples[step - 1 :: step]


def strongest_of_each(row, other, similarity, order):
    """Each row's most similar other, of equally similar ones the first by `order`: (p,) each.

    Returns the rows, each once and ascending, their others and the similarities, (r,) each.
    """
    by = np.lexsort((order, -similarity, row))
    rows, first = np.unique(row[by], return_index=True)
    return rows, other[by][first], similarity[by][first]


def bounds_between(parts, at):
    """Where the pieces between cuts begin in each of the sorted arrays, and where the last one ends, (c + 2, P) int64.

    parts: looked at one after the other; at: of `cuts`.
    """
    found = [[0, *np.searchsorted(p, at, side="right").tolist(), len(p)] for p in parts]
    return np.array(found, dtype=np.int64).reshape(-1, len(at) + 2).T


def read_pairs(path, n_rows, threshold=0):
    """Yield the pairs of neighbors.h5 at or above a threshold as (p,) PAIR arrays, in order. Memory: 25 MB.

    Raises NeardupError where they aren't pairs of so many rows, in order.
    """
    last = np.zeros(1, dtype=np.uint64)
    with opened_data_sets(path, PAIR.names) as stored:
        if [(s.shape, s.dtype) for s in stored] != [((stored[0].size,), PAIR[name]) for name in PAIR.names]:
            raise damaged(path, "other shapes or types")
        for start in range(0, stored[0].size, _BLOCK):
            a, b, similarity = columns = [s[start : start + _BLOCK] for s in stored]
            places = np.concatenate([last, a.view(np.uint64) << np.uint64(32) | b.view(np.uint64)])
            rising = (a >= 0) & (a < b) & (b < n_rows) & (places[1:] > places[:-1])
            if not (rising & (similarity > 0)).all():
                raise damaged(path, "no pairs in order")
            last, wanted = places[-1:], similarity >= threshold
            yield _as_pairs(columns if wanted.all() else [column[wanted] for column in columns])


def _as_pairs(columns):
    pairs = np.empty(len(columns[0]), dtype=PAIR)
    for name, values in zip(PAIR.names, columns, strict=True):
        pairs[name] = values
    return pairs


def merged(first, second):
    """Yield all pairs of two series of sorted blocks, (p,) PAIR, in order. Memory: a block of either, three times."""
    sources, held = (iter(first), iter(second)), [np.empty(0, PAIR), np.empty(0, PAIR)]
    while True:
        for number, source in enumerate(sources):
            while not len(held[number]) and (block := next(source, None)) is not None:
                held[number] = block
        if not len(held[0]) or not len(held[1]):
            break
        packed = [pack(h["row_a"], h["row_b"]) for h in held]
        ends = [np.searchsorted(p, min(packed[0][-1], packed[1][-1]), side="right") for p in packed]
        ready = np.concatenate([h[:end] for h, end in zip(held, ends, strict=True)])
        held = [h[end:] for h, end in zip(held, ends, strict=True)]
        order = np.argsort(np.concatenate([p[:end] for p, end in zip(packed, ends, strict=True)]), kind="stable")
        yield ready.take(order)
    for rest, source in zip(held, sources, strict=True):
        yield from chain([rest] if len(rest) else [], source)


def both_ways(path, n_rows, most, folder):
    """Yield (low, high, pairs) for ranges of rows: all pairs of theirs seen from them, row_a in the range, sorted.

    path: of neighbors.h5; most: rows and pairs of a range, as far as a single row has no more; folder: for a copy of
    the pairs seen from their other end, sorted into files by range, each removed when it was read: in a folder of this
    call's own, for which those of others are removed. Memory: 40 bytes for each of `most`; 8 bytes a row until the
    ranges are made.
    """
    ranges = size_ranges(_row_bounds(path, n_rows), most)
    shutil.rmtree(folder, ignore_errors=True)
    folder /= uuid4().hex
    folder.mkdir(parents=True)
    for number in range(len(ranges)):
        (folder / f"{number}.bin").touch()
    starts = _mirror(path, n_rows, np.array([low for low, _ in ranges]), folder)
    with opened_data_sets(path, PAIR.names) as stored:
        for number, (low, high) in enumerate(ranges):
            here = _as_pairs([s[starts[number] : starts[number + 1]] for s in stored])
            pairs = np.concatenate([_read_mirrored(folder / f"{number}.bin"), here])  # of each row by row_b
            yield low, high, pairs.take(stable_order(pairs["row_a"]))
    folder.rmdir()


def _row_bounds(path, n_rows):
    """How many rows and pairs, seen from both ends, come before each row, (n_rows + 1,) int64."""
    size = np.ones(n_rows + 1, dtype=np.int64)
    size[0] = 0
    for pairs in read_pairs(path, n_rows):
        np.add.at(size[1:], pairs["row_a"], 1)
        np.add.at(size[1:], pairs["row_b"], 1)
    return np.cumsum(size, out=size)


def _mirror(path, n_rows, lows, folder):
    """Write all pairs seen from row_b, those of a range of rows to a file of its own. lows: where the ranges begin.

    Returns where the pairs seen from row_a begin of each range, and how many there are.
    """
    counts = np.zeros(len(lows), dtype=np.int64)
    for pairs in read_pairs(path, n_rows):
        counts += np.bincount(np.searchsorted(lows, pairs["row_a"], side="right") - 1, minlength=len(lows))
        pairs["row_a"], pairs["row_b"] = pairs["row_b"].copy(), pairs["row_a"].copy()
        of_range = np.searchsorted(lows, pairs["row_a"], side="right") - 1
        order = stable_order(of_range)
        numbers, first = np.unique(of_range[order], return_index=True)
        for number, some in zip(numbers, np.split(pairs.take(order), first[1:]), strict=True):
            with (folder / f"{number}.bin").open("ab") as file:
                file.write(some.tobytes())
    return np.cumulative_sum(counts, include_initial=True)


def _read_mirrored(path):
    pairs = np.fromfile(path, dtype=PAIR)
    path.unlink()
    return pairs

"""The input: shards of rows on disk, read as blocks or by row number, never whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neardup import NeardupError
from neardup.input.layout import Layout, npy_layout
from neardup.ranges import block_ranges, equal_parts, size_ranges

MOST_ROWS = 2**32  # two row numbers make one integer of 64 bits
PIECE_ROWS, _SMALL_PIECE = 32_768, 8192  # of a piece, at most; of a file that is one piece, others are two at least
TASK_ROWS, MOST_TASKS = 65_536, 2_000  # of a task that reads several pieces; and how many of those there are, about
_FEW_TASKS = 8  # as few of them only where there is less to read


@dataclass(frozen=True)
class Shard:
    """An input file: `rows` rows of `dim` values, the first of which has the global number `start`.

    name: the file's below data_dir; vectors: the name of its vectors, where it holds more than those; stored: where
    they lie, or None where they are decoded, once, into the file `copy`; ids_path: the file of its ids, in a column
    `id_column` unless it is text, or None where its rows are numbered; table: of its metadata, or None.
    """

    path: Path
    start: int
    rows: int
    dim: int
    dtype: np.dtype
    name: str
    vectors: str | None = None
    stored: Layout | None = None
    copy: Path | None = None
    ids_path: Path | None = None
    id_column: str | None = None
    table: Path | None = None

    @property
    def stop(self):
        """The global number after that of its last row."""
        return self.start + self.rows

    @property
    def layout(self):
        """Where its rows lie."""
        return self.stored or npy_layout(self.copy)


class RowFiles:
    """Files of rows that follow each other, as one array; memory-mapped a window at a time, read-only.

    layouts and starts: one a file, `starts` with the total number of rows as its last element; here_and_there: few rows
    will be read, so that nothing is read ahead. A window is unmapped when nobody holds it any more: what is mapped
    counts as the process's memory.
    """

    def __init__(self, layouts, starts, here_and_there=False):
        self.here_and_there = here_and_there
        self.layouts, self.starts = list(layouts), np.asarray(starts, dtype=np.int64)
        for layout, count in zip(self.layouts, np.diff(self.starts), strict=True):
            if len(layout.shape) != 2 or layout.shape[0] != count:
                raise NeardupError(
                    f"{layout.path} has shape {layout.shape}, not {count} rows: run the script that wrote it again"
                )
        self.dim = self.layouts[0].shape[1]
        self.dtype = np.result_type(*(layout.dtype for layout in self.layouts))

    def __len__(self):
        return int(self.starts[-1])

    def gather(self, rows):
        """The rows of these numbers, in their order, each read once and in row order. rows: (r,) integers.

        Returns (r, d) of `dtype`, that of the files or the widest of them. Memory: 2 r d values, and a window of 64 MB.
        """
        distinct, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        out = np.empty((len(distinct), self.dim), dtype=self.dtype)
        bounds = np.searchsorted(distinct, self.starts)
        for file in np.nonzero(np.diff(bounds))[0].tolist():
            here = slice(bounds[file], bounds[file + 1])
            self.layouts[file].gather(distinct[here] - self.starts[file], out[here], self.here_and_there)
        return out if len(distinct) == len(rows) and np.array_equal(distinct, rows) else out[inverse]

    def read(self, start, stop):
        """Rows start to stop, all in one file. Returns a read-only view (stop - start, d)."""
        file = int(np.searchsorted(self.starts, start, side="right")) - 1
        first = int(self.starts[file])
        return self.layouts[file].read(int(start) - first, int(stop) - first, self.here_and_there)


class Piece(NamedTuple):
    """Rows start to stop of a file. name: the file's number, and the piece's own where the file has several."""

    name: str
    start: int
    stop: int

    @property
    def file(self):
        """The file's number."""
        return int(self.name.partition("-")[0])

    def blocks(self, block_rows):
        """Its rows as in `block_ranges`."""
        return block_ranges(self.start, self.stop, block_rows)


def pieces(starts):
    """Files of rows in equal parts of at most `PIECE_ROWS`, in row order, at least one each. starts: as in RowFiles.

    A file of more than `_SMALL_PIECE` is two parts at least.
    """
    found = []
    for number, file in enumerate(zip(map(int, starts[:-1]), map(int, starts[1:]), strict=True)):
        parts = equal_parts(*file, min(PIECE_ROWS, max(_SMALL_PIECE, -(-(file[1] - file[0]) // 2))))
        names = [f"{number:05d}-{i:04d}" for i in range(len(parts))] if len(parts) > 1 else [f"{number:05d}"]
        found += [Piece(name, *part) for name, part in zip(names, parts, strict=True)]
    return found


def piece_groups(rows, of_files=None):
    """`pieces` of `RowFiles` that follow each other, in lists for a task each. of_files: which, (files,) bool, or all.

    What a task of stage 1 keeps is d x d float64, at most 1/32 of the rows it reads, or where there are few tasks 1/4.
    """
    single = [piece for piece in pieces(rows.starts) if of_files is None or of_files[piece.file]]
    bounds = np.cumsum([0] + [piece.stop - piece.start for piece in single])
    most = max(TASK_ROWS, 64 * rows.dim, len(rows) // MOST_TASKS)
    most = min(most, max(8 * rows.dim, len(rows) // _FEW_TASKS))
    equal = -(-bounds[-1] // max(1, -(-bounds[-1] // most)))
    ranges = min(size_ranges(bounds, equal), size_ranges(bounds, most), key=len)  # as equal as so few tasks go
    return [single[low:high] for low, high in ranges]


def open_shards(shards, here_and_there=False):
    """The shards as one array of rows, as stored. here_and_there: as in `RowFiles`."""
    return RowFiles([s.layout for s in shards], shard_starts(shards), here_and_there)


def open_pieces(paths, starts):
    """What stage 2 wrote of all `pieces`, as one array. paths: of their files; starts: of the shards, as RowFiles'."""
    some = pieces(starts)
    return RowFiles(map(npy_layout, paths), [piece.start for piece in some] + [some[-1].stop])


def shard_starts(shards):
    """First row of each shard, and the number of rows of all. Returns (n_shards + 1,) int64."""
    return np.cumsum([0] + [s.rows for s in shards], dtype=np.int64)


def total_rows(shards):
    """Rows of all shards."""
    return int(shard_starts(shards)[-1])

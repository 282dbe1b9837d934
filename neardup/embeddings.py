"""The input: shards of rows on disk, read as blocks or by row number, never whole."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neardup import NeardupError
from neardup.npy import UNREADABLE, map_array, read_header

MOST_ROWS = 2**32  # two row numbers make one integer of 64 bits
_WINDOW_BYTES = 1 << 26  # of a file that is mapped at a time while rows are gathered


@dataclass(frozen=True)
class Shard:
    """An input file: `rows` rows of `dim` values, the first of which has the global number `start`."""

    path: Path
    start: int
    rows: int
    dim: int
    dtype: np.dtype

    @property
    def ids_path(self):
        return self.path.with_suffix(".txt")


class RowFiles:
    """2-D .npy files that follow each other, as one array of rows; memory-mapped a window at a time, read-only.

    paths and starts: one a file, `starts` with the total number of rows as its last element. A window is unmapped
    when nobody holds it any more: what is mapped counts as the process's memory.
    """

    def __init__(self, paths, starts):
        self.paths, self.starts = list(paths), np.asarray(starts, dtype=np.int64)
        headers = [read_header(p) for p in self.paths]
        for path, header, count in zip(self.paths, headers, np.diff(self.starts), strict=True):
            if len(header.shape) != 2 or header.shape[0] != count:
                raise NeardupError(
                    f"{path} has shape {header.shape}, not {count} rows: run the script that wrote it again"
                )
        self.dim = headers[0].shape[1]
        self.headers = headers

    def __len__(self):
        return int(self.starts[-1])

    def gather(self, rows):
        """The rows of these numbers, in their order, each read once and in row order. rows: (r,) integers.

        Returns (r, d) of the files' dtype, or the widest of them. Memory: 2 r d values, and a window of 64 MB.
        """
        distinct, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        out = np.empty((len(distinct), self.dim), dtype=np.result_type(*(h.dtype for h in self.headers)))
        window = max(1, _WINDOW_BYTES // (self.dim * out.itemsize))
        low = 0
        while low < len(distinct):
            first = int(distinct[low])
            stop = min(first + window, int(self.starts[self._file_of(first) + 1]))
            high = int(np.searchsorted(distinct, stop))
            out[low:high] = self.read(first, stop)[distinct[low:high] - first]
            low = high
        return out if len(distinct) == len(rows) and np.array_equal(distinct, rows) else out[inverse]

    def read(self, start, stop):
        """Rows start to stop, all in one file. Returns a read-only view (stop - start, d)."""
        file = self._file_of(start)
        path, header = self.paths[file], self.headers[file]
        low, high = int(start - self.starts[file]), int(stop - self.starts[file])
        if header.fortran_order:  # columns follow each other: any row needs the whole file mapped
            return map_array(path, header.dtype, header.offset, header.shape, fortran_order=True)[low:high]
        offset = header.offset + low * self.dim * header.dtype.itemsize
        return map_array(path, header.dtype, offset, (high - low, self.dim))

    def _file_of(self, row):
        return int(np.searchsorted(self.starts, row, side="right")) - 1


def block_ranges(starts, block_rows):
    """(start, stop) of blocks of at most `block_rows` rows, none across two files. starts: as in RowFiles."""
    return [
        (row, min(row + block_rows, int(stop)))
        for start, stop in zip(starts[:-1], starts[1:], strict=True)
        for row in range(int(start), int(stop), block_rows)
    ]


def open_shards(shards):
    """The shards as one array of rows, as stored."""
    return RowFiles([s.path for s in shards], shard_starts(shards))


def shard_starts(shards):
    """First row of each shard, and the number of rows of all. Returns (n_shards + 1,) int64."""
    return np.cumsum([0] + [s.rows for s in shards], dtype=np.int64)


def total_rows(shards):
    """Rows of all shards."""
    return int(shard_starts(shards)[-1])


def find_shards(data_dir, pattern, ours=()):
    """The shards of a folder in natural order (_2 before _10), their headers checked; nothing in folders of `ours`.

    Raises NeardupError where the folder holds none, or a header isn't that of an (n, d) float array like the others.
    """
    if not data_dir.is_dir():
        raise NeardupError(f"data_dir {data_dir} is not a folder: set data_dir to the folder of your .npy shards")
    try:
        if ".." in Path(pattern).parts:
            raise ValueError("'..' leads out of it")
        ours = {folder.resolve() for folder in ours}
        paths = [p for p in data_dir.glob(pattern) if ours.isdisjoint(p.resolve().parents)]
    except (ValueError, NotImplementedError, IndexError) as error:
        raise NeardupError(
            f"shard_pattern {pattern!r} is no pattern within data_dir ({error}): set it right"
        ) from error
    paths.sort(key=lambda p: _natural_key(str(p.relative_to(data_dir))))
    if not paths:
        raise NeardupError(
            f"no file in data_dir {data_dir} matches shard_pattern {pattern!r}: set one of the two right"
        )
    shards, start = [], 0
    for path in paths:
        (rows, dim), dtype = _checked_header(path)
        if shards and dim != shards[0].dim:
            raise NeardupError(
                f"{path} has rows of {dim} values and {shards[0].path.name} of {shards[0].dim}: "
                "leave one of them out with shard_pattern"
            )
        shards.append(Shard(path, start, rows, dim, dtype))
        start += rows
    if start > MOST_ROWS:
        raise NeardupError(f"the shards in {data_dir} hold {start:,} rows, over {MOST_ROWS:,}: search them in parts")
    if start == 0:
        raise NeardupError(f"the {len(shards)} shards in {data_dir} hold no rows: nothing to compare")
    return shards


def _natural_key(name):
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _checked_header(path):
    """Shape and dtype of a .npy file, compared with its size; allocates nothing."""
    if not path.is_file():
        raise NeardupError(f"{path} is not a file that can be read: remove it, or leave it out with shard_pattern")
    try:
        shape, _, dtype, offset = read_header(path)
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NeardupError(f"{path} is not a .npy file ({reason}): write it with numpy.save") from error
    if dtype.hasobject:
        raise NeardupError(f"{path} holds pickled Python objects, which are never loaded: save a float array")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise NeardupError(f"{path} holds {dtype}, not float16, float32 or float64: convert it")
    if len(shape) != 2 or any(type(n) is not int or n < 0 for n in shape):
        raise NeardupError(f"{path} has shape {shape}, not (rows, values): reshape it to 2-D")
    if shape[1] == 0:
        raise NeardupError(f"{path} has rows of no values: write it again")
    expected = offset + shape[0] * shape[1] * dtype.itemsize
    if path.stat().st_size != expected:
        raise NeardupError(
            f"{path} has {path.stat().st_size} bytes where its header promises {expected}: it is damaged, copy it again"
        )
    return shape, dtype

"""The ids of all rows in one Arrow file, written once and memory-mapped from then on."""

from itertools import chain

import numpy as np
import pyarrow as pa

from neardup.input.embeddings import total_rows
from neardup.input.ids import BLOCK_ROWS, id_blocks
from neardup.machine.files import damaged, is_of_system
from neardup.machine.mirror import here
from neardup.machine.npy import map_array

_CHUNK = 1 << 16  # bytes of a chunk of the HDF5 data set that holds their text, where it is written in blocks
_SCHEMA = pa.schema([("id", pa.large_string())])


def write_table(path, shards, known=()):
    """All ids as one Arrow IPC file, a record batch a block. Returns (n,) int64 hashes, of this process only.

    known: {number of a shard: its ids, Arrow arrays}, of those that needn't be read. Memory: as in `id_blocks`, the ids
    of a block as Python strings, and 8 bytes a row.
    """
    hashes, at = np.empty(total_rows(shards), dtype=np.int64), 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        blocks = (known[number] if number in known else id_blocks(shard) for number, shard in enumerate(shards))
        for ids in chain.from_iterable(blocks):
            writer.write_batch(pa.record_batch([ids], schema=_SCHEMA))
            hashes[at : at + len(ids)] = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))
            at += len(ids)
    assert at == len(hashes)
    return hashes


def repeated_rows(hashes, table, first=0):
    """Rows whose id another row has too, ascending. Memory: 16 n bytes; of rows whose hash is shared 24, and their ids.

    hashes: (n,) int64, of the ids of the rows from the first on; table: an `IdTable`.
    """
    in_order = np.sort(hashes)  # a tenth of an argsort's time, and mostly there is nothing to find
    if not (in_order[1:] == in_order[:-1]).any():
        return np.empty(0, dtype=np.int64)
    order = np.argsort(hashes)
    same = hashes[order][1:] == hashes[order][:-1]
    suspects = np.sort(order[np.r_[False, same] | np.r_[same, False]])
    # equal hashes may still be different ids
    number_of = table.array(first + suspects).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return first + suspects[np.bincount(number_of)[number_of] > 1]


class IdTable:
    """The ids of all rows, or of some, in Arrow arrays that follow each other."""

    def __init__(self, chunks, path=None):
        self.chunks, self._path = chunks, path
        self.starts = np.cumsum([0] + [len(c) for c in chunks])

    @classmethod
    def open(cls, path, here_and_there=False):
        """Those of ids.arrow, memory-mapped. here_and_there: as in `map_array`. Raises NeardupError where damaged."""
        size = here(path).stat().st_size
        try:
            mapped = map_array(path, np.dtype(np.uint8), 0, (size,), here_and_there=here_and_there)
            table = pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
            table.validate()
            if table.schema != _SCHEMA:
                raise ValueError(f"it holds {table.schema.to_string()}")
            return cls(table.column("id").chunks, path)
        except (ValueError, OSError, EOFError, KeyError) as error:  # Arrow's are ValueErrors or OSErrors
            if is_of_system(error):
                raise
            raise damaged(path, error) from error

    def __reduce__(self):
        """A file is opened anew wherever a task runs."""
        return (IdTable.open, (self._path,)) if self._path else (IdTable, (self.chunks,))

    def __len__(self):
        return int(self.starts[-1])

    @property
    def mean_bytes(self):
        """How many bytes an id has."""
        return sum(chunk.nbytes for chunk in self.chunks) / max(1, len(self))

    def blocks(self, start, stop):
        """The arrays that hold the ids of rows start to stop, between which some of them begin and end."""
        return self.chunks[slice(*np.searchsorted(self.starts, (start, stop)))]

    def array(self, rows):
        """The ids of these rows as an Arrow array of strings. rows: (r,) integers. Memory: their bytes, twice."""
        # a chunk at a time: taking from a column of several chunks may join them in memory first
        rows = np.asarray(rows, dtype=np.int64)
        of_chunk = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(of_chunk, kind="stable")
        chunks, counts = np.unique(of_chunk, return_counts=True)
        parts = np.split(rows[order], np.cumsum(counts)[:-1]) if len(chunks) else []
        taken = [self._taken(c, p - self.starts[c]) for c, p in zip(chunks.tolist(), parts, strict=True)]
        joined = pa.concat_arrays(taken) if taken else pa.array([], pa.large_string())
        return joined.take(positions(np.argsort(order, kind="stable"))) if len(taken) > 1 else joined

    def _taken(self, number, places):
        """Some ids of a chunk; of a file those without an end are told, for one read here and there isn't hashed."""
        chunk = self.chunks[number]
        if self._path:
            _, offsets, text = chunk.buffers()
            bounds = np.frombuffer(offsets, np.int64)[chunk.offset + places[:, None] + [0, 1]]
            if (np.diff(bounds, axis=1) < 0).any() or bounds.min() < 0 or bounds.max() > (text.size if text else 0):
                raise damaged(self._path, "ids without an end")
        return chunk.take(positions(places))

    def take(self, rows):
        """The ids of these rows as a list of strings. rows: (r,) integers."""
        try:
            return self.array(rows).to_pylist()
        except (ValueError, IndexError) as error:
            if not self._path:
                raise
            raise damaged(self._path, error) from error


def positions(rows):
    """Row numbers (r,) int64 as an Arrow array. pa.array would load pandas, where that is installed: 0.14 s."""
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows, np.int64))])


def bytes_of(ids):
    """How many bytes each id has, (r,) int64, and these, one after another, (b,) uint8. ids: an Arrow array of strings.

    The latter are a view.
    """
    if not len(ids):
        return np.empty(0, np.int64), np.empty(0, np.uint8)
    _, offsets, text = ids.buffers()
    bounds = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    return np.diff(bounds), np.frombuffer(text or b"", np.uint8)[bounds[0] : bounds[-1]]


def store_ids(group, table, rows):
    """The ids of these rows as two flat HDF5 data sets, `id_utf8` and `id_offset`.

    Id i is the bytes offset[i] to offset[i + 1]: HDF5's own strings can't hold a NUL and open slowly by the million.
    Memory: the ids of a block, and 8 bytes a row.
    """
    sizes, several = [np.zeros(1, dtype=np.int64)], len(rows) > BLOCK_ROWS
    for start in range(0, max(len(rows), 1), BLOCK_ROWS):
        size, text = bytes_of(table.array(rows[start : start + BLOCK_ROWS]))
        sizes.append(size)
        if start == 0:
            group.create_dataset(
                "id_utf8", data=text, **({"maxshape": (None,), "chunks": (_CHUNK,)} if several else {})
            )
        else:
            at = len(group["id_utf8"])
            group["id_utf8"].resize((at + len(text),))
            group["id_utf8"][at:] = text
    group["id_offset"] = np.cumsum(np.concatenate(sizes))

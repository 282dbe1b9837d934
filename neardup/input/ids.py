"""Names of rows: read from the shards' sidecars once, then kept as one Arrow file that is memory-mapped."""

import json
from itertools import chain
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.input.embeddings import total_rows
from neardup.input.formats.flat import id_map
from neardup.input.metadata import column_blocks, column_type
from neardup.machine.files import damaged
from neardup.machine.mirror import here
from neardup.machine.npy import map_array

BLOCK_ROWS = 1 << 16  # rows whose ids are handled together
_CHUNK = 1 << 16  # bytes of a chunk of the HDF5 data set that holds their text, where it is written in blocks
_BYTES_A_ROW = 64  # of an id in a table, about
_TEXT = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
_BYTES = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary
ANOTHER = "set id_column to another, or to '' to number the rows"
_SCHEMA = pa.schema([("id", pa.large_string())])


def expected_bytes(shards):
    """Bytes that the ids of some shards take, about; of a table, which holds more, no more than usual."""
    found = 0
    for shard in shards:
        size = shard.ids_path.stat().st_size if shard.ids_path else 16 * shard.rows
        is_list = shard.ids_path and shard.ids_path.suffix == ".txt"
        found += size if is_list else min(size, _BYTES_A_ROW * shard.rows)
    return found


def id_blocks(shard):
    """Yield the ids of a shard as Arrow arrays of at most 65,536 strings: from its text file or table, or `shard:row`.

    Raises NeardupError, naming the file and what is wrong. Memory: a block, three times; of a text file, an IndexIDMap
    or a dictionary of Arrow all of its ids.
    """
    path = shard.ids_path
    if path is None:
        yield from _numbered(shard)
        return
    if path.suffix == ".txt":
        whole = [_read_text(shard)]
    elif shard.id_column is None:
        whole = [pa.array(id_map(path)).cast(pa.large_string())]
    else:
        whole = _read_column(shard)
    for ids in whole:
        yield from (ids.slice(start, BLOCK_ROWS) for start in range(0, len(ids), BLOCK_ROWS))


def _numbered(shard):
    stem, colon = (pa.scalar(text, pa.large_string()) for text in (shard.name.removesuffix(shard.path.suffix), ":"))
    for start in range(0, shard.rows, BLOCK_ROWS):
        numbers = pa.array(np.arange(start, min(start + BLOCK_ROWS, shard.rows)))
        yield pc.binary_join_element_wise(stem, numbers.cast(pa.large_string()), colon)


def _read_column(shard):
    """Yield the ids of a column of a table."""
    path, column, start = shard.ids_path, shard.id_column, 0
    for values in column_blocks(path, column, shard.rows, pa.large_string()):
        if values.null_count:
            row = start + values.is_null().index(True).as_py()
            raise NeardupError(f"{path}: row {row} has no id in column {column!r}: mend it, or {ANOTHER}")
        if not _is_of_ids(values.type):
            raise NeardupError(f"{path}: column {column!r} holds {values.type}, no ids: {ANOTHER}")
        ids = _utf8(values)
        if ids is None:
            raise NeardupError(f"{path}: column {column!r} is not UTF-8: mend it, or {ANOTHER}")
        yield ids
        start += len(ids)


def sources(shards):
    """Where the ids of the shards are, in words."""
    return " and ".join(dict.fromkeys(map(_source, shards)))


def _source(shard):
    path = shard.ids_path
    if path is None:
        return "none, rows are numbered shard:row"
    if path.parent != shard.path.parent:
        place = f"{path.parent.name}/*{path.suffix}"
    else:
        place = "the shards" if path == shard.path else f"{path.suffix} files"
    return f"column {shard.id_column!r} of {place}" if shard.id_column else place


def can_be_ids(path, column, rows):
    """Whether a column of a table can be the ids of so many rows, as far as headers tell; of bytes the first ones."""
    kind = column_type(path, column, rows)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if any(is_one(kind) for is_one in _BYTES):
        first = next(column_blocks(path, column, rows, pa.large_string()), None)
        return first is None or _utf8(first) is not None
    return _is_of_ids(kind)


def _is_of_ids(kind):
    if pa.types.is_decimal(kind):  # as Snowflake writes integers
        return kind.scale == 0
    return isinstance(kind, pa.UuidType) or any(is_one(kind) for is_one in (*_TEXT, *_BYTES, pa.types.is_integer))


def _utf8(values):
    """An Arrow array as one of strings; None where it isn't UTF-8."""
    if isinstance(values.type, pa.UuidType):
        return pa.array(
            [None if v is None else str(UUID(bytes=v)) for v in values.storage.to_pylist()], pa.large_string()
        )
    try:
        text = values.cast(pa.large_string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return text


def _read_text(shard):
    """The ids of a .txt file: a JSON list of as many strings (or integers) as the shard has rows, or a line each."""
    path = shard.ids_path
    advice = f"write a JSON list of the {shard.rows} ids of {shard.path.name}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = text.lstrip().startswith(("[", "{")) and not _has_lines(text, shard.rows)
        ids = json.loads(text) if is_json else _lines(text) if text or shard.rows else []
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number too long
        raise NeardupError(f"{path} is not JSON in UTF-8 ({error}): {advice}") from error
    if not isinstance(ids, list):
        raise NeardupError(f"{path} holds a JSON {type(ids).__name__}, not a list: {advice}")
    if len(ids) != shard.rows:
        if not is_json:
            raise NeardupError(f"{path} is not JSON, and has {len(ids)} lines, not an id in each: {advice}")
        raise NeardupError(f"{path} lists {len(ids)} ids but {shard.path.name} has {shard.rows} rows: {advice}")
    if {*map(type, ids)} <= {str} and not has_surrogate("".join(ids)):
        return pa.array(ids, pa.large_string())
    return pa.array([_as_text(path, row, value) for row, value in enumerate(ids)], pa.large_string())


def _has_lines(text, rows):
    """Whether a text that begins as JSON does is ids, one a line."""
    if text.removesuffix("\n").count("\n") + 1 != rows:
        return False
    try:
        return not isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return True


def _lines(text):
    """The ids of a text with one a line, as `outputs.id_line` writes them: JSON strings where a quote begins them."""
    found = text.removesuffix("\n").split("\n")
    for number, line in enumerate(found):
        if line.startswith('"'):
            try:
                found[number] = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number + 1} begins with a quote, but is no JSON string") from error
    return found


def _as_text(path, row, value):
    """An id as a string. Raises NeardupError where it is neither that nor an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or has_surrogate(value):
        raise NeardupError(f"{path}: id {row} ({value!r}) is not a string of valid Unicode or an integer: mend it")
    return value


def has_surrogate(text):
    """Whether a text can't be written as UTF-8: it holds half a character, or what stands for a byte of a name."""
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


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
    """Rows whose id another row has too, ascending. Memory: 16 n bytes.

    hashes: (n,) int64, of the ids of the rows from the first on; table: of `IdTable`.
    """
    in_order = np.sort(hashes)  # a tenth of an argsort's time, and mostly there is nothing to find
    if not (in_order[1:] == in_order[:-1]).any():
        return np.empty(0, dtype=np.int64)
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    suspects = np.sort(order[np.r_[False, same] | np.r_[same, False]])
    names = table.take(first + suspects)  # equal hashes may still be different ids
    _, inverse, counts = np.unique(np.array(names, dtype=object), return_inverse=True, return_counts=True)
    return first + (suspects[counts[inverse] > 1] if len(suspects) else suspects)


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
            return cls(pa.ipc.open_file(pa.py_buffer(mapped)).read_all().column("id").chunks, path)
        except (ValueError, EOFError, KeyError) as error:  # Arrow's are ValueErrors
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
        taken = [self.chunks[c].take(positions(p - self.starts[c])) for c, p in zip(chunks, parts, strict=True)]
        joined = pa.concat_arrays(taken) if taken else pa.array([], pa.large_string())
        return joined.take(positions(np.argsort(order, kind="stable"))) if len(taken) > 1 else joined

    def take(self, rows):
        """The ids of these rows as a list of strings. rows: (r,) integers."""
        return self.array(rows).to_pylist()


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

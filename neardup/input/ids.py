"""Names of rows, as the shards and what lies beside them give them."""

import json
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.input.formats.flat import id_map
from neardup.input.metadata import column_blocks, column_type

BLOCK_ROWS = 1 << 16  # rows whose ids are handled together
_BYTES_A_ROW = 64  # of an id in a table, about
_TEXT = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
_BYTES = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary
ANOTHER = "set id_column to another, or to '' to number the rows"


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

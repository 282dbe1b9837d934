"""Names of rows, as the shards and what lies beside them give them."""

import json
from itertools import islice
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.input.formats.flat import id_map
from neardup.input.metadata import column_blocks, column_type
from neardup.words import counted

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

    Raises NeardupError, naming the file and what is wrong. Memory: a block, three times; of an IndexIDMap or a
    dictionary of Arrow all of its ids; of a JSON list four to eight times its file.
    """
    path = shard.ids_path
    if path is None:
        yield from _numbered(shard)
        return
    if path.suffix == ".txt":
        whole = _read_text(shard)
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
    if is_bytes(kind):
        first = next(column_blocks(path, column, rows, pa.large_string()), None)
        return first is None or _utf8(first) is not None
    return _is_of_ids(kind.value_type if pa.types.is_dictionary(kind) else kind)


def is_bytes(kind):
    """Whether an Arrow type, or that of a dictionary's values, is bytes, which may be UTF-8."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_one(kind) for is_one in _BYTES)


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
    """Yield the ids of a .txt file: a JSON list of as many strings (or integers) as the shard has rows, or a line each.

    Memory: of lines a block, three times, and they are read twice, so that errors come first; of a list four to eight
    times the file.
    """
    path = shard.ids_path
    advice = f"write a JSON list of the {shard.rows} ids of {shard.path.name}"
    try:
        listed = _json_of(path, shard.rows)
        count = sum(map(len, _line_blocks(path))) if listed is None else 0
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number too long
        raise NeardupError(f"{path} is not JSON in UTF-8 ({_not_utf8(path) or error}): {advice}") from error
    if listed is None:
        if (count or min(1, shard.rows)) != shard.rows:  # an empty file may be an empty line
            lines = counted(count or min(1, path.stat().st_size), "line")
            raise NeardupError(f"{path} has {lines}, not {shard.rows}: {advice}, or one id a line")
        yield from _in_strings(path, _line_blocks(path) if count else [[""] * shard.rows])
        return
    if not isinstance(listed, list):
        raise NeardupError(f"{path} holds a JSON {type(listed).__name__}, not a list: {advice}")
    if len(listed) != shard.rows:
        raise NeardupError(f"{path} lists {len(listed)} ids but {shard.path.name} has {shard.rows} rows: {advice}")
    yield from _in_strings(path, [listed])


def _json_of(path, rows):
    """What a text holds as JSON; None where it is a text of so many lines, or doesn't begin as a list or an object."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if not line.isspace()), "")
    if not first.lstrip().startswith(("[", "{")):
        return None
    text = _text(path)
    return None if _has_lines(text, rows) else json.loads(text)


def _text(path):
    return path.read_text(encoding="utf-8-sig")


def _not_utf8(path):
    """What is wrong with a text as a whole, of which lines tell another place; None where it is UTF-8."""
    try:
        _text(path)
    except UnicodeDecodeError as error:
        return error
    return None


def _has_lines(text, rows):
    """Whether a text that begins as JSON does is ids, one a line."""
    if text.removesuffix("\n").count("\n") + 1 != rows:
        return False
    try:
        return not isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return True


def _line_blocks(path):
    """Yield lists of at most 65,536 ids of a text with one a line, as `outputs.id_line` writes them."""
    with path.open(encoding="utf-8-sig") as file:
        start = 0
        while text := "".join(islice(file, BLOCK_ROWS)):
            found = text.removesuffix("\n").split("\n")
            if '\n"' in "\n" + text:
                found = [_unquoted(number, line) for number, line in enumerate(found, start + 1)]
            yield found
            start += len(found)


def _unquoted(number, line):
    """An id that is a JSON string where a quote begins it."""
    try:
        return json.loads(line) if line.startswith('"') else line
    except ValueError as error:
        raise ValueError(f"line {number} begins with a quote, but is no JSON string") from error


def _in_strings(path, blocks):
    """Yield blocks of ids as Arrow strings. Raises as `_as_text`."""
    start = 0
    for ids in blocks:
        named = ids
        if not ({*map(type, ids)} <= {str} and not has_surrogate("".join(ids))):
            named = [_as_text(path, row, value) for row, value in enumerate(ids, start)]
        yield pa.array(named, pa.large_string())
        start += len(ids)


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

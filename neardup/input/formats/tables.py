"""Parquet and Arrow files with a column of vectors, as Hugging Face datasets and NeMo Curator have them."""

from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neardup import NeardupError
from neardup.input import formats
from neardup.input.formats import NAMES, Vectors, is_vector_dtype, rows_at_once, the_one
from neardup.input.formats.record_batches import (
    arrow_reader,
    batches,
    check_once,
    parquet_file,
    schema_and_rows,
    without_views,
)
from neardup.machine.files import atomic
from neardup.words import first_line

_SET = "set vectors to another"
_ROWS = 1 << 12  # of a batch at most: lists come with numbers of their own


def describe(path, name=None):
    """The `Vectors` of a column of lists; as long as the first of them, where the type doesn't say. No rows: of 0."""
    schema, rows = schema_and_rows(path)
    if not rows:  # whose columns may have no type
        return Vectors(0, 0, np.dtype(np.float32))
    name = _name(path, schema, name)
    check_once(path, schema.names, name)
    kind = schema.field(name).type
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(path, name)
    if dim == 0:
        raise NeardupError(f"{path} (column {name}) has rows of no values: write it again")
    return Vectors(rows, dim, dtype)


def vector_names(path):
    """The names of the columns that may be the vectors."""
    return _vector_names(schema_and_rows(path)[0])


def blocks(path, name=None, allow_missing=False):
    """Yield the vectors of a column. Raises NeardupError, naming the row, where one is missing or of another length.

    allow_missing: where floats are missing, or all of a row, there is NaN instead.
    """
    vectors = describe(path, name)
    name, start, may_miss = _name(path, schema_and_rows(path)[0], name), 0, allow_missing and vectors.dtype.kind == "f"
    for batch in batches(path, [name], min(_ROWS, rows_at_once(vectors.dim, vectors.dtype))):
        lists = batch.column(0)
        lengths = _lengths(lists)
        there = (lengths > 0) | (not may_miss)
        values = (lists if there.all() else lists.filter(pa.array(there))).flatten()
        if (lengths[there] != vectors.dim).any() or (values.null_count and not may_miss):
            _raise_odd(path, name, vectors, start, lists, may_miss)
        found = values.to_numpy(zero_copy_only=False).reshape(-1, vectors.dim)
        if not there.all():
            found, some = np.full((len(lists), vectors.dim), np.nan, vectors.dtype), found
            found[there] = some
        yield found
        start += len(lists)


def _lengths(lists):
    """How many values each list has, (n,) int64; 0 where it is missing."""
    if pa.types.is_fixed_size_list(lists.type):
        return np.where(lists.is_valid().to_numpy(zero_copy_only=False), lists.type.list_size, 0)
    return lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)


def write_kept(path, target, keep):
    """Write a copy with just the rows to keep: all columns, the same schema. keep: (n,) bool.

    Parquet keeps the compression of its columns; Arrow's stream stays a stream, its file a file, uncompressed. Memory:
    a few blocks, or a record batch of Arrow that is compressed. Raises NeardupError where the file can't be read, or
    holds a type that pyarrow can't filter.
    """
    schema, _rows = schema_and_rows(path)
    try:
        with atomic(target) as temporary, _new_like(path, temporary, schema) as writer:
            for batches_kept in _kept_blocks(path, keep):
                writer.write_table(pa.Table.from_batches(batches_kept, schema))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = first_line(error)
        raise NeardupError(f"{path} can't be copied ({reason}): write it again, with other types") from error


def _kept_blocks(path, keep):
    """Yield lists of record batches of the rows to keep, all of a list together about a block."""
    found, held, start = [], 0, 0
    for batch in batches(path, None, _ROWS):
        found.append(_filtered(batch, pa.array(keep[start : start + len(batch)])))
        held += found[-1].nbytes
        start += len(batch)
        if held >= formats.BLOCK_BYTES:
            yield found
            found, held = [], 0
    if any(map(len, found)):
        yield found


def _filtered(batch, keep):
    plain = pa.schema([f.with_type(without_views(f.type)) for f in batch.schema])
    if plain == batch.schema:
        return batch.filter(keep)
    return batch.cast(plain).filter(keep).cast(batch.schema)


@contextmanager
def _new_like(path, target, schema):
    """Yield a writer of a new file of the same kind."""
    if path.suffix == ".parquet":
        with parquet_file(path) as file:
            groups = [file.metadata.row_group(0)] if file.metadata.num_row_groups else []
            kinds = [file.schema.column(i) for i in range(len(file.schema))]
        columns = [g.column(i) for g in groups for i in range(g.num_columns)]
        codecs = {c.path_in_schema: c.compression.replace("UNCOMPRESSED", "NONE") for c in columns}
        codec = codecs if len({*codecs.values()}) > 1 else next(iter(codecs.values()), "snappy")
        more = {"use_compliant_nested_type": False}  # names of lists' elements as they are
        if any(k.physical_type == "INT96" for k in kinds) and all(k.logical_type.type != "TIMESTAMP" for k in kinds):
            more["use_deprecated_int96_timestamps"] = True
        with pq.ParquetWriter(target, schema, compression=codec, **more) as writer:
            yield writer
        return
    with pa.memory_map(str(path)) as source:
        new = pa.ipc.new_file if hasattr(arrow_reader(source), "num_record_batches") else pa.ipc.new_stream
    with pa.OSFile(str(target), "wb") as sink, new(sink, schema) as writer:
        yield writer


def has_vectors(path, dim):
    """Whether a file has a column of vectors of so many values, as far as it can be read."""
    try:
        return any(describe(path, name).dim == dim for name in vector_names(path))
    except (NeardupError, OSError):
        return False


def _name(path, schema, name):
    found = _vector_names(schema)
    other = name or next((n for n in NAMES if n in schema.names), None)
    if other in schema.names and other not in found and (name or not found):
        kind = schema.field(schema.names.index(other)).type
        raise NeardupError(f"{path}: column {other!r} holds {kind}, not lists of floats or int8: convert it, or {_SET}")
    return the_one(path, name, found, "column")


def _vector_names(schema):
    return [field.name for field in schema if _is_vectors(field.type)]


def _is_vectors(kind):
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return False
    return is_vector_dtype(np.dtype(kind.value_type.to_pandas_dtype()))


def _first_length(path, name):
    """How many values the first list has that isn't missing; 0 where all are."""
    lengths = (_lengths(batch.column(0)) for batch in batches(path, [name], 64))
    return next((int(some[some > 0][0]) for some in lengths if some.any()), 0)


def _raise_odd(path, name, vectors, start, lists, may_miss):
    """Raise the NeardupError about the first list that isn't a vector. may_miss: whether one may that lacks values."""
    for row, found in enumerate(lists.to_pylist(), start):
        if found is None:
            what, lacks = f"missing, not {vectors.dim} values", True
        elif len(found) != vectors.dim:
            what, lacks = f"of {len(found)} values, not {vectors.dim} values", not found
        else:
            what, lacks = "not a number in every place", None in found
        if (lacks and not may_miss) or len(found or []) not in (0, vectors.dim):
            skip = ", or set bad_rows to 'skip' to leave such rows out" if lacks and vectors.dtype.kind == "f" else ""
            raise NeardupError(f"{path} (column {name}): row {row} is {what}: mend it{skip}")

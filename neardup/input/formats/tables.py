"""Parquet and Arrow files with a column of vectors, as Hugging Face datasets and NeMo Curator have them."""

from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from operator import attrgetter, methodcaller

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neardup import NeardupError
from neardup.input import formats
from neardup.input.formats import NAMES, Vectors, is_vector_dtype, rows_at_once, the_one
from neardup.machine.files import atomic, is_of_system
from neardup.words import first_line

_SET = "set vectors to another"
_ROWS = 1 << 12  # of a batch at most: lists come with numbers of their own
_MAGIC = 8  # bytes that Arrow's file format begins with
_FIRST = 64  # rows of a file that tell about how long they are
_PLAIN = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}  # of views, which few kernels know


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
    found, start = [], 0
    for batch in batches(path, None, _ROWS):
        found.append(_filtered(batch, pa.array(keep[start : start + len(batch)])))
        start += len(batch)
        if sum(b.nbytes for b in found) >= formats.BLOCK_BYTES:
            yield found
            found = []
    if any(map(len, found)):
        yield found


def _filtered(batch, keep):
    plain = pa.schema([f.with_type(without_views(f.type)) for f in batch.schema])
    if plain == batch.schema:
        return batch.filter(keep)
    return batch.cast(plain).filter(keep).cast(batch.schema)


def without_views(kind):
    """An Arrow type with plain texts and bytes in the place of views, wherever it holds any."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(without_views(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(without_views(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(without_views(field.type)) for field in kind])
    return _PLAIN.get(kind, kind)


def _rows_at_a_time(file, columns):
    """Rows of a Parquet file of which these columns, or all, take about a block; as its first rows, if longer."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    if columns is None:
        size = sum(group.total_byte_size for group in groups)
    else:
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        leaves = [i for i, path in enumerate(paths) for c in columns if path == c or path.startswith(f"{c}.")]
        size = sum(group.column(i).total_uncompressed_size for group in groups for i in leaves)
    found = _fitting(size, file.metadata.num_rows)
    first = next(file.iter_batches(min(found, _FIRST), columns=columns), None)  # repeated values take little in a file
    return min(found, _fitting(first.nbytes, len(first))) if first else found


def _fitting(size, rows):
    """How many of so many rows, which take so many bytes, make a block."""
    return rows_at_once(1 + size // max(1, rows), np.dtype(np.uint8))


@contextmanager
def _new_like(path, target, schema):
    """Yield a writer of a new file of the same kind."""
    if path.suffix == ".parquet":
        with _parquet(path) as file:
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
        new = pa.ipc.new_file if hasattr(_reader(source), "num_record_batches") else pa.ipc.new_stream
    with pa.OSFile(str(target), "wb") as sink, new(sink, schema) as writer:
        yield writer


def _parquet(path, **options):
    """A Parquet file, opened; its old timestamps, of 96 bits, in microseconds where nanoseconds hold no such years."""
    return pq.ParquetFile(path, coerce_int96_timestamp_unit=_unit_of_old(path, path.stat().st_mtime_ns), **options)


@lru_cache(maxsize=64)
def _unit_of_old(path, _changed):
    """What old timestamps are read in: None, which is nanoseconds, or "us" where one is before 1678 or after 2261."""
    with pq.ParquetFile(path, coerce_int96_timestamp_unit="ms") as file:
        kinds = [file.schema.column(i) for i in range(len(file.schema))]
        old = [k.name for k in kinds if k.physical_type == "INT96" and k.path == k.name]
        for batch in file.iter_batches(_ROWS, columns=old) if old else ():
            years = [year for c in batch.columns for year in pc.min_max(pc.year(c)).as_py().values()]
            if not all(year is None or 1677 < year < 2262 for year in years):
                return "us"
    return None


def check_once(path, names, name):
    """Raises NeardupError where two columns have this name."""
    if names.count(name) > 1:
        raise NeardupError(f"{path} has {names.count(name)} columns {name!r}: rename all but one")


@contextmanager
def _reading(path):
    """Where reading fails because the file is damaged, a NeardupError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, SystemError) as error:
        if is_of_system(error):
            raise
        reason = first_line(error)
        raise NeardupError(f"{path} is no {path.suffix} file that can be read ({reason}): write it again") from error


def schema_and_rows(path):
    """The schema of a file, and its number of rows. Raises NeardupError where it is neither Parquet nor Arrow."""
    with _reading(path):
        if path.suffix == ".parquet":
            with _parquet(path) as file:
                return file.schema_arrow, file.metadata.num_rows
        with pa.memory_map(str(path)) as source:
            schema = _reader(source).schema
            source.seek(0)
            return schema, sum(map(len, _batches(source, _smallest(schema))))


def has_vectors(path, dim):
    """Whether a file has a column of vectors of so many values, as far as it can be read."""
    try:
        return any(describe(path, name).dim == dim for name in vector_names(path))
    except (NeardupError, OSError):
        return False


def missing_values(path, name):
    """How many values of a column are null, as far as headers tell."""
    with _reading(path):
        if path.suffix == ".parquet":
            with _parquet(path) as file:
                leaves = [i for i in range(len(file.schema)) if file.schema.column(i).path.split(".")[0] == name]
                groups = [
                    file.metadata.row_group(i).column(leaf) for i in range(file.num_row_groups) for leaf in leaves
                ]
                found = [g.statistics for g in groups if g.statistics is not None]
                return sum(f.null_count for f in found if f.has_null_count)
        field = schema_and_rows(path)[0].get_field_index(name)
        with pa.memory_map(str(path)) as source:
            return sum(map(attrgetter("null_count"), map(methodcaller("column", 0), _batches(source, [field]))))


def batches(path, columns, rows):
    """Yield record batches of these columns, or all, of about a block, and of at most so many rows.

    Memory: a block, or a record batch of Arrow that is compressed. Raises NeardupError where the file is damaged.
    """
    with _reading(path):
        if path.suffix == ".parquet":
            with _parquet(path, memory_map=True) as file:
                yield from file.iter_batches(min(rows, _rows_at_a_time(file, columns)), columns=columns)
            return
        with pa.memory_map(str(path)) as source:
            names = _reader(source).schema.names
            source.seek(0)
            fields = None if columns is None else [names.index(c) if isinstance(c, str) else c for c in columns]
            for batch in _batches(source, fields):
                batch.validate(full=True)  # an offset that leads out of the file would end the process
                step = min(rows, _fitting(batch.nbytes, len(batch)))
                for start in range(0, len(batch), step):
                    some = batch.slice(start, step)
                    # whoever has the last one would hold all of the batch while the next is decompressed
                    yield some if start == 0 or start + step < len(batch) else _copied(some)
                    del some
                del batch


def _copied(batch):
    """A copy of some rows of a record batch, which holds no others."""
    return pa.record_batch([pa.concat_arrays([c, c[:0]]) for c in batch.columns], schema=batch.schema)


def _batches(source, fields):
    """An iterator of the record batches of these columns, by their numbers, or of all; it holds none that it gave.

    Arrow's file format is its stream format, and where batches lie in it. Read as a stream, columns that aren't asked
    for aren't decompressed; read as a file those that are would be copied first. But a file's dictionaries may lie
    behind what they are of.
    """
    reader = _reader(source)
    count, kinds = getattr(reader, "num_record_batches", None), reader.schema.types
    if count is not None and (fields is None or any("dictionary<" in str(kind) for kind in kinds)):
        found, places = map(reader.get_batch, range(count)), fields
    else:
        source.seek(0 if count is None else _MAGIC)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        found = islice(pa.ipc.open_stream(source, options=options), count)
        places = fields and [sorted(fields).index(field) for field in fields]
    return found if fields is None else map(methodcaller("select", places), found)


def _reader(source):
    """Of Arrow's file format, or else of its stream format."""
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def _smallest(schema):
    """The number, in a list, of the column that takes the least memory, as far as types tell; None of no columns."""
    return [min(range(len(schema)), key=lambda i: _bits(schema.types[i]))] if len(schema) else None


def _bits(kind):
    """Of a value; of texts and lists, which have a length each, more than of any number."""
    if pa.types.is_null(kind):
        return 0
    try:
        return kind.bit_width
    except ValueError:
        return 1 << 20 if pa.types.is_nested(kind) else 1 << 10


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

"""Parquet and Arrow files as record batches: the columns asked for, a block at a time, whatever they were cut into."""

from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from operator import attrgetter, methodcaller

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neardup import NeardupError
from neardup.input.formats import rows_at_once
from neardup.machine.files import is_of_system
from neardup.words import first_line

_MAGIC = 8  # bytes that Arrow's file format begins with
_FIRST = 64  # rows of a file that tell about how long they are
_OLD_ROWS = 1 << 12  # whose timestamps are looked at together
_PLAIN = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}  # of views, which few kernels know


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
            with parquet_file(path) as file:
                return file.schema_arrow, file.metadata.num_rows
        with pa.memory_map(str(path)) as source:
            reader = arrow_reader(source)
            return reader.schema, sum(map(len, _batches(source, reader, _smallest(reader.schema))))


def missing_values(path, name):
    """How many values of a column are null, as far as headers tell."""
    with _reading(path):
        if path.suffix == ".parquet":
            with parquet_file(path) as file:
                leaves = [i for i in range(len(file.schema)) if file.schema.column(i).path.split(".")[0] == name]
                groups = [
                    file.metadata.row_group(i).column(leaf) for i in range(file.num_row_groups) for leaf in leaves
                ]
                found = [g.statistics for g in groups if g.statistics is not None]
                return sum(f.null_count for f in found if f.has_null_count)
        field = schema_and_rows(path)[0].get_field_index(name)
        with pa.memory_map(str(path)) as source:
            found = _batches(source, arrow_reader(source), [field])  # without a name, for that would hold one of them
            return sum(map(attrgetter("null_count"), map(methodcaller("column", 0), found)))


def check_once(path, names, name):
    """Raises NeardupError where two columns have this name."""
    if names.count(name) > 1:
        raise NeardupError(f"{path} has {names.count(name)} columns {name!r}: rename all but one")


def batches(path, columns, rows):
    """Yield record batches of these columns, or all, of about a block, and of at most so many rows.

    Memory: a block, or a record batch of Arrow that is compressed. Raises NeardupError where the file is damaged.
    """
    with _reading(path):
        if path.suffix == ".parquet":
            with parquet_file(path, memory_map=True) as file:
                yield from file.iter_batches(min(rows, _rows_at_a_time(file, columns)), columns=columns)
            return
        with pa.memory_map(str(path)) as source:
            reader = arrow_reader(source)
            names = reader.schema.names
            fields = None if columns is None else [names.index(c) if isinstance(c, str) else c for c in columns]
            for batch in _batches(source, reader, fields):
                batch.validate(full=True)  # an offset that leads out of the file would end the process
                step = min(rows, _fitting(batch.nbytes, len(batch)))
                for start in range(0, len(batch), step):
                    some = batch.slice(start, step)
                    # whoever has the last one would hold all of the batch while the next is decompressed
                    yield some if start == 0 or start + step < len(batch) else _copied(some)
                    del some
                del batch


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


def _copied(batch):
    """A copy of some rows of a record batch, which holds no others."""
    return pa.record_batch([pa.concat_arrays([c, c[:0]]) for c in batch.columns], schema=batch.schema)


def _batches(source, reader, fields):
    """An iterator of the record batches of these columns, by their numbers, or of all; it holds none that it gave.

    reader: of `arrow_reader`, of which none was read.
    Arrow's file format is its stream format, and where batches lie in it. Read as a stream, columns that aren't asked
    for aren't decompressed; read as a file those that are would be copied first. But a file's dictionaries may lie
    behind what they are of.
    """
    count, kinds = getattr(reader, "num_record_batches", None), reader.schema.types
    if count is not None and (fields is None or any("dictionary<" in str(kind) for kind in kinds)):
        found, places = map(reader.get_batch, range(count)), fields
    else:
        source.seek(0 if count is None else _MAGIC)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        found = islice(pa.ipc.open_stream(source, options=options), count)
        places = fields and [sorted(fields).index(field) for field in fields]
    return found if fields is None else map(methodcaller("select", places), found)


def arrow_reader(source):
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


def parquet_file(path, **options):
    """A Parquet file, opened; its old timestamps, of 96 bits, in microseconds where nanoseconds hold no such years."""
    return pq.ParquetFile(path, coerce_int96_timestamp_unit=_unit_of_old(path, path.stat().st_mtime_ns), **options)


@lru_cache(maxsize=64)
def _unit_of_old(path, _changed):
    """What old timestamps are read in: None, which is nanoseconds, or "us" where one is before 1678 or after 2261."""
    with pq.ParquetFile(path, coerce_int96_timestamp_unit="ms") as file:
        kinds = [file.schema.column(i) for i in range(len(file.schema))]
        old = [k.name for k in kinds if k.physical_type == "INT96" and k.path == k.name]
        for batch in file.iter_batches(_OLD_ROWS, columns=old) if old else ():
            years = [year for c in batch.columns for year in pc.min_max(pc.year(c)).as_py().values()]
            if not all(year is None or 1677 < year < 2262 for year in years):
                return "us"
    return None


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

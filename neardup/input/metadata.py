"""Tables of what else is known of the rows: columns of Parquet, Arrow, CSV, HDF5 and .npz files, by name."""

import re
from contextlib import contextmanager

import h5py
import pyarrow as pa
import pyarrow.csv

from neardup import NeardupError
from neardup.input.formats import npz
from neardup.input.formats.hdf5 import opened
from neardup.input.formats.record_batches import batches, check_once, missing_values, schema_and_rows, without_views
from neardup.words import first_line

SUFFIXES = ".parquet", ".csv", ".arrow", ".feather"  # of a table that lies beside a shard, in the order of preference
BESIDE = ".txt", *SUFFIXES  # of what may hold ids or metadata of a shard
TEXTS = "texts.json"  # what the ids of all shards of a folder stand for
_BATCH = 1 << 16  # rows of a column that are read together
_NPZ_TEXT = {"U": pa.large_string(), "S": pa.large_binary()}  # by the kind of NumPy's dtype
_CSV_BLOCK = 1 << 20  # bytes of a CSV file that are read together: Arrow reads some dozens of blocks ahead
_CSV_LINE = 1 << 23  # the same where a line is longer: none is longer than this


def column_names(path):
    """The names of a table's columns, in their order; of HDF5 and .npz files those of one-dimensional arrays."""
    if path.suffix == ".npz":
        return [*npz.column_headers(path)]
    if path.suffix in (".h5", ".hdf5"):
        with opened(path) as file:
            return [*_columns_of(file, ())]
    if path.suffix == ".csv":
        _check_commas(path)
        with _mending(path):
            return _in_small_blocks(lambda size: _csv_names(path, size))
    return schema_and_rows(path)[0].names


def _check_commas(path):
    """Raises NeardupError where a CSV file's columns are separated by others, as spreadsheets of some countries do."""
    with path.open("rb") as file:
        line = file.readline(_CSV_LINE).rstrip()
    shown = line.decode(errors="replace")
    bare = re.sub(rb'"[^"]*"', b"", line)
    if max(map(bare.count, (b";", b"\t"))) > bare.count(b","):
        raise NeardupError(
            f"{path} has semicolons or tabs between its columns ({shown!r}): write it with commas, or as "
            "Parquet; or set id_column to '' if it holds no ids"
        )


def _columns_of(group, above):
    """Yield the names of the one-dimensional data sets of an HDF5 group, by whatever name or link within the file."""
    for name in group:
        item = group.get(name)  # None where a link leads nowhere
        if item is None or item.file.filename != group.file.filename:
            continue
        if isinstance(item, h5py.Group) and item not in above:
            yield from (f"{name}/{below}" for below in _columns_of(item, (*above, group)))
        elif isinstance(item, h5py.Dataset) and item.ndim == 1:
            yield name


_WIDE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}  # which over 2 GiB can be of


def _plain(values):
    """An Arrow array of plain values, no dictionary or views, of which many may be put together."""
    if pa.types.is_dictionary(values.type):
        values = _plain(values.dictionary).take(values.indices)
    kind = _WIDE.get(values.type) or without_views(values.type)
    return values if kind == values.type else values.cast(kind)


def column_blocks(path, name, rows, kind=None, advice=None):
    """Yield a column of a table as Arrow arrays of some thousands of plain values, never more than it must have.

    rows: how many these are; kind: the type to read it as, where the file doesn't say one. Raises NeardupError
    where there is no such column, with this advice, or, at the end, not so many rows. Memory: a block; of a CSV file
    whose type isn't given the column.
    """
    names = column_names(path)
    check_once(path, names, name)
    if name not in names:
        raise NeardupError(
            f"{path} has no column {name!r} (it has: {', '.join(names)}): {advice or 'set the name right'}"
        )
    read, count = _READERS.get(path.suffix, _table_blocks), 0
    for values in read(path, name, kind):
        count += len(values)
        if count <= rows:
            yield _plain(values)
    if count != rows:
        raise NeardupError(f"{path} has {count} rows, not the {rows} of its shard: write it again")


def column_type(path, name, rows):
    """The Arrow type of a column, as far as headers tell; null where values are missing or there aren't so many.

    Text of an HDF5 file is bytes.
    """
    if path.suffix == ".csv":
        return pa.large_string()
    if path.suffix in (".h5", ".hdf5"):
        with opened(path) as file:
            data = file[name]
            kind = pa.large_binary() if _is_text(data) else _number_type(data.dtype)
            return kind if kind and len(data) == rows else pa.null()
    if path.suffix == ".npz":
        header = npz.column_headers(path)[name]
        kind = _NPZ_TEXT.get(header.dtype.kind) or _number_type(header.dtype)
        return kind if kind and header.shape == (rows,) else pa.null()
    names = column_names(path)
    check_once(path, names, name)
    return pa.null() if missing_values(path, name) else schema_and_rows(path)[0].field(name).type


def _is_text(data):
    return h5py.check_string_dtype(data.dtype) is not None


def _number_type(dtype):
    """The Arrow type of a NumPy dtype of numbers, None of another."""
    is_known = dtype.kind in "iufb" and dtype.itemsize <= 8
    return pa.from_numpy_dtype(dtype.newbyteorder("=")) if is_known else None


def _hdf5_blocks(path, name, kind):
    """Text as bytes where a type is given: whoever casts them sees whether they are text."""
    with opened(path) as file:
        data = file[name]
        if not _is_text(data) and not _number_type(data.dtype):
            raise NeardupError(f"{path} ({name}) holds {data.dtype}, not text or numbers: choose another")
        for start in range(0, len(data), _BATCH):
            some = slice(start, start + _BATCH)
            if not _is_text(data):
                yield pa.array(data[some].astype(data.dtype.newbyteorder("=")))
            elif kind is None:
                yield pa.array(data.asstr()[some], pa.large_string())
            else:
                yield pa.array(data[some], pa.large_binary())


def _npz_blocks(path, name, _kind):
    dtype = npz.column_headers(path)[name].dtype
    if dtype.kind not in _NPZ_TEXT and not _number_type(dtype):
        raise NeardupError(f"{path} ({name}) holds {dtype}, not text or numbers: choose another")
    for values in npz.column_blocks(path, name):
        try:
            yield pa.array(values.astype(dtype.newbyteorder("=")))
        except UnicodeDecodeError as error:  # half a character of UTF-16
            raise NeardupError(f"{path} ({name}) is not Unicode ({first_line(error)}): mend it") from error


def _csv_blocks(path, name, kind):
    """Of a type that isn't given all of the column decides, not its first cells."""
    with _mending(path):
        if kind is None:
            read = pa.csv.read_csv
            yield from _in_small_blocks(lambda size: read(path, **_csv_options(size, name)).column(0).chunks)
            return
        count = 0
        try:
            for values in _csv_stream(path, name, kind, _CSV_BLOCK):
                yield values
                count += len(values)
            return
        except pa.ArrowInvalid:
            pass  # a line may be too long
        start = 0
        for values in _csv_stream(path, name, kind, _CSV_LINE):
            if start + len(values) > count:
                yield values[max(0, count - start) :]
            start += len(values)


def _in_small_blocks(read):
    """What read(bytes of a block) returns; of small blocks, or else, as a line may be too long, of large ones."""
    try:
        return read(_CSV_BLOCK)
    except pa.ArrowInvalid:
        return read(_CSV_LINE)


def _csv_names(path, size):
    with pa.csv.open_csv(path, **_csv_options(size)) as reader:
        return reader.schema.names


def _csv_stream(path, name, kind, size):
    with pa.csv.open_csv(path, **_csv_options(size, name, kind)) as reader:
        yield from (batch.column(0) for batch in reader)


def _table_blocks(path, name, _kind):
    return (batch.column(0) for batch in batches(path, [name], _BATCH))


_READERS = {".h5": _hdf5_blocks, ".hdf5": _hdf5_blocks, ".npz": _npz_blocks, ".csv": _csv_blocks}


def as_text(values, path, name):
    """A column as Arrow strings. Raises NeardupError where it holds no single values."""
    try:
        return values.cast(pa.large_string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise NeardupError(f"{path}: column {name!r} holds {values.type}, no text: name another") from error


def _csv_options(size, name=None, kind=None):
    """Of blocks of so many bytes, of one column, where it is named; its type is that of all its cells."""
    convert = pa.csv.ConvertOptions(
        include_columns=[name] if name else None,
        column_types={name: kind} if kind else None,
        strings_can_be_null=False,
    )
    return {
        "read_options": pa.csv.ReadOptions(block_size=size),
        "parse_options": pa.csv.ParseOptions(newlines_in_values=True),
        "convert_options": convert,
    }


@contextmanager
def _mending(path):
    """Where a CSV file isn't one, a NeardupError that says so."""
    try:
        yield
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise NeardupError(
            f"{path} is not a CSV file in UTF-8 with a line of column names, none of over {_CSV_LINE >> 20} MiB "
            f"({reason}): mend it, or write it as Parquet"
        ) from error

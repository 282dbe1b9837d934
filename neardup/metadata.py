"""Tables of what else is known of the rows: columns of Parquet, Arrow, CSV and HDF5 files, by name."""

from contextlib import contextmanager

import h5py
import pyarrow as pa
import pyarrow.csv

from neardup import NeardupError
from neardup.formats.hdf5 import opened
from neardup.formats.tables import batches, check_once, schema_and_rows

SUFFIXES = ".parquet", ".csv", ".arrow", ".feather"  # of a table that lies beside a shard, in the order of preference
_BATCH = 1 << 16  # rows of a column that are read together


def column_names(path):
    """The names of a table's columns, in their order; of an HDF5 file those of its one-dimensional data sets."""
    if path.suffix in (".h5", ".hdf5"):
        with opened(path) as file:
            found = []
            file.visititems(lambda n, o: found.append(n) if isinstance(o, h5py.Dataset) and o.ndim == 1 else None)
            return found
    if path.suffix == ".csv":
        with _open_csv(path) as reader, _mending(path):
            return reader.schema.names
    return schema_and_rows(path)[0].names


def read_column(path, name, rows, kind=None):
    """A column of a table as one Arrow array. Memory: the column.

    rows: how many it must have; kind: the type to read it as, where the file doesn't say one. Raises NeardupError
    where there is no such column, or not so many rows.
    """
    names = column_names(path)
    check_once(path, names, name)
    if name not in names:
        raise NeardupError(f"{path} has no column {name!r} (it has: {', '.join(names)}): set the name right")
    if path.suffix in (".h5", ".hdf5"):
        with opened(path) as file:
            data = file[name]
            if h5py.check_string_dtype(data.dtype) is None and data.dtype.kind not in "iufb":
                raise NeardupError(f"{path} ({name}) holds {data.dtype}, not text or numbers: choose another")
            is_text = h5py.check_string_dtype(data.dtype) is not None
            values = pa.array(data.asstr()[:] if is_text else data[:].astype(data.dtype.newbyteorder("=")))
    elif path.suffix == ".csv":
        with _open_csv(path, name, kind) as reader, _mending(path):
            values = reader.read_all().column(0)
    else:
        values = [batch.column(0) for batch in batches(path, [name], _BATCH)]
        values = pa.chunked_array(values, schema_and_rows(path)[0].field(name).type)
    if len(values) != rows:
        raise NeardupError(f"{path} has {len(values)} rows, not the {rows} of its shard: write it again")
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _open_csv(path, name=None, kind=None):
    """A reader of a CSV file, of one column of it where it is named."""
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    convert = pa.csv.ConvertOptions(
        include_columns=[name] if name else None,
        column_types={name: kind} if kind else None,
        strings_can_be_null=False,
    )
    with _mending(path):
        return pa.csv.open_csv(path, parse_options=parse, convert_options=convert)


@contextmanager
def _mending(path):
    """Where a CSV file isn't one, a NeardupError that says so."""
    try:
        yield
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise NeardupError(
            f"{path} is not a CSV file in UTF-8 with a line of column names ({reason}): mend it"
        ) from error

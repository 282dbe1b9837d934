"""Parquet and Arrow files with a column of vectors, as Hugging Face datasets and NeMo Curator have them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neardup import NeardupError
from neardup.formats import Vectors, block_rows, is_vector_dtype, the_one

_ROWS = 1 << 12  # of a batch at most: lists come with numbers of their own


def describe(path, name=None):
    """The `Vectors` of a column of lists; as long as the first of them, where the type doesn't say."""
    schema, rows = schema_and_rows(path)
    name = _name(path, schema, name)
    kind = schema.field(name).type
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    if not rows:
        raise NeardupError(f"{path} has no rows: leave it out")
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(path, name)
    if dim == 0:
        raise NeardupError(f"{path} (column {name}) has rows of no values: write it again")
    return Vectors(rows, dim, dtype)


def blocks(path, name=None):
    """Yield the vectors of a column. Raises NeardupError, naming the row, where one is missing or of another length."""
    vectors = describe(path, name)
    name, start = _name(path, schema_and_rows(path)[0], name), 0
    for batch in batches(path, [name], min(_ROWS, block_rows(vectors.dim, vectors.dtype))):
        lists = batch.column(0)
        values = lists.flatten()
        if lists.null_count or values.null_count or len(values) != len(lists) * vectors.dim:
            _raise_odd(path, name, vectors.dim, start, lists)
        if not pa.types.is_fixed_size_list(lists.type):
            lengths = lists.value_lengths().to_numpy()
            if (lengths != vectors.dim).any():
                _raise_odd(path, name, vectors.dim, start, lists)
        yield values.to_numpy(zero_copy_only=False).reshape(len(lists), vectors.dim)
        start += len(lists)


def schema_and_rows(path):
    """The schema of a file, and its number of rows. Raises NeardupError where it is neither Parquet nor Arrow."""
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                return file.schema_arrow, file.metadata.num_rows
        with pa.memory_map(str(path)) as source:
            reader = _reader(source)
            if hasattr(reader, "num_record_batches"):
                return reader.schema, sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
            return reader.schema, sum(batch.num_rows for batch in reader)
    except pa.ArrowInvalid as error:
        raise NeardupError(f"{path} is not a {path.suffix} file ({error}): write it again") from error


def batches(path, columns, rows):
    """Yield record batches of these columns, of at most so many rows."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path, memory_map=True) as file:
            yield from file.iter_batches(rows, columns=columns)
        return
    with pa.memory_map(str(path)) as source:
        reader = _reader(source)
        numbered = hasattr(reader, "num_record_batches")
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if numbered else reader:
            chosen = batch.select(columns)
            for start in range(0, batch.num_rows, rows):
                yield chosen.slice(start, rows)


def _reader(source):
    """Of Arrow's file format, or else of its stream format."""
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def _name(path, schema, name):
    found = [field.name for field in schema if _is_vectors(field.type)]
    return the_one(path, name, found, "column")


def _is_vectors(kind):
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return False
    return is_vector_dtype(np.dtype(kind.value_type.to_pandas_dtype()))


def _first_length(path, name):
    first = next(batches(path, [name], 1)).column(0)
    return len(first[0]) if first[0].is_valid else 0


def _raise_odd(path, name, dim, start, lists):
    """Raise the NeardupError about the first list that isn't a vector of `dim` values."""
    row, what = next(
        (i, "missing" if v is None else f"of {len(v)} values" if len(v) != dim else "not a number in every place")
        for i, v in enumerate(lists.to_pylist())
        if v is None or len(v) != dim or None in v
    )
    raise NeardupError(f"{path} (column {name}): row {start + row} is {what}, not {dim} values: mend it")

"""What a column of a table holds, in 128 bits, however its file is cut into row groups and batches."""

from collections import defaultdict

import numpy as np
import pyarrow as pa

from neardup.input.id_table import bytes_of
from neardup.input.metadata import column_blocks
from neardup.machine.checksums import Digest, digest_of_values

_LISTS = pa.types.is_list, pa.types.is_large_list, pa.types.is_map
_TEXT = pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary
_FIXED = pa.types.is_primitive, pa.types.is_decimal, pa.types.is_fixed_size_binary


def digest_of_column(path, name, rows, advice=None):
    """Digest of a column's name, type and values. Arguments and errors as in `column_blocks`. Memory: a block, twice.

    Which values are missing, how long they are and what they hold have a digest each, to which blocks are added one
    after another, so that it doesn't matter where they end.
    """
    found, schema = defaultdict(Digest), pa.schema([])
    for values in column_blocks(path, name, rows, advice=advice):
        schema = pa.schema([(name, values.type)])
        _add(found, "", values)
    parts = {place: digest.hexdigest() for place, digest in found.items()}
    return digest_of_values([schema.serialize().to_pybytes().hex(), parts])


def _add(found, place, values):
    """Add an Arrow array to `Digest`s by place. What lists and structs hold has places of its own."""
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    found[f"{place} there"].update(_numbers(values.is_valid(), pa.uint8()))
    values, kind = values.drop_null(), values.type  # whatever lies where a value is missing
    if pa.types.is_struct(kind):
        for number, field in enumerate(values.flatten()):
            _add(found, f"{place}.{number}", field)
    elif pa.types.is_fixed_size_list(kind):
        _add(found, f"{place}[]", values.flatten())
    elif _is_one(kind, _LISTS):
        bounds = _numbers(values.offsets, pa.int64())
        found[f"{place} length"].update(np.diff(bounds))
        _add(found, f"{place}[]", values.values[bounds[0] : bounds[-1]])
    elif _is_one(kind, _TEXT):
        lengths, text = bytes_of(values.cast(pa.large_binary()))
        found[f"{place} length"].update(lengths)
        found[place].update(text)
    elif pa.types.is_boolean(kind):
        found[place].update(_numbers(values, pa.uint8()))
    elif _is_one(kind, _FIXED):
        if len(values):
            of_all, width = np.frombuffer(values.buffers()[1], np.uint8), kind.bit_width // 8
            found[place].update(of_all[values.offset * width : (values.offset + len(values)) * width])
    else:  # unions and the like
        found[place].update(np.frombuffer("".join([f"{v!r}\n" for v in values.to_pylist()]).encode(), np.uint8))


def _is_one(kind, kinds):
    return any(is_one(kind) for is_one in kinds)


def _numbers(values, kind):
    """An Arrow array without nulls as an array of numbers of this Arrow type."""
    return values.cast(kind).to_numpy(zero_copy_only=False)

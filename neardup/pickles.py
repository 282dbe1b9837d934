"""Pickles for users, made of columns: what loads a column's values is put together for all of them at once, by Arrow.

A pickle is a program of opcodes, which `pickletools` of Python's own library describes. Here an Arrow array of bytes
holds, for each row, the opcodes that leave one value on the stack. No Python object is made of any value.
"""

import pickle
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup.input.id_table import bytes_of, positions
from neardup.machine.files import atomic

_OPCODES = pa.large_binary()
_PROTOCOL = pickle.PROTO + bytes([4])
_LARGE_INTEGER = pickle.LONG1 + bytes([8])  # of so many bytes


def write_dict(path, blocks):
    """Write a pickle of a dict. blocks: of (keys, values), opcodes of as many, that are held one at a time."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(_PROTOCOL + pickle.EMPTY_DICT)
        for keys, values in blocks:
            _, items = bytes_of(together(keys, values))
            framed = len(pickle.MARK) + len(items) + len(pickle.SETITEMS)  # read at once
            file.write(pickle.FRAME + framed.to_bytes(8, "little") + pickle.MARK)
            file.write(items.data)
            file.write(pickle.SETITEMS)
        file.write(pickle.STOP)


def write_object(path, module, name, state):
    """Write a pickle of an object of a class that isn't imported here. state: {attribute: value}, as it pickles."""
    made = pickle.GLOBAL + f"{module}\n{name}\n".encode() + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    pickled = pickle.dumps(state, protocol=4).removeprefix(_PROTOCOL).removesuffix(pickle.STOP)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(_PROTOCOL + made + pickled + pickle.BUILD + pickle.STOP)


def together(*columns):
    """What each row's opcodes in all columns are, one after the other. columns: arrays, or bytes for every row."""
    parts = [_scalar(column) if isinstance(column, bytes) else column for column in columns]
    return pc.binary_join_element_wise(*parts, _scalar(b""))


def strings(values):
    """Opcodes of an Arrow array of strings."""
    sizes, _ = bytes_of(values)
    short = sizes.max(initial=0) < 1 << 8
    begin = partial(_fixed, pickle.SHORT_BINUNICODE, "u1") if short else partial(_fixed, pickle.BINUNICODE, "<u4")
    return together(begin(sizes), values.cast(_OPCODES))


def floats(values):
    """Opcodes of (n,) float64."""
    return _fixed(pickle.BINFLOAT, ">f8", values)


def integers(values):
    """Opcodes of (n,) int64."""
    if len(values) and max(values.max(), ~values.min()) >= 1 << 31:
        return _fixed(_LARGE_INTEGER, "<i8", values)
    return _fixed(pickle.BININT, "<i4", values)


def lists(elements, bounds):
    """Opcodes of lists, of which number i holds the elements bounds[i] to bounds[i + 1]. bounds: (n + 1,) int64."""
    return together(pickle.EMPTY_LIST + pickle.MARK, _joined(elements, bounds), pickle.APPENDS)


def dicts(keys, values, bounds):
    """As `lists`, of dicts."""
    return together(pickle.EMPTY_DICT + pickle.MARK, _joined(together(keys, values), bounds), pickle.SETITEMS)


def records(**columns):
    """Opcodes of dicts with a value of each column, by these names."""
    items = [part for name, column in columns.items() for part in (_constant(name), column)]
    return together(pickle.EMPTY_DICT + pickle.MARK, *items, pickle.SETITEMS)


def pairs(first, second):
    """Opcodes of tuples of two."""
    return together(first, second, pickle.TUPLE2)


def _joined(elements, bounds):
    return pc.binary_join(pa.LargeListArray.from_arrays(positions(bounds), elements), _scalar(b""))


def _scalar(opcodes):
    return pa.scalar(opcodes, _OPCODES)


def _constant(text):
    return pickle.SHORT_BINUNICODE + bytes([len(text.encode())]) + text.encode()


def _fixed(opcode, dtype, values):
    """An opcode before each value, which takes as many bytes as any other."""
    found = np.empty(len(values), [("opcode", "V", len(opcode)), ("value", dtype)])
    found["opcode"], found["value"] = np.void(opcode), values
    width = pa.binary(found.dtype.itemsize)
    return pa.Array.from_buffers(width, len(found), [None, pa.py_buffer(found.view(np.uint8))]).cast(_OPCODES)

"""A .npy file of NumPy: an (n, d) array."""

import numpy as np

from neardup import NeardupError
from neardup.input.formats import Vectors, is_vector_dtype, rows_at_once
from neardup.input.layout import npy_layout
from neardup.machine.files import npy_rows
from neardup.machine.npy import UNREADABLE
from neardup.words import first_line

_LEAVE = ", or leave the file out with shard_pattern"


def describe(path, _name=None):
    """Its `Vectors`, from its header, compared with the file's size; allocates nothing."""
    try:
        layout = npy_layout(path)
    except UNREADABLE as error:
        reason = first_line(error)
        raise NeardupError(f"{path} is not a .npy file ({reason}): write it with numpy.save") from error
    check(path, layout)
    expected = layout.offset + layout.shape[0] * layout.shape[1] * layout.dtype.itemsize
    if path.stat().st_size != expected:
        raise NeardupError(
            f"{path} has {path.stat().st_size} bytes where its header promises {expected}: it is damaged, copy it again"
        )
    return Vectors(*layout.shape, layout.dtype, layout)


def write_kept(path, target, keep):
    """Write a copy with just the rows to keep, of the same dtype and byte order, in C order. keep: (n,) bool.

    Memory: a block. Raises NeardupError as `describe`.
    """
    vectors = describe(path)
    step = rows_at_once(vectors.dim, vectors.dtype)
    with npy_rows(target, (int(np.count_nonzero(keep)), vectors.dim), vectors.dtype) as write:
        for low in range(0, vectors.rows, step):
            high = min(low + step, vectors.rows)
            write(vectors.layout.read(low, high)[keep[low:high]])


def check(path, header):
    """Raises NeardupError where an array is not one of vectors. header: shape and dtype."""
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise NeardupError(f"{path} holds pickled Python objects, which are never loaded: save a float array")
    if not is_vector_dtype(dtype):
        raise NeardupError(f"{path} holds {dtype}, not float16, float32, float64, int8 or uint8: convert it{_LEAVE}")
    if len(shape) != 2 or any(type(n) is not int or n < 0 for n in shape):
        raise NeardupError(f"{path} has shape {shape}, not (rows, values): reshape it to 2-D{_LEAVE}")
    if shape[1] == 0:
        raise NeardupError(f"{path} has rows of no values: write it again")

"""Reading .npy files, also from several threads at once."""

import math
import mmap
import os
import re
import warnings
from threading import Lock
from tokenize import TokenError
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from neardup import NeardupError
from neardup.machine.files import damaged
from neardup.machine.mirror import here

# numpy parses headers with `ast`, which before CPython 3.11.8 fails now and then in two threads at once (gh-106905)
PARSING = Lock()
_HEADER = re.compile(  # of most files that numpy or `files.write_npy` writes: needs no parser, so no lock
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '(<[fiu][248]|\|[ib]1)', 'fortran_order': False, "
    rb"'shape': \((0|[1-9]\d{0,14}),(?: (0|[1-9]\d{0,14}))?\), \} *\n"
)
_HEADER_BYTES = 128  # of one that it knows
# what numpy raises of bad headers; a TypeError of a name that isn't text, which it would sort among those that are
UNREADABLE = ValueError, TypeError, EOFError, SyntaxError, TokenError, MemoryError, RecursionError, OverflowError


class Header(NamedTuple):
    """What a .npy file says of itself; offset is that of its data, in bytes."""

    shape: tuple
    fortran_order: bool
    dtype: np.dtype
    offset: int


def read_header(path):
    """As `header_of`, of a .npy file."""
    with here(path).open("rb") as file:
        return header_of(file)


def header_of(file):
    """The header of an open .npy file. Raises ValueError, EOFError or a parser's error where it is none."""
    at, start = file.tell(), file.read(_HEADER_BYTES)
    if known := _HEADER.fullmatch(start):
        dtype, *shape = known.groups()
        return Header(tuple(int(s) for s in shape if s), False, np.dtype(dtype.decode()), at + _HEADER_BYTES)
    file.seek(at)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a header that Python 2 wrote, which numpy reads as well
        return Header(*read(file), file.tell())


def read_npy(path):
    """A whole .npy file of ours as an array. Raises NeardupError where it is damaged."""
    try:
        with here(path).open("rb") as file:
            header = header_of(file)
            if header.dtype.hasobject:
                raise ValueError("it holds objects")
            values = np.fromfile(file, header.dtype, math.prod(header.shape))
            return values.reshape(header.shape, order="F" if header.fortran_order else "C")
    except UNREADABLE as error:
        raise damaged(path, error) from error


def read_npz(path):
    """{name: array} of an .npz file of ours. Raises NeardupError where it is damaged."""
    try:
        with np.load(here(path), allow_pickle=False) as file:
            return dict(file)
    except (*UNREADABLE, BadZipFile, KeyError) as error:
        raise damaged(path, error) from error


def rows_in(paths):
    """How many rows some .npy files have together."""
    return sum(read_header(path).shape[0] for path in paths)


def map_npy(path):
    """A .npy file of ours as a read-only array, memory-mapped: what is touched counts as memory while it is held.

    Raises NeardupError where it is damaged.
    """
    try:
        header = read_header(path)
        return map_array(path, header.dtype, header.offset, header.shape, header.fortran_order)
    except _EndsEarlyError as error:
        raise damaged(path, "it ends early") from error
    except UNREADABLE as error:
        raise damaged(path, error) from error


def read_array(path, dtype, offset, shape):
    """Some values of a file as an array, with nothing read ahead. offset: bytes, if there are values.

    Raises NeardupError where it ends early.
    """
    array = np.empty(shape, dtype)
    if not array.size:
        return array
    with here(path).open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(offset)
        rest = memoryview(array.reshape(-1).view(np.uint8))
        while rest:
            count = file.readinto(rest)
            if not count:
                raise damaged(path, "it ends early")
            rest = rest[count:]
    return array


def read_records(path, offset, places, out):
    """Some records of a file, one by one: where they lie far apart, quicker than to map what is between them.

    offset: bytes into the file where the first record lies; places: (p,) int, ascending; out: (p, k), a record a row.
    Raises NeardupError where the file ends early, as one does that another program writes.
    """
    size, rows = out.strides[0], memoryview(out.reshape(-1).view(np.uint8))
    read_ahead(path, offset, size, places)
    with here(path).open("rb", buffering=0) as file:
        for start, at in enumerate((offset + places * size).tolist()):
            if os.preadv(file.fileno(), [rows[start * size : (start + 1) * size]], at) < size:
                raise _shorter(path)


class _EndsEarlyError(NeardupError):
    """A file ends before its header says: one of the input was cut while it was read, one of ours is damaged."""


def _shorter(path):
    return _EndsEarlyError(f"{path} has become shorter while it was read: mend it, then run the scripts again")


def read_ahead(path, offset, size, places):
    """Ask the system for some things of a file that soon are read here and there, all at once, not each in turn.

    offset: bytes into the file where the first thing lies; size: bytes of one; places: (p,) int, ascending.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    first = (offset + places * size) // mmap.PAGESIZE
    last = (offset + (places + 1) * size - 1) // mmap.PAGESIZE
    breaks = np.nonzero(first[1:] > last[:-1] + 1)[0] + 1
    starts, stops = first[np.r_[0, breaks]], last[np.r_[breaks - 1, len(last) - 1]] + 1
    with here(path).open("rb") as file:
        for start, stop in zip((starts * mmap.PAGESIZE).tolist(), (stops * mmap.PAGESIZE).tolist(), strict=True):
            os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)


def map_array(path, dtype, offset, shape, fortran_order=False, here_and_there=False):
    """Some values of a file as a read-only array, memory-mapped, in a tenth of numpy.memmap's time. offset: bytes.

    here_and_there: just some will be looked at, so nothing is read ahead. Raises NeardupError where it ends early.
    """
    count = math.prod(shape)
    if not count:
        return np.empty(shape, dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with here(path).open("rb") as file:
        length = offset - start + count * dtype.itemsize
        if os.fstat(file.fileno()).st_size < start + length:
            raise _shorter(path)
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
        if here_and_there and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype, count, offset - start).reshape(shape, order="F" if fortran_order else "C")

"""A .npz file of NumPy, as DataComp has it: an (n, d) array of several, such as `l14_img`; others may be columns."""

import lzma
import math
import shutil
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np

from neardup import NeardupError
from neardup.input.formats import Vectors, rows_at_once, the_one
from neardup.input.formats.npy import check
from neardup.input.layout import Layout
from neardup.machine.files import atomic, is_of_system
from neardup.machine.npy import UNREADABLE, header_of

# what zipfile raises of damaged files
_DAMAGED = zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError
_LOCAL_HEADER = 30  # bytes of a ZIP file's local header, before a name and an extra field (APPNOTE 4.3.7)


def describe(path, name=None):
    """The `Vectors` of an array; of one that isn't compressed also where they lie."""
    with _opened(path) as archive:
        member = _member(path, archive, name)
        with archive.open(member) as file:
            header = header_of(file)
    check(f"{path} ({member.filename})", header)
    layout = None
    if member.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(member.header_offset)
            local = file.read(_LOCAL_HEADER)
        skipped = _LOCAL_HEADER + sum(np.frombuffer(local[26:30], "<u2").tolist())
        offset = member.header_offset + skipped + header.offset
        layout = Layout(path, header.shape, header.dtype, offset, fortran_order=header.fortran_order)
    elif header.fortran_order:
        raise NeardupError(f"{path} ({member.filename}) is compressed and Fortran-ordered: save it in C order")
    size = header.offset + header.shape[0] * header.shape[1] * header.dtype.itemsize
    if size != member.file_size:
        raise NeardupError(
            f"{path} ({member.filename}) has {member.file_size} bytes where its header promises {size}: it is damaged, "
            "copy it again"
        )
    return Vectors(*header.shape, header.dtype, layout)


def blocks(path, name=None):
    """Yield the vectors of a compressed array."""
    with _opened(path) as archive:
        yield from _rows(path, archive, _member(path, archive, name))


def vector_names(path):
    """The names of the arrays that may be the vectors."""
    with _opened(path) as archive:
        return _vector_names(_arrays(path, archive))


def column_headers(path):
    """{name: its `Header`} of the one-dimensional arrays, in their order."""
    with _opened(path) as archive:
        return {name: header for name, (header, _) in _arrays(path, archive).items() if len(header.shape) == 1}


def column_blocks(path, name):
    """Yield the values of a one-dimensional array, which are no Python objects."""
    with _opened(path) as archive:
        yield from _rows(path, archive, _arrays(path, archive)[name][1])


def _rows(path, archive, member):
    """Yield an array in C order some rows at a time, as stored."""
    with archive.open(member) as file:
        header = header_of(file)
        n, *others = header.shape
        record = math.prod(others)
        step = rows_at_once(record, header.dtype)
        for start in range(0, n, step):
            count = min(step, n - start)
            with _undamaged(f"{path} is damaged", "copy"):
                values = np.frombuffer(file.read(count * record * header.dtype.itemsize), header.dtype)
                values = values.reshape(count, *others)
            yield values


def write_kept(path, target, keep):
    """Write a copy with just the rows to keep of every array of n rows; the others, and compression, as they are.

    keep: (n,) bool. Memory: a block, or a column of an array in Fortran order. Raises NeardupError where such an array
    holds Python objects, or the file is damaged.
    """
    damaged = _undamaged(f"{path} is damaged", "copy")
    with damaged, _opened(path) as archive, atomic(target) as temporary, zipfile.ZipFile(temporary, "w") as copy:
        for member in archive.infolist():
            info = zipfile.ZipInfo(member.filename, member.date_time)
            info.compress_type, info.external_attr = member.compress_type, member.external_attr
            with archive.open(member) as file, copy.open(info, "w", force_zip64=True) as out:
                header = header_of(file) if member.filename.endswith(".npy") else None
                if header and header.shape[:1] == keep.shape:
                    _write_rows(f"{path} ({member.filename})", header, file, out, keep=keep)
                else:
                    file.seek(0)
                    shutil.copyfileobj(file, out)


def _write_rows(what, header, file, out, *, keep):
    """Copy an array from one file to another, just the rows to keep. what: of an error; keep: (n,) bool."""
    if header.dtype.hasobject:
        raise NeardupError(f"{what} holds pickled Python objects, which are never loaded: save strings or numbers")
    (n, *others), item = header.shape, header.dtype.itemsize
    descr = np.lib.format.dtype_to_descr(header.dtype)
    found = {"descr": descr, "fortran_order": header.fortran_order, "shape": (int(np.count_nonzero(keep)), *others)}
    np.lib.format.write_array_header_1_0(out, found)
    count, record = (math.prod(others), n * item) if header.fortran_order else (n, math.prod(others) * item)
    step = rows_at_once(record, np.dtype(np.uint8))
    for low in range(0, count, step):
        high = min(low + step, count)
        records = np.frombuffer(file.read((high - low) * record), np.uint8)
        if header.fortran_order:  # a record is a column, of all rows
            out.write(records.reshape(high - low, n, item)[:, keep].tobytes())
        else:
            out.write(records.reshape(high - low, record)[keep[low:high]].data)


@contextmanager
def _undamaged(what, advice):
    """Where a file turns out to be damaged, a NeardupError."""
    try:
        yield
    except (OSError, *UNREADABLE, *_DAMAGED) as error:
        if is_of_system(error):
            raise
        raise NeardupError(f"{what} ({error}): {advice} it again") from error


def _opened(path):
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise NeardupError(f"{path} is not a .npz file ({error}): write it with numpy.savez") from error


def _member(path, archive, name):
    """The entry of the array of this name."""
    arrays = _arrays(path, archive)
    return arrays[the_one(path, name, _vector_names(arrays), "array")][1]


def _vector_names(arrays):
    return [name for name, (header, _) in arrays.items() if len(header.shape) == 2]


def _arrays(path, archive):
    """{name: (its `Header`, its entry)} of all arrays."""
    found = {}
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            continue
        with _undamaged(f"{path} ({member.filename}) can't be read", "write"), archive.open(member) as file:
            found[member.filename.removesuffix(".npy")] = header_of(file), member
    return found

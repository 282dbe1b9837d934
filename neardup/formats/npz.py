"""A .npz file of NumPy, as DataComp has it: an (n, d) array of several, such as `l14_img`."""

import zipfile

import numpy as np

from neardup import NeardupError
from neardup.formats import Vectors, block_rows, the_one
from neardup.formats.npy import check
from neardup.layout import Layout
from neardup.npy import UNREADABLE, header_of

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
            f"{path} ({member.filename}) has {member.file_size} bytes where its header promises {size}: it is damaged"
        )
    return Vectors(*header.shape, header.dtype, layout)


def blocks(path, name=None):
    """Yield the vectors of a compressed array."""
    with _opened(path) as archive, archive.open(_member(path, archive, name)) as file:
        header = header_of(file)
        step = block_rows(header.shape[1], header.dtype)
        for start in range(0, header.shape[0], step):
            count = min(step, header.shape[0] - start)
            values = np.frombuffer(file.read(count * header.shape[1] * header.dtype.itemsize), header.dtype)
            yield values.reshape(count, header.shape[1])


def _opened(path):
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise NeardupError(f"{path} is not a .npz file ({error}): write it with numpy.savez") from error


def _member(path, archive, name):
    """The entry of the array of this name."""
    shapes = {}
    for member in archive.infolist():
        try:
            with archive.open(member) as file:
                shapes[member.filename.removesuffix(".npy")] = header_of(file).shape, member
        except (*UNREADABLE, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise NeardupError(f"{path} ({member.filename}) can't be read ({error}): write it again") from error
    found = [n for n, (shape, _) in shapes.items() if len(shape) == 2]
    return shapes[the_one(path, name, found, "array")][1]

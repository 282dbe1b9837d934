"""An HDF5 file, as ann-benchmarks has it: a two-dimensional data set, such as `train`."""

import h5py

from neardup import NeardupError
from neardup.formats import Vectors, block_rows, is_vector_dtype, the_one
from neardup.layout import Layout


def describe(path, name=None):
    """The `Vectors` of a data set; of one that lies in one piece also where."""
    with opened(path) as file:
        data = file[_name(path, file, name)]
        if data.shape[1] == 0:
            raise NeardupError(f"{path} ({data.name}) has rows of no values: write it again")
        offset, layout = data.id.get_offset(), None
        plain = data.chunks is None and data.external is None and not data.is_virtual
        if plain and offset is not None:
            layout = Layout(path, data.shape, data.dtype, offset)
            if offset + data.size * data.dtype.itemsize > path.stat().st_size:
                raise NeardupError(f"{path} ({data.name}) is cut off: it is damaged, copy it again")
        return Vectors(*data.shape, data.dtype, layout)


def blocks(path, name=None):
    """Yield the vectors of a data set."""
    with opened(path) as file:
        data = file[_name(path, file, name)]
        step = block_rows(data.shape[1], data.dtype)
        for start in range(0, len(data), step):
            yield data[start : start + step]


def opened(path):
    """The file. Raises NeardupError where it is none."""
    try:
        return h5py.File(path)
    except OSError as error:
        if error.errno:
            raise
        raise NeardupError(f"{path} is not an HDF5 file ({error}): write it with h5py") from error


def _name(path, file, name):
    found = []
    file.visititems(lambda n, o: found.append(n) if _is_vectors(o) else None)
    return the_one(path, name, found, "data set")


def _is_vectors(item):
    return isinstance(item, h5py.Dataset) and item.ndim == 2 and is_vector_dtype(item.dtype)

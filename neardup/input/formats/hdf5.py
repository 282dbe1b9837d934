"""An HDF5 file, as ann-benchmarks has it: a two-dimensional data set, such as `train`."""

import math
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from neardup import NeardupError
from neardup.input.formats import Vectors, is_vector_dtype, rows_at_once, the_one
from neardup.input.formats.npy import check
from neardup.input.layout import Layout
from neardup.machine.files import hdf5, is_of_system

_ROWS = 1 << 16  # of a block at most: of a string just its pointer counts as its size


def describe(path, name=None):
    """The `Vectors` of a data set; of one that lies in one piece also where."""
    with opened(path) as file:
        data = _vectors(path, file, name)
        if data.shape[1] == 0:
            raise NeardupError(f"{path} ({data.name}) has rows of no values: write it again")
        offset, layout = data.id.get_offset(), None
        plain = data.chunks is None and data.external is None and not data.is_virtual
        plain &= data.id.get_type().equal(h5py.h5t.py_create(data.dtype))  # else NumPy has just a similar one
        if plain and offset is not None:
            layout = Layout(path, data.shape, data.dtype, offset)
            if offset + data.size * data.dtype.itemsize > path.stat().st_size:
                raise NeardupError(f"{path} ({data.name}) is cut off: it is damaged, copy it again")
        return Vectors(*data.shape, data.dtype, layout)


def blocks(path, name=None):
    """Yield the vectors of a data set."""
    with opened(path) as file:
        data = _vectors(path, file, name)
        step = rows_at_once(data.shape[1], data.dtype)
        for start in range(0, len(data), step):
            yield data[start : start + step]


def vector_names(path):
    """The names of the data sets that may be the vectors."""
    with opened(path) as file:
        return [n for n in _matrices(file) if is_vector_dtype(file[n].dtype)]


def others(path, name=None):
    """Paths of other files that hold values of a data set. Raises NeardupError where one is missing: read as zeros."""
    with opened(path) as file:
        data = _vectors(path, file, name)
        names = dict.fromkeys(source.file_name for source in data.virtual_sources()) if data.is_virtual else ()
        names = [name for name in names if name != "." and "%" not in name]  # not this one, nor a pattern of names
        found = [path.parent / name for name in names]
        found += [Path(name) for name, *_ in data.external or ()]  # where the script was started, if relative
    for missing in (p for p in found if not p.is_file()):
        raise NeardupError(f"{path} has values in {missing}, which is not there: put it there")
    return found


def write_kept(path, target, keep):
    """Write a copy with just the rows to keep of every data set whose first dimension is n; all else as it is.

    keep: (n,) bool. Types, chunks, filters and attributes stay, but for attributes that are references to objects,
    which mean nothing in another file. Memory: a block; of variable-length values 65,536 rows. Raises NeardupError
    where such a data set holds references.
    """
    with opened(path) as source, hdf5(target) as copy:
        _copy_group(source, copy, keep, {})


def _copy_group(source, copy, keep, copied):
    """Copy what is in a group. copied: {object: its copy}, for an object may have several names."""
    copied[source] = copy
    _copy_attributes(source, copy)
    for name in source:
        link = source.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            copy[name] = link
            continue
        item = source[name]
        if item in copied:
            copy[name] = copied[item]
        elif isinstance(item, h5py.Group):
            _copy_group(item, copy.create_group(name), keep, copied)
        elif isinstance(item, h5py.Dataset) and item.shape and item.shape[0] == len(keep):
            copied[item] = copy[name] = _created(item, copy, int(np.count_nonzero(keep)))
            _copy_attributes(item, copied[item])
            _copy_rows(item, copied[item], keep)
        else:
            source.copy(item, copy, name=name)
            copied[item] = copy[name]


def _copy_attributes(source, copy):
    for name in map(str.encode, source.attrs):
        attribute = h5py.h5a.open(source.id, name)
        kind, space = attribute.get_type(), attribute.get_space()
        if not kind.detect_class(h5py.h5t.REFERENCE):
            new = h5py.h5a.create(copy.id, name, kind.copy(), space)
            if space.get_simple_extent_type() != h5py.h5s.NULL:
                value = np.empty(attribute.shape, attribute.dtype)
                attribute.read(value)
                new.write(value)


def _created(source, group, rows):
    """A data set like another, of so many rows, that has no name yet."""
    kind, shape, properties = source.id.get_type().copy(), (rows, *source.shape[1:]), source.id.get_create_plist()
    if kind.detect_class(h5py.h5t.REFERENCE):
        raise NeardupError(f"{source.file.filename} ({source.name}) holds references to objects: leave it out")
    most = (source.maxshape[0] and rows, *source.maxshape[1:])
    if source.external or source.is_virtual:  # its values lie in other files, to which the copy's must not be written
        properties, most = h5py.h5p.create(h5py.h5p.DATASET_CREATE), shape
    elif source.chunks and most[0]:
        properties.set_chunk((min(source.chunks[0], rows), *source.chunks[1:]))
    properties.set_obj_track_times(False)  # two copies are the same bytes
    space = h5py.h5s.create_simple(shape, tuple(h5py.h5s.UNLIMITED if m is None else m for m in most))
    return h5py.Dataset(h5py.h5d.create(group.id, None, kind, space, properties))


def _copy_rows(source, copy, keep):
    record, at = math.prod(source.shape[1:]), 0
    step = min(_ROWS, rows_at_once(record, source.dtype))
    for low in range(0, len(keep) if record else 0, step):
        rows = source[low : low + step][keep[low : low + step]]
        if len(rows):
            copy.write_direct(rows, dest_sel=np.s_[at : at + len(rows)])
        at += len(rows)


@contextmanager
def opened(path):
    """Yield the file. Raises NeardupError where it is none, or what is read of it is damaged."""
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        if is_of_system(error):
            raise
        raise NeardupError(f"{path} is no HDF5 file that can be read ({error}): write it with h5py") from error


def _vectors(path, file, name):
    """The data set. Raises NeardupError where it lies in another file: this one's just links to it."""
    data = file[_name(path, file, name)]
    if data.file.filename != file.filename:
        raise NeardupError(f"{path} links to {data.file.filename} ({data.name}): set data_dir to that file")
    return data


def _name(path, file, name):
    name = name and name.strip("/")
    if name and _is_vectors(file.get(name)):
        return name
    matrices = _matrices(file)
    found = [n for n in matrices if is_vector_dtype(file[n].dtype)]
    for wrong in (n for n in matrices if n == name or not (name or found)):
        check(f"{path} ({wrong})", file[wrong])
    return the_one(path, name, found, "data set")


def _matrices(file):
    """The names of the data sets of numbers in two dimensions, by whatever groups they are in."""
    found = []
    file.visititems(lambda n, o: found.append(n) if _is_matrix(o) else None)
    return found


def _is_matrix(item):
    return isinstance(item, h5py.Dataset) and item.ndim == 2 and item.dtype.kind in "iuf"


def _is_vectors(item):
    return _is_matrix(item) and is_vector_dtype(item.dtype)

"""Which module reads and copies a file: by the end of its name."""

from neardup.input.formats import flat, hdf5, npy, npz, tables, vecs

MODULES = {".npy": npy, ".npz": npz, ".hdf5": hdf5, ".h5": hdf5, ".index": flat, ".faiss": flat}
MODULES |= dict.fromkeys(vecs.DTYPES, vecs) | dict.fromkeys((".arrow", ".feather", ".parquet"), tables)


def describe(path, name):
    """The `Vectors` of a file."""
    return MODULES[path.suffix].describe(path, name)


def vector_names(path):
    """The names of what may be the vectors of a file; of one that holds nothing else none."""
    module = MODULES[path.suffix]
    return module.vector_names(path) if module in (npz, hdf5, tables) else []


def blocks(path, name, allow_missing=False):
    """Yield the vectors of a file that have to be decoded. allow_missing: NaN stands for those that a table lacks."""
    module = MODULES[path.suffix]
    return tables.blocks(path, name, allow_missing) if module is tables else module.blocks(path, name)


def others(path, name):
    """Paths of other files that hold some of a file's vectors."""
    return hdf5.others(path, name) if MODULES[path.suffix] is hdf5 else []


def write_kept(path, target, keep):
    """Write a copy of a file with just the rows to keep, in its own format. keep: (n,) bool."""
    MODULES[path.suffix].write_kept(path, target, keep)

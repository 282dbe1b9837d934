"""A flat index of FAISS, IndexFlat or an IndexIDMap of one: its vectors, reconstructed block by block."""

import numpy as np

from neardup import NeardupError
from neardup.formats import Vectors, block_rows


def describe(path, _name=None):
    """Its `Vectors`."""
    _owner, index = _flat(path)
    if not index.ntotal:
        raise NeardupError(f"{path} holds no vectors: leave it out")
    return Vectors(index.ntotal, index.d, np.dtype(np.float32))


def blocks(path, _name=None):
    """Yield its vectors."""
    _owner, index = _flat(path)
    step = block_rows(index.d, np.dtype(np.float32))
    for start in range(0, index.ntotal, step):
        yield index.reconstruct_n(start, min(step, index.ntotal - start))


def id_map(path):
    """The ids of an IndexIDMap, (n,) int64; None of another index."""
    import faiss

    _owner, index = _read(path)
    return faiss.vector_to_array(index.id_map) if isinstance(index, faiss.IndexIDMap) else None


def _read(path):
    """The index, memory-mapped, and itself as what it is: the latter is only there as long as the former."""
    import faiss

    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split("Error: ")[-1]
        raise NeardupError(f"{path} is not an index of FAISS ({reason}): write it with faiss.write_index") from error
    return index, faiss.downcast_index(index)


def _flat(path):
    """An index, and the flat one that it is or that it gives other ids."""
    import faiss

    owner, index = _read(path)
    if isinstance(index, faiss.IndexIDMap):
        index = faiss.downcast_index(index.index)
    if not isinstance(index, faiss.IndexFlat):
        raise NeardupError(f"{path} holds an {type(index).__name__}, not a flat index: its vectors aren't as they were")
    return owner, index

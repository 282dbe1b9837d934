"""A flat index of FAISS, IndexFlat or an IndexIDMap of one: its vectors, reconstructed block by block."""

import numpy as np

from neardup import NeardupError
from neardup.input.formats import Vectors, rows_at_once
from neardup.machine.files import atomic
from neardup.words import first_line


def describe(path, _name=None):
    """Its `Vectors`."""
    _owner, index = _flat(path)
    if not index.ntotal:
        raise NeardupError(f"{path} holds no vectors: leave it out")
    return Vectors(index.ntotal, index.d, np.dtype(np.float32))


def blocks(path, _name=None):
    """Yield its vectors."""
    _owner, index = _flat(path)
    step = rows_at_once(index.d, np.dtype(np.float32))
    for start in range(0, index.ntotal, step):
        yield index.reconstruct_n(start, min(step, index.ntotal - start))


def write_kept(path, target, keep):
    """Write an index of just the vectors to keep, of the same metric, with their ids if it has any. keep: (n,) bool.

    Memory: the vectors that are kept, up to three times while the index grows, for FAISS has no other way to write one.
    """
    import faiss

    (_outer_owner, outer), (_owner, index), ids = _read(path), _flat(path), id_map(path)
    copy = faiss.IndexFlat(index.d, index.metric_type)
    copy.metric_arg, start = index.metric_arg, 0
    if ids is not None:
        copy = type(outer)(copy)
    for block in blocks(path):
        here = keep[start : start + len(block)]
        if ids is None:
            copy.add(block[here])
        else:
            copy.add_with_ids(block[here], ids[start : start + len(block)][here])
        start += len(block)
    with atomic(target) as temporary, temporary.open("wb") as file:
        faiss.write_index(copy, faiss.PyCallbackIOWriter(file.write))  # its own writer doesn't tell if closing fails


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
        reason = first_line(error).split("Error: ")[-1]
        raise NeardupError(f"{path} is not an index of FAISS ({reason}): write it with faiss.write_index") from error
    return index, faiss.downcast_index(index)


def _flat(path):
    """An index, and the flat one that it is or that it gives other ids."""
    import faiss

    owner, outer = _read(path)
    index = faiss.downcast_index(outer.index) if isinstance(outer, faiss.IndexIDMap) else outer
    if type(index) not in (faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP):  # nor what is made of them
        raise NeardupError(
            f"{path} holds an {type(index).__name__}, not a flat index, the only kind that is read: write its vectors "
            "as a .npy file"
        )
    empty, record = faiss.IndexFlat(index.d, index.metric_type), 4 * index.d
    if index is not outer:
        empty, record = type(outer)(empty), record + 8
    expected = faiss.serialize_index(empty).nbytes + index.ntotal * record
    if path.stat().st_size != expected:  # what is mapped beyond its end would be zeros
        raise NeardupError(f"{path} has {path.stat().st_size} bytes, not {expected}: it is damaged, copy it again")
    return owner, index

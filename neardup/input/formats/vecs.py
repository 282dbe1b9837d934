"""Plain binary files of vectors: .fvecs and .bvecs of TEXMEX, .fbin, .u8bin and .i8bin of big-ann-benchmarks.

The former repeat the number of values, a little-endian int32, before each row (corpus-texmex.irisa.fr); the latter
begin with the numbers of rows and of values, two little-endian uint32 (big-ann-benchmarks.com).
"""

import numpy as np

from neardup import NeardupError
from neardup.input.formats import Vectors, rows_at_once
from neardup.input.layout import Layout
from neardup.machine.files import atomic

DTYPES = {".fvecs": "<f4", ".bvecs": "u1", ".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1"}


def describe(path, _name=None):
    """Its `Vectors`, and where they lie."""
    dtype, size = np.dtype(DTYPES[path.suffix]), path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
    if path.suffix.endswith("vecs"):
        if size == 0:
            raise NeardupError(f"{path} is empty, so the number of its values isn't known: leave it out")
        dim = int.from_bytes(head[:4], "little", signed=True)
        record = 4 + dim * dtype.itemsize
        if dim < 1 or size % record:
            raise NeardupError(
                f"{path} has {size} bytes, which are no rows of {dim} values: it is damaged, copy it again"
            )
        return Vectors(size // record, dim, dtype, Layout(path, (size // record, dim), dtype, lead=4))
    rows, dim = np.frombuffer(head.ljust(8, b"\0"), "<u4").tolist()
    if dim < 1 or size != 8 + rows * dim * dtype.itemsize:
        raise NeardupError(
            f"{path} has {size} bytes, which are no {rows} rows of {dim} values: it is damaged, copy it again"
        )
    return Vectors(rows, dim, dtype, Layout(path, (rows, dim), dtype, offset=8))


def write_kept(path, target, keep):
    """Write a copy with just the rows to keep. keep: (n,) bool. Memory: a block, twice.

    Raises NeardupError as `describe`, and where a row is not of as many values as the first.
    """
    vectors = describe(path)
    step, is_led = rows_at_once(vectors.dim, vectors.dtype), vectors.layout.lead > 0
    with atomic(target) as temporary, temporary.open("wb") as file:
        if not is_led:
            file.write(np.array([np.count_nonzero(keep), vectors.dim], "<u4").tobytes())
        for low in range(0, vectors.rows, step):
            high = min(low + step, vectors.rows)
            rows = np.ascontiguousarray(vectors.layout.read(low, high)[keep[low:high]]).view(np.uint8)
            leads = np.full((len(rows), 1), vectors.dim, "<i4").view(np.uint8)
            file.write(np.hstack([leads, rows]) if is_led else rows)

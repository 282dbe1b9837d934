"""What embeddings come in: a module a format, which knows its files by the library that owns the format.

Each has `describe(path, name)`, which returns `Vectors` without reading them, and, where they may have to be decoded,
`blocks(path, name)`, which yields them in order, (r, d) as stored; name: which of several (a column, an array, a data
set), or None; where a file may hold several, `vector_names(path)`, their names. `write_kept` copies a file with just
some of its rows.
"""

from typing import NamedTuple

import numpy as np

from neardup import NeardupError
from neardup.input.layout import Layout

NAMES = "embeddings", "embedding", "vectors", "vector", "emb", "features", "train", "l14_img", "b32_img"
BLOCK_BYTES = 1 << 24  # of vectors that are decoded together


class Vectors(NamedTuple):
    """The vectors of a file: how many, of how many values; where they lie, or None if they have to be decoded."""

    rows: int
    dim: int
    dtype: np.dtype
    layout: Layout | None = None


def rows_at_once(dim, dtype):
    """Rows that are decoded together."""
    return max(1, BLOCK_BYTES // max(1, dim * dtype.itemsize))


def the_one(path, name, found, kind):
    """The name of the vectors of a file that may hold several: as set, or the best known, or the only one.

    found: names; kind: what they are, for the NeardupError where it isn't clear.
    """
    listed = ", ".join(map(str, found)) or "none"
    if name is not None and name in found:
        return name
    known = [n for n in NAMES if n in found] or found
    if name is not None or not known:
        wanted = "" if name is None else f" {name!r}"
        raise NeardupError(f"{path} has no {kind}{wanted} of vectors (there are: {listed}): set vectors to its name")
    if len(known) > 1 and known[0] not in NAMES:
        raise NeardupError(f"{path} has several {kind}s of vectors ({listed}): set vectors to the name of one")
    return known[0]


def is_vector_dtype(dtype):
    """Whether values of a NumPy dtype can be a vector's: floats of 16, 32 or 64 bits, integers of 8."""
    return (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or (dtype.kind in "iu" and dtype.itemsize == 1)

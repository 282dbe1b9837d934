"""The pairs on disk: read in blocks, in their order."""

import h5py
import numpy as np

PAIR = np.dtype([("row_a", "<i8"), ("row_b", "<i8"), ("similarity", "<f8")])
_BLOCK = 1 << 20  # pairs read together: 24 MB


def read_pairs(path):
    """Yield the pairs of neighbors.h5 as (p,) PAIR arrays, in order. Memory: 24 MB."""
    with h5py.File(path) as file:
        for start in range(0, len(file["row_a"]), _BLOCK):
            columns = {name: file[name][start : start + _BLOCK] for name in PAIR.names}
            pairs = np.empty(len(columns["row_a"]), dtype=PAIR)
            for name, values in columns.items():
                pairs[name] = values
            yield pairs

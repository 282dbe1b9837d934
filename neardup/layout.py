"""Where the rows of a file lie, so that they can be memory-mapped."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from neardup import NeardupError
from neardup.npy import map_array, read_header


class Layout(NamedTuple):
    """Records of a file that hold a row each: some bytes (`lead`), then its values.

    shape: (rows, values); offset: bytes before the first record. In Fortran order there is one record, of columns.
    """

    path: Path
    shape: tuple
    dtype: np.dtype
    offset: int = 0
    lead: int = 0
    fortran_order: bool = False

    def read(self, low, high, here_and_there=False):
        """Rows low to high as a read-only view (high - low, d). Raises NeardupError where their leads differ.

        here_and_there: as of `map_array`.
        """
        rows, dim = self.shape
        if self.fortran_order:  # columns follow each other: any row needs the whole file mapped
            return map_array(self.path, self.dtype, self.offset, (rows, dim), fortran_order=True)[low:high]
        record = self.lead + dim * self.dtype.itemsize
        start = self.offset + low * record
        if not self.lead:
            return map_array(self.path, self.dtype, start, (high - low, dim), here_and_there=here_and_there)
        records = map_array(self.path, np.dtype(np.uint8), start, (high - low, record), here_and_there=here_and_there)
        first = map_array(self.path, np.dtype(np.uint8), self.offset, (1, self.lead))
        odd = np.nonzero((records[:, : self.lead] != first).any(axis=1))[0]
        if len(odd):
            raise NeardupError(f"{self.path}: row {low + odd[0]} is not of {dim} values like the first: mend the file")
        return records[:, self.lead :].view(self.dtype)


def npy_layout(path):
    """That of a .npy file. Raises as `npy.read_header`."""
    header = read_header(path)
    return Layout(path, header.shape, header.dtype, header.offset, fortran_order=header.fortran_order)

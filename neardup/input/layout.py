"""Where the rows of a file lie, so that they can be memory-mapped."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from neardup import NeardupError
from neardup.machine.npy import map_array, read_header, read_records

_FAR_APART = 1 << 16  # bytes a row, as many as the system maps around one that is touched
_WINDOW_BYTES = 1 << 26  # of a file that is mapped at a time while rows are gathered


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

        here_and_there: as in `map_array`.
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

    def gather(self, rows, out, here_and_there=False):
        """Some rows, ascending, into out, (r, d): one by one where they lie far apart, else by windows that are mapped.

        here_and_there: as in `map_array`, and read one by one, too. Memory: a window of 64 MB.
        """
        size = self.shape[1] * self.dtype.itemsize
        apart = here_and_there or (rows[-1] - rows[0]) * size > _FAR_APART * len(rows)
        if apart and out.dtype == self.dtype and not (self.lead or self.fortran_order):
            read_records(self.path, self.offset, rows, out)
            return
        window = max(1, _WINDOW_BYTES // size)
        for some in np.split(np.arange(len(rows)), np.nonzero(np.diff(rows // window))[0] + 1):
            first, last = rows[some[[0, -1]]].tolist()
            out[some[0] : some[-1] + 1] = self.read(first, last + 1, here_and_there)[rows[some] - first]


def npy_layout(path):
    """That of a .npy file. Raises as `npy.read_header`."""
    header = read_header(path)
    return Layout(path, header.shape, header.dtype, header.offset, fortran_order=header.fortran_order)

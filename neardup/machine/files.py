"""Writing files, which appear whole or not at all, whatever fails meanwhile; and reading JSON and CSV."""

import csv
import errno
import json
import math
import os
import shutil
import socket
import zipfile
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np

from neardup import NeardupError
from neardup.machine import mirror
from neardup.words import disk_size

LONGEST_CELL = 2**31 - 1  # characters of a CSV file's; csv's own limit is 131,072
_FORMULA = ("=", "+", "-", "@", '"')  # beginnings of text that isn't written to a CSV file as it is
_NO_LINKS = errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS  # of a file system that has none
_writer = ""  # in names of temporary files: none where this process writes alone, and over what a killed one left


def write_beside_others():
    """From now on this process names its temporary files so that others may be writing the same files."""
    global _writer
    _writer = f"{socket.gethostname()}-{os.getpid()}."


def damaged(path, why="", folder=None):
    """A NeardupError about a file of ours that isn't what it should be. folder: of its stage, where not its own."""
    what = f"{mirror.shown(path)} is damaged" + (f" ({why})" if why else "")
    return NeardupError(f"{what}: remove {mirror.shown(folder or path.parent)} and run the scripts again")


def read_json(path):
    """A JSON object of ours. Raises NeardupError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, "no JSON object")
    return content


@contextmanager
def atomic(path, flush=True, alone=True):
    """Yield a temporary path beside `path`; what is written there appears as `path` whole, or not at all.

    flush: also if the power fails, and where others see it (`neardup.machine.mirror`). alone: it is there from then on;
    whoever writes many files into a folder flushes that once, when all are there.
    """
    temporary = path.with_name(f".{_writer}{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    if flush:
        sync_file(temporary)
        mirror.put(temporary, path)  # first, so that what is here is there
    os.replace(temporary, path)
    if flush and alone:
        sync_folder(path.parent)


def need_room(folder, size, what=""):
    """Raises NeardupError where the disk has no room for so many bytes. what: they are for, as " for copies"."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise NeardupError(
            f"{folder} needs about {disk_size(size)} more{what}, and its disk has {disk_size(free)} free: "
            "make room there, or set another work_dir"
        )


def resolved(path):
    """A path without links; one that leads to itself as it is, where Path.resolve raises RuntimeError."""
    return Path(os.path.realpath(path))


def is_file(path):
    """Whether there is such a file; where a name is too long there is none, and Path.is_file raises OSError."""
    return os.path.isfile(path)  # noqa: PTH113


def link(source, path):
    """Have a finished file under another name, too: the same file, or a copy where the file system has no links.

    Its folder is left to flush, once for all files.
    """
    with atomic(path, flush=False) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, temporary)
            sync_file(temporary)
        mirror.put(temporary, path)


def write_json(path, content, flush=True):
    """Write small values as JSON, whole or not at all. flush: as in `atomic`."""
    with atomic(path, flush) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=_plain) + "\n", encoding="utf-8")


def _plain(value):
    """What JSON knows of another value: a number of NumPy's as one, else a text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def write_json_items(path, items):
    """Write a JSON object of these (name, value), a line each, whole or not at all. Memory: an item."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("{")
        for number, (name, value) in enumerate(items):
            file.write(f"{',' if number else ''}\n{json.dumps(name)}: {json.dumps(value)}")
        file.write("\n}\n")


def read_json_items(path):
    """Yield (name, value as JSON) of what `write_json_items` wrote of names without a colon. Memory: an item."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            name, colon, value = line.partition(": ")
            if colon:
                yield json.loads(name), value.rstrip(",\n")


def is_of_system(error):
    """Whether an error that a library raises is the system's, such as of a full disk, not about what a file holds."""
    return bool(getattr(error, "errno", None))


def write_csv(path, lines):
    """Write lines of cells, the first their names, whole or not at all.

    Text that a spreadsheet would take for a formula is written as a JSON string.
    """
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_cell(c) if isinstance(c, str) else c for c in line] for line in lines)


def read_csv(path):
    """Yield the lines of a CSV file of ours as dicts, text as it was before `write_csv`."""
    csv.field_size_limit(LONGEST_CELL)
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            yield {name: json.loads(cell) if cell.startswith('"') else cell for name, cell in line.items()}


def _cell(text):
    return json.dumps(text, ensure_ascii=False) if text.lstrip().startswith(_FORMULA) else text


def write_npy(path, array, flush=True):
    """Write an array as .npy, whole or not at all. flush: as in `atomic`."""
    array = np.asarray(array, order="C")
    with atomic(path, flush) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)  # numpy's own way hides why it fails


def write_npz(path, **arrays):
    """Write arrays as .npz, whole or not at all, with the same bytes each time: numpy.savez puts the clock in."""
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


@contextmanager
def hdf5(path, alone=True):
    """Yield a new HDF5 file, which appears whole or not at all. alone: as in `atomic`.

    HDF5 can't close a file that it failed to write, and may crash later; so it never learns of a failure, which is
    raised when it is done.
    """
    with atomic(path, alone=alone) as temporary, temporary.open("w+b", buffering=0) as file:
        failing = _Failing(file)
        with h5py.File(failing, "w") as content:
            yield content
        if failing.error:
            raise failing.error


@contextmanager
def opened_data_sets(path, names, folder=None):
    """Yield data sets of an HDF5 file of ours. Raises NeardupError where it is damaged. folder: as in `damaged`."""
    try:
        with h5py.File(mirror.here(path)) as file:
            found = [file.get(name) for name in names]
            if not all(isinstance(item, h5py.Dataset) for item in found):
                raise damaged(path, "no data sets", folder)
            yield found
    except (OSError, RuntimeError) as error:
        if is_of_system(error):
            raise
        raise damaged(path, error, folder) from error


class _Failing:
    """A file for h5py that keeps the first error of a write, after which it writes nothing."""

    def __init__(self, file):
        self.file, self.error = file, None
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def write(self, data):
        return self._unless_failed(lambda: _write_all(self.file, data), len(data))

    def truncate(self, size):
        return self._unless_failed(lambda: self.file.truncate(size), size)

    def flush(self):
        pass  # nothing is buffered, and `atomic` flushes to disk

    def readinto(self, buffer):
        count = self.file.readinto(buffer)
        buffer[count:] = bytes(len(buffer) - count)  # of what was not written
        return len(buffer)

    def _unless_failed(self, act, result):
        if not self.error:
            try:
                act()
            except OSError as error:
                self.error = error
        return result


def _write_all(file, data):
    """Write bytes to an unbuffered file, which may take them in several steps."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def npy_rows(path, shape, dtype="<f4", flush=True, digest=None, cached=True):
    """Yield a function that appends blocks of rows to a .npy file of this shape, which appears when full.

    flush: as in `atomic`. digest: a `Digest` of all that the file holds; cached: whether the system's cache keeps it,
    for whoever reads it soon. Written, not mapped: a full disk then is an error that can be reported, not a signal.
    """
    dtype, header = np.dtype(dtype), BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    with atomic(path, flush) as temporary, temporary.open("wb") as file:

        def write(block):
            values = np.ascontiguousarray(block, dtype=dtype).reshape(-1).view(np.uint8)
            file.write(values.data)
            if digest:
                digest.update(values)

        write(np.frombuffer(header.getvalue(), dtype=dtype))
        yield write
        assert file.tell() == header.tell() + math.prod(shape) * dtype.itemsize
    if not cached and hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_file(path):
    """Flush what a file holds to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path):
    """Flush the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A file system that fails: every operation on a folder can be counted, and any one of them made to fail."""

import io
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

_CALLS = "open", "replace", "rename", "mkdir", "fsync", "unlink", "truncate"


class Faults:
    """Counts the operations on files below a folder; the one of number `fail_at` raises OSError(error)."""

    def __init__(self, folder, fail_at=None, error=None):
        self.folder, self.fail_at, self.error = str(folder), fail_at, error
        self.count, self.names, self.descriptors = 0, [], {}

    def __call__(self, what, path):
        self.names.append((what, Path(path).name))
        self.count += 1
        if self.count - 1 == self.fail_at:
            raise OSError(self.error, os.strerror(self.error), str(path))

    def concerns(self, path):
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)


class _File:
    """A file whose writing may fail; all else is its own."""

    def __init__(self, file, path, faults):
        self._file, self._path, self._faults = file, path, faults

    def write(self, data):
        self._faults("write", self._path)
        return self._file.write(data)

    def truncate(self, *size):
        self._faults("truncate", self._path)
        return self._file.truncate(*size)

    def close(self):
        if not self._file.closed:
            self._file.flush()
            self._file.close()
            self._faults("close", self._path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@contextmanager
def failing(folder, fail_at=None, error=None):
    """Within the block, operations of Python on files below the folder are counted, and one fails. Yields `Faults`."""
    faults, real_open, real = Faults(folder, fail_at, error), io.open, {name: getattr(os, name) for name in _CALLS}

    def open_file(path, mode="r", *arguments, **options):
        if not faults.concerns(path):
            return real_open(path, mode, *arguments, **options)
        faults("open", path)
        file = real_open(path, mode, *arguments, **options)
        return _File(file, path, faults) if {*mode} & {*"wax+"} else file

    def watched(name):
        def call(path, *arguments, **options):
            if name == "fsync":
                faults(name, Path(f"/proc/self/fd/{path}").readlink())
            elif faults.concerns(path):
                faults("mkdir again" if name == "mkdir" and Path(path).is_dir() else name, path)
            return real[name](path, *arguments, **options)

        return call

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(io, "open", open_file))
        for name in _CALLS:
            stack.enter_context(mock.patch.object(os, name, watched(name)))
        yield faults

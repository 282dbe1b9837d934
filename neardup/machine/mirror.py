"""Folders behind URLs: what is written goes there, and what is read and isn't here comes from there.

A mirror is a folder of this machine that stands for one of an object store. Whoever writes a file below it puts it
there, too, when it is whole; whoever opens one asks for it `here` first. So hosts that share no disk share files.
"""

import os
import shutil
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import get_ident
from typing import NamedTuple
from uuid import uuid4

from filelock import FileLock

from neardup import NeardupError
from neardup.machine.checksums import digest_of_bytes

_attached = {}  # local folder: how it was attached


def folder_for(url):
    """The folder of this machine that mirrors a URL: in TMPDIR, the same each time."""
    return Path(tempfile.gettempdir()) / f"neardup-{digest_of_bytes(url.encode())[:16]}"


def attach(local, url, run, leading):
    """From now on a folder mirrors one behind a URL. What it holds of an earlier state of that is removed.

    run: what tells this run of a script from others; leading: [(folder, names)], below it: where files of these names
    aren't the same in both, all of such a folder is removed.
    """
    how = url, run, leading
    if _attached.get(str(local)) == how:
        return
    _attached[str(local)] = how
    try:
        with _alone(local):
            for folder, names in leading:
                paths = [local / folder / name for name in names]
                ours = [path.read_bytes() if path.exists() else None for path in paths]
                if ours != [_read(path) for path in paths]:
                    shutil.rmtree(local / folder, ignore_errors=True)
                    for path in paths:
                        here(path)
    except BaseException:
        del _attached[str(local)]  # what wasn't looked at isn't to be used
        raise


def follow(local, url, content):
    """From now on a folder has files of one behind a URL, where nothing is put. content: what tells it from another."""
    _attached[str(local)] = url, content, None
    with _alone(local):
        Path(f"{local}.of").write_text(content)


def attach_all(mirrors):
    """In a worker: mirror what the script's process does. mirrors: its `attached`."""
    for local, url, run, leading in mirrors:
        if leading is not None:
            attach(local, url, run, leading)
        elif _attached.get(str(local)) != (url, run, None):
            with _alone(local):
                of = Path(f"{local}.of")
                if not (of.exists() and of.read_text() == run):
                    shutil.rmtree(local, ignore_errors=True)
            follow(local, url, run)


def _alone(local):
    """One process at a time. Raises NeardupError where the folder is somebody else's, for TMPDIR may be shared."""
    local.mkdir(mode=0o700, parents=True, exist_ok=True)
    if local.stat().st_uid != os.getuid():
        raise NeardupError(f"{local} belongs to another user: set TMPDIR to a folder of your own")
    return FileLock(f"{local}.attaching")


def attached():
    """Argument of `attach_all` for processes on other hosts."""
    return [(Path(local), *how) for local, how in _attached.items()]


class _Remote(NamedTuple):
    """Where a path in a mirror is: the file system, the path there, and whether files are put there."""

    system: object
    name: str
    is_written: bool


def _remote(path):
    """The `_Remote` of a path in a mirror; None of other paths."""
    folder = _mirror_of(path)
    if folder is None:
        return None
    url, _, leading = _attached[folder]
    system, root = _system(url)
    name = f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}".rstrip("/")
    return _Remote(system, name, leading is not None)


def _mirror_of(path):
    """The mirror that a path lies in, the innermost; None of other paths."""
    return next((local for local in sorted(_attached, key=len, reverse=True) if path.is_relative_to(local)), None)


@lru_cache
def _system(url):
    import fsspec

    with _told(url):
        return fsspec.core.url_to_fs(url, use_listings_cache=False)


@contextmanager
def _told(what):
    """Raises NeardupError where a file system fails."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # each file system has its own
        raise NeardupError(f"{what}: {type(error).__name__}: {error}; mend that, then start it again") from error


def shown(path):
    """A path as users know it: the URL of what is in a mirror."""
    folder = _mirror_of(path)
    return "/".join([_attached[folder][0].rstrip("/"), *path.relative_to(folder).parts]) if folder else path


def here(path):
    """The path itself, its file fetched if it is in a mirror and only there."""
    remote = _attached and not path.exists() and _remote(path)
    if remote:
        system, name, _ = remote
        temporary = path.with_name(f".{os.getpid()}-{get_ident()}.{path.name}.tmp")
        try:
            with _told(name):
                if system.isfile(name):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(name, str(temporary))
                    os.replace(temporary, path)
        except FileNotFoundError:
            temporary.unlink(missing_ok=True)
    return path


def _read(path):
    system, name, _ = _remote(path)
    try:
        with _told(name):
            return system.cat_file(name)
    except FileNotFoundError:
        return None


def put(temporary, path):
    """Copy a file that will be at `path` to where its mirror's files are."""
    remote = _attached and _remote(path)
    if remote and remote.is_written:
        system, name, _ = remote
        with _told(name):
            system.put_file(str(temporary), name)


def copy(source, path):
    """Copy a file to where its mirror's files are, if it comes from there: not by way of this machine.

    Returns whether it does.
    """
    of, to = (_attached and _remote(p) for p in (source, path))
    if not (of and to and to.is_written and of.system is to.system):
        return False
    with _told(to.name):
        if of.system.isfile(of.name):
            to.system.copy(of.name, to.name)
            return True
    return False


def files(folder):
    """Paths of all files below a folder, those that are only there included, sorted."""
    found = {p for p in folder.rglob("*") if p.is_file()}
    remote = _attached and _remote(folder)
    if remote:
        system, name, _ = remote
        with _told(name):
            found |= {folder / there.removeprefix(f"{name}/") for there in system.find(name)}
    return sorted(found)


def remove(folder):
    """Remove all files below a folder where its mirror's files are."""
    remote = _attached and _remote(folder)
    if remote:
        system, name, _ = remote
        with _told(name):
            if system.exists(name):
                system.rm(name, recursive=True)


def publish(folder, final, names, last):
    """Put files of one folder in the place of all of another, there: one that decides, whose name is `last`, last.

    From then on the mirror is attached anew: what other hosts have of the other folder is of before.
    """
    remote = _attached and _remote(folder)
    if remote:
        system, begun, done = remote.system, remote.name, _remote(final).name
        remove(final / last)
        remove(final)
        others = [name for name in names if name != last]
        with _told(done):
            for some in (others, [last]):
                system.copy([f"{begun}/{name}" for name in some], [f"{done}/{name}" for name in some])
        remove(folder / last)  # without which nothing that is left of it is taken for whole
        remove(folder)
        local = _mirror_of(folder)
        url, _, leading = _attached[local]
        _attached[local] = url, uuid4().hex, leading

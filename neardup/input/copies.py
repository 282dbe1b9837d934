"""Local copies of input that can't be memory-mapped where it lies: made once, in the work folder, and kept."""

from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from neardup import NeardupError
from neardup.input.formats import Vectors
from neardup.input.formats.by_suffix import blocks, others
from neardup.input.metadata import BESIDE, TEXTS
from neardup.machine import engine, mirror
from neardup.machine.checksums import digest_of_sample, digest_of_values
from neardup.machine.files import atomic, need_room, npy_rows, read_json, resolved, write_json

FOLDER = "input"  # in the work folder
FETCHED, DECODED = "fetched", "decoded"  # in that
_OF_COPIES = " for copies of input that can't be memory-mapped"
_BEGUN = {"of": None}  # note of a copy that is being made: what is left of it is ours


def fetch(url, folder, wanted, n_workers, setting="data_dir"):
    """Copy the files of a remote folder, or a single one, that aren't here or have changed since, a file a task.

    url: as fsspec has it (`s3://bucket/folder`); wanted(names, single): which of its files to copy, by their names
    below it; single: that of the one it is, or None; setting: that names the URL. Returns the path of the local copy.
    Raises NeardupError where the folder can't be listed.
    """
    system, found, names, missing, path = _compared(url, folder, wanted, setting)
    mirrored, identity = folder / FETCHED, {name: found[remote] for remote, name in names.items()}
    _keep_just(mirrored, [mirrored / name for name in names.values()])
    need_room(folder, sum(found[remote]["size"] or 0 for remote, *_ in missing), _OF_COPIES)
    of = url.rstrip("/") if path == mirrored else url.rstrip("/").rpartition("/")[0]
    mirror.follow(mirrored, of, digest_of_values(identity))
    engine.run_in_threads(partial(_fetch, system), missing, n_workers, "fetch input")
    return path


def files_at(url, folder, wanted, setting="data_dir"):
    """The sizes of the files that are wanted, in bytes, and the path of their copy, None where it isn't as they are."""
    _, found, names, missing, path = _compared(url, folder, wanted, setting)
    return [found[remote]["size"] or 0 for remote in names], None if missing else path


def _compared(url, folder, wanted, setting):
    """The file system of a URL, {path: what is known}, {path: name} of the wanted, arguments of `_fetch` for those that
    aren't here as they are there, and the path of the local copy. Arguments: as in `fetch`.
    """
    mirrored = folder / FETCHED
    system, root, found, names = _listed(url, wanted, setting)
    identity = {path: {key: str(value) for key, value in found[path].items()} for path in names}
    copies = [(path, mirrored / name, identity[path]) for path, name in names.items()]
    missing = [copy for copy in copies if _made(copy[1]).get("of") != copy[2]]
    return system, found, names, missing, mirrored / names[root] if root in names else mirrored


def _listed(url, wanted, setting):
    """The file system of a URL, its path there, {path: what is known} of all below it, {path: name} of the wanted."""
    import fsspec

    with _listing(setting, url):
        system, root = fsspec.core.url_to_fs(url)
        root = root.rstrip("/")
        found = {path: info for path, info in system.find(root, detail=True).items() if info.get("type") != "directory"}
        if not found:  # also of a web server that doesn't answer
            system.info(root)
        if root in found:  # a single file, and what may lie beside it
            beside = [f"{root.removesuffix(PurePosixPath(root).suffix)}{suffix}" for suffix in BESIDE]
            beside.append(f"{root.rpartition('/')[0]}/{TEXTS}")
            found |= {path: system.info(path) for path in beside if system.exists(path)}
    above = root if root not in found else root.rpartition("/")[0]
    names = {path.removeprefix(above).lstrip("/"): path for path in found}
    if any(".." in PurePosixPath(name).parts for name in names):
        raise NeardupError(f"{setting} {url} holds names with '..', which lead out of it: rename them")
    chosen = {names[name]: name for name in wanted([*names], root.removeprefix(above).lstrip("/") or None)}
    with _listing(setting, url):  # of a web server's folder just the names are known
        found |= {path: system.info(path) for path in chosen if found[path].get("size") is None}
    return system, root, found, chosen


@contextmanager
def _listing(setting, url):
    """Raises NeardupError where what lies at a URL can't be listed. setting: that names it."""
    try:
        yield
    except ImportError as error:
        raise NeardupError(f"{setting} {url}: {error}") from error
    except FileNotFoundError as error:
        raise NeardupError(
            f"nothing is there, or can be reached, at {setting} {url}: set it to the URL of your embeddings"
        ) from error
    except Exception as error:  # each file system has its own
        raise NeardupError(
            f"{setting} {url} can't be listed ({type(error).__name__}: {error}): mend that, or set it to another URL"
        ) from error


def _fetch(system, remote, path, identity):
    write_json(_note(path), _BEGUN)
    with atomic(path) as temporary:
        try:
            system.get_file(remote, str(temporary))
        except Exception as error:  # each file system has its own
            raise NeardupError(f"{remote} can't be read ({type(error).__name__}: {error}): mend that") from error
    write_json(_note(path), {"of": identity, "copy": _state(path)})


def known(path, name, copy):
    """The `Vectors` of a file whose copy is as it was made from it; None where it isn't.

    path: the file; name: of its vectors; copy: where its copy is, beside which lies a note of both files' times.
    """
    found = _made(copy)
    try:
        if found.get("of") != _source(path, name, found.get("others", [])):
            return None
    except FileNotFoundError:  # one of the others is gone
        return None
    return Vectors(found["rows"], found["dim"], np.dtype(found["dtype"]))


def make(shards, n_workers, anew=False, allow_missing=False):
    """Decode those shards that have to be, and whose copy isn't as it should be, a file a task. Memory: a block each.

    anew: whether all have to be, whatever is known of their copies; allow_missing: as in `by_suffix.blocks`. Raises
    NeardupError where the disk has no room.
    """
    missing = [s for s in shards if s.copy and (anew or not is_current(s))]
    if missing:
        size = sum(s.rows * s.dim * s.dtype.itemsize for s in missing)
        need_room(missing[0].copy.parent, size, _OF_COPIES)
        engine.run_in_threads(_make, [(s, allow_missing) for s in missing], n_workers, "decode input")


def forget_others(shards, folder):
    """Remove copies of what isn't input of this set any more. folder: of all its copies."""
    _keep_just(folder / DECODED, [shard.copy for shard in shards if shard.copy])
    if not any(folder / FETCHED in shard.path.parents for shard in shards):
        _keep_just(folder / FETCHED, [])


def _keep_just(folder, copies):
    """Remove all copies below a folder but some, with their notes; a file without one is somebody else's."""
    kept = {path for copy in copies for path in (copy, _note(copy))}
    for note in [path for path in folder.rglob("*.json") if path not in kept and _is_note(path)]:
        note.with_name(note.name.removesuffix(".json")).unlink(missing_ok=True)
        note.unlink()


def _is_note(path):
    try:
        return "of" in read_json(path)
    except (OSError, NeardupError):
        return False


def is_current(shard):
    """Whether a shard needs no copy, or has it."""
    return shard.copy is None or known(shard.path, shard.vectors, shard.copy) is not None


def _make(shard, allow_missing):
    beside = [str(resolved(path)) for path in others(shard.path, shard.vectors)]
    before, copy, rows = _source(shard.path, shard.vectors, beside), shard.copy, 0
    write_json(_note(copy), _BEGUN)
    with npy_rows(copy, (shard.rows, shard.dim), shard.dtype) as write:
        for block in blocks(shard.path, shard.vectors, allow_missing):
            write(block)
            rows += len(block)
    if rows != shard.rows or _source(shard.path, shard.vectors, beside) != before:
        raise NeardupError(f"the input ({shard.name}) changed while it was read: run the script again")
    found = {"rows": shard.rows, "dim": shard.dim, "dtype": shard.dtype.str, "others": beside}
    write_json(_note(copy), {"of": before, "copy": _state(copy)} | found)


def _note(copy):
    return copy.with_name(copy.name + ".json")


def _made(copy):
    """What is noted of a copy that is there and as it was made; nothing of another, which is made anew."""
    try:
        note = read_json(_note(copy))
        return note if note.get("copy") == _state(copy) else {}
    except (FileNotFoundError, NeardupError):
        return {}


def _source(path, name, others):
    """What a copy is of: a file as it is, the name of its vectors, and other files as they are. others: their paths."""
    states = [[*_state(file), digest_of_sample(file)] for file in (path, *map(Path, others))]
    return [str(resolved(path)), name, *states]


def state(path, is_remote):
    """What tells a file of the input from what it was; of the copy of a remote one what is known of that."""
    return (is_remote and _made(path).get("of")) or _state(path)


def _state(path):
    """What tells a file from what it was, unless somebody hides it."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]

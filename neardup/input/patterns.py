"""Which files of a folder a pattern means: on disk, or of a remote one, of which just the names are known."""

import os
import re
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePath

from neardup import NeardupError
from neardup.machine.files import resolved

_LEFTOVERS = "_temporary", "_delta_log", "lost+found"  # folders of Spark, Delta Lake and disks, whose files `**` skips


def on_disk(folder, ours, pattern):
    """What matches a pattern in a folder, by its name below it, in natural order, but for that in folders of ours.

    Links are followed. ours: a set of folders, without links.
    """
    return _in_order(set(_found(folder, (resolved(folder),), ours, _parts_of(pattern))))


def among(names, pattern):
    """As `on_disk`, of the files of these names alone."""
    parts = _parts_of(pattern)
    return _in_order(n for n in map(PurePath, names) if _matches(n.parts, parts))


def _parts_of(pattern):
    """A pattern for the name of each folder and the file. Raises NeardupError where it is none within the folder."""
    try:
        if ".." in Path(pattern).parts:
            raise ValueError("'..' leads out of it")
        if not PurePath(pattern).parts:
            raise ValueError("it names no file")
        [*Path(os.devnull).glob(pattern)]  # refuses what is no pattern
    except (ValueError, NotImplementedError, IndexError) as error:
        raise NeardupError(
            f"shard_pattern {pattern!r} is no pattern within data_dir ({error}): set it right"
        ) from error
    return PurePath(pattern).parts


def _found(folder, way, ours, patterns):
    """Yield what matches in a folder. way: it and the folders it was reached through, without links."""
    first, *rest = patterns
    if first == "**" and not rest:  # which means folders, and those are no shards
        return
    if first == "**":
        yield from _found(folder, way, ours, rest)
    for entry in _entries(folder, first):
        path, is_link = folder / entry.name, entry.is_symlink()
        real = resolved(path) if is_link else way[-1] / entry.name
        if real in ours or (is_link and not ours.isdisjoint(real.parents)):
            continue
        if not rest:
            yield PurePath(entry.name)
        elif real not in way and path.is_dir():  # else a link leads back to where it is
            below = patterns if first == "**" else rest
            yield from (PurePath(entry.name, name) for name in _found(path, (*way, real), ours, below))


def _entries(folder, pattern):
    """What lies in a folder and is meant by a part of a pattern. Raises NeardupError where that can't be told."""
    if not has_magic(pattern):
        return [folder / pattern] if os.path.lexists(folder / pattern) else []
    try:
        with os.scandir(folder) as found:
            entries = [*found]
    except PermissionError as error:
        raise NeardupError(
            f"{folder} can't be read ({error.strerror}): mend that, or leave it out with shard_pattern"
        ) from error
    return [
        entry
        for entry in entries
        if (_any_folder(entry.name) if pattern == "**" else _matches_name(entry.name, pattern))
    ]


def _matches(parts, patterns):
    """Whether a file's name matches: a part each, and `**` any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        n_folders = next((i for i, part in enumerate(parts) if not _any_folder(part)), len(parts) - 1)
        return any(_matches(parts[i:], patterns[1:]) for i in range(min(n_folders + 1, len(parts))))
    return bool(parts) and _matches_name(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _matches_name(name, pattern):
    """As a shell does: what begins with a dot is hidden, and only meant where the pattern begins with one, too."""
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))


def _any_folder(name):
    """Whether `**` means a folder of this name, too."""
    return not name.startswith(".") and name not in _LEFTOVERS


def _in_order(names):
    return sorted(names, key=lambda n: _natural_key(str(n)))


def _natural_key(name):
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name

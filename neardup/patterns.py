"""Which files of a folder a pattern means: on disk, or of a remote one, of which just the names are known."""

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from neardup import NeardupError
from neardup.files import resolved


def on_disk(folder, ours, pattern):
    """What matches a pattern in a folder, by its name below it, in natural order, but for that in folders of ours."""
    paths = [p for p in _globbed(folder, pattern) if ours.isdisjoint(resolved(p).parents)]
    return _in_order(p.relative_to(folder) for p in paths)


def among(names, pattern):
    """As `on_disk`, of the files of these names alone."""
    _globbed(Path(os.devnull), pattern)  # the same patterns are refused
    return _in_order(n for n in map(PurePath, names) if _matches(n.parts, PurePath(pattern).parts))


def _globbed(folder, pattern):
    """Paths that match a pattern. Raises NeardupError where it is none within the folder."""
    try:
        if ".." in Path(pattern).parts:
            raise ValueError("'..' leads out of it")
        return [*folder.glob(pattern)]
    except (ValueError, NotImplementedError, IndexError) as error:
        raise NeardupError(
            f"shard_pattern {pattern!r} is no pattern within data_dir ({error}): set it right"
        ) from error


def _matches(parts, patterns):
    """Whether a file's name matches as it does in `Path.glob`: a part each, and `**` any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[i:], patterns[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _in_order(names):
    return sorted(names, key=lambda n: _natural_key(str(n)))


def _natural_key(name):
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name

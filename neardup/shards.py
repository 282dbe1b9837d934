"""What a folder of embeddings holds: its format, its shards in order, and where their ids are."""

import re
from fnmatch import fnmatch
from glob import escape
from pathlib import Path, PurePath
from typing import NamedTuple

from neardup import NeardupError, copies
from neardup.embeddings import MOST_ROWS, Shard
from neardup.formats import flat, hdf5, npy, npz, tables, vecs
from neardup.metadata import SUFFIXES, column_names

FORMATS = {  # by the name of the setting, what its shards' names end in; tables last, for they may be the ids of others
    "npy": (".npy",),
    "npz": (".npz",),
    "hdf5": (".hdf5", ".h5"),
    "vecs": tuple(vecs.DTYPES),
    "faiss": (".index", ".faiss"),
    "arrow": (".arrow", ".feather"),
    "parquet": (".parquet",),
}
_TABLES = "arrow", "parquet"
CLIP = "img_emb", "text_emb"  # folders of clip-retrieval
_MODULES = {".npy": npy, ".npz": npz, ".hdf5": hdf5, ".h5": hdf5, ".index": flat, ".faiss": flat}
_MODULES |= dict.fromkeys(vecs.DTYPES, vecs) | dict.fromkeys((".arrow", ".feather", ".parquet"), tables)
_ID_COLUMNS = "id", "ids", "uid", "key", "image_id", "image_path", "doc_id", "path", "filename", "url"


class Reading(NamedTuple):
    """How to read a folder, as the settings of these names; None: found by looking at it."""

    shard_pattern: str | None = None
    input_format: str | None = None
    vectors: str | None = None
    id_column: str | None = None


AS_FOUND = Reading()


def blocks(path, name):
    """Yield the vectors of a file that have to be decoded."""
    return _MODULES[path.suffix].blocks(path, name)


def write_kept(path, name, target, keep):
    """Write a copy of a file with just the rows to keep, in its own format. keep: (n,) bool."""
    _MODULES[path.suffix].write_kept(path, name, target, keep)


def wanted(reading, names):
    """Those files of a remote folder, by their names below it, that may be shards, or hold ids or texts of some."""
    pattern, chosen = reading.shard_pattern, []
    suffixes = FORMATS.get(reading.input_format) or (*_MODULES,)
    folders = [f for f in (reading.vectors, *CLIP) if any(name.startswith(f"{f}/") for name in names)][:1]
    for name in names:
        path = PurePath(name)
        is_near = len(path.parts) == 1 or path.parts[0] in (*folders, "metadata") or "/" in (pattern or "")
        is_shard = path.suffix in suffixes and (pattern is None or fnmatch(name, pattern))
        if is_near and (is_shard or path.suffix in (".txt", *SUFFIXES) or name == "texts.json"):
            chosen.append(name)
    return chosen if any(PurePath(name).suffix in suffixes for name in chosen) else []


def find_shards(data_dir, reading=AS_FOUND, copy_dir=None, ours=()):
    """The shards of a folder in natural order (_2 before _10), their headers checked; nothing in folders of `ours`.

    copy_dir: where copies of what has to be decoded are, or will be. Raises NeardupError where the folder holds no
    shards, or a file isn't what its name says, or not of as many values as the others.
    """
    if data_dir.is_file():
        data_dir, reading = data_dir.parent, reading._replace(shard_pattern=escape(data_dir.name))
    if not data_dir.is_dir():
        raise NeardupError(f"data_dir {data_dir} is not a folder: set data_dir to the folder of your embeddings")
    paths, kind, name = _choose(data_dir, reading, {folder.resolve() for folder in ours})
    shards, start = [], 0
    for path in paths:
        if not path.is_file():
            raise NeardupError(f"{path} is not a file that can be read: remove it, or leave it out with shard_pattern")
        short = path.relative_to(data_dir).as_posix()
        copy = copy_dir and copy_dir / f"{short}.npy"
        found = (copy and copies.known(path, name, copy)) or _MODULES[path.suffix].describe(path, name)
        if shards and found.dim != shards[0].dim:
            raise NeardupError(
                f"{path} has rows of {found.dim} values and {shards[0].path.name} of {shards[0].dim}: "
                "leave one of them out with shard_pattern"
            )
        ids_path, column, table = _ids_and_table(path, data_dir, kind, reading.id_column)
        where = (found.layout, None if found.layout else copy, ids_path, column, table)
        shards.append(Shard(path, start, found.rows, found.dim, found.dtype, short, name, *where))
        start += found.rows
    if start > MOST_ROWS:
        raise NeardupError(f"the shards in {data_dir} hold {start:,} rows, over {MOST_ROWS:,}: search them in parts")
    if start == 0:
        raise NeardupError(f"the {len(shards)} shards in {data_dir} hold no rows: nothing to compare")
    _check_ids(shards)
    return shards


def _choose(data_dir, reading, ours):
    """The shards' paths, in order, their format, and the name of their vectors."""
    pattern, kind = reading.shard_pattern, reading.input_format
    clip = [f for f in CLIP if any(data_dir.glob(f"{f}/*.npy"))]
    is_clip = clip and (pattern is None or PurePath(pattern).parts[:1] in [(folder,) for folder in CLIP])
    if kind == "clip-retrieval" or (kind is None and is_clip):
        folder = reading.vectors or (clip or CLIP)[0]
        paths = _matching(data_dir, pattern or f"{folder}/*.npy", ours)
        if not paths:
            raise NeardupError(f"data_dir {data_dir} has no {folder}/*.npy: set vectors to one of {', '.join(CLIP)}")
        return paths, "clip-retrieval", reading.vectors
    wanted = FORMATS if kind is None else {kind: FORMATS[kind]}
    paths = _matching(data_dir, pattern or "*", ours)
    found = {k: [p for p in paths if p.suffix in suffixes] for k, suffixes in wanted.items()}
    found = {k: some for k, some in found.items() if some}
    if any(k not in _TABLES for k in found):  # then tables are their metadata
        found = {k: some for k, some in found.items() if k not in _TABLES}
    if not found:
        _raise_none(data_dir, reading, wanted, ours)
    if len(found) > 1:
        listed = " and ".join(f"{k} ({some[0].name})" for k, some in found.items())
        raise NeardupError(f"data_dir {data_dir} holds several formats, {listed}: set input_format to one of them")
    [(kind, paths)] = found.items()
    return paths, kind, reading.vectors


def _matching(data_dir, pattern, ours):
    """Paths that match a pattern, in natural order, but for those in folders of ours."""
    try:
        if ".." in Path(pattern).parts:
            raise ValueError("'..' leads out of it")
        paths = [p for p in data_dir.glob(pattern) if ours.isdisjoint(p.resolve().parents)]
    except (ValueError, NotImplementedError, IndexError) as error:
        raise NeardupError(
            f"shard_pattern {pattern!r} is no pattern within data_dir ({error}): set it right"
        ) from error
    return sorted(paths, key=lambda p: _natural_key(str(p.relative_to(data_dir))))


def _raise_none(data_dir, reading, wanted, ours):
    """Raise the NeardupError about a folder without shards, with what was looked for."""
    suffixes = [s for some in wanted.values() for s in some]
    looked = f"names that end in {', '.join(suffixes)}"
    if reading.shard_pattern:
        raise NeardupError(
            f"no file in data_dir {data_dir} matches shard_pattern {reading.shard_pattern!r} ({looked} were looked "
            "for): set one of the two right"
        )
    below = next((p for p in _matching(data_dir, "**/*", ours) if p.suffix in suffixes), None)
    hint = "the folder of your embeddings"
    if below is not None:
        hint = f"{below.parent}, or shard_pattern to '**/*{below.suffix}'"
    raise NeardupError(f"data_dir {data_dir} holds no embeddings ({looked} were looked for): set data_dir to {hint}")


def _natural_key(name):
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _ids_and_table(path, data_dir, kind, id_column):
    """The file that holds a shard's ids, or None; their column, or None if it is text; its table of metadata, or None.

    Raises NeardupError where a column that was named isn't there.
    """
    if kind == "clip-retrieval":
        number = re.search(r"\d*$", path.stem)[0]
        beside = [data_dir / "metadata" / f"metadata_{number}.parquet"]
    elif kind in (*_TABLES, "hdf5"):
        beside = [path]
    else:
        beside = [path.with_suffix(suffix) for suffix in SUFFIXES]
    table = next((p for p in beside if p.is_file()), None)
    text = path.with_suffix(".txt")
    if id_column is None and text.exists():
        return text, None, table
    names = column_names(table) if table else []
    column = id_column or next((c for c in _ID_COLUMNS if c in names), None)
    if id_column and id_column not in names:
        where = f"{table} has no column {id_column!r} (it has: {', '.join(names)})"
        raise NeardupError(f"{where if table else f'{path} has no table beside it'}: set id_column right")
    if column:
        return table, column, table
    return (path, None, table) if kind == "faiss" and flat.id_map(path) is not None else (None, None, table)


def _check_ids(shards):
    """Raises NeardupError where some shards have ids and others none, or ids lie there of a shard that doesn't."""
    without = [s for s in shards if s.ids_path is None]
    if without and len(without) < len(shards):
        path, some = without[0].path.with_suffix(".txt"), next(s for s in shards if s.ids_path)
        raise NeardupError(
            f"{path} is missing, while {some.path.name} has its ids in {some.ids_path.name}: "
            f"write a JSON list of the {without[0].rows} ids of {without[0].path.name}"
        )
    for folder in {shard.path.parent for shard in shards}:
        kinds = {(_numberless(s.path), s.path.suffix) for s in shards if s.path.parent == folder}
        for path in sorted(folder.glob("*.txt")):
            for suffix in [end for stem, end in sorted(kinds) if stem == _numberless(path)]:
                if not path.with_suffix(suffix).exists():
                    raise NeardupError(
                        f"{path} is there, but {path.stem}{suffix}, whose ids it lists, is not: "
                        "add it, or take the list away"
                    )


def _numberless(path):
    return re.sub(r"\d+", "#", path.stem)

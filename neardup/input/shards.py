"""What a folder of embeddings holds: its format, its shards in order, and where their ids are."""

import os
import re
from collections import defaultdict
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import PurePath
from typing import NamedTuple

from neardup import NeardupError
from neardup.input import copies
from neardup.input.beside import ABOUT, CLIP, OF_DATASET, TABLES, of_clip, root_of, tables_of
from neardup.input.embeddings import MOST_ROWS, Shard
from neardup.input.formats import flat, vecs
from neardup.input.formats.by_suffix import MODULES, describe
from neardup.input.ids import ANOTHER, can_be_ids, has_surrogate
from neardup.input.metadata import BESIDE, column_names
from neardup.input.patterns import among, on_disk
from neardup.machine.files import is_file
from neardup.words import counted

FORMATS = {  # by the name of the setting, what its shards' names end in; tables last, for they may be the ids of others
    "npy": (".npy",),
    "npz": (".npz",),
    "hdf5": (".hdf5", ".h5"),
    "vecs": tuple(vecs.DTYPES),
    "faiss": (".index", ".faiss"),
    "arrow": (".arrow", ".feather"),
    "parquet": (".parquet",),
}
ID_COLUMNS = "id", "ids", "uid", "key", "image_id", "image_path", "doc_id", "path", "filename", "url"


class Reading(NamedTuple):
    """How to read a folder, as the settings of these names; None: found by looking at it. set_by: that names it."""

    shard_pattern: str | None = None
    input_format: str | None = None
    vectors: str | None = None
    id_column: str | None = None
    set_by: str = "data_dir"


AS_FOUND = Reading()


class Chosen(NamedTuple):
    """The shards of a folder, in order, their format, and tables that lie beside none of them: [(format, name)]."""

    names: list
    kind: str
    lone: list


def wanted(reading, url, names, single=None, export=False):
    """Those files of a remote folder, by their names below it, that are shards, or hold ids, metadata or texts of some.

    single: the name of the only shard, where the URL is that of a file; export: also what a copy of clip-retrieval has.
    Raises NeardupError as `find_shards`, as far as names tell.
    """
    if single:
        reading = _only(single, f"{reading.set_by} {url}", reading)
    glob = partial(among, names)
    chosen, kind, _ = choose(glob, url, reading)
    _check_lists(glob, url, chosen)
    near = [n for name in chosen for n in (name, *map(name.with_suffix, BESIDE), *tables_of(name, kind))]
    about = [folder / name for folder in dict.fromkeys(n.parent for n in chosen) for name in ABOUT]
    if export and kind == "clip-retrieval":
        near += [other for name in chosen for other in of_clip(name)]
    there = {PurePath(name): name for name in names}
    return [there[n] for n in dict.fromkeys([*near, *about]) if n in there]


def find_shards(data_dir, reading=AS_FOUND, copy_dir=None, ours=frozenset()):
    """The shards of a folder in natural order (_2 before _10), their headers checked; nothing in folders of `ours`.

    copy_dir: where copies of what has to be decoded are, or will be; ours: a set, without links. Raises NeardupError
    where the folder holds no shards, or a file isn't what its name says, or not of as many values as the others.
    """
    named = f"{reading.set_by} {data_dir}"
    if data_dir.is_file():
        data_dir, reading = data_dir.parent, _only(data_dir.name, named, reading)
    if not data_dir.is_dir():
        raise NeardupError(
            f"{reading.set_by} {str(data_dir)!r} is not a folder or file: set it to the folder of your embeddings"
        )
    glob = partial(on_disk, data_dir, ours)
    names, kind, _ = choose(glob, data_dir, reading)
    vectors, shards, start = reading.vectors, [], 0
    for name in names:
        path = data_dir / name
        if has_surrogate(str(name)):
            raise NeardupError(f"{str(path)!a}: rows can't be named by a file whose name isn't UTF-8: rename it")
        if not path.is_file():
            raise NeardupError(f"{path} is not a file that can be read: remove it, or leave it out with shard_pattern")
        copy = copy_dir and copy_dir / f"{name}.npy"
        found = (copy and copies.known(path, vectors, copy)) or describe(path, vectors)
        if not found.dim:  # a table without rows, of which Spark writes some
            continue
        if shards and found.dim != shards[0].dim:
            raise NeardupError(
                f"{path} has rows of {found.dim} values and {shards[0].path.name} of {shards[0].dim}: "
                "leave one of them out with shard_pattern"
            )
        table = next((data_dir / t for t in tables_of(name, kind) if is_file(data_dir / t)), None)
        where = {"stored": found.layout, "copy": None if found.layout else copy, "table": table}
        shards.append(Shard(path, start, found.rows, found.dim, found.dtype, name.as_posix(), vectors, **where))
        start += found.rows
    if not shards:
        raise NeardupError(f"{data_dir / names[0]} has no rows, nor has any other shard there: nothing to compare")
    if start > MOST_ROWS:
        raise NeardupError(f"the shards in {data_dir} hold {start:,} rows, over {MOST_ROWS:,}: search them in parts")
    if start == 0:
        raise NeardupError(f"no rows are in {data_dir} ({counted(len(shards), 'shard')}): nothing to compare")
    shards = _with_ids(shards, reading.id_column)
    _check_ids(shards, kind)
    _check_lists(glob, data_dir, names)
    return shards


def joined(first, second):
    """The shards of two sets as those of one. Raises NeardupError where they are not of as many values."""
    if first[0].dim != second[0].dim:
        raise NeardupError(
            f"{second[0].path} has {second[0].dim} values a row, and {first[0].path}, of the set that it is to be "
            f"compared with, {first[0].dim}: embed both with the same model"
        )
    n_rows = sum(shard.rows for shard in first)
    if n_rows + sum(shard.rows for shard in second) > MOST_ROWS:
        raise NeardupError(f"both sets have over {MOST_ROWS:,} rows together: compare a part of one")
    return first + [replace(shard, start=shard.start + n_rows) for shard in second]


def _only(name, place, reading):
    """How to read just one file of a folder. Raises NeardupError where its name is of no format.

    place: the setting that names it, and its path, for that.
    """
    suffixes = FORMATS.get(reading.input_format, (*MODULES,))
    if PurePath(name).suffix not in suffixes:
        raise NeardupError(
            f"{place} is a file, and none of embeddings (names that end in {', '.join(suffixes)} were looked for): set "
            f"{place.partition(' ')[0]} to one of those, or to their folder"
        )
    return reading._replace(shard_pattern=escape(name))


def choose(glob, place, reading):
    """Which files of a folder are its shards, by names alone, as `Chosen`.

    glob(pattern): what is there, as in `patterns.on_disk`; place: the folder or URL, for errors.
    """
    pattern, kind, named = reading.shard_pattern, reading.input_format, f"{reading.set_by} {place}"
    clip = [f for f in CLIP if glob(f"{f}/*.npy")]
    is_clip = clip and (pattern is None or PurePath(pattern).parts[:1] in [(folder,) for folder in CLIP])
    if kind == "clip-retrieval" or (kind is None and is_clip):
        folder = reading.vectors or (clip or CLIP)[0]
        names = [n for n in glob(pattern or f"{folder}/*.npy") if n.suffix == ".npy"]
        if not names:
            raise NeardupError(f"{named} has no {folder}/*.npy: set vectors to one of {', '.join(CLIP)}")
        return Chosen(names, "clip-retrieval", [])
    formats = FORMATS if kind is None else {kind: FORMATS[kind]}
    names = glob(pattern or "*")
    if pattern is None and not {*map(PurePath, OF_DATASET)}.isdisjoint(names):
        names = [n for n in names if not n.match("cache-*.arrow")]  # of what was done to it: its rows once more
    found = {k: [n for n in names if n.suffix in suffixes] for k, suffixes in formats.items()}
    found = {k: some for k, some in found.items() if some}
    tables = [(k, n) for k in TABLES for n in found.get(k, ())]
    if any(k not in TABLES for k in found):  # then tables are their metadata
        found = {k: some for k, some in found.items() if k not in TABLES}
    if not found:
        _raise_none(glob, place, reading, formats)
    if len(found) > 1:
        listed = " and ".join(f"{k} ({some[0].name})" for k, some in found.items())
        raise NeardupError(f"{named} holds several formats, {listed}: set input_format to one of them")
    [(kind, names)] = found.items()
    if kind == "vecs" and pattern is None:
        _check_one_set(named, names)
    beside = {name.with_suffix("") for name in names}
    return Chosen(names, kind, [t for t in tables if t[1].with_suffix("") not in beside])


def _check_one_set(place, names):
    """Raises NeardupError where names differ in more than numbers: base vectors, say, and queries."""
    sets = {_numberless(n): n for n in reversed(names)}
    if len(sets) > 1:
        listed = ", ".join(n.name for n in sorted(sets.values()))
        raise NeardupError(
            f"{place} holds {len(sets)} sets of vectors ({listed}): set shard_pattern to the names of one, "
            "or to '*' if they are to be compared with each other"
        )


def _raise_none(glob, place, reading, formats):
    """Raise the NeardupError about a folder without shards, with what was looked for."""
    suffixes = [s for some in formats.values() for s in some]
    looked, named = f"names that end in {', '.join(suffixes)}", f"{reading.set_by} {place}"
    if reading.shard_pattern:
        raise NeardupError(
            f"no file in {named} matches shard_pattern {reading.shard_pattern!r} ({looked} were looked for): set one "
            "of the two right"
        )
    try:
        below = next((n for n in glob("**/*") if n.suffix in suffixes), None)
    except NeardupError:  # of a folder that can't be read
        below = None
    hint = "the folder of your embeddings"
    if below is not None:
        hint = f"{str(place).rstrip('/')}/{below.parent}, or shard_pattern to '**/*{below.suffix}'"
    raise NeardupError(f"{named} holds no embeddings ({looked} were looked for): set {reading.set_by} to {hint}")


def _with_ids(shards, id_column):
    """The shards, with the files of their ids: a text, or a table and its column, or None where rows are numbered.

    id_column: a name; "": rows are numbered; None: found. Raises NeardupError where there is no column of that name.
    """
    if id_column == "":
        return shards
    texts = [s.path.with_suffix(".txt") for s in shards]
    texts = [text if id_column is None and os.path.lexists(text) else None for text in texts]
    columns = [column_names(s.table) if s.table and not t else [] for s, t in zip(shards, texts, strict=True)]
    known = [id_column] if id_column else _known_columns(shards, columns)
    found = []
    for shard, text, names in zip(shards, texts, columns, strict=True):
        column = next((c for c in known if c in names), None)
        if id_column and not column:
            _raise_no_column(shard, id_column, names)
        path = text or (shard.table if column else None)
        if not path and MODULES[shard.path.suffix] is flat and flat.id_map(shard.path) is not None:
            path = shard.path
        found.append(replace(shard, ids_path=path, id_column=column))
    return found


def _known_columns(shards, columns):
    """The known names of columns that can be ids in every table that has them, up to the first that all tables have.

    columns: names, a list a shard.
    """
    found = []
    for column in ID_COLUMNS:
        having = [shard for shard, names in zip(shards, columns, strict=True) if column in names]
        if having and all(can_be_ids(s.table, column, s.rows) for s in having):
            found.append(column)
            if len(having) == sum(map(bool, columns)):
                break
    return found


def _raise_no_column(shard, column, names):
    where = f"{shard.path} has no table beside it"
    if shard.table:
        where = f"{shard.table} has no column {column!r} (it has: {', '.join(names) or 'none'})"
    raise NeardupError(f"{where}: set id_column right")


def _check_ids(shards, kind):
    """Raises NeardupError where some shards have ids and others none. kind: their format."""
    without = [s for s in shards if s.ids_path is None]
    if without and len(without) < len(shards):
        shard, some = without[0], next(s for s in shards if s.ids_path)
        path, advice = shard.path.with_suffix(".txt"), f"write a JSON list of the {shard.rows} ids of {shard.path.name}"
        if not shard.table and some.ids_path == some.table:
            near = [root_of(shard) / name for name in tables_of(PurePath(shard.name), kind)]
            path, advice = next(table for table in near if table.suffix == some.table.suffix), "put it there"
        raise NeardupError(
            f"{path} is missing, while {some.path.name} has its ids in {some.ids_path.name}: {advice}, or {ANOTHER}"
        )


def _check_lists(glob, place, names):
    """Raises NeardupError where ids lie there of a shard that doesn't.

    names: of the shards; glob, place: as in `choose`.
    """
    known, ends = {*names}, defaultdict(set)
    for name in names:
        ends[name.parent, _numberless(name)].add(name.suffix)
    for folder in dict.fromkeys(name.parent for name in names):
        lists = glob(f"{escape(str(folder))}/*.txt")
        shards = [(n, n.with_suffix(end)) for n in lists for end in sorted(ends.get((folder, _numberless(n)), ()))]
        doubtful = [(name, shard) for name, shard in shards if shard not in known]  # or not chosen
        there = {*glob(f"{escape(str(folder))}/*")} if doubtful else ()
        for name, shard in doubtful:
            if shard not in there:
                raise NeardupError(
                    f"{place}/{name} is there, but {shard.name}, whose ids it lists, is not: add it, or take the list "
                    "away"
                )


def _numberless(path):
    return re.sub(r"\d+", "#", path.stem)

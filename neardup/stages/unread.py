"""What lies in a folder of embeddings and isn't read, though it looks as if it should be, or is read twice."""

import json
from functools import partial
from pathlib import Path, PurePath

import pyarrow as pa

from neardup import NeardupError
from neardup.input.beside import CLIP
from neardup.input.embeddings import total_rows
from neardup.input.formats import the_one
from neardup.input.formats.by_suffix import MODULES, describe, vector_names
from neardup.input.formats.record_batches import schema_and_rows
from neardup.input.formats.tables import has_vectors
from neardup.input.ids import can_be_ids, is_bytes
from neardup.input.metadata import SUFFIXES, column_names, column_type
from neardup.input.patterns import on_disk
from neardup.input.shards import ID_COLUMNS, choose
from neardup.notices import notice
from neardup.stages.runs import our_folders, reading_of

_OPENED = 16  # files at most that are asked whether they hold vectors, or ids
_READ_BYTES = 1 << 24  # of a text that is asked whether it holds ids, at most
_JSON = ".json", ".jsonl"  # of texts that are never read


def tell_of_unread(config, shards):
    """Say where files of a local folder look like shards, or like the ids of shards whose rows are numbered.

    And where a shard is read twice, or holds several kinds of vectors. shards: of two sets, those of both.
    """
    is_folder = isinstance(config.data_dir, Path) and config.data_dir.is_dir()
    glob = partial(on_disk, config.data_dir, our_folders(config)) if is_folder else None
    lone, below = (glob and look(glob, config, shards[0]) for look in (_left_out, _below))
    twice, others = _same_file(shards), _other_vectors(config, shards[0])
    if others:
        notice(f"vectors: {others}; set vectors to the name of another to compare those")
    if twice:
        notice(f"read twice: {twice[0]} and {twice[1]} are one file, whose rows are near-duplicates")
    if below:
        notice(
            f"left out: {below}, and others like it, of {config.data_dir}: set shard_pattern to "
            f"'**/*{below.suffix}' to read folders below it, too"
        )
    if lone:
        kind, name = lone
        notice(
            f"left out: {name}, and others like it, of {config.data_dir}: with vectors, but beside no shard of those "
            f"that are read. Set input_format to '{kind}' to read such files instead, or convert or remove them"
        )
    elif config.id_column is None and config.against_dir is None and all(s.ids_path is None for s in shards):
        reason = _unused_column(shards) or _lone_ids(shards)
        if reason:
            notice(f"ids: {reason}, so rows are numbered")


def _other_vectors(config, shard):
    """Which vectors of a shard are read, and which aren't, though nobody chose, in words; None where there is one."""
    if config.vectors is not None:
        return None
    where, found = shard.path, vector_names(shard.path)
    is_clip = PurePath(shard.name).parts[0] == CLIP[0]
    if is_clip:
        where = shard.path.parent.parent
        found = [folder for folder in CLIP if (where / folder).is_dir()]
    if len(found) < 2:
        return None
    taken = CLIP[0] if is_clip else the_one(where, None, found, "")
    rest = " and ".join(repr(name) for name in found if name != taken)
    return f"{taken!r} is read of {where.name}, not {rest}"


def _same_file(shards):
    """Paths of two shards that are one file, as links are; None where all are different ones."""
    seen = {}
    for shard in shards:
        state = shard.path.stat()
        first = seen.setdefault((state.st_dev, state.st_ino), shard)
        if first is not shard:
            return first.path, shard.path
    return None


def _below(glob, config, shard):
    """A file in a folder of the input's folder that could be a shard as those beside that folder are, or None.

    That is: of the same kind, and with as many values a row. Few are opened.
    """
    if config.shard_pattern is not None or len(PurePath(shard.name).parts) > 1:  # as embeddings of clip-retrieval
        return None
    some = _few(glob(f"*/*{shard.path.suffix}"))
    return next((name for name in some if _has_dim(config.data_dir / name, config.vectors, shard.dim)), None)


def _has_dim(path, vectors, dim):
    """Whether a file can be read, and has rows of so many values. vectors: their name, where it is set."""
    try:
        return describe(path, vectors).dim == dim
    except (NeardupError, OSError):
        return False


def _few(found):
    """Some of those that were found, from all over them."""
    return found[:: -(-len(found) // _OPENED) or 1]


def _left_out(glob, config, shard):
    """A table that looks like a shard but isn't read: there are others of another kind, none beside it.

    glob: as `choose` takes it. Returns its format and its name below the folder, or None. Few are opened.
    """
    some = _few(choose(glob, config.data_dir, reading_of(config)).lone)
    return next(((kind, name) for kind, name in some if has_vectors(config.data_dir / name, shard.dim)), None)


def _unused_column(shards):
    """Which column has the name of one of ids, and why it can't be that, in words; None where there is none."""
    for shard in shards:
        names = column_names(shard.table) if shard.table else []
        for column in (c for c in ID_COLUMNS if c in names and not can_be_ids(shard.table, c, shard.rows)):
            kind = column_type(shard.table, column, shard.rows)
            why = "is not UTF-8" if is_bytes(kind) else f"holds {kind}"
            if pa.types.is_null(kind):
                lacks = "has no text or number for each row (Python objects are never loaded)"
                why = "lacks some values" if shard.table.suffix in SUFFIXES else lacks
            return f"column {column!r} of {shard.table.name} {why}"
    return None


def _lone_ids(shards):
    """A file beside the shards with a line for each row, but no shard's name, in words; None where there is none."""
    folder, rows_of = shards[0].path.parent, {s.path.stem: s.rows for s in shards}
    names = {PurePath(path.name) for path in folder.iterdir()}
    known = {n.stem for n in names if n.suffix in MODULES and n.suffix not in SUFFIXES} | {*rows_of}
    lone = sorted(n for n in names if n.suffix in _JSON or (n.suffix in (".txt", *SUFFIXES) and n.stem not in known))
    n_rows = total_rows(shards)
    found = next((n for n in lone[:_OPENED] if _count(folder / n) == rows_of.get(n.stem, n_rows)), None)
    if found is None:
        return None
    suffix = ".txt" if found.suffix in _JSON else found.suffix
    stem = found.stem if found.stem in rows_of else shards[0].path.stem
    wanted = f"{stem}{suffix}" if len(shards) == 1 or found.stem in rows_of else "as the shards are"
    return f"{found} has as many as there are rows, but is not named {wanted}"


def _count(path):
    """How many rows a table has, how many values a JSON list, or lines a text; 0 where it can't be told quickly."""
    try:
        if path.suffix not in (".txt", ".csv", *_JSON):
            return schema_and_rows(path)[1]
        if path.stat().st_size > _READ_BYTES:
            return 0
        text = path.read_bytes()
        if text.lstrip().startswith(b"["):
            return len(json.loads(text))
        if path.suffix == ".json":
            return 0
        return text.removesuffix(b"\n").count(b"\n") + (path.suffix != ".csv")
    except (NeardupError, OSError, ValueError, RecursionError):
        return 0

"""The answer in the formats of others: a copy of the input without duplicates, DataComp's subset file, GraphML."""

import binascii
import csv
import json
import re
import shutil
from itertools import chain, compress
from pathlib import PurePath

import numpy as np

from neardup import NeardupError
from neardup.grouping.chains import pairs_of_groups
from neardup.grouping.outputs import id_line
from neardup.input.beside import STATE, names_about, names_beside, root_of
from neardup.input.embeddings import total_rows
from neardup.input.formats import npy, tables
from neardup.input.formats.by_suffix import write_kept
from neardup.input.id_table import bytes_of
from neardup.input.ids import BLOCK_ROWS
from neardup.machine import engine
from neardup.machine.files import LONGEST_CELL, atomic, resolved, write_json, write_npy

# what without rows doesn't say how many values a row has
_NEVER_EMPTY = ".fvecs", ".bvecs", ".index", ".faiss", ".parquet", ".arrow", ".feather"
_DIGITS = 32  # of a uid of DataComp, hexadecimal
_GRAPH_PAIRS = 250_000  # pairs of a group that are written as GraphML, in about 430 MB and 6 s
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what XML 1.0 can't hold (its section 2.2)


def write_copies(stage, shards, keep, ids, config):
    """What is kept, as others have it: DataComp's subset file, if ids that are kept are its uids; a copy, if wanted.

    keep: (n,) bool, of the rows of the shards; ids: an `IdTable`, of a second set's rows before those, if there is one.
    Returns the names of the files that the copy leaves out.
    """
    of_others = np.zeros(len(ids) - len(keep), dtype=bool)
    if keep.any():
        write_datacomp(stage.path("keep_datacomp.npy"), ids, np.concatenate([of_others, keep]))
    if not config.export:
        return []
    stage.needs(sum(p.stat().st_size for s in shards for p in {s.path, s.ids_path, s.table} if p), more=True)
    return write_copy(shards, keep, stage.path("export"), config.n_workers)


def write_copy(shards, keep, folder, n_workers):
    """Copy the shards with just the rows to keep, in their formats, and what lies beside them, a shard a task.

    keep: (n,) bool, over all rows; folder: of the copy; files of an earlier one there are removed first. Beside a shard
    lie its ids (.txt), its tables and, as clip-retrieval has them, its files in the other *_emb folder and in metadata;
    beside all texts.json, and what `datasets` of Hugging Face loads a folder by.

    Returns the names of what is left out: a shard of no rows in a format that can't say so, with all beside it, and
    what lies beside a shard but hasn't as many rows. Memory: a few blocks a worker; the ids of a shard where they are
    a JSON list; of FAISS the vectors of a shard. Raises NeardupError where the folder is that of the input, where two
    shards share what lies beside them, and where a file can't be read.
    """
    assert keep.shape == (total_rows(shards),)
    paths = {s.path for s in shards}
    beside, about = [names_beside(s, paths) for s in shards], names_about(shards)
    _make_way(shards, beside, about, folder)
    masks = [keep[s.start : s.stop] for s in shards]
    arguments = [(*a, folder) for a in zip(shards, masks, beside, strict=True)]
    left_out = [name for some in engine.run(_write_shard, arguments, n_workers, "045 export") for name in some]
    copied = [PurePath(s.name) for s in shards if s.name not in left_out]
    for name in about:
        _write_about(root_of(shards[0]), name, folder, {c.name for c in copied if c.parent == PurePath(name).parent})
    return left_out


def _make_way(shards, beside, about, folder):
    """Remove what is where the copy will be. Raises NeardupError where it can't be there."""
    owner = {}
    for shard, names in zip(shards, beside, strict=True):
        for name in (shard.name, *names):
            other = owner.setdefault(name, shard)
            if other is not shard:
                raise NeardupError(
                    f"{root_of(shard) / name} lies beside both {other.name} and {shard.name}, which keep different "
                    "rows: leave one of the two out with shard_pattern"
                )
    names = *owner, *about
    sources = {resolved(root_of(shards[0]) / name) for name in names}
    if any(resolved(folder / name) in sources for name in names):
        raise NeardupError(f"{folder} is the folder of the input, which is never written to: choose another one")
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _write_shard(shard, keep, beside, folder):
    """Copy what lies beside a shard, then the shard: never there without. Returns the names of what is left out."""
    if shard.path.suffix in _NEVER_EMPTY and not keep.any():
        return [shard.name, *beside]
    left_out = [name for name in beside if not _write_beside(root_of(shard) / name, folder / name, keep)]
    write_kept(shard.path, folder / shard.name, keep)
    return left_out


def _write_about(root, name, folder, copied):
    """Copy a file about shards of a folder; the state of a dataset as that of a new one, of those that were copied.

    copied: their names in it; without them there is nothing to tell.
    """
    if copied and PurePath(name).name != STATE:
        with atomic(folder / name) as temporary:
            shutil.copyfile(root / name, temporary)
    elif copied:
        with (root / name).open(encoding="utf-8") as file:
            state = _json(file)
        files = state.get("_data_files") if isinstance(state, dict) else None
        if isinstance(files, list):  # else it is somebody else's
            files = [f for f in files if isinstance(f, dict) and f.get("filename") in copied]
            write_json(folder / name, state | {"_data_files": files, "_fingerprint": None})


def _write_beside(path, target, keep):
    """Copy the rows to keep of a file. Returns whether it has n rows; otherwise nothing is written."""
    if path.suffix in (".txt", ".csv"):
        return (_write_ids if path.suffix == ".txt" else _write_csv)(path, target, keep)
    module = npy if path.suffix == ".npy" else tables
    fits = len(keep) == (npy.describe(path).rows if module is npy else tables.schema_and_rows(path)[1])
    if fits:
        module.write_kept(path, target, keep)
    return fits


def _write_csv(path, target, keep):
    """As `_write_beside`; what is kept is as it was, to the byte."""
    with path.open(encoding="latin-1", newline="") as file:
        if sum(1 for _ in _records(file)) != 1 + len(keep):
            return False
        file.seek(0)
        with atomic(target) as temporary, temporary.open("w", encoding="latin-1", newline="") as out:
            out.writelines(compress(_records(file), chain([True], keep)))
    return True


def _records(file):
    """Yield the records of a CSV file as they are written, over several lines where a cell does; no empty lines."""
    lines = []

    def read():
        for line in file:
            lines.append(line)
            yield line

    csv.field_size_limit(LONGEST_CELL)
    for cells in csv.reader(read()):
        if cells:
            yield "".join(lines)
        lines.clear()


def _write_ids(path, target, keep):
    """As `_write_beside`: a JSON list stays one, lines stay lines."""
    with path.open(encoding="utf-8-sig") as file:
        kept = _kept_ids(file, keep)
        if kept is not None:
            with atomic(target) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as out:
                out.writelines(kept)
    return kept is not None


def _kept_ids(file, keep):
    """The text of the ids to keep, in pieces, of a JSON list of n or of n lines; None of another file."""
    try:
        first = next(filter(str.strip, file), "")
        file.seek(0)
        ids = _json(file) if first.lstrip().startswith("[") else None
        file.seek(0)
        count = sum(1 for _ in file) or 1 if ids is None else len(ids)  # no line is an empty one
    except UnicodeDecodeError:
        return None
    file.seek(0)
    if count != len(keep):
        return None
    if ids is not None or not keep.any():  # no ids are no lines, but a list
        return [json.dumps(list(compress(ids or [], keep))), "\n"]
    return _as_lines(compress(file, keep))


def _json(file):
    """What a file holds as JSON; None if it doesn't, as lines may begin like it."""
    try:
        return json.load(file)
    except (ValueError, RecursionError):
        return None


def _as_lines(lines):
    """Yield lines, the first so that together they aren't taken for JSON, if another line stood before it."""
    begun = False
    for line in lines:
        name = line.removesuffix("\n")
        yield (json.dumps(name) if not begun and name.lstrip().startswith(("[", "{")) else name) + "\n"
        begun = begun or name.strip() != ""


def write_datacomp(path, ids, keep):
    """DataComp's subset file, if every id to keep is one of its uids: 32 hexadecimal digits. Returns whether it was.

    ids: an `IdTable`; keep: (n,) bool. The file is an .npy, (kept,) of dtype "u8,u8", ascending: the first and the last
    16 digits of each, as its resharder expects. Memory: 16 bytes a kept row, and the ids of a block.
    """
    uids, at = np.empty(int(np.count_nonzero(keep)), dtype=f"S{_DIGITS // 2}"), 0
    for low in range(0, len(keep), BLOCK_ROWS):
        rows = low + np.nonzero(keep[low : low + BLOCK_ROWS])[0]
        if len(rows):
            packed = _packed(ids.array(rows))
            if packed is None:
                return False
            uids[at : at + len(rows)] = packed
        at += len(rows)
    uids.sort()  # as bytes: numpy compares structures four times as slowly
    uids.view(">u8").byteswap(inplace=True)
    write_npy(path, uids.view("<u8,<u8"))
    return True


def _packed(names):
    """Ids of 32 hexadecimal digits as (r,) S16, big-endian; None if any isn't one. names: Arrow strings, not none."""
    sizes, text = bytes_of(names)
    if (sizes != _DIGITS).any():
        return None
    try:
        return np.frombuffer(binascii.unhexlify(text), f"S{_DIGITS // 2}")
    except binascii.Error:
        return None


def write_graph(path, groups, number, found, ids):
    """One group as GraphML: its rows, with id, kept and similarity to the representative; its pairs, with similarity.

    found: `Found`; ids: an `IdTable`. An id that XML or a line of text can't hold, or that begins with
    a quote, is a JSON string, which begins with a quote. Memory: 8 bytes a row, and 1.5 KB a pair of the group. Raises
    NeardupError where there is no group of that number, or it has over 250,000 pairs.
    """
    import networkx as nx

    if not len(groups):
        raise NeardupError(f"there are no groups, nor group {number}: set graph_group to None")
    if not 0 <= number < len(groups):
        raise NeardupError(f"there is no group {number}: choose one below {len(groups)}, as in groups.parquet")
    [(_, pairs)] = pairs_of_groups(groups, [number], found, _GRAPH_PAIRS)
    if not len(pairs):
        raise NeardupError(f"group {number} has over {_GRAPH_PAIRS:,} pairs, too many for GraphML: see neighbors.h5")
    graph, here = nx.Graph(), groups.members(number)
    rows, representative = groups.rows[here], groups.representative[number]
    columns = rows.tolist(), ids.take(rows), (rows == representative).tolist(), groups.similarity[here].tolist()
    for row, name, kept, similarity in zip(*columns, strict=True):
        graph.add_node(row, id=_xml_text(name), kept=kept, similarity=similarity)
    graph.add_weighted_edges_from(pairs.tolist(), weight="similarity")
    with atomic(path) as temporary, temporary.open("wb") as file:
        nx.write_graphml(graph, file)


def _xml_text(name):
    """An id as `id_line` has it, or as a JSON string where it holds what XML can't."""
    return json.dumps(name) if _NOT_XML.search(name) else id_line(name)

"""Whether the input is still what the stages were made from: what it holds decides, not when it was touched."""

import os
from functools import partial

from neardup import NeardupError
from neardup.input.embeddings import open_shards, piece_groups, pieces
from neardup.input.id_table import bytes_of
from neardup.input.ids import id_blocks
from neardup.machine import engine
from neardup.machine.checksums import Digest, digest_of_bytes, digest_of_file, digest_of_sample
from neardup.machine.files import read_json, write_json

_MEMO = ".input.json"  # in the work folder: when which shard was last seen to hold what
_BLOCK_ROWS = 8192  # rows hashed together


def fingerprint(shards):
    """What identifies the input without reading it all: name, shape, dtype and samples of each shard and its ids."""
    return [
        {
            "name": shard.name,
            "rows": shard.rows,
            "dim": shard.dim,
            "dtype": shard.dtype.str,
            "sample": None if shard.copy else digest_of_sample(shard.path),  # what is decoded is looked at there
            "vectors": shard.vectors,
            "ids": digest_of_sample(shard.ids_path) if shard.ids_path and shard.ids_path.suffix == ".txt" else None,
            "id_column": shard.id_column,
        }
        for shard in shards
    ]


def times(shards):
    """When each shard, or its copy, and its ids were changed last, and their sizes: [[ns, bytes, ns, bytes]].

    And a sample of ids in a table, of which the `fingerprint` has none, for other columns don't matter.
    """
    found = []
    for shard in shards:
        states = [p.stat() if p and p.exists() else None for p in (shard.copy or shard.path, shard.ids_path)]
        found.append([n for s in states for n in ((s.st_mtime_ns, s.st_size) if s else (0, 0))])
        if states[1] and shard.ids_path.suffix != ".txt" and shard.ids_path != shard.path:
            found[-1].append(digest_of_sample(shard.ids_path))
    return found


def content(shards, digests):
    """[[digest of the rows, digest of the ids]] of each shard. digests: of its pieces, all shards' in order."""
    return [[rows, _digest_of_ids(shard)] for rows, shard in zip(digests_of_rows(shards, digests), shards, strict=True)]


def digests_of_rows(shards, digests):
    """The digest of the rows of each shard. digests: of its pieces, all shards' in order."""
    digests = iter(digests)
    counts = [len(pieces((0, shard.rows))) for shard in shards]
    return [digest_of_bytes(*(next(digests).encode() for _ in range(count))) for count in counts]


def _digest_of_ids(shard):
    """Of the file of ids, or of their column in a table, which may hold more; None where rows are numbered."""
    if shard.ids_path is None or shard.ids_path.suffix == ".txt":
        return digest_of_file(shard.ids_path) if shard.ids_path else None
    digests = Digest(), Digest()
    for ids in id_blocks(shard):
        for digest, found in zip(digests, bytes_of(ids), strict=True):
            digest.update(found)
    return digest_of_bytes(*(digest.hexdigest().encode() for digest in digests))


def read_content(shards, n_workers):
    """As `content`, from the files. Memory: a block a worker."""
    rows = open_shards(shards)
    digests = engine.run(partial(_digests_of, rows), piece_groups(rows), n_workers, "hash input")
    return content(shards, [digest for found in digests for digest in found])


def _digests_of(rows, *some):
    """Digest of each of some pieces."""
    found = []
    for piece in some:
        digest = Digest()
        for block in piece.blocks(_BLOCK_ROWS):
            digest.update(rows.read(*block))
        found.append(digest.hexdigest())
    return found


def remember(work_dir, shards, seen, found):
    """Note that at these times the shards held this. seen: of `times`; found: of `content`, None where unknown."""
    memo = {name: [t, c] for name, t, c in zip(_names(shards), seen, found, strict=True) if c}
    write_json(work_dir / _MEMO, memo, flush=False)  # of this machine; read again where it is lost


def _names(shards):
    """The shards' paths below the folder that holds them all."""
    paths = [shard.path.absolute() for shard in shards]
    folder = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(folder)) for path in paths]


def changed_shards(run, seen, recorded, all_of_them=False):
    """Numbers of the shards of a `Run` that hold something else than recorded. Reads those touched since, or all.

    seen: of `times`, at most as late as they are read; recorded: of `content`, when stage 1 read them, None of shards
    that don't matter. What is unchanged is noted with its times, if the work folder is the run's alone.
    """
    shards, path = run.shards, run.config.work_dir / _MEMO
    try:
        memo = read_json(path) if path.exists() else {}
    except NeardupError:  # without it all is read again
        memo = {}
    doubtful = [
        i
        for i, (name, *seen_and_recorded) in enumerate(zip(_names(shards), seen, recorded, strict=True))
        if recorded[i] and (all_of_them or memo.get(name) != seen_and_recorded)
    ]
    if not doubtful:
        return []
    found = read_content([shards[i] for i in doubtful], run.config.n_workers)
    changed = [i for i, f in zip(doubtful, found, strict=True) if f != recorded[i]]
    if run.locked and not changed:
        remember(run.config.work_dir, shards, seen, recorded)
    return changed

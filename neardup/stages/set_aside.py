"""Rows without a direction, and ids that rows share: refused by stage 1, or listed there for the stages after it."""

from itertools import chain

import numpy as np

from neardup import NeardupError
from neardup.input.embeddings import shard_starts, total_rows
from neardup.input.id_table import IdTable
from neardup.machine.files import read_csv, write_csv, write_npy
from neardup.ranges import block_ranges
from neardup.words import counted

_SHOWN = 10  # bad rows or repeated ids that an error names
_LISTED = 1 << 14  # rejected rows whose shards and ids are looked up together
_REASONS = "all zeros", "NaN or infinity"
REJECTED = np.dtype([("row", "<i8"), ("reason", "u1")])  # the row, and which of the reasons


def rejected_of(stored, bad, start):
    """The bad rows of a block as REJECTED. bad: which, (n,) bool; start: the number of its first row."""
    places = np.nonzero(bad)[0]
    found = np.empty(len(places), REJECTED)
    found["row"] = start + places
    found["reason"] = np.any(stored[places] != 0, axis=1)
    return found


def rejected_before(stage):
    """REJECTED of the rows that were rejected when they were read, as far as they are still there."""
    if not stage.growth:
        return np.empty(0, REJECTED)
    lines = read_csv(stage.previous.path("rejected.csv"))
    found = np.fromiter(((int(line["row"]), _REASONS.index(line["reason"])) for line in lines), REJECTED)
    found["row"] = stage.growth.renumbered(found["row"])
    return found[found["row"] >= 0]


def keep_rejected(stage, shards, rejected, config):
    """Stop on rows without a direction, or list them in rejected.csv and rejected_rows.npy. rejected: REJECTED."""

    def lines(some):
        """Yield (row, shard, row in the shard, id, reason) of each."""
        places = places_of(stage, shards, some["row"])
        for (row, reason), (shard, at, name) in zip(some.tolist(), places, strict=True):
            yield row, shard.name, at, name, _REASONS[reason]

    if len(rejected) and config.bad_rows == "error":
        shown = lines(rejected[:_SHOWN])
        places = "; ".join(f"{file} row {at} (id {name!r}): {reason}" for _, file, at, name, reason in shown)
        some, have = counted(len(rejected), "row"), "has" if len(rejected) == 1 else "have"
        raise NeardupError(
            f"{some}{which_set(config)} {have} no direction: {places}; mend them, or set bad_rows to 'skip' to leave "
            "them out"
        )
    if len(rejected) == total_rows(shards):
        raise NeardupError(
            f"none of the {len(rejected)} rows has a direction (NaN, infinity or zeros): nothing to compare"
        )
    blocks = (rejected[low:high] for low, high in block_ranges(0, len(rejected), _LISTED))
    named = "row", "shard", "row_in_shard", "id", "reason"
    write_csv(stage.path("rejected.csv"), chain([named], chain.from_iterable(map(lines, blocks))))
    write_npy(stage.path("rejected_rows.npy"), rejected["row"].copy())


def keep_repeated(stage, shards, repeated, config):
    """Stop on ids that rows share, or list those rows in repeated_rows.npy."""
    if len(repeated) and config.duplicate_ids == "error":
        places = [
            f"{name!r} (row {at} of {(shard.ids_path or shard.path).name})"
            for shard, at, name in places_of(stage, shards, repeated[:_SHOWN])
        ]
        which, more = "them", ", or id_column to '' to number the rows"
        if all(shard.ids_path is None for shard in shards):
            which, more = "one of these files", ""
        raise NeardupError(
            f"{len(repeated)} rows{which_set(config)} share their id with another: {', '.join(places)}; rename "
            f"{which}, or set duplicate_ids to 'allow' to keep them as rows of one name{more}"
        )
    write_npy(stage.path("repeated_rows.npy"), repeated)


def places_of(stage, shards, rows):
    """The shard of each of some rows, its number there, and its id: [(Shard, row in it, id)]."""
    numbers = np.searchsorted(shard_starts(shards), rows, side="right") - 1
    ids = IdTable.open(stage.path("ids.arrow")).take(rows)
    return [(shards[n], int(row) - shards[n].start, name) for n, row, name in zip(numbers, rows, ids, strict=True)]


def which_set(config):
    """In words which of two sets is read, nothing where there is one: files of both may have the same names."""
    return f" of {config.set_by} {config.data_dir}" if config.is_reference or config.against_dir is not None else ""

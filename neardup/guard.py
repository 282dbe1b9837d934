"""What a decision would cost, counted in rows: by shard, by columns of metadata; and what is suspiciously much."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.metadata import read_column

_LARGE_GROUP, _LARGE_LOSS = 0.01, 0.9  # share of all rows in one group, and of a shard dropped, that are worth a look


def losses(shards, columns, dropped):
    """How many rows there are, and how many of them are dropped: [(by, value, rows, dropped)].

    columns: names of metadata; dropped: (n,) bool. Raises NeardupError where a shard has no such column. Memory: a
    column of a shard, and its distinct values.
    """
    found = [("shard", s.name, s.rows, int(dropped[s.start : s.start + s.rows].sum())) for s in shards]
    for column in columns:
        counts = {}
        for shard in shards:
            if shard.table is None:
                raise NeardupError(f"tabulate: {shard.path} has no table with a column {column!r}: set it right")
            values = read_column(shard.table, column, shard.rows).cast(pa.large_string()).dictionary_encode()
            codes = pc.fill_null(values.indices, len(values.dictionary)).to_numpy(zero_copy_only=False)
            drop = dropped[shard.start : shard.start + shard.rows]
            names = [*values.dictionary.to_pylist(), ""]
            per_value = zip(*(np.bincount(c, minlength=len(names)).tolist() for c in (codes, codes[drop])), strict=True)
            for name, (rows, lost) in zip(names, per_value, strict=True):
                before = counts.get(name, (0, 0))
                counts[name] = before[0] + rows, before[1] + lost
        found += [(column, name, *counts[name]) for name in sorted(counts) if counts[name][0]]
    return found


def warnings(groups, found, n_rows, explained):
    """Lines about groups and shards that take suspiciously much, each with a group's weakest link.

    found: of `losses`; explained: of `chains.explain_chains`.
    """
    lines = []
    for number in np.nonzero(groups.sizes > _LARGE_GROUP * n_rows)[0]:
        size, name = int(groups.sizes[number]), groups.name(number)
        links = explained.get(name, {}).get("path_similarities")
        link = f", its weakest link {min(links):.4f}" if links else ""
        lines.append(
            f"{name} takes {size / n_rows:.1%} of all rows ({size:,}): the farthest is {groups.weakest[number]:.4f} "
            f"similar to the one kept{link}"
        )
    for by, value, rows, dropped in found:
        if by == "shard" and dropped > _LARGE_LOSS * rows:
            lines.append(f"{value} loses {dropped / rows:.1%} of its rows ({dropped:,} of {rows:,})")
    return lines

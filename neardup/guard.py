"""What a decision would cost, counted in rows: by shard, by columns of metadata; and what is suspiciously much."""

import numpy as np
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.metadata import as_text, read_column

_LARGE_GROUP, _LARGE_LOSS = 0.01, 0.9  # share of all rows in one group, and of a shard dropped, that are worth a look
_LARGE_ROWS, _LINES = 10, 10  # rows of such a group, at least; lines of a kind


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
            values = as_text(read_column(shard.table, column, shard.rows), shard.table, column).dictionary_encode()
            codes = pc.fill_null(values.indices, len(values.dictionary)).to_numpy(zero_copy_only=False)
            drop = dropped[shard.start : shard.start + shard.rows]
            names = [*values.dictionary.to_pylist(), ""]
            per_value = zip(*(np.bincount(c, minlength=len(names)).tolist() for c in (codes, codes[drop])), strict=True)
            for name, (rows, lost) in zip(names, per_value, strict=True):
                before = counts.get(name, (0, 0))
                counts[name] = before[0] + rows, before[1] + lost
        found += [(column, name, *counts[name]) for name in sorted(counts) if counts[name][0]]
    return found


def warnings(groups, found, n_rows, forest):
    """Lines about groups and shards that take suspiciously much, each with a group's weakest link.

    found: of `losses`; forest: the pairs of the maximum spanning forest at the threshold, which hold groups together.
    """
    share = groups.sizes / n_rows
    large = np.nonzero((share > _LARGE_GROUP) & (groups.sizes >= _LARGE_ROWS))[0]
    large = large[np.argsort(-groups.sizes[large], kind="stable")]
    weakest_link = np.ones(n_rows)
    of_row = np.arange(n_rows)
    of_row[groups.rows] = np.repeat(groups.smallest, groups.sizes)
    np.minimum.at(weakest_link, of_row[forest["row_a"]], forest["similarity"])
    lines = [
        f"{groups.name(number)} takes {share[number]:.1%} of all rows ({groups.sizes[number]:,}): the farthest is "
        f"{groups.weakest[number]:.4f} similar to the one kept, its weakest link "
        f"{weakest_link[groups.smallest[number]]:.4f}"
        for number in large[:_LINES]
    ]
    if len(large) > _LINES:
        lines.append(f"{len(large) - _LINES:,} more groups take over {_LARGE_GROUP:.0%} of all rows")
    lost = [line for line in found if line[0] == "shard" and line[3] > _LARGE_LOSS * line[2]]
    lines += [f"{v} loses {d / r:.1%} of its rows ({d:,} of {r:,})" for _, v, r, d in lost[:_LINES]]
    if len(lost) > _LINES:
        lines.append(f"{len(lost) - _LINES:,} more shards lose over {_LARGE_LOSS:.0%} of their rows (losses.csv)")
    return lines

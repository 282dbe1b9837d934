"""What a decision would cost, counted in rows: by shard, by columns of metadata; and what is suspiciously much."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.grouping.chains import place_of, places_among
from neardup.grouping.thresholds import spanning_forest
from neardup.input.ids import BLOCK_ROWS
from neardup.input.metadata import as_text, column_blocks
from neardup.words import counted, in_words, percent

_LARGE_GROUP, _LARGE_LOSS = 0.01, 0.9  # share of all rows in one group, and of a shard dropped, that are worth a look
_LARGE_ROWS, _LINES = 10, 10  # rows of such a group, at least; lines of a kind


class Losses:
    """How many rows there are, and how many of them are dropped: an iterable of (by, value, rows, dropped).

    of_shards: such lines; of_columns: [(by, Arrow strings, (c, 2) int64 rows and dropped)]. Memory: those, 8 bytes a
    value, and as Python objects a block.
    """

    def __init__(self, of_shards, of_columns):
        self.of_shards, self.of_columns = of_shards, of_columns

    def __iter__(self):
        yield from self.of_shards
        for by, values, counts in self.of_columns:
            order = pc.sort_indices(values)
            for start in range(0, len(order), BLOCK_ROWS):
                some = order[start : start + BLOCK_ROWS]
                for value, line in zip(values.take(some).to_pylist(), counts[some.to_numpy()].tolist(), strict=True):
                    yield by, value, *line


def losses(shards, columns, dropped):
    """The `Losses` by shard, and by columns of metadata, the values of each in order.

    columns: names; one named "shard" is "column shard" here; dropped: (n,) bool. Raises NeardupError where a shard has
    no such column. Memory: a block of a column, and its distinct values, three times.
    """
    of_shards = [("shard", s.name, s.rows, int(dropped[s.start : s.stop].sum())) for s in shards]
    of_columns = [("column shard" if c == "shard" else c, *_counted(shards, c, dropped)) for c in columns]
    return Losses(of_shards, of_columns)


def _counted(shards, column, dropped):
    """The distinct values of a column, and how many rows have each and how many of those are dropped, (c, 2) int64."""
    parts = [(pa.array([], pa.large_string()), np.empty((0, 2), np.int64))]
    for shard in shards:
        if shard.table is None:
            raise NeardupError(f"tabulate: {shard.path} has no table with a column {column!r}: set it right")
        start = shard.start
        for block in column_blocks(shard.table, column, shard.rows):
            values, lost = as_text(block, shard.table, column), dropped[start : start + len(block)]
            counts = np.stack([np.ones(len(block), np.int64), lost], axis=1)
            parts.append(_added_up([(pc.fill_null(values, ""), counts)]))
            if sum(len(values) for values, _ in parts[1:]) > len(parts[0][0]):
                parts = [_added_up(parts)]
            start += len(block)
    return _added_up(parts)


def _added_up(parts):
    """Distinct values and their counts, of some [(values, counts)] that may share values."""
    values = pa.concat_arrays([values for values, _ in parts]).dictionary_encode()
    counts = np.zeros((len(values.dictionary), 2), dtype=np.int64)
    np.add.at(counts, values.indices.to_numpy(), np.concatenate([some for _, some in parts]))
    return values.dictionary, counts


def warnings(groups, of_shards, n_rows, pair_blocks):
    """Lines about groups and shards that take suspiciously much, each with a group's weakest link.

    of_shards: of `Losses`; pair_blocks: of `weakest_links`, or None where the known pairs don't tell those.
    """
    share = groups.sizes / n_rows
    large = np.nonzero((share > _LARGE_GROUP) & (groups.sizes >= _LARGE_ROWS))[0]
    large = large[np.argsort(-groups.sizes[large], kind="stable")]
    lines = [
        f"{groups.name(number)} takes {percent(share[number])} of all rows ({groups.sizes[number]:,}): the farthest is "
        f"{in_words(groups.weakest[number])} similar to the one kept"
        for number in large[:_LINES]
    ]
    if pair_blocks is not None:
        links = weakest_links(groups, large[:_LINES], n_rows, pair_blocks)
        lines = [f"{line}, its weakest link {in_words(link)}" for line, link in zip(lines, links, strict=True)]
    if len(large) > _LINES:
        lines.append(f"{counted(len(large) - _LINES, 'more group')} of over {_LARGE_GROUP:.0%} of all rows")
    lost = [line for line in of_shards if line[3] > _LARGE_LOSS * line[2]]
    lines += [f"{v} loses {percent(d / r)} of its rows ({d:,} of {r:,})" for _, v, r, d in lost[:_LINES]]
    if len(lost) > _LINES:
        lines.append(f"{counted(len(lost) - _LINES, 'more shard')} of which over {_LARGE_LOSS:.0%} go (losses.csv)")
    return lines


def weakest_links(groups, chosen, n_rows, pair_blocks):
    """The highest threshold at which the pairs within each of some groups still join it, (c,) float64.

    pair_blocks: all pairs, or a maximum spanning forest of them, if the pairs within a group are what joins it. Memory:
    8 bytes a row, and as in `spanning_forest`.
    """
    number_of, links = places_among(chosen, groups, n_rows), np.ones(len(chosen))
    forest = spanning_forest(pairs.compress(place_of(pairs, number_of)[1]) for pairs in pair_blocks)
    np.minimum.at(links, number_of[forest["row_a"]], forest["similarity"])
    return links

"""Which row of a group is kept, and how similar the others are to it."""

from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.grouping.groups import Groups
from neardup.input.embeddings import total_rows
from neardup.input.metadata import column_blocks
from neardup.machine import budget, engine
from neardup.machine.files import write_npy
from neardup.machine.npy import read_npy
from neardup.notices import notice
from neardup.ranges import size_ranges
from neardup.search import geometry

_TIE = 1e-12  # mean similarities closer than this are equal; float64 sums over 4,096 values are off by less
_BLOCK_ROWS = 2048  # members of groups that a task reads, at most, of several groups
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_COMMAS = r"^\s*[-+]?\d+(,\d+)+(\.\d*)?\s*$"  # numbers to whoever wrote them
_DATE = r"^\d{4}-\d\d"  # which letters put in order
_COMPARED_ROWS = 256  # of those that are compared at a time: 2 MB in float64 at 1,024 values, which caches hold


def preference(wanted, shards, lengths):
    """How early each row is preferred as the one that is kept, (n,) int64, the lowest first; None: by its vector.

    wanted: the setting `representative`; lengths(): of the rows' texts, (n,) int64. Raises NeardupError where there is
    no such column, nor any text. Memory: the column, of text that is numbers twice, and 24 bytes a row.
    """
    n_rows = total_rows(shards)
    if wanted == "central":
        return None
    if wanted == "first":
        return np.arange(n_rows)
    if wanted == "longest_text":
        found = lengths()
        if not found.any():
            raise NeardupError("representative 'longest_text': no row has a text: set preview to where texts are")
        return -found
    order, _, column = wanted.partition(":")
    without = next((s for s in shards if s.table is None), None)
    if without:
        raise NeardupError(
            f"representative {wanted!r} needs a table with a column {column!r}, but {without.path} has none"
        )
    values = _ordered(column, [_read(s.table, column, s.rows) for s in shards])
    if values.null_count == len(values):
        raise NeardupError(f"column {column!r} has no value in any row: set representative to another")
    if pa.types.is_large_string(values.type):
        values = _as_numbers(column, values, shards)
    direction = {"highest": "descending", "lowest": "ascending"}[order]
    try:
        ranks = pc.rank(values, sort_keys=[(column, direction, "at_end")], tiebreaker="dense")
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise NeardupError(
            f"column {column!r} holds {values.type}, which has no order: set representative to another"
        ) from error
    return ranks.to_numpy(zero_copy_only=False).astype(np.int64)


def _read(path, column, rows):
    """A column as an Arrow array of chunks; null where a text is empty. Arguments and errors as in `column_blocks`."""
    blocks = column_blocks(path, column, rows)
    found = [pc.if_else(pc.equal(b, ""), None, b) if pa.types.is_large_string(b.type) else b for b in blocks]
    return pa.chunked_array(found or [pa.nulls(0)])


def _ordered(column, parts):
    """The values of a column, of all shards in one type that has an order, if there is one; missing ones are null."""
    if any(pa.types.is_large_string(p.type) for p in parts):  # of which those of other shards may look like numbers
        parts = [p.cast(pa.large_string()) if _is_number(p.type) else p for p in parts]
    try:
        tables = [pa.table({column: p}) for p in parts]
        values = pa.concat_tables(tables, promote_options="permissive").column(0)
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise NeardupError(f"column {column!r} is not of one type in all shards ({error}): write it again") from error
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    if pa.types.is_null(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    return values


def _is_number(kind):
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _as_numbers(column, values, shards):
    """A column of text as numbers where all are; else as it is, which is said, for "9" comes after "10" then.

    Raises NeardupError where most are numbers: it would be the others for which all are compared as text.
    """
    are_numbers = pc.match_substring_regex(values, _NUMBER)
    n_values, n_numbers = len(values) - values.null_count, pc.sum(are_numbers).as_py() or 0
    if n_numbers == n_values:
        values = pc.replace_substring_regex(pc.utf8_trim_whitespace(values), r"^\+", "")
        try:
            return values.cast(pa.int64())  # of which float64 may not tell all apart
        except pa.ArrowInvalid:
            return values.cast(pa.float64())
    if 2 * n_numbers > n_values:
        row = pc.index(are_numbers, False).as_py()
        shard = next(s for s in shards if row < s.stop)
        raise NeardupError(
            f"{shard.table}: column {column!r} is text, for row {row - shard.start} holds {values[row].as_py()!r}, and "
            f"{n_numbers:,} of {n_values:,} are numbers: mend it, leave it empty, or set representative to another"
        )
    if pc.all(pc.match_substring_regex(values, _COMMAS)).as_py():
        raise NeardupError(
            f"column {column!r} is text of numbers with commas, such as {values.drop_null()[0].as_py()!r}: write them "
            "with points alone, or set representative to another"
        )
    if not pc.all(pc.match_substring_regex(values, _DATE)).as_py():
        notice(f"column {column!r} is text: compared letter by letter, '10' before '9'")
    return values


class Representatives:
    """The representatives of groups, and their members' similarities to them; of a group that was seen, as it was.

    stage: keeps what an interrupted run chose; rows: `RowFiles`; preferred: of `preference`; labels: (n,) int32, the
    cluster of each row; kept: rows that represent their group, of which each has one at most, (n,) bool. A group is
    known by its smallest row and its size: those asked for must be nested, each either within an earlier one or around
    it. strongest: similarity of each row's strongest pair, (n,) float64, where a group of two is always joined by that;
    such groups, most of all, need no vectors then. Memory: 40 bytes a row, and a quarter of the working memory.
    """

    def __init__(self, stage, name, rows, preferred, labels, config, kept=None, strongest=None):
        self.stage, self.name, self.rows, self.config = stage, name, rows, config
        self.preferred, self.labels, self.kept, self.strongest, self.calls = preferred, labels, kept, strongest, 0
        self.size, self.representative = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        self.similarity = np.zeros(len(rows))

    def learn(self, groups):
        """Take over the representatives of some groups."""
        self.size[groups.smallest], self.representative[groups.smallest] = groups.sizes, groups.representative
        self.similarity[groups.rows] = groups.similarity

    def of(self, members, bounds):
        """The `Groups` of these members. members, bounds: as in `members_and_bounds`."""
        smallest, sizes = members[bounds[:-1]], np.diff(bounds)
        new = self.size[smallest] != sizes
        if self.strongest is not None:
            two = new & (sizes == 2)
            self._learn_twos(members[np.repeat(two, sizes)].reshape(-1, 2))
            new &= ~two
        if new.any():
            some = members[np.repeat(new, sizes)], np.cumulative_sum(sizes[new], include_initial=True)
            self.learn(self._choose(*some))
        representative = self.representative[smallest]
        return Groups(members, bounds, self.similarity[members], representative, self.labels[representative])

    def _learn_twos(self, twos):
        """Choose in groups of two, (g, 2) rows, which are equally central: by preference, or the first."""
        first, second = twos.T
        takes_second = np.zeros(len(twos), dtype=bool)
        if self.preferred is not None:
            takes_second = self.preferred[second] < self.preferred[first]
        if self.kept is not None:
            takes_second = (takes_second & ~self.kept[first]) | self.kept[second]
        self.size[first], self.representative[first] = 2, np.where(takes_second, second, first)
        self.similarity[first] = self.similarity[second] = self.strongest[first]
        self.similarity[self.representative[first]] = 1

    def _choose(self, members, bounds):
        name, self.calls = f"{self.name}{self.calls}", self.calls + 1
        config = self.config
        most = budget.block_rows(self.stage.memory, config.n_workers, 64 * self.rows.dim, _BLOCK_ROWS)
        ranges = self.stage.once(partial(size_ranges, bounds, most), name, "ranges").tolist()
        ranges = [(number, *r) for number, r in enumerate(ranges)]
        how = {"rows": self.rows, "preferred": self.preferred, "kept": self.kept, "most": most}
        task = partial(_represent, self.stage, name, members=members, bounds=bounds, **how)
        engine.run(task, ranges, config.n_workers, "045 representatives")
        kinds = [
            [read_npy(self.stage.volatile(name, k, r[0])) for r in ranges] for k in ("representative", "similarity")
        ]
        representative, similarity = map(np.concatenate, kinds)
        return Groups(members, bounds, similarity, representative, self.labels[representative])


def _represent(stage, name, number, low, high, *, members, bounds, rows, preferred, kept, most):
    """Write the representatives of the groups low to high, and their members' similarities to them.

    members, bounds: of all groups; most: how many rows are read at once: a larger group in pieces.
    """
    if stage.volatile(name, "similarity", number).exists():
        return
    members, bounds = members[bounds[low] : bounds[high]], bounds[low : high + 1] - bounds[low]
    pieces = [slice(s, s + most) for s in range(0, len(members), most)]
    read = lru_cache(maxsize=1)(lambda i: rows.gather(members[pieces[i]]))
    represent = partial(_represent_some, rows, preferred=preferred, kept=kept)
    if len(pieces) > 1:
        found = [represent(read, pieces, members, bounds)]
    else:
        found = []
        for first, last in size_ranges(bounds, _COMPARED_ROWS):
            here = slice(*bounds[[first, last]].tolist())
            some, of_these = members[here], bounds[first : last + 1] - bounds[first]
            stored, whole = read(0)[here], [slice(0, len(some))]
            found.append(represent(lambda _, s=stored: s, whole, some, of_these))
    representative, similarity = map(np.concatenate, zip(*found, strict=True))
    write_npy(stage.volatile(name, "representative", number), representative, flush=stage.flush)
    write_npy(stage.volatile(name, "similarity", number), similarity, flush=stage.flush)


def _represent_some(rows, read, pieces, members, bounds, *, preferred, kept):
    """The representatives of some groups, (G,), and their members' similarities to them, (m,) float64.

    read(i): the vectors of a piece of the members, as stored.
    """
    of_group = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    if preferred is None:
        best = first_best(_centrality(read, pieces, bounds, of_group, rows.dim), of_group, bounds)
    else:
        best = _first_lowest(preferred[members], of_group, bounds)
    if kept is not None:
        places = np.nonzero(kept[members])[0]
        best[of_group[places]] = places
    if len(pieces) == 1:
        return members[best], geometry.similarities_among(read(0), np.arange(len(members)), best[of_group])
    parts = [geometry.similarities(read(i), rows.gather(members[best[of_group[p]]])) for i, p in enumerate(pieces)]
    return members[best], np.concatenate(parts)


def _centrality(read, pieces, bounds, of_group, dim):
    """The sum of each row's similarities to all of its group, (m,) float64; 0 in groups of two, where both are equal.

    It is the row's dot product with the sum of their unit rows, so a group of g rows costs g d, not g^2 d.
    """
    from scipy.sparse import csr_array

    several = np.repeat(np.diff(bounds) > 2, np.diff(bounds))
    sums, score = np.zeros((len(bounds) - 1, dim)), np.zeros(len(of_group))
    unit = lru_cache(maxsize=1)(lambda i: geometry.unit_rows(read(i)[several[pieces[i]]])[0])
    for i, piece in enumerate(pieces):
        groups, first = np.unique(of_group[piece][several[piece]], return_index=True)
        if len(groups):
            n_rows = len(unit(i))  # sums are a product with ones: np.add.reduceat takes 10 times as long
            ones = csr_array((np.ones(n_rows), np.arange(n_rows), np.append(first, n_rows)))
            sums[groups] += ones @ unit(i)
    for i, piece in enumerate(pieces):
        which = piece.start + np.nonzero(several[piece])[0]
        score[which] = np.einsum("ij,ij->i", unit(i), sums[of_group[which]])
    return score


def first_best(score, of_group, bounds):
    """Position of each group's first member whose mean similarity to the others is the highest, rounding aside.

    score: (m,) float64, sums of similarities with all members; of_group: (m,); bounds: (G + 1,). Returns (G,) int64.
    """
    mean = (score - 1) / (np.diff(bounds) - 1)[of_group]
    highest = np.maximum.reduceat(mean, bounds[:-1])
    return _first_of_each(of_group, mean >= highest[of_group] - _TIE)


def _first_lowest(values, of_group, bounds):
    """Position of each group's first member of the lowest value. Returns (G,) int64."""
    lowest = np.minimum.reduceat(values, bounds[:-1])
    return _first_of_each(of_group, values == lowest[of_group])


def _first_of_each(of_group, chosen):
    places = np.nonzero(chosen)[0]
    _, first = np.unique(of_group[places], return_index=True)
    return places[first]

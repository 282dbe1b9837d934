"""A finished run that goes on with other shards: which rows of the input then are which now, and which are new."""

from collections import defaultdict, deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from neardup.input.embeddings import pieces
from neardup.input.freshness import changed_shards
from neardup.machine.checksums import digest_of_values

_FEW = 8  # times fewer rows visit others that are read through: more would take many parts, each of which reads all


@dataclass(frozen=True)
class Growth:
    """Where the shards of an earlier input are in that of today.

    before: (B + 1,) int64, where its shards began, and how many rows it had; now: (S + 1,), the same of today's;
    of: (B,) int64, the shard of today that holds what each held, ascending, -1 where none does. against: whether both
    are sets of their own, of which only pairs between them are of interest.
    """

    before: np.ndarray
    now: np.ndarray
    of: np.ndarray
    against: bool = False

    def renumbered(self, rows):
        """Today's numbers of rows of the earlier input, -1 of those that are gone; the others keep their order."""
        rows = np.asarray(rows, dtype=np.int64)
        shard = np.searchsorted(self.before, rows, side="right") - 1
        moved = rows - self.before[shard] + self.now[self.of[shard]]
        return np.where(self.of[shard] >= 0, moved, -1)

    @cached_property
    def removes(self):
        """Whether some of the earlier rows are gone."""
        return bool((np.diff(self.before)[self.of < 0] > 0).any())

    @property
    def changes(self):
        """Whether rows came or went."""
        return self.removes or self.n_fresh > 0

    @cached_property
    def moves(self):
        """Whether some of the earlier rows are gone or have other numbers."""
        return self.removes or not np.array_equal(self.now[self.of], self.before[:-1])

    @cached_property
    def fresh(self):
        """Which shards of today are new, (S,) bool."""
        fresh = np.ones(len(self.now) - 1, dtype=bool)
        fresh[self.of[self.of >= 0]] = False
        return fresh

    @cached_property
    def n_fresh(self):
        """How many rows are new."""
        return int(np.diff(self.now)[self.fresh].sum())

    def pieces(self):
        """Today's `pieces` of shards that are new; and those of the others, each with the name that it had then."""
        then = defaultdict(list)
        for piece in pieces(self.before):
            then[int(self.of[piece.file])].append(piece.name)
        today, names = pieces(self.now), {file: iter(some) for file, some in then.items()}
        kept = [(piece, next(names[piece.file])) for piece in today if not self.fresh[piece.file]]
        return [piece for piece in today if self.fresh[piece.file]], kept

    def is_fresh(self, rows):
        """Which of some rows of today are new, (r,) bool."""
        return self.fresh[np.searchsorted(self.now, rows, side="right") - 1]

    @property
    def sets(self):
        """Where the rows of each set begin, and how many there are: ids are unique in each."""
        return [0, *([int(self.before[-1])] if self.against else []), int(self.now[-1])]

    @property
    def scans(self):
        """Whether new rows get no cluster files: of two sets, where those of the other are few, which visit them."""
        return self.against and _FEW * int(self.before[-1]) <= self.n_fresh

    @cached_property
    def new_rows_visit(self):
        """Whether new rows visit the clusters of those that they have to meet: of two sets the smaller one does."""
        return not self.against or self.n_fresh <= self.before[-1]

    def are_visitors(self, rows=None):
        """Which of some rows of today, or of all, visit, (r,) bool."""
        return (self.each_is_fresh() if rows is None else self.is_fresh(rows)) == self.new_rows_visit

    def each_is_fresh(self):
        """Which of all rows of today are new, (n,) bool."""
        return np.repeat(self.fresh, np.diff(self.now))


def growth_of(run, manifest):
    """The `Growth` of the input of a `Run` since a stage was made of it; None where nothing is left.

    Stage 1, which will say what the shards hold, sees it from names, samples and times; what was touched is read.
    """
    if run.content is not None:
        return grown(manifest["shards"], run.shards_held())
    growth = grown(*([(digest_of_values(e), e["rows"]) for e in of] for of in (manifest["source"], run.fingerprint)))
    if growth is None:
        return None
    content, recorded = manifest["results"]["content"], [None] * len(run.shards)
    for then, today in enumerate(growth.of.tolist()):
        if today >= 0:
            recorded[today] = content[then]
    changed = changed_shards(run, run.times, recorded, run.config.verify_input)
    growth.of[np.isin(growth.of, changed)] = -1
    return growth if (growth.of >= 0).any() else None


def grown(before, now):
    """How an input became another one, or None where nothing of it is left.

    before, now: [(what a shard holds, rows)] of either, in their order; two that hold the same are the same.
    """
    places, of, last = defaultdict(deque), [], -1
    for number, (what, _) in enumerate(now):
        places[what].append(number)
    for what, _ in before:
        later = places[what]
        while later and later[0] <= last:  # shards keep their order
            later.popleft()
        of.append(later.popleft() if later else -1)
        last = max(last, of[-1])
    starts = [np.cumsum([0] + [rows for _, rows in shards], dtype=np.int64) for shards in (before, now)]
    growth = Growth(*starts, np.array(of, dtype=np.int64))
    return growth if last >= 0 else None

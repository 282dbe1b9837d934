"""The search of clusters, each by itself and two at a time across their border: candidates, in files a task."""

from functools import cached_property, lru_cache
from threading import Lock

import numpy as np

from neardup.machine.files import write_npy
from neardup.machine.npy import read_npy
from neardup.order import stable_order
from neardup.search import pairs
from neardup.search.candidates import search, search_joining, search_two_joining
from neardup.search.components import joining
from neardup.search.opened import UnitRows, longer_sketches

_JOINED = 1024  # candidates that are joined together, at least
_OPENING = Lock()  # one thread at a time makes `Visitors`


def search_task(stage, opened, reaches, most_bytes, joins, task):
    """Write the candidates of a `Task`: inside its homes, or across their borders to others of higher number.

    opened: makes an `OpenCluster` of a number; reaches, joins: as in `search_two`. Files hold at most so many bytes.
    Returns the number of files and of distances computed.
    """
    kind, number, homes, others = task
    done = stage.part(kind, number, "done")
    if done.exists():
        return tuple(read_npy(done).tolist())
    found, held, n_parts, n_compared = [], 0, 0, 0

    def write_part():
        write_npy(stage.part(kind, number, n_parts), pairs.together(found))

    across = scanned_across if stage.scans else visitors_across if stage.growth else couples_across
    for couple in couples_inside(opened, homes) if kind == "inside" else across(opened, homes, others):
        joined = known_components(stage, *couple) if joins else None
        for packed, compared in search_two(*couple, reaches, joins, joined):
            found += [packed] if len(packed) else []
            n_compared, held = n_compared + compared, held + packed.nbytes
            if held > most_bytes:
                write_part()
                found, held, n_parts = [], 0, n_parts + 1
        if joins and kind == "inside":
            write_npy(stage.part("joined", couple[0].number), joined)
    write_part()
    write_npy(done, np.array([n_parts + 1, n_compared]))
    return n_parts + 1, n_compared


def couples_inside(opened, homes):
    """Yield each cluster, opened, and None."""
    for home in homes:
        yield opened(home), None


def couples_across(opened, homes, others):
    """Yield two clusters, opened, that have a border which rows come near to: one of the homes, a higher other."""
    held = {home: opened(home) for home in homes}
    for other in others:
        near = [home for home in homes if home < other and held[home].has_visits_to(other)]
        y = opened(other) if near else None
        for home in near:
            if y.has_visits_to(home):
                yield held[home], y


def visitors_across(opened, homes, others):
    """Yield the rows of the homes that visit one of the others or lie in it, as `Visitors`, and that one, opened."""
    for some, other in visitors_by_cluster(opened, homes, others):
        yield some, opened(other, visits=False)


def scanned_across(opened, homes, others):
    """As `visitors_across`, of rows that are in no file. others: ranges of those, each read at once."""
    prepared = opened(homes[0]).prepared
    for scanned in others:
        block = prepared.scan.block(*scanned)
        for some, cluster in visitors_by_cluster(opened, homes, np.nonzero(np.diff(block.bounds))[0].tolist()):
            for members in block.parts(cluster, prepared.most):
                yield some, opened(cluster, visits=False, members=members)


def visitors_by_cluster(opened, homes, others):
    """Yield the rows of the homes that visit one of the others or lie in it, as `Visitors`, and the number of that."""
    with _OPENING:
        everyone = visitors(opened, tuple(homes))
        target, at = everyone.visits
    bounds = (np.searchsorted(target, others, side).tolist() for side in ("left", "right"))
    for other, low, high in zip(others, *bounds, strict=True):
        if low < high:
            yield everyone.some(at[low:high]), other


@lru_cache(maxsize=1)
def visitors(opened, homes):
    """All rows of the homes, a tuple, as `Visitors`; kept for the next task of this process."""
    return Visitors([opened(home) for home in homes])


class Visitors:
    """Rows of several clusters, as one to be searched. clusters: opened; at: which rows of everyone, where not all."""

    def __init__(self, clusters, everyone=None, at=None):
        self._clusters, self._everyone, self._at = clusters, everyone, at
        self.growth = clusters[0].growth

    def __len__(self):
        return sum(map(len, self._clusters)) if self._everyone is None else len(self._at)

    def some(self, at):
        """Some of the rows. at: (v,) places among all."""
        return Visitors(self._clusters, self, at)

    def __getattr__(self, name):
        """What an `OpenCluster` has of each row: `rows`, `fresh`, `layout`, `left`, `sketches`, …"""
        if name.startswith("_"):  # as `copy` asks, before there is anything
            raise AttributeError(name)
        if self._everyone is not None and name != "unit":
            values = getattr(self._everyone, name).take(self._at, axis=0)
        elif name == "coordinates":
            values = self._clusters[0].reduced().gather(self.rows)
        elif name == "longer":
            values = longer_sketches(self, self._clusters[0].prepared)
        elif name == "unit":
            values = UnitRows(self._clusters[0].vectors, self.rows)
        else:
            values = np.concatenate([getattr(cluster, name) for cluster in self._clusters])
        setattr(self, name, values)
        return values

    @cached_property
    def visits(self):
        """Clusters that the rows visit, their own among them, and which rows do, two (v,) arrays, by cluster."""
        parts, start = [], 0
        for x in self._clusters:
            visit = x.growth.are_visitors(x.rows)
            own, others = np.nonzero(visit)[0], visit[x.places]
            to = np.repeat(np.arange(len(x.offsets) - 1), np.diff(x.offsets))[others]
            parts += [(np.full(len(own), x.number), start + own), (to, start + x.places[others].astype(np.int64))]
            start += len(x)
        target, at = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = stable_order(target)
        return target[order], at[order]


def known_components(stage, x, y):
    """The component of each row of a cluster, of those of two clusters after another, as far as is known. (n,) int64.

    Across borders that is what was joined inside clusters; so the answer doesn't depend on the order of the tasks.
    """
    if y is None:
        return np.arange(len(x))
    first, second = (read_npy(stage.part("joined", c.number)) for c in (x, y))
    return np.concatenate([first, len(first) + second])


def search_two(x, y, reaches, joins, joined):
    """Yield packed candidates of two clusters, or of x with itself where y is None, and the distances computed since.

    Across a border the rows near it on one side meet those on the other, as long as their distances to it add up to
    no more than the radius. reaches: of `candidates.search`; joins: None, or which of some candidates are pairs; then
    just those that join components. Of a run that grows x is a `Visitors`: the rows that visit cluster y.
    """
    alone, offset = y is None, len(x)
    if x.growth:
        tiles = meet_fresh(x, y, reaches)
    elif alone:
        tiles = search_joining(x, reaches, joined) if joins else search(x, None, reaches)
        y, offset = x, 0
    else:
        places, margins = zip(x.visits_to(y.number), y.visits_to(x.number), strict=True)
        if joins:
            tiles = search_two_joining(x, y, reaches, places, margins, (joined[:offset], joined[offset:]))
        else:
            tiles = search(x, y, reaches, places, margins)
    for i, j, compared in in_bulk(tiles) if joins else tiles:
        if joins and len(i):
            rows = x.rows if alone else np.concatenate([x.rows, y.rows])
            i, j = joining(i, j + offset, joined, lambda i, j, rows=rows: joins(rows[i], rows[j]))
            j -= offset
        yield pairs.pack(x.rows[i], y.rows[j]) if len(i) else pairs.NONE, compared


def in_bulk(tiles):
    """Yield the places of `search` and the distances of several tiles at a time, where each has few."""
    held, size = [], 0
    for tile in tiles:
        held.append(tile)
        size += len(tile[0])
        if size >= _JOINED:
            yield _as_one(held)
            held, size = [], 0
    if held:
        yield _as_one(held)


def _as_one(tiles):
    """Places and distances of several tiles together."""
    i, j, compared = zip(*tiles, strict=True)
    return np.concatenate(i), np.concatenate(j), sum(compared)


def meet_fresh(x, y, reaches):
    """As `search`, of two rows of which one is new, of two sets just one: of the `Visitors` x and of the cluster y.

    Two new rows visit each other's cluster, and count once.
    """
    for i, j, compared in search(x, y, reaches):
        wanted = x.fresh[i] != y.fresh[j]
        if not x.growth.against:
            wanted |= x.rows[i] < y.rows[j]
        yield i[wanted], j[wanted], compared

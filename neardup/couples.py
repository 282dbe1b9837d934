"""The search of clusters, each by itself and two at a time across their border: candidates, in files a task."""

import numpy as np

from neardup import pairs
from neardup.candidates import search
from neardup.files import write_npy
from neardup.groups import joining
from neardup.npy import read_npy

_NONE = np.empty(0, dtype=np.uint64)


def search_task(stage, opened, reaches, most_bytes, joins, kind, number, homes, others):
    """Write the candidates inside some clusters, or across their borders to others of higher number.

    homes, others: numbers of clusters. Files hold at most so many bytes. Returns the number of files and of distances
    computed.
    """
    done = stage.part(kind, number, "done")
    if done.exists():
        return tuple(read_npy(done).tolist())
    found, held, n_parts, n_compared = [], 0, 0, 0

    def write_part():
        packed = np.sort(np.concatenate([_NONE, *found]))
        write_npy(stage.part(kind, number, n_parts), packed)

    across = visitors_across if stage.growth else couples_across
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
    """Yield the rows of the homes that visit one of the others, as `Visitors`, and that one, opened."""
    held = {home: opened(home) for home in homes}
    visit = {home: x.growth.visit(x.rows) for home, x in held.items()}
    for other in others:
        found = {home: x.visits_to(other)[0] for home, x in held.items() if home != other and x.has_visits_to(other)}
        found = [(held[home], places[visit[home][places]]) for home, places in found.items()]
        if any(len(places) for _, places in found):
            yield Visitors(found), opened(other)


class Visitors:
    """Some rows of several clusters, as one to be searched. found: [(`OpenCluster`, places of its rows)]."""

    def __init__(self, found):
        self._found, self.growth = found, found[0][0].growth
        self.number = np.repeat([x.number for x, _ in found], [len(places) for _, places in found])

    def __len__(self):
        return len(self.number)

    def __getattr__(self, name):
        """What an `OpenCluster` has of each row: `rows`, `fresh`, `layout`, `left`, `sketches`, `coordinates`."""
        values = np.concatenate([getattr(x, name)[places] for x, places in self._found])
        setattr(self, name, values)
        return values


def known_components(stage, x, y):
    """The component of each row of a cluster, of those of two clusters after another, as far as is known. (n,) int64.

    Across borders that is what was joined inside clusters; so the answer doesn't depend on the order of the tasks.
    """
    if y is None:
        return np.arange(len(x))
    first, second = (read_npy(stage.part("joined", c.number)) for c in (x, y))
    return np.concatenate([first, len(first) + second])


def search_two(x, y, reaches, joins, joined):
    """Yield the candidates of two clusters, or of x with itself where y is None, packed, and how many distances took.

    Across a border the rows near it on one side meet those on the other, as long as their distances to it add up to
    no more than the radius. joins: None, or which of some candidates are pairs; then just those that join components.
    Of a run that grows, see `meet_fresh`.
    """
    alone, offset = y is None, len(x)
    if x.growth:
        tiles = meet_fresh(x, y, reaches)
        y = x if alone else y
    elif alone:
        y, tiles, offset = x, search(x, None, reaches, joined=joins and (joined, joined)), 0
    else:
        places, margins = zip(x.visits_to(y.number), y.visits_to(x.number), strict=True)
        tiles = search(x, y, reaches, places, margins, joins and (joined[:offset], joined[offset:]))
    for i, j, compared in tiles:
        if joins and len(i):
            rows = x.rows if alone else np.concatenate([x.rows, y.rows])
            i, j = joining(i, j + offset, joined, lambda i, j, rows=rows: joins(rows[i], rows[j]))
            j -= offset
        yield pairs.pack(x.rows[i], y.rows[j]) if len(i) else _NONE, compared


def meet_fresh(x, y, reaches):
    """As `search`, of two rows of which one is new, of two sets just one: of x, or of the `Visitors` x and of y.

    Two new rows of different clusters visit each other, and count once.
    """
    if y is None:
        for here, there in x.growth.meet(x.fresh, x.fresh)[:1]:
            for i, j, compared in search(x, x, reaches, (np.nonzero(here)[0], np.nonzero(there)[0])):
                once = (i < j) | ~x.fresh[j]
                yield i[once], j[once], compared
        return
    for i, j, compared in search(x, y, reaches):
        wanted = x.fresh[i] != y.fresh[j]
        if not x.growth.against:
            wanted |= x.number[i] < y.number
        yield i[wanted], j[wanted], compared

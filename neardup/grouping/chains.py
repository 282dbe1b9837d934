"""Groups with members below the threshold from the representative: what holds them together, and where to cut them."""

from dataclasses import replace
from itertools import chain, count, pairwise

import numpy as np

from neardup.grouping.groups import members_and_bounds
from neardup.grouping.thresholds import spanning_forest
from neardup.order import stable_order
from neardup.ranges import size_ranges
from neardup.search.pairs import PAIR, among, pack

_CHAIN_PAIRS = 50_000  # `sparse` pairs of a chain that networkx looks into, in up to 100 MB; others are flagged only
_ROUNDS = 100  # of cuts: one that falls into halves takes few, but one whose first link is always the weakest all
UNCUT = f"of over {_CHAIN_PAIRS // 2:,} rows, or {_ROUNDS} cuts"  # chains that `split_chains` leaves as they are


def sparse(groups, forest, found):
    """As few pairs of chains as tell what holds them together, `Found` in memory: twice as many as rows, at most.

    They are those of two spanning forests, of which the second is of all pairs but those of the first, the maximum one.
    What they join is what all pairs join; where one pair alone joins two parts, one does here (Nagamochi and Ibaraki
    1992, "A linear-time algorithm for finding a sparse k-connected spanning subgraph of a k-connected graph"); and the
    path of the strongest links runs along the first. So it is for the parts that are left when such pairs are cut, too.
    groups: those that are joined; forest: as in `spanning_forest`, of what joins them; found: `Found`, of all pairs.
    Returns that where there are no chains, or just pairs that join are known. Memory: 50 bytes a row of chains, 8 of
    any other one, and as in `spanning_forest`.
    """
    chains = np.nonzero(groups.are_chains(found.threshold))[0]
    if not len(chains) or not found.complete:
        return found
    number_of = places_among(chains, groups, found.n_rows)
    first = forest.compress(place_of(forest, number_of)[1])
    listed = np.sort(pack(first["row_a"], first["row_b"]))

    def others():
        for pairs in found.blocks():
            pairs = pairs.compress(place_of(pairs, number_of)[1])
            yield pairs.compress(~among(pack(pairs["row_a"], pairs["row_b"]), listed)[0])

    pairs = np.concatenate([first, spanning_forest(others(), found.memory)])
    pairs = pairs.take(np.argsort(pack(pairs["row_a"], pairs["row_b"])))
    return replace(found, read=lambda _: iter([pairs]))


def explain_chains(groups, found, ids):
    """Yield (name, entry of chains.json) of each chain: its weakest member, and what holds it together.

    That is the path of strongest links to that member, and all bridges; left out where a chain has over 50,000 pairs of
    `sparse`, which `found` is, so over 25,000 rows, or where just pairs that join are known. Memory: that of `found`,
    and a chain.
    """
    chains, most = np.nonzero(groups.are_chains(found.threshold))[0], _CHAIN_PAIRS if found.complete else 0
    for number, pairs in pairs_of_groups(groups, chains, found, most):
        here = groups.members(number)
        far = int(groups.rows[here][np.argmin(groups.similarity[here])])
        representative = int(groups.representative[number])
        names = ids.take([representative, far])
        entry = {"group": int(number), "representative": names[0], "weakest": names[1]}
        entry |= {"weakest_row": far, "similarity": float(groups.similarity[here].min())}
        if len(pairs):
            path, links, bridges = weak_links(pairs, representative, far)
            names = ids.take([*path, *chain.from_iterable(bridges)])
            entry |= {"path": names[: len(path)], "path_similarities": links}
            entry["bridges"] = [names[at : at + 2] for at in range(len(path), len(names), 2)]
        yield groups.name(number), entry


def weak_links(pairs, representative, far):
    """How a chain hangs together. pairs: (p,) PAIR of one group.

    Returns the path between the two rows whose weakest link is the strongest possible (it runs along a maximum
    spanning tree), the similarities of its links, and all bridges, sorted.
    """
    import networkx as nx

    graph = nx.Graph()
    graph.add_weighted_edges_from(pairs.tolist(), weight="similarity")
    path = nx.shortest_path(nx.maximum_spanning_tree(graph, weight="similarity"), representative, far)
    links = [graph.edges[link]["similarity"] for link in pairwise(path)]
    return path, links, sorted(tuple(sorted(bridge)) for bridge in nx.bridges(graph))


def pairs_of_groups(groups, chosen, found, most):
    """Yield (group, its pairs (p,) PAIR) for the chosen groups, ascending; no pairs where they are too many.

    found: `Found`; most: pairs of a group. Reads the pairs once to count, and once for as many groups as fit its
    memory. Memory: that, and 8 bytes a row.
    """
    number_of = places_among(chosen, groups, found.n_rows)
    counts = np.zeros(len(chosen), dtype=np.int64)
    for pairs in found.blocks():
        of, same = place_of(pairs, number_of)
        counts += np.bincount(of[same], minlength=len(chosen))
    counts[counts > most] = 0
    bounds = np.cumulative_sum(counts, include_initial=True)
    for low, high in size_ranges(bounds, found.memory / (4 * PAIR.itemsize)):
        some = [np.empty(0, dtype=PAIR)]
        for pairs in found.blocks():
            of, same = place_of(pairs, number_of)
            some.append(pairs.compress(same & (of >= low) & (of < high) & (counts[of] > 0)))
        pairs = np.concatenate(some)
        pairs = pairs.take(stable_order(number_of[pairs["row_a"]]))
        for i in range(low, high):
            yield chosen[i], pairs[bounds[i] - bounds[low] : bounds[i + 1] - bounds[low]]


def places_among(chosen, groups, n_rows):
    """Which of some chosen groups each row is in, by the group's place among them, (n_rows,) int64; -1: in none."""
    number_of = np.full(n_rows, -1, dtype=np.int64)
    for i, number in enumerate(chosen):
        number_of[groups.rows[groups.members(number)]] = i
    return number_of


def place_of(pairs, number_of):
    """The chosen group of each pair's first row, and whether it is one, and that of the second row, too."""
    of = number_of[pairs["row_a"]]
    return of, (of >= 0) & (of == number_of[pairs["row_b"]])


def split_chains(representatives, connected, found):
    """The connected groups, chains cut at bridges until no member that is too far can be cut off.

    representatives: `Representatives`; found: of `sparse`. Returns them, and how many chains are left as they are
    because they have over 50,000 pairs of those, or have been cut 100 times.
    """
    representatives.learn(connected)
    groups, n_rows, n_uncut = connected, found.n_rows, 0
    smallest, settled = np.arange(n_rows), np.zeros(n_rows, dtype=bool)
    smallest[groups.rows] = np.repeat(groups.smallest, groups.sizes)
    for number in count():
        rows, parts, uncut = cut_chains(groups, found, settled)
        n_uncut += uncut
        if not len(rows) or number == _ROUNDS:
            return groups, n_uncut + len(np.unique(smallest[rows]))
        smallest[rows] = parts
        groups = representatives.of(*members_and_bounds(smallest))


def cut_chains(groups, found, settled):
    """The smallest row of each part that chains fall into, for the rows of those that can be cut: (rows, parts, uncut).

    From each member below the threshold from its representative, the weakest bridge between the two is cut, of equal
    ones the one nearest to the member. A pair is a bridge if nothing else joins its ends, so what isn't joined by one
    stays, and so do chains of over 50,000 pairs, whose number `uncut` is. found: of `sparse`; settled: the smallest
    rows of chains that can't be cut, (n,) bool, which aren't looked at; those found are added. Memory: that of
    `found`, and 16 bytes a row.
    """
    part_of, smallest, uncut = np.full(found.n_rows, -1, dtype=np.int64), groups.smallest, 0
    chains = np.nonzero(groups.are_chains(found.threshold) & ~settled[smallest])[0]
    for number, pairs in pairs_of_groups(groups, chains, found, _CHAIN_PAIRS):
        here = groups.members(number)
        far = groups.rows[here][groups.similarity[here] < found.threshold]
        parts = _parts(pairs, int(groups.representative[number]), far.tolist()) if len(pairs) else []
        for part in parts if len(parts) > 1 else []:
            part_of[[*part]] = min(part)
        settled[smallest[number]] = len(parts) < 2
        uncut += not len(pairs)
    rows = np.nonzero(part_of >= 0)[0]
    return rows, part_of[rows], uncut


def _parts(pairs, representative, far):
    """The parts of a chain, as sets of rows, after its cuts; itself where no bridge leads to a member that is far."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_weighted_edges_from(pairs.tolist(), weight="similarity")
    bridges = {frozenset(b) for b in nx.bridges(graph)}
    weakest = {representative: None}  # bridge on the way to each row: all bridges on it are in any spanning tree
    for before, row in nx.bfs_edges(graph, representative):
        weakest[row] = weakest[before]
        if frozenset((before, row)) in bridges:
            link = graph.edges[before, row]["similarity"], before, row
            weakest[row] = link if link[0] <= (weakest[before] or link)[0] else weakest[before]
    graph.remove_edges_from({weakest[row][1:] for row in far if weakest[row]})
    return list(nx.connected_components(graph))

"""Which rows pairs join, directly or through others: connected components, by their smallest rows."""

import numpy as np

from neardup.order import stable_order


def components(pair_blocks, n_rows):
    """The smallest row that each row is joined with, (n_rows,) int64. Memory: 24 bytes a row, and that of a block.

    Each block of pairs joins the components found so far; scipy labels the graph of those.
    """
    smallest = np.arange(n_rows)
    for pairs in pair_blocks:
        nodes, ends = numbered([smallest[pairs["row_a"]], smallest[pairs["row_b"]]])
        label = _labels(*ends, len(nodes))
        _, first = np.unique(label, return_index=True)  # nodes ascend, so the first of a component is its smallest
        moved = np.arange(n_rows)
        moved[nodes] = nodes[first][label]
        smallest = moved[smallest]
    return smallest


def numbered(ends):
    """The rows among some ends of pairs, ascending, and which of those each is: (N,) and (2, p) int64.

    ends: two (p,) int64 arrays. As np.unique has it, which takes 4 times as long. Memory: 9 bytes a row up to the last.
    """
    ends = np.stack(ends)
    seen = np.zeros(ends.max(initial=-1) + 1, dtype=bool)
    seen[ends] = True
    rows = np.nonzero(seen)[0]
    place = np.empty(len(seen), dtype=np.int64)
    place[rows] = np.arange(len(rows))
    return rows, place[ends]


def _labels(a, b, n_nodes):
    """The component of each node, (n_nodes,) int32. a, b: ends of edges, (e,) each."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(n_nodes, n_nodes))
    return connected_components(graph, directed=False)[1]


def joining(i, j, joined, is_pair):
    """Just those pairs among candidates that join components, so that a crowd of g rows costs about g, not g^2 / 2.

    i, j: (c,) places, candidates; joined: (n,) int, the component of each place, updated; is_pair(i, j): which of
    some candidates are pairs. Candidates inside a component have no say any more; of the others one a component is
    looked at, in turn of their firsts and of their seconds, until none is left; more where few of them are pairs.
    Returns two (p,) arrays.
    """
    kept, of_first, each = [(i[:0], j[:0])], True, 1
    while True:
        apart = joined[i] != joined[j]
        i, j = i[apart], j[apart]
        if not len(i):
            return tuple(np.concatenate(k) for k in zip(*kept, strict=True))
        picked = _some_of_each(joined[i if of_first else j], each)
        true = is_pair(i[picked], j[picked])
        of_first, each = not of_first, 1 if 2 * np.count_nonzero(true) > len(true) else 4 * each
        a, b = i[picked][true], j[picked][true]
        kept.append((a, b))
        i, j = np.delete(i, picked), np.delete(j, picked)
        joined[:] = _labels(joined[a], joined[b], len(joined))[joined]


def _some_of_each(labels, each):
    """Where the first few of each label are. labels: (c,) int."""
    order = stable_order(labels)
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return order[np.arange(len(order)) - np.repeat(first, counts) < each]

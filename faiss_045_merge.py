"""Stage 5 of 5: join the pairs into groups, choose what to keep of each, and flag chains."""

import json
from functools import partial

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neardup import engine, geometry
from neardup.artifacts import atomic, begin, write_json, write_stream
from neardup.embeddings import open_shards
from neardup.ids import IdTable, store_ids
from neardup.pairs import PAIR, read_pairs
from neardup.script import main

_TIE = 1e-12  # mean similarities closer than this are equal: float64 sums over d <= 4096 are off by less
_WRITE_ROWS = 1 << 16  # rows whose ids are handled together
_SHOWN_GROUPS, _SHOWN_IDS = 5, 6
_CHAIN_PAIRS = 1_000_000  # pairs of the chains that are analysed one by one; larger ones are flagged only


def run(config):
    """Write work/045_merge, or find it finished."""
    stage, shards, earlier = begin(config, "045_merge")
    if not stage.finished:
        variance, search = earlier["01_pca_variance"], earlier["04_neighbor_search"]
        rows, ids = open_shards(shards), IdTable(variance.path("ids.arrow"))
        clusters = np.load(earlier["03_kmeans"].path("labels.npy"), mmap_mode="r")
        neighbors = search.path("neighbors.h5")
        groups = Groups(*members_and_bounds(components(read_pairs(neighbors), len(rows))))
        groups.representative, groups.similarity = choose_representatives(groups, rows, config)
        groups.cluster = np.asarray(clusters[groups.representative])
        weakest = np.minimum.reduceat(groups.similarity, groups.bounds[:-1]) if len(groups) else groups.similarity
        chains = np.nonzero(weakest < config.threshold)[0]
        write_json(stage.path("chains.json"), explain_chains(groups, chains, neighbors, ids))
        write_hdf5(stage.path("merged_clusters.h5"), groups, weakest, ids, config.threshold)
        write_pickle(stage.path("merged_clusters.pkl"), groups, ids)
        write_parquet(stage.path("groups.parquet"), groups, ids)
        rejected = np.load(variance.path("rejected_rows.npy"))
        kept, dropped = write_lists(stage, groups, rejected, ids)
        assert kept + dropped + len(rejected) == len(rows)
        results = summary(groups, chains, (kept, dropped, len(rejected)), ids)
        stage = stage.finish(results)
    report(stage)


class Groups:
    """All groups, flat: the members of group g are rows[bounds[g]:bounds[g + 1]], ascending.

    rows: (m,) int64; bounds: (G + 1,) int64; groups are in the order of their smallest rows. Then added, an element a
    group: representative (G,) int64 and cluster (G,) int32; an element a member: similarity (m,) float64.
    """

    def __init__(self, rows, bounds):
        self.rows, self.bounds = rows, bounds

    def __len__(self):
        return len(self.bounds) - 1

    @property
    def sizes(self):
        return np.diff(self.bounds)

    def name(self, number):
        """merged-cluster_{cluster of the representative}_{size}_{number}."""
        return f"merged-cluster_{self.cluster[number]}_{self.sizes[number]}_{number}"

    def ranges(self, most):
        """Ranges [low, high) of groups with at most `most` members together, or of one larger group."""
        low = 0
        while low < len(self):
            high = max(low + 1, int(np.searchsorted(self.bounds, self.bounds[low] + most, side="right")) - 1)
            yield low, high
            low = high


def components(pair_blocks, n_rows):
    """The smallest row that each row is joined with, (n_rows,) int64. Memory: 24 bytes a row, and that of a block.

    Each block of pairs joins the components found so far; scipy labels the graph of those.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    smallest = np.arange(n_rows)
    for pairs in pair_blocks:
        ends = np.stack([smallest[pairs["row_a"]], smallest[pairs["row_b"]]])
        nodes, ends = np.unique(ends, return_inverse=True)
        a, b = ends.reshape(2, -1)
        graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(len(nodes), len(nodes)))
        n_components, label = connected_components(graph, directed=False)
        _, first = np.unique(label, return_index=True)  # nodes ascend, so the first of a component is its smallest
        moved = np.arange(n_rows)
        moved[nodes] = nodes[first][label]
        smallest = moved[smallest]
        assert len(first) == n_components
    return smallest


def members_and_bounds(smallest):
    """Rows of groups of two or more, by group then row, and the bounds of the groups. smallest: as of `components`."""
    sizes = np.bincount(smallest, minlength=len(smallest))
    rows = np.nonzero(sizes[smallest] > 1)[0]
    order = np.argsort(smallest[rows], kind="stable")
    rows = rows[order]
    return rows, np.concatenate([[0], np.cumsum(sizes[sizes > 1])]).astype(np.int64)


def choose_representatives(groups, rows, config):
    """The representative of each group, (G,) int64, and each member's similarity to it, (m,) float64.

    Memory: a quarter of `memory_limit`.
    """
    most = engine.block_rows(config.memory_limit, config.n_workers, 64 * rows.dim)
    task = partial(represent, groups, rows, most)
    results = engine.run(task, groups.ranges(most), config.n_workers, "045 representatives")
    parts = list(zip(*results, strict=True)) or [[np.empty(0, np.int64)], [np.empty(0)]]
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def represent(groups, rows, most, low, high):
    """Representatives of the groups low to high, and their members' similarities to them.

    The sum of a row's similarities to all others of its group is its dot product with the sum of their unit rows,
    so a group of g rows costs g d, not g^2 d. A group larger than `most` rows is read in pieces, three times.
    """
    bounds = groups.bounds[low : high + 1]
    of_group = np.repeat(np.arange(high - low), np.diff(bounds))
    pieces = [(s, min(s + most, bounds[-1])) for s in range(bounds[0], bounds[-1], most)]
    sums = np.zeros((high - low, rows.dim))
    for start, stop in pieces:
        unit, _ = geometry.unit_rows(rows.gather(groups.rows[start:stop]))
        np.add.at(sums, of_group[start - bounds[0] : stop - bounds[0]], unit)
    score = np.empty(len(of_group))
    for start, stop in pieces:
        here = slice(start - bounds[0], stop - bounds[0])
        unit, _ = geometry.unit_rows(rows.gather(groups.rows[start:stop]))
        score[here] = np.einsum("ij,ij->i", unit, sums[of_group[here]])
    best = first_best(score, of_group, bounds - bounds[0])
    representative = groups.rows[bounds[0] + best]
    similarity = np.empty(len(of_group))
    for start, stop in pieces:
        here = slice(start - bounds[0], stop - bounds[0])
        centre = rows.gather(representative[of_group[here]])
        similarity[here] = geometry.similarities(rows.gather(groups.rows[start:stop]), centre)
    return representative, similarity


def first_best(score, of_group, bounds):
    """Position of each group's first member whose mean similarity to the others is the highest, rounding aside.

    score: (m,) float64, sums of similarities with all members; of_group: (m,); bounds: (G + 1,). Returns (G,) int64.
    """
    mean = (score - 1) / (np.diff(bounds) - 1)[of_group]
    highest = np.maximum.reduceat(mean, bounds[:-1])
    near_best = np.nonzero(mean >= highest[of_group] - _TIE)[0]
    _, first = np.unique(of_group[near_best], return_index=True)
    return near_best[first]


def explain_chains(groups, chains, neighbors, ids):
    """What holds each chain together: name -> weakest member, the path of strongest links to it, and all bridges.

    Memory: the pairs of the chains that have at most a million.
    """
    import networkx as nx

    explained = {}
    for number, pairs in pairs_of_groups(groups, chains, neighbors):
        members = slice(groups.bounds[number], groups.bounds[number + 1])
        far = int(groups.rows[members][np.argmin(groups.similarity[members])])
        entry = {
            "group": int(number),
            "representative": ids.take([groups.representative[number]])[0],
            "weakest": ids.take([far])[0],
            "similarity": float(groups.similarity[members].min()),
        }
        if len(pairs):
            graph = nx.Graph()
            graph.add_weighted_edges_from(pairs.tolist(), weight="similarity")
            strongest = nx.maximum_spanning_tree(graph, weight="similarity")
            path = nx.shortest_path(strongest, int(groups.representative[number]), far)
            bridges = sorted(tuple(sorted(edge)) for edge in nx.bridges(graph))
            entry["path"] = ids.take(path)
            entry["path_similarities"] = [graph.edges[e]["similarity"] for e in zip(path, path[1:], strict=False)]
            entry["bridges"] = [ids.take(edge) for edge in bridges]
        explained[groups.name(number)] = entry
    return explained


def pairs_of_groups(groups, chosen, neighbors):
    """Yield (group, its pairs (p,) PAIR) for the chosen groups; no pairs for one of more than a million."""
    group_of = np.full(int(groups.rows.max(initial=-1)) + 1, -1, dtype=np.int64)
    for number in chosen:
        group_of[groups.rows[groups.bounds[number] : groups.bounds[number + 1]]] = number
    counts = np.zeros(len(groups), dtype=np.int64)
    for pairs in read_pairs(neighbors):
        of = group_of[pairs["row_a"]]
        np.add.at(counts, of[of >= 0], 1)
    found = [np.empty(0, dtype=PAIR)]
    for pairs in read_pairs(neighbors):
        of = group_of[pairs["row_a"]]
        found.append(pairs[(of >= 0) & (counts[of] <= _CHAIN_PAIRS)])
    pairs = np.concatenate(found)
    order = np.argsort(group_of[pairs["row_a"]], kind="stable")
    pairs = pairs[order]
    of = group_of[pairs["row_a"]]
    for number in chosen:
        yield number, pairs[slice(*np.searchsorted(of, (number, number + 1)))]


def write_hdf5(path, groups, weakest, ids, threshold):
    """merged_clusters.h5: flat data sets; group g's members are at bounds[g] to bounds[g + 1]."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["row"], file["similarity"] = groups.rows, groups.similarity
        file["bounds"] = groups.bounds
        file["representative_row"], file["cluster"] = groups.representative, groups.cluster
        file["weakest"], file["chain"] = weakest, weakest < threshold
        file["name"] = np.array([groups.name(g).encode() for g in range(len(groups))], dtype=bytes)
        store_ids(file, ids.take(groups.rows))
        file.attrs["threshold"] = threshold


def write_pickle(path, groups, ids):
    """merged_clusters.pkl: name -> {"representative": id, "members": [id], "similarities": [float]}, for users."""
    write_stream(path, group_items(groups, ids))


def group_items(groups, ids):
    """Yield (name, what merged_clusters.pkl holds for it) of each group. Memory: the ids of a block."""
    for low, high in groups.ranges(_WRITE_ROWS):
        start = groups.bounds[low]
        names = ids.take(groups.rows[start : groups.bounds[high]])
        representatives = ids.take(groups.representative[low:high])
        for number in range(low, high):
            here = slice(groups.bounds[number], groups.bounds[number + 1])
            yield (
                groups.name(number),
                {
                    "representative": representatives[number - low],
                    "members": names[here.start - start : here.stop - start],
                    "similarities": groups.similarity[here].tolist(),
                },
            )


def write_parquet(path, groups, ids):
    """groups.parquet: a line for each row of a group. Memory: the ids of a block."""
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("group", pa.int64()),
            ("size", pa.int64()),
            ("representative", pa.string()),
            ("similarity", pa.float64()),
        ]
    )
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for low, high in groups.ranges(_WRITE_ROWS):
            here = slice(groups.bounds[low], groups.bounds[high])
            sizes = groups.sizes[low:high]
            numbers = np.repeat(np.arange(low, high), sizes)
            representatives = np.array(ids.take(groups.representative[low:high]), dtype=object)
            columns = [
                groups.rows[here],
                ids.take(groups.rows[here]),
                numbers,
                np.repeat(sizes, sizes),
                representatives[numbers - low],
                groups.similarity[here],
            ]
            arrays = [pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def write_lists(stage, groups, rejected, ids):
    """keep.txt and drop.txt: every row that isn't rejected is in one of them. Returns their counts.

    Dropped are the members of groups that are not their representatives.
    """
    drop = np.zeros(len(ids), dtype=bool)
    drop[groups.rows] = True
    drop[groups.representative] = False
    keep = ~drop
    keep[rejected] = False
    for name, chosen in (("keep.txt", keep), ("drop.txt", drop)):
        with atomic(stage.path(name)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for start in range(0, len(ids), _WRITE_ROWS):
                rows = start + np.nonzero(chosen[start : start + _WRITE_ROWS])[0]
                file.writelines(id_line(i) + "\n" for i in ids.take(rows))
    return int(keep.sum()), int(drop.sum())


def id_line(name):
    """An id as one line: as it is, or as a JSON string where it holds a line break, begins with a quote or is empty."""
    return name if name.splitlines() == [name] and not name.startswith('"') else json.dumps(name)


def summary(groups, chains, counts, ids):
    """What the run found, with the largest groups, as small JSON values."""
    largest = np.argsort(-groups.sizes, kind="stable")[:_SHOWN_GROUPS]
    shown = [
        {
            "name": groups.name(g),
            "representative": ids.take([groups.representative[g]])[0],
            "members": ids.take(groups.rows[groups.bounds[g] : groups.bounds[g + 1]][: _SHOWN_IDS + 1]),
            "size": int(groups.sizes[g]),
            "weakest": float(groups.similarity[groups.bounds[g] : groups.bounds[g + 1]].min()),
        }
        for g in largest
    ]
    kept, dropped, rejected = counts
    return {
        "groups": len(groups),
        "rows_in_groups": len(groups.rows),
        "chains": len(chains),
        "kept": kept,
        "dropped": dropped,
        "rejected": rejected,
        "largest": shown,
    }


def report(stage):
    """Say what was found and where it is, and show the largest groups."""
    found = stage.results
    total = found["kept"] + found["dropped"] + found["rejected"]
    print(
        f"{found['groups']:,} groups of {found['rows_in_groups']:,} rows, {found['chains']:,} of them chains "
        "(a member lies below the threshold from the representative)"
    )
    print(
        f"of {total:,} rows keep {found['kept']:,} and drop {found['dropped']:,}; {found['rejected']:,} were rejected"
    )
    print(f"-> {stage.folder} (groups.parquet, keep.txt, drop.txt, merged_clusters.h5 and .pkl, chains.json)")
    if found["largest"]:
        print("largest groups, the representative first:")
    for group in found["largest"]:
        others = [m for m in group["members"] if m != group["representative"]][:_SHOWN_IDS]
        names = [json.dumps(i, ensure_ascii=False) for i in [group["representative"], *others]]
        if len(names) < group["size"]:
            names.append(f"… {group['size'] - len(names):,} more")
        print(f"  {group['size']:,} rows, similarity >= {group['weakest']:.4f}: {', '.join(names)}")


if __name__ == "__main__":
    main(run, __doc__)

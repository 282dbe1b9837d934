"""Stage 5 of 5: join the pairs into groups, choose what to keep of each, and flag chains."""

import json
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np

from neardup import NeardupError, engine, geometry
from neardup.artifacts import begin
from neardup.embeddings import open_shards
from neardup.files import write_json, write_npy
from neardup.groups import Groups, components, members_and_bounds
from neardup.ids import IdTable
from neardup.npy import map_npy, read_npy
from neardup.outputs import draw_groups, write_hdf5, write_lists, write_parquet, write_pickle
from neardup.pairs import PAIR, read_pairs
from neardup.script import main

_TIE = 1e-12  # mean similarities closer than this are equal: float64 sums over d <= 4096 are off by less
_BLOCK_ROWS = 2048  # members of groups that a task reads, at most, of several groups: 16 MB in float64 at 1,024 values
_CHAIN_PAIRS = 250_000  # pairs of a chain that networkx looks into, about 200 MB; larger chains are flagged only
_BINS = 40  # of the histogram of similarities
_SHOWN_GROUPS, _SHOWN_IDS, _SHOWN_TEXT = 5, 6, 100


def run(config):
    """Write work/045_merge, or find it finished."""
    stage, shards, earlier = begin(config, "045_merge")
    texts = read_texts(config.preview, config.data_dir)
    if not stage.finished:
        variance, search = earlier["01_pca_variance"], earlier["04_neighbor_search"]
        rows, ids = open_shards(shards), IdTable.open(variance.path("ids.arrow"))
        rejected, repeated = (read_npy(variance.path(f"{n}_rows.npy")) for n in ("rejected", "repeated"))
        neighbors = partial(read_pairs, search.path("neighbors.h5"), len(rows))
        stage.needs(4 * variance.path("ids.arrow").stat().st_size)
        engine.preload("matplotlib.figure")
        groups = group_pairs(stage, neighbors, rows, earlier["03_kmeans"].path("labels.npy"), config)
        chains = np.nonzero(groups.weakest < config.threshold)[0]
        write_json(stage.path("chains.json"), explain_chains(groups, chains, neighbors, ids, config))
        write_hdf5(stage.path("merged_clusters.h5"), groups, ids, config.threshold)
        write_pickle(stage.path("merged_clusters.pkl"), groups, ids)
        write_parquet(stage.path("groups.parquet"), groups, ids)
        kept, dropped = write_lists(stage.folder, groups, rejected, repeated, ids)
        assert kept + dropped + len(rejected) == len(rows)
        spread = histogram(neighbors, config.threshold)
        draw_groups(stage.path("groups.png"), spread, groups.sizes, config.threshold)
        stage = stage.finish(summary(groups, chains, (kept, dropped, len(rejected)), ids))
    report(stage, texts)


def group_pairs(stage, neighbors, rows, labels, config):
    """The groups that the pairs form, with their representatives. neighbors(): yields the pairs, in order."""
    members, bounds = members_and_bounds(components(neighbors(), len(rows)))
    representative, similarity = choose_representatives(stage, (members, bounds), rows, config)
    cluster = map_npy(labels)[representative]
    return Groups(members, bounds, similarity, representative, np.asarray(cluster))


def choose_representatives(stage, members_and_bounds, rows, config):
    """The representative of each group, (G,) int64, and each member's similarity to it, (m,) float64.

    members_and_bounds: as in `Groups`. Those that an interrupted run chose stay. Memory: a quarter of `memory_limit`.
    """
    members, bounds = members_and_bounds
    most = engine.block_rows(config.memory_limit, config.n_workers, 64 * rows.dim, _BLOCK_ROWS)
    task, path = partial(represent, stage, members, bounds, (rows, most)), stage.part("ranges")
    if not path.exists():
        write_npy(path, np.array(engine.size_ranges(bounds, most), dtype=np.int64).reshape(-1, 2))
    ranges = [(number, *r) for number, r in enumerate(read_npy(path).tolist())]
    engine.run(task, ranges, config.n_workers, "045 representatives")
    parts = [[read_npy(stage.part(kind, r[0])) for r in ranges] for kind in ("representative", "similarity")]
    return np.concatenate([np.empty(0, np.int64), *parts[0]]), np.concatenate([np.empty(0), *parts[1]])


def represent(stage, members, bounds, rows_and_most, number, low, high):
    """Write the representatives of the groups low to high, and their members' similarities to them.

    The sum of a row's similarities to all others of its group is its dot product with the sum of their unit rows,
    so a group of g rows costs g d, not g^2 d; of two rows it is the first. A group larger than `most` rows is read in
    pieces, three times.
    """
    if stage.part("similarity", number).exists():
        return
    rows, most = rows_and_most
    members, bounds = members[bounds[low] : bounds[high]], bounds[low : high + 1] - bounds[low]
    of_group = np.repeat(np.arange(high - low), np.diff(bounds))
    several = np.repeat(np.diff(bounds) > 2, np.diff(bounds))
    pieces = [slice(s, s + most) for s in range(0, len(members), most)]
    read = lru_cache(maxsize=1)(lambda s: rows.gather(members[pieces[s]]))
    sums, score = np.zeros((high - low, rows.dim)), np.zeros(len(members))
    for i, piece in enumerate(pieces):
        groups, first = np.unique(of_group[piece][several[piece]], return_index=True)
        if len(groups):
            sums[groups] += np.add.reduceat(geometry.unit_rows(read(i)[several[piece]])[0], first, axis=0)
    for i, piece in enumerate(pieces):
        which = np.nonzero(several[piece])[0]
        unit, _ = geometry.unit_rows(read(i)[which])
        score[piece.start + which] = np.einsum("ij,ij->i", unit, sums[of_group[piece.start + which]])
    representative, similarity = members[first_best(score, of_group, bounds)], np.empty(len(members))
    for i, piece in enumerate(pieces):
        similarity[piece] = geometry.similarities(read(i), rows.gather(representative[of_group[piece]]))
    write_npy(stage.part("representative", number), representative)
    write_npy(stage.part("similarity", number), similarity)


def first_best(score, of_group, bounds):
    """Position of each group's first member whose mean similarity to the others is the highest, rounding aside.

    score: (m,) float64, sums of similarities with all members; of_group: (m,); bounds: (G + 1,). Returns (G,) int64.
    """
    mean = (score - 1) / (np.diff(bounds) - 1)[of_group]
    highest = np.maximum.reduceat(mean, bounds[:-1])
    near_best = np.nonzero(mean >= highest[of_group] - _TIE)[0]
    _, first = np.unique(of_group[near_best], return_index=True)
    return near_best[first]


def explain_chains(groups, chains, neighbors, ids, config):
    """What holds each chain together: name -> weakest member, the path of strongest links to it, and all bridges.

    Path and bridges are left out where a chain has over 250,000 pairs, or just those that join are known. Memory: a
    quarter of `memory_limit`.
    """
    explained, most = {}, 0 if config.pairs == "joining" else _CHAIN_PAIRS
    for number, pairs in pairs_of_groups(groups, chains, neighbors, (most, config.memory_limit / 4)):
        here = groups.members(number)
        far = int(groups.rows[here][np.argmin(groups.similarity[here])])
        representative = int(groups.representative[number])
        names = ids.take([representative, far])
        entry = {"group": int(number), "representative": names[0], "weakest": names[1]}
        entry["similarity"] = float(groups.similarity[here].min())
        if len(pairs):
            path, links, bridges = weak_links(pairs, representative, far)
            entry |= {"path": ids.take(path), "path_similarities": links, "bridges": [ids.take(b) for b in bridges]}
        explained[groups.name(number)] = entry
    return explained


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


def pairs_of_groups(groups, chosen, neighbors, most_and_budget):
    """Yield (group, its pairs (p,) PAIR) for the chosen groups, ascending; no pairs where they are too many.

    Reads the pairs once to count, and once for as many groups as fit the budget, in bytes.
    """
    most, budget = most_and_budget
    number_of = np.full(int(groups.rows.max(initial=-1)) + 1, -1, dtype=np.int64)
    for i, number in enumerate(chosen):
        number_of[groups.rows[groups.members(number)]] = i
    counts = np.zeros(len(chosen), dtype=np.int64)
    for pairs in neighbors():
        of = number_of[pairs["row_a"]]
        counts += np.bincount(of[of >= 0], minlength=len(chosen))
    counts[counts > most] = 0
    bounds = np.concatenate([[0], np.cumsum(counts)])
    for low, high in engine.size_ranges(bounds, budget / (4 * PAIR.itemsize)):
        found = [np.empty(0, dtype=PAIR)]
        for pairs in neighbors():
            of = number_of[pairs["row_a"]]
            found.append(pairs[(of >= low) & (of < high) & (counts[of] > 0)])
        pairs = np.concatenate(found)
        pairs = pairs[np.argsort(number_of[pairs["row_a"]], kind="stable")]
        for i in range(low, high):
            yield chosen[i], pairs[bounds[i] - bounds[low] : bounds[i + 1] - bounds[low]]


def histogram(neighbors, threshold):
    """How many pairs have which similarity: counts (b,) and edges (b + 1,) from the threshold to 1."""
    edges = np.linspace(min(threshold, 1 - 1e-6), 1, _BINS + 1)
    counts = np.zeros(_BINS, dtype=np.int64)
    for pairs in neighbors():
        counts += np.histogram(np.clip(pairs["similarity"], edges[0], 1), edges)[0]
    return counts, edges


def summary(groups, chains, counts, ids):
    """What the run found, with the largest groups, as small JSON values."""
    largest = np.argsort(-groups.sizes, kind="stable")[:_SHOWN_GROUPS]
    shown = []
    for number in largest:
        members, representative = groups.rows[groups.members(number)], groups.representative[number]
        first = members[members != representative][:_SHOWN_IDS]
        shown.append(
            {
                "name": groups.name(number),
                "ids": ids.take([representative, *first]),  # the representative's, and of some others
                "size": len(members),
                "weakest": float(groups.weakest[number]),
            }
        )
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


def report(stage, texts):
    """Say what was found and where it is, and show the largest groups, with the texts of their ids where known."""
    found = stage.results
    total = found["kept"] + found["dropped"] + found["rejected"]
    print(
        f"{found['groups']:,} groups of {found['rows_in_groups']:,} rows, {found['chains']:,} of them chains "
        "(a member lies below the threshold from the representative)"
    )
    single = total - found["rows_in_groups"] - found["rejected"]
    print(
        f"{total:,} rows = {found['rows_in_groups']:,} in groups + {single:,} single + {found['rejected']:,} rejected; "
        f"keep {found['kept']:,} and drop {found['dropped']:,}"
    )
    print(f"-> {stage.folder} (groups.parquet, keep.txt, drop.txt, chains.json, groups.png; README.md lists all)")
    if found["largest"]:
        print("largest groups, the representative first:")
    for group in found["largest"]:
        print(f"  {group['size']:,} rows, similarity >= {group['weakest']:.4f}")
        for name in group["ids"]:
            text = " ".join(str(texts.get(name, "")).split())[:_SHOWN_TEXT]
            print(f"    {json.dumps(name, ensure_ascii=False)}  {text}".rstrip())
        if len(group["ids"]) < group["size"]:
            print(f"    … {group['size'] - len(group['ids']):,} more")


def read_texts(preview, data_dir):
    """The texts behind the ids, {id: text}: of the JSON file that `preview` names, or of texts.json where it is None.

    Raises NeardupError where a file that was named is not such a file; a texts.json that isn't is somebody else's.
    """
    path = preview or data_dir / "texts.json"
    if preview is None and not path.is_file():
        return {}
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        texts, reason = None, f"is not JSON in UTF-8 ({error})"
    else:
        reason = f"holds a JSON {type(texts).__name__}"
    if preview and not isinstance(texts, dict):
        raise NeardupError(f"preview {path} {reason}: name a JSON file of id: text")
    return texts if isinstance(texts, dict) else {}


if __name__ == "__main__":
    main(run, __doc__)

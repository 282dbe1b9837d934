"""Stars, cut chains, thresholds and representatives: each against the plainest way to the same, and in whole runs."""

import json
import tracemalloc
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import DEFAULT, patch

import h5py
import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import EXAMPLE, SCRIPTS, components, flat_ids, found_pairs, lay_out, run_stages, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from test_045_merge import bundles, load_chains, load_groups, load_list

import faiss_045_merge as merge
from config import Config
from neardup import NeardupError, plots
from neardup.grouping import chains, changes, outputs, report, stars, thresholds
from neardup.grouping.groups import Groups
from neardup.grouping.representatives import Representatives, first_best
from neardup.input.embeddings import RowFiles
from neardup.input.id_table import IdTable
from neardup.input.layout import npy_layout
from neardup.machine.files import write_json_items
from neardup.search import geometry, pairs
from neardup.search.pairs import PAIR, Found
from neardup.stages.artifacts import Stage

STAGE = "045_merge"
SEED = st.integers(0, 2**32 - 1)
KINDS = "random", "path", "shuffled path", "star", "clique", "empty"


@contextmanager
def without_pictures():
    """Drawing, and the report, take most of the time of a small run."""
    drawing = dict.fromkeys(("scree", "groups", "thresholds", "save_png"), DEFAULT)
    with patch.multiple(plots, create=True, **drawing), patch.object(merge, "write_report", create=True):
        yield


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with without_pictures():
        yield


def graph(kind, n, rng):
    """{(a, b): similarity} of n rows, with ties."""
    edges = {
        "random": [(a, b) for a in range(n) for b in range(a + 1, n) if rng.random() < 3 / n],
        "path": list(pairwise(range(n))),
        "shuffled path": [tuple(sorted(link)) for link in pairwise(rng.permutation(n).tolist())],
        "star": [(0, b) for b in range(1, n)],
        "clique": [(a, b) for a in range(n) for b in range(a + 1, n)],
        "empty": [],
    }[kind]
    return dict(zip(edges, rng.choice([0.7, 0.75, 0.8, 0.9, 1.0], len(edges)).tolist(), strict=True))


def packed(links):
    return np.array([(a, b, s) for (a, b), s in sorted(links.items())], dtype=PAIR)


def in_blocks(links, rng):
    """The pairs in their order, in blocks of random sizes, some of them empty."""
    cuts = np.sort(rng.integers(0, len(links) + 1, rng.integers(0, 5)))
    return np.split(packed(links), cuts)


def neighbors_of(links, n):
    near = [set() for _ in range(n)]
    for a, b in links:
        near[a].add(b)
        near[b].add(a)
    return near


def greedy(near, rank):
    """Rows in order of their ranks, unless they are near one that was taken."""
    taken = set()
    for row in np.argsort(rank).tolist():
        if near[row].isdisjoint(taken):
            taken.add(row)
    return taken


def nearest_taken(links, n, taken, rank):
    """(centre, similarity) of each row: of the most similar centre, the first by rank; itself where there is none."""
    found = []
    for row, near in enumerate(neighbors_of(links, n)):
        ways = [(-links[min(row, c), max(row, c)], rank[c], c) for c in near & taken]
        best = min(ways, default=(np.inf, 0, row))
        found.append((row, 1.0) if row in taken else (best[2], -best[0]))
    return found


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 60), in_order=st.booleans())
@settings(deadline=None, max_examples=150)
def test_stars_are_those_of_the_sequential_greedy(seed, kind, n, in_order):
    """The centres, whatever the budget; each row's nearest of them; the smallest row of each star."""
    rng = np.random.default_rng(seed)
    links = graph(kind, n, rng)
    rank, near = np.arange(n) if in_order else rng.permutation(n), neighbors_of(links, n)
    blocks, reads = in_blocks(links, rng), []

    def neighbors():
        reads.append(1)
        return iter(blocks)

    assert stars.degrees(neighbors(), n).tolist() == [len(some) for some in near]
    taken = greedy(near, rank)
    for budget in (0, 3, 10**6):
        reads.clear()
        is_centre = stars.centres(neighbors, rank, budget)
        assert set(np.nonzero(is_centre)[0].tolist()) == taken
        assert len(reads) == 1 or len(links) > budget
        assert len(reads) > 1 or len(links) <= budget
    nearest, similarity = stars.nearest_centre(neighbors, is_centre, rank)
    assert list(zip(nearest.tolist(), similarity.tolist(), strict=True)) == nearest_taken(links, n, taken, rank)
    smallest = [min(row for row in range(n) if nearest[row] == centre) for centre in nearest.tolist()]
    assert stars.smallest_rows(nearest).tolist() == smallest


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 40), share=st.sampled_from([0.1, 0.4]))
@settings(deadline=None, max_examples=100)
def test_rows_that_were_kept_are_taken_first(seed, kind, n, share):
    """Whatever they are near, each other, too."""
    rng = np.random.default_rng(seed)
    links, kept = graph(kind, n, rng), rng.random(n) < share
    rank, near, blocks = rng.permutation(n), neighbors_of(links, n), in_blocks(links, rng)
    taken = {*np.nonzero(kept)[0].tolist()}
    for row in np.argsort(rank).tolist():
        taken |= {row} if near[row].isdisjoint(taken) else set()
    for budget in (0, 3, 10**6):
        assert set(np.nonzero(stars.centres(lambda: iter(blocks), rank, budget, kept))[0].tolist()) == taken


@pytest.mark.parametrize("budget", [0, 10**6])
def test_a_path_in_the_order_of_its_ranks(budget):
    """The most rounds there can be: each takes one row."""
    blocks = np.split(packed(dict.fromkeys(pairwise(range(1001)), 0.9)), [300, 301, 900])
    assert np.nonzero(stars.centres(lambda: iter(blocks), np.arange(1001), budget))[0].tolist() == [*range(0, 1001, 2)]


@pytest.mark.parametrize("n", [1001, 100_000])
def test_a_path_that_does_not_fit_takes_few_reads(n):
    """Some pairs of the first ranks are decided each time, however long the chain."""
    reads, path = [], packed(dict.fromkeys(pairwise(range(n)), 0.9))

    def neighbors():
        reads.append(1)
        return iter([path])

    for rank in (np.arange(n), np.arange(n)[::-1]):
        reads.clear()
        taken = np.nonzero(stars.centres(neighbors, rank, n // 8))[0]
        assert taken.tolist() == sorted(range(n)[:: 2 if rank[0] == 0 else -2])
        assert len(reads) < 40


def lists_of(groups):
    """[(representative, {row: similarity})] of `Groups`, as in `load_groups`."""
    found = []
    for number, representative in enumerate(groups.representative.tolist()):
        here = groups.members(number)
        similarity = zip(groups.rows[here].tolist(), groups.similarity[here].tolist(), strict=True)
        found.append((representative, dict(similarity)))
    return found


def cut_by_hand(members, cosines, threshold):
    """[(representative, {row: similarity})] of the parts of a connected group, its first row being kept."""
    todo, found = [sorted(members)], []
    while todo:
        rows = todo.pop()
        links = [(a, b) for a in rows for b in rows if a < b and cosines[a, b] >= threshold]
        here = nx.Graph(links)
        here.add_nodes_from(rows)
        cuts, bridges = set(), [tuple(sorted(bridge)) for bridge in nx.bridges(here)]
        for far in (row for row in rows if cosines[rows[0], row] < threshold):
            apart = [b for b in bridges if not nx.has_path(nx.restricted_view(here, [], [b]), rows[0], far)]
            depth = nx.single_source_shortest_path_length(here, rows[0])
            cuts |= {min(apart, key=lambda b: (cosines[b], -min(depth[b[0]], depth[b[1]])))} if apart else set()
        here.remove_edges_from(cuts)
        if cuts:
            todo += [sorted(part) for part in nx.connected_components(here)]
        elif len(rows) > 1:
            found.append((rows[0], {row: cosines[rows[0], row] for row in rows}))
    return sorted(found, key=lambda group: group[0])


class FirstRows:
    """Stands for `Representatives`: keeps the first row of each group. rows: (n, n), similarities of all with all."""

    def __init__(self, links, n):
        self.rows, self.learn = np.where(np.eye(n), 1, 0.5), lambda groups: None
        for (a, b), similarity in links.items():
            self.rows[a, b] = self.rows[b, a] = similarity

    def of(self, members, bounds):
        first = members[bounds[:-1]]
        similarity = self.rows[members, np.repeat(first, np.diff(bounds))]
        return Groups(members, bounds, similarity, first, np.zeros(len(first), dtype=np.int32))


def split(links, n, budget=1e9):
    """The connected groups of pairs at 0.7, and what is left of them after cuts."""
    blocks, rows = [packed(links)], FirstRows(links, n)
    connected = rows.of(*thresholds.groups_at(thresholds.spanning_forest(blocks), n, 0.7))
    groups, uncut = chains.split_chains(rows, connected, Found(lambda _: iter(blocks), n, 0.7, True, budget))
    return lists_of(connected), lists_of(groups), uncut


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 40), budget=st.sampled_from([1, 1000, 1e9]))
@settings(deadline=None, max_examples=150)
def test_chains_are_cut_at_the_weakest_bridges(seed, kind, n, budget):
    links = graph(kind, n, np.random.default_rng(seed))
    (before, after, uncut), cosines = split(links, n, budget), FirstRows(links, n).rows
    assert uncut == 0
    assert after == sorted((p for _, m in before for p in cut_by_hand(m, cosines, 0.7)), key=lambda g: min(g[1]))
    check_split(before, after, links, 0.7)


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 40), dense=st.booleans(), some_kept=st.booleans())
@settings(deadline=None, max_examples=150)
def test_two_spanning_forests_tell_of_chains_what_all_pairs_do(seed, kind, n, dense, some_kept):
    """Also where rows that were kept before part what pairs join."""
    rng = np.random.default_rng(seed)
    links = graph(kind, n, rng)
    if dense:  # some cliques, joined here and there
        links |= {(a, b): 0.7 + 0.3 * rng.random() for a in range(n) for b in range(a + 1, n) if a // 7 == b // 7}
    blocks, rows, kept = in_blocks(links, rng), FirstRows(links, n), rng.random(n) < 0.1 * some_kept
    forest = changes.apart(thresholds.spanning_forest(blocks), kept)
    groups, found = rows.of(*thresholds.groups_at(forest, n, 0.7)), Found(lambda _: iter(blocks), n, 0.7, True, 1e9)
    few, n_chains = chains.sparse(groups, forest, found), np.count_nonzero(groups.are_chains(0.7))
    if not n_chains:
        assert few is found
        return
    [some] = few.blocks()
    assert len(some) <= 2 * (groups.sizes[groups.are_chains(0.7)].sum() - n_chains)
    assert {(a, b): s for a, b, s in some.tolist()}.items() <= links.items()
    names = SimpleNamespace(take=lambda rows: [int(row) for row in rows])
    by_all, by_few = (dict(chains.explain_chains(groups, pairs, names)) for pairs in (found, few))
    for name, chain in by_all.items():
        assert chain["bridges"] == by_few[name]["bridges"]
        assert min(chain["path_similarities"]) == min(by_few[name]["path_similarities"])
        path = by_few[name]["path"]
        assert (path[0], path[-1]) == (chain["representative"], chain["weakest"])
        assert [links[tuple(sorted(link))] for link in pairwise(path)] == by_few[name]["path_similarities"]
    (by_all, _), (by_few, _) = (chains.split_chains(rows, groups, pairs) for pairs in (found, few))
    assert lists_of(by_all) == lists_of(by_few)


def test_a_member_at_the_threshold_itself_makes_no_chain():
    similarity, firsts = np.array([1, 0.9, 1, np.nextafter(0.9, 0)]), np.array([0, 2])
    groups = Groups(np.arange(4), np.array([0, 2, 4]), similarity, firsts, np.zeros(2, np.int32))
    assert groups.are_chains(0.9).tolist() == [False, True]


def test_a_chain_of_too_many_pairs_is_left_as_it_is(monkeypatch):
    links = dict.fromkeys([*pairwise(range(9)), *pairwise(range(9, 12))], 0.9)
    monkeypatch.setattr(chains, "_CHAIN_PAIRS", 7)
    before, after, uncut = split(links, 12)
    assert (len(before), after[0], uncut) == (2, before[0], 1)
    assert after[1:] != before[1:]
    monkeypatch.setattr(chains, "_CHAIN_PAIRS", 8)
    _, after, uncut = split(links, 12)
    assert (after[0] != before[0], uncut) == (True, 0)


def test_a_chain_that_loses_a_link_at_a_time_is_cut_so_often(monkeypatch):
    """Where the first row is kept, and each link is stronger than the one before."""
    links = {(row, row + 1): 0.8 + 0.001 * row for row in range(40)} | {(50, 51): 0.9, (51, 52): 0.9}
    _, after, uncut = split(links, 53)
    assert (len(after), uncut) == (1 + 1, 0)
    monkeypatch.setattr(chains, "_ROUNDS", 10)
    _, after, uncut = split(links, 53)
    assert (sorted(after[0][1]), uncut) == ([*range(10, 41)], 1)


def many_chains(count):
    """As `Groups`, each of three rows of which the first and the last are apart, and their pairs, as `Found`."""
    rows, similarity = np.arange(3 * count), np.tile([1, 0.9, 0.5], count)
    groups = Groups(rows, np.arange(0, len(rows) + 1, 3), similarity, rows[::3], np.zeros(count, dtype=np.int32))
    blocks = [packed({(row, row + 1): 0.9 for row in rows.tolist() if row % 3 < 2})]
    return groups, Found(lambda _: iter(blocks), len(rows), 0.8, True, 1e5)


@contextmanager
def peak_memory():
    """Yields a list that gets the bytes that Python objects and arrays took at most."""
    peak = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def test_what_explains_chains_takes_the_memory_of_one(tmp_path):
    """While it is written, and while the report looks for some."""
    (groups, found), path = many_chains(2000), tmp_path / "chains.json"
    ids = IdTable([pa.array([f"{row}{'x' * 1000}" for row in groups.rows], pa.large_string())])
    explain = partial(chains.explain_chains, groups, found, ids)
    with peak_memory() as peak:
        write_json_items(path, explain())
        paths = report._paths(path, {groups.name(7), groups.name(1999)})
    assert path.stat().st_size > 10 * peak[0]
    assert json.loads(path.read_text()) == dict(explain())
    shown = {n: report._path(ids.take([3 * n, 3 * n + 1, 3 * n + 2]), [0.9, 0.9]) for n in (7, 1999)}
    assert paths == {groups.name(n): path for n, path in shown.items()}


def test_cuts_take_some_bytes_a_row():
    (groups, found), settled = many_chains(2000), np.zeros(6000, dtype=bool)
    with peak_memory() as peak:
        rows, parts, uncut = chains.cut_chains(groups, found, settled)
    assert uncut == 0
    assert (rows.tolist(), parts.tolist()) == ([*range(6000)], [row - (row % 3 == 1) for row in range(6000)])
    assert peak[0] < 100 * 6000


def check_split(before, after, links, threshold):
    """What holds of groups that were cut, whichever rows they keep."""
    part_of = {row: number for number, (_, members) in enumerate(after) for row in members}
    for _, members in after:
        assert any(members.keys() <= whole.keys() for _, whole in before)
    for representative, members in before:
        if min(members.values()) >= threshold:
            assert (representative, members) in after
    cut = {pair for pair in links if part_of.get(pair[0], -1) != part_of.get(pair[1], -2)}
    bridges = {tuple(sorted(bridge)) for bridge in nx.bridges(nx.Graph(list(links)))}
    assert cut <= bridges
    for representative, members in after:
        here = nx.Graph([pair for pair in links if pair[0] in members and pair[1] in members])
        for far in (row for row, similarity in members.items() if similarity < threshold):
            assert nx.edge_connectivity(here, representative, far) > 1  # no bridge lies between
    return cut


def arc(places, step):
    """Rows on a circle, at multiples of an angle."""
    angle = np.array(places) * step
    return np.column_stack([np.cos(angle), np.sin(angle)])


def run_case(folder, rows, cuts=(), scores=None, **more):
    """Stages 1 to 4 on rows, with scores in a table beside each shard. `regroup` runs stage 5 with other settings."""
    data, work = lay_out(folder / "data", rows, cuts=cuts), folder / "work"
    for number, (start, stop) in enumerate(pairwise([0, *cuts, len(rows)]) if scores else ()):
        pq.write_table(pa.table({"score": scores[start:stop]}), data / f"part_{number}.parquet")
    more = {"audit_rows": 0, "n_clusters": 2} | more
    run_stages(data, work, SCRIPTS[:-1], **more)

    def regroup(**settings):
        run_stages(data, work, SCRIPTS[-1:], **more | settings)
        return load_groups(work)

    return SimpleNamespace(regroup=regroup, work=work, rows=rows)


CLIQUES = [0, 0.2, 0.4, 1.4, 1.6, 1.8], [(0, 1, 2), (3, 4, 5)]  # that one pair joins
ROW_BETWEEN = [0, 0.2, 0.4, 1.4, 2.4, 2.6, 2.8], [(0, 1, 2), (4, 5, 6)]  # left single


@pytest.mark.parametrize(("places", "parts"), [CLIQUES, ROW_BETWEEN])
def test_planted_chains_are_cut(tmp_path, places, parts):
    case = run_case(tmp_path, arc(places, 0.1), threshold=float(np.cos(0.11)))
    assert [tuple(members) for _, members in case.regroup()] == [tuple(range(len(places)))]
    assert [tuple(members) for _, members in case.regroup(grouping="split")] == parts
    assert load_chains(case.work) == {}
    kept = {representative for representative, _ in load_groups(case.work)}
    single = set(range(len(places))) - {row for part in parts for row in part}
    assert load_list(case.work / STAGE / "keep.txt") == [f"id-{row}" for row in sorted(kept | single)]


def test_a_long_path_falls_apart_and_a_ring_does_not(tmp_path):
    for name, step in (("path", 0.05), ("ring", 2 * np.pi / 40)):
        case = run_case(tmp_path / name, arc(range(40), step), threshold=float(np.cos(1.2 * step)))
        before, after = case.regroup(), case.regroup(grouping="split")
        assert [len(members) for _, members in before] == [40]
        if name == "ring":
            assert (after, len(load_chains(case.work))) == (before, 1)
        else:
            assert load_chains(case.work) == {}
            assert {len(members) for _, members in after} <= {2, 3}
            assert all(max(members) - min(members) == len(members) - 1 for _, members in after)


SCORES = np.random.default_rng(9).integers(0, 9, 120).tolist()


@pytest.fixture(scope="module", params=[0, 1])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("groupings")
    return run_case(folder, bundles(request.param), cuts=[40], scores=SCORES, threshold=0.9)


def links_at(case, threshold):
    row_a, row_b, similarity = (column.tolist() for column in found_pairs(case.work))
    found = zip(zip(row_a, row_b, strict=True), similarity, strict=True)
    return {pair: s for pair, s in found if s >= threshold}


def stars_by_hand(links, n, preferred):
    """[(centre, {row: similarity})] of the stars of two or more rows, by their smallest rows."""
    near, found = neighbors_of(links, n), {}
    rank = np.argsort(sorted(range(n), key=lambda row: (preferred[row], -len(near[row]), row))).tolist()
    for row, (centre, similarity) in enumerate(nearest_taken(links, n, greedy(near, rank), rank)):
        found.setdefault(centre, {})[row] = similarity
    return sorted(((c, m) for c, m in found.items() if len(m) > 1), key=lambda group: min(group[1]))


def check_stars(case, groups, links, threshold):
    """By the vectors themselves: members are near the row kept, and no two rows kept are near each other."""
    cosines, members = unit(case.rows) @ unit(case.rows).T, {row for _, some in groups for row in some}
    for representative, some in groups:
        assert min(cosines[representative, row] for row in some) >= threshold - 1e-14
        assert min(some.values()) >= threshold
    assert load_chains(case.work) == {}
    kept = [int(name.removeprefix("id-")) for name in load_list(case.work / STAGE / "keep.txt")]
    assert (np.triu(cosines[np.ix_(kept, kept)], 1) < threshold).all()
    assert {row for pair in links for row in pair} <= members | set(kept)


@pytest.mark.parametrize("threshold", [0.9, 0.94, 0.97])
def test_groupings_of_a_whole_run(case, threshold):
    links = links_at(case, threshold)
    found = {name: case.regroup(threshold=threshold, grouping=name) for name in ("connected", "split", "star")}
    assert {tuple(members) for _, members in found["connected"]} == components(links, len(case.rows))
    check_split(found["connected"], found["split"], links, threshold)
    check_stars(case, found["star"], links, threshold)
    assert found["star"] == stars_by_hand(links, len(case.rows), [0] * len(case.rows))


PREFERRED = {"lowest:score": SCORES, "highest:score": [-score for score in SCORES], "first": [*range(120)]}


@pytest.mark.parametrize("representative", ["lowest:score", "highest:score", "first"])
def test_stars_begin_with_the_rows_preferred(case, representative):
    """Before those of the highest degree, which decides only among rows of the same value."""
    groups, links = case.regroup(grouping="star", representative=representative), links_at(case, 0.9)
    check_stars(case, groups, links, 0.9)
    assert groups == stars_by_hand(links, len(case.rows), PREFERRED[representative])
    assert groups != stars_by_hand(links, len(case.rows), [0] * len(case.rows))


def test_the_example_at_090(tmp_path):
    """Where stars differ much from what is joined, and there are chains to cut."""
    rows = np.concatenate([np.load(EXAMPLE / f"demo_{s}.npy") for s in range(3)])
    case = run_case(tmp_path, rows, threshold=0.9, n_clusters=20)
    links = links_at(case, 0.9)
    found = {name: case.regroup(grouping=name) for name in ("connected", "split", "star")}
    check_stars(case, found["star"], links, 0.9)
    assert found["star"] == stars_by_hand(links, len(rows), [0] * len(rows))
    assert check_split(found["connected"], found["split"], links, 0.9)


def test_shards_and_blocks_make_no_difference(tmp_path, monkeypatch):
    """Stars are chosen with all in memory, and with nothing."""
    found = []
    for number, cuts in enumerate(([], [1, 50, 77])):
        case = run_case(tmp_path / str(number), bundles(3), cuts=cuts, threshold=0.92)
        for grouping in ("connected", "star", "split"):
            case.regroup(grouping=grouping)
            found.append((case.work / STAGE / "groups.parquet").read_bytes())
        monkeypatch.setattr(pairs, "_BLOCK", 7)
        monkeypatch.setattr(thresholds, "_AT_ONCE", 5)
        monkeypatch.setattr(stars, "_BYTES_OF_EDGE", 1e12)
    assert found[:3] == found[3:]
    assert len(set(found)) == 3


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 60), at_once=st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_the_forest_joins_what_all_pairs_join(seed, kind, n, at_once):
    """At every threshold; so the threshold that leaves so many rows is the highest of all that leave no more."""
    rng, kept = np.random.default_rng(seed), {}
    links = graph(kind, n, rng)
    with patch.object(thresholds, "_AT_ONCE", at_once):
        forest = thresholds.spanning_forest(in_blocks(links, rng))
    assert forest.tolist() == thresholds.spanning_forest([packed(links)]).tolist()
    assert forest.tolist() == sorted(forest.tolist(), key=lambda pair: (-pair[2], *pair[:2]))
    assert {tuple(pair[:2]): pair[2] for pair in forest.tolist()}.items() <= links.items()
    for threshold in {0.5, 1.0, *links.values()}:
        members, bounds = thresholds.groups_at(forest, n, threshold)
        found = {tuple(members[low:high].tolist()) for low, high in pairwise(bounds.tolist())}
        assert found == components([pair for pair, s in links.items() if s >= threshold], n)
        kept[threshold] = n - sum(len(group) - 1 for group in found)
    assert len(forest) == n - kept[0.5]
    for target in range(1, n + 3):
        if target < kept[0.5]:
            with pytest.raises(NeardupError, match="report_threshold"):
                thresholds.threshold_for(forest, n, target, 0.7)
        else:
            highest = max(threshold for threshold in {1.0, *links.values()} if kept[threshold] <= target)
            assert thresholds.threshold_for(forest, n, target, 0.7) == highest


def test_the_lowest_threshold_searched_is_told_with_all_its_digits():
    with pytest.raises(NeardupError, match=r"^at 0\.97654321, the lowest threshold searched, 5 rows are left"):
        thresholds.threshold_for(np.empty(0, PAIR), 5, 3, 0.97654321)


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 40), share=st.sampled_from([0, 0.1, 0.4, 1]))
@settings(deadline=None, max_examples=100)
def test_no_two_rows_that_were_kept_are_joined(seed, kind, n, share):
    """From the strongest pair on, each joins two parts unless either holds such a row."""
    rng = np.random.default_rng(seed)
    forest, kept = thresholds.spanning_forest([packed(graph(kind, n, rng))]), rng.random(n) < share
    parts, expected = [{row} for row in range(n)], []
    for a, b, similarity in forest.tolist():
        if not (kept[[*parts[a]]].any() and kept[[*parts[b]]].any()):
            expected.append((a, b, similarity))
            both = parts[a] | parts[b]
            for row in both:
                parts[row] = both
    assert changes.apart(forest, kept).tolist() == expected


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 40), lowest=st.sampled_from([0.5, 0.7, 1.0]))
@settings(deadline=None, max_examples=50)
def test_the_histogram_counts_every_pair(seed, kind, n, lowest):
    rng = np.random.default_rng(seed)
    links = {pair: max(s, lowest) for pair, s in graph(kind, n, rng).items()}
    counts, edges = thresholds.histogram(in_blocks(links, rng), lowest)
    assert (edges[0], edges[-1]) == (min(lowest, 1 - 1e-6), 1)
    values = [*links.values()]
    below = [sum(value < edge for value in values) for edge in edges[:-1]] + [len(values)]
    assert counts.tolist() == np.diff(below).tolist()


@given(seed=SEED, kind=st.sampled_from(KINDS), n=st.integers(1, 40), count=st.integers(1, 9))
@settings(deadline=None, max_examples=100)
def test_pairs_are_counted_and_shown_by_threshold(seed, kind, n, count):
    rng = np.random.default_rng(seed)
    links, wanted = graph(kind, n, rng), thresholds.steps(0.7, 0.85)
    blocks = in_blocks(links, rng)
    counts = thresholds.pair_counts(blocks, wanted)
    assert counts.tolist() == [sum(s >= threshold for s in links.values()) for threshold in wanted]
    found = thresholds.examples(blocks, wanted, count)
    for some, low, high in zip(found, wanted, [np.inf, *wanted[:-1]], strict=True):
        between = sorted((s, a, b) for (a, b), s in links.items() if low <= s < high)
        assert [(s, a, b) for a, b, s in some.tolist()] == between[:count]


def test_the_thresholds_that_are_tabulated():
    assert thresholds.steps(0.98, 0.98) == [1.0, 0.995, 0.99, 0.98]
    assert thresholds.steps(0.93, 0.971) == [1.0, 0.995, 0.99, 0.98, 0.971, 0.97, 0.96, 0.95, 0.94, 0.93]
    assert thresholds.steps(1.0, 1.0) == [1.0]
    assert thresholds.steps(0.1, 0.5) == [*sorted(thresholds.STEPS, reverse=True), 0.1]


@pytest.mark.parametrize("preferred", [None, "first", "some order"])
def test_groups_that_grow_keep_what_fresh_ones_would(tmp_path, preferred):
    """Those that are there again at the next threshold aren't looked at again."""
    values, n = bundles(5), 120
    order = {None: None, "first": np.zeros(n, np.int64), "some order": np.random.default_rng(0).integers(0, 9, n)}
    lay_out(tmp_path, values)
    rows, labels = RowFiles([npy_layout(tmp_path / "part_0.npy")], [0, n]), np.arange(n, dtype=np.int32)
    cosines = np.round(unit(values) @ unit(values).T, 15)
    links = {(a, b): cosines[a, b] for a in range(n) for b in range(a + 1, n) if cosines[a, b] >= 0.85}
    forest, config = thresholds.spanning_forest([packed(links)]), Config()

    def make(name):
        return Representatives(
            Stage(STAGE, tmp_path / name, {}, memory=config.memory_limit), "at", rows, order[preferred], labels, config
        )

    grown = make("grown")
    for threshold in (1.0, 0.98, 0.95, 0.93, 0.9, 0.85):
        nested = thresholds.groups_at(forest, n, threshold)
        found = grown.of(*nested)
        assert lists_of(found) == lists_of(make(f"fresh {threshold}").of(*nested))
        assert found.cluster.tolist() == found.representative.tolist()
        calls = grown.calls
        assert lists_of(grown.of(*nested)) == lists_of(found)
        assert grown.calls == calls
    assert calls > 1


def test_a_group_that_is_read_in_pieces_has_its_most_central_row(tmp_path, monkeypatch):
    """Most central of all pieces, not of the last one."""
    monkeypatch.setattr("neardup.grouping.representatives._BLOCK_ROWS", 3)
    values, n = np.random.default_rng(0).normal(size=(20, 4)) + 1, 20
    values[12:] = -values[12:]
    lay_out(tmp_path, values)
    rows, labels = RowFiles([npy_layout(tmp_path / "part_0.npy")], [0, n]), np.zeros(n, dtype=np.int32)
    stage, config = Stage(STAGE, tmp_path, {}, memory=2**28), Config()
    found = Representatives(stage, "at", rows, None, labels, config).of(np.arange(n), np.array([0, n]))
    cosines = unit(values) @ unit(values).T
    best = cosines.sum(axis=1).argmax()
    assert found.representative.tolist() == [best]
    assert np.allclose(found.similarity, cosines[best])


@pytest.mark.parametrize(("difference", "best"), [(1e-9, 1), (1e-14, 0)])
def test_the_most_central_row_however_little_it_is(difference, best):
    """Unless rounding alone tells it from the first one."""
    score, bounds = np.array([2.5, 2.5 + difference, 2.5, 3.5, 3.5, 3.5 + difference, 3.5]), np.array([0, 3, 7])
    of_group = np.repeat([0, 1], np.diff(bounds))
    assert first_best(score, of_group, bounds).tolist() == [best, 3 + 2 * best]


@pytest.mark.parametrize("strongest", [None, np.ones(4)], ids=["computed", "known"])
def test_the_first_of_two_that_are_preferred_alike(tmp_path, strongest):
    lay_out(tmp_path, np.ones((4, 2)))
    rows, labels = RowFiles([npy_layout(tmp_path / "part_0.npy")], [0, 4]), np.zeros(4, dtype=np.int32)
    stage, preferred = Stage(STAGE, tmp_path, {}, memory=2**28), np.array([5, 5, 6, 5])
    how = rows, preferred, labels, Config(), None, strongest
    found = Representatives(stage, "at", *how).of(np.arange(4), np.array([0, 2, 4]))
    assert found.representative.tolist() == [0, 3]


def test_groups_of_several_blocks_keep_their_numbers(tmp_path, monkeypatch):
    """In groups.parquet; and their ids in HDF5."""
    monkeypatch.setattr("neardup.grouping.outputs.BLOCK_ROWS", 2)
    monkeypatch.setattr("neardup.input.id_table.BLOCK_ROWS", 3)
    names, bounds = [f"id-{'x' * i}" for i in range(8)], np.arange(0, 9, 2)
    ids = IdTable([pa.array(names, pa.large_string())])
    groups = Groups(np.arange(8), bounds, np.ones(8), bounds[:-1], np.zeros(4, np.int32))
    outputs.write_parquet(tmp_path / "groups.parquet", groups, ids, 0.9)
    assert pq.read_table(tmp_path / "groups.parquet")["group"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3]
    outputs.write_hdf5(tmp_path / "groups.h5", groups, ids, 0.9)
    with h5py.File(tmp_path / "groups.h5") as file:
        assert flat_ids(file) == names


@pytest.mark.parametrize("names", [["a", "", "b"], ["a", '"b'], ["a\nb"], [""]])
def test_ids_of_many_lines_are_those_of_each(names):
    assert outputs.id_lines(names) == "".join(outputs.id_line(name) + "\n" for name in names)


@pytest.mark.parametrize("preferred", [False, True])
def test_rows_that_were_kept_represent_their_groups(tmp_path, preferred):
    """Whatever is preferred; groups of two alike, whether their similarity is known or has to be computed."""
    values, n, rng = bundles(7), 120, np.random.default_rng(7)
    lay_out(tmp_path, values)
    rows, labels = RowFiles([npy_layout(tmp_path / "part_0.npy")], [0, n]), np.zeros(n, dtype=np.int32)
    a, b = np.triu_indices(n, 1)
    similarity = geometry.similarities(values[a], values[b])
    links = {(a, b): s for a, b, s in zip(a.tolist(), b.tolist(), similarity.tolist(), strict=True) if s >= 0.93}
    kept, order = rng.random(n) < 0.4, rng.integers(0, 9, n) if preferred else None
    forest = changes.apart(thresholds.spanning_forest([packed(links)]), kept)
    members_and_bounds, found = thresholds.groups_at(forest, n, 0.93), []
    for strongest in (None, thresholds.strongest_pairs(forest, n)):
        stage = Stage(STAGE, tmp_path / str(len(found)), {}, memory=2**28)
        how = rows, order, labels, Config(), kept, strongest
        found.append(lists_of(Representatives(stage, "at", *how).of(*members_and_bounds)))
    assert found[0] == found[1]
    assert {1, 2} <= {len(members) - 1 for _, members in found[0]}
    for representative, members in found[0]:
        first = sorted(members, key=lambda row: (not kept[row], order[row] if preferred else 0, row))[0]
        assert kept[representative] == kept[first]
        assert representative == first or not (preferred or kept[first])


def test_what_can_not_be_cut_is_looked_at_once(monkeypatch):
    """Beside a chain whose weakest bridges are cut one after another."""
    squares = {pair: 0.9 for s in range(0, 40, 4) for pair in ((s, s + 1), (s + 1, s + 2), (s + 2, s + 3), (s, s + 3))}
    chain, calls, parts_of = {(row, row + 1): 0.8 + row / 1000 for row in range(40, 59)}, [], chains._parts

    def count(pairs, representative, far):
        calls.append(representative)
        return parts_of(pairs, representative, far)

    monkeypatch.setattr(chains, "_parts", count)
    before, after, uncut = split(squares | chain, 60)
    assert uncut == 0
    assert after[:10] == before[:10]
    assert sorted(row for row in calls if row < 40) == list(range(0, 40, 4))
    assert len([row for row in calls if row >= 40]) > 2


@pytest.mark.parametrize("every", [2, 20])
def test_ids_that_rows_share_are_gathered_block_by_block(tmp_path, monkeypatch, every):
    """Those of rows that are kept, or of those that are dropped, whichever are fewer; 5,000 rows have the same."""
    monkeypatch.setattr("neardup.grouping.outputs.BLOCK_ROWS", 1000)
    n_rows, rng = 100_000, np.random.default_rng(every)
    number = np.concatenate([rng.integers(0, n_rows // 2, n_rows - 5000), np.full(5000, n_rows)])
    names = [f"{i:040}" for i in number.tolist()]
    rows = np.sort(rng.permutation(n_rows)[: n_rows // every // 5 * 5])
    groups = Groups(rows, np.arange(0, len(rows) + 1, 5), np.ones(len(rows)), rows[::5], np.zeros(len(rows) // 5, "i4"))
    rejected = np.setdiff1d(np.arange(0, n_rows, 30), rows)
    repeated = np.nonzero(np.bincount(number)[number] > 1)[0]
    ids = IdTable([pa.array(names[start : start + 1000], pa.large_string()) for start in range(0, n_rows, 1000)])
    dropped = groups.dropped(n_rows)
    kept = ~dropped & ~np.isin(np.arange(n_rows), rejected)
    with peak_memory() as peak:
        found = outputs.write_lists(tmp_path, groups, rejected, repeated, ids)
    print(f"{peak[0] / n_rows:.0f} bytes a row")
    assert peak[0] < 80 * n_rows
    assert (found == kept).all()
    spared = {names[row] for row in np.nonzero(kept)[0]}
    lines = [(tmp_path / name).read_text().split() for name in ("keep.txt", "drop.txt")]
    assert lines[0] == [names[row] for row in np.nonzero(kept)[0]]
    assert lines[1] == [names[row] for row in np.nonzero(dropped)[0] if names[row] not in spared]
    assert 0 < len(lines[1]) < np.count_nonzero(dropped)

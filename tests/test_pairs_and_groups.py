"""What pairs go through, each step by itself against the plainest way: packed, cut, seen both ways, joined, found."""

import gc
import io
import itertools
import json
import shutil
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import h5py
import numpy as np
import pytest
from conftest import EXAMPLE, SCRIPTS, brute_force, components, found_groups, lay_out, pair_set, read_csv, run_stages
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faiss_03_kmeans import nearest_centroids
from neardup import NeardupError
from neardup.machine import npy
from neardup.order import stable_order
from neardup.search import candidates, geometry, levels, pairs
from neardup.search.components import components as smallest_of_each
from neardup.search.components import joining
from neardup.search.couples import couples_across, couples_inside, search_two
from neardup.search.opened import OpenCluster, Prepared, prepare_cluster
from neardup.search.visits import flatten_visits, list_visits
from neardup.stages.artifacts import Stage

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])


@given(couples=st.lists(st.tuples(ROWS, ROWS), max_size=50))
@settings(deadline=None)
def test_packed_pairs_come_back_and_sort(couples):
    a, b = np.array(couples, dtype=np.int64).reshape(-1, 2).T
    packed = pairs.pack(a, b)
    row_a, row_b = pairs.unpack(packed)
    assert (packed.dtype, row_a.dtype, row_b.dtype) == (np.uint64, np.int64, np.int64)
    expected = [(min(c), max(c)) for c in couples]
    assert list(zip(row_a.tolist(), row_b.tolist(), strict=True)) == expected
    assert [expected[i] for i in np.argsort(packed, kind="stable")] == sorted(expected)


@given(
    seed=SEEDS,
    sizes=st.lists(st.sampled_from([0, 1, 63, 64, 65, 127, 128]) | st.integers(0, 700), min_size=1, max_size=6),
    most=st.integers(1, 2000),
)
@settings(deadline=None)
def test_every_pair_is_in_one_piece(seed, sizes, most):
    rng = np.random.default_rng(seed)
    packed = rng.permutation(np.unique(rng.integers(0, 2**64, 2 * sum(sizes), dtype=np.uint64)))[: sum(sizes)]
    parts = [np.sort(p) for p in np.split(packed, np.cumsum(sizes)[:-1])]
    bounds = pairs.bounds_between(parts, pairs.cuts(parts, most)).tolist()
    slices = [[slice(*ends) for ends in zip(*some, strict=True)] for some in itertools.pairwise(bounds)]
    for number, part in enumerate(parts):  # what is cut off follows what was cut off before
        assert np.concatenate([part[s[number]] for s in slices]).tolist() == part.tolist()
    pieces = [np.sort(np.concatenate([p[s] for p, s in zip(parts, piece, strict=True)])) for piece in slices]
    assert np.concatenate(pieces).tolist() == np.sort(packed).tolist()
    # one pair in 64 is a sample, and cuts are samples: up to 63 of each array follow its last sample before a cut
    assert max(map(len, pieces)) <= max(most // 64, 1) * 64 + 63 * len(parts)


@pytest.mark.parametrize("first", [0, 2**30, 2**32 - 20])
def test_pairs_among_others_of_neighbouring_numbers(first):
    """Which float64 couldn't tell apart."""
    a, b = (first + ends for ends in np.triu_indices(20, 1))
    packed = pairs.pack(a, b)
    for listed in (packed[::2], packed[:0], packed[1:2], packed):
        found, places = pairs.among(packed[::-1], listed)
        assert found.tolist() == [p in set(listed.tolist()) for p in packed[::-1].tolist()]
        assert listed[places].tolist() == packed[::-1][found].tolist()


@given(seed=SEEDS, n_rows=st.integers(2, 40), share=st.sampled_from([0, 0.05, 0.3, 1]), most=st.integers(1, 4000))
@settings(deadline=None)
def test_pairs_seen_from_both_ends(seed, n_rows, share, most):
    rng = np.random.default_rng(seed)
    chosen = rng.random(n_rows * (n_rows - 1) // 2) < share
    a, b = (ends[chosen] for ends in np.triu_indices(n_rows, 1))
    similarity = rng.random(len(a))
    neighbours = {row: {} for row in range(n_rows)}
    for one, other, value in zip(a.tolist(), b.tolist(), similarity.tolist(), strict=True):
        neighbours[one][other] = neighbours[other][one] = value
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(pairs, "_BLOCK", 17):
        path, copies = Path(folder) / "neighbors.h5", Path(folder) / "parts" / "mirrored"
        with h5py.File(path, "w") as file:
            file["row_a"], file["row_b"], file["similarity"] = a, b, similarity
        copies.mkdir(parents=True)
        (copies / "0.bin").write_bytes(b"of a run that was killed")
        found, at = [], 0
        for low, high, here in pairs.both_ways(path, n_rows, most, copies):
            assert low == at < high
            assert ((here["row_a"] >= low) & (here["row_a"] < high)).all()
            assert high == low + 1 or len(here) + high - low <= most
            found += here.tolist()
            at = high
        assert at == n_rows
        assert not list(copies.iterdir())
    assert found == [(row, other, near[other]) for row, near in neighbours.items() for other in sorted(near)]


@given(seed=SEEDS, n=st.integers(0, 60), share=st.sampled_from([0, 0.1, 0.5, 1]))
@settings(deadline=None)
def test_two_series_of_pairs_become_one(seed, n, share):
    """In blocks of any sizes, some of them empty, of which either may end first."""
    rng = np.random.default_rng(seed)
    every, chosen = np.zeros(n, dtype=pairs.PAIR), np.sort(rng.permutation(190)[:n])
    every["row_a"], every["row_b"] = (ends[chosen] for ends in np.triu_indices(20, 1))
    every["similarity"], first = rng.random(n), rng.random(n) < share
    series = [np.split(some, np.sort(rng.integers(0, len(some) + 1, 4))) for some in (every[first], every[~first])]
    found = [*pairs.merged(*series)]
    assert np.concatenate([every[:0], *found]).tolist() == every.tolist()


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("row_a", 0, -1), ("row_a", 3, 4), ("row_b", 3, 5), ("row_b", 1, 1), ("row_a", 2, 0), ("similarity", 2, 0)],
    ids=["negative", "itself", "too high", "twice", "twice in two blocks", "no similarity"],
)
def test_what_are_no_pairs_in_order_is_refused(tmp_path, monkeypatch, name, place, value):
    """In a block, and from one to the next."""
    monkeypatch.setattr(pairs, "_BLOCK", 2)
    columns = {"row_a": np.array([0, 0, 1, 3]), "row_b": np.array([1, 2, 2, 4]), "similarity": np.full(4, 0.9)}
    for spoilt in (False, True):
        if spoilt:
            columns[name][place] = value
        with h5py.File(tmp_path / "neighbors.h5", "w") as file:
            for column, values in columns.items():
                file[column] = values
        with pytest.raises(NeardupError, match=r"neighbors.h5 is damaged") if spoilt else nullcontext():
            assert sum(map(len, pairs.read_pairs(tmp_path / "neighbors.h5", 5))) == 4


def partition(labels):
    """Which places have the same label, as pairs that join them."""
    _, first = np.unique(labels, return_index=True)
    first_of = dict(zip(np.asarray(labels)[first].tolist(), first.tolist(), strict=True))
    return [(first_of[label], place) for place, label in enumerate(np.asarray(labels).tolist())]


@given(seed=SEEDS, n=st.integers(2, 40), share=st.sampled_from([0, 0.02, 0.05, 0.2]), blocks=st.integers(1, 6))
@settings(deadline=None, max_examples=200)
def test_pairs_of_several_blocks_join_as_all_together(seed, n, share, blocks):
    """Each row is named by the smallest one of its group."""
    rng = np.random.default_rng(seed)
    ends = np.stack(np.triu_indices(n, 1))
    chosen = np.zeros(int(share * ends.shape[1]), dtype=pairs.PAIR)
    chosen["row_a"], chosen["row_b"] = rng.permutation(ends.T)[: len(chosen)].T
    expected = [*range(n)]
    for group in components(chosen[["row_a", "row_b"]].tolist(), n):
        for row in group:
            expected[row] = group[0]
    assert smallest_of_each(np.array_split(chosen, blocks), n).tolist() == expected


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint64, np.float64, bool])
@given(seed=SEEDS, n=st.integers(0, 300), lowest=st.sampled_from([0, -5, 2**31 - 40, 2**32 - 40, 2**62]))
@settings(deadline=None, max_examples=60)
def test_equal_values_stay_in_order(seed, n, lowest, dtype):
    """On both sides of what is packed as it is, and of zero."""
    found = np.random.default_rng(seed).integers(0, 50, n) + lowest
    values = (found / 7 if dtype == np.float64 else found).astype(dtype)
    order = stable_order(values)
    assert order.dtype == np.int64
    assert order.tolist() == np.argsort(values, kind="stable").tolist()


def join(n, n_candidates, share, rng):
    """Run `joining` over random candidates, of which a share are pairs, some places joined before.

    Returns what was asked a call, the pairs kept, all true candidates, the labels before and after.
    """
    every = np.array(list(itertools.permutations(range(n), 2)))
    every = every[np.unique(np.sort(every, axis=1), axis=0, return_index=True)[1]]
    every = rng.permutation(every)[:n_candidates]
    true, asked = rng.random((n, n)) < share, []
    before = rng.integers(0, n, n) if rng.random() < 0.3 else np.arange(n)
    joined = before.copy()

    def is_pair(i, j):
        asked.append(list(zip(i.tolist(), j.tolist(), strict=True)))
        return true[i, j]

    kept = joining(every[:, 0], every[:, 1], joined, is_pair)
    kept = list(zip(*(k.tolist() for k in kept), strict=True))
    return asked, kept, [(i, j) for i, j in every.tolist() if true[i, j]], before, joined


@given(
    seed=SEEDS,
    n=st.integers(2, 60),
    density=st.sampled_from([0, 0.05, 0.5, 1]),
    share=st.sampled_from([0, 0.02, 0.1, 0.5, 1]),
)
@settings(deadline=None, max_examples=200)
def test_pairs_that_join_form_the_same_groups(seed, n, density, share):
    rng = np.random.default_rng(seed)
    asked, kept, true, before, joined = join(n, int(density * n * (n - 1) / 2), share, rng)
    assert len({*kept}) == len(kept)
    assert {*kept} <= {*true}
    groups = components([*true, *partition(before)], n)
    assert components([*kept, *partition(before)], n) == groups
    assert components(partition(joined), n) == groups
    questions = [question for call in asked for question in call]
    assert len({*questions}) == len(questions)
    assert all(before[i] != before[j] for i, j in questions)
    if share == 1:
        # each component picks one: a picked pair joins two, or closes a circle of at least two picked pairs
        assert len(kept) <= 2 * (len(np.unique(before)) - len(np.unique(joined)))


@pytest.mark.parametrize(("n", "shares"), [(300, (0,)), (300, (1,)), (40, (0, 1))], ids=["none", "all", "small"])
def test_few_questions_are_asked(n, shares):
    """Call t, from 0, looks at 4^t candidates a component, of the firsts or of the seconds in turn, while none is a
    pair: the first that can hold the most that any component has, or the one after it, ends it. While all are
    pairs, two calls leave at most half of the components that have candidates."""
    for share, seed in itertools.product(shares, range(5)):
        rng = np.random.default_rng(seed)
        n_candidates = n * (n - 1) // 2
        asked, *_ = join(n, n_candidates, share, rng)
        most = np.ceil(np.log(n) / np.log(4)) + 2 if share == 0 else 2 * np.ceil(np.log2(n))
        assert 1 <= len(asked) <= most


@pytest.fixture(scope="module")
def crowds(tmp_path_factory):
    """Two crowds, 300 rows that are the same and 300 that are nearly so, among 300 others of which some are alike."""
    rng = np.random.default_rng(0)
    near = rng.normal(size=16) + rng.normal(size=(300, 16)) * 0.02
    others = rng.normal(size=(300, 16))
    others[:40] = others[40:80] + rng.normal(size=(40, 16)) * 0.1
    rows = np.concatenate([np.repeat(rng.normal(size=(1, 16)), 300, axis=0), near, others])
    folder = tmp_path_factory.mktemp("crowds")
    data = lay_out(folder / "data", rng.permutation(rows).astype(np.float32), cuts=[100, 500])
    run_stages(data, folder / "work", threshold=0.95)
    return data, folder / "work", {"threshold": 0.95}


@pytest.fixture(scope="module")
def example_at_09(example, tmp_path_factory):
    work = shutil.copytree(example, tmp_path_factory.mktemp("example at 0.9") / "work")
    run_stages(EXAMPLE, work, SCRIPTS[3:], threshold=0.9)
    return EXAMPLE, work, {"threshold": 0.9}


@pytest.mark.usefixtures("example")  # made before what is of a test alone
@pytest.mark.parametrize("case", ["example_at_09", "crowds"])
def test_joining_pairs_give_the_same_groups(request, tmp_path, case):
    data, every, settings = request.getfixturevalue(case)
    work = shutil.copytree(every, tmp_path / "work")
    run_stages(data, work, SCRIPTS[3:], pairs="joining", **settings)
    for name in ("groups.parquet", "keep.txt", "drop.txt"):
        assert (work / "045_merge" / name).read_bytes() == (every / "045_merge" / name).read_bytes()
    assert pair_set(work) <= pair_set(every)
    members = sum(map(len, found_groups(every)))
    assert len(pair_set(work)) <= 2 * members
    if case == "crowds":
        assert len(pair_set(every)) > 50 * len(pair_set(work))
    (line,), expected = (
        read_csv(folder, "thresholds.csv") for folder in (work, every)
    )  # of other thresholds they don't tell
    assert line == expected[-1] | {"pairs": str(len(pair_set(work)))}
    texts = [(folder / "045_merge" / "report.html").read_text() for folder in (work, every)]
    assert ["counted, drawn and shown" in text for text in texts] == [True, False]


def test_rows_that_are_the_same_are_joined(tmp_path):
    """At a threshold of 1, where a similarity is at it, or isn't."""
    rows = np.random.default_rng(0).normal(size=(40, 8))[np.random.default_rng(1).integers(0, 40, 120)]
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "work", threshold=1, n_clusters=3, pairs="joining")
    near, unclear = brute_force(rows, 1 - 1e-9)
    assert not unclear
    assert found_groups(tmp_path / "work") == components(near, 120) != set()


def crowded(rng, n):
    """Rows of which some are the same, or near one of a few, or alike in chains, or nothing of that; shuffled."""
    parts = [np.repeat(rng.normal(size=(1, 6)), rng.integers(0, n // 2), axis=0)]
    parts += [rng.normal(size=6) + rng.normal(size=(rng.integers(0, n // 3), 6)) * rng.uniform(0, 0.3) for _ in "ab"]
    parts.append(np.cumsum(rng.normal(size=(n // 8, 6)) * 0.4, axis=0) + 3)
    return rng.permutation(np.concatenate([*parts, rng.normal(size=(n // 4, 6))])).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_a_crowd_need_not_all_meet(seed, tmp_path, monkeypatch):
    """Inside a cluster and across borders; the groups are those of all pairs."""
    rng = np.random.default_rng(seed)
    rows = crowded(rng, 400)
    monkeypatch.setattr(candidates, "_TILE", (64, int(rng.choice([4, 16]))))
    how = {"threshold": float(rng.choice([0.9, 0.98])), "n_clusters": int(rng.integers(1, 7)), "pairs": "joining"}
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "work", SCRIPTS[:4], **how)
    near, unclear = brute_force(rows, how["threshold"])
    assert not unclear
    assert pair_set(tmp_path / "work") <= near
    assert components(pair_set(tmp_path / "work"), len(rows)) == components(near, len(rows))


def test_a_crowd_costs_about_its_size(tmp_path, monkeypatch):
    """Not its square, where it is more than half of all rows."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.concatenate([np.ones((3000, 8)), rng.normal(size=(1000, 8))])).astype(np.float32)
    monkeypatch.setattr(candidates, "_TILE", (128, 32))
    compared = {}
    for kept in ("all", "joining"):
        run_stages(lay_out(tmp_path / kept, rows), tmp_path / "work", SCRIPTS[:4], n_clusters=1, pairs=kept)
        manifest = (tmp_path / "work" / "04_neighbor_search" / "manifest.json").read_text()
        compared[kept] = json.loads(manifest)["results"]["compared"]
    least = 3000 * 1000 + 1000**2 / 2
    assert least < compared["joining"] < 1.3 * least
    assert compared["all"] > 8e6


class Rows:
    """Clusters as the search reads them: members, ascending, and sketches of each."""

    def __init__(self, sketches, labels, n_clusters):
        self.members = [np.nonzero(labels == c)[0] for c in range(n_clusters)]
        self.sketches = sketches

    def __len__(self):
        return len(self.members)

    def load(self, cluster):
        return self.members[cluster], self.sketches[self.members[cluster]]


def to_the_border(points, one, other):
    """The point nearest to each, in the plane half way between two others."""
    across = other - one
    return points - (((points - (one + other) / 2) @ across) / (across @ across))[:, None] * across


def make_sketches(rng, n, m, n_clusters, radius):
    """Exact sketches (n, m + 1) float64, and centroids (K, m + 1) float32.

    Of six rows two lie in the plane between two centroids, two just within the radius of two others right across it.
    """
    points = rng.normal(size=(n, m + 1)) * rng.uniform(0.5, 1.5, m + 1)
    points *= (rng.uniform(0.2, 0.4, n) / np.linalg.norm(points, axis=1))[:, None]
    points[:, -1] = rng.uniform(0.4, 0.6, n)
    centroids = points[rng.choice(n, n_clusters, replace=False)].astype(np.float32)
    if n_clusters > 3:
        centroids[-1] = centroids[0]  # twice the same: no border
        centroids[-2] = centroids[1] + np.float32(1e-4)  # and hardly one
    exact = np.unique(centroids.astype(np.float64), axis=0)
    for start in range(0, n - n % 6 if n_clusters > 1 else 0, 6):
        one = exact[rng.integers(len(exact))]
        order = np.argsort(np.linalg.norm(exact - one, axis=1))
        other = exact[order[1] if rng.random() < 0.5 else rng.choice(order[1:])]
        across = (other - one) / np.linalg.norm(other - one)
        here, share = slice(start, start + 4), radius * (1 - 1e-9) * rng.random((2, 1))
        points[here] = to_the_border((one + other) / 2 + (points[here] - one) / 5, one, other)
        points[start + 4 : start + 6] = points[start + 2 : start + 4] + across * (radius * (1 - 1e-9) - share)
        points[start + 2 : start + 4] -= across * share
    points[:, -1] = np.maximum(points[:, -1], 0.25)
    return points, centroids


def nearly_nearest(rng, stored, centroids):
    """A cluster for each row: of the centroids that are nearest as far as float32 can tell, any."""
    squares = ((stored[:, None].astype(np.float64) - centroids[None].astype(np.float64)) ** 2).sum(axis=2)
    allowed = 2 * geometry.squared_distance_error(stored.shape[1])
    choice = np.where(squares <= squares.min(axis=1)[:, None] + allowed, rng.random(squares.shape), -1)
    labels = choice.argmax(axis=1)
    return labels, np.count_nonzero(labels != squares.argmin(axis=1))


def unfolded(rng, sketches):
    """Coordinates (n, m + 2) float64 with these sketches: the tail turned by one of two angles."""
    angle = rng.choice([0, 0.3], len(sketches), p=[0.9, 0.1])[:, None]
    tails = sketches[:, -1:]
    return np.hstack([sketches[:, :-1], tails * np.cos(angle), tails * np.sin(angle)])


def moved(rng, rows, error):
    """Rows (n, d) as float32, each nearly `error` away."""
    away = rng.normal(size=rows.shape)
    return (rows + away / np.linalg.norm(away, axis=1)[:, None] * error * 0.9).astype(np.float32)


@pytest.mark.parametrize("deep", [False, True], ids=["sketches", "coordinates"])
@pytest.mark.parametrize("rounding", [False, True], ids=["exact", "off"])
@pytest.mark.parametrize("radius", [0.02, 0.2, 0.5], ids=["sparse", "middling", "dense"])
@pytest.mark.parametrize("m", [3, 40])
def test_every_two_rows_within_the_radius_are_found(tmp_path, monkeypatch, m, radius, rounding, deep):
    """Inside clusters or across borders, once, though some labels are off by rounding, and sketches may be."""
    near_total = across_total = misplaced_total = 0
    monkeypatch.setattr(candidates, "_LEVELS", (("sketches", 0), ("longer", 0), ("coordinates", 0)))
    monkeypatch.setattr("neardup.search.opened._GATHERED_ROWS", 30)
    monkeypatch.setattr("neardup.search.visits._VISITS", 50)
    for seed, n_clusters in enumerate([1, 2, 3, 9, 20]):
        monkeypatch.setattr(candidates, "_TILE", [(1024, 256), (128, 16)][(seed + rounding) % 2])
        rng, error = np.random.default_rng(seed), geometry.sketch_error(64, m, 0.5) if rounding else 0.0
        exact, centroids = make_sketches(rng, 300, m, n_clusters, radius)
        stored = moved(rng, exact, error)
        exact = exact if rounding else stored.astype(np.float64)
        full = unfolded(rng, exact) if deep else exact
        coordinates = moved(rng, full, error)
        full = full if rounding else coordinates.astype(np.float64)
        assert np.linalg.norm(stored - exact, axis=1).max() <= error
        assert np.linalg.norm(stored, axis=1).max() <= geometry.LONGEST
        labels, misplaced = nearly_nearest(rng, stored, centroids)
        stage, clusters = Stage("", tmp_path / str(seed), {}), Rows(stored, labels, n_clusters)
        prepared, reach = Prepared(stage, clusters, 32, n_longer=m + 1), geometry.Reach(radius, error)
        sketches = not deep or n_clusters > 2
        found = all_candidates(prepared, coordinates if deep else None, centroids, reach, sketches)
        squares = ((full[:, None] - full[None]) ** 2).sum(axis=2)
        near = {*zip(*(e.tolist() for e in np.nonzero(np.triu(squares <= radius**2, 1))), strict=True)}
        assert len({*found}) == len(found)
        assert not near - {*found}
        one, other = np.array(found, dtype=int).reshape(-1, 2).T
        assert (one < other).all()
        # not many more: those whose stored sketches are within what the search allows itself
        reach = radius + 4 * error
        slack = 2 * geometry.squared_distance_error(m + 20)
        assert (squares[one, other] <= reach**2 * (1 + 1e-4) + slack).all()
        near_total, misplaced_total = near_total + len(near), misplaced_total + misplaced
        across_total += sum(labels[a] != labels[b] for a, b in near)
    assert near_total > 100
    assert across_total > 60
    assert misplaced_total > 50


def test_as_few_coordinates_are_compared_first_as_tell_apart():
    """Of rows that differ in the first ones 16; in later ones more; of short sketches all."""
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(400, 65)).astype(np.float32)
    apart[:, -1] = 0.25
    late, very_late = apart.copy(), apart.copy()
    late[:, :16], very_late[:, :24] = 0, 0
    late[:, 32:-1], very_late[:, 32:-1] = 0, 0
    assert [levels.first_dims([some[:100], some[100:]], 0.2)[0] for some in (apart, late, very_late)] == [
        16,
        24,
        32,
    ]
    assert levels.first_dims([apart[:, -9:]], 0.2)[0] == 8
    (_, slow, near), (_, quick, few) = (levels.first_dims([some], 0.2) for some in (np.zeros_like(apart), apart))
    assert slow > 10 * quick
    assert [near, few] == [True, False]


def test_what_is_compared_next_is_what_tells_apart():
    """Sketches are left out where they tell none apart; longer ones have no more coordinates than that takes."""
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(2, 300, 256)).astype(np.float32)
    late, all_alike = apart.copy(), np.zeros_like(apart)
    late[:, :, :70] = 0

    def chosen(samples):
        return levels.next_dims([*samples], 16, 64, 0.2)

    assert chosen(apart) == (True, 0)
    assert chosen(late) == (False, 76)
    assert chosen(all_alike) == (False, 0)
    assert chosen([late[0], apart[0]]) == (True, 76)
    assert levels.next_dims([apart[0, :, :65], apart[0, :0, :65]], 16, 64, 0.2) == (True, 0)


class Coordinates:
    """Reduced vectors of all rows, as the search reads them."""

    def __init__(self, values):
        self.gather, self.dim = values.__getitem__, values.shape[1]


def all_candidates(prepared, coordinates, centroids, reach, sketches=True):
    """What stage 4 finds inside each cluster and across each border, [(row_a, row_b)]. sketches: are compared, too."""
    numbers = range(len(prepared.clusters))
    for cluster in numbers:
        prepare_cluster(prepared, centroids, reach, 70, np.ones(len(numbers), dtype=bool), cluster)
    reduced = coordinates is not None and partial(Coordinates, coordinates)
    opened = partial(OpenCluster, prepared, reduced)
    compared = ["first"] + ["sketches"] * sketches + ["coordinates", "longer"] * bool(reduced)
    reaches, found = dict.fromkeys(compared, reach.of_sketches), []
    for couple in [*couples_inside(opened, numbers), *couples_across(opened, numbers, numbers)]:
        for packed, _ in search_two(*couple, reaches, None, None):
            found += zip(*(rows.tolist() for rows in pairs.unpack(packed)), strict=True)
    return found


def test_centroids_that_are_the_same_have_no_border():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        centroids = rng.normal(size=(9, 65)).astype(np.float32) / 10
        centroids[8] = centroids[0]
        normals, offsets, below = geometry.borders(0, centroids, 1e-5)
        assert offsets[0] == offsets[8] == -np.inf
        assert not normals[:, [0, 8]].any()
        assert np.isfinite(offsets[1:8]).all()
        assert np.isfinite(below).all()


def unlike_rows(rng, dim, kind):
    """Rows that rounding treats badly: (24, d) float64, none of zeros."""
    rows = rng.normal(size=(24, dim))
    return {
        "plain": rows,
        "about a mean": 1 + 1e-3 * rows,
        "uneven": np.exp(8 * rows),
        "small": 1e-25 * rows,
        "large": 1e30 * rows,
        "thirds": np.sign(rows) / 3,
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "about a mean", "uneven", "small", "large", "thirds"])
@pytest.mark.parametrize("dim", [1, 2, 8, 64, 200])
def test_what_float32_gives_is_as_near_as_the_bounds_say(dim, kind):
    """Rows of unit length, their coordinates, sketches and cosines, against long double."""
    rng = np.random.default_rng(dim)
    for dtype in (np.float32, np.float64):
        stored = unlike_rows(rng, dim, kind).astype(dtype)
        exact = stored.astype(np.longdouble)
        exact /= np.abs(exact).max(axis=1)[:, None]
        exact /= np.sqrt((exact * exact).sum(axis=1))[:, None]
        unit = geometry.unit_rows32(stored)[0]
        far = lambda a, b: np.sqrt(((a - b) ** 2).sum(axis=1)).max()  # noqa: E731
        assert far(unit, exact) <= geometry.unit_error(dim)
        i, j = np.triu_indices(24, 1)
        cosines = (exact[i] * exact[j]).sum(axis=1)
        assert np.abs(np.vecdot(unit[i], unit[j]) - cosines).max() <= geometry.cosine_error(dim)
        similar = geometry.similarities(stored[i], stored[j])
        assert np.abs(similar - cosines).max() <= geometry.similarity_error(dim)
        apart = np.sqrt(((exact[i] - exact[j]) ** 2).sum(axis=1))
        assert all(a <= geometry.radius(s, dim) for a, s in zip(apart, similar.tolist(), strict=True))
        axes, mean = np.linalg.qr(rng.normal(size=(dim, dim)))[0].T, exact.mean(axis=0).astype(np.float64)
        for count in sorted({1, min(dim, 32), dim}):
            values, scales, _ = geometry.scaled_rows32(stored)
            found = geometry.project(values, scales, *geometry.projection(mean, axes[:count]))
            coordinates = (exact - mean) @ axes[:count].T
            assert far(found[0], coordinates) <= geometry.projection_error(dim, count)
            rest = ((exact - mean) ** 2).sum(axis=1) - (coordinates**2).sum(axis=1)
            sketches = np.column_stack([coordinates, np.sqrt(np.maximum(rest, 0.25**2))])
            error = geometry.sketch_error(dim, count, float(np.linalg.norm(mean)))
            assert far(geometry.sketch(*found), sketches) <= error


def test_rows_on_a_border_lie_as_far_beyond_it_as_is_said():
    """In the cluster that float32 takes for nearer; on the other side by more than nothing, and never by more."""
    beyond = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        centroids = (rng.normal(size=(6, 65)) / 10 + 0.2).astype(np.float32)
        a, b = rng.integers(0, 6, (2, 500))
        rows = (centroids[a] / 2 + centroids[b] / 2 + rng.normal(size=(500, 65)) * 1e-8).astype(np.float32)
        labels = nearest_centroids(rows, centroids, 100)
        for own in range(6):
            normals, offsets, below = geometry.borders(own, centroids, 1e-6)
            margins = rows[labels == own] @ normals + offsets
            others = np.arange(6) != own
            assert (margins[:, others] >= -below[others]).all()
            beyond.append(margins[:, others].min(initial=0))
    assert min(beyond) < 0


def test_margins_are_no_more_than_the_distances_to_borders():
    """Of rows whose sketches are off by all of the error, away from the border, or not at all: then rounding counts."""
    for seed, error in itertools.product(range(5), (0.0, 1e-4)):
        rng = np.random.default_rng(seed)
        centroids = (rng.normal(size=(6, 65)) / 10).astype(np.float32)
        stored = (rng.normal(size=(300, 65)) / 10).astype(np.float32)
        normals, offsets, _ = geometry.borders(0, centroids, error)
        for other, centroid in enumerate(centroids[1:].astype(np.float64), 1):
            across = (centroids[0] - centroid) / np.linalg.norm(centroids[0] - centroid)
            exact = stored.astype(np.float64) - error * across
            distances = (exact - (centroids[0] + centroid) / 2) @ across
            assert (stored @ normals[:, other] + offsets[other] <= distances).all()


@pytest.mark.parametrize(("apart", "beyond", "error"), [(1e-4, 0.01, 0.0), (0.5, 0.0, 0.01)], ids=["rounding", "error"])
def test_a_row_beyond_its_border_meets_the_farthest_of_a_pair(tmp_path, apart, beyond, error):
    """Where rounding took another centroid for nearer, or where sketches are as far off as they may be."""
    sketches, centroids = np.full((2, 4), 0.5), np.full((2, 4), 0.5, dtype=np.float32)
    centroids[1, 0] += apart
    sketches[1, 0] = centroids[:, 0].mean() - beyond
    sketches[0, 0] = sketches[1, 0] - (0.02 + 2 * error) * (1 - 1e-3)
    clusters = Rows(sketches.astype(np.float32), np.arange(2), 2)
    prepared = Prepared(Stage("", tmp_path, {}), clusters, 32)
    assert all_candidates(prepared, None, centroids, geometry.Reach(0.02, error)) == [(0, 1)]


def test_margins_of_visits_are_rounded_down():
    """By less than two steps; rows that lie beyond the border by more than the radius have none."""
    radius, rng = 0.02, np.random.default_rng(0)
    on_steps = np.arange(-30_000, 30_001, 100) * (radius / 30_000)
    values = np.concatenate([on_steps, rng.uniform(-3, 1, 2000) * radius]).astype(np.float32)
    border = np.ones((1, 1), np.float32), np.zeros(1), np.zeros(1)
    packed = np.sort(list_visits(values[:, None], None, border, radius))
    (low, high), rest = np.split(flatten_visits(packed, 1, radius), [2])
    places, margins = rest.reshape(2, -1)
    exact, margins = values[places].astype(np.float64), margins.view(np.float32)
    assert (low, high) == (0, len(values))
    assert (margins <= exact).all()
    assert (margins[exact > -radius * (1 - 1e-4)] > exact[exact > -radius * (1 - 1e-4)] - radius / 15_000).all()
    assert (margins[exact < -radius] == -np.inf).all()


def test_rows_at_exactly_the_reach_are_found():
    """Float32 takes half of them for farther."""
    x, y = np.random.default_rng(0).normal(size=(2, 400, 41)).astype(np.float32) / 6
    reaches, zero = np.linalg.norm(x.astype(np.float64) - y, axis=1).tolist(), np.zeros(1, dtype=np.int64)
    for one, other, reach in zip(x[:, None], y[:, None], reaches, strict=True):
        assert candidates.within(one, other, zero, zero, reach).all()
        sides = [SimpleNamespace(layout=candidates.lay_out(some, 40), sketches=some) for some in (one, other)]
        sides[0].left = candidates.swapped(sides[0].layout)
        assert sum(len(i) for i, _, _ in candidates.search(*sides, {"first": reach, "sketches": reach})) == 1


@pytest.fixture
def hasty():
    """Threads take turns every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def forty_clusters(tmp_path_factory):
    """1,200 rows with many near them, in 40 clusters."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("forty")
    rows = rng.normal(size=(60, 8))[rng.integers(0, 60, 1200)] + rng.normal(size=(1200, 8)) * 0.2
    run_stages(lay_out(folder / "data", rows), folder / "work", SCRIPTS[:3], n_clusters=40)
    return folder, brute_force(rows, 0.95)


@pytest.mark.parametrize("again", range(5))
def test_two_threads_open_the_same_clusters_again_and_again(forty_clusters, tmp_path, monkeypatch, hasty, again):
    """Groups are of one or two clusters."""
    folder, (near, unclear) = forty_clusters
    monkeypatch.setattr("neardup.search.tasks._GROUPS", 20)
    work = shutil.copytree(folder / "work", tmp_path / "work")
    options = {"n_clusters": 40, "threshold": 0.95, "memory_limit": "320MiB", "n_workers": 2, "audit_rows": 0}
    run_stages(folder / "data", work, SCRIPTS[3:4], **options)
    assert not unclear
    assert len(near) > 5000
    assert pair_set(work) == near


@pytest.fixture
def interrupted():
    """Garbage is collected all the time, and each time another thread's turn comes: also within C functions."""
    before, give_way = gc.get_threshold(), lambda *_: time.sleep(0)
    gc.callbacks.append(give_way)
    gc.set_threshold(10, 10_000, 10_000)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(give_way)


@given(
    dtype=st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<i4", "<u4", "|u1", "|i1", "|b1", "<c8", ">f4", "<U3", "<V8"]),
    shape=st.lists(st.integers(0, 5), max_size=3),
    order=st.sampled_from("CF"),
    version=st.sampled_from([(1, 0), (2, 0)]),
    change=st.none() | st.tuples(st.integers(0, 127), st.integers(0, 255)),
)
@example(dtype="<f4", shape=[], order="C", version=(1, 0), change=(26, ord("b")))  # b'fortran_order'
@settings(max_examples=300, deadline=None)
def test_headers_are_read_as_numpy_reads_them(dtype, shape, order, version, change):
    """What is read at a glance, too; wherever in a file it begins, and where a byte of it is another."""
    file = io.BytesIO()
    file.write(b"before")
    np.lib.format.write_array(file, np.zeros(shape, dtype, order=order), version=version)
    raw = bytearray(file.getvalue())
    if change:
        raw[6 + change[0]] = change[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected, found = (outcome(read, raw) for read in (header_by_numpy, npy.header_of))
    assert found == expected


def header_by_numpy(file):
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return npy.Header(*read[version](file), file.tell())


def outcome(read, raw):
    """What it returns, or that it fails."""
    file = io.BytesIO(raw)
    file.seek(6)
    try:
        return read(file)
    except (*npy.UNREADABLE, KeyError):
        return "unreadable"


def test_headers_are_read_by_many_threads_at_once(tmp_path, interrupted):
    """Parsers of Python before 3.11.8 fail if they are interrupted by each other (gh-106905)."""
    paths = [tmp_path / f"{number}.npy" for number in range(8)]
    for number, path in enumerate(paths):
        np.save(path, np.full((number + 1, 3), number, dtype=">f4"))  # which takes the parser

    def read(thread):
        for path in paths * 10:
            number = int(path.stem)
            assert npy.read_header(path).shape == (number + 1, 3), thread
            for array in (npy.read_npy(path), npy.map_npy(path)):
                assert array.tolist() == [[number] * 3] * (number + 1), thread

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(8)))


def test_a_copy_of_pairs_that_somebody_takes_away_is_missed(tmp_path):
    """By a second call, of the same task elsewhere, say: it has all, and the first says so."""
    a, b = np.triu_indices(30, 1)
    with h5py.File(tmp_path / "neighbors.h5", "w") as file:
        file["row_a"], file["row_b"], file["similarity"] = a, b, np.ones(len(a))
    first = pairs.both_ways(tmp_path / "neighbors.h5", 30, 100, tmp_path / "mirrored")
    next(first)
    second = [*pairs.both_ways(tmp_path / "neighbors.h5", 30, 100, tmp_path / "mirrored")]
    assert sum(len(found) for _, _, found in second) == 2 * len(a)
    with pytest.raises(FileNotFoundError):
        list(first)

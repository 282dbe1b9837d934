"""Stage 4: the pairs on disk are the true ones, in every file the same, and the audit notices if they are not."""

import json
import pickle
import runpy
import shutil
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import (
    EXAMPLE,
    SCRIPTS,
    brute_force,
    components,
    flat_ids,
    found_pairs,
    lay_out,
    pair_set,
    read_ids,
    run_stages,
    tree_bytes,
    unit,
)

import faiss_04_neighbor_search
from config import ROOT, Config
from neardup import NeardupError
from neardup.search import audit, candidates, couples, geometry, levels, opened
from neardup.search.audit import audit_block, audit_tasks, best_axes, drawn, principal_axes
from neardup.search.couples import Visitors
from neardup.search.pairs import PAIR, unpack
from neardup.words import disk_size, in_words

STAGE = "04_neighbor_search"


def example_rows():
    return np.concatenate([np.load(EXAMPLE / f"demo_{s}.npy") for s in range(3)])


def bundles(seed=0, n=90, dim=8):
    """Rows around ten directions: pairs within each at a threshold of 0.95 or so, none between."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(10, dim))[rng.integers(0, 10, n)] + rng.normal(size=(n, dim)) * 0.15
    return (rows * 10 ** rng.uniform(-1, 1, size=(n, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run of 90 rows at 0.95, its data in `data`, its results in `work`."""
    folder = tmp_path_factory.mktemp("small")
    run_stages(lay_out(folder / "data", bundles(), cuts=[20, 20]), folder / "work", SCRIPTS[:4], threshold=0.95)
    return folder


def load_pickle(work):
    return pickle.loads((work / STAGE / "neighbors.pkl").read_bytes())


def load_audit(work):
    return json.loads((work / STAGE / "audit.json").read_text())


def test_pairs_are_sorted_and_once_each(example):
    with h5py.File(example / STAGE / "neighbors.h5") as file:
        dtypes = {name: file[name].dtype for name in ("row_a", "row_b", "similarity")}
        assert file.attrs["threshold"] == 0.98
    assert dtypes == {"row_a": np.int64, "row_b": np.int64, "similarity": np.float64}
    row_a, row_b, similarity = found_pairs(example)
    assert len(row_a) == len(row_b) == len(similarity) == 170
    assert (row_a < row_b).all()
    assert (np.diff(row_a * 3054 + row_b) > 0).all()
    assert ((similarity >= 0.98) & (similarity <= 1)).all()


def test_similarity_is_the_cosine(example):
    """Of the values as stored, to 1e-14."""
    row_a, row_b, similarity = found_pairs(example)
    rows = example_rows().astype(np.longdouble)
    lengths = np.sqrt((rows * rows).sum(axis=1))
    cosine = (rows[row_a] * rows[row_b]).sum(axis=1) / (lengths[row_a] * lengths[row_b])
    assert np.abs(similarity - cosine).max() <= 1e-14


def test_similarity_of_rows_of_different_lengths(small):
    row_a, row_b, similarity = found_pairs(small / "work")
    rows = unit(bundles())
    assert np.abs(similarity - (rows[row_a] * rows[row_b]).sum(axis=1)).max() <= 1e-14
    near, unclear = brute_force(bundles(), 0.95)
    assert not unclear
    assert len(near) > 100
    assert pair_set(small / "work") == near


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize(
    "dim", [1, 3, 8, 50, 1000, *(pytest.param(dim, marks=pytest.mark.long) for dim in (9000, 20_000))]
)
def test_a_similarity_has_the_same_bits_whatever_it_is_computed_with(dim, dtype):
    """One by one, with the pairs of other rows, with many of the same row, and the other way round."""
    rng = np.random.default_rng(dim)
    rows = rng.normal(size=(90, dim)).astype(dtype)
    a, b = (ends.ravel() for ends in np.triu_indices(90, 1))
    expected = geometry.similarities(rows[a], rows[b])
    alone = [geometry.similarities(rows[[i]], rows[[j]])[0] for i, j in zip(a[:99], b[:99], strict=True)]
    assert expected[:99].tolist() == alone
    for order in (np.arange(len(a)), np.lexsort((a, b)), rng.permutation(len(a)), rng.integers(0, len(a), 50)):
        for one, other in ((a, b), (b, a)):
            found = geometry.similarities_among(rows, one[order], other[order])
            assert found.tolist() == expected[order].tolist()
    assert geometry.similarities_among(rows, a[:0], b[:0]).tolist() == []


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("dense", [True, False])
def test_rows_that_are_near_in_a_sketch_nearly_everywhere(tmp_path, monkeypatch, dense, grown):
    """Are compared in longer sketches before all coordinates; where few are near there is no room taken for those."""
    rng, used = np.random.default_rng(0), []
    rows = rng.normal(size=(1500, 100))
    rows[700:900] = rows[:200] + rng.normal(size=(200, 100)) * rng.uniform(0, 1, (200, 1))
    rows, threshold = rows.astype(np.float32), 0.6 if dense else 0.9999
    settings = {"threshold": threshold, "n_clusters": 3, "sketch_dims": 8, "audit_rows": 50}
    data, longer_sketches = tmp_path / "data", opened.longer_sketches
    if grown:
        run_stages(lay_out(data, rows[:800]), tmp_path / "work", SCRIPTS[:4], **settings)
    lay_out(data, rows, cuts=[800])
    for module in (opened, couples):
        monkeypatch.setattr(
            module, "longer_sketches", lambda x, prepared: used.append(type(x)) or longer_sketches(x, prepared)
        )
    run_stages(data, tmp_path / "work", SCRIPTS[:4], **settings)
    near, unclear = brute_force(rows, threshold)
    assert not unclear
    assert len(near) > (100 if dense else 0)
    assert pair_set(tmp_path / "work") == near
    assert bool(used) == dense
    assert (Visitors in used) == (dense and grown)


@pytest.fixture
def looked_at(monkeypatch):
    """How many rows themselves the search looks at each time."""
    found, get = [], opened.UnitRows.__getitem__
    monkeypatch.setattr(opened.UnitRows, "__getitem__", lambda x, places: found.append(len(places)) or get(x, places))
    return found


def three_kinds(rng, n_rows):
    """Rows whose variance is nearly all in what tells three kinds apart; rows of one have a cosine of 0.96."""
    kinds, rest = unit(rng.normal(size=(3, 64))), unit(rng.normal(size=(n_rows, 64)))
    rows = (kinds[rng.integers(0, 3, n_rows)] + 0.2 * rest).astype(np.float32)
    rows[-50:] = rows[:50] + (rng.normal(size=(50, 64)) * rng.uniform(0, 0.02, (50, 1))).astype(np.float32)
    return rows


@pytest.mark.parametrize("how", ["at once", "joining", "grown"])
def test_rows_that_only_what_pca_left_out_tells_apart(tmp_path, looked_at, how):
    """Are compared themselves, as matrices: one by one that would take hundreds of times as long."""
    rows, data = three_kinds(np.random.default_rng(0), 1800), tmp_path / "data"
    settings = {"threshold": 0.98, "n_clusters": 4, "target_variance": 0.8, "audit_rows": 50}
    settings |= {"pairs": "joining"} if how == "joining" else {}
    if how == "grown":
        run_stages(lay_out(data, rows[:1000]), tmp_path / "work", SCRIPTS[:4], **settings)
    lay_out(data, rows, cuts=[1000])
    run_stages(data, tmp_path / "work", SCRIPTS[:4], **settings)
    near, unclear = brute_force(rows, 0.98)
    assert not unclear
    assert len(near) >= 40
    found = pair_set(tmp_path / "work")
    assert components(found, 1800) == components(near, 1800) if how == "joining" else found == near
    manifest = json.loads((tmp_path / "work" / STAGE / "manifest.json").read_text())
    assert manifest["results"]["candidates"] < 10 * len(near)
    assert max(looked_at) > candidates._SAMPLED


@pytest.mark.parametrize("reach", [1.3, 0.02])
def test_comparing_rows_themselves_only_lets_go(reach):
    """All that are too far apart but for rounding, and nothing else."""
    rng = np.random.default_rng(0)
    x, y = (unit(rng.normal(size=(n, 64))).astype(np.float32) for n in (300, 200))
    y[:60] = x[60:120] + (rng.normal(size=(60, 64)) * 0.002).astype(np.float32)
    before, apart = rng.random((300, 200)) < 0.8, np.linalg.norm(x[:, None].astype(np.float64) - y, axis=2)
    tile, sides = (np.arange(300), np.arange(200)), [SimpleNamespace(unit=rows) for rows in (x, y)]
    found = candidates._near_themselves(*sides, tile, before.copy(), reach)
    assert not (found & ~before).any()
    assert found[before & (apart <= reach)].all()
    assert not found[apart > np.sqrt(reach**2 + 1e-4)].any()
    assert 40 < np.count_nonzero(found) < np.count_nonzero(before) / 2


def test_rows_themselves_are_not_compared_where_most_are_pairs(tmp_path, looked_at):
    """As a sample tells; whatever is near is looked at by itself then, and once."""
    rng = np.random.default_rng(0)
    rows = (np.ones(64) + rng.normal(size=(700, 64)) * 0.01).astype(np.float32)
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "work", SCRIPTS[:4], threshold=0.99, n_clusters=1)
    assert len(pair_set(tmp_path / "work")) == 700 * 699 // 2
    assert {*looked_at} == {candidates._SAMPLED}


def test_coordinates_of_a_pair_are_within_their_reaches():
    """However they were rounded: those of two rows that are as far apart as a pair is, and shortened ones."""
    rng, dim = np.random.default_rng(0), 64
    axes, rows = np.linalg.qr(rng.normal(size=(dim, dim)))[0].T, rng.normal(size=(400, dim)).astype(np.float32)
    values, scales, _ = geometry.scaled_rows32(rows)
    full = geometry.project(values, scales, *geometry.projection(np.zeros(dim), axes))[0]
    tails = full[:1] * rng.uniform(0.5, 1, (400, 1)).astype(np.float32)  # which shortening brings no nearer
    tails[:, :22] = 0
    counts, rounding = {"n_components": dim, "sketch_dims": 8}, 2 * geometry.projection_error(dim, dim)

    def reaches(exact):
        return levels.reaches_of(geometry.Reach(exact, 0.0), dim, counts, longer=22)

    def apart(some):
        return np.linalg.norm(some[::2].astype(np.float64) - some[1::2], axis=1).tolist()

    assert all(
        found <= reaches(exact)["coordinates"] for found, exact in zip(*map(apart, (full, unit(rows))), strict=True)
    )
    short = geometry.shorten(tails, 22)
    assert all(
        found <= reaches(exact - rounding)["longer"] for found, exact in zip(*map(apart, (short, tails)), strict=True)
    )
    counts["n_components"] = 32
    both = map(apart, (geometry.unit_rows32(rows)[0], unit(rows)))
    assert all(found <= reaches(exact)["unit"] for found, exact in zip(*both, strict=True))


def test_candidates_that_do_not_fit_a_file_are_in_several(small, tmp_path, monkeypatch):
    """Of a task that may hold twelve."""
    work = shutil.copytree(small / "work", tmp_path / "work")
    shutil.rmtree(work / STAGE)
    monkeypatch.setattr("neardup.machine.budget.task_bytes", lambda *_: 99)
    run_stages(small / "data", work, SCRIPTS[3:4], threshold=0.95)
    assert tree_bytes(work / STAGE) == tree_bytes(small / "work" / STAGE)


def test_rows_that_repeat_by_the_hundred_are_told_of(tmp_path, capsys):
    """What else there is to do, before all pairs are verified; and they are the true ones."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 8))
    rows[:500] = rows[0] + rng.normal(size=(500, 8)) * 0.01
    rows = rows.astype(np.float32)
    settings = {"threshold": 0.98, "n_clusters": 2, "audit_rows": 50}
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "all", SCRIPTS[:4], **settings)
    assert "pairs = 'joining' makes the same ones" in capsys.readouterr().err
    near, unclear = brute_force(rows, 0.98)
    assert len(near) > 124_000
    assert not unclear
    assert pair_set(tmp_path / "all") == near
    run_stages(tmp_path / "data", tmp_path / "joining", SCRIPTS[:4], pairs="joining", **settings)
    assert capsys.readouterr().err == ""


def test_ids_of_the_rows_in_pairs_stand_beside_them(example):
    row_a, row_b, _ = found_pairs(example)
    ids = read_ids(example)
    with h5py.File(example / STAGE / "neighbors.h5") as file:
        rows = file["row"][:].tolist()
        assert rows == np.union1d(row_a, row_b).tolist()
        assert flat_ids(file) == [ids[row] for row in rows]


def expected_map(work, names):
    """What neighbors.pkl should hold, from neighbors.h5 and labels.npy. names: what stands for each row."""
    labels = np.load(work / "03_kmeans" / "labels.npy").tolist()
    expected = {
        name: {"cluster": label, "neighbors": {}} for name, label in zip(names, labels, strict=True) if label >= 0
    }
    for a, b, similarity in zip(*(column.tolist() for column in found_pairs(work)), strict=True):
        expected[names[a]]["neighbors"][names[b]] = similarity
        expected[names[b]]["neighbors"][names[a]] = similarity
    return expected


def test_the_pickle_maps_every_id_to_cluster_and_neighbors(example):
    found, ids = load_pickle(example), read_ids(example)
    assert type(found) is dict
    assert found == expected_map(example, ids)
    assert list(found) == ids
    # plain Python values: a user's json.dumps takes them
    assert json.loads(json.dumps(found)) == found


def test_rejected_rows_are_not_in_the_pickle(tmp_path):
    rows = bundles()
    rows[5], rows[80, 3] = 0, np.nan
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "work", SCRIPTS[:4], bad_rows="skip", threshold=0.95)
    found, ids = load_pickle(tmp_path / "work"), read_ids(tmp_path / "work")
    assert found == expected_map(tmp_path / "work", ids)
    assert set(ids) - set(found) == {"id-5", "id-80"}


def test_rows_of_one_id_stay_apart(tmp_path):
    """With duplicate_ids="allow", (id, row) stands for each of them."""
    rows, names = bundles(), [f"id-{i % 70}" for i in range(90)]  # rows 0 to 19 and 70 to 89 share ids
    rows[75] = rows[5]
    settings = {"duplicate_ids": "allow", "threshold": 0.95}
    run_stages(lay_out(tmp_path / "data", rows, ids=names), tmp_path / "work", SCRIPTS[:4], **settings)
    keys = [(name, row) if row < 20 or row >= 70 else name for row, name in enumerate(names)]
    found = load_pickle(tmp_path / "work")
    assert found == expected_map(tmp_path / "work", keys)
    assert found[("id-5", 5)]["neighbors"][("id-5", 75)] == 1
    assert pair_set(tmp_path / "work") == brute_force(rows, 0.95)[0]


def test_no_pairs_at_all(tmp_path):
    run_stages(lay_out(tmp_path / "data", np.eye(12)), tmp_path / "work", SCRIPTS[:4])
    assert pair_set(tmp_path / "work") == set()
    assert load_pickle(tmp_path / "work") == expected_map(tmp_path / "work", [f"id-{i}" for i in range(12)])
    with h5py.File(tmp_path / "work" / STAGE / "neighbors.h5") as file:
        assert flat_ids(file) == []


def test_the_audit_of_the_example_finds_nothing_wrong(example):
    audit = load_audit(example)
    assert audit["rows"] == 1000
    assert (audit["missed"], audit["false"]) == (0, 0)
    assert 0 < audit["pairs"] <= 170


@pytest.mark.parametrize(("asked", "audited"), [(0, 0), (1, 1), (90, 90), (1000, 90)])
def test_as_many_rows_are_audited_as_asked_for(small, tmp_path, asked, audited):
    work = shutil.copytree(small / "work", tmp_path / "work")
    run_stages(small / "data", work, scripts=SCRIPTS[3:4], threshold=0.95, audit_rows=asked)
    audit = load_audit(work)
    assert (audit["rows"], audit["missed"], audit["false"]) == (audited, 0, 0)
    pairs = len(pair_set(small / "work"))
    if audited in (0, 90):
        assert audit["pairs"] == (pairs if audited else 0)  # every pair once, though both its rows are audited
    assert pair_set(work) == pair_set(small / "work")


def spoil(path, change):
    """Put other pairs into a neighbors.h5. change: {(a, b): similarity} -> None."""
    with h5py.File(path, "r+") as file:
        columns = [file[name][:].tolist() for name in ("row_a", "row_b", "similarity")]
        pairs = {(a, b): similarity for a, b, similarity in zip(*columns, strict=True)}
        change(pairs)
        for name in ("row_a", "row_b", "similarity"):
            del file[name]
        file["row_a"], file["row_b"] = np.array(sorted(pairs), dtype=np.int64).T
        file["similarity"] = [pairs[pair] for pair in sorted(pairs)]


def take_one_out(pairs):
    del pairs[sorted(pairs)[7]]


def put_one_in(pairs):
    pairs[min((a, b) for a in range(90) for b in range(a + 1, 90) if (a, b) not in pairs)] = 0.96


def exchange_one(pairs):
    take_one_out(pairs)
    put_one_in(pairs)


@pytest.mark.parametrize(
    ("change", "missed", "false"), [(take_one_out, 1, 0), (put_one_in, 0, 1), (exchange_one, 1, 1)]
)
def test_the_audit_notices_a_wrong_pair(small, tmp_path, monkeypatch, capsys, change, missed, false):
    """neighbors.h5 is spoilt on disk before it is first read; the script ends with an error and publishes nothing."""
    work = shutil.copytree(small / "work", tmp_path / "work")
    shutil.rmtree(work / STAGE)
    before, open_file, spoilt = tree_bytes(work), h5py.File, []

    def open_spoilt(path, mode="r", **options):
        if str(path).endswith("neighbors.h5") and mode == "r" and not spoilt:
            spoilt.append(path)
            with monkeypatch.context() as inner:
                inner.setattr(h5py, "File", open_file)
                spoil(path, change)
        return open_file(path, mode, **options)

    arguments = ["--data-dir", small / "data", "--work-dir", work, "--threshold", 0.95]
    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", open_spoilt)
        patch.setattr(sys, "argv", [SCRIPTS[3], *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / SCRIPTS[3]), run_name="__main__")
    assert spoilt
    assert stopped.value.code == 1
    out, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert f"the audit of 90 rows found {missed} missed and {false} false pairs" in error
    assert out == ""
    assert not (work / STAGE).exists()
    after = tree_bytes(work)
    assert {name: after[name] for name in before} == before
    # what was missed is stored, too
    (stored,) = [json.loads(after[name]) for name in after if name.endswith("audit.json")]
    assert (stored["rows"], stored["missed"], stored["false"]) == (90, missed, false)
    # and a search that nobody spoils is as good as ever
    run_stages(small / "data", work, scripts=SCRIPTS[3:4], threshold=0.95)
    assert tree_bytes(work / STAGE) == tree_bytes(small / "work" / STAGE)


def test_the_audit_notices_another_similarity(small, tmp_path, monkeypatch):
    """Of pairs that are some; rounding alone isn't one."""
    work, join = shutil.copytree(small / "work", tmp_path / "work"), faiss_04_neighbor_search.join_parts
    drawn = min(90, len(pair_set(work)))

    def spoilt_by(difference):
        def join_spoilt(stage, *how):
            joined = join(stage, *how)
            with h5py.File(stage.path("neighbors.h5"), "r+") as file:
                file["similarity"][:] -= difference
            return joined

        shutil.rmtree(work / STAGE, ignore_errors=True)
        monkeypatch.setattr(faiss_04_neighbor_search, "join_parts", join_spoilt)
        run_stages(small / "data", work, SCRIPTS[3:4], threshold=0.95)
        return load_audit(work)

    assert spoilt_by(1e-15)["anew"] == drawn
    with pytest.raises(NeardupError, match=f"the audit of 90 rows found 0 missed and {drawn} false pairs"):
        spoilt_by(1e-9)


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_random_pairs_to_compute_anew(count):
    """In order, each once, of all blocks."""
    pairs, rng = np.zeros(1000, PAIR), np.random.default_rng(0)
    pairs["row_a"] = np.arange(1000)
    some = [drawn(np.split(pairs, [1, 300, 300, 990]), count, rng)["row_a"] for _ in range(300 if count == 7 else 1)]
    assert all(len(rows) == count and (np.diff(rows) > 0).all() for rows in some)
    if count == 7:
        counts = np.histogram(np.concatenate(some), np.arange(0, 1001, 100))[0]
        assert counts.min() > 150
        assert counts.max() < 270


def test_similarities_have_15_decimals():
    """So those of rows that are multiples of each other are 1, whatever rounding does."""
    rows = np.random.default_rng(0).normal(size=(500, 8))
    found = geometry.similarities(rows[:-1], rows[1:])
    assert found.tolist() == [round(similarity, 15) for similarity in found.tolist()]
    assert geometry.similarities(rows, 3 * rows).tolist() == [1] * 500


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("n_axes", [None, 1, 8])
def test_the_audit_decides_what_float32_cannot(monkeypatch, n_axes, dense):
    """By the similarities of the rows as stored; of rows that aren't rejected, and none with itself."""
    monkeypatch.setattr(audit, "_DENSE", 10**9 if dense else 0)
    monkeypatch.setattr(audit, "_DENSE_AT_ONCE", 30)
    monkeypatch.setattr(audit, "_PAIRS_AT_ONCE", 7)
    rng, threshold = np.random.default_rng(0), 0.9
    rows, away = rng.normal(size=(2, 200, 24))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    away -= (away * rows).sum(axis=1)[:, None] * rows
    cosines = threshold + rng.choice([-1e-8, -1e-10, 1e-10, 1e-8], (100, 1))
    rows[1::2] = cosines * rows[::2] + np.sqrt(1 - cosines**2) * unit(away[::2])
    rows *= np.random.default_rng(1).uniform(0.5, 2, (200, 1))
    audited, counted = np.arange(0, 200, 3), rng.random(200) < 0.7
    audited = audited[counted[audited]]
    stored = SimpleNamespace(dim=24, read=lambda start, stop: rows[start:stop])
    unit32 = geometry.unit_rows32(rows[audited])[0]
    axes = None if n_axes is None else principal_axes(unit32, n_axes).astype(np.float32)
    along = None if axes is None else geometry.split(unit32, np.ones(len(unit32), np.float32), axes)
    sample = audited, rows[audited], unit32, axes, along
    packed = audit_block(stored, counted, 50, 190, sample=sample, threshold=threshold)
    found = sorted(zip(*(ends.tolist() for ends in unpack(packed)), strict=True))
    both = [(a, b) for a in audited.tolist() for b in range(50, 190) if a != b and counted[b]]
    a, b = np.array(both).T
    near = geometry.similarities(rows[a], rows[b]) >= threshold
    expected = sorted((min(pair), max(pair)) for pair, is_near in zip(both, near.tolist(), strict=True) if is_near)
    assert found == expected
    assert 10 < len(found) < np.count_nonzero(geometry.similarities(rows[::2], rows[1::2]) >= threshold)


@pytest.mark.parametrize(("n", "dim", "n_axes"), [(40, 3, 1), (300, 40, 7), (300, 40, 40), (100, 3000, 64)])
def test_no_cosine_is_above_what_some_axes_allow(n, dim, n_axes):
    """Of rows of any length, with a common part; the bound is close where the axes leave little out."""
    rng = np.random.default_rng(0)
    rows = ((rng.normal(size=(n, dim)) * 0.9 ** np.arange(dim) + 0.3) * rng.uniform(0.1, 9, (n, 1))).astype(np.float32)
    rows[1::2] = rows[::2] + (rng.normal(size=(n // 2, dim)) * 10.0 ** rng.uniform(-9, 0, (n // 2, 1)))
    values, scales, _ = geometry.scaled_rows32(rows)
    axes = principal_axes(values * scales[:, None], n_axes).astype(np.float32)
    assert axes.shape == (dim, n_axes)
    along = geometry.split(values, scales, axes)
    cosines, error = unit(rows.astype(np.float64)), geometry.split_error(dim, n_axes)
    above = (along @ along.T).astype(np.float64) + error - cosines @ cosines.T
    assert above.min() >= 0
    if n_axes == dim:
        assert above.max() < 5 * error


def test_the_axes_that_rows_are_compared_along_are_few_where_those_tell_rows_apart():
    rng = np.random.default_rng(0)
    steep, flat = rng.normal(size=(1000, 256)) * 0.8 ** np.arange(256), rng.normal(size=(1000, 256))
    some = {name: geometry.unit_rows32(rows)[0] for name, rows in (("steep", steep), ("flat", flat))}
    assert best_axes(some["steep"], 0.98).shape[1] <= 16
    assert best_axes(some["flat"], 0.9).shape[1] > 32
    assert best_axes(some["flat"], 0.1) is None
    assert best_axes(some["flat"][:9, :2], 0.9) is None
    assert best_axes(np.ones((1000, 16), np.float32) / 4, 0.9) is None


def test_the_audit_notices_rows_that_are_not_joined(small, tmp_path, monkeypatch):
    """Where just the pairs that join are looked for, and a row is taken to be near none."""
    are_pairs, row = faiss_04_neighbor_search.are_pairs, min(pair_set(small / "work"))[0]
    monkeypatch.setattr(
        faiss_04_neighbor_search, "are_pairs", lambda *how: are_pairs(*how) & (how[-2] != row) & (how[-1] != row)
    )
    work = shutil.copytree(small / "work", tmp_path / "work")
    near = sum(row in pair for pair in pair_set(work))
    with pytest.raises(NeardupError, match=f"the audit of 90 rows found {near} missed and 0 false pairs"):
        run_stages(small / "data", work, SCRIPTS[3:4], threshold=0.95, pairs="joining")


def test_similarities_are_shown_with_no_more_than_they_are():
    shown = [in_words(s) for s in (0.9824, 0.98, 0.99995, 0.999999999999999, 1.0, 0.9822999999, -0.46251)]
    assert shown == ["0.9824", "0.9800", "0.9999", "0.9999", "1.0000", "0.9822", "-0.4626"]
    for step in range(-10_000, 10_001):
        assert in_words(step / 1e4) == f"{step / 1e4:.4f}"


def test_sizes_are_shown_in_the_unit_that_suits_them():
    shown = {0: "0 bytes", 999: "999 bytes", 38_500: "38.5 kB", 999_999: "1 MB", 1.04e9: "1.04 GB", 1e17: "100,000 TB"}
    assert {size: disk_size(size) for size in shown} == shown


def test_more_audited_rows_than_memory_holds_are_refused():
    config = Config(memory_limit="320MiB", threshold=0.9)
    rows = SimpleNamespace(dim=20_000, dtype=np.dtype(np.float32))
    with pytest.raises(NeardupError, match=r"audit_rows = 1,000 take 153MiB.* set it to at most 524, or memory_limit"):
        audit_tasks(None, rows, np.arange(1000), None, config)
    rows.dtype = np.dtype(np.float64)
    with pytest.raises(NeardupError, match=r"audit_rows = 1,000 take 229MiB.* set it to at most 349, or memory_limit"):
        audit_tasks(None, rows, np.arange(1000), None, config)


@pytest.mark.parametrize(("lower", "said"), [(None, 0), (0.8, 0), (0.9, 0), (0.95, 1)])
def test_a_report_threshold_that_changes_nothing_is_told_of(tmp_path, capsys, lower, said):
    """Who mixed the two up has other groups than expected."""
    rows = lay_out(tmp_path / "data", np.eye(9, 8, dtype=np.float32) + 0.1)
    run_stages(rows, tmp_path / "work", SCRIPTS[:4], threshold=0.9, report_threshold=lower, n_clusters=1)
    told = "report_threshold 0.95 is above threshold 0.9: it changes nothing\n"
    assert capsys.readouterr().err.count(told) == said

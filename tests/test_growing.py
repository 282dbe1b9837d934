"""Shards that come to a finished run, change or go: the answer of a run from scratch, without its work."""

import contextlib
import errno
import json
import re
import shutil
from functools import lru_cache
from types import SimpleNamespace

import cloudpickle
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import (
    EXAMPLE,
    SCRIPTS,
    answer,
    brute_force,
    found_groups,
    lay_out,
    no_pictures,
    pair_set,
    read_ids,
    run_scripts,
    run_stages,
    settings_of,
    tree_bytes,
)
from faults import failing
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_resume import rows_of_clusters

import faiss_04_neighbor_search
from neardup import NeardupError
from neardup.grouping.changes import Decisions
from neardup.grouping.groups import Groups
from neardup.machine import engine
from neardup.stages.artifacts import STAGES
from neardup.stages.growth import grown

NAMES = list(STAGES)
SETTINGS = {"threshold": 0.9, "n_clusters": 6, "audit_rows": 50, "n_workers": 1}


@lru_cache
def example_rows():
    """Real embeddings, (3054, 384) float16."""
    return np.concatenate([np.load(path) for path in sorted(EXAMPLE.glob("*.npy"))])


def put(data, name, chosen):
    """Write a shard of some of the example's rows, whose ids are their numbers there."""
    data.mkdir(exist_ok=True)
    np.save(data / f"{name}.npy", example_rows()[chosen])
    (data / f"{name}.txt").write_text(json.dumps([f"{name}/{row}" for row in chosen.tolist()]))


def change(data, rng):
    """Add a shard, of one row or more, whose rows come first, last or in between; or change one, or remove one."""
    names = sorted(path.stem for path in data.glob("*.npy"))
    how = rng.choice(["add", "change", "remove"], p=[0.6, 0.2, 0.2]) if len(names) > 1 else "add"
    if how == "remove":
        for path in data.glob(f"{rng.choice(names)}.*"):
            path.unlink()
        return
    name = rng.choice(names) if how == "change" else f"{rng.integers(1000):03d}"
    put(data, name, rng.choice(len(example_rows()), rng.choice([1, 5, 60, 400]), replace=False))


def follow_history(folder, threshold, seed, steps):
    """After each change the answer is that of a run from scratch; in the end that of brute force."""
    rng, data, options = np.random.default_rng(seed), folder / "data", SETTINGS | {"threshold": threshold}
    data.parent.mkdir(exist_ok=True)
    put(data, "500", rng.choice(len(example_rows()), 500, replace=False))
    run_stages(data, folder / "work", **options)
    for step in range(steps):
        change(data, rng)
        run_stages(data, folder / "work", **options)
        run_stages(data, folder / f"scratch-{step}", **options)
        assert answer(folder / "work") == answer(folder / f"scratch-{step}")
    rows = np.concatenate([np.load(path) for path in sorted(data.glob("*.npy"))])
    near, unclear = brute_force(rows, threshold)
    assert pair_set(folder / "work") - unclear == near - unclear
    shutil.rmtree(folder)


@given(seed=st.integers(0, 2**32))
@settings(
    max_examples=1,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_any_history_gives_the_answer_of_a_run_from_scratch(tmp_path_factory, seed):
    """More of them in tests/soak."""
    follow_history(tmp_path_factory.mktemp("history"), 0.9, seed, steps=3)


@pytest.fixture(scope="module")
def grown_run(tmp_path_factory):
    """A finished run of two shards, one that comes to it, and what the run is then: data, before, after."""
    folder, rng = tmp_path_factory.mktemp("grown"), np.random.default_rng(0)
    chosen = rng.permutation(len(example_rows()))
    put(folder / "data", "1", np.sort(chosen[:1200]))
    put(folder / "data", "3", np.sort(chosen[1200:1600]))
    with no_pictures():
        run_stages(folder / "data", folder / "before", **SETTINGS)
        put(folder / "data", "2", np.sort(chosen[1600:2100]))
        shutil.copytree(folder / "before", folder / "after")
        run_stages(folder / "data", folder / "after", **SETTINGS)
    return folder


def test_what_was_found_before_is_not_looked_for_again(grown_run):
    """Nor projected, nor assigned."""
    counts = {name: json.loads((grown_run / "after" / name / "manifest.json").read_text())["results"] for name in NAMES}
    assert counts[NAMES[0]]["basis_rows"] == 1600
    assert counts[NAMES[1]]["since"]["rows"] == 500
    assert counts[NAMES[2]]["n_clusters"] == 12
    assert counts[NAMES[3]]["audit"]["against"] == "the 500 that came"
    assert counts[NAMES[3]]["compared"] < 500 * 2100
    for then, now in (("00000", "00000"), ("00001", "00002")):
        paths = [
            grown_run / work / NAMES[1] / f"reduced_{name}.npy" for work, name in (("before", then), ("after", now))
        ]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    changes = counts[NAMES[4]]["changes"]
    assert changes["new_rows"] == 500
    assert changes["gone_rows"] == 0
    assert changes["grown"] > 5
    assert changes["new"] > 5


def test_tasks_of_a_run_that_grows_may_run_anywhere(grown_run, tmp_path, monkeypatch):
    """On a worker, which has of a stage what is sent to it; so have those that hold rows against a second set."""
    compute, sent = engine.compute, []

    def send(tasks, *others):
        sent.extend(map(cloudpickle.dumps, tasks))
        return compute([cloudpickle.loads(task) for task in sent[len(sent) - len(tasks) :]], *others)

    shutil.copytree(grown_run / "before", tmp_path / "work")
    monkeypatch.setattr(engine, "compute", send)
    run_stages(grown_run / "data", tmp_path / "work", **SETTINGS)
    assert answer(tmp_path / "work") == answer(grown_run / "after")
    n_sent = len(sent)
    put(tmp_path / "second", "0", np.arange(0, 3054, 9))
    both = settings_of(grown_run / "data", tmp_path / "check", against_dir=tmp_path / "second", **SETTINGS)
    for script in SCRIPTS:
        for config in [both.reference, both] if script in SCRIPTS[:3] else [both]:
            run_scripts(config, [script])
    assert min(n_sent, len(sent) - n_sent) > 30


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_on_the_way(grown_run, tmp_path, seed):
    """The next start goes on, and ends with the same bytes."""
    rng, work = np.random.default_rng(seed), tmp_path / "work"
    shutil.copytree(grown_run / "before", work)
    for script in SCRIPTS:
        number = int(rng.integers(5, 80))
        with contextlib.suppress(OSError, NeardupError), failing(work, number, errno.EIO):
            run_stages(grown_run / "data", work, [script], **SETTINGS)
        run_stages(grown_run / "data", work, [script], **SETTINGS)
    assert tree_bytes(work) == tree_bytes(grown_run / "after")


def test_visits_that_are_listed_a_cluster_at_a_time(grown_run, tmp_path, monkeypatch):
    """Rows of a run that grows visit their own cluster, too: once."""
    monkeypatch.setattr("neardup.search.visits._VISITS", 1)
    shutil.copytree(grown_run / "before", tmp_path / "work")
    run_stages(grown_run / "data", tmp_path / "work", **SETTINGS)
    assert answer(tmp_path / "work") == answer(grown_run / "after")


def kept_and_dropped(work):
    return [{*(work / NAMES[4] / name).read_text().split("\n")} - {""} for name in ("keep.txt", "drop.txt")]


def check_decisions(tmp_path, grouping):
    """What was kept stays, what is dropped is near what is kept, and joined with no other such row."""
    data, work, rng = tmp_path / "data", tmp_path / "work", np.random.default_rng(1)
    chosen = rng.permutation(len(example_rows()))
    options = SETTINGS | {"keep_previous": True, "grouping": grouping, "threshold": 0.85}
    dropped_without = 0
    for step, (low, high) in enumerate(((0, 700), (700, 1300), (1300, 2600))):
        before = kept_and_dropped(work)[0] if step else set()
        put(data, str(9 - step), chosen[low:high])
        run_stages(data, work, **options)
        kept, dropped = kept_and_dropped(work)
        assert not before & dropped
        assert len(kept) + len(dropped) == high
        for members in pq.read_table(work / NAMES[4] / "groups.parquet").to_pylist():
            assert (members["id"] in kept) == (members["why"] == "kept")
            assert grouping != "star" or members["similarity"] >= 0.85
        if step:
            run_stages(data, tmp_path / str(step), **options | {"keep_previous": False})
            dropped_without += len(before & kept_and_dropped(tmp_path / str(step))[1])
    ids = read_ids(work)
    near = {frozenset((ids[a], ids[b])) for a, b in pair_set(work)}
    joined = {row for pair in near for row in pair if pair & kept}
    assert grouping != "star" or dropped <= joined
    assert dropped_without > 20


@pytest.mark.parametrize("grouping", ["connected", "star"])
def test_earlier_decisions_are_kept(tmp_path, grouping):
    """Split groups in tests/soak."""
    check_decisions(tmp_path, grouping)


def test_what_keep_previous_holds_apart_is_told(tmp_path, capsys):
    """A row comes that is near two which were kept; then the threshold falls so that these are near each other."""
    data, angles = tmp_path / "data", np.radians([0, 40, 90, 19])
    rows, options = np.stack([np.cos(angles), np.sin(angles)], axis=1), {"keep_previous": True, "audit_rows": 0}
    lay_out(data, rows[:3])
    run_stages(data, tmp_path / "work", **options, threshold=0.9)
    lay_out(data, rows, cuts=[3])
    run_stages(data, tmp_path / "work", **options, threshold=0.9)
    held = "keep_previous leaves out 1 join of two connected groups that each hold a row kept before"
    assert held in capsys.readouterr().out
    assert kept_and_dropped(tmp_path / "work") == [{"id-0", "id-1", "id-2"}, {"id-3"}]
    with pytest.raises(NeardupError, match="keeps 3 rows that the run before kept, more than the 2 of target_rows"):
        run_stages(data, tmp_path / "work", SCRIPTS[4:], **options, threshold=0.9, target_rows=2)
    run_stages(data, tmp_path / "work", SCRIPTS[4:], **options, threshold=0.9, target_rows=3)
    run_stages(data, tmp_path / "work", SCRIPTS[3:], **options, threshold=0.6)
    assert held.replace("1 join", "2 joins") in capsys.readouterr().out
    run_stages(data, tmp_path / "work", SCRIPTS[4:], **options | {"keep_previous": False}, threshold=0.6)
    assert "keep_previous leaves out" not in capsys.readouterr().out


def test_that_there_is_nothing_for_keep_previous_to_keep_is_told(tmp_path, capsys):
    """Where the only shard has changed; not of a first run, nor where some are as they were."""
    options, said = SETTINGS | {"keep_previous": True}, []
    for shards in (["a"], ["a"], ["a", "b"], ["c"]):
        for name in "abc":
            (tmp_path / "data" / f"{name}.npy").unlink(missing_ok=True)
            (tmp_path / "data" / f"{name}.txt").unlink(missing_ok=True)
        for name in shards:
            put(tmp_path / "data", name, 100 * "abc".index(name) + np.arange(100))
        run_stages(tmp_path / "data", tmp_path / "work", **options)
        said.append(capsys.readouterr().err.count("none of the rows that it kept is known"))
    assert said == [0, 0, 0, 1]


def test_rejected_rows_are_none_that_keep_previous_keeps(tmp_path):
    """Or there would be more of those than target_rows allows."""
    data, angles = tmp_path / "data", np.radians([0, 100, 50, 51])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows[1] = 0
    options = {"keep_previous": True, "audit_rows": 0, "threshold": 0.9, "bad_rows": "skip"}
    lay_out(data, rows[:3])
    run_stages(data, tmp_path / "work", **options)
    lay_out(data, rows, cuts=[3])
    run_stages(data, tmp_path / "work", **options, target_rows=2)
    assert kept_and_dropped(tmp_path / "work") == [{"id-0", "id-2"}, {"id-3"}]


def test_components_that_are_made_anew_are_those_of_all_sketches(tmp_path):
    """As a script advises where those there are don't fit the rows that came."""
    chosen = np.random.default_rng(0).permutation(len(example_rows()))[:900]
    put(tmp_path / "data", "1", chosen[:450])
    run_stages(tmp_path / "data", tmp_path / "work", **SETTINGS)
    put(tmp_path / "data", "2", chosen[450:])
    shutil.rmtree(tmp_path / "work" / NAMES[0])
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:4], **SETTINGS)
    near, unclear = brute_force(example_rows()[chosen], 0.9)
    assert pair_set(tmp_path / "work") - unclear == near - unclear
    sketches = [np.load(path) for path in sorted((tmp_path / "work" / NAMES[1]).glob("sketch_*.npy"))]
    stored = np.empty_like(np.concatenate(sketches))
    for path in (tmp_path / "work" / NAMES[2] / "clusters").iterdir():
        with h5py.File(path) as file:
            stored[file["row"][:]] = file["vector"][:]
    assert stored.tolist() == np.concatenate(sketches).tolist()


def test_the_same_rows_in_other_clusters_are_searched_and_audited_anew(tmp_path):
    put(tmp_path / "data", "1", np.arange(300))
    for n_clusters in (6, 3):
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:4], **SETTINGS | {"n_clusters": n_clusters})
        found = json.loads((tmp_path / "work" / NAMES[3] / "manifest.json").read_text())["results"]
        assert (found["audit"]["against"], found["compared"] > 0) == ("all", True)


def test_pairs_below_a_threshold_that_rose_are_left_out(tmp_path):
    """Of those that were there before rows came."""
    for name, low, threshold in (("1", 0, 0.8), ("2", 500, 0.9)):
        put(tmp_path / "data", name, np.arange(low, low + 500))
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:4], **SETTINGS | {"threshold": threshold})
    near, unclear = brute_force(example_rows()[:1000], 0.9)
    assert pair_set(tmp_path / "work") - unclear == near - unclear


def test_rows_go_that_joined_others(tmp_path):
    """Where just the pairs that join were looked for: others join what is left."""
    data, work, options = tmp_path / "data", tmp_path / "work", SETTINGS | {"pairs": "joining"}
    for name in "123":
        put(data, name, np.array([0, 1, 2] * 5 + [int(name) * 100]))
    run_stages(data, work, **options | {"duplicate_ids": "allow"})
    for path in data.glob("2.*"):
        path.unlink()
    run_stages(data, work, **options | {"duplicate_ids": "allow"})
    alike = {tuple(row for row in range(32) if row % 16 < 15 and row % 16 % 3 == n) for n in range(3)}
    assert found_groups(work) == alike


def test_rows_that_only_went_are_counted(tmp_path):
    data, work, found = tmp_path / "data", tmp_path / "work", []
    for name, low in (("1", 0), ("2", 1000), ("3", 2000)):
        put(data, name, np.arange(low, low + 900))
    for _ in range(2):
        run_stages(data, work, **SETTINGS | {"threshold": 0.85})
        found.append((*kept_and_dropped(work), groups_by_id(work)))
        for path in data.glob("2.*"):
            path.unlink()
    (kept, _, before), (_, dropped, now) = found
    members = [{name for name, number in now.items() if number == group} for group in {*now.values()}]
    earlier = [{before[name] for name in some if name in before} for some in members]
    assert json.loads((work / NAMES[4] / "manifest.json").read_text())["results"]["changes"] == {
        "new_rows": 0,
        "gone_rows": 900,
        "grown": sum(len(e) == 1 and not some <= {*before} for some, e in zip(members, earlier, strict=True)),
        "joined": sum(len(e) > 1 for e in earlier),
        "new": sum(not e for e in earlier),
        "kept_before_and_dropped": len(kept & dropped),
    }
    audit = json.loads((work / NAMES[3] / "manifest.json").read_text())["results"]["audit"]
    assert audit["against"] == "none, for no rows came"


def test_where_shards_went():
    growth = grown([("a", 2), ("b", 3), ("c", 1)], [("new", 4), ("a", 2), ("c", 1)])
    assert growth.of.tolist() == [1, -1, 2]
    assert growth.renumbered(range(6)).tolist() == [4, 5, -1, -1, -1, 6]
    assert growth.each_is_fresh().tolist() == [True] * 4 + [False] * 3
    assert growth.is_fresh(range(7)).tolist() == [True] * 4 + [False] * 3
    assert growth.removes
    assert growth.moves
    assert grown([("a", 1)], [("b", 1)]) is None


CONTENT = st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)


@given(before=CONTENT, now=CONTENT)
@settings(deadline=None)
def test_shards_keep_their_order(before, now):
    """Each is the first of today that holds the same and comes after those of the shards before it."""
    of = []
    for what in before:
        last = max(of, default=-1)
        of.append(next((n for n, held in enumerate(now) if held == what and n > last), -1))
    growth = grown([(what, 1) for what in before], [(what, 1) for what in now])
    assert (growth and growth.of.tolist()) == (of if max(of) >= 0 else None)


def test_shards_of_several_pieces_keep_them(tmp_path):
    """Reduced vectors and sketches are those of a run from scratch, though shards have other numbers."""
    data, work = tmp_path / "data", tmp_path / "work"
    rows = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    data.mkdir()
    np.save(data / "b.npy", rows)
    run_stages(data, work, SCRIPTS[:2])
    before = {path.name: path.read_bytes() for path in (work / NAMES[1]).glob("*_00000-*.npy")}
    assert len(before) == 4
    np.save(data / "a.npy", rows[:5] + 1)
    run_stages(data, work, SCRIPTS[:2])
    after = {name: (work / NAMES[1] / name.replace("_00000", "_00001")).read_bytes() for name in before}
    assert after == before


def test_what_is_said_of_rows_that_came_is_of_those_that_are_there(tmp_path, capsys):
    """Not of rejected ones, nor of those that went again."""
    rng, data, work = np.random.default_rng(0), tmp_path / "data", tmp_path / "work"
    basis, settings = rng.normal(size=(3, 20)), {"n_clusters": 5, "bad_rows": "skip", "duplicate_ids": "allow"}
    data.mkdir()
    np.save(data / "a.npy", rng.normal(size=(300, 3)) @ basis)
    np.save(data / "b.npy", np.concatenate([rng.normal(size=(10, 3)) @ basis, np.zeros((90, 20))]))
    np.save(data / "c.npy", rng.normal(size=(100, 20)))
    shards = {path.name: path.read_bytes() for path in data.iterdir()}

    def said(*names):
        for name in shards:
            (data / name).unlink(missing_ok=True)
        for name in names:
            (data / name).write_bytes(shards[name])
        capsys.readouterr()
        run_stages(data, work, SCRIPTS[:3], **settings)
        return capsys.readouterr().out

    assert "since" not in said("a.npy")
    out = said("a.npy", "b.npy")
    assert "of the 10 rows that came since, they keep 100.00% of the variance, of those they were made of 100" in out
    assert "5 of them were made of 300 rows; the 10 that came since lie beside them" in out
    assert "don't fit" not in out
    out = said("a.npy", "b.npy", "c.npy")
    share = float(re.search(r"of the 110 rows that came since, they keep ([\d.]+)% of the variance", out)[1]) / 100
    mean, components = (np.load(work / NAMES[1] / "pca.npz")[name] for name in ("mean_", "components_"))
    new = np.concatenate([np.load(data / "b.npy")[:10], np.load(data / "c.npy")])
    new = new / np.linalg.norm(new, axis=1)[:, None] - mean
    kept, squares = np.sum((new @ components.T) ** 2), np.sum(new**2)
    assert abs(share - kept / squares) < 1e-4
    assert f"they don't fit any more: remove {work / NAMES[0]}, and run all scripts again" in out
    out = said("a.npy", "b.npy")
    assert "of the 10 rows that came since, they keep 100.00% of the variance" in out
    assert "don't fit" not in out
    assert "since" not in said("a.npy")


def test_a_centroid_without_new_rows_has_no_new_file(tmp_path):
    """And the next ones are told apart."""
    data, work = tmp_path / "data", tmp_path / "work"
    settings = SETTINGS | {"n_clusters": 40}
    put(data, "0", np.arange(1000))
    run_stages(data, work, **settings)
    for name, chosen, count in (("1", [1000], 41), ("2", [1001, 1002, 5], None), ("3", [], None)):
        put(data, name, np.array(chosen, dtype=np.int64))
        run_stages(data, work, **settings)
        labels = np.load(work / NAMES[2] / "labels.npy")
        files = sorted((work / NAMES[2] / "clusters").iterdir())
        assert len(files) == 40 + len({*labels[1000:].tolist()}) == len(np.load(work / NAMES[2] / "centroids.npy"))
        assert count in (None, len(files))
        assert rows_of_clusters(work) == [np.nonzero(labels == n)[0].tolist() for n in range(len(files))]
    run_stages(data, tmp_path / "whole", **settings)
    assert answer(work) == answer(tmp_path / "whole")


def test_rows_that_came_to_one_centroid_lie_in_several_files(tmp_path, monkeypatch):
    """And labels tell which."""
    monkeypatch.setattr("neardup.search.shuffle._LEAST_CUT", 20)
    data, work, options = tmp_path / "data", tmp_path / "work", SETTINGS | {"duplicate_ids": "allow"}
    for name, chosen in (("1", np.arange(300)), ("2", np.full(200, 5))):
        put(data, name, chosen)
        run_stages(data, work, SCRIPTS[:3], **options)
    labels, found = np.load(work / NAMES[2] / "labels.npy"), rows_of_clusters(work)
    assert found == [np.nonzero(labels == number)[0].tolist() for number in range(len(found))]
    assert len({*labels[300:].tolist()}) > 2


def test_components_of_other_rows_are_said_to_be(tmp_path, capsys):
    """Though there are as many."""
    data, rng = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    for name in "ab":
        np.save(data / f"{name}.npy", rng.normal(size=(50, 4)))
    run_stages(data, tmp_path / "work", SCRIPTS[:1])
    assert "% of the variance\n" in capsys.readouterr().out
    np.save(data / "b.npy", rng.normal(size=(50, 4)))
    run_stages(data, tmp_path / "work", SCRIPTS[:1])
    assert "% of the variance of the 100 rows they were made of\n" in capsys.readouterr().out


def test_the_audit_notices_pairs_of_before_that_are_others_now(grown_run, tmp_path, monkeypatch):
    """As if rows had been counted wrong; it compares no earlier rows with each other."""
    work, before = tmp_path / "work", faiss_04_neighbor_search.pairs_before

    def others(stage, threshold):
        for pairs in before(stage, threshold):
            pairs["row_b"] += 1
            yield pairs

    shutil.copytree(grown_run / "after", work)
    shutil.rmtree(work / NAMES[3])
    shutil.copytree(grown_run / "before" / NAMES[3], work / NAMES[3])
    monkeypatch.setattr(faiss_04_neighbor_search, "pairs_before", others)
    with pytest.raises(NeardupError, match=r"the audit of 50 rows found 0 missed and [1-9]"):
        run_stages(grown_run / "data", work, SCRIPTS[3:4], **SETTINGS)
    monkeypatch.undo()
    run_stages(grown_run / "data", work, SCRIPTS[3:4], **SETTINGS)
    assert tree_bytes(work / NAMES[3]) == tree_bytes(grown_run / "after" / NAMES[3])


@pytest.mark.parametrize("today", ["012", "12", "02", "01", "1", "0129", "9012", "912", "0192", "0912", "19"])
def test_cluster_files_hold_each_row_once(tmp_path, today):
    """Whatever shards are left of three, and wherever one comes; and once more when another one comes."""
    data, work, chosen = tmp_path / "data", tmp_path / "work", np.arange(480).reshape(4, 120)
    for name in "012":
        put(data, name, chosen[int(name)])
    run_stages(data, work, SCRIPTS[:3], **SETTINGS)
    for name in {*"012"} - {*today}:
        for path in data.glob(f"{name}.*"):
            path.unlink()
    for place, name in enumerate(today):
        if name == "9":
            put(data, f"{place - 1}x" if place else "-", chosen[3])
    for another in (False, True):
        if another:
            put(data, "y", np.array([600]))
        run_stages(data, work, SCRIPTS[:3], **SETTINGS)
        labels, found = np.load(work / NAMES[2] / "labels.npy"), rows_of_clusters(work)
        assert found == [np.nonzero(labels == number)[0].tolist() for number in range(len(found))]
        assert sum(map(len, found)) == len(labels)


def test_rows_beside_a_rejected_one_stay_in_cluster_files(tmp_path):
    """Of a shard that came to a run, when another one comes."""
    data, work, options = tmp_path / "data", tmp_path / "work", SETTINGS | {"bad_rows": "skip"}
    for name, low in (("0", 0), ("1", 120), ("2", 240)):
        put(data, name, np.arange(low, low + 120))
        if name == "1":
            rows = np.load(data / "1.npy")
            rows[7] = np.nan
            np.save(data / "1.npy", rows)
        run_stages(data, work, SCRIPTS[:3], **options)
    assert sorted(row for some in rows_of_clusters(work) for row in some) == [*range(127), *range(128, 360)]


@pytest.mark.parametrize(
    ("today", "group", "kept"),
    [("bc", [0, -1, 2, 2, -1, -1], [1, 3]), ("cb", [-1, -1, 0, -1, 2, 2], [3, 5])],
)
def test_decisions_of_the_run_before(monkeypatch, today, group, kept):
    """Of rows 0 to 2 in a shard that went, and 3 to 6 in one that stays. 0, 2 and 6 were kept of their groups."""
    groups = Groups(
        np.array([0, 3, 1, 2, 5, 6]), np.array([0, 2, 4, 6]), np.ones(6), np.array([0, 2, 6]), np.zeros(3, np.int32)
    )
    monkeypatch.setattr("neardup.grouping.changes.read_groups", lambda _: groups)
    sizes = {"a": 3, "b": 4, "c": 2}
    growth = grown(*([(name, sizes[name]) for name in names] for names in ("ab", today)))
    found = Decisions(SimpleNamespace(growth=growth, previous=SimpleNamespace(path=str)), np.empty(0, np.int64))
    assert (found.group.tolist(), np.nonzero(found.kept)[0].tolist()) == (group, kept)
    assert (found.new, found.gone) == (2, 3)


def groups_by_id(work):
    """The group of each id of groups.parquet."""
    table = pq.read_table(work / NAMES[4] / "groups.parquet")
    return dict(zip(table["id"].to_pylist(), table["group"].to_pylist(), strict=True))


def test_changes_are_counted(tmp_path):
    """By what both runs say of each id, where shards came and went."""
    data, work, chosen = tmp_path / "data", tmp_path / "work", np.random.default_rng(5).permutation(3054)
    options, said = SETTINGS | {"threshold": 0.85}, []
    for names in ("2468", "1248"):  # of 600 rows each
        for path in data.glob("*") if said else ():
            path.unlink()
        for name in names:
            put(data, name, chosen[300 * int(name) : 300 * int(name) + 600])
        run_stages(data, work, **options)
        said.append((*kept_and_dropped(work), groups_by_id(work)))
    (kept, dropped, before), (kept_now, dropped_now, now) = said
    members = [{name for name, number in now.items() if number == group} for group in {*now.values()}]
    earlier = [{before[name] for name in some if name in before} for some in members]
    changes = json.loads((work / NAMES[4] / "manifest.json").read_text())["results"]["changes"]
    assert changes == {
        "new_rows": len((kept_now | dropped_now) - (kept | dropped)),
        "gone_rows": len((kept | dropped) - (kept_now | dropped_now)),
        "grown": sum(len(e) == 1 and not some <= {*before} for some, e in zip(members, earlier, strict=True)),
        "joined": sum(len(e) > 1 for e in earlier),
        "new": sum(not e for e in earlier),
        "kept_before_and_dropped": len(kept & dropped_now),
    }
    assert min(changes.values()) > 0


def test_shards_of_quite_another_set_are_told(tmp_path, capsys):
    """Not those that changed, came, or have other names now."""
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    data, work = lay_out(tmp_path / "data", rows[:20], cuts=[10], stem="a"), tmp_path / "work"

    def said_of(rows, stem):
        shutil.rmtree(data)
        run_stages(lay_out(data, rows, cuts=[10], stem=stem), work, SCRIPTS[:1])
        return capsys.readouterr().err

    run_stages(data, work, SCRIPTS[:1])
    assert capsys.readouterr().err == ""
    assert said_of(rows[:30], "a") == said_of(rows[10:40], "a") == said_of(rows[10:40], "b") == ""
    assert said_of(rows[:10] + 1, "c") == (
        f"{work}/{NAMES[0]} is of other shards (b_0.npy, b_1.npy), and is replaced: to keep it set another work_dir\n"
    )

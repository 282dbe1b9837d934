"""All five scripts: the answer equals brute force, whatever the data and however it is run."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    EXAMPLE,
    SCRIPTS,
    brute_force,
    command,
    components,
    found_groups,
    found_pairs,
    lay_out,
    pair_set,
    run_stages,
    tree_bytes,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import example as tried
from hypothesis import strategies as st

from config import ROOT


@pytest.mark.parametrize("threshold", [0.99, 0.98, 0.95, 0.90, 0.85])
def test_example_equals_its_truth(example, tmp_path, threshold):
    """The pairs of the shipped embeddings, by a brute force of their own, and the groups those form."""
    work = shutil.copytree(example, tmp_path / "work")
    run_stages(EXAMPLE, work, scripts=SCRIPTS[3:], threshold=threshold)
    truth = np.load(Path(__file__).with_name("demo-truth.npz"))
    near = truth["similarity"] >= threshold
    true = set(zip(truth["row_a"][near].tolist(), truth["row_b"][near].tolist(), strict=True))
    assert pair_set(work) == true
    assert found_groups(work) == components(true, 3054)


def make_rows(rng, n, dim, threshold, kind):
    """Rows with pairs near the threshold on both sides, exact repeats, and lengths from 1e-3 to 1e3."""
    rows = rng.normal(size=(n, dim))
    if kind == "same":
        rows[:] = rows[0]
    if kind == "flat":  # rank 1 and 2: most coordinates carry nothing
        rows[:, 2:] = 0
    if kind == "offset":  # a common direction, as the embeddings of one model have
        rows = rows * 0.3 + rng.normal(size=dim) * 2
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    for near in range(1, n, 2):
        if kind == "planted":
            away = rng.normal(size=dim)
            away -= away @ rows[near - 1] * rows[near - 1]
            away /= np.linalg.norm(away)
            cosine = min(1.0, threshold + rng.choice([-1e-6, -1e-8, 1e-8, 1e-6, 1e-3]))
            rows[near] = cosine * rows[near - 1] + np.sqrt(max(0, 1 - cosine**2)) * away
    repeats = rng.integers(0, n, size=(2, n // 5))
    rows *= 10 ** rng.uniform(-3, 3, size=(n, 1))
    rows[repeats[0]] = rows[repeats[1]]
    return rows


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**31),
    n=st.one_of(st.integers(1, 8), st.integers(9, 300)),
    dim=st.integers(2, 64),
    threshold=st.sampled_from([0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.999, 0.9999, 1.0]),
    kind=st.sampled_from(["planted", "planted", "random", "same", "flat", "offset"]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    n_clusters=st.sampled_from([1, 2, 7, 50, None]),
    memory_limit=st.sampled_from(["320MiB", "2GiB"]),
)
@tried(2**31, 286, 30, 0.9999, "flat", np.float32, [], 1, "320MiB")  # a cosine where float32 decided in two ways
def test_pairs_equal_brute_force(seed, n, dim, threshold, kind, dtype, cuts, n_clusters, memory_limit):
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, n, dim, threshold, kind).astype(dtype)
    rows[~rows.any(axis=1)] = 1  # what float16 rounds to nothing
    with tempfile.TemporaryDirectory() as folder:
        data = lay_out(Path(folder) / "data", rows, cuts=[round(c * n) for c in cuts])
        work = Path(folder) / "work"
        run_stages(data, work, threshold=threshold, n_clusters=n_clusters, memory_limit=memory_limit)
        found, (true, unclear) = pair_set(work), brute_force(rows, threshold)
        identical = {(a, b) for a, b in unclear if rows[a].tobytes() == rows[b].tobytes()}
        assert found - unclear == true - unclear
        assert not identical - found
        assert found_groups(work) == components(found, n)
        row_a, row_b, similarity = found_pairs(work)
        assert (row_a < row_b).all()
        assert (similarity >= threshold).all()
        order = np.lexsort((row_b, row_a))
        assert (order == np.arange(len(order))).all()


@pytest.mark.parametrize(("dtype", "least", "most"), [("f2", -6, 4), ("f4", -44, 38), ("f8", -322, 307)])
def test_rows_as_short_and_as_long_as_floats_can_be(tmp_path, dtype, least, most):
    """Squares of their values can be neither nothing nor infinity then."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10, 8))[rng.integers(0, 10, 120)] + rng.normal(size=(120, 8)) * 0.15
    rows = rows / np.abs(rows).max() * 10.0 ** rng.choice([least, least / 2, 0, most / 2, most], (120, 1))
    rows = rows.astype(dtype)
    rows[~rows.any(axis=1)] = np.finfo(dtype).smallest_subnormal
    longest = np.abs(rows.astype(np.float64)).max(axis=1)
    near, unclear = brute_force(np.ldexp(rows.astype(np.float64), -np.frexp(longest)[1][:, None]), 0.95)
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "work", SCRIPTS[:4], threshold=0.95, n_clusters=4)
    assert pair_set(tmp_path / "work") - unclear == near - unclear
    assert len(near) > 200


def test_borders_that_cut_through_groups(tmp_path, capsys):
    """On an arc of rows every border of clusters separates near-duplicates; none is lost."""
    angle = np.linspace(0, np.pi, 600)
    rng = np.random.default_rng(0)
    rows = np.column_stack([np.cos(angle), np.sin(angle), rng.normal(size=(600, 6)) * 0.002]).astype(np.float32)
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "work", n_clusters=100, threshold=0.9998)
    true, unclear = brute_force(rows, 0.9998)
    found = pair_set(tmp_path / "work")
    assert not unclear
    assert found == true
    labels = np.load(tmp_path / "work" / "03_kmeans" / "labels.npy")
    across = sum(labels[a] != labels[b] for a, b in true)
    with capsys.disabled():
        print(f"\na search inside clusters loses {across} of {len(true)} pairs, {across / len(true):.0%}")
    assert across > len(true) / 4


@pytest.mark.parametrize(
    "varied",
    [
        {"n_clusters": 1},
        {"n_clusters": 333},
        {"n_clusters": None},
        {"memory_limit": "320MiB"},
        {"n_workers": 1},
        {"n_workers": 5},
        {"sketch_dims": 3},
        {"target_variance": 0.2},
        {"random_state": 7},
    ],
    ids=str,
)
def test_the_answer_does_not_depend_on_how_it_is_found(example, tmp_path, varied):
    run_stages(EXAMPLE, tmp_path, **varied)
    for ours, theirs in zip(found_pairs(tmp_path), found_pairs(example), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    for name in ("groups.parquet", "keep.txt", "drop.txt"):
        assert (tmp_path / "045_merge" / name).read_bytes() == (example / "045_merge" / name).read_bytes()


@pytest.mark.parametrize("cuts", [[1, 2, 2, 3000], range(100, 3054, 100)], ids=["tiny", "many"])
def test_the_answer_does_not_depend_on_the_shards(example, tmp_path, cuts):
    rows = np.concatenate([np.load(EXAMPLE / f"demo_{i}.npy") for i in range(3)])
    run_stages(lay_out(tmp_path / "data", rows, cuts=cuts), tmp_path / "work")
    for ours, theirs in zip(found_pairs(tmp_path / "work"), found_pairs(example), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert found_groups(tmp_path / "work") == found_groups(example)


@pytest.mark.parametrize("pairs", ["all", "joining"])
def test_the_answer_does_not_depend_on_the_tasks(example, tmp_path, monkeypatch, pairs):
    """Shards read in pieces, rows sorted in runs, clusters cut into files, and each file a task."""
    small = {"neardup.input.embeddings": {"PIECE_ROWS": 100, "TASK_ROWS": 250}}
    small |= {"faiss_03_kmeans": {"RUN_ROWS": 300, "_CACHED": 0}, "neardup.search.shuffle": {"_LEAST_CUT": 20}}
    small |= {"neardup.search.tasks": {"_TASKS": 200, "_GROUPS": 9}}
    for module, values in small.items():
        for name, value in values.items():
            monkeypatch.setattr(f"{module}.{name}", value)
    run_stages(EXAMPLE, tmp_path, n_clusters=3, pairs=pairs)
    assert len(list((tmp_path / "02_pca_reduce").glob("reduced_0000?-*.npy"))) > 30
    assert len(list((tmp_path / "03_kmeans" / "clusters").iterdir())) > 10
    assert found_groups(tmp_path) == found_groups(example)
    if pairs == "all":
        for ours, theirs in zip(found_pairs(tmp_path), found_pairs(example), strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_nothing_is_done_twice(example, tmp_path):
    """A finished stage is left as it is, to the inode."""
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in example.rglob("*")}
    run_stages(EXAMPLE, example)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in example.rglob("*")} == before


def test_a_lower_threshold_needs_no_new_clusters(example, tmp_path):
    work = shutil.copytree(example, tmp_path / "work")
    before = tree_bytes(work / "03_kmeans")
    run_stages(EXAMPLE, work, scripts=SCRIPTS[3:], threshold=0.85)
    assert tree_bytes(work / "03_kmeans") == before
    assert len(pair_set(work)) == 9981


def test_from_the_shell_in_any_folder(tmp_path, example):
    """Each script as its own process, by option and by environment, in a folder that is not the project's.

    None loads pandas, as Arrow and scikit-learn would.
    """
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "pandas.py").write_text("print('pandas is loaded')")
    for script in SCRIPTS:
        found = os.environ | {"NEARDUP_DATA_DIR": str(EXAMPLE), "PYTHONPATH": str(tmp_path / "modules")}
        called = [sys.executable, ROOT / script, "--work-dir", "here"]  # not forked: with no library
        done = subprocess.run(called, cwd=tmp_path, env=found, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert 2 <= len(done.stdout.splitlines()) <= (40 if script == SCRIPTS[-1] else 4)
        assert done.stderr == ""
        assert "pandas is" not in done.stdout
    assert '"fonts-nanum-coding"' in done.stdout
    assert tree_bytes(tmp_path / "here") == tree_bytes(example)


def test_a_script_run_too_early_names_the_one_before_it(tmp_path):
    """A shell's glob sorts 045 before 04."""
    assert sorted(SCRIPTS) != SCRIPTS
    for script, before in zip(SCRIPTS[1:], SCRIPTS, strict=False):
        done = command(script, "--work-dir", tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"run {before} first" in done.stderr
        assert command(before, "--work-dir", tmp_path).returncode == 0
        if before != SCRIPTS[-2]:
            continue
        shutil.rmtree(tmp_path / "04_neighbor_search")
        assert "run faiss_04_neighbor_search.py first" in command(script, "--work-dir", tmp_path).stderr


def test_the_order_is_the_same_wherever_it_is_written():
    for name in ("Makefile", "README.md"):
        text = (ROOT / name).read_text()
        places = [text.index(script) for script in SCRIPTS]
        assert places == sorted(places), name
    assert {p.name for p in ROOT.glob("faiss_*.py")} == set(SCRIPTS)

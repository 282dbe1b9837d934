"""One set against another, and a few rows against a finished run: what brute force finds, from either side."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cached_property
from importlib import import_module
from types import SimpleNamespace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import (
    SCRIPTS,
    answer,
    command,
    found_pairs,
    lay_out,
    load_npz,
    read_csv,
    read_ids,
    run_scripts,
    settings_of,
    tree_bytes,
)
from test_04_neighbor_search import three_kinds
from test_growing import NAMES, SETTINGS, example_rows, put
from test_resume import killed_at_each_kind_of_file

from config import ROOT
from neardup import NeardupError
from neardup.grouping.contamination import find_matches
from neardup.input.embeddings import open_shards
from neardup.input.id_table import IdTable
from neardup.input.shards import find_shards
from neardup.machine import budget
from neardup.plan import plan, print_plan
from neardup.query import FinishedRun, near_in_short, read_vectors, visited_clusters
from neardup.query import answer as ask
from neardup.search import couples, geometry, opened, tasks
from neardup.search.clusters import cluster_name, write_cluster
from neardup.search.opened import ProjectedRows
from neardup.search.pairs import PAIR, Found
from neardup.stages.manifests import MANIFEST, read_manifest


def run_against(data, work, reference, **settings):
    """As the scripts do: the second set's own stages first. Returns the config."""
    config = settings_of(data, work, against_dir=reference, **SETTINGS | settings)
    for script in SCRIPTS:
        if script in SCRIPTS[:3]:
            run_scripts(config.reference, [script])
        run_scripts(config, [script])
    return config


def cross_pairs(rows, reference, threshold):
    """{(row, row of the second set)} and those that float64 can't tell, by brute force."""
    unit = [v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1)[:, None] for v in (rows, reference)]
    cosines = unit[0] @ unit[1].T
    return (
        {*zip(*np.nonzero(found), strict=True)} for found in (cosines >= threshold, abs(cosines - threshold) < 1e-14)
    )


def check_between(folder, sizes, threshold):
    """All pairs between two sets are found, and no others. Some rows are in both, and both in several shards."""
    rng = np.random.default_rng(sum(sizes))
    chosen = rng.permutation(len(example_rows()))[: sum(sizes)]
    first = np.sort(chosen[: sizes[0]])
    second = np.sort(np.concatenate([chosen[sizes[0] :], chosen[: min(5, sizes[0])]]))
    for name, rows in (("a", first), ("b", second)):
        for number, part in enumerate(np.array_split(rows, min(3, len(rows)))):
            put(folder / name, f"{number}", part)
    run_against(folder / "a", folder / "work", folder / "b", threshold=threshold)
    reference, row, similarity = found_pairs(folder / "work")
    near, unclear = cross_pairs(example_rows()[first], example_rows()[second], threshold)
    rows = [*zip((row - len(second)).tolist(), reference.tolist(), strict=True)]
    assert {*rows} - unclear == near - unclear
    assert min(sizes) == 1 or len(rows) > 5
    check_outputs(folder / "work", dict(zip(rows, similarity.tolist(), strict=True)), len(second))


@pytest.mark.parametrize(
    ("sizes", "threshold"), [((2000, 1000), 0.85), ((300, 2700), 0.95), ((1, 3000), 0.9), ((3000, 1), 0.98)]
)
def test_all_pairs_between_two_sets_and_no_others(tmp_path, sizes, threshold):
    """Any sizes at any threshold in tests/soak."""
    check_between(tmp_path, sizes, threshold)


def test_lines_of_several_blocks(tmp_path, monkeypatch):
    """In contaminated.parquet, and in both lists."""
    for module in ("contamination", "outputs"):
        monkeypatch.setattr(f"neardup.grouping.{module}.BLOCK_ROWS", 7)
    check_between(tmp_path, (700, 600), 0.85)


def test_a_small_second_set_is_split_finely_for_the_rows_of_a_large_one(tmp_path):
    put(tmp_path / "a", "0", np.arange(3000))
    put(tmp_path / "b", "0", np.arange(2000, 3000))
    config = run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", threshold=0.9, n_clusters=None)
    assert read_manifest(config.reference.work_dir / NAMES[2] / MANIFEST)["results"]["n_clusters"] >= 1000 // 128
    reference, row, _ = found_pairs(tmp_path / "work")
    near, unclear = cross_pairs(example_rows()[:3000], example_rows()[2000:3000], 0.9)
    assert {*zip((row - 1000).tolist(), reference.tolist(), strict=True)} - unclear == near - unclear


@pytest.mark.parametrize(("sizes", "in_files"), [((1600, 200), 200), ((1599, 200), 1799), ((200, 1600), 1800)])
def test_rows_that_are_read_through_are_in_no_cluster_file(tmp_path, sizes, in_files):
    """Those that are held against eight times fewer."""
    put(tmp_path / "a", "0", np.arange(sizes[0]))
    put(tmp_path / "b", "0", np.arange(3000 - sizes[1], 3000))
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", n_clusters=7)
    members = []
    for path in (tmp_path / "work" / NAMES[2] / "clusters").glob("*.h5"):
        with h5py.File(path) as file:
            members += file["row"][:].tolist()
    labels = np.load(tmp_path / "work" / NAMES[2] / "labels.npy")
    assert len(labels) == sum(sizes)
    assert (labels >= 0).all()
    assert sorted(members) == list(range(in_files))


def test_rows_that_are_read_through_for_a_second_set_that_grew(tmp_path):
    """Twice: the rows that came to it have files beside those of its clusters, which all visit."""
    rows, names = example_rows(), ["a", "work", "b"]
    put(tmp_path / "a", "0", np.arange(0, 2600))
    for number, some in enumerate([np.arange(2500, 2600), np.arange(0, 100), np.arange(2590, 2690)]):
        put(tmp_path / "b", str(number), some)
        run_against(*(tmp_path / name for name in names), threshold=0.9, n_clusters=3, audit_rows=0)
        second = np.concatenate([[*range(2500, 2600)], [*range(100)], [*range(2590, 2690)]])[: 100 * (number + 1)]
        near, unclear = cross_pairs(rows[:2600], rows[second], 0.9)
        reference, row, _ = found_pairs(tmp_path / "work")
        found = {*zip((row - len(second)).tolist(), reference.tolist(), strict=True)}
        assert found - unclear == near - unclear
        assert len(near) > 100 * number


@pytest.mark.parametrize("every", [1, 2])
def test_rows_that_are_read_through_of_which_many_are_rejected(tmp_path, every):
    """All, or every second one, so that a sample at equal distances has none."""
    rows = example_rows()[:900].copy()
    rows[::every] = 0
    lay_out(tmp_path / "a", rows)
    lay_out(tmp_path / "b", example_rows()[:100])
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", bad_rows="skip", n_clusters=3)
    reference, row, _ = found_pairs(tmp_path / "work")
    good = np.flatnonzero(rows.any(axis=1))
    near, unclear = cross_pairs(rows[good], example_rows()[:100], 0.9) if len(good) else (set(), set())
    near = {(good[i], j) for i, j in near - unclear}
    assert {*zip((row - 100).tolist(), reference.tolist(), strict=True)} - {(good[i], j) for i, j in unclear} == near


def test_a_row_that_is_in_no_cluster_file_is_missed(tmp_path):
    """Before anything is searched, whatever the audit would find."""
    put(tmp_path / "data", "0", np.arange(300))
    config = settings_of(tmp_path / "data", tmp_path / "work", **SETTINGS)
    run_scripts(config, SCRIPTS[:3])
    labels, clusters = np.zeros(300, dtype=np.int32), SimpleNamespace(bounds=np.array([0, 100, 299]))
    check = import_module("faiss_04_neighbor_search").check_all_are_there
    with pytest.raises(NeardupError, match=r"labels\.npy is damaged .*in none of their files"):
        check(clusters, labels, tmp_path / "work" / NAMES[2] / "labels.npy")
    labels[7] = -1
    check(clusters, labels, tmp_path / "work" / NAMES[2] / "labels.npy")


def noted(used, of, name):
    """An attribute of a class that notes in `used` when it is made."""
    make, found = getattr(of, name).func, cached_property(lambda x: used.add(name) or make(x))
    found.__set_name__(of, name)
    return found


@pytest.mark.parametrize(
    ("kind", "threshold", "sketch_dims", "room", "levels"),
    [
        ("random", 0.6, 8, 20_000, {"longer", "coordinates", "unit"}),
        ("random", 0.6, 8, 10**9, {"longer", "coordinates"}),
        ("random", 0.9, 64, 40_000, {"unit"}),
        ("random", 0.9, 64, 10**9, set()),
        ("same", 0.9, 64, 10**9, {"coordinates", "unit"}),
        ("three kinds", 0.98, 64, 200_000, {"unit"}),
    ],
)
def test_rows_that_are_read_through(tmp_path, monkeypatch, kind, threshold, sketch_dims, room, levels):
    """With so many bytes of room for a block of any kind, whatever tells rows apart."""
    rng, used = np.random.default_rng(0), set()
    rows = three_kinds(rng, 2700) if kind == "three kinds" else rng.normal(size=(2700, 100))
    rows[700:900] = rows[:200] + rng.normal(size=(200, rows.shape[1])) * rng.uniform(0, 1, (200, 1)) / 10
    if kind == "same":
        rows[1300:1400], rows[20:60] = rows[5], rows[5]
    rows = rows.astype(np.float32)
    rows[[3, 900, 2699]] = [[0], [np.nan], [0]]
    lay_out(tmp_path / "a", rows[300:], cuts=[300, 301])
    lay_out(tmp_path / "b", rows[:300], cuts=[200])
    for name in ("longer", "coordinates", "unit"):
        monkeypatch.setattr(opened.OpenCluster, name, noted(used, opened.OpenCluster, name))
    monkeypatch.setattr(budget, "block_rows", lambda memory, workers, size, most: max(1, min(most, room // size)))
    settings = {"threshold": threshold, "sketch_dims": sketch_dims, "n_clusters": 5, "bad_rows": "skip"}
    settings["target_variance"] = 0.8 if kind == "three kinds" else 0.95
    run_against(*(tmp_path / name for name in ("a", "work", "b")), **settings)
    reference, row, _ = found_pairs(tmp_path / "work")
    good = [np.flatnonzero(np.isfinite(part).all(axis=1) & part.any(axis=1)) for part in (rows[300:], rows[:300])]
    near, unclear = cross_pairs(rows[300:][good[0]], rows[:300][good[1]], threshold)
    near, unclear = ({(good[0][i], good[1][j]) for i, j in some} for some in (near, unclear))
    assert {*zip((row - 300).tolist(), reference.tolist(), strict=True)} - unclear == near - unclear
    assert len(near) > 100
    assert used == levels


@pytest.mark.parametrize("then", [70, 10**6])
def test_rows_that_are_read_through_are_cut_as_an_interrupted_run_began(tmp_path, monkeypatch, then):
    lay_out(tmp_path / "a", example_rows()[:800])
    lay_out(tmp_path / "b", example_rows()[720:820])
    done, last, search_task = [], 7, couples.search_task

    def until_killed(*arguments):
        assert len(done) < last, "killed"
        done.append(arguments[-1].number)
        return search_task(*arguments)

    monkeypatch.setattr(import_module("faiss_04_neighbor_search"), "search_task", until_killed)
    monkeypatch.setattr(tasks, "_SCANNED", 64)
    settings = {"threshold": 0.85, "n_workers": 1}
    folders = [tmp_path / name for name in ("a", "work", "b")]
    with pytest.raises(AssertionError, match="killed"):
        run_against(*folders, **settings)
    last = 100
    monkeypatch.setattr(tasks, "_SCANNED", then)
    run_against(*folders, **settings)
    assert done == list(range(7)) + list(range(13))
    reference, row, _ = found_pairs(tmp_path / "work")
    near, unclear = cross_pairs(example_rows()[:800], example_rows()[720:820], 0.85)
    assert {*zip((row - 100).tolist(), reference.tolist(), strict=True)} - unclear == near - unclear


@pytest.mark.parametrize("name", NAMES[2:4])
def test_killed_anywhere_where_rows_are_read_through(tmp_path, monkeypatch, name):
    lay_out(tmp_path / "data", example_rows()[:800])
    lay_out(tmp_path / "b", example_rows()[720:820])
    monkeypatch.setattr(tasks, "_SCANNED", 100)
    settings = SETTINGS | {"threshold": 0.85, "against_work_dir": tmp_path / "work-b"}
    run_against(*(tmp_path / folder for folder in ("data", "work", "b")), **settings)
    settings |= {"against_dir": tmp_path / "b"}
    killed_at_each_kind_of_file(monkeypatch, tmp_path, tmp_path, name, settings, settings | {"n_workers": 2})


def test_what_is_near_at_a_lower_threshold_is_only_counted(tmp_path):
    put(tmp_path / "a", "0", np.arange(0, 600))
    put(tmp_path / "b", "0", np.arange(590, 1500))
    found = []
    for name, more in (("alone", {}), ("lower", {"report_threshold": 0.8})):
        run_against(tmp_path / "a", tmp_path / name, tmp_path / "b", threshold=0.95, **more)
        merge = tmp_path / name / NAMES[4]
        results = read_manifest(merge / MANIFEST)["results"]
        files = [(merge / file).read_bytes() for file in ("contaminated.parquet", "keep.txt", "drop.txt")]
        found.append((files, results | {"thresholds": None}))
    assert found[0] == found[1]
    assert results["thresholds"][-1]["contaminated"] > results["contaminated"]


def check_outputs(work, similarity, n_second):
    """contaminated.parquet and both lists say what the pairs do."""
    merge, ids = work / NAMES[4], read_ids(work)
    near = {}
    for row, reference in sorted(similarity):
        near.setdefault(row, []).append((-similarity[row, reference], reference))
    lines = pq.read_table(merge / "contaminated.parquet").to_pylist()
    assert [line["row"] for line in lines] == sorted(near)
    for line in lines:
        negative, reference = min(near[line["row"]])
        assert line == {
            "row": line["row"],
            "id": ids[n_second + line["row"]],
            "reference": ids[reference],
            "similarity": -negative,
            "matches": len(near[line["row"]]),
        }
    keep, drop = ((merge / name).read_text().splitlines() for name in ("keep.txt", "drop.txt"))
    assert drop == [ids[n_second + row] for row in sorted(near)]
    assert keep == [name for row, name in enumerate(ids[n_second:]) if row not in near]
    assert "against" in (merge / "report.html").read_text()
    for line in read_csv(work, "thresholds.csv"):
        at = {pair for pair, s in similarity.items() if s >= float(line["threshold"])}
        assert (int(line["pairs"]), int(line["contaminated"])) == (len(at), len({row for row, _ in at}))
    found = read_manifest(merge / MANIFEST)["results"]
    matched = len({reference for _, reference in similarity})
    assert (found["contaminated"], found["reference_matched"]) == (len(near), matched)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_nearest_row_of_the_second_set(size):
    """Of equally near ones the first; in blocks of any size."""
    rng = np.random.default_rng(size)
    found = np.zeros(200, dtype=PAIR)
    chosen = np.sort(rng.permutation(12 * 30)[:200])
    found["row_a"], found["row_b"] = chosen // 30, 12 + chosen % 30
    found["similarity"] = rng.choice([0.9, 0.95, 1.0], 200)
    matches = find_matches(
        Found(lambda _, n=size: (found[start : start + n] for start in range(0, 200, n)), 42, 0, True, np.inf), 12
    )
    for row in range(30):
        near = sorted((-s, a) for a, b, s in found.tolist() if b == 12 + row)
        similarity, nearest = near[0] if near else (0, -1)
        assert (matches.nearest[row], matches.similarity[row], matches.count[row]) == (nearest, -similarity, len(near))


def test_a_second_set_that_grew_tells_when_its_clusters_no_longer_fit(tmp_path, capsys):
    """By the number of clusters that a second set has, not by that of a set that is searched itself."""
    rng = np.random.default_rng(0)
    settings = {"against_dir": tmp_path / "b", "n_clusters": None, "id_column": ""}
    config = settings_of(lay_out(tmp_path / "a", np.eye(8)), tmp_path / "work", **settings).reference
    (tmp_path / "b").mkdir()
    for number in (1, 2):
        np.save(tmp_path / "b" / f"{number}.npy", rng.normal(size=(2000, 8)))
        run_scripts(config, SCRIPTS[:3])
    found = read_manifest(config.work_dir / NAMES[2] / MANIFEST)["results"]
    assert (found["made"], found["made_of"], found["came"]) == (15, 2000, 2000)
    assert 1.5 < found["gain"] < 31 / 15 * 1.2
    assert "made of all rows, clusters would have about" in capsys.readouterr().out


def test_coordinates_that_are_not_kept_are_made_again(tmp_path, monkeypatch):
    """Those that stage 2 writes of a single set, of a second one's basis; rounding aside."""
    for name, low in (("a", 0), ("b", 1000)):
        put(tmp_path / name, "0", np.arange(low, low + 1000))
    config = run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b")
    between, alone = (work / NAMES[1] for work in (tmp_path / "work", config.reference.work_dir))
    assert not [*between.glob("reduced*")]
    kept, model = np.load(alone / "reduced_00000.npy"), load_npz(between / "pca.npz")
    shards = find_shards(tmp_path / "b")
    monkeypatch.setattr("neardup.search.opened._PROJECTED_ROWS", 300)
    projection = ProjectedRows(open_shards(shards), geometry.projection(model["mean_"], model["components_"]))
    made = projection.gather(np.arange(1000)[::-1])
    error = 2 * geometry.projection_error(shards[0].dim, kept.shape[1])
    assert made.shape == kept.shape
    assert (np.linalg.norm(made[::-1] - kept, axis=1) <= error).all()


def test_the_second_set_is_made_once(tmp_path):
    """For any number of runs; a run is made anew when that set is."""
    for name, low in (("a", 0), ("b", 1000), ("c", 2000)):
        put(tmp_path / name, "0", np.arange(low, low + 1000))
    shared = {"against_work_dir": tmp_path / "shared"}
    run_against(tmp_path / "a", tmp_path / "one", tmp_path / "b", **shared)
    inodes = {path: path.stat().st_ino for path in (tmp_path / "shared").rglob("*.npy")}
    run_against(tmp_path / "c", tmp_path / "two", tmp_path / "b", **shared)
    assert inodes == {path: path.stat().st_ino for path in (tmp_path / "shared").rglob("*.npy")}
    put(tmp_path / "b", "1", np.arange(2000, 2500))
    run_against(tmp_path / "c", tmp_path / "two", tmp_path / "b", **shared)
    found = json.loads((tmp_path / "two" / NAMES[4] / "manifest.json").read_text())["results"]
    assert found["reference_rows"] == 1500
    assert found["contaminated"] >= 500


def test_the_second_set_s_folder_is_no_input_of_a_later_run(tmp_path):
    """Whose work folder lies in that of the input; cluster files have a data set of vectors, too."""
    rows, settings = example_rows()[:60], {"shard_pattern": "**/*.h5", "sketch_dims": 383}
    for name, some in (("data/below", rows), ("second", rows[20:40])):
        (tmp_path / name).mkdir(parents=True)
        with h5py.File(tmp_path / name / "p.h5", "w") as file:
            file["vector"] = some
    run_against(tmp_path / "data", tmp_path / "data" / "work", tmp_path / "second", **settings)
    run_scripts(settings_of(tmp_path / "data", tmp_path / "data" / "work", **SETTINGS | settings))
    assert read_manifest(tmp_path / "data" / "work" / NAMES[0] / MANIFEST)["results"]["rows"] == 60


def test_thresholds_that_are_nearly_one_are_told_apart(tmp_path, capsys):
    for folder in ("a", "b"):
        put(tmp_path / folder, "0", np.arange(50))
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", threshold=0.9999999)
    assert re.findall(r"^  at (\S+): ", capsys.readouterr().out, flags=re.MULTILINE) == ["1", "0.9999999"]


def test_rows_of_another_length(tmp_path):
    lay_out(tmp_path / "a", np.eye(3, 4, dtype=np.float32))
    lay_out(tmp_path / "b", np.eye(3, 5, dtype=np.float32))
    with pytest.raises(NeardupError, match=r"part_0.npy has 4 values a row, and .*part_0.npy, of the set .*, 5: embed"):
        run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 2,500 rows, and the other 554."""
    folder, chosen = tmp_path_factory.mktemp("query"), np.random.default_rng(7).permutation(len(example_rows()))
    for number, part in enumerate(np.array_split(np.sort(chosen[:2500]), 3)):
        put(folder / "data", str(number), part)
    config = settings_of(folder / "data", folder / "work", **SETTINGS)
    run_scripts(config)
    return config, example_rows()[np.sort(chosen[:2500])], example_rows()[chosen[2500:]]


def test_vectors_near_a_cluster_without_rows(tmp_path):
    """Such as a run has that grew by one row: a file for each centroid."""
    put(tmp_path / "data", "1", np.arange(600))
    config = settings_of(tmp_path / "data", tmp_path / "work", **SETTINGS)
    run_scripts(config)
    put(tmp_path / "data", "2", np.array([700]))
    run_scripts(config)
    found = FinishedRun(config).matches(example_rows()[[5, 700]])
    assert [int(rows[0]) for rows, _ in found] == [5, 600]


def test_new_vectors(finished, monkeypatch):
    """Few candidates at a time."""
    config, rows, new = finished
    monkeypatch.setattr("neardup.query._BLOCK_ROWS", 2)
    near, unclear = cross_pairs(new, rows, 0.9)
    found = FinishedRun(config).matches(new)
    assert {(query, row) for query, (some, _) in enumerate(found) for row in some.tolist()} - unclear == near - unclear
    assert len(near) > 50
    for _, similarity in found:
        assert (np.diff(similarity) <= 0).all()


@pytest.mark.parametrize("lowest", [0.7, 0.95])
def test_a_query_looks_down_to_any_similarity(finished, lowest):
    """Below the threshold, too; groups are those that the threshold joins a vector to."""
    config, rows, new = finished
    near, unclear = cross_pairs(new, rows, lowest)
    joined, _ = cross_pairs(new, rows, 0.9)
    run = FinishedRun(config)
    found = run.matches(new, lowest)
    assert {(query, row) for query, (some, _) in enumerate(found) for row in some.tolist()} - unclear == near - unclear
    np.save(config.work_dir / "new.npy", new)
    given = SimpleNamespace(ids=None, vectors=config.work_dir / "new.npy", lowest=lowest)
    for number, said in enumerate(ask(run, given)):
        groups = run.groups_of(sorted(row for q, row in joined & near if q == number))
        assert said["groups"] == sorted({*groups} - {None})
        assert len(said["matches"]) == len(found[number][0])


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
def test_vectors_of_any_length_are_answered(finished, dtype):
    """Their squares are beyond float64."""
    config, _, new = finished
    expected = FinishedRun(config).matches(new[:50].astype(np.float64))
    found = FinishedRun(config).matches(new[:50].astype(dtype) * dtype(2.0) ** 800)
    assert [[some.tolist() for some in one] for one in found] == [[some.tolist() for some in one] for one in expected]
    assert any(len(rows) for rows, _ in expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_a_vector_without_direction_among_others_is_named(finished, value):
    config, _, new = finished
    vectors = new[:3].astype(np.float32)
    vectors[1] = value
    with pytest.raises(NeardupError, match="row 1 of the vectors has no direction"):
        FinishedRun(config).matches(vectors)


def test_rows_of_the_run(finished):
    """At a shell; a row isn't near itself."""
    config, rows, _ = finished
    names = read_ids(config.work_dir)
    near, _ = cross_pairs(rows, rows, 0.9)
    [(row, _)] = Counter(a for a, _ in near).most_common(1)
    options = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in ("data_dir", "work_dir", *SETTINGS)]
    asked = [sys.executable, "-m", "neardup.query", "--ids", names[row], "--json", *options]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert {match["id"] for match in found["matches"]} == {names[b] for a, b in near if a == row and b != row}
    assert len(found["groups"]) == 1
    assert found["groups"][0].startswith("merged-cluster_")
    run = FinishedRun(config)
    assert run.rows_of([names[5], names[row], names[5]]) == [(names[n], n) for n in (5, row, 5)]
    done = subprocess.run(
        [*asked[:4], "nobody", *asked[5:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("neardup.query: error: no row has the id 'nobody'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("what", ["ids", "vectors"])
def test_a_query_loads_no_pandas(finished, tmp_path, what):
    """As Arrow would."""
    config, _, new = finished
    (tmp_path / "pandas.py").write_text("print('pandas is loaded')")
    np.save(tmp_path / "new.npy", new[:3])
    of = {"ids": read_ids(config.work_dir)[0], "vectors": tmp_path / "new.npy"}[what]
    options = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in ("data_dir", "work_dir", *SETTINGS)]
    asked = [sys.executable, "-m", "neardup.query", f"--{what}", of, *options]
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(asked, cwd=ROOT, env=path, capture_output=True, text=True, timeout=60, check=True)
    assert " near; group: " in done.stdout
    assert "pandas is" not in done.stdout


def test_a_query_by_ids_that_are_not_those_of_the_run(finished, tmp_path):
    """All are read, and hashed."""
    config, names = finished[0], read_ids(finished[0].work_dir)
    work = shutil.copytree(config.work_dir, tmp_path / "work")
    path = work / NAMES[0] / "ids.arrow"
    path.write_bytes(
        path.read_bytes().replace(names[0].encode(), names[1].encode().ljust(len(names[0]))[: len(names[0])])
    )
    with pytest.raises(NeardupError, match=r"ids\.arrow is missing or not what faiss_01_pca_variance\.py wrote"):
        FinishedRun(config.model_copy(update={"work_dir": work})).rows_of(names[1:2])


def test_ids_and_groups_of_every_row(finished):
    """Of all shards, single ones among them, in any order."""
    config, rows, _ = finished
    run, names, order = FinishedRun(config), read_ids(config.work_dir), np.random.default_rng(0).permutation(len(rows))
    assert run.rows_of([names[row] for row in order]) == [(names[row], row) for row in order.tolist()]
    expected = dict.fromkeys(range(len(rows)))
    with h5py.File(config.work_dir / NAMES[4] / "merged_clusters.h5") as file:
        members, bounds = file["row"][:].tolist(), file["bounds"][:].tolist()
        for name, low, high in zip(file["name"].asstr()[:], bounds[:-1], bounds[1:], strict=True):
            expected |= dict.fromkeys(members[low:high], name)
    assert 0 < sum(map(bool, expected.values())) < len(rows)
    assert run.groups_of(order) == [expected[row] for row in order.tolist()]


def test_at_the_shell(tmp_path):
    """The second set's stages are made by the same scripts."""
    put(tmp_path / "a", "0", np.arange(0, 600))
    put(tmp_path / "b", "0", np.arange(500, 800))
    for script in SCRIPTS:
        done = command(
            script, "--data-dir", tmp_path / "a", "--work-dir", tmp_path / "w", "--against-dir", tmp_path / "b"
        )
        assert done.returncode == 0, done.stderr
    assert "rows are near a row of the second set" in done.stdout
    assert (tmp_path / "w" / "against" / NAMES[2] / "manifest.json").exists()


def test_a_copy_without_what_is_near(tmp_path):
    put(tmp_path / "a", "0", np.arange(0, 600))
    put(tmp_path / "b", "0", np.arange(500, 800))
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", threshold=0.98, export=True)
    merge = tmp_path / "work" / NAMES[4]
    kept = (merge / "keep.txt").read_text().splitlines()
    assert json.loads((merge / "export" / "0.txt").read_text()) == kept
    assert len(np.load(merge / "export" / "0.npy")) == len(kept) <= 500


def test_results_among_the_shards_of_the_second_set(tmp_path):
    put(tmp_path / "a", "0", np.arange(0, 600))
    put(tmp_path / "b", "0", np.arange(500, 800))
    for _ in range(2):
        run_against(tmp_path / "a", tmp_path / "b" / "work", tmp_path / "b", shard_pattern="**/*.npy")
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b")
    assert answer_pairs(tmp_path / "b" / "work") == answer_pairs(tmp_path / "work")


def test_a_work_folder_of_two_sets_is_none_of_one(tmp_path):
    """Nor the other way round: what the one holds isn't what the other needs."""
    put(tmp_path / "a", "0", np.arange(0, 900))
    put(tmp_path / "b", "0", np.arange(800, 1200))
    work, alone = tmp_path / "work", settings_of(tmp_path / "a", tmp_path / "work", **SETTINGS)
    run_against(tmp_path / "a", work, tmp_path / "b")
    cross = answer_pairs(work)
    run_scripts(alone)
    fresh = settings_of(tmp_path / "a", tmp_path / "fresh", **SETTINGS)
    run_scripts(fresh)
    assert answer(work) == answer(tmp_path / "fresh")
    run_against(tmp_path / "a", work, tmp_path / "b")
    assert answer_pairs(work) == cross


def answer_pairs(work):
    return [column.tolist() for column in found_pairs(work)]


@pytest.mark.parametrize("option", ["--pairs=joining", "--target-rows=5", "--keep-previous", "--graph-group=0"])
def test_settings_that_are_about_groups(tmp_path, option):
    done = command(SCRIPTS[0], "--data-dir", tmp_path, "--against-dir", tmp_path, option)
    assert done.returncode == 2
    assert "is about groups, and a set against another has none: set against_dir to None" in done.stderr


def test_rows_that_share_an_id_and_rejected_ones_add_up(tmp_path):
    """Each row is kept, dropped or rejected, once; who shares its id with a dropped row is dropped."""
    rows = example_rows()[:6].astype(np.float32)
    rows[3] = 0
    lay_out(tmp_path / "a", rows, ids=["x", "x", "y", "x", "z", "z"])
    lay_out(tmp_path / "b", rows[:1])
    settings = {"threshold": 0.99, "bad_rows": "skip", "duplicate_ids": "allow"}
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", **settings)
    merge = tmp_path / "work" / NAMES[4]
    found = json.loads((merge / "manifest.json").read_text())["results"]
    assert [found[name] for name in ("kept", "dropped", "rejected", "rows")] == [3, 2, 1, 6]
    assert (merge / "keep.txt").read_text().split() == ["y", "z", "z"]
    assert (merge / "drop.txt").read_text().split() == ["x", "x"]


def two_sets(folder, **beside):
    """Two shards that share some rows, in folders a and b. beside: what lies beside each, by its name."""
    put(folder / "a", "0", np.arange(0, 600))
    put(folder / "b", "0", np.arange(500, 800))
    for name, write in beside.items():
        write(folder / name)


@pytest.mark.parametrize("place", ["045_merge/export", "against/02_pca_reduce", ".04_neighbor_search.partial"])
@pytest.mark.parametrize("setting", ["data_dir", "against_dir"])
def test_neither_set_is_where_a_stage_of_either_is_written(tmp_path, setting, place):
    put(tmp_path / "other", "0", np.arange(600))
    put((tmp_path / place).parent, "x", np.arange(9))
    put(tmp_path / place, "0", np.arange(500, 800))
    before = tree_bytes(tmp_path)
    folders = {"data_dir": tmp_path / "other", "against_dir": tmp_path / "other", setting: tmp_path / place}
    options = [f"--{name.replace('_', '-')}={folder}" for name, folder in folders.items()]
    done = command(SCRIPTS[0], *options, "--work-dir", tmp_path)
    assert done.returncode == 1
    assert f"{setting} {tmp_path / place} lies in " in done.stderr
    assert tree_bytes(tmp_path) == before


@pytest.mark.parametrize("setting", ["work_dir", "against_work_dir"])
def test_neither_work_folder_is_where_a_stage_of_the_other_is_written(tmp_path, setting):
    two_sets(tmp_path)
    folders = {"work_dir": tmp_path / "w", "against_work_dir": tmp_path / "w", setting: tmp_path / "w" / NAMES[1]}
    options = [f"--{name.replace('_', '-')}={folder}" for name, folder in folders.items()]
    done = command(SCRIPTS[0], "--data-dir", tmp_path / "a", "--against-dir", tmp_path / "b", *options)
    assert done.returncode == 1
    assert f"{setting} {tmp_path / 'w' / NAMES[1]} lies in {tmp_path / 'w' / NAMES[1]}, which a stage" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("{}/none", "against_dir '{}' is not a folder or file: set it to"),
        ("{}/empty", "against_dir {} holds no embeddings"),
        ("nosuch://{}", "against_dir {} can't be listed"),
    ],
)
def test_what_is_wrong_with_the_second_set_is_said_of_its_setting(tmp_path, second, said):
    two_sets(tmp_path)
    (tmp_path / "empty").mkdir()
    second = second.format(tmp_path)
    with pytest.raises(NeardupError, match=re.escape(said.format(second))):
        run_against(tmp_path / "a", tmp_path / "work", second)


@pytest.mark.parametrize("folder", ["a", "b"])
def test_of_bad_rows_it_is_said_of_which_set_they_are(tmp_path, folder):
    """Whose files may have the same names."""
    for name in "ab":
        lay_out(tmp_path / name, np.eye(4), ids=["x"] * 4 if name == folder else None)
    settings = "--data-dir", tmp_path / "a", "--against-dir", tmp_path / "b", "--work-dir", tmp_path / "work"
    setting = "data_dir" if folder == "a" else "against_dir"
    said = command(SCRIPTS[0], *settings).stderr
    assert f"error: 4 rows of {setting} {tmp_path / folder} share their id with another: 'x' (row" in said
    np.save(tmp_path / folder / "part_0.npy", np.eye(4) * [1, 1, 1, 0])
    said = command(SCRIPTS[0], *settings, "--duplicate-ids", "allow").stderr
    assert f"error: 1 row of {setting} {tmp_path / folder} has no direction: part_0.npy row 3 (id 'x')" in said


def test_both_sets_have_work_folders_of_their_own(tmp_path):
    two_sets(tmp_path)
    folders = "--data-dir", tmp_path / "a", "--against-dir", tmp_path / "b", "--work-dir", tmp_path / "w"
    done = command(SCRIPTS[0], *folders, "--against-work-dir", tmp_path / "x" / ".." / "w")
    assert done.returncode == 1
    assert "is work_dir: set it to a folder of that set's own" in done.stderr
    assert not (tmp_path / "w").exists()


def test_one_set_by_a_relative_path_and_a_line_of_json_of_both(tmp_path):
    """Nothing else is printed that isn't JSON."""
    two_sets(tmp_path)
    for script in SCRIPTS:
        done = command(script, "--data-dir", "a", "--against-dir", tmp_path / "b", "--json", cwd=tmp_path,
                       NEARDUP_WORK_DIR="w")  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["folder"].startswith("w")
    assert json.loads(done.stdout)["contaminated"] >= 100


def test_a_dry_run_of_two_sets(tmp_path):
    """Also where their work folders are somewhere else."""
    two_sets(tmp_path)
    options = "--data-dir", tmp_path / "a", "--against-dir", tmp_path / "b", "--dry-run"
    urls = "--work-dir", "memory://bucket/w", "--against-work-dir", "memory://bucket/b"
    found = json.loads(command(SCRIPTS[0], *options, *urls, "--json").stdout)
    assert (found["rows"], found["second_set"]["rows"]) == (600, 300)
    lines = command(SCRIPTS[0], *options, "--work-dir", tmp_path / "w").stdout.splitlines()
    assert " ".join(line.split()[0] for line in lines) == "600 disk: memory: the 300 disk: memory: time:"


def test_a_dry_run_says_that_the_disk_has_too_little_room(tmp_path, monkeypatch, capsys):
    two_sets(tmp_path)
    config = settings_of(tmp_path / "a", tmp_path / "work")
    print_plan(plan(config))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    print_plan(plan(config))
    assert [
        line.endswith("of 1 kB free, which is too little")
        for line in capsys.readouterr().out.splitlines()
        if "disk:" in line
    ] == [False, True]


def test_a_dry_run_knows_that_reduced_vectors_are_of_the_second_set_only(tmp_path):
    two_sets(tmp_path)
    config = settings_of(tmp_path / "a", tmp_path / "work", against_dir=tmp_path / "b", **SETTINGS)
    alone = settings_of(tmp_path / "a", tmp_path / "work", **SETTINGS)
    found, single = plan(config), plan(alone)
    assert found["second_set"]["disk_bytes"] == plan(config.reference)["disk_bytes"]
    assert single["disk_bytes"] - found["disk_bytes"] == 4 * single["components"] * 600


def test_each_set_has_its_own_texts(tmp_path):
    """Of rows of the same ids."""
    rows = example_rows()[:40].astype(np.float32)
    for name, some in (("a", rows[:30]), ("b", rows[20:])):
        lay_out(tmp_path / name, some, ids=[str(i) for i in range(len(some))])
        texts = {str(i): f"{name} {i}" for i in range(len(some))}
        (tmp_path / name / "texts.json").write_text(json.dumps(texts))
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", threshold=1)
    lines = read_csv(tmp_path / "work", "examples.csv")
    assert len(lines) >= 10
    for line in lines:
        assert (line["text_a"], line["text_b"]) == (f"b {line['id_a']}", f"a {line['id_b']}")


def test_columns_that_only_groups_need_are_not_looked_for(tmp_path):
    two_sets(tmp_path)
    for path in [*tmp_path.glob("?/*.npy")]:  # and there are tables that haven't them
        path.with_suffix(".csv").write_text("other\n" + "0\n" * len(np.load(path)))
    of_groups = {"representative": "highest:width", "tabulate": "source", "grouping": "star"}
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", **of_groups)
    inode = (tmp_path / "work" / NAMES[4] / MANIFEST).stat().st_ino
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b")
    assert (tmp_path / "work" / NAMES[4] / MANIFEST).stat().st_ino == inode


def test_what_lies_beside_is_told_or_made_of_two_sets_too(tmp_path, capsys):
    """What a copy leaves out, and the subset of DataComp; pictures that can't be read."""
    rows = example_rows()[:60].astype(np.float32)
    uids = [f"{i:032x}" for i in range(60)]
    lay_out(tmp_path / "a", rows, ids=uids)
    lay_out(tmp_path / "b", rows[50:], ids=uids[50:])
    (tmp_path / "a" / "part_0.csv").write_text("only,two\n1,2\n")
    (tmp_path / "pictures").mkdir()
    for name in uids:
        (tmp_path / "pictures" / f"{name}.png").write_text("no picture")
    pictures = tmp_path / "pictures" / "{id}.png"
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", export=True, preview=str(pictures), threshold=0.98)
    assert "not exported" in capsys.readouterr().out
    merge = tmp_path / "work" / NAMES[4]
    kept = (merge / "keep.txt").read_text().split()
    assert [f"{first:016x}{last:016x}" for first, last in np.load(merge / "keep_datacomp.npy").tolist()] == kept
    assert 0 < len(kept) <= 50
    assert "of the pictures looked for couldn't be read" in (merge / "report.html").read_text()


def test_a_set_of_which_nothing_is_kept(tmp_path):
    """Has no subset of DataComp, and an export of no rows."""
    for name in "ab":
        put(tmp_path / name, "0", np.arange(50))
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b", export=True)
    merge = tmp_path / "work" / NAMES[4]
    assert (merge / "keep.txt").read_text() == ""
    assert len((merge / "drop.txt").read_text().splitlines()) == 50
    assert np.load(merge / "export" / "0.npy").shape == (0, 384)
    assert not (merge / "keep_datacomp.npy").exists()


@pytest.mark.parametrize("name", ["new.npz", "zip.npy", "empty.npy"])
def test_a_file_that_holds_no_vectors(tmp_path, name):
    np.savez(tmp_path / "new.npz", x=np.ones((2, 384)))
    (tmp_path / "zip.npy").write_bytes(b"PK but no archive")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(NeardupError, match=f"{name} is no .npy file of vectors"):
        read_vectors(tmp_path / name, 384)


def test_a_query_of_a_run_without_groups(tmp_path):
    lay_out(tmp_path / "data", np.eye(5, dtype=np.float32))
    config = settings_of(tmp_path / "data", tmp_path / "work")
    run_scripts(config)
    run = FinishedRun(config)
    assert [run.groups_of(rows) for rows, _ in run.matches(np.eye(5)[:2])] == [[None], [None]]


def test_a_query_needs_no_settings_that_say_how_groups_are_shown(tmp_path):
    """But those that make the groups."""
    put(tmp_path / "data", "0", np.arange(100))
    folders = tmp_path / "data", tmp_path / "work"
    (tmp_path / "texts.json").write_text("{}")
    run_scripts(settings_of(*folders, **SETTINGS, export=True))
    FinishedRun(settings_of(*folders, **SETTINGS, preview=str(tmp_path / "texts.json")))
    with pytest.raises(NeardupError, match="045_merge was made with grouping connected, not star"):
        FinishedRun(settings_of(*folders, **SETTINGS, grouping="star"))


def test_a_query_for_what_can_be_no_id(finished):
    """A name as a terminal of another encoding gives it."""
    config, _, _ = finished
    with pytest.raises(NeardupError, match=r"^no row has the id"):
        FinishedRun(config).rows_of(["caf\udcff"])


def test_a_query_searches_at_the_threshold_that_groups_were_made_at(tmp_path):
    put(tmp_path / "data", "0", np.arange(1500))
    config = settings_of(tmp_path / "data", tmp_path / "work", target_rows=1300, report_threshold=0.8)
    run_scripts(config)
    threshold = read_manifest(tmp_path / "work" / NAMES[4] / MANIFEST)["results"]["threshold"]
    assert 0.8 < threshold < 0.98
    rows = example_rows()[:1500]
    near, unclear = cross_pairs(rows, rows, threshold)
    found = {(q, row) for q, (some, _) in enumerate(FinishedRun(config).matches(rows)) for row in some.tolist()}
    assert found - unclear == near - unclear


def test_a_query_finds_what_is_just_near_enough(tmp_path):
    """At distances that float32 doesn't tell from that of the threshold, and sketches are no nearer."""
    rng, angle = np.random.default_rng(0), np.arccos(0.9)
    rows, away = rng.normal(size=(2, 2000, 6))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    away -= (away * rows).sum(axis=1)[:, None] * rows
    away /= np.linalg.norm(away, axis=1)[:, None]
    angles = angle * (1 + rng.choice([-1, 1], 2000) * 10.0 ** -rng.integers(5, 13, 2000))[:, None]
    queries = np.cos(angles) * rows + np.sin(angles) * away
    config = settings_of(lay_out(tmp_path / "data", rows), tmp_path / "work", threshold=0.9, audit_rows=0)
    run_scripts(config)
    near, unclear = cross_pairs(queries, rows, 0.9)
    found = {(q, row) for q, (some, _) in enumerate(FinishedRun(config).matches(queries)) for row in some.tolist()}
    assert found - unclear == near - unclear


def test_a_query_allows_for_the_error_of_sketches(tmp_path, monkeypatch):
    """As if those of new vectors were as far off as they may be."""
    rng, make = np.random.default_rng(0), geometry.sketch
    rows = rng.normal(size=(150, 4))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    config = settings_of(lay_out(tmp_path / "data", rows), tmp_path / "work", threshold=0.9, audit_rows=0)
    run_scripts(config)
    run = FinishedRun(config)
    run.stages[NAMES[1]].results["sketch_error"] = 0.05
    away = rng.normal(size=(150, 20))

    def moved(*how):
        sketches, some = make(*how), away[:, : make(*how).shape[1]]
        return sketches + (0.05 / np.linalg.norm(some, axis=1)[:, None] * some).astype(np.float32)

    monkeypatch.setattr(geometry, "sketch", moved)
    near, unclear = cross_pairs(rows, rows, 0.9)
    found = {(q, row) for q, (some, _) in enumerate(run.matches(rows)) for row in some.tolist()}
    assert found - unclear == near - unclear


def test_a_query_visits_clusters_whose_border_is_as_near_as_a_pair_is_apart():
    """And no others."""
    centroids = np.array([[0, 0.5], [0.4, 0.5]], np.float32)  # the border is at 0.2
    sketches = np.array([[0.2 - 0.1 * (1 - 1e-4), 0.5], [0.2 - 0.1 * (1 + 1e-2), 0.5]], np.float32)
    assert visited_clusters(sketches, centroids, 0.1, 0.0) == {0: [0, 1], 1: [0]}


def test_a_row_at_the_threshold_itself_tells_the_group(tmp_path):
    config = settings_of(lay_out(tmp_path / "data", np.eye(4)[[0, 0, 1, 2]]), tmp_path / "work", threshold=1)
    run_scripts(config)
    [found] = ask(FinishedRun(config), SimpleNamespace(ids=["id-0"], vectors=None, lowest=None))
    [match] = found["matches"]
    assert (match["id"], match["similarity"], found["groups"]) == ("id-1", 1, [match["group"]])


def test_short_sketches_allow_for_rounding(tmp_path):
    """Of the tails, where it is what tells rows from others within reach."""
    rng, rows = np.random.default_rng(0), np.arange(200)
    stored = np.zeros((200, 12), np.float32)
    stored[:, 8:] = rng.normal(size=4) * rng.uniform(0.5, 0.501, (200, 1))  # whose short ones are no nearer
    ids = IdTable([pa.array(map(str, rows), pa.large_string())])
    (tmp_path / "clusters").mkdir()
    write_cluster(tmp_path / cluster_name(0), rows, stored, ids, rows)
    for query, reach in enumerate(np.linalg.norm(stored.astype(np.float64) - stored[100], axis=1)):
        [(_, places)] = near_in_short(SimpleNamespace(folder=tmp_path), 0, stored, np.array([query]), reach)[1]
        assert 100 in places


def test_ids_of_rows_that_were_left_out(tmp_path):
    """One that another row has, too, stands for that."""
    rows = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 1]]
    rows[[0, 3]] = 0
    lay_out(tmp_path / "data", rows, ids=["a", "a", "c", "d", "e"])
    config = settings_of(tmp_path / "data", tmp_path / "work", bad_rows="skip", duplicate_ids="allow")
    run_scripts(config)
    run = FinishedRun(config)
    assert run.rows_of(["e", "a", "c"]) == [("e", 4), ("a", 1), ("c", 2)]
    with pytest.raises(NeardupError, match="the row of id 'd' was left out of the run"):
        run.rows_of(["e", "d"])


def test_ids_that_the_terminal_cannot_show(tmp_path):
    lay_out(tmp_path / "data", np.eye(4, dtype=np.float32)[[0, 0, 1, 2]], ids=["é", "重複", "c", "d"])
    run_scripts(settings_of(tmp_path / "data", tmp_path / "work"))
    asked = [sys.executable, "-m", "neardup.query", "--ids", "é", f"--data-dir={tmp_path / 'data'}"]
    done = subprocess.run(
        [*asked, f"--work-dir={tmp_path / 'work'}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert '"\\u91cd\\u8907"' in done.stdout


@pytest.mark.parametrize("dim", [3, 64])
def test_a_query_finds_the_similarities_of_the_run_to_the_last_digit(tmp_path, dim):
    """So at that of a pair it finds the pair."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(5, dim))[rng.integers(0, 5, 150)] + 0.03 * rng.normal(size=(150, dim))).astype(np.float32)
    config = settings_of(lay_out(tmp_path / "data", rows), tmp_path / "work", threshold=0.9)
    run_scripts(config)
    run = FinishedRun(config)
    found = {}
    for query, (some, similarity) in enumerate(run.matches(rows)):
        found |= {(query, row): s for row, s in zip(some.tolist(), similarity.tolist(), strict=True)}
    pairs = {(a, b): s for a, b, s in zip(*(c.tolist() for c in found_pairs(config.work_dir)), strict=True)}
    assert len(pairs) > 1000
    assert {pair: found[pair] for pair in pairs} == {pair: found[pair[::-1]] for pair in pairs} == pairs
    for (a, b), at in [*pairs.items()][::50]:
        [(some, _)] = run.matches(rows[[a]], at)
        assert {*some.tolist()} == {row for (query, row), s in found.items() if query == a and s >= at} >= {b}


def test_a_damaged_stage_of_the_second_set_is_named(tmp_path):
    """Not the one that took the file over."""
    put(tmp_path / "a", "0", np.arange(0, 600))
    put(tmp_path / "b", "0", np.arange(500, 700))
    config = run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b")
    os.truncate(config.reference.work_dir / NAMES[0] / "n_components.json", 9)
    put(tmp_path / "a", "1", np.arange(700, 720))
    with pytest.raises(NeardupError, match=r"against/01_pca_variance/n_components.json is missing or not what"):
        run_scripts(config, SCRIPTS[:1])


def test_a_run_of_another_kind_is_not_replaced_in_silence(tmp_path, capsys):
    put(tmp_path / "a", "0", np.arange(0, 300))
    put(tmp_path / "b", "0", np.arange(200, 400))
    run_scripts(settings_of(tmp_path / "a", tmp_path / "work", **SETTINGS))
    assert "is replaced" not in capsys.readouterr().err
    run_against(tmp_path / "a", tmp_path / "work", tmp_path / "b")
    told = (
        f"{tmp_path}/work/{NAMES[0]} is of a run of one set alone, and is replaced: to keep it set another work_dir\n"
    )
    assert told in capsys.readouterr().err

"""A run that was killed, wherever that was, and started again leaves what an undisturbed one does."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import faiss
import h5py
import numpy as np
import pytest
from conftest import NOTES, SCRIPTS, brute_force, lay_out, no_pictures, pair_set, run_stages, tree_bytes, work_before

import faiss_04_neighbor_search
from config import ROOT
from neardup import NeardupError
from neardup.machine.checksums import digest_of_sources
from neardup.search import tasks, verification
from neardup.search.opened import Prepared
from neardup.stages.artifacts import STAGES

NAMES = list(STAGES)
SEARCH = "04_neighbor_search"
SETTINGS = {"threshold": 0.9, "n_clusters": 9, "audit_rows": 40}
FIRST = {"n_workers": 1, "memory_limit": "320MiB"}  # one task at a time: nothing goes on after what is killed


class Killed(BaseException):
    """Stands for the end of the process."""


def bundles(n=400, dim=64):
    """Rows around twelve directions: about 6,000 pairs at 0.9, all within these."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, dim))[rng.integers(0, 12, n)] + rng.normal(size=(n, dim)) * 0.15
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: `data` and `work`."""
    folder = tmp_path_factory.mktemp("whole")
    data = lay_out(folder / "data", bundles(), cuts=[150, 170])
    with no_pictures():  # and with as many workers, for BLAS threads round otherwise
        run_stages(data, folder / "work", **SETTINGS | {"n_workers": FIRST["n_workers"]})
    return folder


def run_stage(whole, name, work, **settings):
    run_stages(whole / "data", work, [STAGES[name][0]], **SETTINGS | settings)


def appearing(monkeypatch, run, stop=None):
    """Call run() and count the files that appear, {kind: how many}; a kind is a name without its numbers.

    stop: (kind, number) of the file that is written, but not yet in its place, when the run is killed.
    """
    replace, counts = os.replace, Counter()

    def count(source, target):
        kind = re.sub(r"\d+", "#", Path(target).name)
        if (kind, counts[kind]) == stop:
            raise Killed
        counts[kind] += 1
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed) if stop else nullcontext():
        patch.setattr(os, "replace", count)
        run()
    return counts


def results(folder):
    """All files of a stage's folder; of the manifest without `compared`, which says how hard it was."""
    found = tree_bytes(folder)
    manifest = json.loads(found.pop("manifest.json"))
    manifest["results"].pop("compared", None)
    return found, manifest


def killed_at_each_kind_of_file(monkeypatch, tmp_path, whole, name, first, then):
    """A stage killed in the middle of each kind of file that it writes, then started again, leaves the same bytes.

    Returns how many files of each kind there were.
    """
    undisturbed = work_before(name, whole, tmp_path / "undisturbed")
    counts = appearing(monkeypatch, partial(run_stage, whole, name, undisturbed, **first))
    for number, (kind, count) in enumerate(counts.items()):
        work = work_before(name, whole, tmp_path / str(number))
        appearing(monkeypatch, partial(run_stage, whole, name, work, **first), stop=(kind, count // 2))
        assert not (work / name).exists(), kind
        run_stage(whole, name, work, **then)
        assert results(work / name) == results(undisturbed / name), f"killed before a {kind}"
        assert {p.name for p in work.iterdir()} - NOTES == {*NAMES[: NAMES.index(name) + 1]}, kind
    return counts


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("03_kmeans", SEARCH)])
def test_a_stage_killed_anywhere(monkeypatch, tmp_path, whole, name):
    counts = killed_at_each_kind_of_file(monkeypatch, tmp_path, whole, name, FIRST, FIRST)
    assert len(counts) >= 5
    assert results(tmp_path / "undisturbed" / name) == results(whole / "work" / name)


MORE_TASKS, MORE_MEMORY = FIRST | {"n_workers": 16}, {"n_workers": 3, "memory_limit": "2GiB"}


@pytest.mark.parametrize(
    ("then", "cached"), [(MORE_TASKS, 1 << 30), (MORE_MEMORY, 0)], ids=["more tasks", "more memory, through files"]
)
def test_clusters_killed_anywhere_then_other_blocks(monkeypatch, tmp_path, whole, then, cached):
    monkeypatch.setattr("faiss_03_kmeans._CACHED", cached)
    counts = killed_at_each_kind_of_file(monkeypatch, tmp_path, whole, "03_kmeans", FIRST, then)
    assert counts["cluster_#.h#"] == SETTINGS["n_clusters"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (FIRST | {"audit_rows": 0}, MORE_TASKS | {"audit_rows": 0}),
        pytest.param(FIRST, MORE_MEMORY, marks=pytest.mark.long),
        pytest.param(FIRST | {"pairs": "joining"}, FIRST | {"pairs": "joining"}, marks=pytest.mark.long),
    ],
    ids=["more tasks", "more memory", "joining"],
)
def test_search_killed_anywhere_then_other_blocks(monkeypatch, tmp_path, whole, first, then):
    """While it prepares clusters, searches inside and across, verifies, joins, audits, and before its last word."""
    monkeypatch.setattr("neardup.search.tasks._LEAST_WORK", 0)
    monkeypatch.setattr(verification, "BLOCK_PAIRS", 256)
    counts = killed_at_each_kind_of_file(monkeypatch, tmp_path, whole, SEARCH, first, then)
    assert len(counts) >= 10
    assert sum(counts.values()) > 60
    if "pairs" not in first:
        assert pair_set(tmp_path / "undisturbed") == brute_force(bundles(), 0.9)[0]


@pytest.mark.parametrize("blocks", [1, 5])
def test_search_killed_while_it_computes_similarities(monkeypatch, tmp_path, whole, blocks):
    """After so many blocks; the next run has other tasks, other memory, and no audit that would notice."""
    monkeypatch.setattr(verification, "BLOCK_PAIRS", 256)
    work, similarity_of, calls = work_before(SEARCH, whole, tmp_path / "work"), verification.similarity_of, []

    def die_later(*arguments):
        calls.append(arguments)
        if len(calls) > blocks:
            raise Killed
        return similarity_of(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(verification, "similarity_of", die_later)
        run_stage(whole, SEARCH, work, audit_rows=0, **FIRST)
    run_stage(whole, SEARCH, work, audit_rows=0, **MORE_TASKS)
    neighbors = Path("work", SEARCH, "neighbors.h5")
    assert (tmp_path / neighbors).read_bytes() == (whole / neighbors).read_bytes()


KILL = """
import os, runpy, signal, sys
left, replace = int(sys.argv[1]), os.replace
def count(*paths):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace, sys.argv = count, sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("files", [7, 10, 17])
def test_a_process_with_many_threads_is_killed(tmp_path, whole, files):
    """By the system, among two clusters whose candidates take several files each; then all of them fit into one."""
    work = work_before("03_kmeans", whole, tmp_path / "work")
    settings = SETTINGS | {"n_clusters": 2}
    run_stages(whole / "data", work, SCRIPTS[2:3], **settings)
    arguments = ["--data-dir", whole / "data", "--work-dir", work, "--memory-limit", "320MiB", "--n-workers", 1024]
    arguments += [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    script = [sys.executable, "-c", KILL, files, ROOT / SCRIPTS[3], *arguments]
    done = subprocess.run(list(map(str, script)), cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run_stages(whole / "data", work, SCRIPTS[3:4], **settings, n_workers=1)
    for name in ("neighbors.h5", "audit.json"):
        assert (work / SEARCH / name).read_bytes() == (whole / "work" / SEARCH / name).read_bytes()


def rows_of_clusters(work):
    """The rows of each cluster file, in the order of their numbers."""
    found = []
    for path in sorted((work / "03_kmeans" / "clusters").iterdir()):
        with h5py.File(path) as file:
            found.append(file["row"][:].tolist())
    return found


def test_labels_stay_as_first_found(monkeypatch, tmp_path, whole):
    """A first try rounds otherwise: a row in seven goes to the second nearest centroid. Then it is killed.

    The files of both tries must be of one assignment, or rows are lost, and others in two clusters.
    """

    class Otherwise(faiss.IndexFlatL2):
        def search(self, rows, k):
            distances, labels = super().search(rows, k + 1)
            labels[::7, 0] = labels[::7, 1]
            return distances[:, :k], labels[:, :k]

    undisturbed, work = (work_before("03_kmeans", whole, tmp_path / name) for name in ("undisturbed", "work"))
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "IndexFlatL2", Otherwise)
        run_stage(whole, "03_kmeans", undisturbed, **FIRST)
        appearing(patch, partial(run_stage, whole, "03_kmeans", work, **FIRST), stop=("cluster_#.h#", 4))
    run_stage(whole, "03_kmeans", work, **MORE_MEMORY)
    labels = np.load(work / "03_kmeans" / "labels.npy")
    assert (labels != np.load(whole / "work" / "03_kmeans" / "labels.npy")).any()
    assert rows_of_clusters(work) == [np.nonzero(labels == c)[0].tolist() for c in range(SETTINGS["n_clusters"])]
    assert tree_bytes(work) == tree_bytes(undisturbed)


def no_search(*arguments):
    raise AssertionError("searched again")


@pytest.mark.parametrize(("earlier", "renames"), [(False, 0), (True, 0), (True, 1)])
def test_killed_between_the_last_word_and_publication(monkeypatch, tmp_path, whole, earlier, renames):
    """The next start publishes what is whole, without searching again. earlier: a result at another threshold."""
    work, rename, calls = work_before(SEARCH, whole, tmp_path / "work"), os.rename, []
    if earlier:
        run_stage(whole, SEARCH, work, threshold=0.95)

    def die_later(*paths):
        calls.append(paths)
        if len(calls) > renames:
            raise Killed
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", die_later)
        run_stage(whole, SEARCH, work)
    assert (work / f".{SEARCH}.partial" / "manifest.json").exists()
    published_without_a_search(monkeypatch, whole, work)


def published_without_a_search(monkeypatch, whole, work):
    """Start stages 4, which must not search, and 045 again: all is as in the undisturbed run. Returns its bytes."""
    with monkeypatch.context() as patch:
        patch.setattr(faiss_04_neighbor_search, "find_candidates", no_search)
        run_stage(whole, SEARCH, work)
    expected = tree_bytes(whole / "work" / SEARCH)
    assert {name: (work / SEARCH / name).read_bytes() for name in expected} == expected
    run_stage(whole, "045_merge", work)
    assert tree_bytes(work / "045_merge") == tree_bytes(whole / "work" / "045_merge")
    return expected


def die_while_removing(patch, folder):
    """Whoever removes a folder of this name is killed half way: every other file stays."""
    remove = shutil.rmtree

    def remove_some(path, *arguments, **options):
        if Path(path).name != folder or not Path(path).exists():
            return remove(path, *arguments, **options)
        files = sorted(p for p in Path(path).rglob("*") if p.is_file() and p.name != "begun.json")
        for file in files[::2]:
            file.unlink()
        raise Killed

    patch.setattr(shutil, "rmtree", remove_some)


@pytest.mark.parametrize("folder", ["parts", f".{SEARCH}.old"])
def test_killed_while_what_is_done_with_is_removed(monkeypatch, tmp_path, whole, folder):
    """Of a search that is published: its work in progress, or the earlier result that it replaced."""
    work = work_before(SEARCH, whole, tmp_path / "work")
    run_stage(whole, SEARCH, work, threshold=0.95)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_while_removing(patch, folder)
        run_stage(whole, SEARCH, work)
    expected = published_without_a_search(monkeypatch, whole, work)
    run_stage(whole, SEARCH, work, threshold=0.95)  # and it can be replaced
    run_stage(whole, SEARCH, work)
    assert tree_bytes(work / SEARCH) == expected


def test_killed_while_what_other_settings_began_is_removed(monkeypatch, tmp_path, whole):
    """A search is killed, another with other settings removes what is there and is killed, the first starts again."""
    work = work_before(SEARCH, whole, tmp_path / "work")
    appearing(monkeypatch, partial(run_stage, whole, SEARCH, work, **FIRST), stop=("audit.json", 0))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_while_removing(patch, f".{SEARCH}.removed")
        run_stage(whole, SEARCH, work, threshold=0.95)
    run_stage(whole, SEARCH, work)
    assert tree_bytes(work / SEARCH) == tree_bytes(whole / "work" / SEARCH)


def forget_a_pair(patch):
    """From now on the first pair that is verified is taken for none."""
    similarity_of, calls = verification.similarity_of, itertools.count()

    def forget(*arguments):
        similarity = similarity_of(*arguments)
        if next(calls) == 0:  # in one step, of whichever thread
            similarity[np.argmax(similarity)] = 0
        return similarity

    patch.setattr(verification, "similarity_of", forget)


@pytest.mark.parametrize("killed", [False, True], ids=["", "then killed"])
def test_a_failed_audit_leaves_nothing_to_go_on_with(monkeypatch, tmp_path, whole, killed):
    """killed: while what led to it is removed."""
    work = work_before(SEARCH, whole, tmp_path / "work")
    with monkeypatch.context() as patch:
        forget_a_pair(patch)
        if killed:
            die_while_removing(patch, f".{SEARCH}.removed")
        with pytest.raises(Killed if killed else NeardupError, match=None if killed else "1 missed and 0 false"):
            run_stage(whole, SEARCH, work, audit_rows=400)
    assert not (work / SEARCH).exists()
    assert killed or not (work / f".{SEARCH}.partial" / "parts").exists()
    run_stage(whole, SEARCH, work, audit_rows=400)
    neighbors = Path("work", SEARCH, "neighbors.h5")
    assert (tmp_path / neighbors).read_bytes() == (whole / neighbors).read_bytes()


@pytest.mark.parametrize("grows", [False, True])
def test_a_search_whose_visits_are_listed_anew_and_count_otherwise(monkeypatch, tmp_path, whole, grows):
    """As products of another processor may: the tasks across borders stay those of which some are done."""
    data, work, settings = tmp_path / "data", tmp_path / "work", SETTINGS | {"n_clusters": 40}
    shutil.copytree(whole / "data", data)
    if grows:
        run_stages(data, work, **settings)
        lay_out(data, bundles()[::3] * 1.01, ids=[f"more-{i}" for i in range(134)], stem="more")
    for name in ("_LEAST_WORK", "_OPENED"):
        monkeypatch.setattr(tasks, name, 1)
    run_stages(data, work, SCRIPTS[:3], **settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(faiss_04_neighbor_search, "verify_candidates", lambda *_: raise_killed())
        run_stages(data, work, SCRIPTS[3:4], **settings)
    done = sorted((work / f".{SEARCH}.partial" / "parts").glob("across_*_done.npy"))
    assert len(done) > 8
    for path in done[::2]:
        path.unlink()
    count = Prepared.count_visits
    monkeypatch.setattr(Prepared, "count_visits", lambda self, c: count(self, c) * np.arange(len(self.clusters)) ** 2)
    run_stages(data, work, SCRIPTS[3:4], **settings)
    rows = np.concatenate([np.load(data / name) for name in sorted(p.name for p in data.glob("*.npy"))])
    assert (pair_set(work), set()) == brute_force(rows, 0.9)


def raise_killed():
    raise Killed


@pytest.mark.parametrize("same", [True, False])
def test_work_in_progress_of_another_version_is_not_used(monkeypatch, tmp_path, whole, same):
    """It may cut its tasks otherwise; that of the same version is, which shows that it would be."""
    work = work_before(SEARCH, whole, tmp_path / "work")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(faiss_04_neighbor_search, "join_parts", lambda *_: raise_killed())
        run_stage(whole, SEARCH, work, audit_rows=0)
    for path in (work / f".{SEARCH}.partial" / "parts").glob("pairs_*.npy"):
        np.save(path, np.load(path)[:0])
    monkeypatch.setattr("neardup.stages.runs.digest_of_sources", lambda: digest_of_sources() if same else "another")
    run_stage(whole, SEARCH, work, audit_rows=0)
    assert pair_set(work) == (set() if same else pair_set(whole / "work"))


def test_a_shard_that_changes_while_a_run_that_grows_is_interrupted(monkeypatch, tmp_path):
    """Tasks are numbered by what is new, which then is another shard, too."""
    rows = np.random.default_rng(0).normal(size=(12_000, 8)).astype(np.float32)
    data, work, settings = tmp_path / "data", tmp_path / "work", {"bad_rows": "skip", "verify_input": True}
    run_stages(lay_out(data, rows[:9000]), work, SCRIPTS[:1], **settings)
    lay_out(data, rows[9000:], ids=[f"more-{i}" for i in range(3000)], stem="more")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("faiss_01_pca_variance.keep_repeated", lambda *_: raise_killed())
        run_stages(data, work, SCRIPTS[:1], **settings)
    path = data / "part_0.npy"
    state, every = path.stat(), -(-path.stat().st_size // 4096)
    [page, *_] = sorted({*range(every)} - {*np.linspace(0, every - 1, 64, dtype=int).tolist()})  # where no sample looks
    changed = np.load(path, mmap_mode="r+")
    changed[(page * 4096 - 128) // 32 + 1] = np.nan
    changed.flush()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    run_stages(data, work, SCRIPTS[:1], **settings)
    rejected = np.load(work / NAMES[0] / "rejected_rows.npy").tolist()
    assert rejected == [3000 + (page * 4096 - 128) // 32 + 1]


def test_what_is_left_of_an_earlier_result_does_not_come_back(tmp_path, whole):
    """When its stage is removed, to be made anew."""
    work = shutil.copytree(whole / "work", tmp_path / "work")
    shutil.copytree(work / NAMES[0], work / f".{NAMES[0]}.old")
    run_stage(whole, NAMES[1], work)
    shutil.rmtree(work / NAMES[0])
    with pytest.raises(NeardupError, match=f"{NAMES[0]} is missing: run faiss_01"):
        run_stage(whole, NAMES[1], work)

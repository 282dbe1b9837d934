"""A work folder behind a URL: the same files there, whatever this machine still has of other runs."""

import json
import os
import shutil
import threading
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import NOTES, SCRIPTS, answer, lay_out, run_scripts, run_stages, settings_of, tree_bytes
from dask import threaded

from neardup import NeardupError
from neardup.machine import mirror
from neardup.query import FinishedRun
from neardup.script import on_this_machine
from neardup.stages.artifacts import LEADING, STAGES

URL = "memory://bucket/work"


@pytest.fixture
def remote(monkeypatch):
    """An empty folder there."""
    monkeypatch.setattr(mirror, "_attached", {})
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def data(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    rows[200:250] = rows[:50] + 0.01
    return lay_out(tmp_path / "data", rows, cuts=[120])


def start(local):
    """What a script does first."""
    mirror.attach(local, URL, uuid4().hex, LEADING)


def run(data, local, scripts=SCRIPTS, **settings):
    start(local)
    run_stages(data, local, scripts, **{"threshold": 0.9, "n_clusters": 4, **settings})


def there(remote):
    """{name: content} of the remote folder, without notes."""
    found = {name.removeprefix("/bucket/work/"): file.getvalue() for name, file in remote.store.items()}
    return {name: content for name, content in found.items() if name.rpartition("/")[2] not in NOTES}


def test_files_are_the_same_there(remote, data, tmp_path):
    """Also when every script starts on a machine that has nothing."""
    for number, script in enumerate(SCRIPTS):
        mirror._attached.clear()
        run(data, tmp_path / f"machine-{number}", [script])
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=4)
    assert there(remote) == tree_bytes(tmp_path / "plain")


def test_a_run_grows_there(remote, data, tmp_path):
    """Each script on a machine that has nothing; what is taken over doesn't come by way of it."""
    run(data, tmp_path / "machine")
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=4)
    np.save(data / "part_9.npy", np.load(data / "part_0.npy")[:40] + np.float32(0.02))
    (data / "part_9.txt").write_text(json.dumps([f"more-{i}" for i in range(40)]))
    for number, script in enumerate(SCRIPTS):
        mirror._attached.clear()
        run(data, tmp_path / f"machine-{number}", [script])
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=4)
    assert there(remote) == tree_bytes(tmp_path / "plain")
    second = tmp_path / "machine-1" / "02_pca_reduce"
    assert (second / "sketch_00002.npy").exists()
    assert not (second / "sketch_00000.npy").exists()


def test_two_sets_there(remote, data, tmp_path):
    """Each script on a machine that has nothing; sketches of stage 1 don't come by way of stage 2's."""
    second = lay_out(tmp_path / "second", np.load(data / "part_0.npy")[:60] + np.float32(0.02))

    def run_both(local, script):
        config = settings_of(data, local, against_dir=second, threshold=0.9, n_clusters=4)
        for one in [config.reference, config] if script in SCRIPTS[:3] else [config]:
            run_scripts(one, [script])

    for number, script in enumerate(SCRIPTS):
        mirror._attached.clear()
        start(tmp_path / f"machine-{number}")
        mirror.attach(tmp_path / f"machine-{number}" / "against", f"{URL}/against", uuid4().hex, LEADING)
        run_both(tmp_path / f"machine-{number}", script)
        run_both(tmp_path / "plain", script)
    mirror._attached.clear()
    start(tmp_path / "last")
    found = mirror.here(tmp_path / "last" / "045_merge" / "contaminated.parquet")
    assert found.read_bytes() == (tmp_path / "plain" / "045_merge" / "contaminated.parquet").read_bytes()
    assert len(pq.read_table(found)) > 50
    assert [p.name for p in (tmp_path / "machine-1" / "02_pca_reduce").glob("sketch_*")] == ["sketch_00000.npy"]


def test_what_a_machine_has_of_another_run_is_not_used(remote, data, tmp_path):
    """One machine goes on with other settings; the first, which has the old files, comes back."""
    run(data, tmp_path / "first")
    mirror._attached.clear()
    run(data, tmp_path / "second", n_clusters=7)
    mirror._attached.clear()
    run(data, tmp_path / "first", SCRIPTS[3:], n_clusters=7)  # finished: so does nothing
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=7)
    assert there(remote) == tree_bytes(tmp_path / "plain")


def test_work_in_progress_of_another_run_is_not_used(remote, data, tmp_path):
    """It lies where this run's would: of another K, in a stage that was interrupted."""
    run(data, tmp_path / "other", SCRIPTS[:2])
    shutil.copytree(tmp_path / "other", tmp_path / "machine")
    old = tmp_path / "machine" / ".03_kmeans.partial"
    (old / "parts").mkdir(parents=True)
    (old / "begun.json").write_text("{}\n")
    np.save(old / "parts" / "centroids.npy", np.zeros((1, 17), dtype=np.float32))
    mirror._attached.clear()
    run(data, tmp_path / "machine")
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=4)
    assert there(remote) == tree_bytes(tmp_path / "plain")


@pytest.mark.parametrize(("name", "at"), [("03_kmeans", 0), *((name, 1) for name in STAGES)])
def test_a_publication_that_is_cut_off_is_completed(remote, data, tmp_path, monkeypatch, name, at):
    """Over an earlier result: before anything is copied, and before what decides is. From another machine."""
    run(data, tmp_path / "machine", sketch_dims=5, target_variance=0.9, random_state=1, audit_rows=9, grouping="star")
    stage, copy, calls = [*STAGES].index(name), type(remote).copy, []
    mirror._attached.clear()
    run(data, tmp_path / "machine", SCRIPTS[:stage])

    def cut_off(*arguments, **options):
        calls.append(arguments)
        if len(calls) > at:
            raise ConnectionError("gone")
        return copy(*arguments, **options)

    monkeypatch.setattr(type(remote), "copy", cut_off)
    with pytest.raises(NeardupError, match="ConnectionError: gone; mend that"):
        run(data, tmp_path / "machine", SCRIPTS[stage : stage + 1])
    assert f"/bucket/work/{name}/manifest.json" not in remote.store
    monkeypatch.undo()
    monkeypatch.setattr(mirror, "_attached", {})
    run(data, tmp_path / "another", SCRIPTS[stage:])
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=4)
    assert there(remote) == tree_bytes(tmp_path / "plain")


def test_what_could_not_be_put_there_is_made_again(remote, data, tmp_path, monkeypatch):
    """Each third file fails, once."""
    put, calls = type(remote).put_file, []

    def fail(self, source, name, **options):
        calls.append(name)
        if len(calls) % 3 == 0 and calls.count(name) == 1:
            raise ConnectionError("gone")
        return put(self, source, name, **options)

    monkeypatch.setattr(type(remote), "put_file", fail)
    for script in SCRIPTS:
        for _ in range(99):
            mirror._attached.clear()
            try:
                run(data, tmp_path / "machine", [script])
                break
            except NeardupError as error:
                assert "ConnectionError: gone; mend that, then start it again" in str(error)
                for pool in threaded.pools[threading.current_thread()].values():
                    pool.shutdown()  # as a process that ends: what else was being written is
                threaded.pools.clear()
    assert len(calls) > 60
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=4)
    assert there(remote) == tree_bytes(tmp_path / "plain")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_a_folder_of_somebody_else_is_not_used(remote, tmp_path):
    (tmp_path / "machine").mkdir()
    os.chown(tmp_path / "machine", 65534, -1)
    with pytest.raises(NeardupError, match="belongs to another user: set TMPDIR"):
        start(tmp_path / "machine")


def test_a_file_that_is_damaged_there_is_told(remote, data, tmp_path):
    run(data, tmp_path / "machine", SCRIPTS[:2])
    remote.pipe("/bucket/work/02_pca_reduce/sketch_00001.npy", b"other")
    mirror._attached.clear()
    with pytest.raises(NeardupError, match=r"memory://bucket/work/02_pca_reduce/sketch_00001\.npy is missing"):
        run(data, tmp_path / "another", SCRIPTS[2:3])


def test_a_manifest_that_is_damaged_there_is_named_by_its_url(remote, data, tmp_path):
    """And the folder to remove, for that of this machine would be fetched again."""
    run(data, tmp_path / "machine", SCRIPTS[:1])
    remote.pipe("/bucket/work/01_pca_variance/manifest.json", b"{")
    mirror._attached.clear()
    folder = "memory://bucket/work/01_pca_variance"
    with pytest.raises(NeardupError, match=rf"^{folder}/manifest.json is damaged \(.*\): remove {folder} and run"):
        run(data, tmp_path / "another", SCRIPTS[1:2])


def test_a_run_that_grows_there_ends_as_one_from_scratch(remote, data, tmp_path):
    """On a machine that has nothing of it."""
    run(data, tmp_path / "first")
    mirror._attached.clear()
    rows = np.random.default_rng(1).normal(size=(60, 16)).astype(np.float32)
    lay_out(data, rows, ids=[f"more-{i}" for i in range(60)], stem="more")
    run(data, tmp_path / "second")
    run_stages(data, tmp_path / "plain", threshold=0.9, n_clusters=4)
    assert answer(tmp_path / "second") == answer(tmp_path / "plain")
    mirror._attached.clear()
    start(tmp_path / "third")
    assert mirror.here(tmp_path / "third" / "045_merge" / "keep.txt").read_text().count("more-") > 50


def test_a_query_of_a_run_there(remote, data, tmp_path):
    """On a machine that has nothing of it."""
    run(data, tmp_path / "machine")
    mirror._attached.clear()
    there = on_this_machine(settings_of(data, URL, threshold=0.9, n_clusters=4))
    rows = np.concatenate([np.load(path) for path in sorted(data.glob("*.npy"))])
    [(found, _)] = FinishedRun(there).matches(rows[3:4])
    assert found.tolist() == [3, 203]


def test_a_folder_that_could_not_be_compared_is_not_attached(remote, data, tmp_path, monkeypatch):
    """So whoever is next compares it."""
    run(data, tmp_path / "machine", SCRIPTS[:2])
    stale = tmp_path / "other" / "02_pca_reduce"
    stale.mkdir(parents=True)
    (stale / "manifest.json").write_text("{}")
    mirror._attached.clear()
    with monkeypatch.context() as patch, pytest.raises(NeardupError):
        patch.setattr(mirror, "_read", lambda path: (_ for _ in ()).throw(NeardupError("gone")))
        start(tmp_path / "other")
    start(tmp_path / "other")
    there = remote.store["/bucket/work/02_pca_reduce/manifest.json"].getvalue()
    assert mirror.here(stale / "manifest.json").read_bytes() == there

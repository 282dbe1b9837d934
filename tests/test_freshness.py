"""What has changed is made anew, what hasn't isn't: settings, input, artifacts. One script at a time."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import (
    SCRIPTS,
    answer,
    command,
    finished_run,
    lay_out,
    no_pictures,
    read_ids,
    run_stages,
    settings_of,
    tree_bytes,
    until,
)

import faiss_01_pca_variance
import faiss_04_neighbor_search
from config import ROOT
from neardup import NeardupError
from neardup.input import embeddings
from neardup.input.embeddings import open_shards, piece_groups, pieces
from neardup.input.formats.by_suffix import blocks
from neardup.input.freshness import read_content
from neardup.input.shards import find_shards
from neardup.machine.checksums import digest_of_file
from neardup.stages.artifacts import STAGES, Stage
from neardup.stages.manifests import write_manifest
from neardup.stages.runs import open_finished

NAMES = list(STAGES)
SETTINGS = {"threshold": 0.9, "n_clusters": 3, "audit_rows": 20}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 6,000 rows, so that samples don't see all of a shard: `data` and `work`."""
    with no_pictures():
        return finished_run(tmp_path_factory.mktemp("whole"), (6000, 32), 100, 5000, **SETTINGS)


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, times included."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def again(folder, scripts=SCRIPTS, **settings):
    run_stages(folder / "data", folder / "work", scripts, **SETTINGS | settings)


def inodes(folder):
    """Every file of the stages, with what changes when it is written anew."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for name in NAMES for p in (folder / "work" / name).rglob("*")}


def poke(path, at, keep_times=True):
    """Change a byte of a file."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_touched_but_unchanged_input_redoes_nothing(copy):
    before = inodes(copy)
    for path in (copy / "data").iterdir():
        path.touch()
    again(copy)
    assert inodes(copy) == before


def test_touched_input_is_read_once(copy, monkeypatch):
    """And not by every script after that."""
    for path in (copy / "data").iterdir():
        path.touch()
    again(copy, SCRIPTS[:1])
    monkeypatch.setattr("neardup.input.freshness.read_content", None)
    again(copy)


def test_input_without_a_note_on_its_times_is_read(copy):
    before = inodes(copy)
    for content in (None, "{", "[]", '{"part_0.npy": 3}'):
        (copy / "work" / ".input.json").unlink()
        if content:
            (copy / "work" / ".input.json").write_text(content)
        again(copy)
        assert inodes(copy) == before


@pytest.mark.parametrize("at", [-1, 128], ids=["last byte", "first byte"])
def test_a_change_that_samples_see_is_noticed_at_the_same_size_and_time(copy, at):
    shard = copy / "data" / "part_0.npy"
    poke(shard, at % shard.stat().st_size)
    with pytest.raises(NeardupError, match=r"from other input \(part_0.npy changed\): run faiss_01"):
        again(copy, SCRIPTS[1:])


UNSEEN = 128 + 32 * 4 * 60  # between two samples of part_0.npy


@pytest.mark.parametrize("stage", range(5))
def test_a_change_between_the_samples_is_noticed_by_its_time(copy, stage):
    poke(copy / "data" / "part_0.npy", UNSEEN, keep_times=False)
    if stage:
        with pytest.raises(NeardupError, match=r"from other input \(part_0.npy changed\): run faiss_01"):
            again(copy, SCRIPTS[stage : stage + 1])
    again(copy)
    fresh = copy.with_name("fresh")
    run_stages(copy / "data", fresh, **SETTINGS)
    assert answer(copy / "work") == answer(fresh)


def test_stages_of_earlier_input_that_come_back_are_not_used(copy):
    """Though the note on times, which did not come back, says that the input is as it was last read."""
    shutil.copytree(copy / "work", copy / "backup")
    poke(copy / "data" / "part_0.npy", UNSEEN, keep_times=False)
    again(copy)
    for name in NAMES:
        shutil.rmtree(copy / "work" / name)
        shutil.copytree(copy / "backup" / name, copy / "work" / name)
    with pytest.raises(NeardupError, match=r"from other input \(part_0.npy changed\): run faiss_01"):
        again(copy, SCRIPTS[1:2])


def test_a_change_between_the_samples_at_the_same_time_is_noticed_if_all_is_hashed(copy):
    poke(copy / "data" / "part_0.npy", UNSEEN)
    before = inodes(copy)
    again(copy)
    assert inodes(copy) == before
    with pytest.raises(NeardupError, match=r"from other input \(part_0.npy changed\): run faiss_01"):
        again(copy, SCRIPTS[1:], verify_input=True)
    again(copy, verify_input=True)
    assert inodes(copy) != before


def test_changed_ids_are_noticed(copy):
    path = copy / "data" / "part_1.txt"
    text = path.read_text()
    path.write_text(text.replace('"id-5500"', '"id-550x"'))
    with pytest.raises(NeardupError, match=r"part_1\.npy changed"):
        again(copy, SCRIPTS[1:])


@pytest.mark.parametrize(
    ("setting", "value", "first"),
    [
        ("threshold", 0.95, 3),
        ("audit_rows", 10, 3),
        ("n_clusters", 4, 2),
        ("sketch_dims", 7, 1),
        ("target_variance", 0.9, 0),
    ],
)
def test_a_changed_setting_redoes_the_stages_it_concerns(copy, setting, value, first):
    before = inodes(copy)
    again(copy, **{setting: value})
    changed = {p.relative_to(copy / "work").parts[0] for p in before if before[p] != inodes(copy).get(p)}
    assert changed == {*NAMES[first:]}


@pytest.mark.parametrize("stage", range(5))
def test_input_that_changes_while_it_is_read(copy, monkeypatch, stage):
    """No result is published; then all is made anew."""
    shutil.rmtree(copy / "work" / NAMES[stage])
    check, shard = Stage._check_input, copy / "data" / "part_0.npy"

    def change_first(*arguments):
        poke(shard, UNSEEN, keep_times=False)
        check(*arguments)

    with monkeypatch.context() as patch, pytest.raises(NeardupError, match="changed while it was read: run faiss_01"):
        patch.setattr(Stage, "_check_input", change_first)
        again(copy, SCRIPTS[stage : stage + 1])
    assert not (copy / "work" / NAMES[stage]).exists()
    again(copy)
    fresh = copy.with_name("fresh")
    run_stages(copy / "data", fresh, **SETTINGS)
    assert answer(copy / "work") == answer(fresh)


def test_pairs_that_are_missed_because_the_input_changed(copy, monkeypatch):
    """Of which the audit tells nothing else."""
    shutil.rmtree(copy / "work" / NAMES[3])
    audit, shard = faiss_04_neighbor_search.audit_pairs, copy / "data" / "part_0.npy"

    def change_first(*arguments):
        np.save(shard, np.load(shard)[::-1])
        return audit(*arguments) | {"missed": 1}

    monkeypatch.setattr(faiss_04_neighbor_search, "audit_pairs", change_first)
    with pytest.raises(NeardupError, match=r"\(part_0.npy\) changed while it was read: run faiss_01"):
        again(copy, SCRIPTS[3:4])


def test_input_that_is_touched_while_it_is_read(copy, monkeypatch):
    shutil.rmtree(copy / "work" / NAMES[0])
    read = embeddings.RowFiles.read

    def touch(self, start, stop):
        self.layouts[0].path.touch()
        return read(self, start, stop)

    monkeypatch.setattr(embeddings.RowFiles, "read", touch)
    again(copy, SCRIPTS[:1])
    assert (copy / "work" / NAMES[0] / "manifest.json").exists()


READ_BY = {  # file of a stage, which later script reads it
    "01_pca_variance/n_components.json": 1,
    "01_pca_variance/moments.npz": 1,
    "01_pca_variance/ids.arrow": 2,
    "01_pca_variance/rejected_rows.npy": 2,
    "01_pca_variance/repeated_rows.npy": 3,
    "02_pca_reduce/sketch_00000.npy": 2,
    "03_kmeans/centroids.npy": 3,
    "03_kmeans/labels.npy": 3,
    "03_kmeans/clusters/cluster_00001.h5": 3,
    "04_neighbor_search/neighbors.h5": 4,
}


@pytest.mark.parametrize("how", ["changed", "cut", "removed"])
@pytest.mark.parametrize("name", READ_BY)
def test_a_damaged_artifact_is_not_used(copy, name, how):
    path, script = copy / "work" / name, READ_BY[name]
    for stage in NAMES[script:]:
        shutil.rmtree(copy / "work" / stage)
    size = path.stat().st_size
    if how == "changed":
        poke(path, size // 2)
    elif how == "cut":
        os.truncate(path, size // 2)
    else:
        path.unlink()
    stage = NAMES.index(name.split("/")[0])
    with pytest.raises(NeardupError, match=f"{path.name} is missing or not what {SCRIPTS[stage]} wrote: remove"):
        again(copy, SCRIPTS[script : script + 1])
    shutil.rmtree(copy / "work" / NAMES[stage])  # as the message says
    again(copy)


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_manifest_with_other_numbers_is_not_used(copy, name):
    """Such as another error of the sketch, which would lose pairs."""
    path = copy / "work" / name / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"rows": 6000', '"rows": 6001'))
    assert path.read_text() != text
    with pytest.raises(NeardupError, match=r"manifest.json is damaged: remove .* and run the scripts again"):
        again(copy, SCRIPTS[4:])


def test_a_stage_made_of_other_files_of_the_one_before_is_not_used(copy):
    """Though settings and input are the same, as where cores are others."""
    path = copy / "work" / NAMES[2] / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    manifest["files"]["centroids.npy"] = "another"
    write_manifest(path, manifest)
    with pytest.raises(NeardupError, match="from an earlier stage that has changed since: run faiss_04"):
        again(copy, SCRIPTS[4:])


def test_a_file_that_a_manifest_does_not_list_is_not_used(tmp_path):
    stage = Stage(NAMES[2], tmp_path, {}, {"results": {}, "files": {}})
    (tmp_path / "labels.npy").touch()
    for read in (stage.path, lambda name: stage.paths([name], 1)):
        with pytest.raises(NeardupError, match=f"labels.npy is missing or not what {SCRIPTS[2]} wrote"):
            read("labels.npy")


def test_the_manifest_says_what_each_file_holds(whole):
    for name in NAMES:
        folder = whole / "work" / name
        files = json.loads((folder / "manifest.json").read_text())["files"]
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert {*files} == found - {"manifest.json", "times.json", "report.html"}
        assert all(digest_of_file(folder / file) == digest for file, digest in files.items())


def test_a_second_run_on_one_folder_leaves(copy, tmp_path):
    """The first waits for its input, a pipe. The second says who is at work, and does nothing."""
    shutil.rmtree(copy / "work" / NAMES[0])
    (copy / "data" / "part_1.txt").unlink()
    os.mkfifo(copy / "data" / "part_1.txt")
    options = ["--data-dir", copy / "data", "--work-dir", copy / "work"]
    first = subprocess.Popen([sys.executable, ROOT / SCRIPTS[0], *map(str, options)], stderr=subprocess.DEVNULL)
    try:
        until((copy / "work" / ".lock.json").exists, first)
        before = tree_bytes(copy / "work")
        second = command(SCRIPTS[4], *options)
        assert second.returncode == 1
        said = rf"is in use by {SCRIPTS[0]} \(process {first.pid} on .*, since 20.*\): wait"
        assert re.search(said, second.stderr)
        assert second.stderr.count("\n") == 1
        assert tree_bytes(copy / "work") == before
    finally:
        first.kill()
        first.wait()
    # the lock of one that died is no lock
    (copy / "data" / "part_1.txt").unlink()
    (copy / "data" / "part_1.txt").write_text(json.dumps([f"id-{i}" for i in range(5000, 6000)]))
    assert command(SCRIPTS[0], *options).returncode == 0


LONG = "numpy.linalg.svd(numpy.random.default_rng(0).normal(size=(6000, 6000)))"  # a minute in which Python has no say
LONG_AT = {
    0: (f"import numpy; numpy.linalg.eigh = lambda c: {LONG}", "rejected_rows.npy"),
    1: (f"import numpy, neardup.search.geometry; neardup.search.geometry.project = lambda *_: {LONG}", "begun.json"),
    2: (f"import numpy, faiss; faiss.Kmeans.train = lambda *_: {LONG}", "begun.json"),
}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.long) for stage in (1, 2))])
def test_a_signal_ends_a_script_soon(copy, stage, number, status):
    """Within two seconds, though a library computes; with a line that says how to go on."""
    for name in NAMES[stage:]:
        shutil.rmtree(copy / "work" / name)
    wait, file = LONG_AT[stage]
    run = f"{wait}; import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    options = [ROOT / SCRIPTS[stage], "--data-dir", copy / "data", "--work-dir", copy / "work"]
    process = subprocess.Popen(
        [sys.executable, "-c", run, *map(str, options)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    until((copy / "work" / f".{NAMES[stage]}.partial" / file).exists, process)
    time.sleep(1)
    started = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    elapsed_s = time.monotonic() - started
    assert process.returncode == status
    assert said.count("\n") == 1
    assert "start it again to go on" in said
    print(f"ended after {elapsed_s:.2f} s")
    assert elapsed_s < 20  # two seconds, and patience with a busy machine; the computation takes longer
    assert command(*options).returncode == 0


def test_a_disk_without_room_is_named_before_anything_is_written(copy, monkeypatch):
    usage = shutil.disk_usage(copy)
    for stage, name in enumerate(NAMES):
        shutil.rmtree(copy / "work" / name)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
            with pytest.raises(NeardupError, match=r"needs about .* [kM]B more, and its disk has 1 kB free: make"):
                again(copy, SCRIPTS[stage : stage + 1])
        again(copy, SCRIPTS[stage : stage + 1])


def test_a_disk_without_room_for_all_pairs_is_named_before_they_are_written(copy, monkeypatch):
    expected = tree_bytes(copy / "work" / NAMES[3])
    shutil.rmtree(copy / "work" / NAMES[3])
    with monkeypatch.context() as patch:
        patch.setattr("faiss_04_neighbor_search.BYTES_A_PAIR", 10**15)
        with pytest.raises(NeardupError, match=r"needs about 100,000 TB more, and its disk has"):
            again(copy, SCRIPTS[3:4])
    again(copy, SCRIPTS[3:4])
    assert tree_bytes(copy / "work" / NAMES[3]) == expected


def test_small_shards_are_read_together(tmp_path):
    """What is kept for a task is larger than they are."""
    cuts = np.cumsum(np.random.default_rng(0).integers(0, 9, 200))
    rows = np.arange(2 * (cuts[-1] + 100_000), dtype=np.float32).reshape(-1, 2)
    shards = open_shards(find_shards(lay_out(tmp_path, rows, cuts=cuts.tolist())))
    found = piece_groups(shards)
    assert len(found) == 5 and len(found[0]) == 200  # the large one has four pieces
    assert [row for some in found for piece in some for row in range(*piece[1:])] == list(range(len(rows)))
    assert all(sum(stop - start for _, start, stop in some) <= 65_536 for some in found)


@pytest.mark.parametrize(
    ("shards", "dim", "counts"),
    [
        ([4_000] * 10, 4096, [20_000] * 2),  # as equal as they can be
        ([10**6], 1024, [32_259] + [64_516] * 14 + [64_517]),  # of pieces of a little over half of an equal part
        ([65_536] * 3, 64, [32_768] * 6),
    ],
)
def test_tasks_are_as_few_as_go_and_as_equal(shards, dim, counts):
    some = [sum(p.stop - p.start for p in group) for group in piece_groups(CountedRows(shards, dim))]
    assert sorted(some) == counts


class CountedRows:
    """Stands for `RowFiles` of which none is there."""

    def __init__(self, shards, dim):
        self.starts, self.dim = np.cumsum([0, *shards]), dim

    def __len__(self):
        return int(self.starts[-1])


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def small_pieces(monkeypatch):
    """Shards read in several pieces, each a task."""
    monkeypatch.setattr("neardup.input.embeddings.PIECE_ROWS", 700)
    monkeypatch.setattr(faiss_01_pca_variance, "piece_groups", lambda rows, _=None: [[p] for p in pieces(rows.starts)])


def test_only_what_was_not_read_is_read_after_a_kill(copy, monkeypatch, small_pieces):
    """Of stage 1: the pieces that are in files already."""
    shutil.rmtree(copy / "work")
    add, calls = faiss_01_pca_variance.Moments.add, []

    def count(stop_after, moments, values, *others):
        calls.append(len(values))
        if len(calls) > stop_after:
            raise Killed
        return add(moments, values, *others)

    monkeypatch.setattr(faiss_01_pca_variance.Moments, "add", lambda *a: count(4, *a))
    with pytest.raises(Killed):
        again(copy, SCRIPTS[:1], n_workers=1)
    done, calls[:] = sum(calls[:4]), []
    monkeypatch.setattr(faiss_01_pca_variance.Moments, "add", lambda *a: count(1000, *a))
    again(copy, SCRIPTS[:1], n_workers=1)
    assert done > 0
    assert sum(calls) == 6000 - done


def test_what_was_read_of_a_shard_that_changed_since_is_read_again(copy, monkeypatch, small_pieces):
    """Where stage 1 was killed in between, and no sample shows the change."""
    shutil.rmtree(copy / "work")
    add, calls = faiss_01_pca_variance.Moments.add, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise Killed
        return add(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(faiss_01_pca_variance.Moments, "add", killed)
        again(copy, SCRIPTS[:1], n_workers=1)
    poke(copy / "data" / "part_0.npy", UNSEEN, keep_times=False)
    for work in ("work", "fresh"):
        run_stages(copy / "data", copy / work, SCRIPTS[:1], **SETTINGS, n_workers=1)
    one, other = (np.load(copy / work / NAMES[0] / "moments.npz")["covariance"] for work in ("work", "fresh"))
    assert one.tolist() == other.tolist()


def test_a_folder_of_shards_that_is_renamed(tmp_path):
    """Rows that are numbered have its name."""
    lay_out(tmp_path / "data" / "a", np.eye(4, dtype=np.float32))
    for path in (tmp_path / "data").rglob("*.txt"):
        path.unlink()
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:2], shard_pattern="**/*.npy")
    (tmp_path / "data" / "a").rename(tmp_path / "data" / "b")
    with pytest.raises(NeardupError, match="from other input"):
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[1:2], shard_pattern="**/*.npy")
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1], shard_pattern="**/*.npy")
    assert read_ids(tmp_path / "work")[0] == "b/part_0:0"


def with_table(folder, name, **columns):
    """Nine rows, and such a table of them."""
    data = lay_out(folder, np.eye(9, dtype=np.float32))
    (data / "part_0.txt").unlink()
    pq.write_table(pa.table({"id": [f"{name}{i}" for i in range(9)], **columns}), data / "part_0.parquet")
    return data


def test_ids_of_a_table_that_change_while_rows_are_read(tmp_path, monkeypatch):
    """Nothing is published with ids that aren't those of the input when the script ends."""
    data, digests_of = with_table(tmp_path / "data", "a"), faiss_01_pca_variance.content

    def change_first(*arguments):
        with_table(tmp_path / "data", "b")
        return digests_of(*arguments)

    with monkeypatch.context() as patch, pytest.raises(NeardupError, match="changed while it was read: run faiss_01"):
        patch.setattr(faiss_01_pca_variance, "content", change_first)
        run_stages(data, tmp_path / "work", SCRIPTS[:1])
    assert not (tmp_path / "work" / NAMES[0]).exists()
    run_stages(data, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == [f"b{i}" for i in range(9)]


def test_ids_of_a_table_that_change_at_the_same_size_and_time(tmp_path):
    """Where a sample sees it; another column that changes is nothing."""
    data, work = with_table(tmp_path / "data", "a", other=[1] * 9), tmp_path / "work"
    run_stages(data, work, SCRIPTS[:2])
    before, times = (
        tree_bytes(work / NAMES[1]),
        {p: (p.stat().st_atime_ns, p.stat().st_mtime_ns) for p in data.iterdir()},
    )

    def rewrite(name, other):
        with_table(tmp_path / "data", name, other=[other] * 9)
        for path, of_path in times.items():  # the vectors', too, which are written anew
            os.utime(path, ns=of_path)

    rewrite("a", 2)
    run_stages(data, work, SCRIPTS[:2])
    assert tree_bytes(work / NAMES[1]) == before
    rewrite("b", 1)
    with pytest.raises(NeardupError, match=r"part_0\.npy changed"):
        run_stages(data, work, SCRIPTS[1:2])
    run_stages(data, work, SCRIPTS[:1])
    assert read_ids(work) == [f"b{i}" for i in range(9)]


def test_ids_of_a_table_are_told_apart_by_where_each_ends(tmp_path):
    """Not just by what they are, one after another."""
    found = []
    for ids in (["ab", "c"], ["a", "bc"], ["abc", ""]):
        np.save(tmp_path / "p.npy", np.eye(2))
        pq.write_table(pa.table({"id": ids}), tmp_path / "p.parquet")
        found += read_content(find_shards(tmp_path), 1)
    assert [rows for rows, _ in found] == [found[0][0]] * 3
    assert len({ids for _, ids in found}) == 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ids_of_a_table_are_told_apart_in_every_block(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("neardup.input.ids.BLOCK_ROWS", 4)
    np.save(tmp_path / "p.npy", np.eye(10))
    write, found = pyarrow.csv.write_csv if suffix == ".csv" else pq.write_table, []
    for changed in range(11):
        ids = [f"{row}" if row == changed else f"id-{row}" for row in range(10)]
        write(pa.table({"id": ids}), tmp_path / f"p{suffix}")
        found += read_content(find_shards(tmp_path), 1)
    assert len({ids for _, ids in found}) == 11


def test_what_shards_hold_is_told_by_every_row(tmp_path):
    """Of shards of several pieces, and of those that follow them."""
    rows, starts = np.random.default_rng(0).normal(size=(18_500, 2)).astype(np.float32), (0, 9000, 18_400)
    shards = find_shards(lay_out(tmp_path, rows, cuts=starts[1:]))
    assert len(pieces([*starts, len(rows)])) == 5
    before = read_content(shards, 1)
    for row in (0, 4499, 4500, 8999, 9000, 13_699, 13_700, 18_399, 18_400, 18_499):
        changed = rows.copy()
        changed[row] *= -1
        lay_out(tmp_path, changed, cuts=starts[1:])
        different = [now != then for now, then in zip(read_content(shards, 1), before, strict=True)]
        assert different == [low <= row < high for low, high in pairwise([*starts, len(rows)])]


def test_who_holds_no_lock_notes_nothing(copy):
    """A query of touched input, which it reads."""
    note = copy / "work" / ".input.json"
    before = note.read_bytes()
    for path in (copy / "data").iterdir():
        path.touch()
    open_finished(settings_of(copy / "data", copy / "work", **SETTINGS))
    assert note.read_bytes() == before
    again(copy)
    assert note.read_bytes() != before


@pytest.mark.parametrize("seen", [True, False], ids=["a sample sees it", "none does"])
def test_a_decoded_shard_that_changes_at_the_same_size_and_time(tmp_path, seen):
    rows, data, work = (
        np.random.default_rng(0).normal(size=(6000, 32)).astype(np.float32),
        tmp_path / "data",
        tmp_path / "work",
    )
    data.mkdir()
    path = data / "a.arrow"

    def write():
        table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 32)})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    write()
    run_stages(data, work, SCRIPTS[:2], **SETTINGS)
    state, first = path.stat(), path.read_bytes().index(rows[0].tobytes())
    between = max(range(6000), key=lambda row: np.abs(np.arange(64) * state.st_size / 63 - first - 128 * row).min())
    rows[5999 if seen else between] *= -1
    write()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    if not seen:
        run_stages(data, work, SCRIPTS[1:2], **SETTINGS)
    with pytest.raises(NeardupError, match=r"a\.arrow changed"):
        run_stages(data, work, SCRIPTS[1:2], verify_input=not seen, **SETTINGS)


def test_a_shard_that_changes_while_it_is_decoded(tmp_path, monkeypatch):
    data, rows = tmp_path / "data", np.random.default_rng(0).normal(size=(50, 8))
    data.mkdir()
    np.savez_compressed(data / "part_0.npz", vectors=rows)

    def change_last(path, *how):
        yield from blocks(path, *how)
        np.savez_compressed(path, vectors=rows[::-1])

    with monkeypatch.context() as patch, pytest.raises(NeardupError, match="changed while it was read: run the script"):
        patch.setattr("neardup.input.copies.blocks", change_last)
        run_stages(data, tmp_path / "work", SCRIPTS[:1])
    run_stages(data, tmp_path / "work", SCRIPTS[:1])
    [copied] = (tmp_path / "work" / "input").rglob("*.npy")
    assert np.array_equal(np.load(copied), rows[::-1])


def test_copies_of_shards_that_are_gone_go(tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    for number in range(3):
        pq.write_table(pa.table({"embedding": np.eye(5, dtype=np.float32).tolist()}), data / f"{number}.parquet")
    run_stages(data, work, SCRIPTS[:1], duplicate_ids="allow")
    (data / "1.parquet").unlink()
    run_stages(data, work, SCRIPTS[:1], duplicate_ids="allow")
    left = sorted(path.name for path in (work / "input").rglob("*") if path.is_file())
    assert left == ["0.parquet.npy", "0.parquet.npy.json", "2.parquet.npy", "2.parquet.npy.json"]


def test_files_that_are_gone_are_told_of(copy, capsys):
    for name in ("keep.txt", "groups.parquet"):
        (copy / "work" / NAMES[4] / name).unlink()
    again(copy)
    assert (
        f"{copy}/work/045_merge lacks groups.parquet, keep.txt: remove it to have all made again\n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("most", "said"), [(1 << 26, 1), (1, 0)])
def test_results_that_are_others_are_told_of(copy, capsys, monkeypatch, most, said):
    """As a list that was emptied, of which a later script would see nothing; but for large files."""
    monkeypatch.setattr("neardup.stages.artifacts._NOT_LARGE", most)
    (copy / "work" / NAMES[4] / "keep.txt").write_text("one row\n")
    again(copy)
    told = f"{copy}/work/045_merge holds others than were written (keep.txt): remove it to have all made again\n"
    assert capsys.readouterr().err.count(told) == said


def test_what_differs_of_the_shards_is_said(tmp_path):
    """Which changed, came and went."""
    parts = lay_out(tmp_path / "data", np.eye(8, dtype=np.float32), [2, 4, 6])
    run_stages(parts, tmp_path / "work", SCRIPTS[:1])
    np.save(parts / "part_0.npy", np.eye(8, dtype=np.float32)[:1])
    (parts / "part_0.txt").write_text('["one"]')
    for suffix in (".npy", ".txt"):
        (parts / f"part_1{suffix}").rename(parts / f"part_9{suffix}")
    said = r"from other input \(part_0.npy changed; part_9.npy came; part_1.npy went\): run faiss_01"
    with pytest.raises(NeardupError, match=said):
        run_stages(parts, tmp_path / "work", SCRIPTS[1:2])

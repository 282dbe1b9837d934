"""Whatever is wrong with the input or the settings: one line, the right exit status, and no damage."""

import contextlib
import csv
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import (
    EXAMPLE,
    SCRIPTS,
    answer,
    command,
    lay_out,
    pair_set,
    read_ids,
    run_stages,
    settings_of,
    tree_bytes,
    write_hole,
)  # fmt: skip

from config import ROOT, Config
from faiss_04_neighbor_search import read_labels
from neardup import NeardupError, query
from neardup.input.embeddings import RowFiles, open_shards
from neardup.input.shards import find_shards
from neardup.search.clusters import data_sets
from neardup.stages.artifacts import STAGES
from neardup.stages.runs import open_finished


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small finished run: 30 rows in two shards."""
    folder = tmp_path_factory.mktemp("good")
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    run_stages(lay_out(folder / "data", rows, cuts=[10]), folder / "work")
    return folder


def change_ids(data, change):
    path = data / "part_1.txt"
    ids = json.loads(path.read_text())
    path.write_text(json.dumps(change(ids)))


def change_rows(data, change):
    path = data / "part_1.npy"
    rows = np.load(path)
    rows = change(rows)
    np.save(path, rows, allow_pickle=True)


def poke(value):
    def change(rows):
        rows[3] = value
        return rows

    return change


def nan_in_one_value(rows):
    rows[3, 5] = np.nan
    return rows


def change_header(data, old, new):
    """Put other words into the header of a shard of 20 rows of 8 float32."""
    path = data / "part_1.npy"
    content = path.read_bytes()
    length = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + length]
    assert old in header
    header = header.replace(old, new)
    path.write_bytes(content[:8] + len(header).to_bytes(2, "little") + header + content[10 + length :])


def change_version(data, major, minor):
    path = data / "part_1.npy"
    content = path.read_bytes()
    path.write_bytes(content[:6] + bytes([major, minor]) + content[8:])


BAD_DATA = {
    "id count": (lambda d: change_ids(d, lambda i: i[:-1]), "part_1.txt lists 19 ids but part_1.npy has 20 rows"),
    "ids missing": (lambda d: (d / "part_1.txt").unlink(), "part_1.txt is missing"),
    "ids of a shard that isn't there": (
        lambda d: (d / "part_2.txt").write_text("[]"),
        "part_2.txt is there, but part_2.npy, whose ids it lists, is not",
    ),
    "ids not JSON": (
        lambda d: (d / "part_1.txt").write_text("a\nb\n"),
        "part_1.txt has 2 lines, not 20: write a JSON list ",
    ),
    "ids of one line": (
        lambda d: (d / "part_1.txt").write_text("a\n"),
        "part_1.txt has 1 line, not 20: write a JSON list of the 20 ids of part_1.npy, or one id a line",
    ),
    "ids empty": (lambda d: (d / "part_1.txt").write_text(""), "part_1.txt has 0 lines, not 20: "),
    "ids not UTF-8": (lambda d: (d / "part_1.txt").write_bytes(b'["\xff"]'), "part_1.txt is not JSON in UTF-8"),
    "ids no list": (lambda d: change_ids(d, lambda i: dict.fromkeys(i)), "part_1.txt holds a JSON dict, not a list"),
    "id no string": (lambda d: change_ids(d, lambda i: [None, *i[1:]]), "part_1.txt: id 0 (None) is not a string"),
    "id true": (
        lambda d: change_ids(d, lambda i: [*i[:-1], True]),
        "part_1.txt: id 19 (True) is not a string of valid",
    ),
    "id half a character": (
        lambda d: (d / "part_1.txt").write_text('["\\ud800"' + ', "x"' * 19 + "]"),
        "part_1.txt: id 0 ('\\ud800') is not a string of valid Unicode",
    ),
    "id of 5,000 digits": (
        lambda d: (d / "part_1.txt").write_text("[" + "7" * 5000 + ', "x"' * 19 + "]"),
        "part_1.txt is not JSON in UTF-8",
    ),
    "duplicate id": (
        lambda d: change_ids(d, lambda i: ["id-3", *i[1:]]),
        "2 rows share their id with another: 'id-3' (row 3 of part_0.txt), 'id-3' (row 0 of part_1.txt)",
    ),
    "NaN": (lambda d: change_rows(d, nan_in_one_value), "part_1.npy row 3 (id 'id-13'): NaN or infinity"),
    "infinity": (lambda d: change_rows(d, poke(np.inf)), "part_1.npy row 3 (id 'id-13'): NaN or infinity"),
    "zero row": (lambda d: change_rows(d, poke(0)), "part_1.npy row 3 (id 'id-13'): all zeros"),
    "width": (lambda d: change_rows(d, lambda r: r[:, :5]), "part_1.npy has rows of 5 values and part_0.npy of 8"),
    "1-D": (lambda d: change_rows(d, lambda r: r[:, 0]), "part_1.npy has shape (20,), not (rows, values)"),
    "3-D": (lambda d: change_rows(d, lambda r: r[None]), "part_1.npy has shape (1, 20, 8), not (rows, values)"),
    "no values": (lambda d: change_rows(d, lambda r: r[:, :0]), "part_1.npy has rows of no values"),
    "objects": (lambda d: change_rows(d, lambda r: r.astype(object)), "part_1.npy holds pickled Python objects"),
    "integers": (lambda d: change_rows(d, lambda r: r.astype(int)), "part_1.npy holds int64, not float16"),
    "truncated": (
        lambda d: (d / "part_1.npy").write_bytes((d / "part_1.npy").read_bytes()[:-1]),
        "part_1.npy has 767 bytes where its header promises 768",
    ),
    "not npy": (lambda d: (d / "part_1.npy").write_bytes(b"hello"), "part_1.npy is not a .npy file"),
    "header without its end": (
        lambda d: change_header(d, b"(20, 8), }", b"(20, 8"),
        "part_1.npy is not a .npy file",
    ),
    "header with a bracket too few": (
        lambda d: change_header(d, b"(20, 8), }", b"((20, 8), }"),
        "part_1.npy is not a .npy file",
    ),
    "-----1 rows": (lambda d: change_header(d, b"(20, 8)", b"(-----1, 8)"), "part_1.npy is not a .npy file"),
    "4,000 times minus": (
        lambda d: change_header(d, b"(20, 8)", b"(" + b"-" * 4000 + b"1, 8)"),
        "part_1.npy is not a .npy file",
    ),
    "10^15 rows": (
        lambda d: change_header(d, b"(20, 8)", b"(1000000000000000, 8)"),
        "bytes where its header promises 32000000000000",
    ),
    "less than no rows": (
        lambda d: change_header(d, b"(20, 8)", b"(-20, -8)"),
        "part_1.npy has shape (-20, -8), not (rows, values)",
    ),
    "True rows": (
        lambda d: change_header(d, b"(20, 8)", b"(True, 160)"),
        "part_1.npy has shape (True, 160), not (rows, values)",
    ),
    "version of the format": (lambda d: change_version(d, 9, 0), "part_1.npy is not a .npy file (version (9, 0)"),
    "empty file": (lambda d: (d / "part_1.npy").write_bytes(b""), "part_1.npy is not a .npy file"),
    "link to nowhere": (lambda d: (d / "part_2.npy").symlink_to("gone"), "part_2.npy is not a file"),
    "ids that can't be read": (
        lambda d: [(d / "part_1.txt").unlink(), (d / "part_1.txt").mkdir()],
        "part_1.txt: Is a directory",
    ),
    "a folder": (lambda d: (d / "part_2.npy").mkdir(), "part_2.npy is not a file"),
    "no shards": (lambda d: [p.unlink() for p in d.glob("*.npy")], "holds no embeddings"),
    "no rows": (
        lambda d: [lay_out(d, np.empty((0, 8)), stem="part"), (d / "part_1.npy").unlink()],
        "(1 shard): nothing to compare",
    ),
    "no folder": (lambda d: shutil.rmtree(d), "is not a folder"),
}


def refused(done, status=1):
    """The one line of error of a script that stopped."""
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("case", BAD_DATA, ids=str)
def test_bad_data_is_named_and_earlier_results_stay(good, tmp_path, case):
    spoil, message = BAD_DATA[case]
    here = shutil.copytree(good, tmp_path / "here")
    spoil(here / "data")
    before = tree_bytes(here / "work")
    for script in (SCRIPTS[0], SCRIPTS[3]) if case in ("NaN", "truncated") else (SCRIPTS[0],):
        line = refused(command(script, "--data-dir", here / "data", "--work-dir", here / "work"))
        assert message in line or script != SCRIPTS[0]
    after = tree_bytes(here / "work")
    assert {name: after[name] for name in before} == before


def test_bad_rows_can_be_skipped(good, tmp_path):
    """NaN, infinity and zeros are set aside with their reasons; the rest is answered as if they weren't there."""
    rows = np.concatenate([np.load(EXAMPLE / f"demo_{i}.npy") for i in range(3)])[:400].copy()
    rows[7], rows[30, 2], rows[399] = 0, np.nan, np.inf
    run_stages(lay_out(tmp_path / "data", rows, cuts=[8, 31]), tmp_path / "work", bad_rows="skip", threshold=0.9)
    lines = (tmp_path / "work" / "01_pca_variance" / "rejected.csv").read_text().splitlines()
    assert lines == [
        "row,shard,row_in_shard,id,reason",
        "7,part_0.npy,7,id-7,all zeros",
        "30,part_1.npy,22,id-30,NaN or infinity",
        "399,part_2.npy,368,id-399,NaN or infinity",
    ]
    rest = np.setdiff1d(np.arange(400), [7, 30, 399])
    run_stages(lay_out(tmp_path / "rest", rows[rest]), tmp_path / "clean", threshold=0.9)
    assert pair_set(tmp_path / "work") == {(rest[a], rest[b]) for a, b in pair_set(tmp_path / "clean")}
    keep = (tmp_path / "work" / "045_merge" / "keep.txt").read_text().splitlines()
    drop = (tmp_path / "work" / "045_merge" / "drop.txt").read_text().splitlines()
    assert sorted(keep + drop) == sorted(f"id-{i}" for i in rest)


def test_ids_of_bad_rows_are_no_formulas(tmp_path):
    """In rejected.csv, which people open in spreadsheets; there they are JSON strings, the same ids."""
    ids = ["=1+1", "+1", "-1", "@SUM(A1)", " =2", "\t=3", '"quoted"', "", "a=1", 'comma, "quote"\nline', "ünï", "7"]
    data = lay_out(tmp_path / "data", np.concatenate([np.zeros((12, 4)), np.eye(4)]), ids=[*ids, *"wxyz"])
    run_stages(data, tmp_path / "work", SCRIPTS[:1], bad_rows="skip")
    with (tmp_path / "work" / "01_pca_variance" / "rejected.csv").open(newline="", encoding="utf-8") as file:
        cells = [line[3] for line in csv.reader(file)][1:]
    assert not [cell for cell in cells if cell.lstrip()[:1] in ("=", "+", "-", "@")]
    assert [json.loads(cell) if cell.startswith('"') else cell for cell in cells] == ids


@pytest.mark.parametrize("header", [b"(20L, 8L)", b"(20, 8)\n"], ids=["Python 2", "with a line break"])
def test_headers_that_numpy_reads_in_a_second_way(good, tmp_path, header):
    """Without a word: its warning is not about the rows."""
    here = shutil.copytree(good, tmp_path / "here")
    change_header(here / "data", b"(20, 8)", header)
    done = command(SCRIPTS[0], "--data-dir", here / "data", "--work-dir", tmp_path / "work")
    assert (done.returncode, done.stderr) == (0, "")


def test_numbered_rows_of_two_shards_of_one_name(tmp_path):
    """They are told apart by renaming a file, not by numbering the rows, which they are."""
    (tmp_path / "data").mkdir()
    for suffix in ("h5", "hdf5"):
        with h5py.File(tmp_path / "data" / f"a.{suffix}", "w") as file:
            file["emb"] = np.eye(2)
    line = refused(command(SCRIPTS[0], "--data-dir", tmp_path / "data", "--work-dir", tmp_path / "work"))
    assert "'a:0' (row 0 of a.h5), 'a:1' (row 1 of a.h5), 'a:0' (row 0 of a.hdf5)" in line
    assert "rename one of these files, or set duplicate_ids to 'allow' to keep them as rows of one name" in line
    assert "id_column" not in line


def test_all_rows_bad(tmp_path):
    lay_out(tmp_path / "data", np.zeros((3, 4)))
    line = refused(
        command(SCRIPTS[0], "--data-dir", tmp_path / "data", "--work-dir", tmp_path / "w", "--bad-rows", "skip")
    )
    assert "none of the 3 rows has a direction" in line


OTHER_PLACES = ["/tmp/*.npy", "**.npy", ".", "../other/*.npy", ""]


@pytest.mark.parametrize("pattern", OTHER_PLACES)
def test_a_pattern_that_is_none_within_the_data(good, tmp_path, pattern):
    if pattern == "**.npy" and sys.version_info >= (3, 13):
        pytest.skip("it means *.npy there")
    here = shutil.copytree(good, tmp_path / "here")
    shutil.copytree(here / "data", here / "other")
    before = tree_bytes(here)
    done = command(SCRIPTS[0], "--data-dir", here / "data", "--work-dir", here / "new", "--shard-pattern", pattern)
    line = refused(done, status=2 if pattern == "" else 1)
    assert "shard_pattern" in line or pattern == "."
    assert tree_bytes(here) == before


@pytest.mark.parametrize(
    ("data", "work", "pattern"),
    [("data", "data/work", "**/*.npy"), ("data", "data", "*.npy"), ("work/data", "work", "*.npy")],
    ids=["results among the shards", "one folder", "shards among the results"],
)
def test_results_and_shards_need_no_folders_apart(good, tmp_path, data, work, pattern):
    """What is in the folder of a stage is no shard, and what isn't is one."""
    data, work = shutil.copytree(good / "data", tmp_path / data), tmp_path / work
    for _ in range(2):  # the second start finds .npy files of its own
        run_stages(data, work, shard_pattern=pattern)
    assert read_ids(work) == read_ids(good / "work")
    assert pair_set(work) == pair_set(good / "work")


def test_names_of_shards_have_one_order(tmp_path, monkeypatch):
    """Whatever order the system lists them in; a superscript digit is no digit."""
    names = ["1²3.npy", "1²10.npy", "a_01.npy", "a_1.npy", "a_001.npy", "a_2.npy", "a_10.npy"]
    data, glob = tmp_path / "data", Path.glob
    data.mkdir()
    for row, name in enumerate(names):
        np.save(data / name, np.eye(1, 8, row))
        (data / name).with_suffix(".txt").write_text(json.dumps([name]))
    found = []
    for backwards in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "glob", lambda *a, b=backwards: sorted(glob(*a), reverse=b))
            found.append([s.path.name for s in find_shards(data)])
    assert found[0] == found[1]
    assert sorted(found[0]) == sorted(names)
    run_stages(data, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == found[0]
    assert found[0].index("1²3.npy") < found[0].index("1²10.npy")
    assert [n for n in found[0] if n.startswith("a")][-2:] == ["a_2.npy", "a_10.npy"]


def test_ids_that_the_terminal_cannot_show(tmp_path):
    rows, ids = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]], ["é", "重複", "c", "d"]
    data, work = lay_out(tmp_path / "data", rows, ids=ids), tmp_path / "work"
    run_stages(data, work, SCRIPTS[:4])
    done = command(SCRIPTS[4], "--data-dir", data, "--work-dir", work, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"\\xe9"' in done.stdout
    assert (work / "045_merge" / "keep.txt").read_text(encoding="utf-8") == "é\nc\nd\n"
    lay_out(data, rows * 0, ids=ids)
    line = refused(command(SCRIPTS[0], "--data-dir", data, "--work-dir", work, PYTHONIOENCODING="ascii"))
    assert "'\\xe9'" in line


@pytest.mark.parametrize("name", STAGES)
def test_a_folder_that_no_stage_made_stays(good, tmp_path, name):
    here = shutil.copytree(good, tmp_path / "here")
    shutil.rmtree(here / "work" / name)
    (here / "work" / name).mkdir()
    (here / "work" / name / "thesis.txt").write_text("all there is")
    before = tree_bytes(here)
    line = refused(command(STAGES[name][0], "--data-dir", here / "data", "--work-dir", here / "work"))
    assert f"{here / 'work' / name} exists but no stage made it" in line
    assert tree_bytes(here) == before


@pytest.mark.parametrize("place", ["02_pca_reduce", "045_merge/deeper", ".04_neighbor_search.partial"])
def test_shards_in_a_folder_of_a_stage_stay(good, tmp_path, place):
    shutil.copytree(good / "data", tmp_path / place)
    before = tree_bytes(tmp_path)
    for script in (SCRIPTS[0], SCRIPTS[3]):
        line = refused(command(script, "--data-dir", tmp_path / place, "--work-dir", tmp_path))
        assert place.startswith(".") or f"lies in {tmp_path / place.split('/')[0]}" in line
    assert tree_bytes(tmp_path) == before


BAD_SETTINGS = {
    "threshold": "1.5",
    "n_clusters": "0",
    "random_state": "-1",
    "target_variance": "2",
    "memory_limit": "1MiB",
    "bad_rows": "ignore",
    "audit_rows": "many",
    "data_dir": "",  # as of a variable that isn't set
    "against_dir": "",
}


def test_too_little_memory_for_the_rows_is_said(tmp_path):
    """Where blocks of any size would be too much; the least that is told is enough to pass that check."""
    write_hole(tmp_path / "data" / "all.npy", 10**8, 8)
    run = partial(command, SCRIPTS[1], "--data-dir", tmp_path / "data", "--work-dir", tmp_path / "work")
    line = refused(run("--memory-limit", "1GiB"))
    assert "memory_limit = 1024MiB is too little for 100,000,000 rows" in line
    least = re.search(r"at least (\d+)MiB", line)[1]
    assert f"memory: about {least}MiB: set memory_limit to as much" in run("--memory-limit=1GiB", "--dry-run").stdout
    assert "run faiss_01_pca_variance.py first" in refused(run("--memory-limit", f"{least}MiB"))


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_wrong_setting_is_named(setting, tmp_path):
    value = BAD_SETTINGS[setting]
    option = f"--{setting.replace('_', '-')}"
    by_option = command(SCRIPTS[3], option, value, "--work-dir", tmp_path)
    by_environment = command(SCRIPTS[3], "--work-dir", tmp_path, **{f"NEARDUP_{setting.upper()}": value})
    for done in (by_option, by_environment):
        line = done.stderr.splitlines()[-1]
        assert done.returncode == 2
        assert setting in line or option in line
        assert "Traceback" not in done.stderr
        assert "pydantic" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_bound_of_a_wrong_setting_is_told_as_it_can_be_given(monkeypatch, capsys):
    said = command(SCRIPTS[0], "--memory-limit", "100MB").stderr
    assert "error: setting memory_limit = '100MB': should be at least 320MiB (" in said
    monkeypatch.setattr(sys, "argv", ["neardup.query", "--ids", "a", "--lowest", "98"])
    with pytest.raises(SystemExit, match="2"):
        query.main()
    assert "argument --lowest: '98' is no similarity: give one above 0 to 1\n" in capsys.readouterr().err


def test_an_unknown_option_is_named():
    done = command(SCRIPTS[0], "--treshold", "0.9")
    assert done.returncode == 2
    assert "--treshold" in done.stderr.splitlines()[-1]


STALE = {  # a changed setting, the script that should run again, a script that must refuse until then
    "target_variance": ("0.5", SCRIPTS[0], SCRIPTS[1]),
    "sketch_dims": ("4", SCRIPTS[1], SCRIPTS[2]),
    "n_clusters": ("3", SCRIPTS[2], SCRIPTS[3]),
    "threshold": ("0.97", SCRIPTS[3], SCRIPTS[4]),
}


@pytest.mark.parametrize("setting", STALE)
def test_artifacts_of_another_configuration_are_refused(good, tmp_path, setting):
    value, again, refusing = STALE[setting]
    here = shutil.copytree(good, tmp_path / "here")
    before = tree_bytes(here / "work")
    arguments = ["--data-dir", here / "data", "--work-dir", here / "work", f"--{setting.replace('_', '-')}", value]
    line = refused(command(refusing, *arguments))
    assert f"with {setting}" in line
    assert f"run {again} again" in line
    assert tree_bytes(here / "work") == before


def test_artifacts_of_other_input_are_refused(good, tmp_path):
    here = shutil.copytree(good, tmp_path / "here")
    change_rows(here / "data", lambda r: -r)
    line = refused(command(SCRIPTS[3], "--data-dir", here / "data", "--work-dir", here / "work"))
    assert "part_1.npy changed" in line
    assert f"run {SCRIPTS[0]} again" in line


def test_two_rows_changed_in_the_middle_of_a_large_shard(tmp_path):
    """Where no sample of its content shows it."""
    rows = np.random.default_rng(0).normal(size=(6000, 64)).astype(np.float32)
    data, work = lay_out(tmp_path / "data", rows), tmp_path / "work"
    run_stages(data, work, SCRIPTS[:1])
    path, before = data / "part_0.npy", (work / "01_pca_variance" / "moments.npz").read_bytes()
    assert path.stat().st_size > 2**20
    shards = np.load(path, mmap_mode="r+")
    shards[[2971, 2972]] *= [[1], [-1]]
    shards[2971, :32] = 0
    shards.flush()
    line = refused(command(SCRIPTS[1], "--data-dir", data, "--work-dir", work))
    assert "part_0.npy changed" in line
    run_stages(data, work, SCRIPTS[:1])
    run_stages(data, tmp_path / "new", SCRIPTS[:1])
    assert (work / "01_pca_variance" / "moments.npz").read_bytes() != before
    assert tree_bytes(work) == tree_bytes(tmp_path / "new")


def test_a_damaged_manifest_is_refused(good, tmp_path):
    here = shutil.copytree(good, tmp_path / "here")
    (here / "work" / "02_pca_reduce" / "manifest.json").write_text("{")
    line = refused(command(SCRIPTS[2], "--data-dir", here / "data", "--work-dir", here / "work"))
    assert "manifest.json is damaged" in line


def test_no_pickle_is_loaded_anywhere():
    """The sources neither load pickles nor let numpy do it."""
    from config import ROOT

    sources = [*ROOT.glob("*.py"), *ROOT.glob("neardup/**/*.py")]
    assert len(sources) > 60
    for path in sources:
        text = path.read_text()
        for word in ("pickle.load", "Unpickler", "allow_pickle=True", "joblib"):
            assert word not in text, path


def test_wide_rows_take_memory_however_few_they_are(tmp_path):
    """Finding their principal axes does."""
    lay_out(tmp_path / "data", np.random.default_rng(0).normal(size=(40, 1500)).astype(np.float32))
    run = partial(command, SCRIPTS[0], "--data-dir", tmp_path / "data", "--work-dir", tmp_path / "work")
    line = refused(run("--memory-limit", "320MiB"))
    assert "memory_limit = 320MiB is too little for 40 rows of 1,500 values" in line
    least = int(re.search(r"at least (\d+)MiB", line)[1])
    assert run("--memory-limit", f"{least}MiB").returncode == 0


def test_a_stage_that_is_a_link_is_refused(good, tmp_path):
    here = shutil.copytree(good, tmp_path / "here")
    (here / "work" / "02_pca_reduce").rename(tmp_path / "elsewhere")
    (here / "work" / "02_pca_reduce").symlink_to(tmp_path / "elsewhere")
    line = refused(command(SCRIPTS[1], "--data-dir", here / "data", "--work-dir", here / "work"))
    assert "02_pca_reduce is a link, and stages replace their folders: make work_dir one instead" in line


def test_a_stage_that_lost_a_row_is_noticed(good, tmp_path):
    """Else the audit would leave it out, too."""
    work = shutil.copytree(good / "work", tmp_path / "work")
    labels = np.load(work / "03_kmeans" / "labels.npy")
    labels[7] = -1
    np.save(tmp_path / "labels.npy", labels)
    read = partial(read_labels, tmp_path / "labels.npy", 30, n_clusters=30)
    with pytest.raises(NeardupError, match="other rows without a cluster than the rejected ones"):
        read(rejected=np.empty(0, np.int64))
    assert read(rejected=np.array([7])).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("labels", "dtype"), [([0, 1, 2, 3], "i4"), ([0, 1, 2, -2], "i4"), ([0, 1, 2], "i4"), ([0, 1, 2, 2], "i8")]
)
def test_labels_that_are_no_clusters_of_the_rows_are_refused(tmp_path, labels, dtype):
    """Of four rows and three clusters."""
    np.save(tmp_path / "labels.npy", np.array(labels, dtype=dtype))
    with pytest.raises(NeardupError, match="no clusters of these rows"):
        read_labels(tmp_path / "labels.npy", 4, np.empty(0, np.int64), 3)


def test_rows_that_are_others_while_they_are_projected(good, tmp_path, monkeypatch):
    """And those of before again when the stage ends."""
    work, read = shutil.copytree(good / "work", tmp_path / "work"), RowFiles.read
    expected = tree_bytes(work)
    shutil.rmtree(work / "02_pca_reduce")
    with monkeypatch.context() as patch:
        patch.setattr(RowFiles, "read", lambda *how: read(*how) + np.float32(how[1] == 10))
        with pytest.raises(NeardupError, match=r"the input \(part_1.npy\) changed while it was read: run faiss_01"):
            run_stages(good / "data", work, SCRIPTS[:2])
    assert not (work / "02_pca_reduce").exists()
    run_stages(good / "data", work)
    assert answer(work) == answer(good / "work")
    assert tree_bytes(work).keys() == expected.keys()


def test_a_shard_that_becomes_shorter_before_it_is_mapped(tmp_path):
    path = lay_out(tmp_path, np.eye(8, dtype=np.float32)) / "part_0.npy"
    rows = open_shards(find_shards(tmp_path))
    os.truncate(path, 200)
    with pytest.raises(NeardupError, match="has become shorter while it was read"):
        rows.read(0, 8)


def test_files_that_cannot_be_opened_are_not_damaged(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = tmp_path / "03_kmeans" / "clusters" / "cluster_00000.h5"
    monkeypatch.setattr("h5py.File", fail)
    with pytest.raises(OSError, match="Too many open files"):
        data_sets(path)
    monkeypatch.undo()
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(99))
    with pytest.raises(NeardupError, match=f"remove {tmp_path / '03_kmeans'} and run the scripts again"):
        data_sets(path)


def test_streams_that_are_closed(good):
    """As some services start programs."""
    run = f"{shlex.quote(sys.executable)} {SCRIPTS[4]} --data-dir {good / 'data'} --work-dir {good / 'work'}"
    in_shell = partial(subprocess.run, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    done = in_shell(f"{run} >&-")
    assert (done.returncode, done.stderr) == (0, "")
    done = in_shell(f"{run} --threshold 2 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_streams_that_are_full(good, tmp_path):
    """What can't be printed is told; what can't be told ends no run."""
    data = shutil.copytree(good / "data", tmp_path / "data")
    work = shutil.copytree(good / "work", tmp_path / "work")
    run = f"{shlex.quote(sys.executable)} {SCRIPTS[4]} --data-dir {data} --work-dir {work}"
    in_shell = partial(subprocess.run, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    for unbuffered in ("", "1"):
        done = in_shell(f"PYTHONUNBUFFERED={unbuffered} {run} >/dev/full")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "error: standard output: No space left on device; mend that" in done.stderr
    shard = next(data.glob("*.npy"))
    (data / f"again-{shard.name}").symlink_to(shard)  # which is said
    numbered = run.replace(SCRIPTS[4], SCRIPTS[0]) + "-of-twice --id-column ''"
    assert "read twice" in in_shell(numbered).stderr
    done = in_shell(f"{numbered} 2>/dev/full")
    assert (done.returncode, done.stdout.count("\n")) == (0, 3)
    assert in_shell(f"{numbered} --threshold 5 2>/dev/full").returncode == 2


WATCHED = """
import runpy, sys
from neardup.machine import engine
engine._bar = lambda label: {"desc": label, "mininterval": 0, "delay": 0, "leave": False}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("reader", ["there", "gone", "asleep"])
def test_progress_that_nobody_reads(good, tmp_path, reader):
    """A bar is drawn in the end; by who can't be told, as where a connection is lost, or isn't to wait."""
    arguments = [
        sys.executable,
        "-c",
        WATCHED,
        SCRIPTS[0],
        "--data-dir",
        good / "data",
        "--work-dir",
        tmp_path / "work",
    ]
    if reader == "there":
        done = subprocess.run(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        assert "01 moments" in done.stderr
    else:
        read, write = os.pipe()
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while reader == "asleep":
                os.write(write, bytes(4096))
        if reader == "gone":
            os.close(read)
        with os.fdopen(write, "w") as stream:
            done = subprocess.run(arguments, cwd=ROOT, stderr=stream, check=False)
    assert done.returncode == 0
    assert (tmp_path / "work" / "01_pca_variance" / "manifest.json").exists()


def ended(what, stderr=subprocess.PIPE):
    """A process in which this happens within `report_errors`."""
    code = f"import os, signal\nfrom neardup.script import report_errors\nwith report_errors('x'):\n    {what}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=stderr, text=True, check=False)


def test_a_pipe_that_breaks_is_told_where_it_is_not_standard_output():
    done = ended("raise BrokenPipeError(32, 'Broken pipe')")
    assert (done.returncode, done.stderr) == (
        1,
        "x: error: a file: Broken pipe; mend that, then start it again to go on\n",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_signal_ends_a_script_that_can_not_tell():
    """An error of telling would arise in any library, which may go on."""
    with Path("/dev/full").open("w") as full:
        assert ended("os.kill(os.getpid(), signal.SIGTERM)", full).returncode == 143


def test_names_are_told_as_they_are():
    """But for what a terminal would act on."""
    done = ended("raise OSError(2, 'No such file', 'a  b\\x1b[2J')")
    assert done.stderr == "x: error: a  b\\u001b[2J: No such file; mend that, then start it again to go on\n"


@pytest.mark.parametrize("setting", ["data-dir", "work-dir"])
def test_no_folder_at_all(setting):
    line = refused(command(SCRIPTS[0], f"--{setting}", "None"), 2)
    assert f"setting {setting.replace('-', '_')} = None: is empty: give a folder or URL" in line


@pytest.mark.parametrize("length", [252, 255])
def test_names_as_long_as_they_may_be(tmp_path, length):
    """Beside which there can be no table."""
    name = "x" * (length - 4)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / f"{name}.npy", np.eye(4, dtype=np.float32))
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work")[0] == f"{name}:0"


def test_files_of_others_in_the_folder_of_copies_stay(tmp_path):
    """And no input is there, for what isn't a shard's copy any more is removed; but beside that there may be some."""
    data, work = lay_out(tmp_path / "data", np.eye(4, dtype=np.float32)), tmp_path / "work"
    kept = lay_out(work / "input" / "decoded", np.eye(5, dtype=np.float32))
    before = tree_bytes(kept)
    with pytest.raises(
        NeardupError, match=r"data_dir .*decoded lies in .*decoded, where copies of input are kept: set"
    ):
        run_stages(kept, work, SCRIPTS[:1])
    for name in ("a", "b"):
        pq.write_table(pa.table({"id": [name], "emb": [[1.0, 0]]}), data / f"{name}.parquet")
    run_stages(data, work, SCRIPTS[:1], input_format="parquet")
    assert len(tree_bytes(kept)) == len(before) + 4
    (data / "b.parquet").unlink()
    run_stages(data, work, SCRIPTS[:1], input_format="parquet")
    run_stages(data, work, SCRIPTS[:1])
    assert tree_bytes(kept) == before
    np.save(work / "input" / "mine.npy", np.eye(5, dtype=np.float32))
    run_stages(work, work, SCRIPTS[:1], shard_pattern="**/*.npy")
    assert read_ids(work) == [f"input/mine:{i}" for i in range(5)]


def test_names_that_are_no_names(good, tmp_path):
    """A folder whose name isn't UTF-8, and a link that leads to itself."""
    line = refused(command(SCRIPTS[0], "--data-dir", good / "data", "--work-dir", os.fsdecode(b"w\xff")), 2)
    assert "setting work_dir" in line
    assert "can't encode" in line
    data = shutil.copytree(good / "data", tmp_path / "data")
    (data / "part_2.npy").symlink_to("part_2.npy")
    line = refused(command(SCRIPTS[0], "--data-dir", data, "--work-dir", tmp_path / "work"))
    assert "part_2.npy" in line


@pytest.mark.parametrize("setting", ["data-dir", "work-dir", "against-dir"])
def test_folders_that_are_links_to_themselves(good, tmp_path, setting):
    (tmp_path / "loop").symlink_to("loop")
    given = {"data-dir": good / "data", "work-dir": tmp_path / "work", setting: tmp_path / "loop"}
    line = refused(command(SCRIPTS[0], *(f"--{name}={path}" for name, path in given.items())))
    assert "loop" in line


def test_ids_whose_list_is_gone(good, tmp_path):
    """A link that leads nowhere: rows aren't numbered in its place."""
    data = shutil.copytree(good / "data", tmp_path / "data")
    (data / "part_1.txt").unlink()
    (data / "part_1.txt").symlink_to(tmp_path / "gone.txt")
    line = refused(command(SCRIPTS[0], "--data-dir", data, "--work-dir", tmp_path / "work"))
    assert "part_1.txt" in line


def test_a_shard_without_rows_has_an_empty_list_of_ids(tmp_path):
    data = lay_out(tmp_path / "data", np.eye(4, dtype=np.float32), cuts=[4])
    (data / "part_1.txt").write_text("")
    run_stages(data, tmp_path / "work", SCRIPTS[:1])
    assert len(read_ids(tmp_path / "work")) == 4


def test_a_query_leaves_what_is_being_published(good, tmp_path):
    """Between the two renames."""
    here = shutil.copytree(good, tmp_path / "here")
    final = here / "work" / "045_merge"
    final.rename(here / "work" / ".045_merge.old")
    shutil.copytree(here / "work" / ".045_merge.old", here / "work" / ".045_merge.partial")
    before = tree_bytes(here)
    with pytest.raises(NeardupError, match=r"045_merge is missing: run faiss_045_merge.py first"):
        open_finished(settings_of(here / "data", here / "work"))
    assert tree_bytes(here) == before
    run_stages(here / "data", here / "work")
    assert tree_bytes(here) == tree_bytes(good)


def test_a_variable_that_is_nearly_a_setting(tmp_path):
    """What is none by far may be somebody else's."""
    line = refused(command(SCRIPTS[1], "--work-dir", tmp_path, NEARDUP_TRESHOLD="0.9"), 2)
    assert "NEARDUP_TRESHOLD in the environment is no setting, NEARDUP_THRESHOLD is: rename or unset it" in line
    done = command(SCRIPTS[1], "--work-dir", tmp_path, neardup_scheduler_service_host="10.0.0.1", NEARDUP_PORT="1")
    assert "run faiss_01_pca_variance.py first" in refused(done)


@pytest.mark.parametrize("name", ["01_pca_variance/ids.arrow", "045_merge/merged_clusters.h5"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_query_of_damaged_files(good, tmp_path, name, size):
    here = shutil.copytree(good, tmp_path / "here")
    os.truncate(here / "work" / name, size)
    asked = ["-m", "neardup.query", "--ids", read_ids(good / "work")[0], "--data-dir", here / "data"]
    done = subprocess.run(
        [sys.executable, *map(str, asked), "--work-dir", str(here / "work")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert f"{name} is damaged" in refused(done)


def test_places_on_this_machine_are_paths_however_they_are_written(tmp_path, monkeypatch):
    """What a shell leaves of --work-dir=~/results, and a URL of a file here; a folder may be called ~ and more."""
    monkeypatch.setenv("HOME", str(tmp_path))
    places = {
        "~/a b": tmp_path / "a b",
        "~": tmp_path,
        "file:///a%20b/c": Path("/a b/c"),
        "~a": Path("~a"),
        "a/~": Path("a/~"),
    }
    for given, expected in places.items():
        found = Config(data_dir=given, work_dir=given, against_dir=given)
        assert (found.data_dir, found.work_dir, found.against_dir) == (expected, expected, expected)
    for given, expected in {"~/x.json": f"{tmp_path}/x.json", "~/{id}.png": f"{tmp_path}/{{id}}.png", "~": "~"}.items():
        assert Config(preview=given).preview == expected
    assert Config(work_dir="s3://bucket/~/x").work_dir == "s3://bucket/~/x"

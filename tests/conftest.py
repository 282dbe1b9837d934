"""The oracle (plain float64 brute force), and ways to lay out input and run the scripts."""

import csv
import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
import tracemalloc
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from unittest import mock

import forked
import h5py
import hypothesis  # noqa: F401 -- now, for its plugins look for objects that scripts hide from the collector
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config import ROOT, Config
from neardup.input.metadata import column_blocks
from neardup.stages.artifacts import STAGES

SCRIPTS = [script for script, _ in STAGES.values()]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["dask.array", "faiss", "fsspec", "h5py", "jinja2", "pyarrow.parquet", "pydantic_settings"]
)
_POOLS = []  # which arrays that are made in them must not outlive
NOTES = {".lock", ".lock.json", ".input.json", "times.json", "report.html"}
EXAMPLE = ROOT / "examples" / "debian"
# of small sets: the 50 of config.py take longer than all else, in each test
os.environ["NEARDUP_N_CLUSTERS"] = "6"


def write_hole(path, rows, dim):
    """A .npy file of float32 zeros of any size that takes no room on the disk."""
    path.parent.mkdir()
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
        file.truncate(file.tell() + 4 * rows * dim)


def brute_force(rows, threshold):
    """All pairs {(a, b)} with a < b, and those too near the threshold for float64 to tell."""
    values = rows.astype(np.float64)
    values = values / np.sqrt((values * values).sum(axis=1))[:, None]
    cosines = values @ values.T
    upper = np.triu(np.ones(cosines.shape, dtype=bool), 1)
    near = set(zip(*np.nonzero(upper & (cosines >= threshold)), strict=True))
    unclear = set(zip(*np.nonzero(upper & (np.abs(cosines - threshold) < 1e-14)), strict=True))
    return near, unclear


def components(pairs, n_rows):
    """Groups of two or more rows as a set of tuples, by the plainest union-find."""
    parent = list(range(n_rows))

    def root(row):
        while parent[row] != row:
            row = parent[row]
        return row

    for a, b in pairs:
        parent[max(root(a), root(b))] = min(root(a), root(b))
    groups = {}
    for row in range(n_rows):
        groups.setdefault(root(row), []).append(row)
    return {tuple(members) for members in groups.values() if len(members) > 1}


def unit(rows):
    """Rows as float64, of unit length, in the plainest way."""
    values = rows.astype(np.float64)
    return values / np.linalg.norm(values, axis=1)[:, None]


def value_error(dim):
    """Greatest relative error of a value of a row scaled to unit length in float32.

    With u = 2^-24, its squared length is off by d u, so its length by half of that; 4 u for root, quotient, product
    and cast; 1 % for terms in u^2.
    """
    return (dim / 2 + 4) * 2.0**-24 * 1.01


def covariance_error(rows, block_rows):
    """How far a covariance from float32 products may be from the float64 one of the same unit rows, (d, d).

    Two values' errors, and b u for summing products in blocks of at most b = `block_rows` rows; the product of two
    means is off by two values' errors.
    """
    size, error = np.abs(unit(rows)), 2 * value_error(rows.shape[1])
    count, means = len(size), size.mean(axis=0)
    bound = (block_rows * 2.0**-24 * 1.01 + error) * (size.T @ size) + error * count * np.outer(means, means)
    return bound / max(count - 1, 1)


def lay_out(folder, rows, cuts=(), ids=None, stem="part"):
    """Write rows as shards cut at these row numbers, with their ids. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"id-{i}" for i in range(len(rows))]
    for number, (start, stop) in enumerate(pairwise([0, *sorted(cuts), len(rows)])):
        np.save(folder / f"{stem}_{number}.npy", rows[start:stop])
        (folder / f"{stem}_{number}.txt").write_text(json.dumps(ids[start:stop]), encoding="utf-8")
    return folder


def run_stages(data_dir, work_dir, scripts=SCRIPTS, **settings):
    """Run scripts in this process. Returns the config."""
    config = settings_of.__wrapped__(data_dir, work_dir, **settings)
    run_scripts(config, scripts)
    return config


@lru_cache
def settings_of(data_dir, work_dir, **settings):
    """A config, parsed once: for tests of many runs, for that takes as long as a small script."""
    return Config(data_dir=data_dir, work_dir=work_dir, **settings)


def run_scripts(config, scripts=SCRIPTS):
    """Run scripts in this process with these settings."""
    for script in scripts:
        importlib.import_module(script.removesuffix(".py")).run(config)


def work_before(name, whole, to):
    """A copy of that run's results as they are before a stage."""
    to.mkdir()
    for earlier in [*STAGES][: [*STAGES].index(name)]:
        shutil.copytree(whole / "work" / earlier, to / earlier)
    return to


def finished_run(folder, shape, near, cut, **settings):
    """A finished run of random rows in two shards, of which `near` are near others: `data` and `work` in the folder."""
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows[100 : 100 + near] = rows[:near] + 0.01
    run_stages(lay_out(folder / "data", rows, cuts=[cut]), folder / "work", **settings)
    return folder


def command(script, *arguments, cwd=None, **environment):
    """Run one script as a user does. Returns the finished process, its output as text.

    The process has the libraries, which take most of a start, from one that it is forked from: what Python and they
    read of the environment as they start is that of the tests, but for PYTHONIOENCODING.
    """
    arguments, environment = [str(ROOT / script), *map(str, arguments)], {**os.environ, **environment}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        streams = [_FORKS.reducer.DupFd(file.fileno()) for file in (stdout, stderr)]
        process = _FORKS.Process(target=forked.run, args=(arguments, cwd or Path.cwd(), environment, streams))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(arguments, 120)
        texts = [file.read().decode() for file in (stdout, stderr) if not file.seek(0)]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def until(met, running):
    """Wait until met() is true, while a process runs that is to bring it about."""
    while not met():
        assert running.poll() is None, "it ended before"
        time.sleep(0.01)


def found_pairs(work_dir):
    """row_a, row_b, similarity of neighbors.h5."""
    with h5py.File(work_dir / "04_neighbor_search" / "neighbors.h5") as file:
        return file["row_a"][:], file["row_b"][:], file["similarity"][:]


def pair_set(work_dir):
    row_a, row_b, _ = found_pairs(work_dir)
    return set(zip(row_a.tolist(), row_b.tolist(), strict=True))


def found_groups(work_dir):
    """Groups of groups.parquet as a set of tuples of rows."""
    table = pq.read_table(work_dir / "045_merge" / "groups.parquet")
    groups = {}
    for row, group in zip(table["row"].to_pylist(), table["group"].to_pylist(), strict=True):
        groups.setdefault(group, []).append(row)
    return {tuple(members) for members in groups.values()}


def read_csv(work, name):
    """The lines of a file of stage 5, as dicts."""
    with (work / "045_merge" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load_npz(path):
    """All arrays of a .npz file, which is closed again."""
    with np.load(path) as file:
        return dict(file)


def flat_ids(file):
    """Ids that an HDF5 file holds as bytes and offsets."""
    text, offset = file["id_utf8"][:].tobytes(), file["id_offset"][:].tolist()
    return [text[start:stop].decode() for start, stop in pairwise(offset)]


def read_ids(work_dir):
    """All ids, in row order."""
    with pa.ipc.open_file(work_dir / "01_pca_variance" / "ids.arrow") as file:
        return file.read_all()["id"].to_pylist()


def read_column(path, name, rows):
    """A column of a table as one Arrow array."""
    return pa.chunked_array([*column_blocks(path, name, rows)]).combine_chunks()


@contextmanager
def peak_memory():
    """Yield a function that tells the most bytes that Python, NumPy and Arrow have held at a time from here on."""
    pa.array(np.zeros(1))  # pyarrow imports pandas, where that is installed
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


def tree_bytes(folder):
    """Every file below a folder, by its relative name, without a work folder's notes on locks and times."""
    files = [p for p in sorted(Path(folder).rglob("*")) if p.is_file() and p.name not in NOTES]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def answer(work):
    """The bytes of what tells pairs, groups and what to keep, however the run came to it."""
    merge = ["groups.parquet", "keep.txt", "drop.txt", "thresholds.csv", "examples.csv", "losses.csv"]
    names = ["04_neighbor_search/neighbors.h5", *(f"045_merge/{name}" for name in merge)]
    return {name: (work / name).read_bytes() for name in names}


def pytest_collection_modifyitems(items):
    """All of tests/soak is long."""
    for item in items:
        if item.path.parent.name == "soak":
            item.add_marker("long")


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """A test draws no pictures, unless it is marked so, and waits for no disk: both take longer than many a run.

    Fixtures of many tests do both, and so do scripts run from the shell.
    """
    monkeypatch.setattr("os.fsync", lambda _: None)
    with nullcontext() if "pictures" in request.keywords else no_pictures():
        yield


@contextmanager
def no_pictures():
    """Within the block PNG files are no pictures, and a report has none."""

    class Figure:
        def savefig(self, path, **_):
            path.write_bytes(b"PNG")

    drawn = {"scree": lambda *_, **__: Figure(), "groups": lambda *_, **__: Figure(), "page_svg": lambda *_: ""}
    with mock.patch.multiple("neardup.plots", **drawn):
        yield


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """Work folder of the example."""
    work = tmp_path_factory.mktemp("example") / "work"
    run_stages(EXAMPLE, work)
    return work

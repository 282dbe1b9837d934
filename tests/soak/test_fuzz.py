"""Mutated input and artifacts: a clear error or the right answer, never a traceback, a hang or memory without end."""

import io
import json
import resource
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    SCRIPTS,
    brute_force,
    lay_out,
    no_pictures,
    pair_set,
    run_scripts,
    run_stages,
    settings_of,
    tree_bytes,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import FORMATS, IDS
from test_formats import ROWS as ROWS_OF

from neardup import NeardupError
from neardup.stages.artifacts import STAGES

NAMES = list(STAGES)
SETTINGS = {"threshold": 0.9, "n_clusters": 2, "audit_rows": 5, "n_workers": 1}
ROWS = 12  # of either shard
EXAMPLES = {"rows": 10_000, "ids": 5_800, "formats": 200, "artifacts": 4_000}
SEEDS = st.integers(0, 2**63 - 1)


def fuzz(count):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example]
    return settings(max_examples=count, deadline=60_000, database=None, derandomize=True, suppress_health_check=checks)


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    """What this process may take beyond what it has: an array that a header promises must not be made."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 3 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def silent():
    """What the scripts say is not to be seen 20,000 times."""
    with redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of two small shards: `data` and `work`."""
    folder = tmp_path_factory.mktemp("whole")
    rows = np.random.default_rng(0).normal(size=(2 * ROWS, 8)).astype(np.float32)
    rows[5:9] = rows[15:19] + 0.02
    with no_pictures():
        run_stages(lay_out(folder / "data", rows, cuts=[ROWS]), folder / "work", **SETTINGS)
    return folder


INTERESTING = [
    *(b"\x00", b"\xff", b"\x7f\x80", b"'", b'"', b"(", b")", b"[", b"]", b"{", b"}", b",", b"-", b"1e999", b"NaN"),
    *(b"1000000000000000", b"True", b"None", b"<f8", b"<f2", b">f4", b"|O", b"<i4", b"|S9", b"\\ud800", b"\n", b" "),
    *(b"9" * 5000, b"[" * 3000, b"(1,)", b"\xf0\x9f\x92\xa9", b"=1+1", b"../../x", np.float32(np.nan).tobytes()),
]


def mutate(content, rng):
    """Bytes with one to five changes: bits turned, pieces removed, repeated, exchanged, or strange ones put in."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        low = int(rng.integers(0, (min(len(content), 128) if rng.random() < 0.5 else len(content)) + 1))
        high = min(len(content), low + int(rng.integers(1, 1 + 2 ** rng.integers(0, 8))))
        how = rng.integers(0, 6)
        if how == 0 and low < len(content):
            content[low] ^= 1 << rng.integers(0, 8)
        elif how == 1:
            del content[low:high]
        elif how == 2:
            content[low:low] = content[low:high]
        elif how == 3:
            content[low:high] = rng.bytes(high - low)
        elif how == 4:
            content[low:low] = INTERESTING[rng.integers(0, len(INTERESTING))]
        elif rng.random() < 0.2:
            del content[low:]
    return bytes(content)


def with_mutated(name, whole, folder, seed):
    """The input of a run, in a folder, with one of its files changed. Returns the folder and that file."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / "data", folder / "data")
    path = folder / "data" / name
    path.write_bytes(mutate(path.read_bytes(), np.random.default_rng(seed)))
    return folder, path


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")  # of the headers that numpy reads in a second way
@given(seed=SEEDS)
@fuzz(EXAMPLES["rows"])
def test_mutated_shards(whole, tmp_path, seed):
    """Headers and bodies. What is accepted is what numpy reads, and its pairs are those of brute force."""
    folder, _ = with_mutated("part_1.npy", whole, tmp_path / "mutated", seed)
    config = settings_of(folder / "data", folder / "work", **SETTINGS)
    try:
        run_scripts(config, SCRIPTS[:1])
    except (NeardupError, OSError) as error:
        assert str(error)
        return
    run_scripts(config, SCRIPTS[1:4])
    rows = [np.load(folder / "data" / f"part_{i}.npy") for i in range(2)]
    rows = np.concatenate([part.astype(np.float64) if part.dtype.kind in "iu" else part for part in rows])
    near, unclear = brute_force(rows / np.abs(rows).max(axis=1)[:, None].astype(np.longdouble), SETTINGS["threshold"])
    assert pair_set(folder / "work") - unclear == near - unclear


@given(seed=SEEDS)
@fuzz(EXAMPLES["ids"])
def test_mutated_ids(whole, tmp_path, seed):
    """What is accepted is what JSON says."""
    folder, path = with_mutated("part_1.txt", whole, tmp_path / "mutated", seed)
    config = settings_of(folder / "data", folder / "work", duplicate_ids="allow", **SETTINGS)
    try:
        run_scripts(config, SCRIPTS[:1])
    except (NeardupError, OSError) as error:
        assert str(error)
        return
    ids = [str(i) for i in json.loads(path.read_text(encoding="utf-8"))]
    assert len(ids) == ROWS
    assert all(i.encode() in (folder / "work" / NAMES[0] / "ids.arrow").read_bytes() for i in ids)


@given(seed=SEEDS, name=st.sampled_from(sorted(FORMATS)))
@fuzz(EXAMPLES["formats"])
def test_mutated_formats(tmp_path, seed, name):
    """Shards of other formats, read and copied: refused, or all that the later scripts make of them is there."""
    write, ids, dtype, options = FORMATS[name]
    data, work = tmp_path / "data", tmp_path / "work"
    for folder in (data, work):
        shutil.rmtree(folder, ignore_errors=True)
    data.mkdir()
    write(data, 0, ROWS_OF[dtype][:60], (ids or IDS)[:60])
    rng = np.random.default_rng(seed)
    files = sorted(p for p in data.rglob("*") if p.is_file())
    path = files[rng.integers(len(files))]
    path.write_bytes(mutate(path.read_bytes(), rng))
    options = {"bad_rows": "skip", "duplicate_ids": "allow", "export": True} | options
    try:
        run_stages(data, work, **SETTINGS | options)
    except (NeardupError, OSError) as error:
        assert str(error)
        return
    assert (work / NAMES[-1] / "export").is_dir()


@given(seed=SEEDS)
@fuzz(EXAMPLES["artifacts"])
def test_mutated_artifacts(whole, tmp_path, seed):
    """Of any stage, read by any later one: refused, or of no influence."""
    rng, work = np.random.default_rng(seed), tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole / "work", work)
    files = sorted(p for p in work.rglob("*") if p.is_file())
    path = files[rng.integers(len(files))]
    of = NAMES.index(path.relative_to(work).parts[0]) if path.parent != work else 0
    stage = int(rng.integers(min(of + 1, 4), 5))
    for name in NAMES[stage:]:
        shutil.rmtree(work / name)
    if not path.exists():
        return
    path.write_bytes(mutate(path.read_bytes(), rng))
    config = settings_of(whole / "data", work, **SETTINGS)
    try:
        run_scripts(config, SCRIPTS[stage : stage + 1])
    except (NeardupError, OSError) as error:
        assert str(error)
        return
    assert tree_bytes(work / NAMES[stage]) == tree_bytes(whole / "work" / NAMES[stage])

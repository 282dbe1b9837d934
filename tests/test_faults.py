"""Whatever operation on a file fails: an error that says which, nothing half done, and it goes on after that."""

import errno
import shutil

import h5py
import numpy as np
import pytest
from conftest import NOTES, finished_run, no_pictures, run_scripts, settings_of, tree_bytes
from faults import failing

from neardup import NeardupError
from neardup.machine.files import atomic, hdf5
from neardup.stages.artifacts import STAGES

NAMES = list(STAGES)
SETTINGS = {"threshold": 0.9, "n_clusters": 3, "audit_rows": 20, "n_workers": 1}
SHAPE = (300, 16), 40, 120


LEFTOVERS = {"parts", *(f".{name}.{end}" for name in NAMES for end in ("partial", "old", "removed"))}


def harmless(what, name):
    """Whether a failure need not be told: a folder to be made is there already, a leftover that can't be removed is the
    next time, and zipfile opens a file in a second way where the first fails."""
    return what == "mkdir again" or (what == "open" and (name in LEFTOVERS or name.endswith(".npz.tmp")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 300 rows, of which 40 are near others."""
    with no_pictures():
        return finished_run(tmp_path_factory.mktemp("whole"), *SHAPE, **SETTINGS)


def work_before(name, whole, to):
    """A copy of that run's results as they are before a stage."""
    to.mkdir()
    for note in whole.joinpath("work").glob(".*"):
        shutil.copy2(note, to)
    for earlier in NAMES[: NAMES.index(name)]:
        shutil.copytree(whole / "work" / earlier, to / earlier)
    return to


def fail_each(name, whole, tmp_path, errors, every=1):
    """Make each so-manieth operation of a stage fail, then start it again. Returns how many operations there are."""

    def run(work):
        run_scripts(settings_of(whole / "data", work, **SETTINGS), [STAGES[name][0]])

    with failing(tmp_path) as counted:
        run(work_before(name, whole, tmp_path / "counted"))
    expected = tree_bytes(tmp_path / "counted" / name)
    assert expected.keys() == tree_bytes(whole / "work" / name).keys()
    for number in range(0, counted.count, every):
        error, work = errors[number % len(errors)], work_before(name, whole, tmp_path / "work")
        told = None
        with failing(tmp_path, number, error) as faults:
            try:
                run(work)
            except (OSError, NeardupError) as raised:
                told = raised
        what = (number, *faults.names[number : number + 1], error, told)
        assert told or len(faults.names) <= number or harmless(*faults.names[number]), what
        published = {k: v for k, v in tree_bytes(work / name).items() if k != "begun.json" and "parts" not in k}
        assert published in ({}, expected), what
        run(work)
        assert tree_bytes(work / name) == expected, what
        assert {p.name for p in work.iterdir()} - NOTES == {*NAMES[: NAMES.index(name) + 1]}, what
        shutil.rmtree(work)
    return counted.count


@pytest.mark.parametrize("name", NAMES)
def test_operations_that_fail(whole, tmp_path, name):
    """One in eleven here, all of them in tests/soak."""
    assert fail_each(name, whole, tmp_path, [errno.ENOSPC, errno.EIO, errno.EACCES], every=11) > 30


@pytest.mark.parametrize("at", range(1, 12))
def test_an_hdf5_file_that_can_not_be_written(tmp_path, at):
    """HDF5 never learns of it, and is fit for the next file."""
    path = tmp_path / "file.h5"
    with failing(tmp_path) as counted, hdf5(path) as file:
        file["some"], file["more"] = np.arange(100_000), np.arange(10)
    whole = path.read_bytes()
    assert counted.count > 5
    path.unlink()
    full = pytest.raises(OSError, match="No space left")
    with failing(tmp_path, min(at, counted.count - 1), errno.ENOSPC), full, hdf5(path) as file:
        file["some"], file["more"] = np.arange(100_000), np.arange(10)
    assert not path.exists()
    with hdf5(path) as file:
        file["some"], file["more"] = np.arange(100_000), np.arange(10)
    assert path.read_bytes() == whole
    with h5py.File(path) as file:
        assert file["some"][-1] == 99_999


def test_an_error_while_a_file_is_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("after")
        raise ZeroDivisionError
    assert path.read_text() == "before"

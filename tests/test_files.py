"""Files of ours: what was written is what is read, whatever it is; damage is told."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from neardup import NeardupError
from neardup.grouping.outputs import read_groups
from neardup.machine.files import read_json, write_json, write_npy
from neardup.machine.npy import map_npy, read_npy
from neardup.stages.artifacts import Stage

GRID = np.arange(12, dtype=np.int64).reshape(3, 4)


@pytest.mark.parametrize("array", [GRID, np.asfortranarray(GRID), GRID.T, GRID[:, ::2], GRID[0, 0], GRID[:0], 7])
def test_an_array_comes_back(tmp_path, array):
    """However it lies in memory."""
    write_npy(tmp_path / "a.npy", array)
    for read in (np.load, read_npy, *([map_npy] if np.size(array) else [])):
        found = read(tmp_path / "a.npy")
        assert found.dtype == np.int64
        assert found.shape == np.shape(array)
        assert np.array_equal(found, array)


def test_numbers_of_numpy_come_back_as_numbers(tmp_path):
    write_json(tmp_path / "a.json", {"rows": np.int64(5), "share": np.float32(0.5), "is": np.True_, "path": tmp_path})
    assert read_json(tmp_path / "a.json") == {"rows": 5, "share": 0.5, "is": True, "path": str(tmp_path)}


def test_what_is_no_data_set_is_damage(tmp_path):
    with h5py.File(tmp_path / "merged_clusters.h5", "w") as file:
        file["row"] = np.dtype("i8")  # a type by that name
        file["bounds"] = file["similarity"] = file["representative_row"] = file["cluster"] = np.zeros(1)
    with pytest.raises(NeardupError, match=r"merged_clusters\.h5 is damaged"):
        read_groups(tmp_path / "merged_clusters.h5")


def test_room_for_what_comes_beside_what_is_there(tmp_path, monkeypatch):
    """Or for all of a stage, of which an interrupted run has left some."""
    (tmp_path / "part").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    stage = Stage("04_neighbor_search", tmp_path, {})
    stage.needs(1500)
    stage.needs(500, more=True)
    for needed in ({"size": 1501}, {"size": 501, "more": True}):
        with pytest.raises(NeardupError, match="make room there"):
            stage.needs(**needed)

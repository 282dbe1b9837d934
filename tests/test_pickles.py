"""Pickles made of columns load as what Python would have pickled, by either unpickler of its library."""

import io
import pickle
import pickletools
import time
from functools import partial
from threading import Event, Thread
from types import SimpleNamespace

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neardup import pickles
from neardup.grouping import outputs
from neardup.grouping.groups import Groups
from neardup.input.id_table import IdTable
from neardup.machine.files import write_npy

TEXTS = st.text(max_size=9) | st.sampled_from(
    ["", "x" * 255, "x" * 256, "é" * 128, "\0", "\n", '"', "\u2028", "𝄞" * 70_000]
)
INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**31) - 1, -(2**31), -1, 0, 2**31 - 1, 2**31, 2**32])
ROWS = st.lists(
    st.tuples(TEXTS, INTEGERS, st.lists(st.tuples(TEXTS, st.floats(allow_nan=False)), max_size=4)), max_size=9
)


def column(values):
    """Strings, as ids are read."""
    return pa.array(values, pa.large_string())


def loaded(path):
    """What a pickle holds, of which every way to load it makes the same, down to the types and the order of dicts."""
    data = path.read_bytes()
    pickletools.dis(data, io.StringIO())  # raises where opcodes or stack are wrong
    found = pickle.loads(data)
    assert repr(found) == repr(pickle._loads(data))
    with path.open("rb") as file:
        assert repr(found) == repr(pickle.load(file))
        assert file.read() == b""
    return found


@given(rows=ROWS, cut=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_columns_load_as_the_values_of_their_rows(tmp_path_factory, rows, cut):
    """In several blocks, of which some are empty; of each column as it is sliced from a longer one."""
    path, blocks = tmp_path_factory.mktemp("pickles") / "all.pkl", []
    for some in (rows[:cut], rows[cut:]):
        texts, integers, lists = zip(*some, strict=True) if some else ((), (), ())
        flat, bounds = [item for items in lists for item in items], np.cumsum([0, *map(len, lists)])
        names = pickles.strings(column(["before", *(name for name, _ in flat)]).slice(1))
        floats = pickles.floats(np.array([value for _, value in flat], dtype=np.float64))
        numbers = pickles.integers(np.array(integers, dtype=np.int64))
        values = {
            "list": pickles.lists(pickles.pairs(names, floats), bounds),
            "dict": pickles.dicts(names, floats, bounds),
        }
        keys = pickles.pairs(pickles.strings(column(["before", *texts]).slice(1)), numbers)
        blocks.append((keys, pickles.records(number=numbers, **values)))
    pickles.write_dict(path, blocks)
    expected = {(text, number): {"number": number, "list": items, "dict": dict(items)} for text, number, items in rows}
    assert repr(loaded(path)) == repr(expected)


@pytest.mark.parametrize("blocks", [[], [([], [])]])
def test_nothing_loads_as_an_empty_dict(tmp_path, blocks):
    pickles.write_dict(
        tmp_path / "none.pkl", [(pickles.strings(column(a)), pickles.strings(column(b))) for a, b in blocks]
    )
    assert loaded(tmp_path / "none.pkl") == {}


@given(names=st.lists(TEXTS | st.text('ab\x7f\x1f "\x85é', max_size=3), max_size=9), chosen=st.integers(0, 2**9 - 1))
@settings(deadline=None, max_examples=200)
def test_lists_hold_a_line_for_each_id(tmp_path_factory, names, chosen):
    """Plain ASCII or not, in either list, from a row on."""
    folder = tmp_path_factory.mktemp("lists")
    keep = np.array([chosen >> i & 1 for i in range(len(names))], dtype=bool)
    ids = IdTable([column(["before"]), column(names[:2]), column(names[2:])])
    outputs.write_id_lists(folder, keep, ~keep, ids, first=1)
    for file, wanted in (("keep.txt", keep), ("drop.txt", ~keep)):
        lines = "".join(outputs.id_line(name) + "\n" for name, here in zip(names, wanted, strict=True) if here)
        assert (folder / file).read_bytes() == lines.encode()


@pytest.mark.parametrize("size", [4, 2_000])
def test_memory_holds_ids_of_any_length(tmp_path, size):
    """Of neighbors.pkl a share of what it may take, of merged_clusters.pkl some blocks: not all ids several times."""
    n_rows, given = 40_000, 16 * 2**20
    ids = IdTable([column([f"{row:0{size}d}" for row in range(n_rows)])])
    groups = Groups(
        np.arange(n_rows),
        np.arange(0, n_rows + 1, 2),
        np.ones(n_rows),
        np.arange(0, n_rows, 2),
        np.zeros(n_rows // 2, int),
    )
    write_npy(tmp_path / "labels.npy", np.zeros(n_rows, np.int32))
    with h5py.File(tmp_path / "neighbors.h5", "w") as file:
        file["row_a"], file["row_b"], file["similarity"] = (
            np.arange(0, n_rows, 2),
            np.arange(1, n_rows, 2),
            np.ones(n_rows // 2),
        )
    stage = SimpleNamespace(path=tmp_path.joinpath, part=lambda *_, **__: tmp_path / "part")
    named = {"labels_path": tmp_path / "labels.npy", "repeated": np.empty(0, np.int64)}
    for write, most in (
        (partial(outputs.write_neighbors_pickle, stage, ids, given, **named), given),
        (partial(outputs.write_pickle, tmp_path / "merged_clusters.pkl", groups, ids), outputs._PICKLED_BYTES),
    ):
        before = pa.default_memory_pool().bytes_allocated()
        peak = peak_of(write)
        assert peak - before < 1.5 * most
    found = loaded(tmp_path / "neighbors.pkl")
    names = ids.take(range(n_rows))
    assert list(found) == names
    assert [value["neighbors"] for value in found.values()] == [{names[row ^ 1]: 1.0} for row in range(n_rows)]


def peak_of(write):
    """Most bytes of Arrow's that were held at a time, as a thread that looks on has seen it."""
    pool, peak, done = pa.default_memory_pool(), 0, Event()

    def look():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, pool.bytes_allocated())
            time.sleep(1e-4)

    watcher = Thread(target=look)
    watcher.start()
    write()
    done.set()
    watcher.join()
    return peak

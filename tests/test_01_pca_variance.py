"""Stage 1: the component count is numpy's, the moments are, and no id is lost or changed."""

import json
import re
import tracemalloc

import h5py
import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import (
    SCRIPTS,
    brute_force,
    covariance_error,
    lay_out,
    load_npz,
    pair_set,
    read_ids,
    run_stages,
    unit,
    value_error,
)

from faiss_01_pca_variance import sample_of
from neardup import NeardupError
from neardup.input.freshness import _digest_of_ids
from neardup.input.id_table import _SCHEMA, IdTable, repeated_rows, write_table
from neardup.input.shards import find_shards


def stage_1(tmp_path, rows, cuts=(), ids=None, **settings):
    """Run stage 1 on these rows. Returns its folder."""
    run_stages(lay_out(tmp_path / "data", rows, cuts, ids), tmp_path / "work", scripts=SCRIPTS[:1], **settings)
    return tmp_path / "work" / "01_pca_variance"


def normal(n, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim))


def steep(n, dim):
    return normal(n, dim) * 0.8 ** np.arange(dim)


def around_a_direction(n, dim, spread):
    """Rows that share a direction, as embeddings of one model do."""
    return np.ones(dim) + spread * steep(n, dim)


SPECTRA = {
    "flat": normal(400, 16),
    "steep": steep(400, 20),
    "float16": steep(300, 16).astype(np.float16),
    "float32": steep(300, 16).astype(np.float32),
    "two directions": np.repeat(normal(2, 10), [30, 70], axis=0),
    "common direction": around_a_direction(300, 12, 0.5),
    "lengths": steep(300, 16) * 10 ** np.random.default_rng(1).uniform(-3, 3, size=(300, 1)),
    "rank 5": normal(200, 5) @ normal(5, 20, seed=2),
    "n < d": normal(9, 40),
    "d = 2": normal(50, 2),
    "two rows": normal(2, 6),
    "one row": normal(1, 7),
    "all the same": np.repeat(normal(1, 64), 1000, axis=0),
    "all the same but for length": normal(1, 30) * np.arange(1, 101)[:, None],
}


def numpy_components(rows, target):
    """The smallest number of components, at least 1, that keep this share of the variance."""
    centred = unit(rows) - unit(rows).mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    rounding = max(rows.shape) * 2.0**-52 * np.sqrt(len(rows))  # as numpy.linalg.matrix_rank has it, for unit rows
    squares = singular[singular > rounding] ** 2
    if target == 1:
        return max(1, len(squares))
    shares = np.cumsum(squares) / squares.sum()
    assert np.abs(shares - target).min(initial=1) > 1e-5, "too near to tell"
    return int((shares < target).sum()) + 1


@pytest.mark.parametrize(
    ("kind", "target"),
    [(kind, target) for kind in SPECTRA for target in (0.95, 1.0)] + [("steep", t) for t in (0.01, 0.4, 0.8, 0.999)],
)
def test_as_many_components_as_numpy_needs(tmp_path, capsys, kind, target):
    rows = SPECTRA[kind]
    folder = stage_1(tmp_path, rows, cuts=[len(rows) // 2, len(rows) // 2], target_variance=target)
    found = json.loads((folder / "n_components.json").read_text())
    assert found["n_components"] == numpy_components(rows, target)
    # shares can differ by the error of the variances (a trace, so summed), relative to all variance
    variance = np.trace(np.cov(unit(rows).T)) if len(rows) > 1 else 0
    error = np.trace(covariance_error(rows, len(rows))) / variance if variance else 0
    assert found["variance_kept"] >= target - error
    keep = "1 component keeps" if found["n_components"] == 1 else f"{found['n_components']} components keep"
    assert f"\n{keep} " in capsys.readouterr().out


@pytest.mark.parametrize("spread", [0.1, 0.01, 0.001])
def test_components_are_counted_right_where_all_rows_are_alike(tmp_path, spread):
    """The variance is small beside the rows themselves: cosines of 0.99 and more."""
    rows = around_a_direction(3000, 16, spread)
    folder = stage_1(tmp_path, rows, target_variance=0.9)
    assert json.loads((folder / "n_components.json").read_text())["n_components"] == numpy_components(rows, 0.9)


@pytest.mark.parametrize("kind", ["flat", "float16", "common direction", "lengths", "n < d", "all the same"])
def test_moments_are_those_of_numpy(tmp_path, kind):
    rows = SPECTRA[kind]
    folder = stage_1(tmp_path, rows, cuts=[1, 1, len(rows) // 2])
    moments = load_npz(folder / "moments.npz")
    assert moments["count"] == len(rows)
    assert {moments[name].dtype for name in ("mean", "covariance", "variances")} == {np.dtype(np.float64)}
    mean_error = np.abs(unit(rows)).mean(axis=0) * value_error(rows.shape[1])  # the mean itself is summed in float64
    assert (np.abs(moments["mean"] - unit(rows).mean(axis=0)) <= mean_error).all()
    error = covariance_error(rows, len(rows) - len(rows) // 2)
    assert (np.abs(moments["covariance"] - np.cov(unit(rows).T)) <= error).all()
    assert (moments["covariance"] == moments["covariance"].T).all()


@pytest.mark.parametrize("kind", ["steep", "n < d", "one row"])
def test_variances_are_the_spectrum_in_descending_order(tmp_path, kind):
    rows = SPECTRA[kind]
    moments = load_npz(stage_1(tmp_path, rows) / "moments.npz")
    variances, dim = moments["variances"], rows.shape[1]
    assert variances.shape == (dim,)
    assert (np.diff(variances) <= 0).all()
    assert (variances >= 0).all()
    true = np.zeros(dim)
    if len(rows) > 1:
        singular = np.linalg.svd(unit(rows) - unit(rows).mean(axis=0), compute_uv=False)
        true[: len(singular)] = singular**2 / (len(rows) - 1)
    # Weyl: no eigenvalue moves by more than the norm of the error; variances below 2^-20 of the largest count as none
    assert (np.abs(variances - true) <= np.linalg.norm(covariance_error(rows, len(rows))) + 2.0**-20).all()


def test_the_spectrum_is_drawn(example):
    path = example / "01_pca_variance" / "scree.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10  # something is on it


def test_ids_stand_in_natural_order_of_shards(tmp_path):
    """_2 before _10, and a shard of no rows in between."""
    stage_1(tmp_path, normal(25, 4), cuts=[2, 5, 5, 6, 8, 9, 12, 15, 16, 20, 22])
    assert len(list((tmp_path / "data").glob("*.npy"))) == 12
    assert read_ids(tmp_path / "work") == [f"id-{i}" for i in range(25)]


N_IDS = 300_000


def hdf5_of_ids(path, ids):
    with h5py.File(path, "w") as file:
        file["train"], file["id"] = np.ones((len(ids), 2), "f4"), ids


BESIDE = {  # what lies beside the vectors, or holds them, and how to write ids there
    "nothing": ("p.txt", lambda path, ids: None),
    "Parquet": ("p.parquet", lambda path, ids: pq.write_table(pa.table({"id": ids}), path)),
    "HDF5": ("p.h5", hdf5_of_ids),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_ids_are_gathered_block_by_block(tmp_path, monkeypatch, kind):
    """In 8 bytes a row for hashes, and 3 MB; as strings of Python all would take 20."""
    monkeypatch.setattr("neardup.input.ids.BLOCK_ROWS", 4096)
    monkeypatch.setattr("neardup.input.metadata._BATCH", 5000)
    name, write = BESIDE[kind]
    ids = [f"{i:020}" for i in range(N_IDS)] if kind != "nothing" else [f"p:{i}" for i in range(N_IDS)]
    write(tmp_path / name, ids)
    if kind != "HDF5":
        np.save(tmp_path / "p.npy", np.ones((N_IDS, 2), "f4"))
    shards = find_shards(tmp_path)
    pa.array(np.zeros(1))  # pyarrow imports pandas, where that is installed
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        hashes = write_table(tmp_path / "ids.arrow", shards)
        digest = _digest_of_ids(shards[0])
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert peak < 8 * N_IDS + (3 << 20)
    assert (digest is None) == (kind == "nothing")
    with pa.ipc.open_file(tmp_path / "ids.arrow") as file:
        assert file.read_all()["id"].to_pylist() == ids
        assert max(file.get_batch(i).num_rows for i in range(file.num_record_batches)) <= 4096
    assert hashes.tolist() == [hash(i) for i in ids]


def test_only_shards_of_the_pattern_are_read(tmp_path):
    lay_out(tmp_path / "data", normal(3, 5), stem="other", ids=["x", "y", "z"])
    lay_out(tmp_path / "data", normal(4, 8), cuts=[3], stem="DFN5B")
    run_stages(tmp_path / "data", tmp_path / "work", scripts=SCRIPTS[:1], shard_pattern="DFN5B*.npy")
    assert read_ids(tmp_path / "work") == ["id-0", "id-1", "id-2", "id-3"]


STRANGE_IDS = [
    "naïve",
    "重複",
    "🦊",
    "a\nb",
    "a\r\nb",
    "\u2028",
    "\x00",
    'say "hi"',
    '"',
    "",
    " ",
    "a\tb",
    "a,b",
    "null",
]


def test_ids_survive_whatever_they_hold(tmp_path):
    stage_1(tmp_path, normal(len(STRANGE_IDS), 4), cuts=[5], ids=STRANGE_IDS)
    assert read_ids(tmp_path / "work") == STRANGE_IDS


def test_integer_ids_become_strings(tmp_path):
    stage_1(tmp_path, normal(5, 4), cuts=[2], ids=[7, "8", -1, 0, 2**70])
    assert read_ids(tmp_path / "work") == ["7", "8", "-1", "0", str(2**70)]


def test_an_integer_and_its_string_are_one_id(tmp_path):
    with pytest.raises(NeardupError, match=re.escape("'7' (row 0 of part_0.txt), '7' (row 1 of part_1.txt)")):
        stage_1(tmp_path, normal(4, 4), cuts=[2], ids=[7, 1, 2, "7"])


def test_rows_of_repeated_ids_are_listed(tmp_path):
    ids = ["a", "b", "a", "c", "b", "a"]
    folder = stage_1(tmp_path, normal(6, 4), cuts=[3], ids=ids, duplicate_ids="allow")
    assert np.load(folder / "repeated_rows.npy").tolist() == [0, 1, 2, 4, 5]
    assert read_ids(tmp_path / "work") == ids


def test_damaged_ids_that_nobody_hashed(tmp_path):
    """As a query reads them, here and there: told, or ids of others, but no memory is read that isn't theirs."""
    names, rng, told = [f"{'é' * (i % 5)}{i}" for i in range(300)], np.random.default_rng(0), 0
    with pa.OSFile(str(tmp_path / "ids.arrow"), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for start in range(0, 300, 100):
            writer.write_batch(pa.record_batch([pa.array(names[start : start + 100], pa.large_string())], _SCHEMA))
    whole = (tmp_path / "ids.arrow").read_bytes()
    for _ in range(1000):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        (tmp_path / "ids.arrow").write_bytes(content[: rng.choice([len(content), rng.integers(1, len(content))])])
        rows = rng.integers(300, size=20)
        try:
            assert len(IdTable.open(tmp_path / "ids.arrow", here_and_there=True).take(rows)) == 20
        except NeardupError as error:
            assert "ids.arrow is damaged" in str(error)
            told += 1
    assert 500 < told < 1000


def test_ids_of_one_hash_are_not_one_id():
    table = IdTable([pa.array(["other", "a", "b"]), pa.array(["a", "c"])])
    assert repeated_rows(np.zeros(4, dtype=np.int64), table, first=1).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("n_rows", "count"),
    [(10, 10), (10, 11), (10, 9), (1000, 7), (100_003, 131), (5, 1), (4097, 4096), (200_000, 131_072)],
)
def test_a_row_of_each_equal_part_counts(n_rows, count):
    """However kinds of rows follow each other, and the same ones each time."""
    rows = sample_of(n_rows, count)
    assert np.array_equal(rows, sample_of(n_rows, count))
    if n_rows <= count:
        assert rows.tolist() == list(range(n_rows))
    else:
        places = np.arange(count) * n_rows / count
        assert ((np.floor(places) <= rows) & (rows < places + n_rows / count)).all()
        assert len(np.unique(rows)) == count
    assert len({int(row) % 10 for row in sample_of(10_000, 1000)}) == 10


def test_moments_of_a_sample_are_those_of_its_rows(tmp_path):
    """Rows without a direction count for nothing, also where they were chosen; all are listed."""
    rows = steep(500, 16).astype(np.float32)
    rows[10:60] = 0
    folder = stage_1(tmp_path, rows, cuts=[3, 130], basis_rows=90, bad_rows="skip")
    chosen = np.setdiff1d(sample_of(500, 90), np.arange(10, 60))
    moments = load_npz(folder / "moments.npz")
    assert moments["count"] == len(chosen) < 90
    mean_error = np.abs(unit(rows[chosen])).mean(axis=0) * value_error(16)
    assert (np.abs(moments["mean"] - unit(rows[chosen]).mean(axis=0)) <= mean_error).all()
    error = covariance_error(rows[chosen], len(chosen))
    assert (np.abs(moments["covariance"] - np.cov(unit(rows[chosen]).T)) <= error).all()
    assert np.load(folder / "rejected_rows.npy").tolist() == list(range(10, 60))


def test_many_rejected_rows_take_little_memory(tmp_path):
    """They are written some at a time, in order, with their reasons."""
    rows = np.zeros((60_000, 2), np.float32)
    rows[::3] = np.nan
    rows[1::5] = 1
    stage_1(tmp_path / "before", rows[:9], bad_rows="skip")  # imports what it does
    tracemalloc.start()
    try:
        folder = stage_1(tmp_path, rows, cuts=[25_000], bad_rows="skip")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak / 1e6:.1f} MB")
    assert peak < 15e6
    of = (np.arange(60_000) >= 25_000).astype(int)
    assert (folder / "rejected.csv").read_text().splitlines()[1:] == [
        f"{i},part_{of[i]}.npy,{i - of[i] * 25_000},id-{i},{'all zeros' if i % 3 else 'NaN or infinity'}"
        for i in range(60_000)
        if i % 5 != 1
    ]


@pytest.mark.parametrize("basis_rows", [499, 400, 251])
def test_moments_of_nearly_all_rows_are_those_of_its_rows(tmp_path, basis_rows):
    """Of rows of any length, in shards so small that the sample has none, some or all rows of one."""
    rows = (normal(500, 8) * 10 ** np.random.default_rng(1).uniform(-2, 2, (500, 1))).astype(np.float32)
    folder = stage_1(tmp_path, rows, cuts=range(2, 500, 2), basis_rows=basis_rows)
    chosen, moments = sample_of(500, basis_rows), load_npz(folder / "moments.npz")
    assert moments["count"] == basis_rows
    mean_error = np.abs(unit(rows[chosen])).mean(axis=0) * value_error(8)
    assert (np.abs(moments["mean"] - unit(rows[chosen]).mean(axis=0)) <= mean_error).all()
    assert (np.abs(moments["covariance"] - np.cov(unit(rows[chosen]).T)) <= covariance_error(rows[chosen], 500)).all()


def test_as_many_rows_and_one_as_components_are_made_of(tmp_path):
    """By default; blocks have room for just their rows."""
    rows = normal(131_073, 2).astype(np.float32)
    assert load_npz(stage_1(tmp_path, rows, cuts=range(8192, 131_073, 8192)) / "moments.npz")["count"] == 131_072


def test_no_row_of_the_sample_has_a_direction(tmp_path, capsys):
    rows, some = np.zeros((500, 4), dtype=np.float32), np.setdiff1d(np.arange(500), sample_of(500, 3))[:100]
    rows[some] = normal(100, 4)
    run_stages(lay_out(tmp_path / "data", rows), tmp_path / "work", basis_rows=3, bad_rows="skip", threshold=0.9)
    assert "1 component keeps 100.00% of the variance of the 0 rows they were made of" in capsys.readouterr().out
    assert pair_set(tmp_path / "work") == {(some[a], some[b]) for a, b in brute_force(rows[some], 0.9)[0]}

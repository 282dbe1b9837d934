"""Every input format gives the answer that the same rows give as .npy; what is wrong with a file is said in a line."""

import csv
import json
import os
import re
import tracemalloc
import zipfile
from decimal import Decimal
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from uuid import UUID

import faiss
import fsspec
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import (
    EXAMPLE,
    SCRIPTS,
    answer,
    command,
    found_groups,
    found_pairs,
    lay_out,
    peak_memory,
    read_column,
    read_csv,
    read_ids,
    run_stages,
    tree_bytes,
)

from config import Config
from neardup import NeardupError
from neardup.grouping.outputs import id_lines
from neardup.input import copies, layout, shards
from neardup.input.column_digest import digest_of_column
from neardup.input.embeddings import RowFiles, Shard
from neardup.input.formats import by_suffix
from neardup.input.formats.record_batches import batches, missing_values, schema_and_rows
from neardup.input.freshness import times
from neardup.input.id_table import IdTable
from neardup.input.ids import expected_bytes, id_blocks
from neardup.input.layout import Layout, npy_layout
from neardup.input.metadata import column_blocks, column_names
from neardup.input.preview import Preview
from neardup.input.shards import Reading, find_shards
from neardup.plan import plan
from neardup.stages.artifacts import STAGES
from neardup.words import counted

BOUNDS = 0, 130, 300  # rows of the example, in two shards
SETTINGS = {"threshold": 0.95, "n_clusters": 3, "audit_rows": 20}
IDS = ['"quoted"', "two\nlines", "comma, ünï", "007", *(f"id-{i}" for i in range(4, 300))]
NUMBERS = list(range(5, 305))
HEAD = np.load(EXAMPLE / "demo_0.npy")[:300]
ROWS = {  # by dtype; a third has digits that no narrower one holds
    "f2": HEAD,
    "f4": HEAD.astype("f4") / 3,
    "f8": HEAD.astype("f8") / 3,
    "i1": np.rint(HEAD.astype("f4") * 400).clip(-127, 127).astype("i1"),
    "u1": np.rint(HEAD.astype("f4") * 800).clip(0, 255).astype("u1"),
}
FEW = np.random.default_rng(0).normal(size=(20, 8)).astype("f4")
NAMES = [f"id-{i}" for i in range(20)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several blocks a shard."""
    monkeypatch.setattr("neardup.input.formats.BLOCK_BYTES", 1 << 16)


@pytest.fixture
def made(monkeypatch):
    """Names of the shards that are decoded, as they are."""
    names, make = [], copies._make
    monkeypatch.setattr(copies, "_make", lambda shard, *of: [names.append(shard.name), make(shard, *of)])
    return names


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Pairs and groups of the rows of a dtype as .npy; integers as float32."""

    @cache
    def of(dtype):
        folder = tmp_path_factory.mktemp("plain")
        rows = ROWS[dtype] if dtype[0] == "f" else ROWS[dtype].astype("f4")
        run_stages(lay_out(folder / "data", rows, BOUNDS[1:2], IDS), folder / "work", **SETTINGS)
        assert read_ids(folder / "work") == IDS
        return pairs(folder / "work"), found_groups(folder / "work")

    return of


def pairs(work):
    """Rows and the bits of their similarities."""
    row_a, row_b, similarity = found_pairs(work)
    assert len(row_a) > 30
    return row_a.tolist(), row_b.tolist(), similarity.tolist()


def in_shards(write, folder, dtype="f4", ids=IDS):
    """Write the rows of a dtype as two shards. Returns the folder. write: of those below, by a format's own library."""
    folder.mkdir(exist_ok=True)
    for number, (low, high) in enumerate(pairwise(BOUNDS)):
        write(folder, number, ROWS[dtype][low:high], ids[low:high])
    return folder


def write_table(path, columns, stream=False, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table, max_chunksize=70)


def lists(rows, kind="fixed"):
    """Rows as an Arrow array of lists."""
    values = pa.array(rows.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    ends = np.arange(0, rows.size + 1, rows.shape[1])
    return pa.LargeListArray.from_arrays(ends, values) if kind == "large" else pa.ListArray.from_arrays(ends, values)


def tables(folder, number, rows, ids, name="p_{}.parquet", kind="fixed", **options):
    columns = {"n": np.arange(len(ids)), "emb": lists(rows, kind), "id": ids, "url": ids[::-1]}
    write_table(folder / name.format(number), columns, **options)


def npy(folder, number, rows, ids, beside=None, column="id"):
    np.save(folder / f"p_{number}.npy", rows)
    if beside == ".txt":
        (folder / f"p_{number}.txt").write_text(id_lines(ids), encoding="utf-8")
    elif beside:
        write_table(folder / f"p_{number}{beside}", {"n": np.arange(len(ids)), column: ids})


def npz(folder, number, rows, ids, save=np.savez):
    save(folder / f"p_{number}.npz", b32_img=rows[::-1], l14_img=rows, other=rows[:, :5])
    write_table(folder / f"p_{number}.parquet", {"uid": ids, "url": ids[::-1]})


def npz_of_all(folder, number, rows, ids, column="ids", save=np.savez):
    """Vectors and ids in one file, as people save them."""
    save(folder / f"p_{number}.npz", **{column: np.array(ids)}, embeddings=rows, mean=rows.mean(axis=0))


def clip(folder, number, rows, ids, of="img_emb", column="image_path"):
    """As clip-retrieval has it: pictures, texts and their metadata in a folder each."""
    for name in ("img_emb", "text_emb"):
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / f"{name}_{number}.npy", rows if name == of else rows[::-1])
    columns = {"caption": ids[::-1], "image_path": [f"{number}/{i}" for i in range(len(ids))]} | {column: ids}
    write_table(folder / "metadata" / f"metadata_{number}.parquet", columns)


def hdf5(folder, number, rows, ids, name="train", **options):
    with h5py.File(folder / f"p_{number}.hdf5", "w") as file:
        for each in ("test", "train"):
            file.create_dataset(each, data=rows if each == name else rows[::-1], **options)
        file["id"] = ids


def vecs(folder, number, rows, ids, suffix):
    """corpus-texmex.irisa.fr: before each row its length; big-ann-benchmarks.com: first the numbers of rows, values."""
    with (folder / f"p_{number}{suffix}").open("wb") as file:
        if suffix.endswith("vecs"):
            lengths = np.full((len(rows), 1), rows.shape[1], "<i4").view("u1")
            np.hstack([lengths, rows.view("u1")]).tofile(file)
        else:
            np.array(rows.shape, "<u4").tofile(file)
            rows.tofile(file)


def flat(folder, number, rows, ids, kind=faiss.IndexFlatIP, named=None):
    index = kind(rows.shape[1])
    if named:
        index = named(index)
        index.add_with_ids(rows, np.array(ids))
    else:
        index.add(rows)
    faiss.write_index(index, str(folder / f"p_{number}.index"))


fvecs, arrow = partial(vecs, suffix=".fvecs"), partial(tables, name="p_{}.arrow")


def case(write, ids=IDS, dtype="f4", **settings):
    """ids: what they are, or None where the rows are numbered; integers are expected as text."""
    return write, ids, dtype, settings


MAPPED = {
    "npy, ids in lines": case(partial(npy, beside=".txt")),
    "npy, CSV": case(partial(npy, beside=".csv")),
    "npy, CSV of digits": case(partial(npy, beside=".csv"), [f"{i:04}" for i in range(300)]),
    "npy, Parquet": case(partial(npy, beside=".parquet", column="key"), dtype="f2"),
    "npy, integers of a named column": case(partial(npy, beside=".arrow", column="no"), NUMBERS, id_column="no"),
    "npy, no ids": case(npy, None),
    "npy, integers": case(npy, None, "i1"),
    "clip-retrieval": case(clip),
    "clip-retrieval, texts": case(partial(clip, of="text_emb"), vectors="text_emb"),
    "clip-retrieval, another column": case(partial(clip, column="sha256"), id_column="sha256"),
    "npz": case(npz, vectors="l14_img"),
    "npz, ids within": case(npz_of_all),
    "npz, integers of a named array": case(partial(npz_of_all, column="no"), NUMBERS, id_column="no"),
    "hdf5": case(hdf5),
    "hdf5, integers": case(hdf5, NUMBERS),
    "hdf5, test": case(partial(hdf5, name="test"), vectors="test"),
    "fvecs": case(fvecs, None),
    "bvecs": case(partial(vecs, suffix=".bvecs"), None, "u1"),
    "fbin": case(partial(vecs, suffix=".fbin"), None),
    "u8bin": case(partial(vecs, suffix=".u8bin"), None, "u1"),
    "i8bin": case(partial(vecs, suffix=".i8bin"), None, "i1"),
}
DECODED = {
    "parquet": case(partial(tables, row_group_size=37)),
    "parquet, named": case(partial(tables, name="DFN_{}.parquet"), shard_pattern="DFN*", id_column="id"),
    "parquet, lists": case(partial(tables, kind="list", row_group_size=37)),
    "parquet, large lists": case(partial(tables, kind="large", compression="zstd")),
    "parquet, float64": case(partial(tables, kind="list"), dtype="f8"),
    "parquet, float16": case(partial(tables, kind="list"), dtype="f2"),
    "parquet, int8": case(tables, dtype="i1"),
    "parquet, nested": case(partial(tables, name="year={}/p.parquet"), shard_pattern="**/*.parquet"),
    "arrow": case(arrow),
    "arrow, lists in a stream": case(partial(arrow, kind="list", stream=True)),
    "feather, lz4": case(partial(tables, name="p_{}.feather", compression="lz4")),
    "npz, compressed": case(partial(npz, save=np.savez_compressed), vectors="l14_img"),
    "npz, ids within, compressed": case(partial(npz_of_all, save=np.savez_compressed), dtype="f2"),
    "hdf5, chunks": case(partial(hdf5, chunks=(50, 100), compression="gzip"), dtype="f2"),
    "IndexFlatIP": case(flat, None),
    "IndexFlatL2": case(partial(flat, kind=faiss.IndexFlatL2), None),
    "IndexIDMap": case(partial(flat, named=faiss.IndexIDMap), NUMBERS),
    "IndexIDMap2": case(partial(flat, named=faiss.IndexIDMap2), NUMBERS),
}
FORMATS = MAPPED | DECODED


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_answer(plain, tmp_path, made, name):
    """Found by itself, memory-mapped where it can be or decoded once, and never written to."""
    write, ids, dtype, settings = FORMATS[name]
    data, work = in_shards(write, tmp_path / "data", dtype, ids or IDS), tmp_path / "work"
    expected, before = plain(dtype), tree_bytes(data)
    for scripts in (SCRIPTS, SCRIPTS[:1]):
        run_stages(data, work, scripts, **SETTINGS, **settings)
        assert len(made) == len(list(work.glob("input/**/*.npy"))) == (2 if name in DECODED else 0)
    assert (pairs(work), found_groups(work)) == expected
    numbered = [f"p_{n}:{i}" for n, (low, high) in enumerate(pairwise(BOUNDS)) for i in range(high - low)]
    assert read_ids(work) == ([str(i) for i in ids] if ids else numbered)
    assert tree_bytes(data) == before


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_a_table_without_rows_is_passed_over(tmp_path, kind, suffix):
    """As Spark leaves them: first, last and in between, also of lists whose type doesn't say how long they would be."""
    for number, rows in enumerate([FEW[:0], FEW[:7], FEW[:0], FEW[7:], FEW[:0]]):
        ids = pa.array([f"{number}-{i}" for i in range(len(rows))], pa.string())
        columns = {"emb": lists(rows, kind), "id": ids}
        if number == 4:  # as pandas writes them
            columns = dict.fromkeys(columns, pa.nulls(0))
        write_table(tmp_path / f"p_{number}{suffix}", columns)
    found = [(s.name, s.start, s.rows, s.dim) for s in find_shards(tmp_path)]
    assert found == [(f"p_1{suffix}", 0, 7, 8), (f"p_3{suffix}", 7, 13, 8)]
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == [f"1-{i}" for i in range(7)] + [f"3-{i}" for i in range(13)]


@pytest.mark.parametrize("place", ["{}/p_1.npy", "{}/p_1.parquet", "memory://bucket/set/p_1.parquet"])
def test_a_single_file(tmp_path, memory, place):
    """With its ids; the others beside it don't matter."""
    data = in_shards(tables if "parquet" in place else partial(npy, beside=".txt"), tmp_path / "data")
    upload(memory, data)
    run_stages(place.format(data), tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == IDS[BOUNDS[1] :]


@pytest.mark.parametrize(("chosen", "looked"), [(None, ".npy, .npz, .hdf5"), ("parquet", ".parquet were looked for")])
@pytest.mark.parametrize("place", ["{}/my.pt", "memory://bucket/set/my.pt"])
def test_a_single_file_of_no_format(tmp_path, memory, fetched, place, looked, chosen):
    """What was looked for is said, not that a pattern which nobody set is wrong."""
    bytes_of("my.pt", NOISE)(make_folder(tmp_path / "data"))
    upload(memory, tmp_path / "data")
    place = place.format(tmp_path / "data")
    with pytest.raises(NeardupError, match=re.escape(f"data_dir {place} is a file, and none of")) as caught:
        run_stages(place, tmp_path / "work", SCRIPTS[:1], input_format=chosen)
    assert looked in str(caught.value)
    assert "shard_pattern" not in str(caught.value)
    assert fetched == []


@pytest.mark.parametrize(("chosen", "first"), [(None, "p_0:0"), ("npy", "p_0:0"), ("parquet", "id-0")])
def test_a_table_beside_other_files_is_read_if_asked_for(tmp_path, chosen, first):
    few(npy, tables)(tmp_path)
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], input_format=chosen)
    assert read_ids(tmp_path / "work")[0] == first


@pytest.mark.parametrize(
    ("suffix", "pattern", "said"), [("npy", None, True), ("parquet", None, True), ("npy", "*", False)]
)
def test_shards_in_folders_below_others_are_not_left_out_in_silence(tmp_path, capsys, suffix, pattern, said):
    """Where no pattern chose; not files of other shapes, those of work folders, nor what can't be read."""
    write = few(*{"npy": (npy, npy), "parquet": (tables, tables)}[suffix])
    for folder in ("", "sub", "z"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "masks.npy", np.ones((3, 2, 2)))
    (tmp_path / "a" / f"torn.{suffix}").write_bytes(NOISE)
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], shard_pattern=pattern, duplicate_ids="allow")
    told = (
        f"left out: sub/p_0.{suffix}, and others like it, of {tmp_path}: set shard_pattern to '**/*.{suffix}' to read"
    )
    assert capsys.readouterr().err.count(told) == said


def test_tables_that_look_like_shards_are_not_left_out_in_silence(tmp_path, capsys):
    """Where a single .npy file comes to a folder of those; not metadata, nor a table that can't be read."""
    few(tables, tables)(tmp_path)
    (tmp_path / "torn.parquet").write_bytes(NOISE)
    (tmp_path / "gone.parquet").symlink_to("nowhere")
    (tmp_path / "gone.arrow").symlink_to("gone.arrow")
    pq.write_table(pa.table({"id": NAMES, "box": [[0.0, 1.0, 2.0, 3.0]] * len(NAMES)}), tmp_path / "metadata.parquet")
    np.save(tmp_path / "new.npy", FEW)
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out: p_0.parquet, and others like it, of {tmp_path}: with vectors, but beside no")
    assert "Set input_format to 'parquet' to read such files instead" in line
    (tmp_path / "p_0.parquet").rename(tmp_path / "new.parquet")
    (tmp_path / "p_1.parquet").unlink()
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert capsys.readouterr().err == ""


def few(*writers, below="."):
    """A writer of a few rows as each of these has them: p_0, p_1."""
    return lambda d: [write(make_folder(d / below), number, FEW, NAMES) for number, write in enumerate(writers)]


def make_folder(path):
    path.mkdir(exist_ok=True)
    return path


def table(name, **columns):
    return lambda d: write_table(d / name, columns)


def odd(row, *others, kind=None, count=20):
    """Lists of which some are others, from this row on."""
    values = np.resize(FEW, (count, 8)).tolist()
    values[row : row + len(others)] = others
    return pa.array(values, kind or pa.list_(pa.float32()))


def beside(ids, suffix):
    """A writer of two shards, the second with these ids beside it."""
    return lambda d: [npy(d, 0, FEW, NAMES, suffix), npy(d, 1, FEW, ids, suffix if ids else None)]


def sets(folder, name, suffix):
    vecs(folder, 0, FEW, NAMES, suffix)
    (folder / f"p_0{suffix}").rename(folder / f"{name}{suffix}")


def bytes_of(name, content):
    return lambda d: (d / name).write_bytes(content)


def index(content, d):
    faiss.write_index(content, str(d / "p.index"))


def datasets(**found):
    def write(d):
        with h5py.File(d / "p.h5", "w") as file:
            file.update(found)

    return write


NUMBERED, LINKS = [f"p:{i}" for i in range(20)], [f"url-{i}" for i in range(20)]
FIXED, LISTS = pa.list_(pa.float32(), 8), lists(FEW)
BYTES = [*(b"id-%d" % i for i in range(19)), b"\xff"]
NOISE = b"neither of them, nor anything else"
BENT = np.hstack([np.full((20, 1), 8, "<i4"), FEW.view("<i4")])
BENT[13, 0] = 7
BAD = {  # how to write it, message, settings
    "npy, fvecs": (few(npy, fvecs), "several formats, npy (p_0.npy) and vecs (p_1.fvecs): set input_format"),
    "npz, hdf5": (few(npz, hdf5), "several formats, npz (p_0.npz) and hdf5 (p_1.hdf5): set input_format"),
    "tables": (few(tables, arrow), "several formats, arrow (p_1.arrow) and parquet (p_0.parquet): set input_f"),
    "nothing": (bytes_of("README.md", b""), "(names that end in .npy, .npz, .hdf5, .h5, .fvecs, .bvecs, .fbin, .u8bin"),
    "below": (few(tables, below="a"), "data/a, or shard_pattern to '**/*.parquet'"),
    "pattern": (few(npy), "matches shard_pattern 'q*' (names that end in .npy, ", {"shard_pattern": "q*"}),
    "format": (few(npy), "(names that end in .hdf5, .h5 were looked for)", {"input_format": "hdf5"}),
    "sets": (
        lambda d: [sets(d, name, ".fvecs") for name in ("sift_query", "sift_base_0", "sift_base_1", "sift_learn")],
        "holds 3 sets of vectors (sift_base_0.fvecs, sift_learn.fvecs, sift_query.fvecs): set shard_pattern to",
    ),
    "no clip-retrieval": (few(npy), "has no img_emb/*.npy", {"input_format": "clip-retrieval"}),
    "no texts": (few(npy, below="img_emb"), "no text_emb/*.npy: set vectors to one of", {"vectors": "text_emb"}),
    "no Parquet": (bytes_of("p.parquet", NOISE), "p.parquet is no .parquet file that can be read ("),
    "no Arrow": (bytes_of("p.arrow", NOISE), "p.arrow is no .arrow file that can be read ("),
    "no HDF5": (bytes_of("p.h5", NOISE), "p.h5 is no HDF5 file that can be read ("),
    "no npz": (bytes_of("p.npz", NOISE), "p.npz is not a .npz file ("),
    "no index": (bytes_of("p.index", NOISE), "p.index is not an index of FAISS ("),
    "no vecs": (bytes_of("p.fvecs", NOISE), "p.fvecs has 34 bytes, which are no rows of "),
    "empty vecs": (bytes_of("p.bvecs", b""), "p.bvecs is empty"),
    "dimension below zero": (bytes_of("p.bvecs", b"\xff" * 8), "p.bvecs has 8 bytes, which are no rows of -1 values"),
    "another length": (table("p.parquet", emb=odd(7, [1.0] * 5)), "p.parquet (column emb): row 7 is of 5 values, not"),
    "lengths that make 16": (table("p.arrow", emb=odd(7, [1.0] * 7, [1.0] * 9)), "(column emb): row 7 is of 7 values"),
    "far in": (table("p.parquet", emb=odd(9000, [1.0], count=9500)), "(column emb): row 9000 is of 1 values, not 8"),
    "another length, Arrow": (table("p.arrow", emb=odd(7, [])), "p.arrow (column emb): row 7 is of 0 values, not 8"),
    "null list": (table("p.parquet", emb=odd(7, None)), "p.parquet (column emb): row 7 is missing"),
    "null list of fixed size": (
        table("p.arrow", emb=odd(7, None, kind=FIXED)),
        "p.arrow (column emb): row 7 is missing",
    ),
    "null in a list": (table("p.parquet", emb=odd(7, [None] * 8)), "row 7 is not a number in every place"),
    "null in a fixed list": (table("p.parquet", emb=odd(7, [1.0] * 7 + [None], kind=FIXED)), "row 7 is not a num"),
    "no rows": (table("p.parquet", emb=lists(FEW[:0])), "p.parquet has no rows"),
    "no vectors": (table("p.arrow", id=NAMES), "p.arrow has no column of vectors"),
    "several": (table("p.arrow", a=LISTS, b=LISTS), "p.arrow has several columns of vectors (a, b): set vectors"),
    "others": (table("p.arrow", a=LISTS, b=LISTS), "no column 'c' of vectors (there are: a, b)", {"vectors": "c"}),
    "no data set": (datasets(x=np.arange(3)), "p.h5 has no data set of vectors (there are: none): set vectors"),
    "several data sets": (datasets(x=FEW, y=FEW), "p.h5 has several data sets of vectors (x, y): set vectors"),
    "no array": (lambda d: np.savez(d / "p.npz", x=FEW[0]), "p.npz has no array of vectors"),
    "integers in HDF5": (datasets(train=FEW.astype("i4")), "p.h5 (train) holds int32, not float16, float32"),
    "integers in HDF5, named": (
        datasets(train=FEW, b=FEW.astype("i4")),
        "p.h5 (b) holds int32, not float16, float32",
        {"vectors": "b"},
    ),
    "integers": (lambda d: np.savez(d / "p.npz", x=FEW.astype(int)), "p.npz (x.npy) holds int64, not float16"),
    "objects": (lambda d: np.savez(d / "p.npz", x=FEW.astype(object)), "(x.npy) holds pickled Python objects"),
    "widths": (lambda d: [npz(d, 0, FEW, NAMES), npz(d, 1, FEW[:, :6], NAMES)], "p_1.npz has rows of 6 values"),
    "no id_column": (table("p.arrow", a=LISTS, b=NAMES), "has no column 'c' (it has: a, b)", {"id_column": "c"}),
    "no table for id_column": (beside(None, None), "p_0.npy has no table beside it", {"id_column": "name"}),
    "null id": (
        table("p.arrow", emb=LISTS, id=[*NAMES[:19], None]),
        "p.arrow: row 19 has no id in column 'id': mend it, or set id_column to another, or to '' to number the rows",
        {"id_column": "id"},
    ),
    "float ids": (
        table("p.arrow", emb=LISTS, id=np.arange(20.0)),
        "p.arrow: column 'id' holds double, no ids: set id_column to another",
        {"id_column": "id"},
    ),
    "bytes": (table("p.arrow", emb=LISTS, id=BYTES), "column 'id' is not UTF-8: mend it, or", {"id_column": "id"}),
    "bytes, HDF5": (datasets(train=FEW, id=BYTES), "column 'id' is not UTF-8: mend it, or", {"id_column": "id"}),
    "two columns": (
        lambda d: pq.write_table(pa.table([LISTS, NAMES, LINKS], ["emb", "id", "id"]), d / "p.parquet"),
        "p.parquet has 2 columns 'id': rename all but one",
        {"id_column": "id"},
    ),
    "two columns, CSV": (
        lambda d: [npy(d, 0, FEW, NAMES), (d / "p_0.csv").write_text("id,n,id\n" + "a,1,b\n" * 20)],
        "p_0.csv has 2 columns 'id': rename all but one",
        {"id_column": "id"},
    ),
    "compound ids": (
        datasets(train=FEW, id=np.zeros(20, [("a", "i4")])),
        "p.h5 (id) holds [('a', '<i4')], not text or numbers",
        {"id_column": "id"},
    ),
    "ids twice": (table("p.arrow", emb=LISTS, id=[*NAMES[:19], "id-3"]), "2 rows share their id with another: 'id-3'"),
    "ids short in CSV": (beside(NAMES[:19], ".csv"), "p_1.csv has 19 rows, not the 20 of its shard"),
    "ids short in Parquet": (beside(NAMES[:19], ".parquet"), "p_1.parquet has 19 rows, not the 20 of its shard"),
    "ids too many in CSV": (beside([*NAMES, "x"], ".csv"), "p_1.csv has 21 rows, not the 20 of its shard"),
    "ids too many in Parquet": (beside([*NAMES, "x"], ".parquet"), "p_1.parquet has 21 rows, not the 20 of its shard"),
    "ids short in HDF5": (
        datasets(train=FEW, id=NAMES[1:]),
        "p.h5 has 19 rows, not the 20 of its shard",
        {"id_column": "id"},
    ),
    "ids of one": (beside(None, ".csv"), "p_1.csv is missing, while p_0.npy has its ids in p_0.csv"),
    "metadata of one": (
        lambda d: [few(clip, clip)(d), (d / "metadata" / "metadata_1.parquet").unlink()],
        "metadata/metadata_1.parquet is missing, while img_emb_0.npy has its ids in metadata_0.parquet: put it there",
    ),
    "fvecs of two widths": (bytes_of("p.fvecs", BENT.tobytes()), "p.fvecs: row 13 is not of 8 values like the first"),
    "IVF": (partial(index, faiss.index_factory(8, "IVF1,Flat")), "p.index holds an IndexIVFFlat, not a flat index"),
    "HNSW": (partial(index, faiss.IndexIDMap(faiss.IndexHNSWFlat(8, 4))), "p.index holds an IndexHNSWFlat, not a flat"),
    "empty index": (partial(index, faiss.IndexFlatIP(8)), "p.index holds no vectors"),
}


@pytest.mark.parametrize("name", ["p.parquet", "p.arrow"])
def test_uuids_are_ids_as_they_are_written(tmp_path, name):
    """As DuckDB's uuid() writes them."""
    ids = [UUID(int=i << 120 | i) for i in range(20)]
    write_table(tmp_path / name, {"emb": LISTS, "id": pa.array([i.bytes for i in ids], pa.binary(16)).cast(pa.uuid())})
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == [str(i) for i in ids]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("other", ["data/latest.npy", "second/b.npy"])
def test_a_shard_that_is_read_twice_is_named(tmp_path, capsys, other, link):
    """Within a set, or in both."""
    (tmp_path / "data").mkdir()
    (tmp_path / "second").mkdir()
    np.save(tmp_path / "data" / "a.npy", FEW)
    settings = {"against_dir": tmp_path / "second"} if "second" in other else {}
    np.save(tmp_path / "second" / "c.npy", FEW)

    def run():
        if settings:
            run_stages(tmp_path / "second", tmp_path / "work" / "against", SCRIPTS[:1])
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1], **settings)

    run()
    assert "read twice" not in capsys.readouterr().err
    link(tmp_path / other, tmp_path / "data" / "a.npy")
    run()
    paths = sorted([tmp_path / other, tmp_path / "data" / "a.npy"], key=lambda p: (p.parent.name == "data", p))
    assert f"read twice: {paths[0]} and {paths[1]} are one file, whose rows are" in capsys.readouterr().err


SEVERAL = {  # files with several kinds of vectors, and what is said where nobody chose
    "npz": (npz, "l14_img", "'l14_img' is read of p_0.npz, not 'b32_img' and 'other'"),
    "hdf5": (hdf5, "train", "'train' is read of p_0.hdf5, not 'test'"),
    "parquet": (
        lambda folder, number, rows, ids: write_table(folder / "p_0.parquet", {"b": lists(rows), "emb": lists(rows)}),
        "emb",
        "'emb' is read of p_0.parquet, not 'b'",
    ),
    "clip-retrieval": (clip, "img_emb", "'img_emb' is read of data, not 'text_emb'"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_which_of_several_vectors_are_read_is_said(tmp_path, capsys, case):
    """Where that wasn't set."""
    write, vectors, said = SEVERAL[case]
    data = make_folder(tmp_path / "data")
    write(data, 0, FEW, NAMES)
    for chosen, expected in (
        (None, f"vectors: {said}; set vectors to the name of another to compare those\n"),
        (vectors, ""),
    ):
        run_stages(data, tmp_path / "work", SCRIPTS[:1], vectors=chosen, id_column="")
        assert capsys.readouterr().err == expected


def one_shard(folder, **files):
    """A shard of 20 rows, p.npy, and other files: texts, or columns of tables."""
    np.save(folder / "p.npy", FEW)
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        if content is None:
            np.save(path, FEW)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            write_table(path, content)


UNREAD = {  # what might be ids, and what is said of it
    "a list": ({"ids_txt": json.dumps(NAMES)}, "ids.txt has as many as there are rows, but is not named p.txt"),
    "lines": ({"ids_txt": "\n".join(NAMES)}, "ids.txt has as many as there are rows, but is not named p.txt"),
    "CSV": ({"meta_csv": "id\n" + "a\n" * 20}, "meta.csv has as many as there are rows, but is not named p.csv"),
    "table": (
        {"meta_parquet": {"id": NAMES}},
        "meta.parquet has as many as there are rows, but is not named p.parquet",
    ),
    "JSON": ({"p_json": json.dumps(NAMES)}, "p.json has as many as there are rows, but is not named p.txt"),
    "JSON lines": (
        {"ids_jsonl": "\n".join(map(json.dumps, NAMES))},
        "ids.jsonl has as many as there are rows, but is not named p.txt",
    ),
    "JSON of something else": ({"p_json": json.dumps(dict.fromkeys(NAMES[:18]), indent=1)}, None),
    "missing": ({"p_parquet": {"id": [*NAMES[:19], None]}}, "column 'id' of p.parquet lacks some values"),
    "floats": ({"p_arrow": {"uid": np.arange(20.0)}}, "column 'uid' of p.arrow holds double"),
    "bytes": ({"p_arrow": {"uid": BYTES}}, "column 'uid' of p.arrow is not UTF-8"),
    "of another": ({"q_npy": None, "q_txt": "\n".join(NAMES)}, None),
    "another count": ({"ids_txt": json.dumps(NAMES[1:]), "README_txt": "text", "p_parquet": {"n": NAMES}}, None),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_might_be_ids_and_is_not_read_is_said(tmp_path, capsys, case):
    """Where rows are numbered, but not where that is asked for, nor where the shards have ids."""
    files, said = UNREAD[case]
    one_shard(tmp_path, **files)
    expected = f"ids: {said}, so rows are numbered\n" if said else ""
    for id_column in (None, ""):
        run_stages(tmp_path / "p.npy", tmp_path / "work", SCRIPTS[:1], id_column=id_column)
        assert capsys.readouterr().err == (expected if id_column is None else "")
    (tmp_path / "p.txt").write_text(json.dumps(NAMES))
    run_stages(tmp_path / "p.npy", tmp_path / "work", SCRIPTS[:1])
    assert capsys.readouterr().err == ""


def test_the_column_that_can_not_be_ids_is_the_one_that_is_named(tmp_path, capsys):
    """Of several shards, of which others have ids; and what can't be read is no matter."""
    for number, ids in enumerate([NAMES, [*NAMES[:19], None]]):
        np.save(tmp_path / f"p_{number}.npy", FEW)
        write_table(tmp_path / f"p_{number}.parquet", {"id": ids})
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "folder.csv").mkdir()
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert capsys.readouterr().err == "ids: column 'id' of p_1.parquet lacks some values, so rows are numbered\n"


LACKING = {0: None, 3: [], 9: [1.0] * 7 + [None], 19: None}  # rows that an API gave no vector for


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
@pytest.mark.parametrize("kind", [None, FIXED])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_rows_without_a_vector_are_left_out_if_asked_for(tmp_path, dtype, kind, suffix):
    """As other bad rows: named in rejected.csv, in no list; or the first one is named."""
    lacking = {row: None if kind and v == [] else v for row, v in LACKING.items()}
    vectors = pa.array([lacking.get(i, v) for i, v in enumerate(FEW.tolist())], kind or pa.list_(pa.float32()))
    if dtype == "f2":
        vectors = vectors.cast(pa.list_(pa.float16(), *([8] if kind else [])))
    write_table(tmp_path / f"p{suffix}", {"emb": vectors, "id": NAMES})
    message = (
        f"p{suffix} (column emb): row 0 is missing, not 8 values: mend it, or set bad_rows to 'skip' to leave such"
    )
    with pytest.raises(NeardupError, match=re.escape(message)):
        run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    run_stages(tmp_path, tmp_path / "work", bad_rows="skip", **SETTINGS)
    with (tmp_path / "work" / "01_pca_variance" / "rejected.csv").open() as file:
        assert [(int(line["row"]), line["id"]) for line in csv.DictReader(file)] == [(r, NAMES[r]) for r in LACKING]
    kept = (tmp_path / "work" / "045_merge" / "keep.txt").read_text().split()
    assert kept == [name for row, name in enumerate(NAMES) if row not in LACKING]
    with pytest.raises(NeardupError, match=r"4 rows have no direction: .* row 0 \(id 'id-0'\): NaN or"):
        run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])


def test_rows_of_another_length_are_no_bad_rows(tmp_path):
    """Whoever leaves out bad rows doesn't mean to leave out those of another model."""
    write_table(tmp_path / "p.parquet", {"emb": odd(7, None, [1.0]), "id": NAMES})
    with pytest.raises(NeardupError, match=r"row 8 is of 1 values, not 8 values: mend it$"):
        run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], bad_rows="skip")


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named(tmp_path, case):
    write, message, *rest = BAD[case]
    write(make_folder(tmp_path / "data"))
    with pytest.raises(NeardupError, match=re.escape(message)) as caught:
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1], **dict(*rest))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "pattern", "rows"),
    [
        (["base_0", "base_1", "base_10"], None, 60),
        (["base.1M", "query.public.10K"], "base*", 20),
        (["base", "learn"], "*", 40),
    ],
)
def test_shards_of_one_set_and_those_that_are_chosen(tmp_path, names, pattern, rows):
    for name in names:
        sets(tmp_path, name, ".fbin")
    assert sum(shard.rows for shard in find_shards(tmp_path, Reading(shard_pattern=pattern))) == rows


@pytest.mark.parametrize("case", ["no Parquet", "null list", "fvecs of two widths"])
def test_a_bad_file_is_one_line_to_users(tmp_path, case):
    """Found by header, decoding, and reading."""
    write, message, *_ = BAD[case]
    write(tmp_path)
    done = command(SCRIPTS[0], "--data-dir", tmp_path, "--work-dir", tmp_path / "work")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr


MISFITS = {  # columns that might be ids by their names: those of a file, and what the ids are
    "lists": ({"ids": [[i] for i in range(20)]}, NUMBERED),
    "lists, a url": ({"ids": [[i] for i in range(20)], "url": LINKS}, LINKS),
    "floats": ({"id": np.arange(20.0), "key": NAMES}, NAMES),
    "dates": ({"id": pa.array(range(20), pa.date32()), "url": LINKS}, LINKS),
    "nothing": ({"id": pa.nulls(20), "url": LINKS}, LINKS),
    "whole decimals": ({"id": pa.array(map(Decimal, range(20)), pa.decimal128(38, 0))}, [*map(str, range(20))]),
    "decimals": ({"id": pa.array(map(Decimal, range(20)), pa.decimal128(18, 2)), "url": LINKS}, LINKS),
    "one missing": ({"url": [*LINKS[:19], None]}, NUMBERED),
    "one missing in a dictionary": ({"id": pa.array([*NAMES[:19], None]).dictionary_encode(), "url": LINKS}, LINKS),
    "text views": ({"id": pa.array(NAMES, pa.string_view())}, NAMES),
    "bytes": ({"id": pa.array([n.encode() for n in NAMES])}, NAMES),
    "large bytes": ({"id": pa.array([n.encode() for n in NAMES], pa.large_binary())}, NAMES),
    "bytes of one length": (
        {"id": pa.array([b"%04d" % i for i in range(20)], pa.binary(4))},
        [f"{i:04}" for i in range(20)],
    ),
    "bytes that are no text": ({"id": pa.array(BYTES), "url": LINKS}, LINKS),
    "a dictionary of bytes": ({"id": pa.array(BYTES).dictionary_encode(), "url": LINKS}, LINKS),
    "a dictionary of text": ({"id": pa.array(NAMES).dictionary_encode()}, NAMES),
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather", " beside.arrow"])
@pytest.mark.parametrize("case", MISFITS)
def test_a_column_that_can_not_be_ids_is_passed_over(tmp_path, case, suffix):
    """Where nobody named it: the next one is taken, or the rows are numbered."""
    columns, expected = MISFITS[case]
    if "beside" in suffix:
        np.save(tmp_path / "p.npy", FEW)
        write_table(tmp_path / "p.arrow", columns)
    else:
        write_table(tmp_path / f"p{suffix}", columns | {"emb": LISTS})
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == expected


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_row_without_id_is_named_wherever_it_is(tmp_path, monkeypatch, suffix):
    """Of a table that is read in blocks."""
    monkeypatch.setattr("neardup.input.metadata._BATCH", 7)
    write_table(tmp_path / f"p{suffix}", {"emb": LISTS, "id": [*NAMES[:17], None, *NAMES[18:]]})
    with pytest.raises(NeardupError, match="row 17 has no id in column 'id'"):
        run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], id_column="id")


HDF5_MISFITS = {
    "of another length": ({"id": NAMES[1:], "url": LINKS}, LINKS),
    "compound": ({"id": np.zeros(20, [("a", "i4")]), "url": LINKS}, LINKS),
    "bytes that are no text": ({"id": BYTES, "url": LINKS}, LINKS),
    "floats": ({"id": np.arange(20.0)}, NUMBERED),
    "long floats": ({"id": np.arange(20, dtype=np.longdouble)}, NUMBERED),
    "a matrix": ({"id": np.arange(20).reshape(-1, 1), "key": np.arange(20, dtype=">i2")}, [*map(str, range(20))]),
    "bytes of one length": ({"id": np.array(NAMES, "S9")}, NAMES),
}


@pytest.mark.parametrize("write", ["hdf5", "npz"])
@pytest.mark.parametrize("case", HDF5_MISFITS)
def test_a_data_set_or_array_that_can_not_be_ids_is_passed_over(tmp_path, case, write):
    columns, expected = HDF5_MISFITS[case]
    if write == "hdf5":
        datasets(train=FEW, **columns)(tmp_path)
    else:
        np.savez(tmp_path / "p.npz", train=FEW, **{name: np.array(values) for name, values in columns.items()})
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == expected


def test_ids_that_are_pickled_are_not_loaded(tmp_path, capsys):
    """Of an array of Python objects, which is said; or refused where it is named."""
    np.savez(tmp_path / "p.npz", emb=FEW, ids=np.array(NAMES, dtype=object))
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == NUMBERED
    assert capsys.readouterr().err == (
        "ids: column 'ids' of p.npz has no text or number for each row (Python objects are never loaded), so rows are "
        "numbered\n"
    )
    with pytest.raises(NeardupError, match=r"p\.npz \(ids\) holds object, not text or numbers: choose another$"):
        run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], id_column="ids")


def test_arrays_of_a_npz_file_are_columns(tmp_path):
    """Of texts, numbers and kinds; the table beside it comes first, if there is one."""
    kinds, scores = np.array(["a", "b"] * 10), np.arange(20, dtype=">f4")
    np.savez(tmp_path / "p.npz", emb=FEW[[0] * 20], ids=np.array(NAMES), kind=kinds, score=scores)
    settings = {"representative": "highest:score", "tabulate": "kind", "preview": "kind"}
    run_stages(tmp_path, tmp_path / "work", **SETTINGS, **settings)
    assert (tmp_path / "work" / "045_merge" / "keep.txt").read_text() == "id-19\n"
    lines = read_csv(tmp_path / "work", "losses.csv")
    assert [(n["value"], n["rows"], n["dropped"]) for n in lines[1:]] == [("a", "10", "10"), ("b", "10", "9")]
    write_table(tmp_path / "p.parquet", {"uid": LINKS})
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == LINKS


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([*NAMES[:19], "\ud800"]), r"p\.npz \(ids\) is not Unicode \(.*\): mend it$"),
        (np.array(NAMES[:19]), r"p\.npz has 19 rows, not the 20 of its shard: write it again"),
    ],
)
def test_a_bad_array_of_ids_is_named(tmp_path, ids, message):
    np.savez(tmp_path / "p.npz", emb=FEW, ids=ids)
    with pytest.raises(NeardupError, match=message):
        run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], id_column="ids")


def test_ids_of_all_shards_are_in_one_column(tmp_path):
    """One that can be ids in each table, even if another could be in some."""
    for number, ids in enumerate((NAMES, np.arange(20.0))):
        write_table(
            tmp_path / f"p_{number}.parquet", {"emb": LISTS, "id": ids, "url": [f"{number}/{n}" for n in LINKS]}
        )
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == [f"{number}/{n}" for number in range(2) for n in LINKS]


def test_ids_of_tables_that_share_no_column(tmp_path):
    """Are of the first known column that each has."""
    for number, names in enumerate((("id", "url"), ("url", "path"), ("key", "path"))):
        columns = {name: [f"{number}/{name}/{i}" for i in range(20)] for name in names}
        write_table(tmp_path / f"p_{number}.parquet", {"emb": LISTS} | columns)
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    expected = [f"{number}/{name}/{i}" for number, name in enumerate(("id", "path", "key")) for i in range(20)]
    assert read_ids(tmp_path / "work") == expected


SOURCES = {  # what is said of ids
    "npy, ids in lines": ".txt files",
    "npy, CSV": "column 'id' of .csv files",
    "npy, integers of a named column": "column 'no' of .arrow files",
    "clip-retrieval": "column 'image_path' of metadata/*.parquet",
    "npz": "column 'uid' of .parquet files",
    "npz, ids within": "column 'ids' of the shards",
    "hdf5": "column 'id' of the shards",
    "parquet": "column 'id' of the shards",
    "IndexIDMap": "the shards",
    "npy, no ids": "none, rows are numbered shard:row",
    "fvecs": "none, rows are numbered shard:row",
}


@pytest.mark.parametrize("name", SOURCES)
def test_where_ids_come_from_is_said(tmp_path, capsys, name):
    """By the run that finds them, and by one that finds that finished."""
    write, ids, dtype, settings = FORMATS[name]
    data = in_shards(write, tmp_path / "data", dtype, ids or IDS)
    for column, source in ((settings.get("id_column"), SOURCES[name]), ("", SOURCES["npy, no ids"])):
        for _ in range(2):
            run_stages(data, tmp_path / "work", SCRIPTS[:1], **settings | {"id_column": column})
            assert capsys.readouterr().out.splitlines()[0].endswith(f" rejected; ids: {source}")


def test_ids_of_several_sources(tmp_path, capsys):
    npy(tmp_path, 0, FEW, NAMES, ".csv")
    npy(tmp_path, 1, FEW, LINKS, ".txt")
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert "ids: column 'id' of .csv files and .txt files\n" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".txt", ".parquet"])
def test_ids_beside_an_index_that_has_some_are_those(tmp_path, suffix):
    flat(tmp_path, 0, FEW, range(20), named=faiss.IndexIDMap)
    npy(tmp_path, 0, FEW, NAMES, suffix)
    (tmp_path / "p_0.npy").unlink()
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], input_format="faiss")
    assert read_ids(tmp_path / "work") == NAMES


NAMED = ["npy, ids in lines", "npy, CSV", "clip-retrieval", "npz", "npz, ids within", "hdf5", "parquet", "IndexIDMap"]


@pytest.mark.parametrize("name", NAMED)
def test_rows_are_numbered_where_that_is_asked_for(tmp_path, name):
    """Whatever ids there are."""
    write, ids, dtype, settings = FORMATS[name]
    data = in_shards(write, tmp_path / "data", dtype, ids)
    run_stages(data, tmp_path / "work", SCRIPTS[:1], **settings, id_column="")
    stem = "img_emb/img_emb" if "clip" in name else "p"
    numbered = [f"{stem}_{n}:{i}" for n, (low, high) in enumerate(pairwise(BOUNDS)) for i in range(high - low)]
    assert read_ids(tmp_path / "work") == numbered


def test_rows_are_numbered_by_option_and_variable(tmp_path):
    """Which may be empty."""
    npy(tmp_path, 0, FEW, NAMES, ".txt")
    folders = "--data-dir", tmp_path, "--work-dir", tmp_path / "work"
    for arguments, environment in ((("--id-column", ""), {}), ((), {"NEARDUP_ID_COLUMN": ""})):
        done = command(SCRIPTS[0], *folders, *arguments, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert read_ids(tmp_path / "work") == [f"p_0:{i}" for i in range(20)]
        assert command(SCRIPTS[0], *folders).returncode == 0
        assert read_ids(tmp_path / "work") == NAMES


CUT = ["parquet", "arrow", "arrow, lists in a stream", "feather, lz4", "npz", "npz, compressed", "hdf5", "hdf5, chunks"]
CUT += ["fvecs", "fbin", "i8bin", "IndexFlatIP", "IndexIDMap"]


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_off(tmp_path, name):
    """Anywhere: never an error of a library's own."""
    write, _, dtype, settings = FORMATS[name]
    data = in_shards(write, tmp_path / "data", dtype, NUMBERS)
    [path] = [p for p in data.glob("p_1.*") if "npz" not in name or p.suffix == ".npz"]
    content = path.read_bytes()
    for size in (3, 11, len(content) // 3 + 1, len(content) - 1000, len(content) - 9):
        path.write_bytes(content[:size])
        with pytest.raises((NeardupError, OSError)):
            run_stages(data, tmp_path / "work", SCRIPTS[:1], **settings)
    path.write_bytes(content)
    run_stages(data, tmp_path / "work", SCRIPTS[:1], **settings)


def test_a_header_that_promises_too_much(tmp_path):
    """Is refused before anything is allocated for it."""
    (tmp_path / "p.fbin").write_bytes(np.array([10**9, 8], "<u4").tobytes() + FEW.tobytes())
    tracemalloc.start()
    with pytest.raises(NeardupError, match="which are no 1000000000 rows of 8 values"):
        find_shards(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.fixture
def run(tmp_path, made):
    """Two finished stages of two Parquet shards, and what starts them again, or others."""
    in_shards(tables, tmp_path / "data")
    again = partial(run_stages, tmp_path / "data", tmp_path / "work", scripts=SCRIPTS[:2], **SETTINGS)
    again()
    assert sorted(made) == ["p_0.parquet", "p_1.parquet"]
    made.clear()
    return again


def test_a_changed_file_is_decoded_again(tmp_path, run, made):
    """And what was made from it is stale."""
    tables(tmp_path / "data", 1, ROWS["f4"][129:299][::-1], IDS[130:])
    with pytest.raises(NeardupError, match=r"from other input \(p_1.parquet changed\): run faiss_01_pca"):
        run(scripts=SCRIPTS[1:2])
    run(scripts=SCRIPTS)
    assert made == ["p_1.parquet"]
    run_stages(tmp_path / "data", tmp_path / "new", **SETTINGS)
    assert answer(tmp_path / "work") == answer(tmp_path / "new")


def test_other_vectors_of_the_same_file(tmp_path, made):
    """Are decoded in place of those before, whose results are stale."""
    few(partial(npz, save=np.savez_compressed))(tmp_path)
    run = partial(run_stages, tmp_path, tmp_path / "work")
    run(SCRIPTS[:2], vectors="l14_img")
    with pytest.raises(NeardupError, match=r"from other input \(p_0.npz changed\)"):
        run(SCRIPTS[1:2], vectors="b32_img")
    run(SCRIPTS[:2], vectors="b32_img")
    assert made == ["p_0.npz"] * 2
    assert np.array_equal(np.load(tmp_path / "work" / "input" / "decoded" / "p_0.npz.npy"), FEW[::-1])


@pytest.mark.parametrize("other", [{"vectors": "b32_img"}, {"id_column": "url"}])
def test_what_else_is_in_the_same_file(tmp_path, other):
    """Where it is read as it lies there, too: results of what was chosen before are stale."""
    npz(make_folder(tmp_path / "data"), 0, FEW[[0, 1, 0, 2, 3]], NAMES[:5])
    chosen = SETTINGS | {"vectors": "l14_img", "id_column": "uid"}
    run_stages(tmp_path / "data", tmp_path / "work", **chosen)
    before = answer(tmp_path / "work")
    with pytest.raises(NeardupError, match=r"from other input \(p_0.npz changed\)"):
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[4:], **chosen | other)
    for work in ("work", "new"):
        run_stages(tmp_path / "data", tmp_path / work, **chosen | other)
    assert answer(tmp_path / "work") == answer(tmp_path / "new") != before


DAMAGE = {  # what is done to a copy
    "bytes": lambda copy: copy.write_bytes(copy.read_bytes()[:-4] + b"\0\1\2\3"),
    "size": lambda copy: os.truncate(copy, 1000),
    "gone": lambda copy: copy.unlink(),
    "killed before its note": lambda copy: note_of(copy).unlink(),
    "killed while it was written": lambda copy: copy.rename(copy.with_name(f".{copy.name}.tmp")),
    "its note": lambda copy: note_of(copy).write_text("{"),
    "its source touched": lambda copy: os.utime(copy.parents[3] / "data" / copy.stem),
}


def note_of(copy):
    return copy.with_name(copy.name + ".json")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_copy_in_doubt_is_made_anew(tmp_path, run, made, damage):
    """Once, and no stage runs again."""
    copy = tmp_path / "work" / "input" / "decoded" / "p_0.parquet.npy"
    manifests = list((tmp_path / "work").glob("*/manifest.json"))
    content, before = copy.read_bytes(), [path.stat().st_mtime_ns for path in manifests]
    DAMAGE[damage](copy)
    run()
    run()
    assert made == ["p_0.parquet"]
    assert copy.read_bytes() == content
    assert [path.stat().st_mtime_ns for path in manifests] == before


def test_earlier_results_stay_after_an_error(tmp_path, run, made):
    path, stages = tmp_path / "data" / "p_1.parquet", [tmp_path / "work" / name for name in [*STAGES][:2]]
    content, before = path.read_bytes(), [tree_bytes(stage) for stage in stages]
    path.write_bytes(content[:-100])
    with pytest.raises(NeardupError, match=r"p_1\.parquet is no "):
        run()
    write_table(path, {"emb": odd(7, None)})
    with pytest.raises(NeardupError, match=r"p_1\.parquet .column emb.: row 7 is missing"):
        run(shard_pattern="p_1*")
    assert [tree_bytes(stage) for stage in stages] == before
    path.write_bytes(content)
    run()
    assert [tree_bytes(stage) for stage in stages] == before


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def fetched(monkeypatch):
    """Paths of the files that are fetched, as they are."""
    paths, fetch = [], copies._fetch
    monkeypatch.setattr(copies, "_fetch", lambda system, path, *rest: [paths.append(path), fetch(system, path, *rest)])
    return paths


def upload(system, folder, to="/bucket/set"):
    for name, content in tree_bytes(folder).items():
        system.pipe_file(f"{to}/{name}", content)


@pytest.mark.parametrize("name", ["npy, ids in lines", "clip-retrieval", "parquet", "hdf5", "parquet, nested"])
def test_a_remote_folder_gives_the_same_answer(plain, tmp_path, memory, fetched, name):
    """And each of its files is fetched once, by the first stage."""
    write, ids, dtype, settings = FORMATS[name]
    data, work = in_shards(write, tmp_path / "data", dtype, ids), tmp_path / "work"
    (data / "README.md").write_text("not wanted")
    upload(memory, data)
    for scripts in (SCRIPTS[:4], SCRIPTS[:1]):
        run_stages("memory://bucket/set", work, scripts, **SETTINGS, **settings)
        assert len(fetched) == len(tree_bytes(data)) - 1 - sum("text_emb" in file for file in tree_bytes(data))
    assert pairs(work) == plain(dtype)[0]
    assert read_ids(work) == ids


def test_a_remote_folder_that_changes(tmp_path, memory, fetched):
    """What changed is fetched again; what was removed is there no more."""
    few(tables, tables)(tmp_path / "data")
    upload(memory, tmp_path / "data")
    run = partial(run_stages, "memory://bucket/set", tmp_path / "work", duplicate_ids="allow")
    run(SCRIPTS[:2])
    fetched.clear()
    tables(tmp_path / "data", 1, FEW[:15] * -1, NAMES[:15])
    memory.put_file(str(tmp_path / "data" / "p_1.parquet"), "/bucket/set/p_1.parquet")
    with pytest.raises(NeardupError, match=r"\(p_1.parquet changed\)"):
        run(SCRIPTS[1:2])
    run(SCRIPTS[:2])
    assert fetched == ["/bucket/set/p_1.parquet"]
    assert read_ids(tmp_path / "work") == NAMES + NAMES[:15]
    memory.rm("/bucket/set/p_0.parquet")
    run(SCRIPTS[:2])
    assert len(fetched) == 1
    assert read_ids(tmp_path / "work") == NAMES[:15]


def test_copies_of_a_remote_folder_go_where_it_is_input_no_more(tmp_path, memory):
    """They may be as large as it is."""
    few(npy, npy)(tmp_path / "data")
    upload(memory, tmp_path / "data")
    copied = tmp_path / "work" / "input" / "fetched"
    run_stages("memory://bucket/set", tmp_path / "work", SCRIPTS[:1], duplicate_ids="allow")
    assert {p.name for p in copied.glob("*.npy")} == {"p_0.npy", "p_1.npy"}
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1], duplicate_ids="allow")
    assert [*copied.rglob("*.*")] == []


def test_a_dry_run_counts_what_is_copied(tmp_path):
    """What is decoded, and what is exported."""
    for name, save in (("plain", np.savez), ("packed", np.savez_compressed)):
        npz(make_folder(tmp_path / name), 0, ROWS["f4"], IDS, save=save)

    def disk(name, **more):
        folders = {"data_dir": tmp_path / name, "work_dir": tmp_path / f"{name}-work"}
        return plan(Config(vectors="l14_img", **folders, **more))["disk_bytes"]

    run_stages(tmp_path / "packed", tmp_path / "packed-work", SCRIPTS[:1], vectors="l14_img")
    assert disk("packed") - disk("plain") == ROWS["f4"].nbytes
    assert disk("plain", export=True) - disk("plain") == (tmp_path / "plain" / "p_0.npz").stat().st_size


@pytest.mark.parametrize("place", ["{}", "memory://bucket/set"])
def test_a_dry_run_reads_the_copies_that_are_there(tmp_path, memory, fetched, made, place):
    """Then it tells the time, and of files behind a URL all that it tells of those here; it makes and removes none."""
    upload(memory, in_shards(tables, tmp_path / "data"))
    np.save(make_folder(tmp_path / "plain") / "p.npy", ROWS["f4"])
    folders = {"data_dir": place.format(tmp_path / "data"), "work_dir": tmp_path / "work"}

    def plan_of(**more):
        return plan(Config(**folders | more))

    first = plan_of()
    assert (first.get("rows"), first.get("seconds")) == ((None, None) if "memory" in place else (300, None))
    run_stages(**folders, scripts=SCRIPTS[:1])
    before, copied = tree_bytes(tmp_path / "work"), [*made, *fetched]
    found, plain = plan_of(), plan_of(data_dir=tmp_path / "plain")
    assert found["seconds"] > 0
    assert [found[k] for k in ("rows", "dim", "components")] == [plain[k] for k in ("rows", "dim", "components")]
    for name in ("p_0.parquet", "p_1.parquet"):
        os.utime(tmp_path / "work" / "input" / "decoded" / f"{name}.npy", (1, 1))
    assert plan_of()["seconds"] is None
    if "memory" in place:
        tables(tmp_path / "data", 1, FEW, NAMES)
        upload(memory, tmp_path / "data")
        assert plan_of() == {"files": 2, "input_bytes": sum(len(c) for c in tree_bytes(tmp_path / "data").values())}
    assert tree_bytes(tmp_path / "work") == before
    assert [*made, *fetched] == copied


@pytest.mark.parametrize("place", ["{}", "memory://bucket/set"])
def test_ids_of_a_shard_that_is_not_there(tmp_path, memory, place):
    """Are an error; those of one that wasn't chosen aren't."""
    few(*[partial(npy, beside=".txt")] * 2)(make_folder(tmp_path / "data"))
    upload(memory, tmp_path / "data")
    place = place.format(tmp_path / "data")
    run_stages(place, tmp_path / "work", SCRIPTS[:1], shard_pattern="p_0*")
    (tmp_path / "data" / "p_1.npy").unlink()
    memory.rm("/bucket/set/p_1.npy")
    for pattern in (None, "p_0*"):
        with pytest.raises(NeardupError, match=re.escape(f"{place}/p_1.txt is there, but p_1.npy, whose ids")):
            run_stages(place, tmp_path / "work", SCRIPTS[:1], shard_pattern=pattern)


@pytest.mark.parametrize("place", ["{}", "memory://bucket/set"])
def test_texts_that_are_named_as_no_shard_is_are_no_ids(tmp_path, memory, place):
    few(*[partial(npy, beside=".txt")] * 2)(make_folder(tmp_path / "data"))
    for name in ("LICENSE", "p", "p_1_old", "q_2"):
        (tmp_path / "data" / f"{name}.txt").write_text("no ids\n")
    upload(memory, tmp_path / "data")
    run_stages(place.format(tmp_path / "data"), tmp_path / "work", SCRIPTS[:1], duplicate_ids="allow")
    assert read_ids(tmp_path / "work") == NAMES * 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "nowhere://bucket/set",
            "data_dir {} can't be listed (ValueError: Protocol not known: nowhere): mend that",
        ),
        ("memory://bucket/none", "nothing is there, or can be reached, at data_dir {}: set it to the URL of"),
        ("http://127.0.0.1:9/x.npy", "nothing is there, or can be reached, at data_dir {}: set it to the URL of"),
        ("memory://bucket/set", "data_dir {} holds no embeddings"),
        ("memory://bucket/text", "data_dir {} holds no embeddings"),
    ],
)
def test_a_url_of_nothing(tmp_path, memory, url, said):
    memory.pipe_file("/bucket/text/README.md", b"not wanted")
    with pytest.raises(NeardupError, match=re.escape(said.format(url))):
        run_stages(url, tmp_path / "work", SCRIPTS[:1])


@pytest.mark.parametrize("what", ["set/", "set/p_0.parquet"])
def test_a_web_server(tmp_path, what):
    """A folder that it lists, or a single file of it; what changes there is fetched again."""
    (tmp_path / "data").mkdir()
    few(tables, tables, below="set")(tmp_path / "data")
    handler = partial(SilentHandler, directory=str(tmp_path / "data"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{what}"
        run = partial(run_stages, url, tmp_path / "work", SCRIPTS[:1], duplicate_ids="allow")
        run()
        assert read_ids(tmp_path / "work") == (NAMES * 2 if what.endswith("/") else NAMES)
        tables(tmp_path / "data" / "set", 0, FEW[:15], NAMES[:15])
        run()
        server.shutdown()
    assert read_ids(tmp_path / "work") == NAMES[:15] + (NAMES if what.endswith("/") else [])


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.filterwarnings("ignore")
def test_a_bucket(tmp_path):
    """Of a server that speaks S3, as a user runs the script; test_cluster.py has all five."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", "us-east-1", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x")
        client.create_bucket(Bucket="bucket")
        for name, content in tree_bytes(in_shards(tables, tmp_path / "data")).items():
            client.put_object(Bucket="bucket", Key=f"set/{name}", Body=content)
        arguments = [x for s, v in SETTINGS.items() for x in (f"--{s.replace('_', '-')}", v)]
        arguments += ["--data-dir", "s3://bucket/set", "--work-dir", tmp_path / "work"]
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": url}
        done = command(SCRIPTS[0], *arguments, **keys)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        server.stop()
    assert read_ids(tmp_path / "work") == IDS
    fetched = tree_bytes(tmp_path / "work" / "input" / "fetched")
    assert {name: fetched[name] for name in fetched if not name.endswith(".json")} == tree_bytes(tmp_path / "data")


def evil(tmp_path, memory):
    memory.store["/bucket/evil/img_emb/../../../../evil.npy"] = memory.store.pop("/bucket/set/p.npy")
    return "memory://bucket/evil"


def arrow_with_an_offset_that_leads_away(folder):
    table = pa.table({"id": NAMES[:3], "embedding": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32()))})
    with pa.ipc.new_file(folder / "p.arrow", table.schema) as writer:
        writer.write_table(table)
    path = folder / "p.arrow"
    content, offsets = path.read_bytes(), np.array([0, 2, 4, 6], "<i4").tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 2, 2**30, 6], "<i4").tobytes()))


def dictionary_with_a_null(folder):
    ids = pa.DictionaryArray.from_arrays(pa.array(range(3)), pa.array(["a", "b", None]))
    table = pa.table({"id": ids, "emb": pa.array([[1.0, 2.0]] * 3)})
    with pa.ipc.new_file(folder / "p.arrow", table.schema) as writer:
        writer.write_table(table)


def index_that_is_cut(folder):
    index = faiss.IndexIDMap(faiss.IndexFlatIP(4))
    index.add_with_ids(np.eye(4, dtype=np.float32), np.arange(4) + 2**40)
    faiss.write_index(index, str(folder / "p.index"))
    (folder / "p.index").write_bytes((folder / "p.index").read_bytes()[:-1])


def npz_with_a_flipped_byte(folder):
    np.savez_compressed(folder / "p.npz", emb=np.random.default_rng(0).normal(size=(500, 16)))
    content = bytearray((folder / "p.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "p.npz").write_bytes(content)


def csv_that_breaks_late(folder):
    np.save(folder / "p.npy", np.eye(100_000, 4) + 1)
    (folder / "p.csv").write_text("id,n\n" + "".join(f"{i:020},1\n" for i in range(99_999)) + "x\n")


def csv_of_a_spreadsheet(folder, header="id;n"):
    """Of a country where commas are for decimals."""
    np.save(folder / "p.npy", np.eye(3))
    (folder / "p.csv").write_text(f"{header}\na;1\nb;2\nc;3\n")


def columns_of_one_name(folder):
    vectors = pa.array([[1.0, 2.0]] * 3)
    pq.write_table(
        pa.Table.from_arrays([pa.array("abc"), pa.array("abc"), vectors], ["id", "id", "emb"]), folder / "p.parquet"
    )


def hdf5_ids(values):
    def write(folder):
        with h5py.File(folder / "p.h5", "w") as file:
            file["train"], file["id"] = np.eye(3), values

    return write


FOUND = {
    "offset": (arrow_with_an_offset_that_leads_away, "p.arrow is no .arrow file that can be read"),
    "null in a dictionary": (dictionary_with_a_null, "row 2 has no id in column 'id'"),
    "index that is cut": (index_that_is_cut, "it is damaged, copy it again"),
    "flipped byte": (npz_with_a_flipped_byte, "p.npz is damaged"),
    "late in a CSV file": (csv_that_breaks_late, "p.csv is not a CSV file in UTF-8"),
    "semicolons": (
        csv_of_a_spreadsheet,
        "p.csv has semicolons or tabs between its columns ('id;n'): write it with commas, or as",
    ),
    "quoted semicolons": (
        partial(csv_of_a_spreadsheet, header='"id";"a, b";"n"'),
        'p.csv has semicolons or tabs between its columns (\'"id";"a, b";"n"\'): write it with commas, or as',
    ),
    "one name": (columns_of_one_name, "p.parquet has 2 columns 'id'"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_and_mended(tmp_path, name):
    make, message = FOUND[name]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(NeardupError, match=re.escape(message)):
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1])


def test_ids_of_another_byte_order(tmp_path):
    (tmp_path / "data").mkdir()
    hdf5_ids(np.arange(3, dtype=">i8"))(tmp_path / "data")
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == ["0", "1", "2"]


def test_two_folders_whose_files_look_alike(tmp_path):
    """Of one size and time, but not one path: the copy of one is not that of the other."""
    for number, name in enumerate(("a", "b")):
        folder = tmp_path / name
        folder.mkdir()
        tables(folder, 0, FEW + number, NAMES)
        os.utime(folder / "p_0.parquet", (10**9, 10**9))
    for name in ("a", "b"):
        run_stages(tmp_path / name, tmp_path / "work", SCRIPTS[:1])
        copy = np.load(tmp_path / "work" / "input" / "decoded" / "p_0.parquet.npy")
        assert np.array_equal(copy, FEW + (name == "b"))


def test_a_remote_name_that_leads_out(tmp_path, memory):
    npy(tmp_path, 0, FEW, NAMES)
    memory.pipe_file("/bucket/set/p.npy", (tmp_path / "p_0.npy").read_bytes())
    with pytest.raises(NeardupError, match=re.escape("names with '..'")):
        run_stages(evil(tmp_path, memory), tmp_path / "work", SCRIPTS[:1])


def test_a_remote_file_has_its_ids(tmp_path, memory):
    npy(tmp_path, 0, FEW, NAMES, ".txt")
    for path in tmp_path.glob("p_0.*"):
        memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    run_stages("memory://bucket/set/p_0.npy", tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == NAMES


def splits(folder, number, rows, ids):
    """As datasets on the Hugging Face hub have them."""
    for split in ("train", "test"):
        tables(folder, number, rows, ids, name=f"data/{split}-{{}}.parquet")


PARTS = {  # the files that are fetched
    "npy, lists": (partial(npy, beside=".txt"), "p_1*", ["p_1.npy", "p_1.txt"]),
    "npy, CSV": (partial(npy, beside=".csv"), "p_1*", ["p_1.csv", "p_1.npy"]),
    "parquet": (tables, "p_1*", ["p_1.parquet"]),
    "splits": (splits, "data/train-*", ["data/train-0.parquet", "data/train-1.parquet"]),
    "npz": (npz, "p_1.npz", ["p_1.npz", "p_1.parquet"]),
    "clip-retrieval": (clip, "img_emb/*_1.npy", ["img_emb/img_emb_1.npy", "metadata/metadata_1.parquet"]),
}


@pytest.mark.parametrize("case", PARTS)
def test_part_of_a_remote_folder(tmp_path, memory, fetched, case):
    """Shards that match, with what is beside them and their texts; nothing of others."""
    write, pattern, expected = PARTS[case]
    few(write, write)(make_folder(tmp_path / "data"))
    about = [f"{expected[0].rpartition('/')[0]}/{name}".lstrip("/") for name in ("texts.json", "state.json")]
    for name in about:
        (tmp_path / "data" / name).write_text("{}")
    upload(memory, tmp_path / "data")
    settings = {"shard_pattern": pattern, "duplicate_ids": "allow", "vectors": "l14_img" if case == "npz" else None}
    for place in ("memory://bucket/set", tmp_path / "data"):
        run_stages(place, tmp_path / "work", SCRIPTS[:1], **settings)
    assert sorted(fetched) == [f"/bucket/set/{name}" for name in sorted([*expected, *about])]
    with pytest.raises(NeardupError, match=r"memory://bucket/ holds no embeddings .* to memory://bucket/set"):
        run_stages("memory://bucket/", tmp_path / "other", SCRIPTS[:1])


TREE = ["p_0.npy", "p_10.npy", "P_2.npy", ".p_3.npy", "[a].npy", "x/p_1.npy", "x/y/p_2.npy", "x/y/.z/p_4.npy"]
PATTERNS = ["*", "*.npy", "p_*", "P*", "**/*", "**/*.npy", "**/p_*.npy", "*/*", "x/*", "x/**/*.npy", "**/y/*", "x/*/*"]
PATTERNS += ["**/y/**/*", "**/**/*", "*/**/p_?.npy", "[[]a].npy", "p_[!0]*", "p_0.npy", "./p_0.npy", "x//p_1.npy"]
PATTERNS += ["**", "**/y", "x", "*.parquet", "**.npy", "x/**.npy", "/p_0.npy", "../*.npy", "x/../*.npy", "."]


@pytest.mark.parametrize("pattern", [None, *PATTERNS])
def test_a_pattern_means_the_same_everywhere(tmp_path, memory, fetched, pattern):
    """On disk and behind a URL: the same shards, or the same error, but for the place."""
    found = []
    for number, name in enumerate(TREE):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "data" / name, FEW[number : number + 1])
    upload(memory, tmp_path / "data")
    for place in (str(tmp_path / "data"), "memory://bucket/set"):
        try:
            run_stages(place, tmp_path / "work", SCRIPTS[:1], shard_pattern=pattern)
        except NeardupError as error:
            found.append(str(error).replace(place, ""))
        else:
            found.append(read_ids(tmp_path / "work"))
    assert found[0] == found[1]
    if isinstance(found[0], list):
        assert sorted(fetched) == sorted(f"/bucket/set/{name.partition(':')[0]}.npy" for name in found[0])


def test_ids_that_begin_as_json_does(tmp_path):
    np.save(tmp_path / "p.npy", FEW[:2])
    (tmp_path / "p.txt").write_text("\ufeff[draft] one\n{two}\n", encoding="utf-8")
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == ["[draft] one", "{two}"]


def test_a_single_file_whose_name_is_a_pattern(tmp_path):
    np.save(tmp_path / "a[1].npy", FEW[:2])
    run_stages(tmp_path / "a[1].npy", tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == ["a[1]:0", "a[1]:1"]


@pytest.mark.parametrize(
    ("kind", "found"),
    [(None, "img_emb/img_emb_0.npy"), ("clip-retrieval", "img_emb/img_emb_0.npy"), ("npy", "p_0.npy")],
)
def test_a_format_that_is_asked_for_where_clip_retrieval_is_too(tmp_path, kind, found):
    few(npy, clip)(tmp_path)
    (tmp_path / "img_emb" / "img_emb_1.npy").rename(tmp_path / "img_emb" / "img_emb_0.npy")
    assert [shard.name for shard in find_shards(tmp_path, Reading(input_format=kind))] == [found]


@pytest.mark.parametrize("pattern", ["img_emb/*_1.npy", "img_emb/*_1.*"])
def test_clip_retrieval_with_a_pattern(tmp_path, pattern):
    (tmp_path / "data" / "metadata").mkdir(parents=True)
    for number in range(2):
        clip(tmp_path / "data", number, FEW, [f"{n}-{number}" for n in NAMES])
    (tmp_path / "data" / "img_emb" / "img_emb_1.md").write_text("no shard")
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:1], shard_pattern=pattern)
    assert read_ids(tmp_path / "work") == [f"{name}-1" for name in NAMES]


def stored_as(path, values, kind):
    """The `Layout` of a file of these rows."""
    if kind == "leads":  # as in .fvecs: the number of values before each row
        leads = np.full((len(values), 1), values.shape[1], dtype="<i4")
        path.write_bytes(np.hstack([leads.view("<f4"), values.astype("<f4")]).tobytes())
        return Layout(path, values.shape, np.dtype("<f4"), lead=4)
    values = values.astype({"float16": "<f2", "other byte order": ">f4"}.get(kind, "<f4"))
    np.save(path, np.asfortranarray(values) if kind == "columns" else values)
    return npy_layout(path)


@pytest.mark.parametrize("here_and_there", [False, True])
@pytest.mark.parametrize("kinds", [("rows", "rows"), ("float16", "rows"), ("columns", "other byte order"), ("leads",)])
def test_gathered_rows_are_those_asked_for(tmp_path, monkeypatch, kinds, here_and_there):
    """Near each other and far apart, in any order, repeated, of one file or several, of which one is empty."""
    rng, sizes = np.random.default_rng(0), [900, 0, 500][: 2 * len(kinds) - 1]
    values = rng.integers(-9, 9, size=(sum(sizes), 256)).astype(np.float32)
    starts = np.cumsum([0, *sizes])
    some = zip(starts, starts[1:], [kinds[0], *kinds], strict=False)
    layouts = [stored_as(tmp_path / f"{i}.npy", values[low:high], k) for i, (low, high, k) in enumerate(some)]
    files, by = RowFiles(layouts, starts, here_and_there), {"mapped": 0, "one by one": 0}

    def counted(name, function):
        def call(*arguments, **options):
            by[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(layout, "read_records", counted("one by one", layout.read_records))
    monkeypatch.setattr(layout, "map_array", counted("mapped", layout.map_array))
    monkeypatch.setattr(layout, "_WINDOW_BYTES", 1 << 16)
    for size in (0, 1, 2, 4, 6, 8, 40, 700, 3000):
        rows = rng.integers(0, len(values), size)
        assert np.array_equal(files.gather(rows), values[rows])
        assert np.array_equal(files.gather(np.sort(rows)), values[np.sort(rows)])
    assert (by["one by one"] > 0) == ("rows" in kinds)
    assert (by["mapped"] > 0) == (set(kinds) != {"rows"} or not here_and_there)


@pytest.mark.parametrize("size", [1000 * 1024, 128 + 1990 * 1024 + 1000], ids=["before a row", "within it"])
def test_a_file_that_is_cut_while_rows_are_gathered(tmp_path, size):
    values = np.arange(2000 * 256, dtype=np.float32).reshape(2000, 256)
    np.save(tmp_path / "some.npy", values)
    files = RowFiles([npy_layout(tmp_path / "some.npy")], [0, 2000])
    assert np.array_equal(files.gather([3, 1990]), values[[3, 1990]])
    os.truncate(tmp_path / "some.npy", size)
    with pytest.raises(NeardupError, match=r"some.npy has become shorter while it was read: mend it"):
        files.gather([3, 1990])


@pytest.mark.parametrize("about", ["state.json", "dataset_info.json"])
def test_what_was_done_to_a_dataset_is_not_read_once_more(tmp_path, about):
    """`datasets` leaves its caches beside the files of `save_to_disk`, and in the folder of what it has loaded."""
    for name in ("data-00000-of-00001.arrow", "cache-0123abcd.arrow", "cache-0123_00000_of_00002.arrow"):
        write_table(tmp_path / name, {"id": NAMES, "emb": LISTS})
    assert len(find_shards(tmp_path)) == 3
    (tmp_path / about).write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    assert [shard.name for shard in find_shards(tmp_path)] == ["data-00000-of-00001.arrow"]
    assert len(find_shards(tmp_path, Reading("*.arrow"))) == 3


def test_ids_in_the_table_of_the_vectors_take_no_room_of_those(tmp_path):
    """Of what stage 1 asks the disk for."""
    rows = np.random.default_rng(0).normal(size=(len(NAMES), 99))
    write_table(tmp_path / "p.parquet", {"id": NAMES, "emb": rows.tolist()})
    [shard] = find_shards(tmp_path)
    assert shard.path.stat().st_size > expected_bytes([shard]) >= sum(map(len, NAMES))


@pytest.mark.parametrize("kind", ["string", "binary"])
def test_columns_have_room_for_more_than_two_gibibytes(tmp_path, kind):
    """Their sizes add up in 64 bits."""
    write_table(tmp_path / "p.parquet", {"text": pa.array(["a", None, "b"], kind)})
    found = read_column(tmp_path / "p.parquet", "text", 3)
    assert found.type == f"large_{kind}"
    assert len(found) == 3


def brain_floats():
    """Floats of 16 bits with the exponent of 32, which NumPy has no type for; h5py gives float32."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def few_bits():
    """Integers of four bits, in the middle of a byte."""
    kind = h5py.h5t.STD_I8LE.copy()
    kind.set_precision(4)
    kind.set_offset(4)
    return kind


@pytest.mark.parametrize("kind", [brain_floats, few_bits])
def test_types_that_numpy_has_not_are_decoded(tmp_path, kind):
    """HDF5 converts them; what lies in the file is something else."""
    with h5py.File(tmp_path / "p.h5", "w") as file:
        space = h5py.h5s.create_simple(FEW.shape)
        data = h5py.Dataset(h5py.h5d.create(file.id, b"emb", kind(), space))
        data[:] = np.rint(FEW)
        expected = data[:]
        file["more"] = np.arange(500)
    [shard] = find_shards(tmp_path, copy_dir=tmp_path / "copies")
    copies.make([shard], 1)
    assert len(np.unique(expected)) > 2
    assert np.load(shard.copy).tolist() == expected.tolist()


def test_a_link_to_another_file_is_told(tmp_path):
    with h5py.File(tmp_path / "there.h5", "w") as file:
        file["x"] = FEW
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "p.h5", "w") as file:
        file["blob"], file["emb"] = np.arange(5000.0), h5py.ExternalLink("../there.h5", "/x")
    with pytest.raises(NeardupError, match=r"p\.h5 links to .*there\.h5 \(/x\): set data_dir to that file"):
        find_shards(tmp_path / "data", Reading(vectors="emb"))


@pytest.mark.parametrize("how", ["virtual", "external"])
def test_values_that_lie_in_other_files_are_decoded_again_when_those_change(tmp_path, how):
    data = tmp_path / "data"
    data.mkdir()
    rows = [FEW, FEW[::-1].copy()]

    def write_other(values):
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["x"] = values
        values.tofile(tmp_path / "other.bin")

    write_other(rows[0])
    with h5py.File(data / "p.h5", "w") as file:
        if how == "virtual":
            layout = h5py.VirtualLayout(FEW.shape, FEW.dtype)
            layout[:] = h5py.VirtualSource("../other.h5", "x", FEW.shape)
            file.create_virtual_dataset("emb", layout)
        else:
            file.create_dataset("emb", FEW.shape, FEW.dtype, external=[(str(tmp_path / "other.bin"), 0, FEW.nbytes)])
    found = []
    for some in rows:
        write_other(some)
        os.utime(tmp_path / ("other.h5" if how == "virtual" else "other.bin"), ns=(len(found),) * 2)
        [shard] = find_shards(data, copy_dir=tmp_path / "copies")
        copies.make([shard], 1)
        found.append((np.load(shard.copy).tolist(), times([shard])))
    assert [values for values, _ in found] == [some.tolist() for some in rows]
    assert found[0][1] != found[1][1]  # so that stages look at it again
    (tmp_path / ("other.h5" if how == "virtual" else "other.bin")).unlink()
    (data / "p.h5").touch()
    [shard] = find_shards(data, copy_dir=tmp_path / "copies")
    with pytest.raises(NeardupError, match=r"p\.h5 has values in .*other.*, which is not there: put it there"):
        copies.make([shard], 1)


def test_ids_by_another_name_of_a_data_set(tmp_path):
    """A second hard link and a soft one; not one that leads nowhere, or round in a circle."""
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["emb"], file["a/names"] = FEW, np.array(NAMES, object)
        file["a/above"], file["key"], file["gone"] = file["/"], file["a/names"], h5py.SoftLink("/nowhere")
    assert {"a/names", "key"} <= {*column_names(tmp_path / "p.h5")}
    for reading in (Reading(), Reading(id_column="key"), Reading(id_column="a/names")):
        [shard] = find_shards(tmp_path, reading)
        assert [name for block in id_blocks(shard) for name in block.to_pylist()] == NAMES


@pytest.mark.parametrize("cuts", [(), (7,), (0, 7), (3, 3, 11)])
def test_ids_of_rows_in_any_order(cuts):
    """Repeated, too; of as many arrays as there are shards, some of them empty."""
    ids, rng = IdTable([pa.array(NAMES[low:high]) for low, high in pairwise([0, *cuts, 20])]), np.random.default_rng(0)
    for size in (0, 1, 2, 5, 60):
        rows = rng.integers(0, 20, size)
        assert ids.take(rows) == [NAMES[row] for row in rows]


def test_data_sets_of_other_files_are_no_columns(tmp_path):
    """Whose changes nobody would see."""
    with h5py.File(make_folder(tmp_path / "below") / "other.h5", "w") as file:
        file["id"] = NAMES
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["emb"], file["key"] = FEW, LINKS
        file["id"], file["all"] = (h5py.ExternalLink("below/other.h5", name) for name in ("id", "/"))
    assert column_names(tmp_path / "p.h5") == ["key"]
    run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1])
    assert read_ids(tmp_path / "work") == LINKS


def test_the_table_that_is_read_where_several_lie_beside(tmp_path):
    np.save(tmp_path / "p.npy", FEW)
    suffixes = [".parquet", ".csv", ".arrow", ".feather"]
    for suffix in suffixes:
        write_table(tmp_path / f"p{suffix}", {"id": [f"{suffix}-{name}" for name in NAMES]})
    for suffix in suffixes:
        run_stages(tmp_path, tmp_path / "work", SCRIPTS[:1], input_format="npy")
        assert read_ids(tmp_path / "work") == [f"{suffix}-{name}" for name in NAMES]
        (tmp_path / f"p{suffix}").unlink()


def test_cells_of_several_lines_where_blocks_end(tmp_path, monkeypatch):
    monkeypatch.setattr("neardup.input.metadata._CSV_BLOCK", 100)
    texts = [f"a\nb\n\nc-{i}\n" for i in range(200)]
    write_table(tmp_path / "p.csv", {"id": texts, "text": texts})
    assert read_column(tmp_path / "p.csv", "text", 200).to_pylist() == texts
    assert [
        i for some in column_blocks(tmp_path / "p.csv", "id", 200, pa.large_string()) for i in some.to_pylist()
    ] == texts


@pytest.mark.parametrize("place", [0, 100, 199])
def test_a_line_longer_than_a_block_of_a_csv_file(tmp_path, monkeypatch, place):
    """What comes before it isn't given twice; the first line may be the long one."""
    monkeypatch.setattr("neardup.input.metadata._CSV_BLOCK", 100)
    texts = [f"c-{i}" + "x" * (500 if i == place else 0) for i in range(200)]
    write_table(tmp_path / "p.csv", {"id": [*map(str, range(200))], "text": texts, "x" * 300 * (not place): texts})
    assert column_names(tmp_path / "p.csv")[:2] == ["id", "text"]
    assert read_column(tmp_path / "p.csv", "text", 200).to_pylist() == texts
    for name, expected in (("id", [*map(str, range(200))]), ("text", texts)):
        blocks = [some.to_pylist() for some in column_blocks(tmp_path / "p.csv", name, 200, pa.large_string())]
        assert [value for some in blocks for value in some] == expected
        assert len(blocks) > 1 or not place


def test_csv_files_of_long_texts_are_not_read_far_ahead(tmp_path):
    """In 100 MB, of 200, of which just the ids are wanted: Arrow reads what it can before anybody asks."""
    with (tmp_path / "p.csv").open("w") as file:
        file.write("id,text\n")
        file.writelines(f"{i},{'long ' * 1000}\n" for i in range(40_000))
    with peak_memory() as peak:
        names = (i for some in column_blocks(tmp_path / "p.csv", "id", 40_000, pa.large_string()) for i in some)
        assert all(name.as_py() == str(i) for i, name in enumerate(names))
        most = peak()
    print(f"{most / 1e6:.1f} MB")
    assert most < 100e6


def test_views_in_dictionaries_are_ids_too(tmp_path):
    values = pa.DictionaryArray.from_arrays(pa.array(range(20), pa.uint32()), pa.array(NAMES, pa.string_view()))
    write_table(tmp_path / "p.arrow", {"emb": LISTS, "id": values})
    [shard] = find_shards(tmp_path)
    assert [name for block in id_blocks(shard) for name in block.to_pylist()] == NAMES


def test_dictionaries_that_are_replaced_in_a_stream(tmp_path):
    """Of more values than one of theirs could number."""
    texts = [f"text-{i}" for i in range(400)]
    kind = pa.dictionary(pa.int8(), pa.string())
    with pa.ipc.new_stream(str(tmp_path / "t.arrow"), pa.schema([("text", kind)])) as writer:
        for start in range(0, 400, 100):
            some = pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), texts[start : start + 100])
            writer.write_batch(pa.record_batch([some], ["text"]))
    assert read_column(tmp_path / "t.arrow", "text", 400).to_pylist() == texts


def test_what_others_take_for_missing_is_text(tmp_path):
    """Ids, and values, of a CSV file."""
    names = ["NA", "null", "NaN", "", "#N/A", "nan", "n/a", "x"]
    npy(tmp_path, 0, np.repeat(np.eye(4), 2, axis=0), names, beside=".csv")
    run_stages(tmp_path, tmp_path / "work", tabulate="id", audit_rows=0, n_clusters=1)
    assert read_ids(tmp_path / "work") == names
    with (tmp_path / "work" / "045_merge" / "losses.csv").open(newline="", encoding="utf-8") as file:
        lines = [line[1:] for line in csv.reader(file) if line[0] == "id"]
    assert lines == [[name, "1", str(names.index(name) % 2)] for name in sorted(names)]


def test_a_cell_of_some_megabytes(tmp_path):
    write_table(tmp_path / "t.csv", {"id": ["a", "b"], "text": ["long " * 600_000, "short"]})
    assert read_column(tmp_path / "t.csv", "id", 2).to_pylist() == ["a", "b"]
    (tmp_path / "t.csv").write_text("text\n" + "x" * (17 << 20) + "\n")
    with pytest.raises(NeardupError, match=r"t\.csv .*none of over 8 MiB"):
        read_column(tmp_path / "t.csv", "text", 1)


def test_a_file_whose_name_is_not_utf8(tmp_path):
    np.save(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff.npy"), FEW)
    with pytest.raises(NeardupError, match=r"/p.udcff\.npy': rows can't be named by a file whose name isn't UTF-8"):
        find_shards(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_compressed_arrays_that_are_damaged(tmp_path, method):
    """Whatever the method's own error is."""
    rows = np.random.default_rng(0).normal(size=(500, 8))
    with zipfile.ZipFile(tmp_path / "p.npz", "w", method) as archive, archive.open("emb.npy", "w") as file:
        np.save(file, rows)
    content = bytearray((tmp_path / "p.npz").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = b"\xff" * 400
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(NeardupError, match=r"p\.npz"):
        [*by_suffix.blocks(tmp_path / "p.npz", None)]


def test_a_dry_run_of_shards_of_which_only_empty_ones_are_mapped(tmp_path):
    np.savez(tmp_path / "a.npz", emb=np.empty((0, 8), np.float32))
    np.savez_compressed(tmp_path / "b.npz", emb=FEW)
    found = plan(Config(data_dir=tmp_path, work_dir=tmp_path / "work"))
    assert (found["rows"], found["seconds"]) == (20, None)


def test_a_flat_index_of_another_kind_is_not_called_damaged(tmp_path):
    flat(tmp_path, 0, FEW, NAMES, kind=lambda dim: faiss.IndexFlatL2Panorama(dim, 4))
    with pytest.raises(NeardupError, match="IndexFlatL2Panorama, not a flat index"):
        find_shards(tmp_path)


def test_what_a_copy_of_clip_retrieval_holds_is_fetched_for_it():
    names = [f"{folder}/{folder}_0.npy" for folder in ("img_emb", "text_emb")] + ["metadata/metadata_0.parquet"]
    assert shards.wanted(Reading(), "s3://b", names) == names[::2]
    assert shards.wanted(Reading(), "s3://b", names, export=True) == [names[0], names[2], names[1]]


def test_texts_beside_a_single_remote_file(tmp_path):
    np.save(tmp_path / "a.npy", FEW)
    (tmp_path / "texts.json").write_text("{}")
    url = f"file://{tmp_path}/a.npy"
    path = copies.fetch(url, tmp_path / "input", partial(shards.wanted, Reading(), url), 1)
    assert {p.name for p in path.parent.iterdir()} == {"a.npy", "a.npy.json", "texts.json", "texts.json.json"}


@pytest.mark.parametrize("name", [None, "embedding"])
def test_a_column_of_another_type_is_named(tmp_path, name):
    write_table(tmp_path / "p.parquet", {"embedding": [[1, 2], [3, 4]], "n": [1, 2]})
    with pytest.raises(NeardupError, match=r"column 'embedding' holds list<.*int64>, not lists of floats or int8"):
        find_shards(tmp_path, Reading(vectors=name))


def test_a_line_that_begins_with_a_quote_is_named(tmp_path):
    np.save(tmp_path / "a.npy", FEW[:3])
    (tmp_path / "a.txt").write_text('Low\nScary Monsters\n"Heroes" (live)\n')
    with pytest.raises(NeardupError, match=r"a\.txt .*line 3 begins with a quote, but is no JSON string"):
        [*id_blocks(find_shards(tmp_path)[0])]


def long_texts(n_rows):
    """Texts of 10 kB, of which ASCII is one half."""
    return [f"{i:05}" + "ab" * 2500 + "é" * 2500 for i in range(n_rows)]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", ["distinct", "repeated"])
def test_long_texts_are_read_block_by_block(tmp_path, monkeypatch, suffix, kind):
    """In 6 MB where all take 40: the few that are shown, their lengths, and their digest. Repeated ones are 10 kB."""
    monkeypatch.setattr("neardup.input.formats.BLOCK_BYTES", 1 << 20)
    texts = long_texts(4000) if kind == "distinct" else long_texts(1) * 4000
    np.save(tmp_path / "p.npy", np.ones((4000, 2), "f4"))
    options = {"write_batch_size": 32} if suffix == ".parquet" else {}  # of a larger one pages are
    write_table(tmp_path / f"p{suffix}", {"id": [*map(str, range(4000))], "text": texts}, **options)
    preview = Preview("text", find_shards(tmp_path), None)
    with peak_memory() as peak:
        assert preview.texts([3999, 7, 7, 0], 9) == [texts[row][:9] for row in (3999, 7, 7, 0)]
        assert preview.lengths().tolist() == [len(text) for text in texts]
        digest = digest_of_column(tmp_path / f"p{suffix}", "text", 4000)
        most = peak()
    print(f"{most / 1e6:.1f} MB")
    assert most < 6 << 20
    write_table(tmp_path / "q.parquet", {"text": texts}, row_group_size=900)
    assert digest == digest_of_column(tmp_path / "q.parquet", "text", 4000)


COLUMNS = {
    "text": pa.array(["a", None, "", "bc", "bc", "é", "d"] * 9),
    "bytes": pa.array([b"a", None, b"", b"\xff", b"bc", b"c", b"d"] * 9, pa.large_binary()),
    "dictionary": pa.array(["a", None, "b", "a", "", "c", "d"] * 9).dictionary_encode(),
    "number": pa.array([1, None, 0, -1, 5, 2**60, 3] * 9),
    "float": pa.array([1, None, 0, -0.0, np.nan, np.inf, 3] * 9, pa.float16()),
    "flag": pa.array([True, None, False, False, True, True, False] * 9),
    "decimal": pa.array([1, None, 0, -1, 5, 8, 3] * 9, pa.decimal128(5, 2)),
    "fixed": pa.array([b"ab", None, b"cd", b"\0\0", b"gh", b"ij", b"kl"] * 9, pa.binary(2)),
    "time": pa.array([1, None, 0, -1, 5, 2**60, 3] * 9, pa.timestamp("ns", "UTC")),
    "nothing": pa.nulls(63),
    "list": pa.array([[1], None, [], [2, None], [3, 4], [5], [None]] * 9),
    "lists of texts": pa.array([[["a"]], None, [], [["b", None], None], [[]], [["c"]], [["d"]]] * 9),
    "pair": pa.array([[1, 2], None, [None, 4], [5, 6], [7, 8], [9, 1], [0, 0]] * 9, pa.list_(pa.int8(), 2)),
    "struct": pa.array([{"a": i, "b": [i]} if i != 1 else None for i in range(7)] * 9),
    "map": pa.array([[("a", 1)], None, [], [("b", None)], [("c", 2), ("d", 3)], [], []] * 9, pa.map_("string", "int8")),
    "list view": pa.array([[1], None, [], [2, None], [3, 4], [5], [None]] * 9, pa.list_view(pa.int8())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([*[b"0" * 16, None, b"1" * 16] * 21], pa.binary(16))),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_digest_of_a_column_is_of_its_values_and_their_type(tmp_path, name):
    """Not of how its file is cut, nor of what lies where a value is missing; of each value, null and type."""
    values, path = COLUMNS[name], tmp_path / "p.arrow"

    def digest_of(values, sizes=(63,)):
        with pa.ipc.new_file(str(path), pa.schema([("c", values.type)])) as writer:
            for start, stop in pairwise(np.cumsum([0, *sizes])):
                writer.write_batch(pa.record_batch([values[start:stop]], ["c"]))
        return digest_of_column(path, "c", len(values))

    digest = digest_of(values)
    assert len({digest_of(values, sizes) for sizes in ([1] * 63, [5, 0, 50, 8], [62, 1])} | {digest}) == 1
    others = [values[:-1], values.take(pa.array([*range(62), 0])), values.take(pa.array([1, 0, *range(2, 63)]))]
    others += [values.take(pa.array([*range(62), None])), pa.nulls(63, values.type)]
    found = {digest_of(other, (len(other),)) for other in others if not other.equals(values)}
    assert digest not in found
    assert len(found) == (len(others) if name != "nothing" else 1)


@pytest.mark.parametrize(
    "a, b",
    [
        (["ab", "c"], ["a", "bc"]),
        (["a", None], [None, "a"]),
        (["", None], [None, ""]),
        ([1, 0], [1, None]),
        ([[1], [2]], [[1, 2], []]),
        ([[["a"], []]], [[["a"]], []]),
        ([1.0, 2.0], [1, 2]),
        (pa.array([1, 2], pa.int8()), pa.array([1, 2], pa.uint8())),
        (pa.array([1, 2], pa.timestamp("s")), pa.array([1, 2], pa.timestamp("s", "UTC"))),
        (pa.array([1, 2], pa.date32()), pa.array([1, 2], pa.time32("s"))),
        ([{"a": 1, "b": None}, {"a": None, "b": 1}], [{"a": 1, "b": 1}, {"a": None, "b": None}]),
    ],
)
def test_digests_of_columns_that_are_alike(tmp_path, a, b):
    write_table(tmp_path / "a.arrow", {"c": a})
    write_table(tmp_path / "b.arrow", {"c": b})
    digests = {digest_of_column(tmp_path / name, "c", len(c)) for name, c in (("a.arrow", a), ("b.arrow", b))}
    assert len(digests) == 2


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_one_batch_of_a_compressed_file_of_arrow_is_decompressed_at_a_time(tmp_path, monkeypatch, new):
    """4 MB; of the other columns nothing, and to count rows of the smallest only."""
    monkeypatch.setattr("neardup.input.formats.BLOCK_BYTES", 1 << 18)
    rows = np.random.default_rng(0).normal(size=(4 * 512, 1024))
    table = pa.table({"more": lists(rows), "emb": lists(rows[::-1].copy()), "id": [*map(str, range(len(rows)))]})
    with new(str(tmp_path / "p.arrow"), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table, max_chunksize=512)
    with peak_memory() as peak:
        assert schema_and_rows(tmp_path / "p.arrow")[1] == len(rows)
        assert missing_values(tmp_path / "p.arrow", "id") == 0
        assert peak() < 1 << 20
        start = 0
        for some in by_suffix.blocks(tmp_path / "p.arrow", "emb"):
            assert (some == rows[::-1][start : start + len(some)]).all()
            start += len(some)
        most = peak()
    assert start == len(rows)
    print(f"{most / 1e6:.1f} MB")
    assert most < 6e6
    [both] = {tuple(b.schema.names) for b in batches(tmp_path / "p.arrow", ["id", "more"], 9)}
    assert both == ("id", "more")


LINES = [
    b"",
    b"\n",
    b"\n\n",
    b"a",
    b"a\n",
    b"a\n\n",
    b"\na",
    b"a\r\nb\rc\n",
    b'"a"\n""\n"\\n"\nb"',
    b' "a"\n',
    b"[a\nb]\nc",
]
LINES += [
    b"a\n\xc3\xa9\n\xe2\x80\xa8\n \nb\x0cc",
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbfa\nb",
    b"a\n\xef\xbb\xbfb",
    b"\n [1\n]",
]
LINES += [
    b'["a",\n"b",\n"c"]',
    b"{\n}",
    b'a\nb\n"c\nd',
    b'a\n"b\nc\xff\nd',
    b"a\nb\nc\n\xff",
    b'a\nb\nc\n"\\ud800"',
    b"[\xff",
]


@pytest.mark.parametrize("n_rows", range(6))
@pytest.mark.parametrize("text", LINES)
def test_lines_are_read_block_by_block_as_they_are_all_at_once(tmp_path, monkeypatch, text, n_rows):
    """The same ids, or the same error, that of the encoding first, then that of a line, then that of their number."""
    monkeypatch.setattr("neardup.input.ids.BLOCK_ROWS", 2)
    path = tmp_path / "p.txt"
    path.write_bytes(text)
    shard = Shard(tmp_path / "p.npy", 0, n_rows, 2, np.dtype("f4"), "p.npy", ids_path=path)
    try:
        found = [name for some in id_blocks(shard) for name in some.to_pylist()]
    except NeardupError as error:
        found = str(error)
    try:
        whole = path.read_text(encoding="utf-8-sig")
        lines = whole.removesuffix("\n").split("\n") if whole or n_rows else []
        if whole.lstrip().startswith(("[", "{")) and not (len(lines) == n_rows and not is_json_list(whole)):
            expected = json.loads(whole)
            if not isinstance(expected, list):
                expected = f"{path} holds a JSON dict, not a list"
            elif len(expected) != n_rows:
                expected = f"{path} lists {len(expected)} ids but p.npy has {n_rows} rows"
            else:
                expected = [*map(str, expected)]
        else:
            bad = [i for i, line in enumerate(lines, 1) if line.startswith('"') and not is_json(line)]
            if bad:
                raise ValueError(f"line {bad[0]} begins with a quote, but is no JSON string")
            expected = [json.loads(line) if line.startswith('"') else line for line in lines]
            if len(lines) != n_rows:
                count = len(lines) if path.stat().st_size else 0
                expected = f"{path} has {counted(count, 'line')}, not {n_rows}"
            elif "\ud800" in expected:
                expected = f"{path}: id 3 ('\\ud800') is not a string of valid Unicode or an integer: mend it"
    except ValueError as error:
        expected = f"{path} is not JSON in UTF-8 ({error})"
    if isinstance(expected, str) and not expected.endswith("mend it"):
        expected += f": write a JSON list of the {n_rows} ids of p.npy"
        expected += ", or one id a line" * (" line" in expected and f", not {n_rows}:" in expected)
    assert found == expected


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def is_json_list(text):
    return is_json(text) and isinstance(json.loads(text), list)


def test_lines_take_the_memory_of_a_block(tmp_path, monkeypatch):
    """1 MB, where all take 30."""
    monkeypatch.setattr("neardup.input.ids.BLOCK_ROWS", 1 << 10)
    names = [f"https://example.org/{i:060}" for i in range(100_000)]
    (tmp_path / "p.txt").write_text("\n".join(names))
    shard = Shard(tmp_path / "p.npy", 0, len(names), 2, np.dtype("f4"), "p.npy", ids_path=tmp_path / "p.txt")
    with peak_memory() as peak:
        starts = range(0, len(names), 1 << 10)
        assert all(
            some.to_pylist() == names[i : i + (1 << 10)] for i, some in zip(starts, id_blocks(shard), strict=True)
        )
        most = peak()
    print(f"{most / 1e6:.1f} MB")
    assert most < 1e6

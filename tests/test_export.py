"""What is exported is what is kept, read by the library that owns the format; DataComp's file; GraphML."""

import csv
import errno
import io
import json
import re
import tracemalloc
import xml.etree.ElementTree as ET
import zipfile
from datetime import datetime
from functools import partial
from itertools import chain, compress, pairwise

import faiss
import h5py
import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from conftest import brute_force, components, read_column, run_stages, tree_bytes, unit
from faults import failing

from neardup import NeardupError
from neardup.grouping.export import _records, write_copy, write_datacomp, write_graph
from neardup.grouping.groups import Groups
from neardup.grouping.outputs import id_lines
from neardup.input.formats import hdf5, npy, npz, tables, vecs
from neardup.input.formats.by_suffix import blocks
from neardup.input.id_table import IdTable
from neardup.input.ids import id_blocks
from neardup.input.shards import Reading, find_shards
from neardup.search.pairs import PAIR, Found

BOUNDS = 0, 60, 97  # rows, in two shards
ODD = ["first", "[1]", "{", '"quoted"', "two\nlines", "comma, ünï", "007", " ", "\u2028", "😀", "\r", '""', "'", "a\0b"]
IDS = ODD + [f"id-{i}" for i in range(len(ODD), BOUNDS[-1])]
NUMBERS = [7 * i for i in range(BOUNDS[-1])]
FLOATS = np.random.default_rng(0).normal(size=(BOUNDS[-1], 8))
MASKS = {
    "some": np.random.default_rng(1).random(BOUNDS[-1]) < 0.6,
    "few": np.random.default_rng(2).random(BOUNDS[-1]) < 0.1,
    "all of the first": np.r_[np.ones(60, bool), np.random.default_rng(3).random(37) < 0.5],
    "none of the second": np.r_[np.random.default_rng(4).random(60) < 0.5, np.zeros(37, bool)],
}
MASKS["some"][[0, 1, 60]] = False, True, True  # then "[1]" begins a text of lines


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several blocks a shard."""
    monkeypatch.setattr("neardup.input.formats.BLOCK_BYTES", 700)


def numpy_file(folder, number, rows, ids, beside=None):
    np.save(folder / f"p_{number}.npy", rows)
    if beside:
        beside(folder / f"p_{number}", ids)


def lines(stem, ids):
    stem.with_suffix(".txt").write_text(id_lines(ids), encoding="utf-8", newline="\n")


def json_list(stem, ids, indent=None):
    stem.with_suffix(".txt").write_text(json.dumps(ids, ensure_ascii=False, indent=indent), encoding="utf-8")


def comma_separated(stem, ids):
    with stem.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        file.write('"no","a ""b""\nc",uid\r\n\r\n')
        for number, name in enumerate(ids):
            file.write(f'00{number},  {number}.50"{{,"{name.replace(chr(34), 2 * chr(34))}"\n' + "\n" * (number % 3))


def metadata(ids, name="uid"):
    """A table of everything that Parquet and Arrow have in common with other libraries' tables."""
    count = len(ids)
    words = pa.array([f"w{i % 3}" for i in range(count)]).dictionary_encode()
    fields = [
        pa.field(name, pa.large_string(), metadata={"about": "ids"}),
        pa.field("width", pa.int16(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("when", pa.timestamp("us", tz="UTC")),
        pa.field("word", words.type),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("box", pa.struct([("x", pa.int8()), ("y", pa.binary())])),
        pa.field("price", pa.decimal128(9, 2)),
    ]
    columns = [
        [str(i) for i in ids],
        list(range(count)),
        [None if i % 5 == 0 else i / 3 for i in range(count)],
        list(range(count)),
        words,
        [[] if i % 4 == 0 else [f"t{i}"] * (i % 4) for i in range(count)],
        [{"x": i % 100, "y": bytes([i])} for i in range(count)],
        [None] * count,
    ]
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, fields, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields, metadata={"huggingface": "{}", "pandas": "ü"}))


def write_table(path, table, stream=False, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **{"row_group_size": 23} | options)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, **options)
    else:
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=23)


def table_beside(stem, ids, suffix):
    write_table(stem.with_suffix(suffix), metadata(ids))


def several(stem, ids):
    for write in (lines, comma_separated, partial(table_beside, suffix=".arrow")):
        write(stem, ids)


def embeddings(folder, number, rows, ids, name="p_{}.parquet", kind=None, **options):
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = metadata(ids, "id").append_column("emb", values.cast(kind) if kind else values)
    write_table(folder / name.format(number), table, **options)


def clip(folder, number, rows, ids):
    for name in ("img_emb", "text_emb"):
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / f"{name}_{number}.npy", rows if name == "img_emb" else rows[::-1])
    write_table(folder / "metadata" / f"metadata_{number}.parquet", metadata(ids, "image_path"))


def arrays(folder, number, rows, ids, save=np.savez):
    others = {"uid": np.array(ids), "cube": np.arange(len(ids) * 6).reshape(-1, 2, 3), "mean": rows[:7].T, "k": 3}
    others |= {"columns": np.asfortranarray(rows.astype(">f8")), "nothing": rows[:, :0], "empty": rows[:0]}
    others |= {"records": np.zeros(len(ids), "u2,S3"), "blank": np.full(len(ids), ""), "flags": rows[:, 0] > 0}
    save(folder / f"p_{number}.npz", l14_img=rows, **others)
    with zipfile.ZipFile(folder / f"p_{number}.npz", "a") as archive:
        archive.writestr("README", "not an array")
    write_table(folder / f"p_{number}.parquet", metadata(ids))


def data_sets(folder, number, rows, ids, **options):
    with h5py.File(folder / f"p_{number}.hdf5", "w") as file:
        file.attrs["distance"], file.attrs["shape"], file.attrs["none"] = "ängular", [1, 2], h5py.Empty("f4")
        file.create_dataset("train", data=rows, **options).attrs["unit"] = np.array([b"ab", b"c"])
        file["train"].attrs["names"] = ["x", "ü"]
        file["train"].attrs["owner"] = file["train"].ref
        file["id"] = [name.replace("\0", "") for name in map(str, ids)]
        file["more/bytes"] = np.array([name.encode() for name in map(str, ids)], "S20")
        file["more/deep/flags"], file["more/records"] = rows[:, 0] > 0, np.ones(len(ids), ">u2,f4")
        file["more"].attrs["about"] = 3
        ragged = file.create_dataset("more/ragged", len(ids), h5py.vlen_dtype("i2"))
        ragged[:] = [np.arange(i % 4) for i in range(len(ids))]
        file.create_dataset("growing", data=np.arange(len(ids)), maxshape=(None,), chunks=(100,), fillvalue=9)
        file.create_dataset("wide", data=np.zeros((len(ids), 0)))
        file["test"], file["scalar"], file["null"], file["kind"] = rows[:7], 5, h5py.Empty("i4"), np.dtype(">f2")
        file["typed"] = h5py.Dataset(
            h5py.h5d.create(file.id, None, file["kind"].id, h5py.h5s.create_simple(rows.shape))
        )
        file["train_too"], file["test_too"], file["more/deep/above"] = file["train"], file["test"], file["more"]
        file["soft"], file["elsewhere"] = h5py.SoftLink("/train"), h5py.ExternalLink("other.h5", "/x")


def binary(folder, number, rows, ids, suffix):
    with (folder / f"p_{number}{suffix}").open("wb") as file:
        if suffix.endswith("vecs"):
            for row in rows:
                np.array([len(row)], "<i4").tofile(file)
                row.tofile(file)
        else:
            np.array(rows.shape, "<u4").tofile(file)
            rows.tofile(file)
    lines(folder / f"p_{number}", ids)


def index(folder, number, rows, ids, metric=faiss.METRIC_INNER_PRODUCT, named=None):
    made = faiss.IndexFlat(rows.shape[1], metric)
    made.metric_arg = 3
    if named:
        made = named(made)
        made.add_with_ids(rows, np.array(ids))
    else:
        made.add(rows)
        json_list(folder / f"p_{number}", ids)
    faiss.write_index(made, str(folder / f"p_{number}.index"))


def case(write, dtype="f4", ids=IDS, **settings):
    return write, dtype, ids, settings


NO_SHARDS = ".parquet", ".arrow", ".feather", ".hdf5"  # without rows
WITHOUT_NUL = [name.replace("\0", "") for name in IDS]
FORMATS = {
    "npy, lines": case(partial(numpy_file, beside=lines), ">f4"),
    "npy, JSON list": case(partial(numpy_file, beside=json_list), "F2"),
    "npy, JSON of integers": case(partial(numpy_file, beside=partial(json_list, indent=1)), "i1", NUMBERS),
    "npy, CSV": case(partial(numpy_file, beside=comma_separated), "<f8"),
    "npy, Parquet": case(partial(numpy_file, beside=partial(table_beside, suffix=".parquet")), "u1"),
    "npy, Feather": case(partial(numpy_file, beside=partial(table_beside, suffix=".feather")), "f4"),
    "npy, several": case(partial(numpy_file, beside=several)),
    "npy, a named column": case(partial(numpy_file, beside=several), id_column="uid"),
    "npy, no ids": case(numpy_file, ids=None),
    "clip-retrieval": case(clip, "f2", id_column="image_path"),
    "clip-retrieval, texts": case(clip, "f2", vectors="text_emb"),
    "clip-retrieval, a pattern": case(clip, "f4", None, shard_pattern="img_emb/*.npy"),
    "npz": case(arrays, vectors="l14_img"),
    "npz, compressed": case(partial(arrays, save=np.savez_compressed), "f2", vectors="l14_img"),
    "npz, Fortran": case(arrays, "F4", vectors="l14_img"),
    "hdf5": case(data_sets, ">f4", WITHOUT_NUL, vectors="train"),
    "hdf5, chunks": case(partial(data_sets, chunks=(35, 3), compression="gzip", shuffle=True), ids=WITHOUT_NUL),
    "hdf5, fletcher32": case(partial(data_sets, chunks=(7, 8), fletcher32=True, maxshape=(500, 8)), "i1", None),
    "fvecs": case(partial(binary, suffix=".fvecs"), "<f4"),
    "bvecs": case(partial(binary, suffix=".bvecs"), "u1"),
    "fbin": case(partial(binary, suffix=".fbin"), "<f4"),
    "u8bin": case(partial(binary, suffix=".u8bin"), "u1"),
    "i8bin": case(partial(binary, suffix=".i8bin"), "i1"),
    "parquet": case(embeddings),
    "parquet, lists": case(partial(embeddings, kind=pa.list_(pa.float64()), compression="zstd"), "f8"),
    "parquet, large lists": case(partial(embeddings, kind=pa.large_list(pa.float32()), compression="none")),
    "parquet, other names": case(partial(embeddings, kind=pa.list_(pa.float32()), use_compliant_nested_type=False)),
    "parquet, codecs": case(partial(embeddings, compression={"id": "gzip", "emb.list.element": "none"})),
    "parquet, nested": case(partial(embeddings, name="of={}/p.parquet"), "f2", shard_pattern="**/*.parquet"),
    "arrow": case(partial(embeddings, name="p_{}.arrow")),
    "arrow, stream": case(partial(embeddings, name="p_{}.arrow", stream=True), "i1"),
    "feather": case(partial(embeddings, name="p_{}.feather", compression="lz4")),
    "IndexFlatIP": case(index),
    "IndexFlatL2": case(partial(index, metric=faiss.METRIC_L2)),
    "IndexFlat of Lp": case(partial(index, metric=faiss.METRIC_Lp)),
    "IndexIDMap": case(partial(index, named=faiss.IndexIDMap), ids=NUMBERS),
    "IndexIDMap2": case(partial(index, named=faiss.IndexIDMap2, metric=faiss.METRIC_L2), ids=NUMBERS),
}


def lay_out(name, folder):
    """Write the rows of a case as two shards. Returns the rows, and the settings to read them with."""
    write, dtype, ids, settings = FORMATS[name]
    rows = FLOATS.astype(dtype.lower()) if "f" in dtype.lower() else np.rint(FLOATS * 20).clip(-100, 100).astype("i1")
    rows = rows.view("u1") if dtype == "u1" else rows
    folder.mkdir()
    for number, (low, high) in enumerate(pairwise(BOUNDS)):
        of_shard = np.asfortranarray(rows[low:high]) if dtype[0] == "F" else rows[low:high]
        write(folder, number, of_shard, (ids or IDS)[low:high])
    return rows, settings


def load_vecs(path):
    kind = {"f": "<f4", "b": "u1", "u": "u1", "i": "i1"}[path.suffix[1]]
    if path.suffix.endswith("vecs"):
        dim = int(np.fromfile(path, "<i4", 1)[0])
        found = np.fromfile(path, np.dtype([("dim", "<i4"), ("values", kind, dim)]))
        assert set(found["dim"].tolist()) == {dim}
        return found["values"]
    rows, dim = np.fromfile(path, "<u4", 2).tolist()
    return np.fromfile(path, kind, offset=8).reshape(rows, dim)


def load_index(path):
    found = flat = faiss.read_index(str(path))
    ids = np.empty((found.ntotal, 0))
    if isinstance(found, faiss.IndexIDMap):
        ids, flat = faiss.vector_to_array(found.id_map), faiss.downcast_index(found.index)
    kinds = type(found), found.metric_type, type(flat), flat.metric_type, flat.metric_arg
    return {"rows": flat.reconstruct_n(0, flat.ntotal), "ids": ids}, kinds


def load_hdf5(path):
    """Data sets, by all of their names, and what else there is to be seen of a file."""
    values, others = {}, {}

    def attributes(item):
        return {k: (v.tolist() if hasattr(v, "tolist") else v) for k, v in item.attrs.items() if k != "owner"}

    def look(name, item):
        others[name] = type(item), attributes(item), {k: h5py.h5a.open(item.id, k.encode()).dtype for k in item.attrs}
        others[name][2].pop("owner", None)
        if isinstance(item, h5py.Dataset):
            kept = item.maxshape and item.maxshape[1:], item.compression, item.shuffle, item.fletcher32, item.fillvalue
            others[name] += (item.dtype, *map(str, kept), item.chunks is None)
            values[name] = np.asarray(item[()], None if item.shape is not None else object)

    with h5py.File(path) as file:
        others["/"] = attributes(file)
        file.visititems(look)
        assert file["train_too"] == file["train"] == file["soft"]
        assert file["test_too"] == file["test"]
        assert file["growing"].maxshape == (None,)
        assert file["more/deep/above"] == file["more"]
        assert file.get("elsewhere", getlink=True).path == "/x"
    return values, others


def load_table(path):
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            group = file.metadata.row_group(0) if file.metadata.num_row_groups else None
            codecs = group and {(c := group.column(i)).path_in_schema: c.compression for i in range(group.num_columns)}
            return file.read(), codecs
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all(), "file"
        except pa.ArrowInvalid:
            return pa.ipc.open_stream(source).read_all(), "stream"


def load_lines(path):
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text), "JSON"
    except json.JSONDecodeError:
        return [json.loads(x) if x.startswith('"') else x for x in text.removesuffix("\n").split("\n")], "lines"


def load(path):
    """A file as its own library has it: what has a row for each of its rows, and what hasn't."""
    if path.suffix == ".npy":
        return np.load(path), None
    if path.suffix == ".npz":
        with np.load(path) as file:
            about = [(i.filename, i.compress_type) for i in file.zip.infolist()], file.zip.read("README")
            return {name: file[name] for name in file.files if name != "README"}, about
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [cells for cells in csv.reader(file) if cells], None
    known = {".hdf5": load_hdf5, ".index": load_index, ".txt": load_lines}
    if path.suffix in (".parquet", ".arrow", ".feather"):
        return load_table(path)
    return known[path.suffix](path) if path.suffix in known else (load_vecs(path), None)


def check_kept(source, copy, keep):
    """That a file holds just the rows to keep of another, and all else that it holds."""
    (before, kind), (after, kind_after) = load(source), load(copy)
    if source.suffix == ".csv":
        keep = np.r_[True, keep]
        records = [r.rstrip(b"\r\n") for r in re.split(rb"^(?=00\d+,)", source.read_bytes(), flags=re.MULTILINE)]
        assert copy.read_bytes() == b"\n".join([*compress(records, keep), b""]).replace(b"uid\n", b"uid\r\n", 1)
    if isinstance(before, list):
        assert after == list(compress(before, keep))
        assert kind_after == kind or (kind == "lines" and after == [])
    elif isinstance(before, pa.Table):
        assert after.equals(before.filter(pa.array(keep)))
        assert after.schema.equals(before.schema, check_metadata=True)
        assert kind_after == kind or (isinstance(kind, dict) and kind_after is None and not keep.any())
    else:
        before, after = (found if isinstance(found, dict) else {"": found} for found in (before, after))
        assert list(before) == list(after)
        for name, array in before.items():
            of_rows = array.shape[:1] == keep.shape and name != "test"
            same_values(after[name], array[keep] if of_rows else array)
        assert kind_after == kind


def same_values(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if expected.dtype == object:
        found, expected = (
            [x.tolist() if hasattr(x, "tolist") else x for x in a.reshape(-1)] for a in (found, expected)
        )
        assert found == expected
    else:
        assert found.tobytes() == expected.tobytes()


def beside(shard_name, folder):
    """Files of a shard, itself included, by their names below the folder."""
    number = re.search(r"\d", shard_name)[0]
    return {name for name in tree_bytes(folder) if number in name}


NEVER_EMPTY = ".fvecs", ".bvecs", ".index", ".parquet", ".arrow", ".feather"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_copy_is_what_is_kept(tmp_path, name, mask):
    """Rows, ids and metadata, as the format's library reads them and as stage 1 does; the same bytes each time."""
    data, copy, keep = tmp_path / "data", tmp_path / "copy", MASKS[mask]
    rows, settings = lay_out(name, data)
    before, shards = tree_bytes(data), find_shards(data, Reading(**settings))
    left_out = write_copy(shards, keep, copy, 2)
    gone = [s for s in shards if s.path.suffix in NEVER_EMPTY and not keep[s.start :][: s.rows].any()]
    assert sorted(left_out) == sorted(n for s in gone for n in beside(s.name, data))
    assert sorted(tree_bytes(copy)) == sorted({*before} - {*left_out})
    for shard in shards:
        for found in beside(shard.name, copy):
            check_kept(data / found, copy / found, keep[shard.start : shard.start + shard.rows])
    assert tree_bytes(data) == before
    if mask == "some":
        for again in (~keep, keep):
            write_copy(shards, again, tmp_path / "again", 1)
        assert tree_bytes(tmp_path / "again") == tree_bytes(copy)
    check_stage_1(copy, Reading(**settings), (rows if "texts" not in name else None), (FORMATS[name][2], keep))


def ids_of(shard):
    return [i for ids in id_blocks(shard) for i in ids.to_pylist()]


def check_stage_1(copy, reading, rows, ids_and_keep):
    """That the copy is read as just the rows to keep.

    Tables of no rows are no shards, and HDF5 files with ids neither: they are left out, as the errors ask for.
    """
    ids, keep = ids_and_keep
    if not keep[BOUNDS[1] :].any() and not any(copy.rglob("*1.np?")):
        for path in (p for p in copy.rglob("*p*") if "1" in p.relative_to(copy).as_posix() and p.suffix in NO_SHARDS):
            path.unlink()
    shards = find_shards(copy, reading)
    if ids:
        assert [i for s in shards for i in ids_of(s)] == [str(i) for i in compress(ids, keep)]
    if rows is not None:
        found = [[s.layout.read(0, s.rows)] if s.stored else [*blocks(s.path, s.vectors)] for s in shards]
        same_values(np.concatenate(list(chain(*found))).astype(rows.dtype), rows[keep])


@pytest.mark.parametrize("name", ["npy, several", "clip-retrieval", "hdf5, chunks", "parquet, lists", "IndexIDMap"])
@pytest.mark.parametrize("seed", range(6))
def test_random_masks(tmp_path, name, seed):
    data, copy, rng = tmp_path / "data", tmp_path / "copy", np.random.default_rng(seed)
    rows, settings = lay_out(name, data)
    keep = rng.random(len(rows)) < rng.choice([0.02, 0.3, 0.7, 0.98])
    keep[rng.integers(60)] = True
    write_copy(find_shards(data, Reading(**settings)), keep, copy, 2)
    check_stage_1(copy, Reading(**settings), rows, (FORMATS[name][2], keep))


def test_what_does_not_fit_is_left_out_and_named(tmp_path):
    """Files beside a shard that haven't a row for each of its rows."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    lay_out("clip-retrieval", data)
    np.save(data / "text_emb" / "text_emb_1.npy", np.zeros((5, 3)))
    lines(data / "img_emb" / "img_emb_0", IDS[:59])
    comma_separated(data / "img_emb" / "img_emb_0", IDS[:61])
    comma_separated(data / "img_emb" / "img_emb_1", IDS[:36])
    (data / "README.md").write_text("not ours")
    shards = find_shards(data, Reading(id_column="image_path"))
    left_out = write_copy(shards, MASKS["some"], copy, 2)
    in_order = ["img_emb/img_emb_0.txt", "img_emb/img_emb_0.csv", "img_emb/img_emb_1.csv", "text_emb/text_emb_1.npy"]
    assert left_out == in_order
    assert {*tree_bytes(copy)} == {*tree_bytes(data)} - {*left_out, "README.md"}


NOT_THE_IDS = [b"\xff\xfe\n\n", b'{"a": 1}', b"[1, 2", b"[" * 100_000, b"[1]", b"", b"a\nb"]
NOT_THE_IDS += [b"a\n" * 99, b"[0" + b", 1" * 98 + b"]"]  # of more rows


@pytest.mark.parametrize("content", NOT_THE_IDS)
def test_a_text_that_is_not_the_ids_is_left_out(tmp_path, content):
    lay_out("npy, CSV", tmp_path / "data")
    (tmp_path / "data" / "p_1.txt").write_bytes(content)
    shards = find_shards(tmp_path / "data", Reading(id_column="uid"))
    assert write_copy(shards, MASKS["some"], tmp_path / "copy", 1) == ["p_1.txt"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("\n", "\n"),
        ("[1", '"[1"\n'),
        ("[7]", "[7]\n"),
        ('["[7]"]', '["[7]"]\n'),
        ("\ufeffa", "a\n"),
        ("\ufeff[1]", "[1]\n"),
    ],
)
def test_ids_of_a_single_row(tmp_path, text, kept):
    np.save(tmp_path / "p.npy", FLOATS[:1])
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    shards = find_shards(tmp_path)
    write_copy(shards, np.ones(1, bool), tmp_path / "copy", 1)
    assert (tmp_path / "copy" / "p.txt").read_text() in (kept, kept + "\n")
    assert ids_of(find_shards(tmp_path / "copy")[0]) == ids_of(shards[0])


@pytest.mark.parametrize("first", ["[1]", "{", " \t[", "\u2003{}", "[1", '["a"]'])
@pytest.mark.parametrize("blanks", [[], [" "], ["", " \u2003"]])
@pytest.mark.parametrize("rest", [[], ["[2]", "b"], [",", "1]"]])
def test_lines_that_might_be_json(tmp_path, first, blanks, rest):
    """Once the line before them is left out."""
    ids = ["a", *blanks, first, *rest]
    np.save(tmp_path / "p.npy", FLOATS[: len(ids)])
    (tmp_path / "p.txt").write_text("\n".join(ids), encoding="utf-8")
    write_copy(find_shards(tmp_path), np.arange(len(ids)) > 0, tmp_path / "copy", 1)
    assert ids_of(find_shards(tmp_path / "copy")[0]) == ids[1:]


def dataset(folder):
    """Two shards as `save_to_disk` of Hugging Face's datasets leaves them, with texts. Returns its state."""
    state = {"_data_files": [{"filename": f"p_{n}.arrow"} for n in range(3)], "_split": "train", "_fingerprint": "0a1b"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}, "license": "ünï"}', encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(dict.fromkeys(IDS, "text")))
    return state


@pytest.mark.parametrize("mask", ["some", "none of the second"])
@pytest.mark.parametrize("pattern", [None, "**/*.arrow"])
def test_what_is_about_all_shards_is_copied(tmp_path, pattern, mask):
    """Texts, and what `datasets.load_from_disk` needs: a state of the files there are, without the old fingerprint."""
    split, copy = tmp_path / "data" / "train", tmp_path / "copy"
    split.parent.mkdir()
    lay_out("arrow, stream", split)
    state, data = dataset(split), split.parent if pattern else split
    before, shards = tree_bytes(data), find_shards(data, Reading(pattern))
    below = copy / split.relative_to(data)
    for _ in range(2):
        left_out = write_copy(shards, MASKS[mask], copy, 1)
        files = [{"filename": f"p_{n}.arrow"} for n in range(2 - len(left_out))]
        listed = json.loads((below / "state.json").read_text())
        assert listed == state | {"_data_files": files, "_fingerprint": None}
        for name in ("texts.json", "dataset_info.json"):
            assert (below / name).read_bytes() == (split / name).read_bytes()
        assert {*tree_bytes(copy)} == {*before} - {*left_out}
    assert tree_bytes(data) == before
    (split / "dataset_info.json").unlink()
    (split / "state.json").write_text('{"of": "another program"}')
    write_copy(shards, MASKS[mask], copy, 1)
    assert not (below / "state.json").exists()
    write_copy(shards, ~np.ones(BOUNDS[-1], bool), tmp_path / "none", 1)
    assert tree_bytes(tmp_path / "none") == {}


def test_what_is_about_the_shards_of_one_folder(tmp_path):
    """Is copied if some of those are, though shards of the same names are in another."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    data.mkdir()
    for name in "ab":
        lay_out("arrow, stream", data / name)
        dataset(data / name)
    keep = np.r_[np.zeros(BOUNDS[-1], bool), MASKS["none of the second"]]
    write_copy(find_shards(data, Reading("**/*.arrow")), keep, copy, 1)
    assert {*tree_bytes(copy)} == {n for n in tree_bytes(data) if n.startswith("b/") and not n.startswith("b/p_1")}
    assert json.loads((copy / "b" / "state.json").read_text())["_data_files"] == [{"filename": "p_0.arrow"}]


@pytest.mark.parametrize("name", ["texts.json", "state.json"])
def test_what_is_about_all_shards_is_never_overwritten(tmp_path, name):
    data, copy = tmp_path / "data", tmp_path / "copy"
    lay_out("arrow, stream", data)
    dataset(data)
    copy.mkdir()
    (data / name).rename(copy / name)
    (data / name).symlink_to(copy / name)
    before = tree_bytes(data)
    with pytest.raises(NeardupError, match="copy is the folder of the input, which is never written to"):
        write_copy(find_shards(data), MASKS["some"], copy, 1)
    assert tree_bytes(data) == before


def test_metadata_that_lie_elsewhere(tmp_path):
    """clip-retrieval's, of a folder below."""
    clip(tmp_path, 0, FLOATS, IDS)
    (tmp_path / "below").mkdir()
    (tmp_path / "img_emb").rename(tmp_path / "below" / "img_emb")
    reading = Reading("below/img_emb/*.npy", "clip-retrieval", None, "image_path")
    write_copy(find_shards(tmp_path, reading), MASKS["some"], tmp_path / "copy", 1)
    [shard] = find_shards(tmp_path / "copy", reading)
    assert ids_of(shard) == list(compress(IDS, MASKS["some"]))


def test_an_earlier_copy_is_replaced(tmp_path):
    """Of it nothing is left that the new one hasn't."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    lay_out("fvecs", data)
    shards = find_shards(data)
    write_copy(shards, MASKS["some"], copy, 2)
    (copy / "notes.md").write_text("somebody's")
    write_copy(shards, MASKS["none of the second"], copy, 2)
    assert {*tree_bytes(copy)} == {"p_0.fvecs", "p_0.txt", "notes.md"}


def test_the_input_is_never_overwritten(tmp_path):
    data = tmp_path / "data"
    lay_out("npy, lines", data)
    (tmp_path / "linked").symlink_to(data)
    (tmp_path / "files").mkdir()
    for path in data.iterdir():
        (tmp_path / "files" / path.name).symlink_to(path)
    before = tree_bytes(data)
    for source, folder in (("data", "data"), ("data", "linked"), ("linked", "data"), ("files", "data")):
        with pytest.raises(NeardupError, match=f"{folder} is the folder of the input, which is never written to"):
            write_copy(find_shards(tmp_path / source), MASKS["some"], tmp_path / folder, 1)
    assert tree_bytes(data) == before


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_shards_that_share_what_lies_beside(tmp_path, suffix):
    binary(tmp_path, 0, np.float32(FLOATS), IDS, ".fvecs")
    binary(tmp_path, 0, np.uint8(FLOATS), IDS, ".bvecs")
    (tmp_path / "p_0.txt").rename(tmp_path / f"p_0{suffix}")
    if suffix == ".csv":
        comma_separated(tmp_path / "p_0", IDS)
    elif suffix == ".parquet":
        pq.write_table(pa.table({"id": IDS}), tmp_path / "p_0.parquet")
    with pytest.raises(NeardupError, match=rf"p_0\{suffix} lies beside both p_0\.bvecs and p_0\.fvecs"):
        write_copy(find_shards(tmp_path), np.ones(2 * BOUNDS[-1], bool), tmp_path / "copy", 1)


def test_pickled_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "p.npz", emb=FLOATS, names=np.array(IDS, object))
    with pytest.raises(NeardupError, match=r"p\.npz \(names\.npy\) holds pickled Python objects"):
        npz.write_kept(tmp_path / "p.npz", tmp_path / "copy.npz", MASKS["some"])
    assert not (tmp_path / "copy.npz").exists()


def test_references_mean_nothing_in_another_file(tmp_path):
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["emb"] = FLOATS
        file.create_dataset("links", data=[file["emb"].ref] * len(FLOATS), dtype=h5py.ref_dtype)
    with pytest.raises(NeardupError, match=r"p\.h5 \(/links\) holds references"):
        hdf5.write_kept(tmp_path / "p.h5", tmp_path / "copy.h5", MASKS["some"])
    assert not (tmp_path / "copy.h5").exists()


def test_data_sets_whose_values_lie_in_other_files(tmp_path):
    """The copy holds them, and never writes there."""
    (tmp_path / "copy").mkdir()
    FLOATS.tofile(tmp_path / "values.bin")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = FLOATS
    with h5py.File(tmp_path / "p.h5", "w") as file:
        outside = [(str(tmp_path / "values.bin"), 0, FLOATS.nbytes)]
        file.create_dataset("external", FLOATS.shape, "f8", external=outside)
        layout = h5py.VirtualLayout(FLOATS.shape, "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", FLOATS.shape)
        file.create_virtual_dataset("virtual", layout)
    before = tree_bytes(tmp_path)
    hdf5.write_kept(tmp_path / "p.h5", tmp_path / "copy" / "p.h5", MASKS["some"])
    (tmp_path / "copy" / "p.h5").rename(tmp_path / "copy.h5")
    with h5py.File(tmp_path / "copy.h5") as file:
        for name in ("external", "virtual"):
            same_values(file[name][:], FLOATS[MASKS["some"]])
    assert {**tree_bytes(tmp_path), "copy.h5": b""} == {**before, "copy.h5": b""}


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_damage_is_told(tmp_path, suffix):
    """Also where nobody looked before: in an array or a column that isn't of vectors."""
    path, keep = tmp_path / f"p{suffix}", np.ones(4000, bool)
    noise = np.random.default_rng(0).integers(0, 256, 400_000, dtype="u1")
    if suffix == ".npz":
        np.savez_compressed(path, noise=noise.reshape(4000, 100))
    else:
        table = pa.table({"noise": pa.array([row.tobytes() for row in noise.reshape(4000, 100)])})
        write_table(path, table, compression="gzip")
    content = bytearray(path.read_bytes())
    content[2000:2400] = bytes(400)
    path.write_bytes(content)
    module = npz if suffix == ".npz" else tables
    with pytest.raises((NeardupError, OSError)) as caught:
        module.write_kept(path, tmp_path / f"copy{suffix}", keep)
    assert "p.npz is damaged" in str(caught.value) or suffix == ".parquet"
    assert not (tmp_path / f"copy{suffix}").exists()


VIEWS = {"text": pa.string_view(), "bytes": pa.binary_view()}


@pytest.mark.parametrize("name", ["t.arrow", "t.parquet"])
def test_columns_of_views(tmp_path, monkeypatch, name):
    """As Polars writes them; the copy holds no more text than it needs."""
    monkeypatch.setattr("neardup.input.formats.BLOCK_BYTES", 1 << 16)
    columns = {n: pa.array([f"{i:0200}" for i in range(3000)]).cast(k) for n, k in VIEWS.items()}
    table, keep = pa.table(columns | {"n": np.arange(3000)}), np.arange(3000) % 9 == 0
    write_table(tmp_path / name, table)
    tables.write_kept(tmp_path / name, tmp_path / f"copy_{name}", keep)
    copy = load_table(tmp_path / f"copy_{name}")[0]
    assert copy.schema == table.schema
    assert copy.to_pylist() == list(compress(table.to_pylist(), keep))
    assert (tmp_path / f"copy_{name}").stat().st_size < (tmp_path / name).stat().st_size / 3


def test_a_column_that_can_not_be_filtered(tmp_path):
    column = pa.RunEndEncodedArray.from_arrays(pa.array([50, 97], pa.int32()), pa.array(["a", "b"]))
    write_table(tmp_path / "t.arrow", pa.table({"a": column}))
    with pytest.raises(NeardupError, match=r"t\.arrow can't be copied \(.*run_end_encoded") as caught:
        tables.write_kept(tmp_path / "t.arrow", tmp_path / "copy.arrow", MASKS["some"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "copy.arrow").exists()


@pytest.mark.parametrize("name", ["t.arrow", "t.parquet"])
def test_dictionaries_that_differ(tmp_path, name):
    """From one record batch or row group to the next."""
    parts = [pa.array([f"{p}{i % (p + 2)}" for i in range(300)]).dictionary_encode() for p in range(4)]
    table, keep = pa.table({"a": pa.chunked_array(parts)}), np.random.default_rng(0).random(1200) < 0.5
    write_table(tmp_path / name, table, **({"stream": True} if name == "t.arrow" else {"row_group_size": 250}))
    tables.write_kept(tmp_path / name, tmp_path / f"copy_{name}", keep)
    copy = load_table(tmp_path / f"copy_{name}")[0]
    assert copy.schema == table.schema
    assert copy.to_pylist() == list(compress(table.to_pylist(), keep))


CSVS = {
    "plain": "a,b\n1,2\n3,4\n",
    "no line break at the end": "a,b\n1,2\n3,4",
    "Windows": "a,b\r\n1,2\r\n\r\n3,4\r\n",
    "Macintosh": "a,b\r1,2\r3,4\r",
    "empty lines": "\n\na,b\n\n1,2\n\n\n3,4\n\n",
    "quotes": 'a,"b,\nc"\n5" x,"""2"""\n"x"y,3\n"",\n',
    "breaks": 'a\n"1\n\n2\r\n3\r"\n\n4\n" "\n',
    "mark": '\ufeff"a",b\n1,2\n',
    "NUL, ünï": "a,b\n\0,ü\n\u2028,\x85\n",
    "long": f'a,b\n{"x" * 200_000},1\n2,"{"y" * 200_000}"\n',
    "only names": "a,b\n",
}


@pytest.mark.parametrize("name", CSVS)
def test_records_of_a_csv_file(tmp_path, name):
    """Are those that pyarrow sees, which reads ids and metadata; keeping all changes no more than empty lines."""
    content = CSVS[name].encode()
    options = pa.csv.ParseOptions(newlines_in_values=True)
    expected = pa.csv.open_csv(io.BytesIO(content), parse_options=options).read_all()
    records = list(_records(io.TextIOWrapper(io.BytesIO(content), "latin-1", newline="")))
    assert len(records) == 1 + len(expected)
    for row in range(len(expected)):
        one = "".join([records[0], records[1 + row]]).encode("latin-1")
        kinds = pa.csv.ConvertOptions(column_types=expected.schema)
        assert pa.csv.read_csv(io.BytesIO(one), parse_options=options, convert_options=kinds) == expected.slice(row, 1)


MEMORY = {
    "npy": (npy, ".npy", np.save),
    "npz": (npz, ".npz", np.savez),
    "npz, compressed": (npz, ".npz", np.savez_compressed),
    "hdf5": (hdf5, ".h5", lambda path, rows: h5py.File(path, "w").create_dataset("x", data=rows).file.close()),
    "fbin": (
        vecs,
        ".fbin",
        lambda path, rows: path.write_bytes(np.array(rows.shape, "<u4").tobytes() + rows.tobytes()),
    ),
    "parquet": (tables, ".parquet", lambda path, rows: write_table(path, listed(rows), row_group_size=len(rows))),
    "arrow": (tables, ".arrow", lambda path, rows: write_table(path, listed(rows))),
}


def listed(rows):
    return pa.table({"emb": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])})


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_that_of_a_block(tmp_path, monkeypatch, name):
    """Of a file of 16 MB, in blocks of 256 KB: at most 3 MB, of which Parquet's writer has pages of 1 MB each."""
    module, suffix, write = MEMORY[name]
    path, rows = tmp_path / f"p{suffix}", np.resize(np.float32(FLOATS), (62_500, 64))
    write(path, rows)
    monkeypatch.setattr("neardup.input.formats.BLOCK_BYTES", 1 << 18)
    pool, keep = pa.proxy_memory_pool(pa.default_memory_pool()), np.arange(len(rows)) % 3 > 0
    monkeypatch.setattr("neardup.input.formats.tables._ROWS", 1 << 10)
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        module.write_kept(path, tmp_path / f"copy{suffix}", keep)
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert peak < 3 << 20


FAILING = [
    "npy, several",
    "clip-retrieval",
    "npz, compressed",
    "hdf5, chunks",
    "fbin",
    "parquet",
    "arrow",
    "IndexIDMap",
]


@pytest.mark.parametrize("name", FAILING)
def test_a_write_that_fails_leaves_no_file(tmp_path, name):
    """Whichever operation on a file fails: what is there is whole, and the next copy is, too."""
    data, copy, keep = tmp_path / "data", tmp_path / "copy", MASKS["some"]
    _, settings = lay_out(name, data)
    write = partial(write_copy, find_shards(data, Reading(**settings)), keep, copy, 1)
    with failing(copy) as counted:
        write()
    expected = tree_bytes(copy)
    for number in range(0, counted.count, 1 + counted.count // 20):
        told = None
        with failing(copy, number, errno.ENOSPC) as faults:
            try:
                write()
            except OSError as error:
                told = error
        what, file = faults.names[number] if number < len(faults.names) else ("none", "")
        visible = {n: c for n, c in tree_bytes(copy).items() if not n.rpartition("/")[2].startswith(".")}
        assert visible.items() <= expected.items(), (what, file)
        assert told or visible == expected, (what, file)
        assert told or what in ("none", "mkdir again") or (what == "open" and file.endswith(".npz.tmp"))
    write()
    assert tree_bytes(copy) == expected


@pytest.mark.parametrize("name", ["parquet", "arrow", "arrow, stream"])
def test_a_table_whose_writer_fails(tmp_path, monkeypatch, name):
    """The writers of pyarrow, whose operations on files can't be seen from here."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    lay_out(name, data)
    kept_blocks = tables._kept_blocks

    def fails(*arguments):
        yield next(kept_blocks(*arguments))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tables, "_kept_blocks", fails)
    with pytest.raises(OSError, match="No space left"):
        write_copy(find_shards(data), MASKS["some"], copy, 1)
    assert [p for p in copy.rglob("*") if not p.name.startswith(".")] == []


UIDS = [f"{int(a):016x}{int(b):016x}" for a, b in np.random.default_rng(0).integers(0, 2**64, (99, 2), "u8")]
UIDS += ["0" * 32, "f" * 32, "00" * 15 + "01", "01" + "00" * 15, UIDS[0].upper(), UIDS[1], f"{1 << 63:032x}", "0a" * 16]


def id_table(ids, cuts=(31, 60)):
    """Of chunks that are pieces of a larger array."""
    whole = pa.array(["not of it", *ids], pa.large_string())
    return IdTable([whole.slice(1 + a, b - a) for a, b in pairwise([0, *(c for c in cuts if c < len(ids)), len(ids)])])


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 1])
def test_the_file_of_datacomp(tmp_path, monkeypatch, kept):
    """Byte by byte what numpy writes of the plainest construction."""
    monkeypatch.setattr("neardup.grouping.export.BLOCK_ROWS", 7)
    keep = np.random.default_rng(5).random(len(UIDS)) < kept
    assert write_datacomp(tmp_path / "subset.npy", id_table(UIDS), keep)
    pairs = [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in compress(UIDS, keep)]
    expected = np.array(pairs, np.dtype("u8,u8"))
    expected.sort()
    np.save(tmp_path / "expected.npy", expected)
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert np.load(tmp_path / "subset.npy").tolist() == sorted(pairs)


@pytest.mark.parametrize(
    "other", ["", "id-1", "0" * 31, "0" * 33, "0" * 34, "0" * 64, "g" + "0" * 31, "ü" + "0" * 30, " " + "0" * 31]
)
def test_ids_that_are_no_uids(tmp_path, monkeypatch, other):
    """Wherever one is; if it isn't kept it doesn't matter."""
    monkeypatch.setattr("neardup.grouping.export.BLOCK_ROWS", 7)
    for place in (0, 50, len(UIDS)):
        ids = [*UIDS[:place], other, *UIDS[place:]]
        keep = np.arange(len(ids)) % 2 == place % 2
        assert not write_datacomp(tmp_path / "subset.npy", id_table(ids), keep)
        assert list(tmp_path.iterdir()) == []
    assert write_datacomp(tmp_path / "subset.npy", id_table(ids), ~keep)


STRANGE = [
    *ODD,
    "",
    "a\nb",
    "<b a='1'>&amp;]]>",
    "\0",
    "\x01\x1f",
    "\ufffe",
    "\uffff",
    "x\uffffy",
    "\x7f\x85",
    "\t x ",
    "\r\n",
]
STRANGE += ["null", "true", "1.0", "\\u0041", '"\\uffff"', "e\u0301", "\U0001fffe", "\U0010ffff", "中"]


def ring(n_rows):
    """Groups: of rows 1 and 2, and of all from 5 on as a ring, the second kept, the third like it. And a `Found`."""
    large = np.arange(5, n_rows)
    rows, bounds = np.r_[1, 2, large], np.array([0, 2, 2 + len(large)])
    similarity = np.r_[1, 0.995, np.where(large == 7, 1, 1 - (large - 6) ** 2 / 3e4)]
    pairs = [(1, 2, 0.995), *((a, a + 1, 1 - a / 777) for a in large[:-1].tolist()), (5, n_rows - 1, 0.99)]
    pairs = np.array(sorted(pairs), PAIR)
    groups = Groups(rows, bounds, similarity, np.array([1, 6]), np.zeros(2, np.int32))
    return groups, Found(lambda _: iter([pairs[:4], pairs[4:]]), n_rows, 0, True, np.inf)


def test_graphml_is_read_back(tmp_path):
    """Well-formed XML, whatever ids hold; numbers to the last bit."""
    ids, path = [*(f"id-{i}" for i in range(5)), *STRANGE], tmp_path / "group.graphml"
    groups, found = ring(len(ids))
    write_graph(path, groups, 1, found, id_table(ids))
    ET.parse(path)
    graph = nx.read_graphml(path, node_type=int)
    of_group = dict(zip(groups.rows.tolist(), groups.similarity.tolist(), strict=True))
    assert list(graph) == list(range(5, len(ids)))
    for row, of_row in graph.nodes(data=True):
        name = of_row["id"]
        assert (json.loads(name) if name.startswith('"') else name) == ids[row]
        assert of_row["kept"] is (row == 6)
        assert of_row["similarity"] == of_group[row]
        assert set(of_row) == {"id", "kept", "similarity"}
    expected = {(a, b, s) for pairs in found.blocks() for a, b, s in pairs.tolist() if a >= 5}
    assert {(min(a, b), max(a, b), s) for a, b, s in graph.edges(data="similarity")} == expected
    assert not graph.is_directed()
    before = path.read_bytes()
    write_graph(path, groups, np.int64(1), found, id_table(ids))
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [-1, 2, 10**9])
def test_a_group_that_is_not_there(tmp_path, number):
    groups, found = ring(20)
    with pytest.raises(NeardupError, match=f"there is no group {number}: "):
        write_graph(tmp_path / "g.graphml", groups, number, found, id_table(IDS[:20]))
    none = np.empty(0, np.int64)
    groups = Groups(none, np.zeros(1, np.int64), np.empty(0), none, np.empty(0, np.int32))
    with pytest.raises(NeardupError, match=f"there are no groups, nor group {number}: set graph_group to None"):
        write_graph(tmp_path / "g.graphml", groups, number, found, id_table(IDS[:20]))
    assert list(tmp_path.iterdir()) == []


def test_a_group_too_large_for_graphml(tmp_path, monkeypatch):
    monkeypatch.setattr("neardup.grouping.export._GRAPH_PAIRS", 9)
    groups, found = ring(20)
    write_graph(tmp_path / "g.graphml", groups, 0, found, id_table(IDS[:20]))
    with pytest.raises(NeardupError, match="group 1 has over 9 pairs"):
        write_graph(tmp_path / "h.graphml", groups, 1, found, id_table(IDS[:20]))


def test_graphml_that_can_not_be_written(tmp_path, monkeypatch):
    groups, found = ring(20)

    def fails(graph, file):
        file.write(b"<?xml")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nx, "write_graphml", fails)
    with pytest.raises(OSError, match="No space left"):
        write_graph(tmp_path / "g.graphml", groups, 0, found, id_table(IDS[:20]))
    assert not (tmp_path / "g.graphml").exists()


NEAR = 0.97  # of the whole run
DATACOMP = sorted({uid.lower() for uid in UIDS})[:90]
WHOLE = {  # how the input is written, and the names of its ids' column in a shard
    "npz": (arrays, "uid", {"vectors": "l14_img"}),
    "parquet": (embeddings, "id", {}),
    "hdf5": (data_sets, "id", {"vectors": "train"}),
    "npy": (partial(numpy_file, beside=json_list), None, {}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_run_leaves_out_what_is_dropped_or_rejected(tmp_path, capsys, name):
    """Of the export and of DataComp's file: 30 rows near others, 4 without a direction; and a group as GraphML."""
    write, column, settings = WHOLE[name]
    rng, rows, data, work = np.random.default_rng(8), np.float32(FLOATS[:90]), tmp_path / "data", tmp_path / "work"
    rows[60:] = rows[rng.integers(0, 30, 30)] + rng.normal(size=(30, 8)) * 0.02
    rejected = {3: 0, 41: np.nan, 60: np.inf, 89: 0}
    for row, value in rejected.items():
        rows[row] = value
    data.mkdir()
    for number, (low, high) in enumerate(pairwise([0, 50, 90])):
        write(data, number, rows[low:high], DATACOMP[low:high])
    run_stages(data, work, bad_rows="skip", threshold=NEAR, export=True, graph_group=0, n_clusters=3, **settings)
    said = capsys.readouterr().out.splitlines()
    assert f"-> {work}/045_merge/export (a copy of the input with just the rows kept)" in said
    assert f"-> {work}/graphs/group_0.graphml (group 0 as GraphML)" in said

    valid = np.setdiff1d(np.arange(90), [*rejected])
    near, unclear = brute_force(rows[valid], NEAR)
    groups = components([(int(valid[a]), int(valid[b])) for a, b in near], 90)
    last = work / "045_merge"
    kept = [DATACOMP.index(line) for line in (last / "keep.txt").read_text().splitlines()]
    assert not unclear
    assert len(kept) == 90 - len(rejected) - sum(len(group) - 1 for group in groups) < 70
    assert not {*kept} & {*rejected}
    assert all(len({*kept} & {*group}) == 1 for group in groups)

    settings = Reading(**settings)
    shards = find_shards(last / "export", settings)
    found = [[s.layout.read(0, s.rows)] if s.stored else [*blocks(s.path, s.vectors)] for s in shards]
    same_values(np.concatenate([*chain(*found)]), rows[kept])
    assert [i for s in shards for i in ids_of(s)] == [DATACOMP[row] for row in kept]
    assert [s.id_column for s in shards] == [column, column]
    uids = np.load(last / "keep_datacomp.npy").tolist()
    assert uids == sorted((int(DATACOMP[row][:16], 16), int(DATACOMP[row][16:], 16)) for row in kept)

    first = min(groups)
    graph = nx.read_graphml(work / "graphs" / "group_0.graphml", node_type=int)
    assert {row: attributes["id"] for row, attributes in graph.nodes(data=True)} == {r: DATACOMP[r] for r in first}
    assert [row for row in first if graph.nodes[row]["kept"]] == [row for row in first if row in kept]
    edges = {(min(pair), max(pair)) for pair in graph.edges}
    assert edges == {(int(valid[a]), int(valid[b])) for a, b in near if valid[a] in first}
    for a, b, similarity in graph.edges(data="similarity"):
        assert abs(similarity - unit(rows[[a]])[0] @ unit(rows[[b]])[0]) < 1e-14


def test_old_timestamps_keep_their_nanoseconds(tmp_path):
    """As long as those hold the years."""
    at = pa.array([1_700_000_000_123_456_789, -1, None], pa.timestamp("ns"))
    pq.write_table(pa.table({"emb": FLOATS[:3].tolist(), "at": at}), tmp_path / "p.parquet",
                   use_deprecated_int96_timestamps=True)  # fmt: skip
    tables.write_kept(tmp_path / "p.parquet", tmp_path / "kept.parquet", np.ones(3, bool))
    assert pq.read_table(tmp_path / "kept.parquet").column("at").combine_chunks().equals(at)
    assert read_column(tmp_path / "p.parquet", "at", 3).equals(at)


@pytest.mark.parametrize("mixed", [False, True])
def test_old_timestamps_of_any_year(tmp_path, mixed):
    """Of 96 bits, which nanoseconds hold no year 9999 of; in a file that has others, too, they become as those."""
    dates = [datetime(9999, 12, 31), datetime(1600, 1, 2), datetime(2026, 11, 27, 1, 2, 3, 4)]
    columns = {"emb": FLOATS[:3].tolist(), "at": pa.array(dates, pa.timestamp("us"))}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet", use_deprecated_int96_timestamps=not mixed)
    if mixed:
        pq.write_table(pa.table(columns | {"n": [1, 2, 3]}), tmp_path / "p.parquet")
    tables.write_kept(tmp_path / "p.parquet", tmp_path / "kept.parquet", np.array([True, True, False]))
    found = pq.ParquetFile(tmp_path / "kept.parquet", coerce_int96_timestamp_unit="us")
    assert found.read().column("at").to_pylist() == dates[:2]
    kinds = [found.schema.column(i).physical_type for i in range(len(found.schema))]
    assert ("INT96" in kinds) != mixed
    assert read_column(tmp_path / "p.parquet", "at", 3).to_pylist() == dates


@pytest.mark.parametrize("name", ["t.arrow", "t.parquet"])
def test_views_within_other_types_are_copied(tmp_path, name):
    kinds = {"list": pa.list_(pa.string_view()), "struct": pa.struct([("a", pa.large_list(pa.binary_view()))])}
    values = {"list": [["a", None], None, ["b"]], "struct": [{"a": [b"x"]}, None, {"a": None}]}
    table = pa.table({n: pa.array(values[n], kind) for n, kind in kinds.items()})
    if name.endswith("arrow"):
        with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, tmp_path / name)
    tables.write_kept(tmp_path / name, tmp_path / f"kept.{name}", np.array([True, False, True]))
    schema, rows = tables.schema_and_rows(tmp_path / f"kept.{name}")
    assert (schema.types, rows) == (tables.schema_and_rows(tmp_path / name)[0].types, 2)
    [batch] = tables.batches(tmp_path / f"kept.{name}", None if name.endswith("parquet") else [0, 1], 9)
    assert batch.to_pydict() == {n: some[::2] for n, some in values.items()}


@pytest.mark.parametrize("what", ["text_emb/text_emb_0.npy", "metadata/metadata_0.parquet", "img_emb/texts.json"])
def test_a_copy_is_made_anew_when_what_it_holds_changes(tmp_path, what):
    """Also vectors of which nobody made anything."""
    lay_out("clip-retrieval", tmp_path / "data")
    (tmp_path / "data" / "img_emb" / "texts.json").write_text("{}")
    settings = {"export": True, "threshold": 0.99, "bad_rows": "skip"}
    run_stages(tmp_path / "data", tmp_path / "work", **settings)
    path, copy = tmp_path / "data" / what, tmp_path / "work" / "045_merge" / "export" / what
    before = copy.read_bytes()
    if path.suffix == ".npy":
        np.save(path, np.load(path) + 1)
    elif path.suffix == ".json":
        path.write_text('{"a": "b"}')
    else:
        table = pq.read_table(path)
        pq.write_table(table.append_column("more", pa.array(range(len(table)))), path)
    run_stages(tmp_path / "data", tmp_path / "work", **settings)
    assert copy.read_bytes() != before


def test_a_copy_is_made_anew_when_no_sample_shows_a_change(tmp_path):
    """Of a table that is copied, of which no column is named."""
    np.save(tmp_path / "p.npy", np.eye(4))
    lines(tmp_path / "p", IDS[:4])
    table, run = tmp_path / "p.csv", partial(run_stages, tmp_path, tmp_path / "work", export=True, audit_rows=0)
    for letter in "xy":
        table.write_text("name,text\n" + "".join(f"{row},{'z' * 500_000}\n" for row in range(4)))
        with table.open("r+b") as file:
            file.seek(3 * 4096)
            file.write(letter.encode())
        run()
        assert (tmp_path / "work" / "045_merge" / "export" / "p.csv").read_bytes() == table.read_bytes()

"""What a user chooses in stage 5: a threshold from one search, which row to keep; and what that is said to cost."""

import csv
import json
import math
import re
import shutil
import sys
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import (
    EXAMPLE,
    SCRIPTS,
    command,
    components,
    found_pairs,
    lay_out,
    pair_set,
    peak_memory,
    read_csv,
    read_ids,
    run_stages,
    tree_bytes,
    unit,
)
from pyarrow import feather
from test_045_merge import bundles, load_chains, load_groups, load_list, load_pairs, load_table
from test_groupings import arc, without_pictures

from neardup import NeardupError
from neardup.grouping.groups import Groups
from neardup.grouping.losses import losses, warnings
from neardup.input.shards import find_shards
from neardup.machine.checksums import digest_of_sample
from neardup.script import main
from neardup.words import in_words

STAGE, SEARCH, LAST = "045_merge", "04_neighbor_search", SCRIPTS[-1]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with without_pictures():
        yield


def write_tables(data, columns, suffix=".parquet", cuts=()):
    """A table of metadata beside each shard. columns: {name: list or array}."""
    n_rows = len(next(iter(columns.values())))
    for number, (start, stop) in enumerate(pairwise([0, *cuts, n_rows])):
        table = pa.table({name: values[start:stop] for name, values in columns.items()})
        write = pq.write_table if suffix == ".parquet" else pa.csv.write_csv
        write(table, data / f"part_{number}{suffix}")


def write_shard(data, number, rows, columns, layout):
    """A shard that holds its metadata, as Parquet, Arrow or HDF5; or one of clip-retrieval, with its metadata."""
    path, table = data / f"part_{number}{layout}", pa.table(columns)
    if layout == "clip-retrieval":
        for name in ("img_emb", "metadata"):
            (data / name).mkdir(parents=True, exist_ok=True)
        np.save(data / "img_emb" / f"img_emb_{number}.npy", rows)
        pq.write_table(table.rename_columns({"id": "image_path"}), data / "metadata" / f"metadata_{number}.parquet")
    elif layout == ".h5":
        with h5py.File(path, "w") as file:
            file["emb"] = rows
            file.update({name: in_hdf5(values) for name, values in table.to_pydict().items()})
    else:
        table = table.append_column("emb", pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]))
        if layout == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=7)


def in_hdf5(values):
    """What is missing is NaN or an empty text there, and a date a text."""
    kinds = {type(v) for v in values} - {type(None)}
    missing = math.nan if kinds <= {int, float} else ""
    return [missing if v is None else v.isoformat() if isinstance(v, datetime) else v for v in values]


def write_input(data, rows, cuts, columns, layout):
    """Rows with their metadata: in the shards, as clip-retrieval has it, or beside .npy files in tables of a suffix."""
    if not layout.startswith("beside "):
        data.mkdir(parents=True)
        columns = {"id": [f"id-{row}" for row in range(len(rows))], **columns}
        for number, (start, stop) in enumerate(pairwise([0, *cuts, len(rows)])):
            part = {name: values[start:stop] for name, values in columns.items()}
            write_shard(data, number, rows[start:stop], part, layout)
        return
    lay_out(data, rows, cuts=cuts)
    if columns:
        write_tables(data, columns, layout.removeprefix("beside "), cuts)


LAYOUTS = ["beside .parquet", "beside .csv", ".parquet", ".arrow", ".h5", "clip-retrieval"]


def make_case(folder, rows, cuts=(), columns=None, layout=LAYOUTS[0], **more):
    """Stages 1 to 4 on rows with their metadata. Its `merge` runs stage 5, with other settings."""
    data, work = folder / "data", folder / "work"
    write_input(data, rows, cuts, columns, layout)
    more = {"audit_rows": 0, "n_clusters": 2, "threshold": 0.94} | more
    run_stages(data, work, SCRIPTS[:-1], **more)

    def merge(scripts=(LAST,), **settings):
        run_stages(data, work, scripts, **more | settings)
        return work

    return SimpleNamespace(data=data, work=work, rows=rows, merge=merge)


def results(work):
    return json.loads((work / STAGE / "manifest.json").read_text())["results"]


def one_line(done, status):
    """What a script said that failed: one line."""
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(f"{LAST}: error: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The example, searched down to 0.85."""
    work = tmp_path_factory.mktemp("searched") / "work"
    run_stages(EXAMPLE, work, report_threshold=0.85, audit_rows=0, n_clusters=20)
    return work


@pytest.mark.parametrize("threshold", [1.0, 0.97, 0.92, 0.85])
def test_a_line_of_the_table_is_what_a_run_at_that_threshold_gives(searched, tmp_path, threshold):
    work = tmp_path / "work"
    shutil.copytree(searched, work, ignore=shutil.ignore_patterns("04*", STAGE, ".lock*"))
    run_stages(EXAMPLE, work, SCRIPTS[-2:], threshold=threshold, audit_rows=0, n_clusters=20)
    groups = [members for _, members in load_groups(work)]
    expected = {
        "threshold": threshold,
        "pairs": len(pair_set(work)),
        "kept": len(load_list(work / STAGE / "keep.txt")),
        "groups": len(groups),
        "dropped": len(load_list(work / STAGE / "drop.txt")),
        "largest": max(map(len, groups)),
        "chains": len(load_chains(work)),
    }
    lines = {float(line["threshold"]): line for line in read_csv(searched, "thresholds.csv")}
    assert list(lines) == [1.0, 0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.85]
    assert lines[threshold] == {name: str(value) for name, value in expected.items()}
    assert read_csv(work, "thresholds.csv")[-1] == lines[threshold]


def test_examples_are_the_least_similar_pairs_of_each_step(searched):
    texts, ids = json.loads((EXAMPLE / "texts.json").read_text()), read_ids(searched)
    row_a, row_b, similarity = (column.tolist() for column in found_pairs(searched))
    pairs = sorted(zip(similarity, row_a, row_b, strict=True))
    steps, expected = [float(line["threshold"]) for line in read_csv(searched, "thresholds.csv")], []
    for low, high in zip(steps, [math.inf, *steps[:-1]], strict=True):
        some = [(s, a, b) for s, a, b in pairs if low <= s < high][:20]
        expected += [(low, s, a, b, ids[a], ids[b], texts[ids[a]], texts[ids[b]]) for s, a, b in some]
    with (searched / STAGE / "examples.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))[1:]
    assert [[json.loads(cell) if cell.startswith('"') else cell for cell in line] for line in lines] == [
        [*map(str, line)] for line in expected
    ]
    assert max(Counter(line[0] for line in lines).values()) == 20


def outputs(work):
    """What stage 5 left, without what shows all that was searched."""
    shown = "thresholds.csv", "examples.csv", "groups.png", "manifest.json"
    return {name: content for name, content in tree_bytes(work / STAGE).items() if name not in shown}


def test_a_higher_threshold_needs_no_new_search(tmp_path):
    case = make_case(tmp_path, bundles(1), cuts=[40], threshold=0.98, report_threshold=0.9)
    case.merge()
    path = case.work / SEARCH / "neighbors.h5"
    state, searched = (path.stat().st_mtime_ns, path.stat().st_ino), tree_bytes(case.work / SEARCH)
    scratch = make_case(tmp_path / "scratch", bundles(1), cuts=[40], threshold=0.96).merge()
    settings = "--data-dir", case.data, "--work-dir", case.work, "--audit-rows", 0, "--n-clusters", 2
    done = command(LAST, *settings, "--threshold", 0.96)
    assert (done.returncode, done.stderr) == (0, "")
    found = [outputs(case.work)]
    for report in (0.9, None):
        case.merge(threshold=0.97, report_threshold=report)
        found.append(outputs(case.merge(threshold=0.96, report_threshold=report)))
    assert found == [outputs(scratch)] * 3
    assert ((path.stat().st_mtime_ns, path.stat().st_ino), tree_bytes(case.work / SEARCH)) == (state, searched)
    before = tree_bytes(case.work)
    refused = one_line(command(LAST, *settings, "--threshold", 0.89), 1)
    assert "with threshold 0.9, not 0.89: run faiss_04_neighbor_search.py again" in refused
    assert tree_bytes(case.work) == before


def test_pairs_that_just_join_need_a_new_search_at_a_higher_threshold(tmp_path):
    """For weaker ones that were found may stand for stronger ones that weren't looked for."""
    case = make_case(tmp_path, bundles(1), cuts=[40], threshold=0.9, pairs="joining")
    case.merge()
    for threshold in (0.89, 0.96):
        with pytest.raises(NeardupError, match=f"with threshold 0.9, not {threshold}: run faiss_04"):
            case.merge(threshold=threshold)


def rows_left(case, threshold):
    """How many rows a threshold leaves, rejected ones aside."""
    row_a, row_b, similarity = (column.tolist() for column in found_pairs(case.work))
    pairs = [(a, b) for a, b, s in zip(row_a, row_b, similarity, strict=True) if s >= threshold]
    return sum(case.rows.any(axis=1)) - sum(len(g) - 1 for g in components(pairs, len(case.rows)))


def test_the_threshold_for_a_number_of_rows(tmp_path):
    rows = np.concatenate([bundles(2), np.zeros((5, 6))])
    case = make_case(tmp_path, rows, report_threshold=0.9, bad_rows="skip")
    distinct, at_threshold = sorted({*found_pairs(case.work)[2].tolist(), 1.0}), 0
    for target in (105, 80, 41):
        work = case.merge(target_rows=target)
        found = results(work)
        assert found["kept"] == len(load_list(work / STAGE / "keep.txt")) == rows_left(case, found["threshold"])
        assert found["kept"] <= target
        farthest = [min(members.values()) for _, members in load_groups(work)]
        assert found["chains"] == sum(similarity < found["threshold"] for similarity in farthest)
        at_threshold += farthest.count(found["threshold"])
        assert found["threshold"] == 1 or rows_left(case, min(s for s in distinct if s > found["threshold"])) > target
        with h5py.File(work / STAGE / "merged_clusters.h5") as file:
            assert file.attrs["threshold"] == found["threshold"]
        lines = {line["threshold"]: int(line["kept"]) for line in read_csv(work, "thresholds.csv")}
        assert lines[str(found["threshold"])] == found["kept"]
    assert at_threshold > 0  # no chains
    for more_than_all in (120, 10**9):
        assert results(case.merge(target_rows=more_than_all))["threshold"] == 1
    least = rows_left(case, 0.9)
    before = tree_bytes(case.merge(target_rows=least) / STAGE)
    with pytest.raises(NeardupError, match=f"{least} rows are left, .* set a lower report_threshold"):
        case.merge(target_rows=least - 1)
    assert tree_bytes(case.work / STAGE) == before


WRONG = [
    (["--pairs", "joining", "--grouping", "star"], "set pairs to 'all'"),
    (["--pairs", "joining", "--target-rows", "9"], "set pairs to 'all'"),
    (["--pairs", "joining", "--threshold", "0.9", "--report-threshold", "0.8"], "set report_threshold to None"),
    (["--grouping", "split", "--target-rows", "9"], "set grouping to 'connected'"),
    (["--representative", "longest"], "highest"),
]


def settings_error(arguments, monkeypatch, capsys):
    """The one line about settings."""
    monkeypatch.setattr(sys, "argv", [LAST, *arguments])
    with pytest.raises(SystemExit) as stopped:
        main(lambda config: pytest.fail("it ran"), "")
    return one_line(SimpleNamespace(returncode=stopped.value.code, stderr=capsys.readouterr().err), 2)


@pytest.mark.parametrize(("arguments", "advice"), WRONG)
def test_settings_that_do_not_go_together(arguments, advice, monkeypatch, capsys):
    assert advice in settings_error(arguments, monkeypatch, capsys)


def test_what_is_said_of_settings_names_only_options_there_are(monkeypatch, capsys):
    message = settings_error(WRONG[0][0], monkeypatch, capsys)
    assert "--settings" not in message and "NEARDUP_SETTINGS" not in message


RNG = np.random.default_rng(7)
SCORES = RNG.integers(-9, 9, 120).tolist()
MISSING = [None if RNG.random() < 0.3 else round(RNG.normal(), 3) for _ in range(120)]
DATES = [
    None if RNG.random() < 0.3 else datetime(2024, 1, 1) + timedelta(days=d) for d in RNG.permutation(120).tolist()
]
COLUMNS = {
    "score": SCORES,
    "floats": MISSING,
    "nans": [math.nan if value is None else value for value in MISSING],
    "date": pa.array(DATES, pa.timestamp("s")),
    "name": [f"{letter}{RNG.integers(9)}" for letter in RNG.choice([*"abcÄ重"], 120)],
    "text": [None if RNG.random() < 0.2 else "é" * int(RNG.integers(1, 9)) for _ in range(120)],
}


def first_of_lowest(values):
    """A function of some rows: the one of the lowest value, the first of equal ones; those without one last."""
    return lambda rows: min(rows, key=lambda row: (values[row] is None, values[row] or 0, row))


@pytest.fixture(scope="module", params=LAYOUTS)
def scored(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    return make_case(folder, bundles(2), cuts=[40], columns=COLUMNS, layout=request.param)


def check_kept(case, work, best):
    """The row kept of each group is best(members); similarities are those to it, by the vectors themselves."""
    rows, pairs, groups = unit(case.rows), load_pairs(work), load_groups(work)
    assert {tuple(members) for _, members in groups} == components(pair_set(work), len(rows))
    assert [representative for representative, _ in groups] == [best([*members]) for _, members in groups]
    for representative, members in groups:
        for row, similarity in members.items():
            assert abs(similarity - rows[row] @ rows[representative]) <= 1e-14
            assert similarity == pairs.get((min(row, representative), max(row, representative)), similarity)
    dropped = sorted(row for representative, members in groups for row in {*members} - {representative})
    assert load_list(work / STAGE / "drop.txt") == [f"id-{row}" for row in dropped]


@pytest.mark.parametrize("column", ["score", "floats", "nans", "date", "name"])
def test_the_row_of_the_highest_or_lowest_value_is_kept(scored, column):
    values = COLUMNS[column].to_pylist() if column == "date" else COLUMNS[column]
    ordered = sorted({v for v in values if v is not None and v == v})
    place = {value: number for number, value in enumerate(ordered)}
    lowest = [place.get(value) for value in values]
    highest = [p if p is None else -p for p in lowest]
    check_kept(scored, scored.merge(representative=f"lowest:{column}"), first_of_lowest(lowest))
    check_kept(scored, scored.merge(representative=f"highest:{column}"), first_of_lowest(highest))


@pytest.mark.parametrize("source", ["first", "column", "file"])
def test_the_first_row_or_that_of_the_longest_text_is_kept(scored, tmp_path, source):
    texts = COLUMNS["text"]
    (tmp_path / "texts.json").write_text(json.dumps({f"id-{row}": t for row, t in enumerate(texts) if t}))
    if source == "first":
        return check_kept(scored, scored.merge(representative="first"), min)
    preview = "text" if source == "column" else tmp_path / "texts.json"
    work = scored.merge(representative="longest_text", preview=preview)
    check_kept(scored, work, first_of_lowest([-len(text or "") for text in texts]))
    shown = [(line[f"row_{end}"], line[f"text_{end}"]) for line in read_csv(work, "examples.csv") for end in "ab"]
    assert shown == [(row, texts[int(row)] or "") for row, _ in shown]
    assert len({text for _, text in shown}) > 3


def small(folder, columns=None, cuts=(), **options):
    """Two groups of three equal rows each, and their metadata."""
    rows = np.repeat(np.eye(2), 3, axis=0)
    return make_case(folder, rows, cuts=cuts, n_clusters=1, columns=columns, **options)


def kept(work):
    return [representative for representative, _ in load_groups(work)]


def test_missing_values_of_either_kind_are_alike(tmp_path):
    case = small(tmp_path, {"score": pa.array([None, math.nan, None, 1.0, None, math.nan])})
    assert kept(case.merge(representative="highest:score")) == [0, 3]


def test_a_text_that_is_null_is_no_text(tmp_path):
    case = small(tmp_path)
    (case.data / "texts.json").write_text(json.dumps({"id-0": None, "id-1": "abc"}))
    assert kept(case.merge(representative="longest_text")) == [1, 3]


@pytest.mark.parametrize("source", ["column", "file"])
def test_texts_are_as_long_as_they_have_characters(tmp_path, source):
    """However many bytes those take."""
    texts = ["ab", "abcd", "éüß", "\U0001f600" * 3, "重複", "abcd"]
    case = small(tmp_path, {"text": texts} if source == "column" else None)
    if source == "file":
        (case.data / "texts.json").write_text(json.dumps({f"id-{row}": text for row, text in enumerate(texts)}))
    preview = "text" if source == "column" else None
    assert kept(case.merge(representative="longest_text", preview=preview)) == [1, 5]


LATE = "score,text\n" + "".join(f"{score},{'z' * 600_000}\n" for score in (1, 2, 3, 4, 2.5, 1))


TYPES = [
    ("two tables"),
    ("one CSV file"),
]


@pytest.mark.parametrize("how", TYPES)
def test_integers_and_floats_are_numbers(tmp_path, how):
    """Shard by shard, and line by line: where Arrow guesses, it looks at the first megabyte."""
    if how == "one CSV file":
        case = small(tmp_path)
        (case.data / "part_0.csv").write_text(LATE)
    else:
        case = small(tmp_path, cuts=[4])
        write_tables(case.data, {"score": [1, 2, 3, 4]})
        pq.write_table(pa.table({"score": [2.5, 1]}), case.data / "part_1.parquet")
    assert kept(case.merge(representative="highest:score")) == [2, 3]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("scores", [["9", "10", "100", "2.5", None, "-1e3"], ["1", " 2 ", "3", "", "5", "+4"]])
def test_numbers_in_a_column_of_text_are_numbers(tmp_path, suffix, scores):
    """As a CSV file has them, or pandas writes them; a row without one comes last."""
    case = small(tmp_path, {"n": range(6), "score": pa.array(scores, pa.string())}, layout=f"beside {suffix}")
    assert kept(case.merge(representative="highest:score")) == [2, 3 if scores[3] else 4]
    assert kept(case.merge(representative="lowest:score")) == [0, 5]


@pytest.mark.parametrize("first", [pa.string(), pa.int64()])
def test_long_integers_in_a_column_of_text_are_told_apart(tmp_path, first):
    """Such as nanoseconds, of which float64 makes equal ones; also where another shard has them as numbers."""
    stamps = [str(1_700_000_000_000_000_000 + i) for i in (1, 3, 2, 4, 6, 5)]
    case = small(tmp_path, {"stamp": stamps}, cuts=[3], layout="beside .parquet")
    pq.write_table(pa.table({"stamp": pa.array(stamps[:3]).cast(first)}), case.data / "part_0.parquet")
    pq.write_table(pa.table({"stamp": [f"+{stamp}" for stamp in stamps[3:]]}), case.data / "part_1.parquet")
    assert kept(case.merge(representative="highest:stamp")) == [1, 4]


@pytest.mark.parametrize("odd", ["-", "None", "\\N", "1,5", "unknown"])
def test_what_is_no_number_among_numbers_is_named(tmp_path, odd):
    """All of them would be compared as text, 9 as more than 10, if nobody said so."""
    case = small(tmp_path, {"score": ["9", "10", "100", "7", odd, "8"]}, cuts=[3], layout="beside .csv")
    message = f"part_1.csv: column 'score' is text, for row 1 holds {odd!r}, and 5 of 6 are numbers: mend it"
    with pytest.raises(NeardupError, match=re.escape(message)):
        case.merge(representative="highest:score")
    assert not (case.work / STAGE).exists()


@pytest.mark.parametrize(("values", "said"), [([*"fedcba"], 1), (["05.01.2020"] * 6, 1), (["2020-01-05T01:02"] * 6, 0)])
def test_text_is_said_to_be_compared_as_text(tmp_path, capsys, values, said):
    """But for dates that begin with the year."""
    case = small(tmp_path, {"score": pa.array(values, pa.string())}, layout="beside .parquet")
    case.merge(representative="lowest:score")
    assert capsys.readouterr().err.count("column 'score' is text: compared letter by letter, '10' before '9'\n") == said


LISTS = {"tags": [["a"]] * 6}
NOT_CAUGHT = "ArrowNotImplementedError: lists can't be cast to strings"
MISTAKES = [
    (
        {"representative": "highest:nope"},
        LISTS,
        "has no column 'nope' \\(it has: tags\\): set representative right$",
    ),
    ({"representative": "highest:tags"}, None, "needs a table with a column 'tags'"),
    ({"representative": "highest:tags"}, LISTS, "column 'tags' holds list.* no order: set representative"),
    (
        {"representative": "highest:size"},
        {"size": ["82,23", "198,11", None, "1,234.5", "-7,0", "+1,234,567"]},
        "column 'size' is text of numbers with commas, such as '82,23': write them with points alone, or set",
    ),
    ({"representative": "lowest:size"}, {"size": [None] * 6}, "column 'size' has no value in any row: set"),
    ({"representative": "longest_text"}, LISTS, "set preview to"),
    ({"representative": "longest_text", "preview": "none"}, {"none": [""] * 6}, "no row has a text: set preview to"),
    ({"representative": "longest_text", "preview": "nope"}, LISTS, "has no column 'nope'"),
    ({"tabulate": "nope"}, LISTS, "has no column 'nope' \\(it has: tags\\): set tabulate right$"),
    ({"tabulate": "tags"}, None, "no table with a column 'tags'"),
    ({"preview": "nope"}, LISTS, "has no column 'nope' \\(it has: tags\\): set preview right, to a JSON file"),
    ({"preview": ""}, LISTS, "has no column '' \\(it has: tags\\): set preview right, to a JSON file"),
    ({"preview": "images/{x}.png"}, LISTS, "set preview right, to a JSON file .*, or to a pattern with {id}$"),
    ({"preview": "nope.json"}, LISTS, "preview 'nope.json' is not there: set it to a JSON file of id: text"),
    ({"preview": "tags"}, None, "'tags' is a column, but .* has no table: set it right, to a JSON file .* with {id}$"),
    ({"tabulate": "tags"}, LISTS, "tags"),
    ({"representative": "longest_text", "preview": "tags"}, LISTS, "tags"),
]


@pytest.mark.parametrize(("settings", "columns", "message"), MISTAKES)
def test_a_column_that_cannot_be_used_is_named(tmp_path, settings, columns, message):
    case = small(tmp_path, columns)
    with pytest.raises(NeardupError, match=message) as error:
        case.merge(**settings)
    assert "\n" not in str(error.value)
    assert not (case.work / STAGE).exists()


LONG = "z" * 150_001
METADATA = {"id": [*"abcdef"], "text": ["z"] * 6, "score": [1, 2, 3, 3, 2, 1], "kind": [None, *"ababa"]}


def write_six_rows(data, kind, columns):
    """Six rows, two groups, with their metadata: beside them in a CSV file, or in the shard itself."""
    rows = np.repeat(np.eye(2), 3, axis=0)
    if kind.startswith(".csv"):
        lay_out(data, rows)
        if kind == ".csv, ids":
            (data / "part_0.txt").unlink()
        return write_tables(data, columns, ".csv")
    data.mkdir(exist_ok=True)
    if kind == ".h5":
        with h5py.File(data / "part.h5", "w") as file:
            file.create_dataset("emb", data=rows, chunks=True)
            for name, values in columns.items():
                file[name] = [value or "" for value in values] if name == "kind" else values
        return None
    table = pa.table({"emb": rows.tolist(), **columns})
    if kind == ".parquet":
        return pq.write_table(table, data / "part.parquet")
    with pa.ipc.new_file(str(data / "part.arrow"), table.schema) as writer:
        writer.write_table(table)


CHANGES = {  # settings of stage 5, and columns of the metadata after which it is another one
    "score": ({"representative": "highest:score"}, {"score": [4, 2, 3, 3, 2, 1]}),
    "long texts": ({"representative": "longest_text", "preview": "text"}, {"text": [LONG, "z", LONG, *"zzz"]}),
    "categories": ({"tabulate": "kind"}, {"kind": pa.array([None, *"abbba"]).dictionary_encode()}),
    "missing": ({"tabulate": "kind"}, {"kind": ["", None, *"baba"]}),
    "export": ({"export": True}, {"score": [4, 2, 3, 3, 2, 1]}),
}
OTHERS = {"score": [9] * 6, "text": ["y"] * 6, "kind": ["c"] * 6}  # of columns that aren't named


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *((".csv, ids", what) for what in CHANGES),
        *((kind, "score") for kind in (".csv", ".parquet", ".arrow", ".h5")),
        (".parquet", "categories"),
        (".h5", "long texts"),
    ],
)
def test_changed_metadata_change_stage_5_only(tmp_path, kind, what):
    """Where they are named; also those in the shard itself."""
    settings, changed = CHANGES[what]
    if kind == ".h5" and what == "categories":
        changed = {"kind": [None, *"abbba"]}
    data, works = tmp_path / "data", [tmp_path / name for name in ("work", "fresh")]
    write_six_rows(data, kind, METADATA)
    settings = {"audit_rows": 0, "n_clusters": 1} | settings
    run_stages(data, works[0], **settings)
    manifests = sorted(works[0].glob("0*/manifest.json"))

    def made_anew(columns):
        """The stages that a run on other metadata makes anew."""
        before = [path.stat().st_mtime_ns for path in manifests]
        write_six_rows(data, kind, METADATA | columns)
        run_stages(data, works[0], **settings)
        return [p.parent.name for p, b in zip(manifests, before, strict=True) if p.stat().st_mtime_ns != b]

    assert made_anew({}) == []
    if what != "export":  # which copies all there is
        assert made_anew({name: values for name, values in OTHERS.items() if name not in changed}) == []
    assert made_anew(changed) == [STAGE]
    run_stages(data, works[1], **settings)
    assert tree_bytes(works[0] / STAGE) == tree_bytes(works[1] / STAGE)


def test_texts_that_change_where_no_sample_shows_it(tmp_path):
    """Are those of the next run."""
    case, filler = small(tmp_path), "z" * 20_000
    for letter in "xyx":
        texts = {"first": filler} | {f"id-{row}": letter for row in range(6)} | {"last": filler * 150}
        (case.data / "texts.json").write_text(json.dumps(texts))
        run_stages(case.data, tmp_path / "texts", n_clusters=1, audit_rows=0)
        lines = read_csv(tmp_path / "texts", "examples.csv")
        assert {line["text_a"] for line in lines} == {letter}


def exported(data, work, **settings):
    """The bytes of a copy, and of the pairs to look at."""
    run_stages(data, work, n_clusters=1, audit_rows=0, threshold=0.9, **settings)
    return tree_bytes(work / STAGE / "export"), (work / STAGE / "examples.csv").read_bytes()


@pytest.mark.parametrize(
    ("before", "after"), [("p_0.csv", "p_1.csv"), ("p_0.txt", "p_0.csv"), ("p_0.arrow", "p_0.feather")]
)
def test_what_lies_beside_the_shards_has_another_name(tmp_path, before, after):
    """Though it holds the same."""
    rows, settings = np.random.default_rng(0).normal(size=(20, 8)).astype("f4"), {"export": True, "id_column": ""}
    rows[10:15] = rows[:5]
    (tmp_path / "data").mkdir()
    for number, some in enumerate(np.split(rows, 2)):
        np.save(tmp_path / "data" / f"p_{number}.npy", some)
    table = pa.table({"x": range(10)})
    if before.endswith(".arrow"):
        feather.write_feather(table, tmp_path / "data" / before, compression="uncompressed")
    else:
        pa.csv.write_csv(table, tmp_path / "data" / before)
    exported(tmp_path / "data", tmp_path / "work", **settings)
    (tmp_path / "data" / before).rename(tmp_path / "data" / after)
    again = exported(tmp_path / "data", tmp_path / "work", **settings)
    assert again == exported(tmp_path / "data", tmp_path / "fresh", **settings)


def test_texts_that_lie_beside_other_shards(tmp_path):
    """Of two of four folders, one after the other, without texts otherwise."""
    for number in range(4):
        (tmp_path / "data" / "abcd"[number]).mkdir(parents=True)
        np.save(tmp_path / "data" / "abcd"[number] / f"p_{number}.npy", np.eye(4))
    (tmp_path / "data" / "c" / "texts.json").write_text(json.dumps({"b/p_1:0": "one", "c/p_2:0": "two"}))
    settings = {"shard_pattern": "**/*.npy", "id_column": ""}
    before = exported(tmp_path / "data", tmp_path / "work", **settings)
    (tmp_path / "data" / "c" / "texts.json").rename(tmp_path / "data" / "b" / "texts.json")
    again = exported(tmp_path / "data", tmp_path / "work", **settings)
    assert again == exported(tmp_path / "data", tmp_path / "fresh", **settings) != before


@pytest.mark.parametrize("suffix", [".h5", ".arrow", ".parquet"])
def test_a_copy_has_what_changed_where_no_sample_shows_it(tmp_path, suffix):
    rows, years = np.random.default_rng(0).normal(size=(9000, 32)).astype("f4"), np.arange(9000)
    rows[100:150] = rows[:50]
    (tmp_path / "data").mkdir()

    def write():
        path = tmp_path / "data" / f"p{suffix}"
        if suffix == ".h5":
            with h5py.File(path, "w") as file:
                file["train"], file["year"] = rows, years
            return
        table = pa.table({"train": pa.FixedSizeListArray.from_arrays(rows.ravel(), 32), "year": years})
        if suffix == ".parquet":
            pq.write_table(table, path, compression="none", use_dictionary=False)
        else:
            feather.write_feather(table, path.with_suffix(".arrow"), compression="uncompressed")

    write()
    before = exported(tmp_path / "data", tmp_path / "work", export=True)
    samples = digest_of_sample(tmp_path / "data" / f"p{suffix}")
    years[3000:3002] = [7, 8]
    write()
    assert digest_of_sample(tmp_path / "data" / f"p{suffix}") == samples
    again = exported(tmp_path / "data", tmp_path / "work", export=True)
    assert again == exported(tmp_path / "data", tmp_path / "fresh", export=True) != before


@pytest.mark.parametrize("grouping", ["connected", "star", "split"])
def test_why_a_row_is_dropped_and_what_a_kept_one_stands_for(scored, grouping):
    work = scored.merge(grouping=grouping, threshold=0.94)
    table, rows = load_table(work), scored.rows
    kept_of = {name: int(name.removeprefix("id-")) for name in table["representative"]}
    whys = []
    for row, name, similarity in zip(table["row"], table["representative"], table["similarity"], strict=True):
        same, near = np.array_equal(rows[row], rows[kept_of[name]]), similarity >= 0.94
        whys.append("kept" if row == kept_of[name] else "identical" if same else "near" if near else "linked")
    assert table["why"] == whys
    assert {*whys} >= {"kept", "identical", "near"} | ({"linked"} if grouping == "connected" else set())
    dropped = Counter(name for names in table["stands_for"] for name in names or [])
    assert dropped == Counter(load_list(work / STAGE / "drop.txt"))
    assert max(dropped.values()) == 1
    for why, name, number, stands_for in zip(*(table[c] for c in ("why", "id", "group", "stands_for")), strict=True):
        others = [n for n, g, w in zip(table["id"], table["group"], whys, strict=True) if g == number and w != "kept"]
        assert stands_for == (others if why == "kept" else None), name
    found = results(work)
    assert found["kept"] + found["dropped"] == len(rows) == 120
    assert (found["dropped"], found["rows_in_groups"]) == (len(table["row"]) - whys.count("kept"), len(table["row"]))


@pytest.mark.parametrize("kind", ["distinct", "few", "half"])
def test_values_are_counted_block_by_block(tmp_path, monkeypatch, kind):
    """In their order, missing ones as empty; a column in 140 bytes a row, where objects of Python took 340."""
    monkeypatch.setattr("neardup.input.metadata._BATCH", 1000)
    monkeypatch.setattr("neardup.grouping.losses.BLOCK_ROWS", 1000)
    n_rows = 100_000
    numbers = np.random.default_rng(0).permutation(n_rows) % {"distinct": n_rows, "few": 7, "half": n_rows // 2}[kind]
    values = [None if i % 100 == 7 else "" if i == 3 else f"{i}-ünï" for i in numbers.tolist()]
    dropped = np.random.default_rng(1).random(n_rows) < 0.3
    data = lay_out(tmp_path / "data", np.ones((n_rows, 1), "f4"), cuts=[40_000])
    write_tables(data, {"v": values, "shard": values}, cuts=[40_000])
    shards = find_shards(data)
    with peak_memory() as peak:
        found = losses(shards, ["v", "shard"], dropped)
        n_lines = sum(1 for _ in found)
        most = peak()
    print(f"{most / n_rows:.0f} bytes a row")
    assert most < 2 * 140 * n_rows
    rows, lost = Counter(v or "" for v in values), Counter(v or "" for v, d in zip(values, dropped, strict=True) if d)
    of_shards = [("shard", s.name, s.rows, int(dropped[s.start : s.stop].sum())) for s in shards]
    expected = [(by, v, rows[v], lost[v]) for by in ("v", "column shard") for v in sorted(rows)]
    assert [*found] == of_shards + expected
    assert n_lines == len(expected) + 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_counted_by_shard_and_by_column(tmp_path, layout):
    kinds = ["plain", None, "", "=1+1", "@x", "-5", "+a", '"q"', " =2", "é"]
    kind, group = [kinds[row % 10] for row in range(120)], [row % 3 - 1 for row in range(120)]
    case = make_case(tmp_path, bundles(1), cuts=[40, 90], columns={"kind": kind, "group": group}, layout=layout)
    work = case.merge(tabulate="kind, group,kind")
    dropped = {int(name.removeprefix("id-")) for name in load_list(work / STAGE / "drop.txt")}
    shard = [s.name for s in find_shards(case.data) for _ in range(s.rows)]
    assert [shard.count(name) for name in dict.fromkeys(shard)] == [40, 50, 30]
    expected = []
    for by, values in ("shard", shard), ("kind", [k or "" for k in kind]), ("group", [*map(str, group)]):
        for value in sorted({*values}):
            rows = [row for row, v in enumerate(values) if v == value]
            expected.append((by, value, len(rows), len(dropped.intersection(rows))))
    lines = [
        (line["by"], line["value"], int(line["rows"]), int(line["dropped"])) for line in read_csv(work, "losses.csv")
    ]
    assert not [value for _, value, *_ in lines if value.lstrip().startswith((*"=+-@",))]
    assert [(by, json.loads(v) if v.startswith('"') else v, *counts) for by, v, *counts in lines] == expected
    for by in ("shard", "kind", "group"):
        assert sum(line[2] for line in lines if line[0] == by) == 120
        assert sum(line[3] for line in lines if line[0] == by) == len(dropped) > 0


def test_a_column_named_shard_is_none_of_the_shards(tmp_path):
    """Though all but one of its rows A are dropped; the report has a table of each."""
    rows = np.eye(40)[[0] * 20 + [*range(20)]]
    case = make_case(tmp_path, rows, columns={"shard": ["A"] * 19 + ["B"] * 21})
    work = case.merge(tabulate="shard")
    lines = [tuple(line.values()) for line in read_csv(work, "losses.csv")]
    columns = [("column shard", *line.split()) for line in ("A 19 18", "B 21 2")]
    assert lines == [("shard", "part_0.npy", "40", "20"), *columns]
    assert not [line for line in results(work)["warnings"] if "loses" in line]


def test_what_takes_suspiciously_much_is_named(tmp_path, capsys):
    """Of 400 rows a chain of 10 and a shard that is one row 20 times; not a group of 9."""
    rows = np.random.default_rng(0).normal(size=(400, 60))
    rows[:19] = 0
    rows[:10, :2], rows[10:19, 2] = arc([0, 1, 2.1, 3, 4, 0, 1, 3, 4, 2.1], 0.2), 1
    rows[300:320] = rows[300]
    case = make_case(tmp_path, rows, cuts=[300, 320], threshold=float(np.cos(0.24)))
    capsys.readouterr()
    work = case.merge()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("look at this: ")]
    (chain,), (farthest, link) = load_chains(work), np.cos([0.42, 0.22])
    with h5py.File(work / STAGE / "merged_clusters.h5") as file:
        repeated = file["name"].asstr()[-1]
    expected = [
        f"{repeated} takes 5.0% of all rows (20): the farthest is 1.0000 similar to the one kept, "
        "its weakest link 1.0000",
        f"{chain} takes 2.5% of all rows (10): the farthest is {in_words(farthest)} similar to the one kept, "
        f"its weakest link {in_words(link)}",
        "part_1.npy loses 95.0% of its rows (19 of 20)",
    ]
    assert results(work)["warnings"] == expected
    assert lines == [f"look at this: {line}" for line in expected]
    found = results(case.merge(SCRIPTS[3:], pairs="joining"))["warnings"]
    assert found == [line.split(", its weakest link")[0] for line in expected]  # which some of the pairs don't tell


@pytest.mark.parametrize("count", [10, 11, 13])
def test_what_there_is_more_of_is_counted(count):
    """Beside ten groups and ten shards; one that loses just nine of ten rows is none of them."""
    rows = np.arange(10 * count)
    groups = Groups(rows, np.arange(0, 10 * count + 1, 10), np.ones(len(rows)), rows[::10], np.zeros(count, np.int32))
    found = [("shard", "just", 10, 9), *(("shard", f"{number}", 20, 19) for number in range(count))]
    lines = warnings(groups, found, 500, None)
    assert [line.split()[1] for line in lines if " takes " in line or " loses " in line] == ["takes"] * 10 + [
        "loses"
    ] * 10
    assert not any(line.startswith("just") for line in lines)
    more = [line.partition(" of ")[0] for line in lines if " more " in line]
    assert more == {10: [], 11: ["1 more group", "1 more shard"], 13: ["3 more groups", "3 more shards"]}[count]


@pytest.mark.parametrize("grouping", ["connected", "star", "split"])
def test_the_weakest_link_is_of_the_pairs_within_a_group(tmp_path, grouping):
    """By brute force, of two crowds that one pair joins, and a third round the other side of the first."""
    places = np.concatenate([np.linspace(0, 1.4, 12), np.linspace(2.3, 3.5, 13), np.linspace(-1.9, -0.95, 14)])
    case = make_case(tmp_path, arc(places, 0.2), threshold=float(np.cos(0.2)))
    work, expected = case.merge(grouping=grouping), []
    pairs = load_pairs(work)
    for _, members in sorted(load_groups(work), key=lambda group: -len(group[1])):
        within = {pair: similarity for pair, similarity in pairs.items() if members.keys() >= {*pair}}
        joining = [s for s in within.values() if (*members,) in components([p for p in within if within[p] >= s], 39)]
        expected += [(len(members), in_words(max(joining)))] if len(members) >= 10 else []
    found = [re.search(r"\((\d+)\): .*, its weakest link (.*)", line) for line in results(work)["warnings"]]
    assert [(int(line[1]), line[2]) for line in found if line] == expected != []

"""Stage 5: groups, what is kept of each, and what holds chains together; in every file the same."""

import csv
import json
import pickle
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import (
    EXAMPLE,
    components,
    flat_ids,
    found_groups,
    found_pairs,
    lay_out,
    pair_set,
    read_ids,
    run_stages,
    unit,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STAGE = "045_merge"
TIE = 1e-12  # mean similarities closer than this are the same


@dataclass
class Case:
    """A finished run: its work folder, the rows as given, the threshold."""

    work: object
    rows: np.ndarray
    threshold: float


def make_case(folder, rows, threshold, ids=None, **settings):
    data = lay_out(folder / "data", rows, cuts=[len(rows) // 3], ids=ids)
    run_stages(data, folder / "work", threshold=threshold, audit_rows=0, **settings)
    return Case(folder / "work", rows, threshold)


def bundles(seed, n=120, dim=6):
    """Rows around a dozen directions, wide enough for chains, a few of them exact repeats; of many lengths."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, dim))[rng.integers(0, 12, n)] + rng.normal(size=(n, dim)) * 0.25
    rows *= 10 ** rng.uniform(-1, 1, size=(n, 1))
    rows[rng.integers(0, n, 15)] = rows[rng.integers(0, n, 15)]
    return rows


def large_group(n=400, dim=512):
    """One group larger than the block that 64 MiB and 8 workers leave."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, dim)) * 0.3 + rng.normal(size=dim)
    rows[:6] = rng.normal(size=(6, dim))
    rows[200] = rows[100]
    return rows


@pytest.fixture(scope="module", params=["example", "seed 0", "seed 1", "seed 2", "tight", "large group"])
def case(request, example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    if request.param == "example":
        return Case(example, np.concatenate([np.load(EXAMPLE / f"demo_{s}.npy") for s in range(3)]), 0.98)
    if request.param == "large group":
        return make_case(folder, large_group(), 0.9, memory_limit="320MiB", n_workers=8)
    if request.param == "tight":
        return make_case(folder, bundles(3), 0.995)
    return make_case(folder, bundles(int(request.param[-1])), 0.94)


def load_table(work):
    """Columns of groups.parquet, as lists."""
    return pq.read_table(work / STAGE / "groups.parquet").to_pydict()


def load_groups(work):
    """[(representative's row, {row: similarity})] of groups.parquet, in the order of their numbers."""
    table, row_of = load_table(work), {name: row for row, name in enumerate(read_ids(work))}
    groups = []
    for row, number, representative, similarity in zip(
        *(table[name] for name in ("row", "group", "representative", "similarity")), strict=True
    ):
        if number == len(groups):
            groups.append((row_of[representative], {}))
        assert groups[number][0] == row_of[representative]
        groups[number][1][row] = similarity
    return groups


def load_pairs(work):
    """{(row_a, row_b): similarity} of neighbors.h5."""
    row_a, row_b, similarity = (column.tolist() for column in found_pairs(work))
    return dict(zip(zip(row_a, row_b, strict=True), similarity, strict=True))


def load_chains(work):
    return json.loads((work / STAGE / "chains.json").read_text())


def load_list(path):
    """Ids of keep.txt or drop.txt, read as the docs say: a line that begins with a quote is a JSON string."""
    lines = path.read_text(encoding="utf-8").splitlines()  # which takes the most characters for line breaks
    assert path.read_bytes().count(b"\n") == len(lines)
    return [json.loads(line) if line.startswith('"') else line for line in lines]


def test_groups_are_the_components_of_the_pairs(case):
    assert found_groups(case.work) == components(pair_set(case.work), len(case.rows))
    assert len(found_groups(case.work)) >= 1


def test_groups_are_numbered_by_their_smallest_rows(case):
    smallest = [min(members) for _, members in load_groups(case.work)]
    assert smallest == sorted(smallest)


def test_lines_of_the_table_say_what_their_groups_are(case):
    table, ids = load_table(case.work), read_ids(case.work)
    assert list(table) == ["row", "id", "group", "size", "representative", "similarity", "why", "stands_for"]
    schema = pq.read_schema(case.work / STAGE / "groups.parquet")
    assert [schema.field(name).type for name in ("row", "group", "size")] == [pa.int64()] * 3
    assert schema.field("similarity").type == pa.float64()
    assert table["id"] == [ids[row] for row in table["row"]]
    assert table["size"] == [table["group"].count(number) for number in table["group"]]
    order = list(zip(table["group"], table["row"], strict=True))
    assert order == sorted(order)


def best_member(cosines):
    """Position of the first row whose mean similarity to the others is the highest. cosines: (g, g)."""
    means = [(sum(row) - row[i]) / (len(row) - 1) for i, row in enumerate(cosines.tolist())]
    below = np.max(means) - np.array(means)
    assert not ((below > TIE / 100) & (below < TIE * 100)).any(), "too near to tell"
    return int(np.nonzero(below <= TIE)[0][0])


def test_the_representative_is_the_row_most_similar_to_the_rest(case):
    """By plain brute force; ties go to the first row."""
    rows = unit(case.rows)
    for representative, members in load_groups(case.work):
        here = rows[list(members)]
        assert representative == list(members)[best_member(here @ here.T)]


def test_ties_are_there(tmp_path):
    """Two rows alike, three the same, and four round a circle: the first of each is kept."""
    angle = np.array([0.1, 0.3, 1, 1, 1, 2, 2.1, 2.2, 2.3])
    rows = np.column_stack([np.cos(angle), np.sin(angle)])[[8, 0, 3, 6, 2, 1, 4, 5, 7]]
    work = make_case(tmp_path, rows, 0.98).work
    assert [(r, tuple(m)) for r, m in load_groups(work)] == [(3, (0, 3, 7, 8)), (1, (1, 5)), (2, (2, 4, 6))]


def test_rounding_breaks_no_ties(tmp_path):
    """Rows evenly round a circle are equally central, though sums of their values aren't equal: the first is kept."""
    rng, turns = np.random.default_rng(0), []
    for number, count in enumerate([3, 4, 5, 7, 12, 12, 30, 50]):
        angle = 2 * np.pi * rng.permutation(count) / count
        axes = np.linalg.qr(rng.normal(size=(30, 3)) + 20 * np.outer(np.eye(30)[number], [1, 0, 0]))[0]
        turns.append(np.column_stack([np.ones(count), 0.2 * np.cos(angle), 0.2 * np.sin(angle)]) @ axes.T)
    firsts = np.cumsum([0, *map(len, turns)])[:-1]
    work = make_case(tmp_path, np.concatenate(turns), 0.9).work
    assert [(r, min(m), len(m)) for r, m in load_groups(work)] == [
        (first, first, len(some)) for first, some in zip(firsts.tolist(), turns, strict=True)
    ]


def test_similarity_is_that_to_the_representative(case):
    rows = unit(case.rows)
    pairs = load_pairs(case.work)
    for representative, members in load_groups(case.work):
        for row, similarity in members.items():
            assert abs(similarity - rows[row] @ rows[representative]) <= 1e-14
            stored = pairs.get((min(row, representative), max(row, representative)))
            assert stored is None or stored == similarity
        assert members[representative] == 1


def test_chains_are_the_groups_with_a_member_below_the_threshold(case):
    rows, weakest = unit(case.rows), []
    for representative, members in load_groups(case.work):
        weakest.append((rows[list(members)] @ rows[representative]).min())
    assert (np.abs(np.array(weakest) - case.threshold) > 1e-14).all(), "too near to tell"
    with h5py.File(case.work / STAGE / "merged_clusters.h5") as file:
        flagged, names = file["chain"][:].tolist(), file["name"].asstr()[:].tolist()
    assert flagged == [similarity < case.threshold for similarity in weakest]
    assert list(load_chains(case.work)) == [name for name, chain in zip(names, flagged, strict=True) if chain]


def test_groups_have_their_names(case):
    labels = np.load(case.work / "03_kmeans" / "labels.npy")
    with h5py.File(case.work / STAGE / "merged_clusters.h5") as file:
        names = file["name"].asstr()[:].tolist()
    assert names == [
        f"merged-cluster_{labels[representative]}_{len(members)}_{number}"
        for number, (representative, members) in enumerate(load_groups(case.work))
    ]


def test_flat_arrays_hold_the_same_groups(case):
    groups, table = load_groups(case.work), load_table(case.work)
    labels = np.load(case.work / "03_kmeans" / "labels.npy")
    with h5py.File(case.work / STAGE / "merged_clusters.h5") as file:
        assert not [name for name, item in file.items() if isinstance(item, h5py.Group)]
        assert file.attrs["threshold"] == case.threshold
        ids = flat_ids(file)
        found = {name: file[name][:].tolist() for name in file}
    assert found["row"] == table["row"]
    assert found["similarity"] == table["similarity"]
    assert ids == table["id"]
    assert found["bounds"] == np.cumsum([0] + [len(members) for _, members in groups]).tolist()
    assert found["representative_row"] == [representative for representative, _ in groups]
    assert found["cluster"] == [labels[representative] for representative, _ in groups]
    assert found["weakest"] == [min(members.values()) for _, members in groups]


def test_the_pickle_holds_the_same_groups(case):
    ids = read_ids(case.work)
    with h5py.File(case.work / STAGE / "merged_clusters.h5") as file:
        names = file["name"].asstr()[:].tolist()
    found = pickle.loads((case.work / STAGE / "merged_clusters.pkl").read_bytes())
    assert type(found) is dict
    assert list(found) == names
    assert list(found.values()) == [
        {
            "representative": ids[representative],
            "members": [ids[row] for row in members],
            "similarities": list(members.values()),
        }
        for representative, members in load_groups(case.work)
    ]


def test_every_id_is_kept_or_dropped(case):
    """Dropped are the members of groups but their representatives, and both lists are in row order."""
    ids, groups = read_ids(case.work), load_groups(case.work)
    drop = {row for representative, members in groups for row in members if row != representative}
    assert load_list(case.work / STAGE / "drop.txt") == [ids[row] for row in sorted(drop)]
    assert load_list(case.work / STAGE / "keep.txt") == [name for row, name in enumerate(ids) if row not in drop]


STRANGE_IDS = [
    "a\nb",
    "a\r\nb",
    "\r",
    "\n",
    "\u2028",
    "\x85",
    "\x0b",
    "",
    '"',
    '"quoted"',
    "a\\nb",
    " ",
    "重複 🦊",
    "\x00",
]


def test_ids_of_any_kind_come_back(tmp_path):
    rows = np.repeat(np.eye(len(STRANGE_IDS)), 2, axis=0)
    ids = [part for name in STRANGE_IDS for part in (name, name + "2")]
    work = make_case(tmp_path, rows, 0.9, ids=ids).work
    assert load_list(work / STAGE / "keep.txt") == ids[::2]
    assert load_list(work / STAGE / "drop.txt") == ids[1::2]
    assert load_table(work)["id"] == ids
    assert load_table(work)["representative"] == [name for name in STRANGE_IDS for _ in range(2)]
    with h5py.File(work / STAGE / "merged_clusters.h5") as file:
        assert flat_ids(file) == ids
    groups = pickle.loads((work / STAGE / "merged_clusters.pkl").read_bytes()).values()
    assert [group["members"] for group in groups] == [[name, name + "2"] for name in STRANGE_IDS]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=1000)
NASTY_TEXT = st.text("=+-@\"'\\\n\r\t ,;/<>&\0\u2028é", max_size=20)


@given(ids=st.lists(ANY_TEXT | NASTY_TEXT, min_size=9, max_size=9, unique=True))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_ids_survive_every_output(ids):
    """Whatever is in them: of two groups, three single rows and two rejected ones."""
    rows = np.concatenate([np.repeat(np.eye(4), [2, 2, 1, 1], axis=0), np.ones((1, 4)), np.zeros((2, 4))])
    with tempfile.TemporaryDirectory() as folder:
        data, work = lay_out(Path(folder) / "data", rows, ids=ids), Path(folder) / "work"
        run_stages(data, work, n_clusters=1, bad_rows="skip", audit_rows=3)
        assert read_ids(work) == ids
        with (work / "01_pca_variance" / "rejected.csv").open(newline="", encoding="utf-8") as file:
            cells = [line[3] for line in csv.reader(file)][1:]
        assert [json.loads(cell) if cell.startswith('"') else cell for cell in cells] == ids[7:]
        for name, expected in {
            "03_kmeans/clusters/cluster_00000.h5": ids[:7],
            "04_neighbor_search/neighbors.h5": ids[:4],
            "045_merge/merged_clusters.h5": ids[:4],
        }.items():
            with h5py.File(work / name) as file:
                assert flat_ids(file) == expected
        neighbors = pickle.loads((work / "04_neighbor_search" / "neighbors.pkl").read_bytes())
        assert list(neighbors) == ids[:7]
        assert [list(n["neighbors"]) for n in neighbors.values()] == [[ids[i]] for i in (1, 0, 3, 2)] + [[]] * 3
        merged = pickle.loads((work / STAGE / "merged_clusters.pkl").read_bytes())
        assert [g["members"] for g in merged.values()] == [ids[:2], ids[2:4]]
        assert load_table(work)["id"] == ids[:4]
        assert load_list(work / STAGE / "keep.txt") == [ids[i] for i in (0, 2, 4, 5, 6)]
        assert load_list(work / STAGE / "drop.txt") == [ids[1], ids[3]]


@pytest.mark.pictures
def test_no_groups_at_all(tmp_path, capsys):
    work = make_case(tmp_path, np.eye(7), 0.98).work
    assert "0 groups of 0 rows" in capsys.readouterr().out
    assert load_groups(work) == []
    assert load_chains(work) == {}
    assert load_list(work / STAGE / "keep.txt") == read_ids(work)
    assert (work / STAGE / "drop.txt").read_bytes() == b""
    assert pickle.loads((work / STAGE / "merged_clusters.pkl").read_bytes()) == {}
    with h5py.File(work / STAGE / "merged_clusters.h5") as file:
        assert file["bounds"][:].tolist() == [0]
        assert {name: len(file[name]) for name in ("row", "similarity", "name", "representative_row", "chain")} == (
            dict.fromkeys(("row", "similarity", "name", "representative_row", "chain"), 0)
        )
    assert (work / STAGE / "groups.png").read_bytes().startswith(b"\x89PNG")


def test_the_largest_groups_are_shown(tmp_path, capsys):
    """With their ids, the representative first, and what the ids stand for where that is known."""
    sizes = [2, 9, 3, 4, 2, 5]
    rows = np.repeat(np.eye(6), sizes, axis=0)
    (tmp_path / "texts.json").write_text(json.dumps({"id-2": "the first of nine"}))
    make_case(tmp_path, rows, 0.98, preview=tmp_path / "texts.json")
    shown = capsys.readouterr().out.split("largest groups, the representative first:\n")[1].splitlines()
    heads = [line.split(" rows")[0].strip() for line in shown if "similarity >=" in line]
    assert heads == ["9", "5", "4", "3", "2"]
    assert shown[1] == '    "id-2"  the first of nine'
    assert shown[2] == '    "id-3"'


def planted_chain():
    """Rows on an arc, in steps of an angle (with a short cut round 2.5, and 4 twice), between others, in any order."""
    step = 0.1
    places = np.array([0, 1, 2, 2.5, 3, 4, 4, 5, 6, 7.2])
    rows = np.zeros((len(places) + 5, 8))
    rows[: len(places), 0], rows[: len(places), 1] = np.cos(places * step), np.sin(places * step)
    rows[len(places) :, [3, 4]] = [1, 0.05]  # five the same, a group that is no chain
    rows[-1, 4] = 0.06
    return rows[np.random.default_rng(4).permutation(len(rows))], float(np.cos(1.4 * step))


def check_chain(work, name):
    """What chains.json says of a chain, against brute force. Returns it."""
    ids = read_ids(work)
    row_of = {name: row for row, name in enumerate(ids)}
    chain = load_chains(work)[name]
    representative, members = load_groups(work)[chain["group"]]
    assert chain["representative"] == ids[representative]
    assert chain["similarity"] == min(members.values())
    assert members[row_of[chain["weakest"]]] == min(members.values())
    assert (chain["path"][0], chain["path"][-1]) == (chain["representative"], chain["weakest"])
    path = [row_of[member] for member in chain["path"]]
    assert len(set(path)) == len(path)
    pairs = {pair: similarity for pair, similarity in load_pairs(work).items() if pair[0] in members}
    assert chain["path_similarities"] == [pairs[min(link), max(link)] for link in pairwise(path)]
    # of all paths, one whose weakest link is the strongest: stronger pairs alone don't join its ends
    weakest_link = min(chain["path_similarities"])
    stronger = components({pair for pair, similarity in pairs.items() if similarity > weakest_link}, len(ids))
    assert not any({path[0], path[-1]} <= set(group) for group in stronger)
    assert len(pairs) < 2000, "too many for brute force"
    bridges = [tuple(row_of[member] for member in bridge) for bridge in chain["bridges"]]
    whole = components(pairs, len(ids))
    assert bridges == sorted(pair for pair in pairs if components(set(pairs) - {pair}, len(ids)) != whole)
    return chain


def test_what_holds_a_planted_chain_together(tmp_path):
    rows, threshold = planted_chain()
    work = make_case(tmp_path, rows, threshold).work
    (name,) = load_chains(work)
    assert name.split("_")[2] == "10"
    chain = check_chain(work, name)
    assert len(chain["bridges"]) == 4  # 0-1, 1-2, 5-6, 6-7.2
    assert len(chain["path"]) >= 4
    assert len(load_groups(work)) == 2


def test_what_holds_other_chains_together(case):
    for name in load_chains(case.work):
        check_chain(case.work, name)


def long_chain(steps=100, axes=31):
    """3,001 rows on quarter circles from one axis to the next: only neighbours on this curve are pairs."""
    angle = np.arange(steps * (axes - 1) + 1) * (np.pi / 2 / steps)
    rows = np.zeros((len(angle), axes))
    on = np.minimum(np.arange(len(angle)) // steps, axes - 2)
    rows[np.arange(len(angle)), on] = np.cos(angle - on * np.pi / 2)
    rows[np.arange(len(angle)), on + 1] = np.sin(angle - on * np.pi / 2)
    return rows, float(np.cos(1.2 * np.pi / 2 / steps))


def test_a_chain_longer_than_the_recursion_limit(tmp_path):
    rows, threshold = long_chain()
    assert len(rows) > 3 * sys.getrecursionlimit()
    work = make_case(tmp_path, rows, threshold, n_clusters=30).work
    assert pair_set(work) == set(pairwise(range(3001)))
    (chain,) = load_chains(work).values()
    first, last = (int(chain[end].removeprefix("id-")) for end in ("representative", "weakest"))
    step = 1 if first < last else -1
    assert abs(first - last) >= 100  # the weakest is at a right angle
    assert chain["path"] == [f"id-{row}" for row in range(first, last + step, step)]
    assert chain["bridges"] == [[f"id-{row}", f"id-{row + 1}"] for row in range(3000)]


def test_an_id_that_is_kept_is_not_dropped(tmp_path, capsys):
    """Rows of one name: who deletes by drop.txt must not delete a row that is kept. What is printed counts rows."""
    rows = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2], [0, 0, 0]], dtype=np.float32)
    data = lay_out(tmp_path / "data", rows, ids=["a", "a", "a", "d", "e", "a"])
    run_stages(data, tmp_path / "work", duplicate_ids="allow", bad_rows="skip")
    assert load_list(tmp_path / "work" / "045_merge" / "keep.txt") == ["a", "a", "d"]
    assert load_list(tmp_path / "work" / "045_merge" / "drop.txt") == ["e"]
    assert "6 rows = 4 in groups + 1 single + 1 rejected; keep 3 and drop 2\n" in capsys.readouterr().out


def test_what_a_terminal_would_act_on_is_escaped(tmp_path, capsys):
    """Titles, colours and turns of direction, of ids and of texts."""
    rows, ids = np.ones((2, 3), dtype=np.float32), ["a\u009b31m", "b\u202e"]
    data = lay_out(tmp_path / "data", rows, ids=ids)
    (data / "texts.json").write_text(json.dumps({ids[0]: "\x1b]0;title\x07", ids[1]: "fine"}))
    run_stages(data, tmp_path / "work")
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u009b", "\u202e"} & {*shown}
    assert '"a\\u009b31m"  \\u001b]0;title\\u0007\n    "b\\u202e"  fine\n' in shown

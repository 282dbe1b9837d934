"""What a user takes away: neighbours as a pickle; groups as HDF5, pickle, Parquet, keep and drop lists."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neardup import pickles
from neardup.grouping.groups import Groups
from neardup.grouping.thresholds import examples
from neardup.input.id_table import bytes_of, store_ids
from neardup.input.ids import BLOCK_ROWS
from neardup.machine.files import atomic, hdf5, opened_data_sets, write_csv
from neardup.machine.npy import map_npy
from neardup.ranges import block_ranges
from neardup.search.pairs import among, both_ways

_EXAMPLES = 20  # pairs to look at, a threshold
_AT_ONCE = 1 << 17  # rows and neighbours that are pickled together, at most
_BYTES_OF_NEIGHBOR, _COPIES = 512, 8  # of a pair and its opcodes, with some to spare; and of its id
_PICKLED_BYTES = 1 << 26  # of members of groups that are pickled together, at most
_QUOTE, _PLAIN = ord('"'), ord(" ")  # what begins a JSON string; the first character that breaks no line
_PARQUET = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.large_string()),
        ("group", pa.int64()),
        ("size", pa.int64()),
        ("representative", pa.large_string()),
        ("similarity", pa.float64()),
        ("why", pa.string()),
        ("stands_for", pa.large_list(pa.large_string())),
    ]
)


def write_neighbors_pickle(stage, ids, memory_bytes, *, labels_path, repeated):
    """neighbors.pkl: id -> {"cluster": its k-means cluster, "neighbors": {id: similarity}}, for users.

    Of every row that isn't rejected, in row order. ids: `IdTable`; labels_path: of labels.npy; repeated: the rows of
    ids that several have, for which (id, row) stands. Memory: `memory_bytes`, of 64 MB at most, and 8 bytes a row until
    it begins to write.
    """
    blocks = _neighbor_blocks(stage, ids, memory_bytes, labels=map_npy(labels_path), repeated=repeated)
    pickles.write_dict(stage.path("neighbors.pkl"), blocks)


def _neighbor_blocks(stage, ids, memory_bytes, *, labels, repeated):
    """Yield the keys and values of neighbors.pkl."""

    def named(rows):
        names = pickles.strings(ids.array(rows))
        several, _ = among(rows, repeated)
        return pc.if_else(several, pickles.pairs(names, pickles.integers(rows)), names) if several.any() else names

    path, mirrored = stage.path("neighbors.h5"), stage.part("mirrored", suffix="")
    most = min(memory_bytes / _bytes_of_each(ids), _AT_ONCE)
    for low, high, pairs in both_ways(path, len(labels), most, mirrored):
        clusters, bounds = labels[low:high], np.searchsorted(pairs["row_a"], np.arange(low, high + 1))
        neighbors = pickles.dicts(named(pairs["row_b"]), pickles.floats(pairs["similarity"]), bounds)
        values = pickles.records(cluster=pickles.integers(clusters), neighbors=neighbors)
        counted = pa.array(clusters >= 0)
        yield named(np.arange(low, high)).filter(counted), values.filter(counted)


def _bytes_of_each(ids):
    """What a neighbour, or a member of a group, takes while it is pickled."""
    return _BYTES_OF_NEIGHBOR + _COPIES * ids.mean_bytes


def write_hdf5(path, groups, ids, threshold):
    """merged_clusters.h5: flat data sets; group g's members are at bounds[g] to bounds[g + 1]."""
    with hdf5(path) as file:
        file["row"], file["similarity"] = groups.rows, groups.similarity
        file["bounds"] = groups.bounds
        file["representative_row"], file["cluster"] = groups.representative, groups.cluster
        file["weakest"], file["chain"] = groups.weakest, groups.are_chains(threshold)
        longest = len("merged-cluster___") + sum(
            len(str(a.max(initial=0))) for a in (groups.cluster, groups.sizes, np.array([len(groups)]))
        )
        names = file.create_dataset("name", (len(groups),), f"S{longest}")
        for low in range(0, len(groups), BLOCK_ROWS):
            high = min(low + BLOCK_ROWS, len(groups))
            names[low:high] = np.array([groups.name(g).encode() for g in range(low, high)])
        store_ids(file, ids, groups.rows)
        file.attrs["threshold"] = threshold


def read_groups(path):
    """The `Groups` of merged_clusters.h5. Raises NeardupError where it is damaged. Memory: 24 bytes a row in groups."""
    names = "row", "bounds", "similarity", "representative_row", "cluster"
    with opened_data_sets(path, names) as found:
        return Groups(*(values[:] for values in found))


def write_pickle(path, groups, ids):
    """merged_clusters.pkl: name -> {"representative": id, "members": [id], "similarities": [float]}, for users."""
    pickles.write_dict(path, _group_blocks(groups, ids))


def _group_blocks(groups, ids):
    """Yield the keys and values of merged_clusters.pkl. Memory: the ids of a block, several times."""
    most = min(BLOCK_ROWS, int(_PICKLED_BYTES / _bytes_of_each(ids)) + 1)
    for low, high in groups.blocks(most):
        bounds = groups.bounds[low : high + 1]
        here = slice(bounds[0], bounds[-1])
        names = pa.array([groups.name(g) for g in range(low, high)], pa.large_string())
        values = pickles.records(
            representative=pickles.strings(ids.array(groups.representative[low:high])),
            members=pickles.lists(pickles.strings(ids.array(groups.rows[here])), bounds - bounds[0]),
            similarities=pickles.lists(pickles.floats(groups.similarity[here]), bounds - bounds[0]),
        )
        yield pickles.strings(names), values


def write_parquet(path, groups, ids, threshold):
    """groups.parquet: a line for each row of a group. Memory: the ids of a block, twice.

    `why`: "kept", or dropped because it is "identical" to the representative, "near" it, or "linked" to it through
    others, below the threshold. `stands_for`: of a kept row, the ids of those that are dropped for it.
    """
    with atomic(path) as temporary, pq.ParquetWriter(temporary, _PARQUET) as writer:
        for low, high in groups.blocks(BLOCK_ROWS):
            here = slice(groups.bounds[low], groups.bounds[high])
            rows, similarity, sizes = groups.rows[here], groups.similarity[here], groups.sizes[low:high]
            of_group = np.repeat(np.arange(high - low), sizes)
            kept, names = rows == groups.representative[low:high][of_group], ids.array(rows)
            why = np.select([kept, similarity == 1, similarity >= threshold], ["kept", "identical", "near"], "linked")
            columns = [
                rows,
                names,
                low + of_group,
                np.repeat(sizes, sizes),
                names.filter(pa.array(kept)).take(pa.array(of_group)),
                similarity,
                why.tolist(),
                _lists_of_dropped(names, kept, sizes),
            ]
            arrays = [pa.array(c, type=f.type) for c, f in zip(columns, _PARQUET, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=_PARQUET))


def _lists_of_dropped(names, kept, sizes):
    """For each kept row the names of the others of its group, for the others nothing."""
    lengths = np.zeros(len(kept), dtype=np.int64)
    lengths[kept] = sizes - 1
    offsets = pa.array(np.cumulative_sum(lengths, include_initial=True))
    return pa.LargeListArray.from_arrays(offsets, names.filter(pa.array(~kept)), mask=pa.array(~kept))


def write_thresholds(path, table):
    """thresholds.csv: a line for each threshold. table: [{column: value}], the same columns in each."""
    write_csv(path, [list(table[0]), *(list(line.values()) for line in table)])


def write_examples(path, pair_blocks, thresholds, preview):
    """examples.csv: pairs to look at, the least similar ones at each of the thresholds. thresholds: descending."""
    found, ids = examples(pair_blocks, thresholds, _EXAMPLES), preview.ids
    pairs, of = np.concatenate(found), np.repeat(thresholds, [len(some) for some in found]).tolist()
    texts = preview.texts(np.concatenate([pairs["row_a"], pairs["row_b"]]))
    columns = [pairs[name].tolist() for name in ("similarity", "row_a", "row_b")]
    columns += [ids.take(pairs["row_a"]), ids.take(pairs["row_b"]), texts[: len(pairs)], texts[len(pairs) :]]
    names = "threshold", "similarity", "row_a", "row_b", "id_a", "id_b", "text_a", "text_b"
    write_csv(path, [names, *zip(of, *columns, strict=True)])


def write_lists(folder, groups, rejected, repeated, ids):
    """keep.txt and drop.txt: every row that isn't rejected is in one of them. Returns which are kept, (n,) bool.

    Dropped are the members of groups that are not their representatives. Where rows share an id, it is in drop.txt
    only if none of them is kept, for who deletes by the id deletes them all. Memory: 2 bytes a row, and as Python
    strings the ids of those that share one and are kept, or of those that are dropped, whichever are fewer.
    """
    drop = groups.dropped(len(ids))
    assert not drop[rejected].any()
    keep = ~drop
    keep[rejected] = False
    both = _ids_of_both(*sorted([repeated[keep[repeated]], repeated[drop[repeated]]], key=len), ids)
    for rows, names in _named(repeated[drop[repeated]] if both else [], ids):
        drop[rows[[name in both for name in names]]] = False
    write_id_lists(folder, keep, drop, ids)
    return keep


def _ids_of_both(few, many, ids):
    """The ids that both some rows and others have."""
    names = {name for _, some in _named(few, ids) for name in some}
    return {name for _, some in _named(many, ids) for name in names.intersection(some)} if names else names


def _named(rows, ids):
    """Yield some of the rows, and their ids."""
    for low, high in block_ranges(0, len(rows), BLOCK_ROWS):
        yield rows[low:high], ids.take(rows[low:high])


def write_id_lists(folder, keep, drop, ids, first=0):
    """keep.txt and drop.txt of the rows from the first on. keep, drop: (n,) bool. Memory: the ids of a block."""
    for name, chosen in (("keep.txt", keep), ("drop.txt", drop)):
        with atomic(folder / name) as temporary, temporary.open("wb") as file:
            for start in range(0, len(chosen), BLOCK_ROWS):
                rows = first + start + np.nonzero(chosen[start : start + BLOCK_ROWS])[0]
                file.write(_lines(ids.array(rows)))


def _lines(names):
    """As `id_lines`, UTF-8, of an Arrow array, of which no Python object is made where all is plain ASCII."""
    sizes, text = bytes_of(names)
    plain = sizes.all() and (text.view(np.int8) >= _PLAIN).all()
    if plain and (text[np.cumsum(sizes) - sizes] != _QUOTE).all():
        nothing, line_end = (pa.scalar(text, pa.large_string()) for text in ("", "\n"))
        return bytes_of(pc.binary_join_element_wise(names, nothing, line_end))[1].data
    return id_lines(names.to_pylist()).encode()


def id_lines(names):
    """Ids as text, a line each, as `id_line` has it."""
    text = "".join([name + "\n" for name in names])
    if text.splitlines() == names and '\n"' not in "\n" + text and "" not in names:
        return text  # none needs a JSON string, which is quickly seen of all together
    return "".join([id_line(name) + "\n" for name in names])


def id_line(name):
    """An id as one line: as it is, or as a JSON string where it holds a line break, begins with a quote or is empty."""
    return name if name.splitlines() == [name] and not name.startswith('"') else json.dumps(name)

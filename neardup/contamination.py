"""Which rows of a set are near any row of a second one, and which of them each is nearest to."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neardup.artifacts import REPORT
from neardup.export import write_copies
from neardup.files import atomic, write_csv
from neardup.ids import IdTable
from neardup.mirror import here
from neardup.npy import read_npy
from neardup.outputs import write_examples, write_id_lists
from neardup.pairs import read_pairs
from neardup.preview import Preview
from neardup.report import write_report_against
from neardup.runs import begin
from neardup.script import tell
from neardup.summary import tell_not_exported
from neardup.thresholds import pair_counts, steps

_BLOCK_ROWS = 1 << 16  # rows whose ids are handled together
_PARQUET = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.large_string()),
        ("reference", pa.large_string()),
        ("similarity", pa.float64()),
        ("matches", pa.int64()),
    ]
)


def run(config):
    """Write work/045_merge of a set against a second one and its report, or find them finished."""
    stage, shards, earlier = begin(config, "045_merge")
    variance, search = earlier["01_pca_variance"], earlier["04_neighbor_search"]
    ids = IdTable.open(variance.path("ids.arrow"))
    preview = Preview(config.preview, shards, ids)
    preview.check()
    if not stage.finished:
        stage.needs(4 * variance.path("ids.arrow").stat().st_size)
        n_before, lowest = stage.growth.sets[1], search.results["threshold"]
        pairs = partial(read_pairs, search.path("neighbors.h5"), len(ids))
        rejected, repeated = (read_npy(variance.path(f"{name}_rows.npy")) for name in ("rejected", "repeated"))
        thresholds = steps(lowest, config.threshold)
        nearest = find_matches(pairs(), n_before, len(ids) - n_before).similarity
        table = [
            {"threshold": threshold, "pairs": count, "contaminated": int(np.count_nonzero(nearest >= threshold))}
            for threshold, count in zip(thresholds, pair_counts(pairs(), thresholds).tolist(), strict=True)
        ]
        matches = find_matches(pairs(config.threshold), n_before, len(ids) - n_before)
        write_contaminated(stage.path("contaminated.parquet"), matches, n_before, ids)
        write_csv(stage.path("thresholds.csv"), [list(table[0]), *(list(line.values()) for line in table)])
        write_examples(stage.path("examples.csv"), pairs(), thresholds, ids, preview)
        left_out = np.isin(np.arange(n_before, len(ids)), rejected)
        named = np.setdiff1d(repeated[repeated >= n_before], rejected)  # those left out are in neither list
        drop = with_namesakes(matches.count > 0, named, n_before, ids)
        keep = ~drop & ~left_out
        write_id_lists(stage.folder, keep, drop, ids, n_before)
        matched = np.zeros(n_before, dtype=bool)
        for block in pairs(config.threshold):
            matched[block["row_a"]] = True
        found = {
            "threshold": config.threshold,
            "rows": len(drop),
            "contaminated": int(np.count_nonzero(matches.count)),
            "kept": int(np.count_nonzero(keep)),
            "dropped": int(np.count_nonzero(drop)),
            "rejected": int(np.count_nonzero(left_out)),
            "reference_rows": n_before,
            "reference_matched": int(np.count_nonzero(matched)),
            "thresholds": table,
        }
        own = [replace(shard, start=shard.start - n_before) for shard in shards[stage.run.n_before :]]
        found["not_exported"] = write_copies(stage, own, keep, ids, config)
        stage.note_times()
        write_report_against(earlier | {stage.name: stage}, found, config, preview)
        stage = stage.finish(found)
    elif not here(stage.folder / REPORT).exists():
        write_report_against(earlier | {stage.name: stage}, stage.results, config, preview)
    tell(config, stage, report)


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    print(f"{found['contaminated']:,} of {found['rows']:,} rows are near a row of the second set", end=", ")
    print(f"{found['reference_matched']:,} of whose {found['reference_rows']:,} rows are near one of these")
    print(
        f"{found['rows']:,} rows: keep {found['kept']:,} and drop {found['dropped']:,}, {found['rejected']:,} rejected"
    )
    for line in found["thresholds"]:
        print(f"  at {line['threshold']:g}: {line['contaminated']:,} rows, {line['pairs']:,} pairs")
    tell_not_exported(found["not_exported"])
    print(f"-> {stage.shown} (contaminated.parquet, keep.txt, drop.txt, report.html)")


class Matches(NamedTuple):
    """Of each row of a set its nearest one of the second set, (n,) int64, -1 of none; their similarity, (n,) float64;
    and how many it is near, (n,) int64."""

    nearest: np.ndarray
    similarity: np.ndarray
    count: np.ndarray

    @property
    def rows(self):
        """Those that are near any, (r,) int64."""
        return np.nonzero(self.count)[0]


def find_matches(pair_blocks, n_before, n_rows):
    """`Matches` of the rows from `n_before` on, of the pairs with those before, (p,) PAIR.

    Of equally near ones the first counts. Memory: 24 bytes a row, and a block.
    """
    found = Matches(np.full(n_rows, -1, dtype=np.int64), np.zeros(n_rows), np.zeros(n_rows, dtype=np.int64))
    for pairs in pair_blocks:
        reference, row, similarity = pairs["row_a"], pairs["row_b"] - n_before, pairs["similarity"]
        found.count[:] += np.bincount(row, minlength=n_rows)
        order = np.lexsort((reference, -similarity, row))
        row, first = np.unique(row[order], return_index=True)
        reference, similarity = reference[order][first], similarity[order][first]
        nearer = similarity > found.similarity[row]  # blocks come in order of the reference's rows
        found.nearest[row[nearer]], found.similarity[row[nearer]] = reference[nearer], similarity[nearer]
    return found


def write_contaminated(path, matches, n_before, ids):
    """contaminated.parquet: a line for each row that is near any. ids: of both sets, the second one's first."""
    rows = matches.rows
    with atomic(path) as temporary, pq.ParquetWriter(temporary, _PARQUET) as writer:
        for start in range(0, len(rows), _BLOCK_ROWS):
            some = rows[start : start + _BLOCK_ROWS]
            nearest = matches.nearest[some]
            columns = [some, ids.array(n_before + some), ids.array(nearest), matches.similarity[some]]
            arrays = [pa.array(c, type=f.type) for c, f in zip([*columns, matches.count[some]], _PARQUET, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=_PARQUET))


def with_namesakes(drop, repeated, n_before, ids):
    """Which rows to drop, (n,) bool: also those of an id that another dropped row has, for who keeps by it keeps both.

    drop: (n,) bool; repeated: rows that share their id with another.
    """
    rows, names, drop = repeated - n_before, ids.take(repeated), drop.copy()
    dropped = {name for name, is_dropped in zip(names, drop[rows], strict=True) if is_dropped}
    drop[rows] = [name in dropped for name in names]
    return drop

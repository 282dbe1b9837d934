"""Which rows of a set are near any row of a second one, and which of them each is nearest to."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neardup.grouping.export import write_copies
from neardup.grouping.outputs import write_examples, write_id_lists, write_thresholds
from neardup.grouping.report import write_report_against
from neardup.grouping.summary import tell_of_export
from neardup.grouping.thresholds import pair_counts, steps
from neardup.input.ids import BLOCK_ROWS
from neardup.machine.files import atomic
from neardup.machine.npy import read_npy
from neardup.search.pairs import found_pairs, strongest_of_each
from neardup.words import counted, exact

_PARQUET = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.large_string()),
        ("reference", pa.large_string()),
        ("similarity", pa.float64()),
        ("matches", pa.int64()),
    ]
)


def find(stage, earlier, preview, config):
    """Find those rows, and write the files of stage 045 and its report. Returns its results, small JSON values."""
    variance, ids, n_reference = earlier["01_pca_variance"], preview.ids, stage.growth.sets[1]
    rejected, repeated = (read_npy(variance.path(f"{name}_rows.npy")) for name in ("rejected", "repeated"))
    pairs = found_pairs(earlier["04_neighbor_search"], len(ids))
    thresholds = steps(pairs.threshold, config.threshold)
    table = tabulate(pairs, thresholds, n_reference)
    matches = find_matches(pairs.at(config.threshold), n_reference)
    keep, drop = divide(matches, rejected, repeated, ids)
    write_contaminated(stage.path("contaminated.parquet"), matches, ids)
    write_thresholds(stage.path("thresholds.csv"), table)
    write_examples(stage.path("examples.csv"), pairs.blocks(), thresholds, preview)
    write_id_lists(stage.folder, keep, drop, ids, n_reference)
    found = {"threshold": config.threshold, "thresholds": table} | matches.outline(keep, drop)
    own = [replace(shard, start=shard.start - n_reference) for shard in stage.run.own_shards]
    found["not_exported"] = write_copies(stage, own, keep, ids, config)
    stage.note_times()
    write_report_against(earlier | {stage.name: stage}, found, config, preview)
    return found


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    print(f"{found['contaminated']:,} of {found['rows']:,} rows are near a row of the second set", end=", ")
    print(f"{found['reference_matched']:,} of whose {found['reference_rows']:,} rows are near one of these")
    print(
        f"{counted(found['rows'], 'row')}: keep {found['kept']:,} and drop {found['dropped']:,}, "
        f"{found['rejected']:,} rejected"
    )
    for line in found["thresholds"]:
        of_both = f"{counted(line['contaminated'], 'row')}, {counted(line['pairs'], 'pair')}"
        print(f"  at {exact(line['threshold'])}: {of_both}")
    tell_of_export(stage)
    print(f"-> {stage.shown} (contaminated.parquet, keep.txt, drop.txt, report.html)")


class Matches(NamedTuple):
    """Of each row of a set its nearest one of the second set, (n,) int64, -1 of none; their similarity, (n,) float64;
    and how many it is near, (n,) int64. Of each row of the second set whether it is near any, (n_reference,) bool."""

    nearest: np.ndarray
    similarity: np.ndarray
    count: np.ndarray
    matched: np.ndarray

    @property
    def rows(self):
        """Those that are near any, (r,) int64."""
        return np.nonzero(self.count)[0]

    def outline(self, keep, drop):
        """The matches in a few numbers, and the rows kept and dropped; those in neither are rejected."""
        return {
            "rows": len(self.count),
            "contaminated": len(self.rows),
            "kept": int(np.count_nonzero(keep)),
            "dropped": int(np.count_nonzero(drop)),
            "rejected": int(np.count_nonzero(~keep & ~drop)),
            "reference_rows": len(self.matched),
            "reference_matched": int(np.count_nonzero(self.matched)),
        }


def tabulate(pairs, thresholds, n_reference):
    """What each threshold would give: [{column: value}]. pairs: `Found`, at the lowest."""
    nearest = find_matches(pairs, n_reference).similarity
    return [
        {"threshold": threshold, "pairs": count, "contaminated": int(np.count_nonzero(nearest >= threshold))}
        for threshold, count in zip(thresholds, pair_counts(pairs.blocks(), thresholds).tolist(), strict=True)
    ]


def divide(matches, rejected, repeated, ids):
    """Which rows of the set to keep, and which to drop, two (n,) bool: in neither are the rejected ones.

    rejected: rows; repeated: rows that share their id with another; ids: of both sets, the second one's first.
    """
    first = len(matches.matched)
    named = np.setdiff1d(repeated[repeated >= first], rejected, assume_unique=True)
    drop = with_namesakes(matches.count > 0, named, first, ids)
    return ~drop & ~np.isin(np.arange(first, len(ids)), rejected), drop


def find_matches(found, n_reference):
    """`Matches` of the rows of a set with the `n_reference` rows before them. found: `Found`.

    Of equally near ones the first counts. Memory: 24 bytes a row, and a block.
    """
    n_rows = found.n_rows - n_reference
    nearest, count = np.full(n_rows, -1, dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
    matches = Matches(nearest, np.zeros(n_rows), count, np.zeros(n_reference, dtype=bool))
    for pairs in found.blocks():
        reference, row, similarity = pairs["row_a"], pairs["row_b"] - n_reference, pairs["similarity"]
        matches.matched[reference] = True
        matches.count[:] += np.bincount(row, minlength=n_rows)
        row, reference, similarity = strongest_of_each(row, reference, similarity, reference)
        nearer = similarity > matches.similarity[row]  # blocks come in order of the reference's rows
        matches.nearest[row[nearer]], matches.similarity[row[nearer]] = reference[nearer], similarity[nearer]
    return matches


def write_contaminated(path, matches, ids):
    """contaminated.parquet: a line for each row that is near any. ids: of both sets, the second one's first."""
    rows, first = matches.rows, len(matches.matched)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, _PARQUET) as writer:
        for start in range(0, len(rows), BLOCK_ROWS):
            some = rows[start : start + BLOCK_ROWS]
            nearest = matches.nearest[some]
            columns = [some, ids.array(first + some), ids.array(nearest), matches.similarity[some]]
            arrays = [pa.array(c, type=f.type) for c, f in zip([*columns, matches.count[some]], _PARQUET, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=_PARQUET))


def with_namesakes(drop, repeated, first, ids):
    """Which rows to drop, (n,) bool: also those of an id that another dropped row has, for who keeps by it keeps both.

    drop: (n,) bool, of the rows from the first on; repeated: rows that share their id with another.
    """
    rows, names, drop = repeated - first, ids.take(repeated), drop.copy()
    dropped = {name for name, is_dropped in zip(names, drop[rows], strict=True) if is_dropped}
    drop[rows] = [name in dropped for name in names]
    return drop

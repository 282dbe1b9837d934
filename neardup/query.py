"""What a finished run has near a few rows: its own, by their ids, or new vectors.

    python -m neardup.query --ids ID [ID ...] [--lowest SIMILARITY] [settings as of the scripts]
    python -m neardup.query --vectors NEW.npy [--lowest SIMILARITY] [settings]

Exact, as stage 4 is: each row visits the clusters whose border is near enough, where short sketches of all rows are
read, sketches of those that these let through, and vectors of those that the sketches do.
"""

import argparse
import json
from collections import deque
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from config import Config
from neardup import NeardupError
from neardup.grouping.outputs import read_groups
from neardup.input.embeddings import open_shards
from neardup.input.id_table import IdTable, positions
from neardup.input.ids import has_surrogate
from neardup.machine.files import write_beside_others
from neardup.machine.imports import settle
from neardup.machine.mirror import here
from neardup.machine.npy import UNREADABLE, map_array, read_ahead, read_array, read_header, read_npy, read_npz
from neardup.script import command_line, on_this_machine, report_errors
from neardup.search import geometry
from neardup.search.candidates import within
from neardup.search.clusters import cluster_name, data_sets
from neardup.search.pairs import among
from neardup.search.visits import CLUSTER_SHIFT, list_visits
from neardup.stages.runs import LAST, open_finished
from neardup.words import for_terminal, in_words

_AHEAD = 16  # clusters, whose rows are being read
_BLOCK_ROWS = 1024  # that are verified together
_TAILS = 4.2 * geometry.UNIT32  # how far off those of two shortened sketches are


class FinishedRun:
    """A finished run, of which a few rows at a time are asked. Memory: what is near them."""

    def __init__(self, config):
        self.stages, shards = open_finished(config)
        self.rows, self.threshold = open_shards(shards, here_and_there=True), self.stages[LAST].results["threshold"]
        self.ids = IdTable.open(self.stages["01_pca_variance"].folder / "ids.arrow", here_and_there=True)

    def rows_of(self, names):
        """The rows of these ids, in their order, [(id, row)]; of one that is there twice, twice.

        Raises NeardupError where an id has none to compare.
        """
        known = [name for name in names if not has_surrogate(name)]  # half a character is in no id
        wanted, found, start = pa.array(known, pa.large_string()), [], 0
        self.stages["01_pca_variance"].path("ids.arrow")  # hashes it: all of it is read
        for chunk in self.ids.chunks:
            rows = np.nonzero(pc.is_in(chunk, wanted).to_numpy(zero_copy_only=False))[0]
            found += zip(chunk.take(positions(rows)).to_pylist(), (start + rows).tolist(), strict=True)
            start += len(chunk)
        missing = set(names) - {name for name, _ in found}
        if missing:
            raise NeardupError(
                f"no row has the id {sorted(missing)[0]!r}: give ids as they are in keep.txt and drop.txt"
            )
        rejected = set(read_npy(self.stages["01_pca_variance"].path("rejected_rows.npy")).tolist())
        found = [both for both in found if both[1] not in rejected]
        left_out = set(names) - {name for name, _ in found}
        if left_out:
            raise NeardupError(f"the row of id {sorted(left_out)[0]!r} was left out of the run: rejected.csv says why")
        rows_of = {}
        for name, row in found:
            rows_of.setdefault(name, []).append(row)
        return [(name, row) for name in names for row in rows_of[name]]

    def matches(self, vectors, lowest=None):
        """The rows near each of some vectors: [(rows (r,) int64, similarities (r,))].

        Descending, by similarity. vectors: (q, d) of any number type; lowest: similarity, the run's threshold if None.
        """
        lowest = self.threshold if lowest is None else lowest
        reduction, kmeans = self.stages["02_pca_reduce"], self.stages["03_kmeans"]
        model = read_npz(reduction.path("pca.npz"))
        projection = geometry.projection(model["mean_"], model["components_"])
        values, scales, bad = geometry.scaled_rows32(vectors)
        if bad.any():
            raise NeardupError(f"row {np.nonzero(bad)[0][0]} of the vectors has no direction (NaN, infinity or zeros)")
        coordinates, distance = geometry.project(values, scales, *projection)
        sketches = geometry.sketch(coordinates[:, : reduction.results["sketch_dims"]], distance)
        radius, error = geometry.radius(lowest, self.rows.dim), reduction.results["sketch_error"]
        candidates = [[] for _ in sketches]
        visited = visited_clusters(sketches, read_npy(kmeans.path("centroids.npy")), radius, error).items()
        opened = (near_in_short(kmeans, cluster, sketches, some, radius + 2 * error) for cluster, some in visited)
        for arrays, near in looking_ahead(opened, _AHEAD):
            for query, rows in near:
                rows = rows[within(sketches, arrays["vector"], np.full(len(rows), query), rows, radius + 2 * error)]
                candidates[query].append(arrays["row"][rows])
        found = [np.concatenate([np.empty(0, np.int64), *rows]) for rows in candidates]
        return [self._verified(*both, lowest) for both in zip(vectors, found, strict=True)]

    def _verified(self, vector, rows, lowest):
        rows, similarity = np.sort(rows), np.empty(len(rows))
        for start in range(0, len(rows), _BLOCK_ROWS):
            some = self.rows.gather(rows[start : start + _BLOCK_ROWS])
            similarity[start : start + len(some)] = geometry.similarities(some, np.broadcast_to(vector, some.shape))
        near = np.nonzero(similarity >= lowest)[0]
        near = near[np.argsort(-similarity[near], kind="stable")]
        return rows[near], similarity[near]

    @cached_property
    def _groups(self):
        groups = read_groups(here(self.stages[LAST].folder / "merged_clusters.h5"))
        return groups, np.argsort(groups.rows)

    def groups_of(self, rows):
        """The names of the groups of some rows, None of single ones."""
        groups, order = self._groups
        known, places = among(rows, groups.rows[order])
        names = map(groups.name, np.searchsorted(groups.bounds, order[places], side="right") - 1)
        return [next(names) if k else None for k in known.tolist()]


def visited_clusters(sketches, centroids, radius, error):
    """{cluster: which of the sketches come near its border, or lie in it}."""
    exact = centroids.astype(np.float64)
    found = {}
    for query, sketch in enumerate(sketches):
        own = int(np.argmin(np.linalg.norm(exact - sketch, axis=1)))
        packed = list_visits(sketch[None], own, geometry.borders(own, centroids, error), radius)
        for cluster in [own, *(packed >> CLUSTER_SHIFT).tolist()]:
            found.setdefault(cluster, []).append(query)
    return found


def looking_ahead(items, count):
    """Yield what an iterator has, each when so many others have come."""
    held = deque()
    for item in items:
        held.append(item)
        if len(held) > count:
            yield held.popleft()
    yield from held


def near_in_short(kmeans, cluster, sketches, queries, reach):
    """Which rows of a cluster have short sketches within reach of those of the queries: [(query, places)].

    And its arrays; the sketches at these places have been asked for, and are read while other clusters are looked at.
    """
    path = here(kmeans.folder / cluster_name(cluster))
    row, vector, short = data_sets(path, "short")
    sets = {"row": row, "vector": vector}
    arrays = {n: map_array(path, s.dtype, s.offset, s.shape, here_and_there=True) for n, s in sets.items()}
    stored = read_array(path, short.dtype, short.offset, short.shape)
    mine, every = geometry.shorten(sketches[queries], stored.shape[1] - 1), np.arange(len(stored))
    reach += _TAILS
    near = [
        (query, every[within(mine, stored, np.full(len(every), place), every, reach)])
        for place, query in enumerate(queries)
    ]
    needed = np.unique(np.concatenate([rows for _, rows in near]))
    if len(needed):
        read_ahead(path, vector.offset, vector.dtype.itemsize * vector.shape[1], needed)
    return arrays, near


def read_vectors(path, dim):
    """The vectors of a .npy file, (q, d). Raises NeardupError where it holds others."""
    try:
        read_header(Path(path))  # np.load also reads other kinds of files
        vectors = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise NeardupError(f"{path} is no .npy file of vectors ({error}): write it with numpy.save") from error
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype.kind not in "fiu":
        raise NeardupError(
            f"{path} holds {vectors.dtype} of shape {vectors.shape}, not vectors of {dim} numbers, as the run's: make "
            "them with the same model"
        )
    return vectors


def answer(run, given):
    """What is near each row that was asked for, as small JSON values; and the groups that the threshold joins it to."""
    if given.ids:
        named = run.rows_of(given.ids)
        queries, vectors = [name for name, _ in named], run.rows.gather([row for _, row in named])
        themselves = [row for _, row in named]
    else:
        vectors = read_vectors(given.vectors, run.rows.dim)
        queries, themselves = list(range(len(vectors))), [-1] * len(vectors)
    found = []
    for query, itself, (rows, similarity) in zip(queries, themselves, run.matches(vectors, given.lowest), strict=True):
        rows, similarity = rows[rows != itself], similarity[rows != itself]
        named = zip(run.ids.take(rows), similarity.tolist(), run.groups_of(rows), strict=True)
        matches = [{"id": name, "similarity": s, "group": group} for name, s, group in named]
        groups = {m["group"] for m in matches if m["similarity"] >= run.threshold} - {None}
        found.append({"query": query, "groups": sorted(groups), "matches": matches})
    return found


def similarity(text):
    """A similarity on the command line."""
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no similarity: give one above 0 to 1")


def main():
    """Read the command line, and print what is near."""
    parser = argparse.ArgumentParser(
        prog="python -m neardup.query",
        description=__doc__.split("\n\n")[0],
        epilog="and the settings of the run, as of the scripts: faiss_045_merge.py --help lists them",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ids", nargs="+", help="rows of the run; --ids=-ID where one begins with a hyphen")
    what.add_argument("--vectors", help="a .npy file of new vectors (of the setting of that name: NEARDUP_VECTORS)")
    helped = "of what is near, above 0 to 1; by default the threshold that groups were made at"
    parser.add_argument("--lowest", type=similarity, metavar="SIMILARITY", help=helped)
    given, settings = parser.parse_known_args()
    with report_errors("neardup.query"):
        write_beside_others()
        settle()
        config = on_this_machine(Config(_cli_settings_source=command_line(parser.prog, settings)))
        if config.against_dir is not None:
            raise NeardupError(
                "a run against a second set can't be asked: set against_dir to None, and work_dir to a run"
            )
        run = FinishedRun(config)
        for found in answer(run, given):
            if config.json_output:
                print(json.dumps(found))
                continue
            is_pair = any(match["similarity"] >= run.threshold for match in found["matches"])
            joins = ", ".join(found["groups"]) or ("a new one" if is_pair else "none")
            print(f"{as_json(found['query'])}: {len(found['matches'])} near; group: {joins}")
            for match in found["matches"]:
                shown = in_words(match["similarity"], 6)
                print(f"  {shown}  {as_json(match['id'])}  {match['group'] or ''}".rstrip())


def as_json(value):
    """An id, or the number of a vector, as it is shown."""
    return for_terminal(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""Stage 1 of 5: check every row and id, and find the PCA components that keep `target_variance`.

One pass over the shards: every row is checked, and of `basis_rows` of them Dask sums the values and their products
(Gram matrix) a block at a time. Of shards that came to a finished run the rows are checked; the components stay. Those
that are held against a second set are sketched meanwhile, with its components, for stage 2: they are read just once.
"""

from contextlib import contextmanager
from functools import partial, reduce
from itertools import pairwise

import numpy as np

from neardup import plots
from neardup.input.embeddings import open_shards, piece_groups, total_rows
from neardup.input.freshness import content
from neardup.input.id_table import IdTable, repeated_rows, write_table
from neardup.input.ids import expected_bytes, sources
from neardup.machine import budget, engine
from neardup.machine.checksums import Digest
from neardup.machine.files import atomic, npy_rows, read_json, write_json, write_npy, write_npz
from neardup.machine.npy import read_npy, read_npz
from neardup.script import main, tell
from neardup.search import geometry
from neardup.search.moments import Moments, component_count, components_of, mean_and_covariance, spectrum
from neardup.stages.runs import begin
from neardup.stages.set_aside import REJECTED, keep_rejected, keep_repeated, rejected_before, rejected_of
from neardup.stages.unread import tell_of_unread
from neardup.words import counted, percent

_BLOCK_ROWS = 4096  # rows of a block at most: a d x d float64 sum a block costs little beside its product
_ORIGIN_ROWS = 256  # whose mean is taken off all rows before they are multiplied, so that little is lost


def run(config):
    """Write work/01_pca_variance, or find it finished."""
    stage, shards, _ = begin(config, "01_pca_variance")
    tell_of_unread(config, shards)
    if not stage.finished:
        stage.needs(disk_needed(shards) + stage.against * 4 * (config.sketch_dims + 1) * total_rows(shards))
        repeated, found = read_all(stage, shards, config)
        keep_repeated(stage, shards, repeated, config)
        rejected = [read_npy(stage.part("rejected", number)) for number in range(len(found))]
        rejected = np.sort(np.concatenate([rejected_before(stage), *rejected]), order="row")
        keep_rejected(stage, shards, rejected, config)
        if stage.growth:
            components = keep_components(stage)
        else:
            moments = sum_up(stage.part("moments", number) for number in range(len(found)))
            count = sum(part["counted"] for part in found)
            components = find_components(stage, moments, count, config.target_variance)
        stage = stage.finish(
            {
                "rows": total_rows(shards),
                "rejected": len(rejected),
                "dim": shards[0].dim,
                "shards": len(shards),
                "ids": sources(shards),
                **components,
                "content": content_of(stage, shards, [digest for part in found for digest in part["digests"]]),
            }
        )
    tell(config, stage, report)


def disk_needed(shards):
    """Bytes that this stage writes, about: the ids, and a d x d matrix a task."""
    return expected_bytes(shards) + 8 * shards[0].dim ** 2 * (len(piece_groups(open_shards(shards))) + 4)


def read_all(stage, shards, config):
    """Gather all ids into ids.arrow, check the rows and sum up some of them; what an interrupted run finished stays.

    Of a run that grows just the new rows, which are checked and not summed up; of two sets they are sketched.
    Returns the rows whose id another row has too, (r,) int64, and of each task the digests of its pieces and how many
    rows it summed up. Memory: a block, and 3 d^2 float64, a worker; 24 bytes a row.
    """
    rows = open_shards(shards)
    origin = stage.once(partial(common_origin, rows), "origin")
    if not stage.growth:
        engine.preload("matplotlib.figure")
    block_rows = budget.block_rows(stage.memory, config.n_workers, 12 * rows.dim, _BLOCK_ROWS)
    groups = piece_groups(rows, stage.growth and stage.growth.fresh)
    chosen = sample_of(len(rows), 0 if stage.growth else config.basis_rows)
    basis = {"origin": origin, "chosen": chosen, "projection": second_projection(stage, config)}
    task = partial(read_pieces, stage, rows, **basis, block_rows=block_rows)
    read = IdTable.open(stage.previous.path("ids.arrow")) if stage.growth else None
    ids_task = stage.once, partial(write_ids, stage, shards, read), "repeated"
    tasks = [ids_task, *((task, number, some) for number, some in enumerate(groups))]
    repeated, *found = engine.compute(tasks, config.n_workers, "01 moments")
    return repeated, found


def sum_up(paths):
    """Arrays from files, added up in their order."""
    return reduce(np.add, map(read_npy, paths))


def sample_of(n_rows, count):
    """Row numbers, (min(n_rows, count),) int64, ascending, each once: a random one of each of so many equal
    parts of all rows.

    The same each time. Equal steps could keep to one kind of rows where kinds follow each other in turn.
    """
    if n_rows <= count:
        return np.arange(n_rows)
    bounds = np.arange(count + 1, dtype=np.uint64) * np.uint64(n_rows) // np.uint64(max(count, 1))
    bounds = bounds.astype(np.int64)  # of whole parts: no row is in two
    return np.random.default_rng(0).integers(bounds[:-1], bounds[1:])


def common_origin(rows):
    """The mean of some rows of unit length from all over the input, (d,) float32."""
    some = np.unique(np.linspace(0, len(rows) - 1, _ORIGIN_ROWS).astype(np.int64))
    unit, bad = geometry.unit_rows(rows.gather(some))
    return (unit.sum(axis=0) / max(1, np.count_nonzero(~bad))).astype(np.float32)


def write_ids(stage, shards, read):
    """Write ids.arrow. Returns the rows whose id another row has too, (r,) int64.

    read: the `IdTable` of the finished run that grows, or of the second set; else None.
    """
    with atomic(stage.path("ids.arrow")) as temporary:
        hashes = write_table(temporary, shards, {} if read is None else known_ids(read, stage.growth))
    ids, sets = IdTable.open(stage.path("ids.arrow")), stage.growth.sets if stage.growth else [0, len(hashes)]
    repeated = [repeated_rows(hashes[low:high], ids, low) for low, high in pairwise(sets)]
    return np.concatenate(repeated).astype(np.int64)


def known_ids(read, growth):
    """{number of a shard: Arrow arrays of its ids} of the shards that were read before. read: as in `write_ids`."""
    ranges = zip(growth.of.tolist(), growth.before[:-1].tolist(), growth.before[1:].tolist(), strict=True)
    return {today: read.blocks(low, high) for today, low, high in ranges if today >= 0}


def read_pieces(stage, rows, number, some, *, origin, chosen, projection, block_rows):
    """Check all rows of some pieces, and write which are REJECTED and the `Moments` of those that count.

    origin: what is taken off rows, (d,) float32; chosen: which rows count, ascending; projection: of
    `second_projection`. Returns the digests of the pieces, and how many rows count.
    """
    path = stage.part("found", number, suffix=".json")
    if path.exists():
        return read_json(path)
    moments, rejected, digests = Moments(origin, block_rows), [np.empty(0, REJECTED)], []
    for piece in some:
        digest = Digest()
        with sketches_of(stage, piece, projection) as write_sketches:
            for low, high in piece.blocks(block_rows):
                stored = rows.read(low, high)
                digest.update(stored)
                values, scales, bad = geometry.scaled_rows32(stored)
                rejected.append(rejected_of(stored, bad, low))
                here = chosen[slice(*np.searchsorted(chosen, (low, high)))] - low
                moments.add(values, scales, here[~bad[here]])
                write_sketches(values, scales)
        digests.append(digest.hexdigest())
    if not stage.growth:
        write_npy(stage.part("moments", number), moments.sums())
    write_npy(stage.part("rejected", number), np.concatenate(rejected))
    write_json(path, {"digests": digests, "counted": moments.count})
    return read_json(path)


def second_projection(stage, config):
    """The `Projection` onto the coordinates of a sketch, as a second set has it; None where there is none."""
    if not stage.against:
        return None
    moments = read_npz(stage.previous.path("moments.npz"))
    return geometry.projection(moments["mean"], moments["components"][: config.sketch_dims])


@contextmanager
def sketches_of(stage, piece, projection):
    """Yield a function that writes the sketches of the next rows of a piece, which appear when all are there.

    It takes what `geometry.scaled_rows32` returns. Without a projection nothing is written.
    """
    if projection is None:
        yield lambda values, scales: None
        return
    shape = piece.stop - piece.start, len(projection.offset) + 1
    with npy_rows(stage.path(f"sketch_{piece.name}.npy"), shape) as write:
        yield lambda values, scales: write(geometry.sketch(*geometry.project(values, scales, *projection)))


def content_of(stage, shards, digests):
    """As `freshness.content`; what was read before isn't read again. digests: of the pieces that were read."""
    if not stage.growth:
        return content(shards, digests)
    fresh = content([s for s, is_new in zip(shards, stage.growth.fresh, strict=True) if is_new], digests)
    fresh, before = iter(fresh), stage.previous.results["content"]
    then = {today: number for number, today in enumerate(stage.growth.of.tolist())}
    return [before[then[number]] if number in then else next(fresh) for number in range(len(shards))]


def keep_components(stage):
    """Take the moments and the component count of the finished run. Returns what it said of them."""
    stage.take_over(["moments.npz", "n_components.json", "scree.png"])
    found = {name: stage.previous.results[name] for name in ("n_components", "variance_kept", "basis_rows")}
    return found | {"basis_kept": True}


def find_components(stage, moments, count, target_variance):
    """Write moments and component count of `count` rows. moments: of `sum_up`. Returns what to say of them."""
    mean, covariance = mean_and_covariance(read_npy(stage.part("origin")), moments, count)
    variances, axes = spectrum(covariance)
    n_components, kept = component_count(variances, target_variance)
    arrays = {"mean": mean, "covariance": covariance, "variances": variances}
    write_npz(stage.path("moments.npz"), count=count, **arrays, components=components_of(axes[:n_components]))
    write_json(stage.path("n_components.json"), {"n_components": n_components, "variance_kept": kept})
    plots.save_png(stage.path("scree.png"), plots.scree(variances, n_components, target_variance))
    return {"n_components": n_components, "variance_kept": kept, "basis_rows": count, "basis_kept": False}


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    print(
        f"{counted(found['rows'], 'row')} of {counted(found['dim'], 'value')} in {counted(found['shards'], 'shard')}, "
        f"{found['rejected']:,} rejected; ids: {found['ids']}"
    )
    all_of_them = not found["basis_kept"] and found["basis_rows"] == found["rows"] - found["rejected"]
    of = "" if all_of_them else f" of the {counted(found['basis_rows'], 'row')} they were made of"
    keep = f"{counted(found['n_components'], 'component')} {'keeps' if found['n_components'] == 1 else 'keep'}"
    print(f"{keep} {percent(found['variance_kept'], 2)} of the variance{of}")
    print(f"-> {stage.shown} (scree.png shows the spectrum)")


if __name__ == "__main__":
    main(run, __doc__)

"""Stage 2 of 5: project every row onto the principal components, and onto the sketch that is searched.

The basis comes from stage 1, so the input is read once more, not twice. Of shards that came to a finished run the rows
are projected onto the basis that is there; those that are held against a second set were sketched in stage 1.
"""

from functools import partial
from importlib.metadata import version

import numpy as np

from neardup.input.embeddings import open_shards, pieces, shard_starts, total_rows
from neardup.input.freshness import digests_of_rows
from neardup.machine import budget, engine
from neardup.machine.checksums import Digest
from neardup.machine.files import damaged, npy_rows, read_json, write_json, write_npz
from neardup.machine.npy import read_npz
from neardup.pickles import write_object
from neardup.script import main, tell
from neardup.search import geometry
from neardup.stages.runs import begin
from neardup.words import counted, percent

# state of a scikit-learn PCA before it is fitted, written out for importing that takes 0.7 s; a test compares the two
KNOWN_PCA = {
    "n_components": None,
    "copy": True,
    "whiten": False,
    "svd_solver": "auto",
    "tol": 0.0,
    "iterated_power": "auto",
    "n_oversamples": 10,
    "power_iteration_normalizer": "auto",
    "random_state": None,
    "_sklearn_version": "1.9.1",
}
_MUCH_LESS = 0.02  # of the variance: new rows then take more candidates
_BLOCK_ROWS = 4096  # rows projected together, at most: 16 MB at 1,024 values, which caches hold
_CACHED = 1 << 30  # bytes of reduced vectors that the system's cache keeps for the search; more would push out shards
_ROUNDING = 1e-3  # far more than that of a mean of rows of length 1


def run(config):
    """Write work/02_pca_reduce, or find it finished."""
    stage, shards, earlier = begin(config, "02_pca_reduce")
    if not stage.finished:
        moments, n_components = read_moments(earlier["01_pca_variance"], shards[0].dim)
        model = moments["mean"], moments["components"]
        basis = earlier["01_pca_variance"].files["moments.npz"]
        if stage.growth and stage.previous.results["basis"] != basis:
            stage.growth = None
        values = min(config.sketch_dims, n_components) + 1 + (0 if stage.against else n_components)
        stage.needs(4 * total_rows(shards) * values)
        sketch_dims = project_all(stage, shards, model, earlier["01_pca_variance"], config)
        if stage.growth:
            stage.take_over(["pca.npz", "pca.pkl"])
        else:
            save_model(stage, moments)
        stage = stage.finish(
            {
                "rows": total_rows(shards),
                "n_components": n_components,
                "sketch_dims": sketch_dims,
                "sketch_error": geometry.sketch_error(shards[0].dim, sketch_dims, np.linalg.norm(moments["mean"])),
                "basis": basis,
                "variance_kept": earlier["01_pca_variance"].results["variance_kept"],
                "since": since_basis(stage, len(shards)),
            }
        )
    tell(config, stage, report)


def read_moments(variance, dim):
    """Mean (d,), covariance (d, d), variances (d,), components (k, d) and count of stage 1, in a dict, and k."""
    path = variance.path("n_components.json")
    n_components = read_json(path).get("n_components")
    if type(n_components) is not int or not 1 <= n_components <= dim:
        raise damaged(path, f"{n_components!r} components of {dim}")
    moments = read_npz(variance.path("moments.npz"))
    expected = {"mean": (dim,), "covariance": (dim, dim), "variances": (dim,), "components": (n_components, dim)}
    shapes = {name: moments[name].shape for name in expected}
    if shapes != expected:
        raise damaged(variance.path("moments.npz"), f"shapes {shapes}")
    length = np.linalg.norm(moments["mean"])
    if not length <= 1 + _ROUNDING:  # all bounds rest on that
        raise damaged(variance.path("moments.npz"), f"a mean of length {length:.3g}, of rows of length 1")
    return moments, n_components


def save_model(stage, moments):
    """The model as a scikit-learn PCA in pca.pkl, for users, and the same numbers in pca.npz."""
    count, variances, components = int(moments["count"]), moments["variances"], moments["components"]
    k, d = components.shape
    numbers = {
        "components_": components,
        "mean_": moments["mean"],
        "explained_variance_": variances[:k],
        "explained_variance_ratio_": variances[:k] / (variances.sum() or 1),
        "singular_values_": np.sqrt(variances[:k] * max(count - 1, 1)),
        "noise_variance_": variances[k:].mean() if k < d else 0.0,
    }
    write_npz(stage.path("pca.npz"), n_samples_=count, **numbers)
    fitted = {"n_components": k, **numbers, "n_components_": k, "n_samples_": count, "n_features_in_": d}
    write_object(stage.path("pca.pkl"), "sklearn.decomposition._pca", "PCA", unfitted_pca() | fitted)


def unfitted_pca():
    """The state of a scikit-learn PCA, {attribute: value}: known, or asked for where another version is installed."""
    if version("scikit-learn") == KNOWN_PCA["_sklearn_version"]:
        return KNOWN_PCA
    from sklearn.decomposition import PCA

    return PCA().__getstate__()


def project_all(stage, shards, model, variance, config):
    """reduced_00000.npy, sketch_00000.npy, … , two files a piece; those that an interrupted run finished stay.

    model: (mean, components), float64; variance: stage 1, which has the sketches of what is held against a second set.
    Returns the coordinates of a sketch.
    """
    dim, n_components = shards[0].dim, len(model[1])
    bytes_per_row = 8 * dim + 12 * n_components
    block_rows = budget.block_rows(stage.memory, config.n_workers, bytes_per_row, _BLOCK_ROWS)
    sketch_dims = min(config.sketch_dims, n_components)
    some, kept = stage.growth.pieces() if stage.growth else (pieces(shard_starts(shards)), [])
    kinds = ("sketch",) if stage.against else ("reduced", "sketch")
    if kept:
        names = [(f"{kind}_{piece.name}.npy", f"{kind}_{then}.npy") for piece, then in kept for kind in kinds]
        stage.take_over(*zip(*names, strict=True))
    if stage.against:  # its search projects again the few rows of which it needs all coordinates
        stage.take_over([f"sketch_{piece.name}.npy" for piece in some], of=variance)
        return sketch_dims
    cached = 4 * n_components * sum(piece.stop - piece.start for piece in some) <= _CACHED
    how = {"projection": geometry.projection(*model), "sketch_dims": sketch_dims, "cached": cached}
    task = partial(project_piece, stage, open_shards(shards), **how, block_rows=block_rows)
    engine.run(task, [(piece,) for piece in some], config.n_workers, "02 project")
    found = [read_json(stage.part("digest", piece.name, suffix=".json")) for piece in some]
    stage.files |= {f"reduced_{p.name}.npy": f["reduced"] for p, f in zip(some, found, strict=True)}  # not read again
    check_rows(stage, [f["rows"] for f in found])
    return sketch_dims


def check_rows(stage, digests):
    """Raises NeardupError where rows aren't those that stage 1 read. digests: of the pieces that were read now."""
    fresh = np.nonzero(stage.growth.fresh)[0] if stage.growth else range(len(stage.run.shards))
    found = digests_of_rows([stage.run.shards[number] for number in fresh], digests)
    changed = [n for n, rows in zip(fresh, found, strict=True) if stage.run.content[n][0] != rows]
    if changed:
        stage.refuse_input(stage.run.names(changed))


def project_piece(stage, rows, piece, *, projection, sketch_dims, cached, block_rows):
    """Write the reduced vectors and the sketches of a shard, or of a part of it. Memory: that of one block.

    projection: a `geometry.Projection`; cached: whether the system's cache keeps the reduced vectors.
    """
    done, n_rows = stage.path(f"sketch_{piece.name}.npy"), piece.stop - piece.start
    if done.exists():
        return
    digest, read, shape = Digest(), Digest(), (n_rows, len(projection.offset))
    with (
        npy_rows(done, (n_rows, sketch_dims + 1)) as write_sketches,
        npy_rows(stage.path(f"reduced_{piece.name}.npy"), shape, digest=digest, cached=cached) as write_reduced,
    ):
        squares = np.zeros(3)
        for start, stop in piece.blocks(block_rows):
            stored = rows.read(start, stop)
            read.update(stored)
            values, scales, bad = geometry.scaled_rows32(stored)
            reduced, distance = geometry.project(values, scales, *projection)
            write_sketches(geometry.sketch(reduced[:, :sketch_dims], distance))
            write_reduced(reduced)
            if stage.growth:
                kept = np.vecdot(reduced, reduced)
                squares += np.column_stack([np.ones(len(kept)), kept, distance])[~bad].sum(axis=0)
        found = {"reduced": digest.hexdigest(), "rows": read.hexdigest(), "squares": squares.tolist()}
        write_json(stage.part("digest", piece.name, suffix=".json"), found)


def since_basis(stage, n_shards):
    """How well the basis fits the rows that came after it was made and are still there, rejected ones left out: their
    number, and their sums of squares about its mean, of the reduced vectors and in all; and these three by shard."""
    of_shards = np.zeros((n_shards, 3))
    if stage.growth and not stage.against:
        there = stage.growth.of >= 0
        of_shards[stage.growth.of[there]] = np.array(stage.previous.results["since"]["of_shards"])[there]
        for piece in stage.growth.pieces()[0]:
            of_shards[piece.file] += read_json(stage.part("digest", piece.name, suffix=".json"))["squares"]
    rows, kept, squares = of_shards.sum(axis=0).tolist()
    return {"rows": int(rows), "kept": kept, "squares": squares, "of_shards": of_shards.tolist()}


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    print(
        f"{counted(found['rows'], 'row')} reduced to {counted(found['n_components'], 'component')}, "
        f"sketched in {found['sketch_dims']} + 1"
    )
    since = found["since"]
    if since["rows"]:
        share = since["kept"] / (since["squares"] or 1)
        came, made_of = percent(share, 2), percent(found["variance_kept"], 2)
        print(f"of the {counted(since['rows'], 'row')} that came since, they keep {came} of the variance", end=", ")
        print(f"of those they were made of {made_of}")
        if share < found["variance_kept"] - _MUCH_LESS:
            print(f"they don't fit any more: remove {stage.shown_beside('01_pca_variance')}, and run all scripts again")
    what = "sketch_*.npy" if "against" in stage.key["settings"] else "reduced_*.npy"
    print(f"-> {stage.shown} ({what}, and pca.pkl: a scikit-learn PCA of unit rows)")


if __name__ == "__main__":
    main(run, __doc__)

"""Stage 2 of 5: project every row onto the principal components, and onto the sketch that is searched.

The basis comes from stage 1's moments, so the input is read once more, not twice.
"""

import pickle
from functools import partial

import numpy as np

from neardup import engine, geometry
from neardup.artifacts import atomic, begin, npy_rows, read_json, write_npz
from neardup.embeddings import open_shards
from neardup.script import main


def run(config):
    """Write work/02_pca_reduce, or find it finished."""
    stage, shards, earlier = begin(config, "02_pca_reduce")
    if not stage.finished:
        variance = earlier["01_pca_variance"]
        n_components = read_json(variance.path("n_components.json"))["n_components"]
        moments = np.load(variance.path("moments.npz"))
        components, variances = principal_axes(moments["covariance"], n_components)
        save_model(stage, components, variances, moments)
        sketch_dims = min(config.sketch_dims, n_components)
        project_shards(stage, shards, (moments["mean"], components, sketch_dims), config)
        stage = stage.finish(
            {"rows": int(shards[-1].start + shards[-1].rows), "n_components": n_components, "sketch_dims": sketch_dims}
        )
    report(stage)


def principal_axes(covariance, n_components):
    """The first components, (k, d) float64 orthonormal rows, and all variances, (d,) float64 descending.

    Each component's largest entry is positive, as scikit-learn's `svd_flip` has it, so the signs are always the same.
    """
    variances, vectors = np.linalg.eigh(covariance)
    components = vectors[:, ::-1].T[:n_components].copy()
    largest = np.argmax(np.abs(components), axis=1)
    components *= np.sign(components[np.arange(n_components), largest])[:, None]
    dim = components.shape[1]
    deviation = np.linalg.norm(components @ components.T - np.eye(n_components), 2)
    assert deviation <= dim * 2.0**-50, "the error bounds of the sketch rest on this"
    return components, np.maximum(variances[::-1], 0)


def save_model(stage, components, variances, moments):
    """The model as a scikit-learn PCA in pca.pkl, for users, and the same numbers in pca.npz."""
    from sklearn.decomposition import PCA

    k, d = components.shape
    count, total = int(moments["count"]), variances.sum()
    numbers = {
        "components_": components,
        "mean_": moments["mean"],
        "explained_variance_": variances[:k],
        "explained_variance_ratio_": variances[:k] / (total or 1),
        "singular_values_": np.sqrt(variances[:k] * max(count - 1, 1)),
        "noise_variance_": variances[k:].mean() if k < d else 0.0,
    }
    write_npz(stage.path("pca.npz"), n_samples_=count, **numbers)
    model = PCA(n_components=k)
    for name, value in {**numbers, "n_components_": k, "n_samples_": count, "n_features_in_": d}.items():
        setattr(model, name, value)
    with atomic(stage.path("pca.pkl")) as temporary, temporary.open("wb") as file:
        pickle.dump(model, file, protocol=4)


def project_shards(stage, shards, projection, config):
    """reduced_00000.npy, sketch_00000.npy, … , a pair a shard; those that an interrupted run finished stay."""
    dim, n_components = shards[0].dim, len(projection[1])
    block_rows = engine.block_rows(config.memory_limit, config.n_workers, 40 * dim + 8 * n_components)
    task = partial(project_shard, stage.folder, open_shards(shards), projection, block_rows)
    engine.run(task, enumerate(shards), config.n_workers, "02 project")


def project_shard(folder, rows, projection, block_rows, number, shard):
    """Write the reduced vectors and the sketches of one shard. Memory: that of one block."""
    done = folder / f"sketch_{number:05d}.npy"
    if done.exists():
        return
    mean, components, sketch_dims = projection
    with (
        npy_rows(done, (shard.rows, sketch_dims + 1)) as write_sketches,
        npy_rows(folder / f"reduced_{number:05d}.npy", (shard.rows, len(components))) as write_reduced,
    ):
        for start in range(shard.start, shard.start + shard.rows, block_rows):
            stop = min(start + block_rows, shard.start + shard.rows)
            unit, _ = geometry.unit_rows(rows.read(start, stop))
            write_sketches(geometry.sketch(unit, mean, components[:sketch_dims]))
            write_reduced(reduce_rows(unit.astype(np.float32), mean, components))


def reduce_rows(unit, mean, components):
    """PCA coordinates (x - mean) components^T of unit rows, within `geometry.projection_error` of the exact ones.

    unit: (n, d) float32. Returns (n, k) float32.
    """
    offset = (components @ mean).astype(np.float32)
    return unit @ components.T.astype(np.float32) - offset


def report(stage):
    """Say what was found and where it is."""
    found = stage.results
    print(
        f"{found['rows']:,} rows reduced to {found['n_components']} components, sketched in {found['sketch_dims']} + 1"
    )
    print(f"-> {stage.folder} (reduced_*.npy, and pca.pkl: a scikit-learn PCA of unit rows)")


if __name__ == "__main__":
    main(run, __doc__)

"""Stage 2: reduced rows are the projection of unit rows, and the model is a PCA that a user can work with."""

import json
import pickle

import numpy as np
import pytest
from conftest import EXAMPLE, SCRIPTS, covariance_error, lay_out, load_npz, run_stages, unit, value_error
from sklearn.decomposition import PCA

import faiss_02_pca_reduce

CUTS = [1, 120, 120, 200]


def stages_1_and_2(folder, rows, cuts=CUTS, **settings):
    """Run them. Returns the work folder."""
    run_stages(lay_out(folder / "data", rows, cuts), folder / "work", scripts=SCRIPTS[:2], **settings)
    return folder / "work"


def make_rows(n=300, dim=12, seed=0):
    """Rows of many lengths, with a common direction, whose principal variances lie well apart."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, dim)) * 0.75 ** np.arange(dim) + 0.2
    return (rows * 10 ** rng.uniform(-2, 2, size=(n, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Work folder of 300 rows in five shards, one of them empty."""
    return stages_1_and_2(tmp_path_factory.mktemp("reduced"), make_rows(), target_variance=0.9)


def load_model(work):
    return pickle.loads((work / "02_pca_reduce" / "pca.pkl").read_bytes())


def load_reduced(work):
    return [np.load(path) for path in sorted((work / "02_pca_reduce").glob("reduced_*.npy"))]


def n_components(work):
    return json.loads((work / "01_pca_variance" / "n_components.json").read_text())["n_components"]


def test_a_file_a_shard(reduced):
    names = [path.name for path in sorted((reduced / "02_pca_reduce").glob("reduced_*.npy"))]
    assert names == [f"reduced_{s:05d}.npy" for s in range(5)]
    files = load_reduced(reduced)
    assert [f.shape for f in files] == [(rows, n_components(reduced)) for rows in (1, 119, 0, 80, 100)]
    assert {f.dtype for f in files} == {np.dtype("<f4")}


def projection_error(dim):
    """Greatest error of a coordinate of a row, which like an axis is of unit length, in float32 products.

    With u = 2^-24: the row's values' errors; u for rounding the axis, d u for the dot product, u for the offset (mean
    times axis), 2 u for taking it off, as the result is at most 2; 1 u for all that is smaller.
    """
    return value_error(dim) + (dim + 5) * 2.0**-24


def check_projection(work, rows):
    """Every coordinate, in shard order, against float64."""
    model = load_npz(work / "02_pca_reduce" / "pca.npz")
    exact = (unit(rows) - model["mean_"]) @ model["components_"].T
    found = np.concatenate(load_reduced(work))
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= projection_error(rows.shape[1])


def test_reduced_rows_are_projections(reduced):
    check_projection(reduced, make_rows())


def test_reduced_rows_of_the_example_are_projections(example):
    check_projection(example, np.concatenate([np.load(EXAMPLE / f"demo_{s}.npy") for s in range(3)]))


@pytest.mark.parametrize("shape", [(7, 40), (1, 5)], ids=str)
def test_reduced_rows_where_there_are_fewer_rows_than_values(tmp_path, shape):
    rows = np.random.default_rng(0).normal(size=shape)
    work = stages_1_and_2(tmp_path, rows, cuts=[1], target_variance=1.0)
    assert n_components(work) == max(1, shape[0] - 1)
    check_projection(work, rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_reduced_rows_of_other_floats_are_projections(tmp_path, dtype):
    rows = make_rows(n=100).astype(dtype)
    check_projection(stages_1_and_2(tmp_path, rows, cuts=[50]), rows)


@pytest.mark.parametrize("target", [0.3, 0.8, 0.99, 1.0])
def test_as_many_components_as_stage_1_says(tmp_path, target):
    work = stages_1_and_2(tmp_path, make_rows(), target_variance=target)
    k = n_components(work)
    assert {file.shape[1] for file in load_reduced(work)} == {k}
    assert load_npz(work / "02_pca_reduce" / "pca.npz")["components_"].shape == (k, 12)
    assert load_model(work).n_components_ == k


def test_axes_are_orthonormal(example):
    axes = load_npz(example / "02_pca_reduce" / "pca.npz")["components_"]
    # to d 2^-50, on which the error bounds of the sketch rest
    assert np.abs(axes @ axes.T - np.eye(len(axes))).max() <= axes.shape[1] * 2.0**-50


def test_both_files_hold_the_same_model(example):
    model, numbers = load_model(example), load_npz(example / "02_pca_reduce" / "pca.npz")
    assert type(model) is PCA
    assert {"components_", "mean_", "explained_variance_", "explained_variance_ratio_"} <= set(numbers)
    for name in numbers:
        assert np.array_equal(getattr(model, name), numbers[name]), name
    moments = load_npz(example / "01_pca_variance" / "moments.npz")
    assert np.array_equal(numbers["mean_"], moments["mean"])
    assert model.n_samples_ == 3054
    assert model.n_features_in_ == 384


def test_the_pickle_is_of_a_model_as_scikit_learn_makes_it(example, monkeypatch):
    """Its parameters are known of the version that is pinned; another one is asked."""
    assert PCA().__getstate__() == faiss_02_pca_reduce.KNOWN_PCA
    model = load_model(example)
    fitted = PCA(n_components=model.n_components_).fit(np.eye(model.n_features_in_))
    assert model.get_params() == fitted.get_params()
    assert {*model.__getstate__()} == {*fitted.__getstate__()} - {"_fit_svd_solver"}
    monkeypatch.setattr(faiss_02_pca_reduce, "KNOWN_PCA", {"_sklearn_version": "another"})
    assert faiss_02_pca_reduce.unfitted_pca() == PCA().__getstate__()


def test_the_model_works_on_new_rows(reduced):
    """transform and inverse_transform are what the numbers in pca.npz say."""
    model, numbers = load_model(reduced), load_npz(reduced / "02_pca_reduce" / "pca.npz")
    new, (k, dim) = unit(make_rows(n=50, seed=1)), numbers["components_"].shape
    coordinates = model.transform(new)
    expected = (new - numbers["mean_"]) @ numbers["components_"].T
    # with u = 2^-53: a dot product of length d of rows no longer than 1 is off by d u; at most 2 on either side
    assert np.abs(coordinates - expected).max() <= (4 * dim + 8) * 2.0**-53
    back = model.inverse_transform(coordinates)
    # coordinates are no longer than 2, so 2 k u on either side, and a few u for the mean
    assert np.abs(back - (coordinates @ numbers["components_"] + numbers["mean_"])).max() <= (4 * k + 8) * 2.0**-53


def test_with_all_components_nothing_is_lost(tmp_path):
    model = load_model(stages_1_and_2(tmp_path, make_rows(), target_variance=1.0))
    new = unit(make_rows(n=50, seed=1))
    assert model.n_components_ == 12
    # axes orthonormal to d 2^-50, times a row no longer than 2; rounding as above, smaller than that
    assert np.abs(model.inverse_transform(model.transform(new)) - new).max() <= 2 * 2 * 12 * 2.0**-50


def test_reduced_rows_are_what_the_model_gives(reduced):
    """So that a user's new rows can be compared with them."""
    difference = np.concatenate(load_reduced(reduced)) - load_model(reduced).transform(unit(make_rows()))
    assert np.abs(difference).max() <= projection_error(12)


def test_the_model_is_the_one_scikit_learn_fits(reduced):
    rows = make_rows()
    ours, theirs = load_model(reduced), PCA(svd_solver="full").fit(unit(rows))
    k, total = ours.n_components_, theirs.explained_variance_.sum()
    assert 2 <= k < 12
    # Weyl: an error E of the covariance moves no variance by more than |E|
    error = np.linalg.norm(covariance_error(rows, 119))
    assert np.abs(ours.explained_variance_ - theirs.explained_variance_[:k]).max() <= error
    # the total moves by d |E| at most, and a ratio is at most 1
    ratios = np.abs(ours.explained_variance_ratio_ - theirs.explained_variance_ratio_[:k])
    assert ratios.max() <= 13 * error / (total - 12 * error)
    assert np.abs(ours.mean_ - theirs.mean_).max() <= value_error(12)
    assert abs(ours.noise_variance_ - theirs.explained_variance_[k:].mean()) <= error
    # Davis and Kahan: the sine of the angle between two spaces is at most |E| / (gap - |E|); as well for single axes
    gaps = -np.diff(theirs.explained_variance_)
    assert gaps.min() > 10 * error
    beside = ours.components_ - ours.components_ @ theirs.components_[:k].T @ theirs.components_[:k]
    assert np.linalg.norm(beside, 2) <= error / (gaps[k - 1] - error) + 1e-14
    cosines = np.abs((ours.components_ * theirs.components_[:k]).sum(axis=1))
    gap = np.minimum(np.concatenate([[np.inf], gaps[: k - 1]]), gaps[:k])
    assert (cosines >= np.sqrt(1 - (error / (gap - error)) ** 2) - 1e-14).all()

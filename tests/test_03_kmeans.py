"""Stage 3: every row is in exactly one cluster, that of the nearest centroid, under its own id."""

import json

import h5py
import numpy as np
import pytest
from conftest import EXAMPLE, SCRIPTS, flat_ids, lay_out, read_ids, run_stages

from config import Config
from neardup import NeardupError


def stages_1_to_3(folder, rows, cuts=(), ids=None, **settings):
    """Run them. Returns the work folder."""
    run_stages(lay_out(folder / "data", rows, cuts, ids), folder / "work", scripts=SCRIPTS[:3], **settings)
    return folder / "work"


def normal(n, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim))


def load_clusters(work):
    """Rows, vectors and ids of each cluster file, in the order of their numbers."""
    found = []
    for number, path in enumerate(sorted((work / "03_kmeans" / "clusters").iterdir())):
        assert path.name == f"cluster_{number:05d}.h5"
        with h5py.File(path) as file:
            found.append((file["row"][:].tolist(), file["vector"][:], flat_ids(file)))
    return found


def check_clusters(work, n_clusters, rejected=()):
    """Files, labels, centroids and ids say the same. Returns the labels."""
    labels = np.load(work / "03_kmeans" / "labels.npy")
    centroids = np.load(work / "03_kmeans" / "centroids.npy")
    ids, clusters = read_ids(work), load_clusters(work)
    assert (labels.dtype, centroids.dtype) == (np.int32, np.float32)
    assert len(labels) == len(ids)
    assert len(clusters) == len(centroids) == n_clusters
    assert np.isfinite(centroids).all()
    rows = [row for members, _, _ in clusters for row in members]
    assert sorted(rows) == sorted(set(range(len(labels))) - set(rejected))
    for number, (members, vectors, names) in enumerate(clusters):
        assert (labels[members] == number).all()
        assert names == [ids[row] for row in members]
        check_nearest(vectors, centroids, number)
    assert np.nonzero(labels == -1)[0].tolist() == list(rejected)
    return labels


def check_nearest(vectors, centroids, number):
    """No other centroid is nearer to these vectors, in float64, than float32 can tell."""
    c = centroids.shape[1]
    points, centroids = vectors.astype(np.float64), centroids.astype(np.float64)
    squared = ((points[:, None] - centroids[None]) ** 2).sum(axis=2)
    # |z|^2 + |c|^2 - 2 zc from float32 products is off by (c + 3) u (|z| + |c|)^2, for two distances
    longest = np.linalg.norm(points, axis=1) + np.linalg.norm(centroids, axis=1).max()
    error = 2 * (c + 3) * 2.0**-24 * longest**2
    assert (squared[:, number] <= squared.min(axis=1) + error).all()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example in as many clusters as config.py sets."""
    work = tmp_path_factory.mktemp("example") / "work"
    run_stages(EXAMPLE, work, scripts=SCRIPTS[:3], n_clusters=Config.model_fields["n_clusters"].default)
    return work


def test_clusters_of_the_example(example):
    labels = check_clusters(example, n_clusters=50)
    assert len(labels) == 3054
    assert np.unique(labels).size > 40  # it does split them


def test_rows_that_lie_apart_are_told_apart(tmp_path):
    """Three tight bundles at right angles: no cluster has rows of two."""
    bundle = np.repeat(np.arange(3), [40, 25, 35])
    rows = np.eye(3, 8)[bundle] + normal(100, 8) * 0.01
    order = np.random.default_rng(1).permutation(100)
    labels = check_clusters(stages_1_to_3(tmp_path, rows[order], n_clusters=20), n_clusters=20)
    assert all(len(set(bundle[order][labels == cluster])) == 1 for cluster in set(labels.tolist()))


def test_without_a_number_of_clusters_it_grows_with_the_rows(tmp_path):
    found = []
    for n_rows in (1, 2, 1000, 3000, 9000):
        work = stages_1_to_3(tmp_path / str(n_rows), normal(n_rows, 6), n_clusters=None)
        found.append(len(np.load(work / "03_kmeans" / "centroids.npy")))
        check_clusters(work, n_clusters=found[-1])
    assert found == sorted(found)
    assert found[:2] == [1, 1]
    assert found[2] < found[3] < found[4] < 100


@pytest.mark.parametrize("n_rows", [1, 7])
def test_no_more_clusters_than_rows(tmp_path, n_rows):
    check_clusters(stages_1_to_3(tmp_path, normal(n_rows, 6), n_clusters=50), n_clusters=n_rows)


def test_more_clusters_than_distinct_rows(tmp_path):
    """Some clusters stay empty; each is a file all the same."""
    rows = np.repeat(normal(3, 6), [5, 10, 25], axis=0)
    check_clusters(stages_1_to_3(tmp_path, rows, cuts=[7, 7, 20], n_clusters=12), n_clusters=12)


def test_one_cluster(tmp_path):
    labels = check_clusters(stages_1_to_3(tmp_path, normal(30, 6), n_clusters=1), n_clusters=1)
    assert not labels.any()


@pytest.mark.parametrize("cached", [1 << 30, 0])
@pytest.mark.parametrize("run_rows", [7, 100, 263, 264])
def test_runs_of_any_size_give_the_same_files(tmp_path, monkeypatch, run_rows, cached):
    """Also where they hold the sketches, for there are too many to be taken from where they are."""
    rows = normal(264, 6)
    rows[[0, 99, 100, 263]] = 0
    ids = [f"{'ä' * (i % 3)}{i}" for i in range(264)]
    found = []
    for name, size, cache in (("whole", 65_536, 1 << 30), ("cut", run_rows, cached)):
        monkeypatch.setattr("faiss_03_kmeans.RUN_ROWS", size)
        monkeypatch.setattr("faiss_03_kmeans._CACHED", cache)
        work = stages_1_to_3(tmp_path / name, rows, cuts=[50, 51, 180], ids=ids, n_clusters=9, bad_rows="skip")
        found.append(load_clusters(work))
        if size == 65_536 or max(len(members) for members, *_ in found[0]) <= size:
            check_clusters(work, n_clusters=9, rejected=[0, 99, 100, 263])
        else:
            check_clusters(work, n_clusters=len(found[-1]), rejected=[0, 99, 100, 263])
            assert max(len(members) for members, *_ in found[-1]) <= size
            continue
        for ours, theirs in zip(found[-1], found[0], strict=True):
            assert (ours[0], ours[2]) == (theirs[0], theirs[2])
            assert np.array_equal(ours[1], theirs[1])


def test_a_cluster_that_is_most_of_the_rows_has_several_files(tmp_path, monkeypatch):
    """No file has more than a twentieth of the distances within clusters; parts are equal, their centroids too."""
    monkeypatch.setattr("neardup.search.shuffle._LEAST_CUT", 10)
    rows = np.concatenate([1 + normal(700, 8) * 0.01, normal(300, 8)])[np.random.default_rng(1).permutation(1000)]
    work = stages_1_to_3(tmp_path, rows, cuts=[300], n_clusters=12)
    centroids = np.load(work / "03_kmeans" / "centroids.npy")
    check_clusters(work, n_clusters=len(centroids))
    sizes = np.array([len(members) for members, *_ in load_clusters(work)])
    _, centre, parts = np.unique(centroids, axis=0, return_inverse=True, return_counts=True)
    whole = np.bincount(centre, sizes)
    assert len(parts) == 12
    assert parts[whole.argmax()] > 3
    assert (sizes**2 <= np.maximum((whole**2).sum() / 20, 100)).all()
    for number in range(12):
        assert np.ptp(sizes[centre == number]) <= 1


def test_rejected_rows_are_in_no_cluster(tmp_path):
    rows = normal(40, 6)
    rows[0], rows[13, 2], rows[14, 5], rows[39] = 0, np.nan, np.inf, 0
    ids = [f"row {i}\n" for i in range(40)]
    work = stages_1_to_3(tmp_path, rows, cuts=[13, 14], ids=ids, n_clusters=4, bad_rows="skip")
    check_clusters(work, n_clusters=4, rejected=[0, 13, 14, 39])


def test_a_cluster_for_each_row_that_is_not_rejected(tmp_path):
    rows = normal(9, 6)
    rows[[0, 1, 4]] = np.nan
    check_clusters(stages_1_to_3(tmp_path, rows, bad_rows="skip"), n_clusters=6, rejected=[0, 1, 4])


def test_another_seed_gives_other_clusters(example, tmp_path):
    run_stages(EXAMPLE, tmp_path, scripts=SCRIPTS[:3], n_clusters=50, random_state=7)
    theirs = np.load(example / "03_kmeans" / "labels.npy")
    assert (np.load(tmp_path / "03_kmeans" / "labels.npy") != theirs).any()


def test_the_manifest_counts_them(example):
    manifest = json.loads((example / "03_kmeans" / "manifest.json").read_text())
    sizes = np.bincount(np.load(example / "03_kmeans" / "labels.npy"), minlength=50)
    assert manifest["settings"]["n_clusters"] == 50
    counted = {"rows": 3054, "n_clusters": 50, "smallest": sizes.min(), "largest": sizes.max()}
    assert {name: manifest["results"][name] for name in counted} == counted


def test_more_files_than_visits_have_room_for(tmp_path):
    """Said by stage 3, before it writes any: stage 4 would count visits between any two."""
    lay_out(tmp_path / "data", normal(5000, 8))
    settings = {"n_clusters": 4000, "memory_limit": "320MiB"}
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:2], **settings)
    with pytest.raises(NeardupError, match=r"4,000 cluster files are more .*: set n_clusters to at most 1,\d\d\d,"):
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[2:3], **settings)
    assert not (tmp_path / "work" / "03_kmeans").exists()
    assert not [*(tmp_path / "work").rglob("cluster_*")]


def test_a_run_that_grows_by_more_files_than_visits_have_numbers_for(tmp_path, monkeypatch):
    """It has a file for each centroid more."""
    monkeypatch.setattr("faiss_03_kmeans.MOST_CLUSTERS", 9)
    lay_out(tmp_path / "data", normal(300, 8))
    run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:3], n_clusters=5)
    lay_out(tmp_path / "data", normal(300, 8, seed=1), stem="more", ids=[f"more-{i}" for i in range(300)])
    with pytest.raises(NeardupError, match="10 cluster files are more than the 9"):
        run_stages(tmp_path / "data", tmp_path / "work", SCRIPTS[:3], n_clusters=5)


@pytest.mark.parametrize(("n_clusters", "is_many"), [(499, False), (500, True)])
def test_far_too_many_clusters_are_told_of(tmp_path, capsys, n_clusters, is_many):
    run_stages(EXAMPLE, tmp_path, SCRIPTS[:3], n_clusters=n_clusters)
    told = "n_clusters = 500 is many for these rows: with None there are 3, which is far quicker\n"
    assert capsys.readouterr().err == (told if is_many else "")

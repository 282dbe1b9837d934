"""Search, side by side: stages 3 + 4 against what people use, on the same rows, in the same run.

    python benchmarks/search.py DATA [--threshold 0.98] [--name search]

Every contender is a process of its own. Its seconds are those of building and searching, rows in memory at unit
length; those of this project are of stages 3 and 4 from stage 2's files on, audit included, and the whole of both
processes is given, too. Where all rows as queries would take too long, a random sample of them is searched and the
time scaled up. What takes under 3 seconds is run three times, and the median counts. What has no range search is asked
for the K_NEIGHBORS nearest. Recall is the share of the true pairs, each seen from both its rows, that were found.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import h5py
import measure
import numpy as np

K_NEIGHBORS = 10
_SHORT_S, _REPEATS = 3, 3  # seconds of a run that is repeated, and how often it is run
SAMPLE = {  # queries that are searched where not all are
    "faiss flat": 1000,
    "faiss flat panorama": 1000,
    "faiss IVF, nprobe 1": 10_000,
    "faiss IVF, nprobe 4": 10_000,
    "faiss IVF, nprobe 16": 2_000,
    "faiss HNSW": 10_000,
    "scikit-learn radius_neighbors": 200,
    "usearch": 10_000,
}


def range_index(index, rows, queries, threshold):
    """FAISS range search by inner products. Returns seconds to build and to search, rows found, and by which query."""
    started = time.perf_counter()
    if not index.is_trained:
        index.train(rows)
    index.add(rows)
    built = time.perf_counter()
    euclidean = "L2" in type(index).__name__
    limits, _, found = index.range_search(rows[queries], 2 - 2 * threshold if euclidean else threshold)
    return built - started, time.perf_counter() - built, found, np.repeat(queries, np.diff(limits.astype(np.int64)))


def faiss_ivf(rows, nprobe):
    """An inverted file of the square root of n lists."""
    import faiss

    dim, n_lists = rows.shape[1], round(len(rows) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, n_lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = nprobe
    return index


def faiss_contender(name, rows, queries, threshold):
    """Flat, Panorama, inverted file, or HNSW, which has no exact range search and is asked for neighbours."""
    import faiss

    dim = rows.shape[1]
    if name == "faiss HNSW":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 32
        return neighbors(lambda: index.add(rows), lambda: index.search(rows[queries], K_NEIGHBORS)[1], queries)
    index = {
        "faiss flat": lambda: faiss.IndexFlatIP(dim),
        "faiss flat panorama": lambda: faiss.IndexFlatL2Panorama(dim, 8),
    }.get(name, lambda: faiss_ivf(rows, int(name.split()[-1])))()
    return range_index(index, rows, queries, threshold)


def neighbors(build, search, queries):
    """A search for the nearest. build(), search(): found (q, k) rows. Returns as `range_index`."""
    started = time.perf_counter()
    build()
    built = time.perf_counter()
    found = np.asarray(search())
    return built - started, time.perf_counter() - built, found.ravel(), np.repeat(queries, found.shape[1])


def sklearn_contender(_, rows, queries, threshold):
    """Brute force in float32, by cosine distance."""
    from sklearn.neighbors import NearestNeighbors

    model, radius = NearestNeighbors(metric="cosine", algorithm="brute", n_jobs=-1), 1 - threshold
    started = time.perf_counter()
    model.fit(rows)
    built = time.perf_counter()
    found = model.radius_neighbors(rows[queries], radius, return_distance=False)
    return (
        built - started,
        time.perf_counter() - built,
        np.concatenate(found),
        np.repeat(queries, [len(f) for f in found]),
    )


def usearch_contender(_, rows, queries, threshold):
    """HNSW in float32, asked for neighbours."""
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="cos", dtype="f32")
    add = lambda: index.add(np.arange(len(rows)), rows)  # noqa: E731
    return neighbors(add, lambda: index.search(rows[queries], K_NEIGHBORS).keys.astype(np.int64), queries)


def pynndescent_contender(_, rows, queries, threshold):
    """Nearest neighbour descent: the graph of neighbours of all rows is its answer."""
    from pynndescent import NNDescent

    NNDescent(rows[:2000], metric="cosine", n_neighbors=K_NEIGHBORS)  # compiles
    made = []
    build = lambda: made.append(NNDescent(rows, metric="cosine", n_neighbors=K_NEIGHBORS, random_state=0))  # noqa: E731
    return neighbors(build, lambda: made[0].neighbor_graph[0], queries)


def semhash_contender(_, rows, queries, threshold):
    """Deduplication of records by their embeddings; its answer names the record that each dropped one is near."""
    from semhash import SemHash

    started = time.perf_counter()
    names = [str(i) for i in range(len(rows))]
    index = SemHash.from_embeddings(rows, names, model=None)
    built = time.perf_counter()
    result = index.self_deduplicate(threshold=threshold)
    elapsed = time.perf_counter() - built
    pairs = [(int(d.record), int(d.duplicate_of)) for d in result.filtered]
    both = np.array([p for a, b in pairs for p in ((a, b), (b, a))], dtype=np.int64).reshape(-1, 2)
    return built - started, elapsed, both[:, 1], both[:, 0]


CONTENDERS = {
    **dict.fromkeys([n for n in SAMPLE if n.startswith("faiss")], faiss_contender),
    "scikit-learn radius_neighbors": sklearn_contender,
    "usearch": usearch_contender,
    "pynndescent": pynndescent_contender,
    "semhash": semhash_contender,
}


def unit_rows(data):
    """All rows of a folder of shards at unit length, float32."""
    from neardup.input.embeddings import open_shards
    from neardup.input.shards import find_shards
    from neardup.search.geometry import unit_rows32

    shards = find_shards(Path(data))
    rows = open_shards(shards)
    return np.concatenate([unit_rows32(rows.read(s.start, s.stop))[0] for s in shards if s.rows])


def contend(name, data, work, threshold):
    """Run one contender and print its figures as JSON."""
    rows = unit_rows(data)
    rng = np.random.default_rng(0)
    count = min(SAMPLE.get(name, len(rows)), len(rows))
    queries = np.sort(rng.choice(len(rows), count, replace=False))
    cpu = time.process_time()
    build_s, search_s, found, by = CONTENDERS[name](name, rows, queries, threshold)
    cpu = time.process_time() - cpu
    scale = len(rows) / count
    figures = {
        "build_s": round(build_s, 3),
        "search_s": round(search_s * scale, 3),
        "seconds": round(build_s + search_s * scale, 3),
        "cpu_s": round(cpu * (build_s + search_s * scale) / (build_s + search_s), 3),
        "queries": count,
        "recall": recall(work, queries, by, found, len(rows)),
    }
    print(json.dumps(figures))


def recall(work, queries, by, found, n_rows):
    """Share of the true pairs, seen from each query, among those found."""
    with h5py.File(Path(work) / "04_neighbor_search" / "neighbors.h5") as file:
        a, b = file["row_a"][:], file["row_b"][:]
    true = np.concatenate([a * n_rows + b, b * n_rows + a])
    true = true[np.isin(true // n_rows, queries)]
    return round(float(np.isin(true, by * n_rows + found).mean()), 5) if len(true) else None


def repeated(run):
    """Figures of a run, or of the median one of three where it takes little."""
    runs = [run()]
    while len(runs) < _REPEATS and runs[0]["seconds"] < _SHORT_S:
        runs.append(run())
    return sorted(runs, key=lambda figures: figures["seconds"])[len(runs) // 2]


def remove_search(work):
    """Remove what stages 3 and 4 left."""
    for stage in list(measure.STAGES)[2:4]:
        shutil.rmtree(Path(work) / stage, ignore_errors=True)


def ours(data, work, **settings):
    """Stages 3 and 4, after 1 and 2. Returns figures: seconds in the scripts' run(), and of both whole processes."""
    shutil.rmtree(work, ignore_errors=True)
    measure.pipeline(data, work, measure.SCRIPTS[:2], **settings)
    options = json.dumps(settings, default=str)

    def timed():
        remove_search(work)
        _, printed = measure.run([sys.executable, __file__, data, "--work", work, "--ours", options])
        return json.loads(printed.splitlines()[-1])

    figures = repeated(timed)
    remove_search(work)
    whole = measure.pipeline(data, work, measure.SCRIPTS[2:4], **settings)
    found = measure.results_of(work, "04_neighbor_search")
    return {
        **figures,
        "processes_s": measure.seconds(whole),
        "peak_memory_mb": measure.peak_memory(whole),
        "recall": 1 - found["audit"]["missed"] / max(found["audit"]["pairs"], 1),
        "pairs": found["pairs"],
        "candidates": found["candidates"],
        "compared_share": found["compared"] / (found["rows"] ** 2 / 2),
    }


def time_ours(data, work, settings):
    """Print the seconds of both stages' run(), imports not counted."""
    import faiss_03_kmeans
    import faiss_04_neighbor_search
    from config import Config
    from neardup.machine import engine
    from neardup.machine.imports import settle

    config = Config(_cli_parse_args=[], data_dir=data, work_dir=work, **settings)
    settle()
    started, cpu = time.perf_counter(), time.process_time()
    for stage in (faiss_03_kmeans, faiss_04_neighbor_search):
        with engine.scheduled(config):
            stage.run(config)
    figures = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


def compare(data, work, threshold, only, **settings):
    """Figures of all contenders at one threshold."""
    table = {"this project": ours(data, work, threshold=threshold, **settings)}
    print("this project", table["this project"], flush=True)
    for name in only or CONTENDERS:
        arguments = [data, "--work", work, "--threshold", threshold, "--contender", name]

        def contend_once(command=(sys.executable, __file__, *arguments)):
            figures, printed = measure.run(command)
            return json.loads(printed.splitlines()[-1]) | {"peak_memory_mb": figures["peak_memory_mb"]}

        table[name] = repeated(contend_once)
        table[name]["times_ours"] = round(table[name]["seconds"] / table["this project"]["seconds"], 1)
        print(name, table[name], flush=True)
    return table


def main():
    """Compare at each threshold and keep the figures; or be one of the compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.98, 0.95])
    parser.add_argument("--n-clusters", default="None")
    parser.add_argument("--name", default="search", help="of the results' files")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=[], metavar="NAME", help="contenders")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        return contend(given.contender, given.data, given.work, given.threshold[0])
    if given.ours:
        settings = json.loads(given.ours)
        settings["n_clusters"] = None if settings["n_clusters"] == "None" else int(settings["n_clusters"])
        return time_ours(given.data, given.work, settings)
    tables = {}
    for threshold in given.threshold:
        work = given.work / f"{given.name}-{threshold}"
        tables[str(threshold)] = compare(given.data, work, threshold, given.only, n_clusters=given.n_clusters)
    measure.save(given.name, {"data": given.data.name, "by_threshold": tables})
    measure.save_plot(given.name, lambda axes: draw(axes, tables[str(given.threshold[0])], given.threshold[0]))


def draw(axes, table, threshold):
    """A bar each, quickest first, with its seconds and recall."""
    names = sorted(table, key=lambda name: table[name]["seconds"])
    seconds = [table[name]["seconds"] for name in names]
    bars = axes.barh(names, seconds, color=["tab:orange" if name == "this project" else "tab:blue" for name in names])
    labels = [f"{table[name]['seconds']:.3g} s, recall {table[name]['recall']:.4g}" for name in names]
    axes.bar_label(bars, labels, padding=4)
    axes.set(xscale="log", xlabel="seconds", title=f"All pairs with cosine >= {threshold}")
    axes.set_xlim(min(seconds) / 2, max(seconds) * 12)
    axes.invert_yaxis()


if __name__ == "__main__":
    main()

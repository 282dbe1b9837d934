"""The whole pipeline, by number of rows: seconds, memory and disk a stage, and the floor.

    python benchmarks/pipeline.py [--rows 100000 300000 1000000] [--dim 1024] [--folder FOLDER]

The floor is what any PCA of the rows costs: reading the shards once and the two matrix products, for the moments and
for the projection, with numpy in the same run, before and after. Sets are made by generate.py, and removed.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import measure
import numpy as np

_BLOCK_ROWS = 8192


def floor(data, n_components):
    """Seconds to read all rows, for x^T x and for x basis, with as many threads as BLAS takes. Prints them as JSON."""
    seconds, basis, gram = dict.fromkeys(("read", "gram", "project"), 0.0), None, 0
    for path in sorted(data.glob("*.npy")):
        shard = np.load(path, mmap_mode="r")
        for start in range(0, len(shard), _BLOCK_ROWS):
            marks = [time.perf_counter()]
            rows = np.array(shard[start : start + _BLOCK_ROWS])
            marks.append(time.perf_counter())
            gram = gram + rows.T @ rows
            marks.append(time.perf_counter())
            if basis is None:
                basis = np.random.default_rng(0).standard_normal((rows.shape[1], n_components)).astype(np.float32)
                marks[-1] = time.perf_counter()
            rows @ basis
            marks.append(time.perf_counter())
            for name, taken in zip(seconds, np.diff(marks), strict=True):
                seconds[name] += float(taken)
    print(json.dumps({name: round(s, 3) for name, s in seconds.items()}))


def measure_floor(data, n_components):
    """Figures of `floor` in a process of its own."""
    printed = measure.run([sys.executable, __file__, "--floor", data, n_components])[1]
    parts = json.loads(printed.splitlines()[-1])
    return parts | {"total": round(sum(parts.values()), 3)}


def bytes_of(folder):
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def at_size(folder, n_rows, dim, repeats, **settings):
    """Figures of all stages at one number of rows: of the run whose total is the median of some."""
    data, work = folder / f"rows-{n_rows}", folder / f"work-{n_rows}"
    measure.generate(data, n_rows, dim=dim)
    first_floor = measure_floor(data, dim // 3)
    runs = []
    for _ in range(repeats):
        shutil.rmtree(work, ignore_errors=True)
        runs.append(measure.pipeline(data, work, **settings))
    totals = [measure.seconds(stages) for stages in runs]
    total = sorted(totals)[len(totals) // 2]
    stages = runs[totals.index(total)]
    search = measure.results_of(work, "04_neighbor_search")
    n_components = measure.results_of(work, "01_pca_variance")["n_components"]
    floors = [first_floor, measure_floor(data, n_components)]
    figures = {
        "rows": n_rows,
        "n_components": n_components,
        "n_clusters": measure.results_of(work, "03_kmeans")["n_clusters"],
        "stages": stages,
        "total_s": total,
        "all_totals_s": totals,
        "floor": floors[1],
        "floor_before": first_floor,
        "times_floor": round(total / floors[1]["total"], 2),
        "peak_memory_mb": measure.peak_memory(stages),
        "input_bytes": bytes_of(data),
        "work_bytes": {p.name: bytes_of(p) for p in sorted(work.iterdir())},
        "pairs": search["pairs"],
        "candidates": search["candidates"],
        "compared_share": search["compared"] / (n_rows**2 / 2),
        "audit": {name: search["audit"][name] for name in ("rows", "pairs", "missed", "false")},
    }
    shutil.rmtree(work)
    shutil.rmtree(data)
    return figures


def main():
    """Measure all sizes and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--name", default="pipeline", help="of the results' files")
    parser.add_argument("--floor", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.floor:
        return floor(Path(given.floor[0]), int(given.floor[1]))
    sizes = []
    for n_rows in given.rows:
        sizes.append(at_size(given.folder, n_rows, given.dim, given.repeats, n_clusters="None"))
        last = sizes[-1]
        print({name: last[name] for name in ("rows", "total_s", "floor", "times_floor", "peak_memory_mb")}, flush=True)
    measure.save(given.name, {"dim": given.dim, "sizes": sizes})
    measure.save_plot(given.name, lambda axes: draw(axes, sizes))


def draw(axes, sizes):
    """Seconds of each stage stacked, beside the floor."""
    names, at = [f"{s['rows']:,}" for s in sizes], np.arange(len(sizes))
    bottom = np.zeros(len(sizes))
    for script in measure.SCRIPTS:
        seconds = np.array([s["stages"][script]["wall_s"] for s in sizes])
        axes.bar(at - 0.2, seconds, 0.4, bottom, label=script)
        bottom += seconds
    axes.bar(at + 0.2, [s["floor"]["total"] for s in sizes], 0.3, color="0.6", label="floor: read, x'x, x basis")
    axes.set(xlabel="rows", ylabel="seconds", title="Five scripts, process starts included")
    axes.set_xticks(at, names)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()

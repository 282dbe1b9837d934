"""What 10^8 and 10^9 rows would take: a cost of each kind of task, measured on small sets and checked on a larger one.

    python benchmarks/scale.py [--rows 50000 100000 200000 400000] [--held-out 1000000] [--folder FOLDER]

Each kind of task (`_COSTS`) takes core-seconds in proportion to one or two amounts of work: rows, rows times clusters,
distances, candidates. The constants are fitted to runs of several numbers of rows n and of clusters K; the run of the
held-out n is only predicted. Sets are made by generate.py, 1,024 values a row, searched at 0.98.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import measure
import numpy as np
from generate import generate
from scipy.optimize import nnls

_DIM, _SKETCH, _THRESHOLD = 1024, 65, 0.98
_COSTS = {  # label of tasks: what their core-seconds are made of
    "01 moments": ("rows",),
    "02 project": ("rows",),
    "03 sample": ("rows",),
    "03 k-means": ("clusters^2",),
    "03 assign": ("rows", "rows x clusters"),
    "03 clusters": ("rows", "runs x clusters"),
    "04 visits": ("rows", "rows x clusters"),
    "04 search inside clusters": ("inside", "clusters"),
    "04 search across borders": ("across", "clusters^2"),
    "04 verify": ("candidates",),
    "04 audit": ("rows",),
    "045 representatives": ("pairs",),
    "verify": ("rows",),
    "checksums": ("rows",),
}
_ON_ALL_CORES = ("03 k-means",)  # of the script's machine, as libraries do it; all else are tasks of one core
_SCRIPT = ("one", "rows")  # what the rest of a script takes, in which no tasks run
_RUN_ROWS, _PIECE_ROWS, _MOST_TASKS = 32_768, 32_768, 2_000


def default_clusters(n_rows):
    """As faiss_03_kmeans chooses them where `n_clusters` is None."""
    return max(1, round(n_rows ** (2 / 3) / 67))


def run(data, work, n_clusters):
    """Figures of a run: amounts of work, and what tasks and scripts took."""
    shutil.rmtree(work, ignore_errors=True)
    took = measure.pipeline(data, work, n_clusters=n_clusters, threshold=_THRESHOLD)
    results = {stage: measure.results_of(work, stage) for stage in measure.STAGES}
    times = {stage: json.loads((work / stage / "times.json").read_text()) for stage in measure.STAGES}
    sizes = np.bincount(np.load(work / "03_kmeans" / "labels.npy")).astype(float)
    search, inside = results["04_neighbor_search"], float((sizes**2).sum() / 2)
    shutil.rmtree(work)
    return {
        "rows": search["rows"],
        "clusters": len(sizes),
        "inside": inside,
        "across": search["compared"] - inside,
        "candidates": search["candidates"],
        "pairs": search["pairs"],
        "tasks": {label: t for stage in times.values() for label, t in stage["tasks"].items()},
        "seconds": {stage: took[script]["wall_s"] for stage, (script, _) in measure.STAGES.items()},
        "peak_bytes": {stage: t["peak_bytes"] for stage, t in times.items()},
    }


def amounts(figures):
    """Every amount of work in `_COSTS`."""
    n, k = figures["rows"], figures["clusters"]
    products = {"rows x clusters": n * k, "clusters^2": k**2, "runs x clusters": max(1, n / _RUN_ROWS) * k, "one": 1}
    return figures | products


def fit(runs, seconds_of, terms):
    """Constants of these amounts, none negative, with the least squares of relative errors."""
    work = np.array([[amounts(r)[term] for term in terms] for r in runs], dtype=float)
    seconds = np.maximum([seconds_of(r) for r in runs], 1e-3)
    scale = work.max(axis=0)
    constants, _ = nnls(work / scale / seconds[:, None], np.ones(len(runs)))
    return dict(zip(terms, (constants / scale).tolist(), strict=True))


def fit_power(runs, name):
    """exponents of n and K, and a factor, of an amount that the data decides."""
    logs = np.array([[np.log(r["rows"]), np.log(r["clusters"]), 1] for r in runs])
    return np.linalg.lstsq(logs, np.log([r[name] for r in runs]), rcond=None)[0].tolist()


def fit_all(runs, cores):
    """The model: constants of tasks in core-seconds, of what is left of a script in seconds, laws of amounts."""
    costs = {}
    for label, terms in _COSTS.items():
        width = 1 if label in _ON_ALL_CORES else cores
        costs[label] = fit(runs, lambda r, label=label, width=width: width * r["tasks"][label]["seconds"], terms)
    scripts = {stage: fit(runs, lambda r, stage=stage: rest_of(r, stage), _SCRIPT) for stage in measure.STAGES}
    laws = {name: fit_power(runs, name) for name in ("inside", "across")}
    shares = {name: float(np.mean([r[name] / r["rows"] for r in runs])) for name in ("candidates", "pairs")}
    return {"costs": costs, "scripts": scripts, "laws": laws, "shares": shares}


def labels_of(stage):
    """Labels of a stage's tasks; those of any stage are counted with the rest of the script."""
    return [label for label in _COSTS if label.split()[0] == stage.split("_")[0]]


def rest_of(figures, stage):
    """Seconds of a script in which none of its own tasks ran."""
    tasks = sum(figures["tasks"][label]["seconds"] for label in labels_of(stage))
    return figures["seconds"][stage] - tasks


def predict(model, n_rows, n_clusters, n_workers, seconds_a_task=0.0):
    """Seconds of each stage, and what they are made of, with so many workers of one core."""
    figures = {"rows": n_rows, "clusters": n_clusters} | {s: v * n_rows for s, v in model["shares"].items()}
    for name, (of_rows, of_clusters, factor) in model["laws"].items():
        figures[name] = float(np.exp(of_rows * np.log(n_rows) + of_clusters * np.log(n_clusters) + factor))
    work, found = amounts(figures), {}
    for stage, constants in model["scripts"].items():
        parts = {"script": sum(c * work[term] for term, c in constants.items())}
        for label in labels_of(stage):
            seconds = sum(c * work[term] for term, c in model["costs"][label].items())
            parts[label] = seconds if label in _ON_ALL_CORES else seconds / n_workers
            parts[label] += seconds_a_task * n_tasks(label, figures)
        found[stage] = parts
    return found


def n_tasks(label, figures):
    """How many tasks the scheduler gets, at most."""
    n, k = figures["rows"], figures["clusters"]
    several = max(1, n / max(65_536, n / _MOST_TASKS))
    runs = max(1, n / max(_RUN_ROWS, n / _MOST_TASKS))
    counts = {"01 moments": several, "02 project": n / _PIECE_ROWS, "03 sample": runs, "03 assign": runs}
    counts |= {"03 clusters": runs, "04 visits": k, "04 verify": figures["candidates"] / 65_536, "04 audit": several}
    shared = {"04 search inside clusters": "inside", "04 search across borders": "across"}
    counts |= {label: np.clip(figures[name] / 4e9, 24, 20_000) for label, name in shared.items()}
    return int(counts.get(label, 1))


def main():
    """Measure, fit, check, and apply."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 100_000, 200_000, 400_000])
    parser.add_argument("--held-out", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--name", default="scale", help="of the results' file")
    given = parser.parse_args()
    data, work, cores, runs = given.folder / "data", given.folder / "work", measure.machine()["cores"], []
    for n_rows in (*given.rows, given.held_out):
        generate(data, n_rows, _DIM)
        factors = (1,) if n_rows == given.held_out else (1, 2.5)
        runs += [run(data, work, round(default_clusters(n_rows) * factor)) for factor in factors]
        shutil.rmtree(data)
        print(runs[-1]["rows"], runs[-1]["seconds"], file=sys.stderr, flush=True)
    *known, held_out = runs
    model = fit_all(known, cores)
    expected = predict(model, held_out["rows"], held_out["clusters"], cores)
    check = {
        stage: {"measured_s": held_out["seconds"][stage], "predicted_s": round(sum(parts.values()), 2)}
        for stage, parts in expected.items()
    }
    measure.save(given.name, {"runs": runs, "model": model, "check": check})
    print(json.dumps(check, indent=1))


if __name__ == "__main__":
    main()

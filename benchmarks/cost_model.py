"""A cost model of the five scripts: core-seconds of each kind of task, from amounts of work, fitted to measured runs.

Each kind of task (`COSTS`) takes core-seconds in proportion to one or two amounts, rows, rows times clusters,
distances, candidates, beside a fixed time. How many distances there are is a power of rows and clusters, fitted too.
"""

from functools import partial

import measure
import numpy as np
from scipy.optimize import nnls

from faiss_03_kmeans import MOST_RUNS, RUN_ROWS, default_clusters
from neardup.input.embeddings import MOST_TASKS, PIECE_ROWS, TASK_ROWS
from neardup.machine.budget import SCRIPT_BYTES_A_ROW
from neardup.plan import disk_of_a_row
from neardup.search.pairs import BYTES_A_ROW
from neardup.search.tasks import most_work
from neardup.search.verification import BLOCK_PAIRS

DIM, _SKETCH = 1024, 65
COSTS = {  # label of tasks: what their core-seconds are made of
    "01 moments": ("rows",),
    "01 ids": ("rows",),
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
    "04 pickle": ("rows",),
    "045 representatives": ("pairs",),
    "02 checksums": ("rows",),
    "03 checksums": ("rows",),
    "04 checksums": ("rows",),
}
_BESIDE = {"01 moments": "01 ids", "04 audit": "04 pickle"}  # a single task that runs beside others, not in parts
_ON_ALL_CORES = ("03 k-means",)  # of the script's machine, as libraries do it; all else are tasks of one core
_SCRIPT = ("one", "rows")  # what the rest of a script takes, in which no tasks run
_OPEN_BYTES = 1024 * 2**20 / 4  # of clusters that a task holds open, with a memory_limit of 1 GiB that is all its own
_LAYOUT, _ID_BYTES = 140, 24  # bytes of a row as it is searched, and of an id


def amounts(figures):
    """Every amount of work in `COSTS`."""
    n, k = figures["rows"], figures["clusters"]
    products = {"rows x clusters": n * k, "clusters^2": k**2, "runs x clusters": n_runs(n) * k, "one": 1}
    return figures | products


def n_runs(n_rows):
    """How many sorted runs faiss_03_kmeans makes."""
    return max(1, n_rows / max(RUN_ROWS, n_rows / MOST_RUNS))


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
    costs = {label: fit(runs, partial(core_seconds, label, cores), (*terms, "one")) for label, terms in COSTS.items()}
    scripts = {stage: fit(runs, lambda r, stage=stage: rest_of(r, stage), _SCRIPT) for stage in measure.STAGES}
    laws = {name: fit_power(runs, name) for name in ("inside", "across")}
    shares = {name: float(np.mean([r[name] / r["rows"] for r in runs])) for name in ("candidates", "pairs")}
    return {"costs": costs, "scripts": scripts, "laws": laws, "shares": shares, "cores": cores}


def core_seconds(label, cores, figures):
    """What tasks of a label took of all cores together, without what ran beside them."""
    seconds = figures["tasks"][label]["seconds"]
    if label in _ON_ALL_CORES or label in _BESIDE.values():
        return seconds
    beside = figures["tasks"][_BESIDE[label]]["seconds"] if label in _BESIDE else 0
    return cores * seconds - beside


def labels_of(stage):
    """Labels of a stage's tasks."""
    return [label for label in COSTS if label.split()[0] == stage.split("_")[0]]


def rest_of(figures, stage):
    """Seconds of a script in which none of its own tasks ran."""
    tasks = sum(figures["tasks"][label]["seconds"] for label in labels_of(stage) if label not in _BESIDE.values())
    return figures["seconds"][stage] - tasks


def figures_of(model, n_rows, n_clusters):
    """The amounts that the data decides, by the laws fitted to them."""
    figures = {"rows": n_rows, "clusters": n_clusters} | {s: v * n_rows for s, v in model["shares"].items()}
    for name, (of_rows, of_clusters, factor) in model["laws"].items():
        figures[name] = float(np.exp(of_rows * np.log(n_rows) + of_clusters * np.log(n_clusters) + factor))
    return figures


def predict(model, n_rows, n_clusters, n_workers, seconds_a_task=0.0):
    """Seconds of each stage, and what they are made of, with so many workers of one core."""
    figures = figures_of(model, n_rows, n_clusters)
    work, found = amounts(figures), {}
    for stage, constants in model["scripts"].items():
        parts = {"script": sum(c * work[term] for term, c in constants.items())}
        for label in labels_of(stage):
            constants = model["costs"][label]
            shared = sum(c * work[term] for term, c in constants.items() if term != "one")
            whole = label in _ON_ALL_CORES or label in _BESIDE.values()
            fixed = constants["one"] / (1 if whole else model["cores"])  # such as what starts with the first task
            parts[label] = (shared if whole else shared / n_workers) + fixed + seconds_a_task * n_tasks(label, figures)
        for label, single in _BESIDE.items():
            if label in parts:  # what is left of the single task when all others are done
                parts[single] = max(parts[single] / n_workers, parts[single] - parts[label])
        found[stage] = parts
    return found


def n_tasks(label, figures):
    """How many tasks the scheduler gets, at most."""
    n, k = figures["rows"], figures["clusters"]
    several = max(1, n / max(TASK_ROWS, n / MOST_TASKS))
    runs = n_runs(n)
    counts = {"01 moments": several, "02 project": n / PIECE_ROWS, "03 sample": runs, "03 assign": runs}
    counts |= {
        "03 clusters": runs,
        "04 visits": k,
        "04 verify": figures["candidates"] / BLOCK_PAIRS,
        "04 audit": several,
    }
    shared = {"04 search inside clusters": "inside", "04 search across borders": "across"}
    counts |= {label: figures[name] / most_work(figures[name]) for label, name in shared.items()}
    return int(counts.get(label, 1))


def traffic(figures, n_components):
    """Bytes that each stage reads and writes, most of which cross the network where the disk is shared.

    Of stage 4 at most: each cluster is read once for each group of clusters held open, whether or not rows meet.
    """
    n, row = figures["rows"], 4 * DIM
    sums = 8 * DIM**2 * n_tasks("01 moments", figures)
    reduced, sketch, whole = 4 * n_components, 4 * _SKETCH, 4 * _SKETCH + 8 + _ID_BYTES
    groups = n * (8 * _SKETCH + reduced) / _OPEN_BYTES
    return {
        "01_pca_variance": (n * row + sums + n * _ID_BYTES, sums + n * _ID_BYTES),
        "02_pca_reduce": (n * (row + reduced + sketch), n * (reduced + sketch)),
        "03_kmeans": (n * (3 * sketch + _ID_BYTES + 2 * whole), n * (2 * whole + 8)),
        "04_neighbor_search": (
            n * (row + 2 * whole + _LAYOUT * groups / 2) + 2 * row * figures["candidates"],
            BYTES_A_ROW * n,
        ),
        "045_merge": (row * figures["pairs"] + 24 * 3 * figures["pairs"] + 4 * n, 100 * figures["pairs"]),
    }


def plan(model, n_rows, cost_of_a_task, n_components):
    """What so many rows would take on 1, 16 and 100 workers."""
    figures = figures_of(model, n_rows, default_clusters(n_rows))
    tasks = {stage: sum(n_tasks(label, figures) for label in labels_of(stage)) for stage in measure.STAGES}
    most = max(tasks.values())
    hours = {
        n_workers: {
            stage: {label: round(s / 3600, 4) for label, s in parts.items()}
            for stage, parts in predict(
                model, n_rows, figures["clusters"], n_workers, cost_of_a_task["seconds"]
            ).items()
        }
        for n_workers in (1, 16, 100)
    }
    return {
        "rows": n_rows,
        "clusters": figures["clusters"],
        "hours": hours,
        "tasks": tasks,
        "terabytes": {s: [round(b / 1e12, 2) for b in both] for s, both in traffic(figures, n_components).items()},
        "disk_terabytes": round(n_rows * disk_of_a_row(n_components, _SKETCH) / 1e12, 2),
        "scheduler_mb": round(most * cost_of_a_task["scheduler_bytes"] / 1e6),
        "script_gb": round((SCRIPT_BYTES_A_ROW * n_rows + most * cost_of_a_task["script_bytes"]) / 1e9, 1),
    }


def as_markdown(plan):
    """Lines of a table for docs/scale.md: hours of each stage, its longest part with 100 workers, tasks, bytes."""
    yield f"{plan['rows']:,} rows, {plan['clusters']:,} clusters"
    yield "| stage | hours with 1 worker | 16 | 100 | longest part of the last | tasks | TB read | TB written |"
    yield "|" + "---|" * 8
    for stage in measure.STAGES:
        parts = [of_workers[stage] for of_workers in plan["hours"].values()]
        totals = " | ".join(_hours(sum(p.values())) for p in parts)
        longest = max(parts[-1], key=parts[-1].get)
        cells = [stage, totals, f"{longest}, {_hours(parts[-1][longest])}", f"{plan['tasks'][stage]:,}"]
        yield "| " + " | ".join([*cells, *map(str, plan["terabytes"][stage])]) + " |"
    everything = [sum(sum(p.values()) for p in of_workers.values()) for of_workers in plan["hours"].values()]
    yield "| all | " + " | ".join(map(_hours, everything)) + " | | | | |"
    yield f"disk {plan['disk_terabytes']} TB; scheduler {plan['scheduler_mb']} MB; script {plan['script_gb']} GB"


def _hours(hours):
    """Two digits of them, and no power of ten."""
    return f"{float(f'{hours:.2g}'):g}"


def check(held_out, expected):
    """Seconds of each stage of the held-out run, and of all: measured, predicted, and the error."""
    measured = held_out["seconds"] | {"all": sum(held_out["seconds"].values())}
    predicted = {stage: sum(parts.values()) for stage, parts in expected.items()}
    predicted["all"] = sum(predicted.values())
    seconds = {stage: (round(s, 1), round(predicted[stage], 1)) for stage, s in measured.items()}
    return {
        stage: {"measured_s": m, "predicted_s": p, "error": round(p / m - 1, 2)} for stage, (m, p) in seconds.items()
    }

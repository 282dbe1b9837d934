"""What 10^8 and 10^9 rows would take: a cost of each kind of task, measured on small sets and checked on a larger one.

    python benchmarks/scale.py [--rows 100000 200000 400000 600000] [--held-out 1000000] [--folder FOLDER]

The constants of `cost_model.py` are fitted to runs of several numbers of rows n and of clusters K; the run of the
held-out n is only predicted. Sets are made by generate.py, 1,024 values a row, searched at 0.98.
"""

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import cost_model
import measure
import numpy as np
from cluster import process
from distributed.utils import open_port

from config import Config
from faiss_03_kmeans import default_clusters
from neardup.grouping.outputs import write_neighbors_pickle
from neardup.input.id_table import IdTable, repeated_rows, write_table
from neardup.input.shards import find_shards
from neardup.machine import engine

_THRESHOLD = 0.98
_TASKS = 5_000  # that do nothing


def main():
    """Measure, fit, check, and apply."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 200_000, 400_000, 600_000])
    parser.add_argument("--held-out", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--fit", action="store_true", help="use the runs that are in the results, and measure none")
    parser.add_argument("--name", default="scale", help="of the results' file")
    given = parser.parse_args()
    path, cores = measure.RESULTS / f"{given.name}.json", measure.machine()["cores"]
    if not given.fit:
        cost = measure_tasks()
        runs = measure_runs(given.folder, given.rows, given.held_out)
        measure.save(given.name, {"cost_of_a_task": cost, "runs": runs})
    found = json.loads(path.read_text())
    *known, held_out = found["runs"]
    model = cost_model.fit_all(known, cores)
    expected = cost_model.predict(model, held_out["rows"], held_out["clusters"], cores)
    found |= {"model": model, "check": cost_model.check(held_out, expected)}
    components = held_out["n_components"]
    found["plans"] = [cost_model.plan(model, n_rows, found["cost_of_a_task"], components) for n_rows in (10**8, 10**9)]
    path.write_text(json.dumps(found, indent=1) + "\n")
    for stage, seconds in found["check"].items():
        print(stage, seconds)
    for plan in found["plans"]:
        print("\n".join(cost_model.as_markdown(plan)))


def measure_runs(folder, rows, held_out):
    """Runs of each number of rows with two numbers of clusters, and of the held-out one."""
    data, work, runs = folder / "data", folder / "work", []
    for n_rows in (*rows, held_out):
        measure.generate(data, n_rows, dim=cost_model.DIM)
        factors = (1,) if n_rows == held_out else (1, 2.5)
        runs += [run(data, work, round(default_clusters(n_rows) * factor)) for factor in factors]
        shutil.rmtree(data)
        print(n_rows, runs[-1]["seconds"], file=sys.stderr, flush=True)
    return runs


def run(data, work, n_clusters):
    """Figures of a run: amounts of work, and what tasks and scripts took."""
    shutil.rmtree(work, ignore_errors=True)
    took = measure.pipeline(data, work, n_clusters=n_clusters, threshold=_THRESHOLD)
    results = {stage: measure.results_of(work, stage) for stage in measure.STAGES}
    times = {stage: measure.times_of(work, stage) for stage in measure.STAGES}
    alone = time_alone(data, work)
    sizes = np.bincount(np.load(work / "03_kmeans" / "labels.npy")).astype(float)
    search, inside = results["04_neighbor_search"], float((sizes**2).sum() / 2)
    shutil.rmtree(work)
    return {
        "rows": search["rows"],
        "n_components": results["01_pca_variance"]["n_components"],
        "clusters": len(sizes),
        "inside": inside,
        "across": search["compared"] - inside,
        "candidates": search["candidates"],
        "pairs": search["pairs"],
        "tasks": {named(stage, label): t for stage, found in times.items() for label, t in found["tasks"].items()}
        | alone,
        "seconds": {stage: took[script]["wall_s"] for stage, (script, _) in measure.STAGES.items()},
        "peak_bytes": {stage: t["peak_bytes"] for stage, t in times.items()},
    }


def time_alone(data, work):
    """What the two tasks take, by themselves, that can't be cut into parts."""
    shards, found, folder = find_shards(data), {}, work / "alone"
    folder.mkdir()
    began = time.perf_counter()
    hashes = write_table(folder / "ids.arrow", shards)
    ids = IdTable.open(folder / "ids.arrow")
    repeated = repeated_rows(hashes, ids)
    found["01 ids"] = time.perf_counter() - began
    shutil.copy(work / "04_neighbor_search" / "neighbors.h5", folder)
    stage = SimpleNamespace(path=lambda name: folder / name, part=lambda name, suffix: folder / (name + suffix))
    began = time.perf_counter()
    labels_path = work / "03_kmeans" / "labels.npy"
    write_neighbors_pickle(stage, ids, 2**28, labels_path=labels_path, repeated=repeated)
    found["04 pickle"] = time.perf_counter() - began
    return {label: {"tasks": 1, "seconds": round(seconds, 3)} for label, seconds in found.items()}


def named(stage, label):
    """A label that says its stage."""
    return label if label[0].isdigit() else f"{stage.split('_')[0]} {label}"


def measure_tasks():
    """Seconds that a task takes which does nothing, and bytes of the scheduler and the script."""
    port = open_port()
    with process("scheduler", "--host", "127.0.0.1", "--port", port) as scheduler, ExitStack() as workers:
        for _ in range(2):
            options = ["--nthreads", 1, "--no-nanny", "--host", "127.0.0.1"]
            workers.enter_context(process("worker", f"tcp://127.0.0.1:{port}", *options))
        with engine.scheduled(Config(_cli_parse_args=[], scheduler=f"tcp://127.0.0.1:{port}")):
            engine.run(time.sleep, [(0,)] * 100, None, "first")
            before, began = [peak_bytes(pid) for pid in (scheduler.pid, os.getpid())], time.perf_counter()
            engine.run(time.sleep, [(0,)] * _TASKS, None, "tasks")
            seconds = time.perf_counter() - began
            after = [peak_bytes(pid) for pid in (scheduler.pid, os.getpid())]
    more = [round((b - a) / _TASKS) for a, b in zip(before, after, strict=True)]
    return {"seconds": round(seconds / _TASKS, 5), "scheduler_bytes": more[0], "script_bytes": more[1]}


def peak_bytes(pid):
    """Peak resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()

"""From one worker process to two, each on a core of its own: seconds of each stage's tasks on Dask's distributed.

    python benchmarks/cluster.py [--rows 300000] [--dim 1024] [--folder FOLDER]

A scheduler and its workers are started here, with no threads but their own, pinned with sched_setaffinity; the script
and the scheduler may use any core. The set is made by generate.py, and removed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import measure
from distributed.utils import open_port

_MORE_CLUSTERS = 3_216  # as some 10^7 to 10^8 rows have
_PHASES = {  # what is compared: the tasks of a stage, by their labels
    "1": ("01 moments",),
    "2": ("02 project",),
    "3, assignment": ("03 assign",),
    "3, assignment to 3,216 clusters": ("03 assign, more clusters",),
    "4": ("04 visits", "04 search inside clusters", "04 search across borders", "04 verify", "04 audit"),
}


@contextmanager
def process(*command, core=None):
    """Yield a process of Dask that ends with the block, on one core or any."""
    pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
    environment = {**os.environ, "PYTHONPATH": str(measure.ROOT)}
    command = [sys.executable, "-m", "dask", *map(str, command), "--no-dashboard"]
    running = subprocess.Popen(command, env=environment, preexec_fn=pin, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def tasks_of(data, small, work, cores):
    """Run the pipeline on a worker a core. Returns {label: {"tasks", "seconds"}} of all stages, and their seconds.

    small: a set that is run first, for workers load libraries with their first tasks, and stay.
    """
    shutil.rmtree(work, ignore_errors=True)
    port, found, seconds = open_port(), {}, {}
    with ExitStack() as processes:
        processes.enter_context(process("scheduler", "--host", "127.0.0.1", "--port", port))
        for core in cores:
            options = ["--nthreads", 1, "--no-nanny", "--host", "127.0.0.1"]
            processes.enter_context(process("worker", f"tcp://127.0.0.1:{port}", *options, core=core))
        time.sleep(5)  # for all to be there: a script that finds one begins
        cluster = {"scheduler": f"tcp://127.0.0.1:{port}"}
        measure.pipeline(small, work, n_clusters="None", **cluster)
        shutil.rmtree(work)
        measure.pipeline(data, work, n_clusters="None", **cluster)
        for stage in measure.STAGES:
            times = measure.times_of(work, stage)
            found |= times["tasks"]
            seconds[stage] = times["seconds"]
        measure.pipeline(data, work, measure.SCRIPTS[2:3], n_clusters=_MORE_CLUSTERS, **cluster)
        found["03 assign, more clusters"] = measure.times_of(work, "03_kmeans")["tasks"]["03 assign"]
    shutil.rmtree(work)
    return found, seconds


def main():
    """Measure one worker and two in turn, and keep the best of each: what disturbs them only takes time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--name", default="cluster", help="of the results' file")
    given = parser.parse_args()
    data, work, cores = given.folder / "data", given.folder / "work", sorted(os.sched_getaffinity(0))[:2]
    small = given.folder / "small"
    measure.generate(small, 2_000, dim=given.dim)
    measure.generate(data, given.rows, dim=given.dim)
    runs = {1: [], 2: []}
    for _ in range(given.repeats):
        for n_workers, some in runs.items():
            some.append(tasks_of(data, small, work, cores[:n_workers]))
    for folder in (data, small):
        shutil.rmtree(folder)
    times = {}
    for stage, labels in _PHASES.items():
        one, two = (min(sum(r[0][label]["seconds"] for label in labels) for r in some) for some in runs.values())
        times[stage] = {"one_worker_s": round(one, 2), "two_workers_s": round(two, 2), "ratio": round(one / two, 2)}
        print(stage, times[stage])
    measure.save(given.name, {"rows": given.rows, "dim": given.dim, "tasks_of_stage": times, "runs": runs})


if __name__ == "__main__":
    main()

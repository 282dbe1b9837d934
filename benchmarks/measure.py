"""What the benchmarks share: the machine, a measured process, results as JSON and plots."""

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread

from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from neardup.stages.artifacts import STAGES  # noqa: E402

SCRIPTS = [script for script, _ in STAGES.values()]
_LOOK_S = 0.1  # how often the memory of a process and of those that it started is added up


def machine():
    """Processor, cores, memory and versions, for the record."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    return {
        "processor": named.get("model name", platform.processor()),
        "vector_units": [f for f in ("avx2", "avx512f", "amx_tile") if f in named.get("flags", "").split()],
        "blas": sorted({f"{p['internal_api']} {p['version']}, {p['architecture']}" for p in _blas()}),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "faiss-cpu", "scikit-learn", "dask")},
    }


def _blas():
    """What numpy multiplies by: which kernels it takes, an environment variable may have set."""
    return [pool for pool in threadpool_info() if pool["internal_api"] == "openblas"]


def run(command):
    """Run a command to its end. Returns (figures, what it printed): wall_s, cpu_s and peak_memory_mb of the process.

    Memory is resident, that of the process at its peak, or with those that it started whenever they are looked at;
    what they share is counted in each.
    """
    started = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    peaks, ended = [0], Event()
    watcher = Thread(target=_watch, args=(process.pid, peaks, ended))
    watcher.start()
    printed = process.stdout.read()
    ended.set()
    watcher.join()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))} ended with status {os.waitstatus_to_exitcode(status)}")
    figures = {
        "wall_s": round(time.perf_counter() - started, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_memory_mb": round(max(usage.ru_maxrss / 1024, *peaks)),
    }
    return figures, printed


def _watch(pid, peaks, ended):
    """Append the MB that a process and its children take, until it ended."""
    while not ended.wait(_LOOK_S):
        with suppress(OSError):
            children = [
                c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()
            ]
            pages = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in (pid, *children)]
            peaks.append(sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20)


def pipeline(data, work, scripts=SCRIPTS, **settings):
    """Run scripts, each as its own process. Returns figures a script.

    What was written before reaches the disk first: a script that flushes its files doesn't wait for those of others.
    """
    os.sync()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = ["--data-dir", data, "--work-dir", work, *options]
    return {script: run([sys.executable, ROOT / script, *command])[0] for script in scripts}


def seconds(figures):
    """Wall seconds of all scripts together. figures: of `pipeline`."""
    return round(sum(f["wall_s"] for f in figures.values()), 3)


def peak_memory(figures):
    """MB of the script that takes the most. figures: of `pipeline`."""
    return max(f["peak_memory_mb"] for f in figures.values())


def generate(folder, n_rows, **options):
    """Make a set by generate.py, in a process of its own.

    Linux counts what a process had in memory in the peaks of those that it starts.
    """
    more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    run([sys.executable, ROOT / "benchmarks" / "generate.py", folder, n_rows, *more])


def results_of(work, stage):
    """What a stage's manifest says it found."""
    return json.loads((Path(work) / stage / "manifest.json").read_text())["results"]


def times_of(work, stage):
    """What a stage and its tasks took."""
    return json.loads((Path(work) / stage / "times.json").read_text())


def save(name, results):
    """Keep results, with the machine they were measured on, in benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), **results}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"-> {RESULTS / name}.json")


def save_plot(name, draw):
    """Keep a plot as benchmarks/results/NAME.png. draw: is called with the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    draw(figure.add_subplot())
    figure.savefig(RESULTS / f"{name}.png", dpi=120, metadata={"Software": None})
    print(f"-> {RESULTS / name}.png")

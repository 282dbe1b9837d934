"""What rows that come to a finished run cost, a second set, and a few rows, beside the run itself.

    python benchmarks/growing.py [--rows 1000000] [--dim 1024] [--folder FOLDER]

A set of generate.py and 1 % more; the last shard is left out of the first run, then added, then the second set that
all the others are compared with. Ten vectors of it are looked for in the run, with no file in the system's cache where
that may be emptied (as root); what the process then read from the disk beside its libraries is counted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import measure
import numpy as np
from pipeline import measure_floor

_SETTINGS = {"n_clusters": "None", "threshold": 0.98}
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_COUNTED = """
import sys
from pathlib import Path
import h5py, pyarrow
from neardup.query import main
pyarrow.array(["libraries", "are", "no", "data"]).take(pyarrow.array([0]))
for path in {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}:
    Path(path).read_bytes()  # all of it, for a library is read as it is used
def read_bytes():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int([line for line in lines if line.startswith("read_bytes")][0].split()[1])
before = read_bytes()
main()
print(read_bytes() - before, file=sys.stderr)
"""


def query(data, work, vectors):
    """Figures of a query; and of another one, which has read all libraries, the bytes that it read from the disk."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in _SETTINGS.items()]
    options = [*map(str, ("--vectors", vectors, "--data-dir", data, "--work-dir", work)), *options]
    emptied, found = _DROP_CACHES.exists() and os.access(_DROP_CACHES, os.W_OK), {}
    for how in (["-m", "neardup.query"], ["-c", _COUNTED]):
        if emptied:
            os.sync()
            _DROP_CACHES.write_text("3")
        began = time.perf_counter()
        command = [sys.executable, *how, *options]
        done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, check=True)
        found = found or {"wall_s": round(time.perf_counter() - began, 3), "cache_emptied": emptied}
    return found | {"read_bytes": int(done.stderr.split()[-1])}


def main():
    """Measure, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path("work-benchmark"))
    parser.add_argument("--name", default="growing", help="of the results' file")
    given = parser.parse_args()
    data, second, work = (given.folder / name for name in ("data", "second", "work"))
    for folder in (data, second, work, given.folder / "against"):
        shutil.rmtree(folder, ignore_errors=True)
    measure.generate(data, given.rows + given.rows // 100, dim=given.dim)
    second.mkdir()
    last = sorted(data.glob("*.npy"))[-1]
    for path in (last, last.with_suffix(".txt")):
        path.rename(second / path.name)
    found = {"rows": given.rows, "more": len(np.load(second / last.name, mmap_mode="r"))}
    found["floor"] = measure_floor(data, given.dim // 3)
    found["whole"] = measure.pipeline(data, work, **_SETTINGS)
    vectors = given.folder / "vectors.npy"
    np.save(vectors, np.load(second / last.name, mmap_mode="r")[:10])
    against = {"against_dir": second, "against_work_dir": given.folder / "against" / "second"}
    for name in ("against", "against_again"):  # the second set's own stages are made the first time, and stay
        found[name] = measure.pipeline(data, given.folder / "against" / name, **against, **_SETTINGS)
    for path in second.iterdir():
        path.rename(data / path.name)
    found["grown"] = measure.pipeline(data, work, **_SETTINGS)
    found["query"] = [query(data, work, vectors) for _ in range(3)]
    found["share"] = round(measure.seconds(found["grown"]) / measure.seconds(found["whole"]), 3)
    reading = found["floor"]["read"] + found["floor"]["project"]
    times = {name: round(measure.seconds(found[name]) / reading, 2) for name in ("against", "against_again")}
    found["times_reading_and_projecting"] = times
    found["read_share"] = round(found["query"][0]["read_bytes"] / (4 * given.rows * given.dim), 4)
    for name in ("whole", "grown", "against", "against_again"):
        print(name, measure.seconds(found[name]), {script: s["wall_s"] for script, s in found[name].items()})
    print({name: found[name] for name in ("share", "times_reading_and_projecting", "query", "read_share")})
    shutil.rmtree(given.folder)
    measure.save(given.name, found)


if __name__ == "__main__":
    main()

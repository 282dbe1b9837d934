"""A million rows in 2 GiB of address space, the hardest limit there is: it counts what is merely mapped, too."""

import resource
import subprocess
import sys
from pathlib import Path

from conftest import SCRIPTS

from config import ROOT

LIMIT = 2 * 2**30


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


def run(*command, **options):
    """Run a command. Returns its peak resident memory in bytes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def test_a_million_rows_in_two_gibibytes(tmp_path):
    """A script is one process, so its limit is that of all processes."""
    data, work = tmp_path / "data", tmp_path / "work"
    run(Path("benchmarks") / "generate.py", data, 1_000_000, "--dim", 256)
    for script in SCRIPTS:
        run(script, "--data-dir", data, "--work-dir", work, "--memory-limit", "1GiB", preexec_fn=limit)
    assert (work / "045_merge" / "manifest.json").exists()

"""Each benchmark on a small set: it runs, and what it keeps is there. What it measures is nobody's to say here."""

import json
import shutil
import subprocess
import sys

import pytest

from config import ROOT

CONTENDERS = "faiss flat", "scikit-learn radius_neighbors"  # those that are exact, and need no other package
BENCHMARKS = {
    "kernel": ["kernel.py"],
    "thresholds": ["thresholds.py", "--rows", 2000],
    "search": ["search.py", "made", "--work", "work", "--threshold", 0.95, "--only", *CONTENDERS],
    "crowds": ["crowds.py", "--rows", 1000],
    "pipeline": ["pipeline.py", "--rows", 2000, 4000, "--dim", 64, "--repeats", 1],
    "growing": ["growing.py", "--rows", 100_000, "--dim", 32],
    "cluster": ["cluster.py", "--rows", 3000, "--dim", 64, "--repeats", 1],
    "scale": ["scale.py", "--rows", 2000, 4000, "--held-out", 6000],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The scripts and benchmarks elsewhere, and a set: results are kept beside the benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks") / "copy"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".*", "work", "work-*", "tests", "examples", "docs", "results")
    )
    run(folder, "generate.py", "made", 3000, "--dim", 64)
    return folder


def run(folder, script, *arguments):
    """A benchmark that ends well."""
    command = [sys.executable, folder / "benchmarks" / script, *arguments]
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_runs(copy, name):
    script, *arguments = BENCHMARKS[name]
    run(copy, script, *arguments, *([] if name == "kernel" else ["--name", name]))
    found = json.loads((copy / "benchmarks" / "results" / f"{name}.json").read_text())
    assert found["machine"]["cores"] > 0
    if name == "search":
        found = found["by_threshold"]["0.95"]
        assert [found[of]["recall"] for of in ("this project", *CONTENDERS)] == [1, 1, 1]
    if name == "thresholds":
        assert {row["missed"] for row in found["by_threshold"]} == {0}

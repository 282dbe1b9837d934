"""Runs that grow, and two sets: more histories, thresholds and sizes than in the quick tests, and other processes."""

import random
import shutil
import subprocess
import sys
import time

import pytest
from conftest import SCRIPTS, answer, command
from test_against import check_between
from test_growing import SETTINGS, check_decisions, follow_history, grown_run  # noqa: F401

from config import ROOT


@pytest.mark.parametrize("threshold", [0.98, 0.9, 0.8])
@pytest.mark.parametrize("seed", range(2))
def test_a_long_history(tmp_path, threshold, seed):
    follow_history(tmp_path / "history", threshold, seed, steps=8)


@pytest.mark.parametrize("threshold", [0.98, 0.95, 0.9, 0.85])
@pytest.mark.parametrize("sizes", [(2000, 1000), (300, 2700), (1, 3000), (3000, 1), (1500, 1500)])
def test_two_sets(tmp_path, sizes, threshold):
    check_between(tmp_path, sizes, threshold)


def test_earlier_decisions_are_kept(tmp_path):
    check_decisions(tmp_path, "split")


@pytest.mark.parametrize("seed", range(3))
def test_killed_while_it_grows(grown_run, tmp_path, seed):  # noqa: F811
    """Each script at a random moment; then it goes on, and ends with the answer of an undisturbed run."""
    shutil.copytree(grown_run / "before", tmp_path / "work")
    rng, options = random.Random(seed), [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    folders = "--data-dir", str(grown_run / "data"), "--work-dir", str(tmp_path / "work")
    for script in SCRIPTS:
        running = subprocess.Popen([sys.executable, str(ROOT / script), *folders, *options], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.3))
        running.kill()
        running.wait()
        done = command(script, *folders, *options)
        assert done.returncode == 0, done.stderr
    assert answer(tmp_path / "work") == answer(grown_run / "after")


def test_a_run_grows_in_other_processes(grown_run, tmp_path):  # noqa: F811
    shutil.copytree(grown_run / "before", tmp_path / "work")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    folders = "--data-dir", grown_run / "data", "--work-dir", tmp_path / "work"
    for script in SCRIPTS:
        done = command(script, *folders, *options, "--scheduler", "processes")
        assert done.returncode == 0, done.stderr
    assert answer(tmp_path / "work") == answer(grown_run / "after")

"""Each script killed at random moments, again and again, then left alone: the same bytes as an undisturbed run."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import EXAMPLE, SCRIPTS, command, tree_bytes

from config import ROOT
from neardup.stages.artifacts import STAGES

NAMES = list(STAGES)
KILLS = 40  # of each script
OPTIONS = ["--threshold", "0.9", "--memory-limit", "320MiB"]


def start(script, work):
    """A script as a process of its own."""
    words = [sys.executable, ROOT / script, "--data-dir", EXAMPLE, "--work-dir", work, *OPTIONS]
    return subprocess.Popen(
        list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finish(script, work):
    """Run a script to its end. Returns the seconds it took."""
    started = time.monotonic()
    process = start(script, work)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return time.monotonic() - started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Work folder of an undisturbed run, and how long each script took."""
    work = tmp_path_factory.mktemp("whole") / "work"
    return work, [finish(script, work) for script in SCRIPTS]


@pytest.mark.parametrize("stage", range(5))
def test_killed_again_and_again(whole, tmp_path, stage, record_property):
    (undisturbed, seconds), rng = whole, random.Random(stage)
    kills = tries = 0
    while kills < KILLS:
        work = tmp_path / str(tries)
        work.mkdir()
        for name in [".input.json", *NAMES[:stage]]:
            copy = shutil.copytree if name in NAMES else shutil.copy2
            copy(undisturbed / name, work / name)
        for _ in range(rng.randint(2, 8)):  # so many runs are killed before one is not
            process, signaled = start(SCRIPTS[stage], work), rng.choice([signal.SIGKILL, signal.SIGTERM])
            time.sleep(rng.uniform(0.2, 1.1) * seconds[stage])
            process.send_signal(signaled)
            said = process.communicate(timeout=120)[1]
            assert process.returncode in (0, -signaled, 143), said
            kills += process.returncode != 0
            if process.returncode == 0:
                break
        finish(SCRIPTS[stage], work)
        assert tree_bytes(work) == {
            name: content
            for name, content in tree_bytes(undisturbed).items()
            if Path(name).parts[0] in NAMES[: stage + 1]
        }
        shutil.rmtree(work)
        tries += 1
    print(f"\n{SCRIPTS[stage]}: killed {kills} times, {tries} runs ended with the same bytes")


def test_a_second_run_gives_the_same_bytes(tmp_path):
    """In processes of their own: what an interrupted test left running here may change the threads of a sum."""
    for work in (tmp_path / "one", tmp_path / "another"):
        for script in SCRIPTS:
            assert command(script, "--work-dir", work).returncode == 0
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "another")

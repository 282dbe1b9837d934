"""The five scripts on workers of Dask: the same bytes as on threads, and a clear word where that can't be."""

import os
import re
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import NOTES, SCRIPTS, command, until, work_before
from distributed import Client
from distributed.utils import open_port
from workers import (
    NAMES,
    OPTIONS,
    SETTINGS,
    begin,
    begin_anywhere,
    bucket,
    download,
    ended,
    hosts,
    process,
    refused,
    same,
    scheduler,
    slow_worker,
    started,
    two_networks,
    whole,
    worker,
)

from config import ROOT
from neardup import NeardupError
from neardup.machine import engine
from neardup.machine.checksums import digest_of_bytes
from neardup.machine.workers import environment


def test_the_commands_for_two_hosts(whole, tmp_path):
    """Of docs/cluster.md, on one: its scheduler, its two workers, its loop."""
    text = (ROOT / "docs" / "cluster.md").read_text().split("## By hand, on two hosts")[1].split("\n## ")[0]
    for said, here in (
        ("10.0.0.1", "127.0.0.1"),
        ("8786", str(open_port())),
        (".venv/bin/", f"{Path(sys.executable).parent}/"),
    ):
        text = text.replace(said, here)
    *starts, loop = [block.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.S)]
    starts = [line for block in starts for line in block.splitlines()]
    assert len(starts) == 3
    settings = {f"NEARDUP_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    folders = {"NEARDUP_DATA_DIR": str(whole / "data"), "NEARDUP_WORK_DIR": str(tmp_path / "work")}
    with ExitStack() as stack:
        for line in starts:
            stack.enter_context(process(*shlex.split(line.replace("$PWD", str(ROOT)))))
        environment = {**os.environ, **settings, **folders}
        status, out, lines = ended(started(["bash", "-c", loop], env=environment, cwd=ROOT))
    assert (status, lines) == (0, [])
    assert "0 missed, 0 false" in out
    same(whole, tmp_path / "work")
    assert {p.name for p in (tmp_path / "work").iterdir()} - NOTES == {*NAMES}


def test_other_versions_are_said(whole, tmp_path):
    """Of a package, as its metadata say; and sources that differ in a comment."""
    metadata, sources, port = tmp_path / "faiss_cpu-0.1.dist-info", tmp_path / "sources", open_port()
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: faiss-cpu\nVersion: 0.1\n")
    shutil.copytree(ROOT / "neardup", sources / "neardup")
    for path in (*ROOT.glob("*.py"), ROOT / "requirements.txt"):
        shutil.copy(path, sources)
    with scheduler(port):
        with worker(port, PYTHONPATH=f"{tmp_path}:{ROOT}"):
            assert "has faiss-cpu 0.1, not " in refused(whole, tmp_path / "work", port)
        (sources / "config.py").write_text((ROOT / "config.py").read_text() + "# mine")
        with worker(port, PYTHONPATH=str(sources)):
            assert "has these scripts " in refused(whole, tmp_path / "work", port)
        with worker(port, "--nthreads", 2):
            assert "has 2 threads: start workers with --nthreads 1" in refused(whole, tmp_path / "work", port)
        with worker(port, PYTHONPATH=""):
            assert "can't import these scripts" in refused(whole, tmp_path / "work", port)


def test_an_error_of_a_task_is_said(whole, tmp_path):
    """Not taken for one of the scheduler, though it names no file either."""
    port = open_port()
    with scheduler(port), slow_worker(port, -1):
        assert "No space left on device; mend that" in refused(whole, tmp_path, port)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("dask_none.Cluster", "{}", "scheduler = 'dask_none.Cluster': No module named 'dask_none': set it"),
        ("json.JSONDecoder", "{}", "scheduler = 'json.JSONDecoder': 'JSONDecoder' object has no attribute 'scale'"),
        (
            "distributed.LocalCluster",
            '{"nope": 1}',
            "scheduler = 'distributed.LocalCluster' with scheduler_options of ['nope']: Server.__init__() got an "
            "unexpected keyword argument 'nope'",
        ),
    ],
)
def test_a_class_that_is_none_of_clusters(whole, tmp_path, kind, options, said):
    folders = "--data-dir", whole / "data", "--work-dir", tmp_path
    done = command(SCRIPTS[0], *folders, "--scheduler", kind, "--n-workers=1", "--scheduler-options", options)
    assert said in done.stderr.splitlines()[-1]
    assert done.returncode == 1


def test_processes_of_this_machine(whole, tmp_path):
    work, options = work_before(NAMES[3], whole, tmp_path / "work"), ["--scheduler=processes", "--n-workers=2"]
    done = command(SCRIPTS[3], "--data-dir", whole / "data", "--work-dir", work, *OPTIONS, *options)
    assert done.returncode == 0, done.stderr
    same(whole, work, NAMES[:4])


WAITS = "waiting for tasks of an earlier script in this work folder\n"


def first_line_of(running):
    """What it says first, beside the dashboard's address."""
    while (line := running.stderr.readline()).startswith("dashboard: http://"):
        pass
    return line


def test_tasks_of_a_script_that_was_killed_are_waited_for(whole, tmp_path):
    """They write where those of the next one do, of other settings."""
    work, port, slow = work_before(NAMES[1], whole, tmp_path / "work"), open_port(), tmp_path / "slow"
    begun = work / f".{NAMES[1]}.partial" / "begun.json"
    slow.symlink_to(begun)
    with scheduler(port), slow_worker(port, 0, NEARDUP_TEST_WHILE=str(slow)):
        killed = begin_anywhere(SCRIPTS[1], whole / "data", work, port, NEARDUP_SKETCH_DIMS="5")
        with Client(f"tcp://127.0.0.1:{port}") as client:
            until(lambda: begun.exists() and "wait_while" in str(client.call_stack()), killed)
        killed.kill()
        killed.communicate()
        running = begin(SCRIPTS[1], whole, work, port)
        line = first_line_of(running)
        slow.unlink()
        status, _, lines = ended(running)
    assert line == WAITS
    assert (status, lines) == (0, [])
    same(whole, work, NAMES[:2])


def test_tasks_that_have_not_begun_are_waited_for(whole, tmp_path):
    """The scheduler hasn't noticed that their script ended, as where its host went: it would begin them.

    Those of another folder take all that it hands to a worker at a time.
    """
    work, port, slow = work_before(NAMES[1], whole, tmp_path / "work"), open_port(), tmp_path / "slow"
    slow.touch()
    until_gone, log = f"timeout 300 sh -c 'while [ -e {slow} ]; do sleep 0.1; done'", tmp_path / "log"
    with scheduler(port), slow_worker(port, 0), Client(f"tcp://127.0.0.1:{port}") as client:
        client.wait_for_workers(1)
        mark = digest_of_bytes(os.fsencode(work))[:16]
        others = client.map(os.system, [until_gone] * 2, key=[f"02 project-{i:06}-other" for i in range(2)])
        says = [f"ls -a {work} >> {log}"] * 8
        theirs = client.map(os.system, says, key=[f"02 project-{i:06}-{mark}" for i in range(8)])
        running = begin(SCRIPTS[1], whole, work, port)
        line = first_line_of(running)
        slow.unlink()
        status, _, lines = ended(running)
        assert client.gather([*others, *theirs]) == [0] * 10
    assert line == WAITS
    assert (status, lines) == (0, [])
    assert NAMES[1] not in log.read_text()
    same(whole, work, NAMES[:2])


def test_workers_that_come_later_are_compared_too(monkeypatch):
    """By the first task that they get."""
    monkeypatch.setattr("neardup.machine.files._writer", "")
    assert engine.on_worker(pow, 1, [], environment(), 2, 3) == 8
    with pytest.raises(NeardupError, match=r"worker on .* has these scripts .*, not others: install the same"):
        engine.on_worker(pow, 1, [], environment() | {"these scripts": "others"}, 2, 3)

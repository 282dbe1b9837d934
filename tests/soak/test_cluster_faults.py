"""Workers and schedulers that die, hang or are slow: the same bytes as on threads."""

import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial

import pytest
from conftest import SCRIPTS, until, work_before
from distributed import Client
from distributed.utils import open_port
from workers import (
    NAMES,
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
    two_networks,
    upload,
    whole,
    worker,
)

from neardup.stages.artifacts import STAGES


@pytest.mark.filterwarnings("ignore")
def test_hosts_that_share_nothing_but_a_bucket(whole, bucket, tmp_path):
    """Input and work folder are there; script and workers have disks of their own."""
    (client, keys), port = bucket, open_port()
    script_host, *worker_hosts = hosts(tmp_path, "script", "worker-1", "worker-2")
    with scheduler(port), ExitStack() as workers:
        for host in worker_hosts:
            workers.enter_context(worker(port, **keys, **host))
        for script in SCRIPTS:
            running = begin_anywhere(script, "s3://bucket/data", "s3://bucket/work", port, **keys, **script_host)
            status, out, lines = ended(running)
            assert (status, lines) == (0, [])
            assert f"-> s3://bucket/work/{NAMES[SCRIPTS.index(script)]} (" in out
    work = download(client, "work", tmp_path / "work")
    same(whole, work)
    assert {path.name for path in work.iterdir()} == {*NAMES}


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root, and iproute2")
def test_two_hosts_with_networks_of_their_own(whole, tmp_path):
    """Scheduler and script on one, the worker on the other."""
    port, dask = 8786, [sys.executable, "-m", "dask"]
    with two_networks() as ((first, within_first), (second, within_second)):
        start = [*within_first, *dask, "scheduler", "--host", first, "--port", port, "--no-dashboard"]
        join = [*within_second, *dask, "worker", f"tcp://{first}:{port}", "--host", second, "--no-dashboard"]
        with process(*start), process(*join, "--nthreads", 1, "--no-nanny"):
            for script in SCRIPTS:
                status, _, lines = ended(begin(script, whole, tmp_path, port, first, within_first))
                assert (status, lines) == (0, [])
    same(whole, tmp_path)


def has_done_something(work, name):
    """Whether there is a first file of a stage."""
    found = (work / f".{name}.partial").rglob("*")
    return any(p.is_file() and p.name != "begun.json" and not p.name.endswith(".tmp") for p in found)


@pytest.mark.parametrize(("name", "how"), [*((name, signal.SIGKILL) for name in NAMES), (NAMES[3], signal.SIGSTOP)])
def test_a_worker(whole, tmp_path, name, how):
    """While it has tasks; one that hangs is given up after the scheduler's worker-ttl."""
    work, port = work_before(name, whole, tmp_path / "work"), open_port()
    with scheduler(port), slow_worker(port, 0.2) as first, slow_worker(port, 0.2):
        running = begin(STAGES[name][0], whole, work, port)
        until(partial(has_done_something, work, name), running)
        first.send_signal(how)
        status, _, lines = ended(running)
        assert (status, lines) == (0, [])
    same(whole, work, NAMES[: NAMES.index(name) + 1])


def test_a_worker_that_hangs_when_a_script_begins(whole, tmp_path):
    """It is given up, too, and the others do."""
    port = open_port()
    with scheduler(port), worker(port) as hangs, worker(port):
        with Client(f"tcp://127.0.0.1:{port}") as client:
            client.wait_for_workers(2)
        hangs.send_signal(signal.SIGSTOP)
        status, _, lines = ended(begin(SCRIPTS[0], whole, tmp_path, port))
        assert (status, lines) == (0, [])
    same(whole, tmp_path, NAMES[:1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_worker_killed_where_all_is_in_a_bucket(whole, bucket, tmp_path, name):
    """Hosts share no disk; what the dead one had put into the bucket stays."""
    (client, keys), port, prefix = bucket, open_port(), f"killed/{name}"
    upload(client, work_before(name, whole, tmp_path / "before"), prefix)
    script_host, *worker_hosts = hosts(tmp_path, "script", "worker-1", "worker-2")
    first, second = (slow_worker(port, 0.3, **keys, **host) for host in worker_hosts)
    with scheduler(port), first as killed, second:
        places = "s3://bucket/data", f"s3://bucket/{prefix}"
        running = begin_anywhere(STAGES[name][0], *places, port, **keys, **script_host)
        begun = {f"{prefix}/.{name}.partial/begun.json"}
        while running.poll() is None and keys_of(client, f"{prefix}/.{name}.partial") <= begun:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        status, _, lines = ended(running)
        assert (status, lines) == (0, [])
    same(whole, download(client, prefix, tmp_path / "work"), NAMES[: NAMES.index(name) + 1])


def keys_of(client, prefix):
    """What the bucket holds below a prefix."""
    return {entry["Key"] for entry in client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])}


@pytest.mark.parametrize("name", NAMES)
def test_the_scheduler_killed_and_started_again(whole, tmp_path, name):
    work, port = work_before(name, whole, tmp_path / "work"), open_port()
    with ExitStack() as second:
        with scheduler(port) as killed, slow_worker(port, 0.2), slow_worker(port, 0.2):
            running = begin(STAGES[name][0], whole, work, port)
            until(partial(has_done_something, work, name), running)
            killed.kill()
            killed.wait()
        for start in (scheduler(port), slow_worker(port, 0), slow_worker(port, 0)):
            second.enter_context(start)
        status, _, lines = ended(running)
        said = [f"the scheduler at tcp://127.0.0.1:{port} is gone; waiting for it to come back"]
        assert status == 0, lines
        assert lines == said or (lines == [] and name != "04_neighbor_search")  # it may be back before it is missed
    same(whole, work, NAMES[: NAMES.index(name) + 1])


def test_a_worker_that_is_slow(whole, tmp_path):
    port = open_port()
    with scheduler(port), slow_worker(port, 0.3), slow_worker(port, 0):
        for script, _ in STAGES.values():
            status, _, lines = ended(begin(script, whole, tmp_path, port))
            assert (status, lines) == (0, [])
    same(whole, tmp_path)


def test_a_task_that_ends_its_workers(whole, tmp_path):
    """Said, with its name; another start goes on."""
    port = open_port()
    with scheduler(port, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0"):
        with slow_worker(port, 100) as dying:
            running = begin(STAGES[NAMES[0]][0], whole, tmp_path, port)
            until(partial(has_done_something, tmp_path, NAMES[0]), running)
            time.sleep(3)  # for the task to begin
            dying.kill()
            status, _, lines = ended(running)
        assert (status, len(lines)) == (1, 1), lines
        assert "task '01 " in lines[0]
        assert "ended 1 workers, the last one tcp://127.0.0.1:" in lines[0]
        with slow_worker(port, 0):
            assert ended(begin(STAGES[NAMES[0]][0], whole, tmp_path, port))[0] == 0
    same(whole, tmp_path, NAMES[:1])


def test_no_scheduler_is_said(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "2s")
    port = open_port()
    assert f"no Dask scheduler answers at tcp://127.0.0.1:{port}" in refused(whole, tmp_path, port)

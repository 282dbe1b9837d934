"""Processes of a script's own: the same answer as threads; errors, kills and interrupts end them."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import EXAMPLE, SCRIPTS, run_scripts, run_stages, settings_of, tree_bytes
from threadpoolctl import threadpool_info

import faiss_04_neighbor_search
from config import ROOT
from neardup import NeardupError
from neardup.machine import engine
from neardup.machine.pool import started
from neardup.machine.threads import limited_in_thread

MEMORY = 4 * 2**30
WAITS = """
import os, sys, time
from config import Config
from neardup.machine import engine
if __name__ == "__main__":
    config = Config(n_workers=2)
    with engine.in_processes(config, 2**32, True):
        print(*engine.run(os.getpid, [()] * 20, 2, "who"), flush=True)
        engine.run(time.sleep, [(60,)] * 2, 2, "waiting")
"""


@pytest.fixture(autouse=True)
def no_mirrors(monkeypatch):
    """As in a script whose work folder is its own: other tests attach theirs to this process."""
    monkeypatch.setattr("neardup.machine.mirror._attached", {})


def fail(number):
    """A task that fails."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"file-{number}")


def end(_):
    """A task whose process ends."""
    os._exit(3)


def where(_):
    return os.getpid()


def test_the_answer_is_that_of_threads(tmp_path, monkeypatch):
    """Every file of stage 4, to the byte; and the tasks were elsewhere."""
    run_stages(EXAMPLE, tmp_path, n_workers=2)
    before = tree_bytes(tmp_path / "04_neighbor_search")
    (tmp_path / "04_neighbor_search").rename(tmp_path / "before")
    monkeypatch.setattr(faiss_04_neighbor_search, "_MUCH", 0)
    calls, call = [], engine.run  # also of `run_in_turn`
    monkeypatch.setattr(engine, "run", lambda *a: calls.append((a[3], engine._pool is not None)) or call(*a))
    run_scripts(settings_of(EXAMPLE, tmp_path, n_workers=2), SCRIPTS[3:4])
    assert tree_bytes(tmp_path / "04_neighbor_search") == before
    assert {label for label, apart in calls if apart} >= {"04 visits", "04 search across borders", "04 verify"}


def test_results_come_in_order_and_from_other_processes():
    config = settings_of(EXAMPLE, ROOT, n_workers=2)
    with engine.in_processes(config, MEMORY, True):
        assert engine.run(pow, [(i, 2) for i in range(50)], 2, "squares") == [i * i for i in range(50)]
        pids = set(engine.run(where, [(i,) for i in range(50)], 2, "where"))
        [apart] = engine.compute([(engine.apart(where), 0)], 2, "where")
    assert os.getpid() not in pids | {apart}
    assert [*engine.run(where, [(0,)], 2, "where")] == [os.getpid()]


@pytest.mark.parametrize("count", [2, 11, 101])
def test_tasks_begin_in_their_order(count):
    """Of several functions, too, so that one that takes long can be begun before many that don't."""
    begun, others = [], []
    tasks = [(begun.append, 0), *((lambda i: begun.append(i) or others.append(i), i) for i in range(1, count))]
    assert engine.compute([*tasks, (begun.append, count)], 1, "in order") == (None,) * (count + 1)
    assert begun == [*range(count + 1)] and others == [*range(1, count)]


def finds_pandas(_):
    try:
        return find_spec("pandas") is not None
    except ModuleNotFoundError:
        return False


def test_processes_load_no_pandas():
    """As Arrow would in each, where it is installed."""
    with engine.in_processes(settings_of(EXAMPLE, ROOT, n_workers=2), MEMORY, True):
        assert [*engine.run(finds_pandas, [(0,), (1,)], 2, "find")] == [False, False]


@pytest.mark.parametrize(("memory", "is_much", "n_workers"), [(MEMORY, False, 2), (2**29, True, 2), (MEMORY, True, 1)])
def test_threads_where_processes_do_not_pay_or_have_no_room(memory, is_much, n_workers):
    with engine.in_processes(settings_of(EXAMPLE, ROOT, n_workers=n_workers), memory, is_much):
        assert [*engine.run(where, [(0,)], n_workers, "where")] == [os.getpid()]


class Counts:
    """A task that says how often it was called, in a process."""

    def __init__(self):
        self.called = 0

    def __call__(self, _):
        self.called += 1
        return self.called


def test_all_tasks_of_a_run_are_of_one_object():
    """In each process; what it has opened stays open. That of the next run is another one."""
    counts = Counts()
    with started(1, 1) as pool:
        for _ in range(2):
            assert pool.run(counts, [(i,) for i in range(9)], {"disable": True}) == [*range(1, 10)]
    assert counts.called == 0


def test_an_error_of_a_task_is_that_of_the_script():
    with started(2, 1) as pool, pytest.raises(OSError, match="file-0") as raised:
        pool.run(fail, [(0,)], {"disable": True})
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == "file-0"


def test_a_process_that_ends_is_noticed():
    with started(2, 1) as pool, pytest.raises(NeardupError, match="a process of this script was ended"):
        pool.run(end, [(0,)], {"disable": True})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_script(tmp_path, number):
    """However that ends."""
    (tmp_path / "waits.py").write_text(WAITS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "waits.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as script:
        pids = {int(pid) for pid in script.stdout.readline().split()}
        assert pids
        assert script.pid not in pids
        script.send_signal(number)
    deadline = time.monotonic() + 20
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, pids))


def is_there(pid):
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sums_are_the_same_in_processes():
    """What a task computes doesn't depend on where it does: threads of BLAS are limited there, too."""
    rows, others = np.random.default_rng(0).normal(size=(2, 300, 64)).astype(np.float32)  # of one, numpy takes syrk
    here = engine.run(np.dot, [(rows, others.T)], 2, "here")[0]
    with engine.in_processes(settings_of(EXAMPLE, ROOT, n_workers=2), MEMORY, True):
        there = engine.run(np.dot, [(rows, others.T)], 2, "there")[0]
    assert np.array_equal(here, there)


def blas_threads():
    """How many threads each BLAS of this process may have, to this thread."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_a_thread_that_lives_on_does_not_limit_what_comes_after_it(monkeypatch):
    """As one of Dask's does that began a task when another had failed and the run was over."""
    monkeypatch.setattr(engine, "cores", lambda: 3)
    assert engine.run_here(blas_threads, label="before") == {3}
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(limited_in_thread, pow, 1, 2, 5).result() == 32
        assert engine.run_here(blas_threads, label="after") == {3}


def test_a_process_that_ends_while_nothing_is_to_do_is_noticed():
    with started(2, 1) as pool:
        pids = pool.run(where, [(i,) for i in range(9)], {"disable": True})
        os.kill(pids[0], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while is_there(pids[0]) and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(NeardupError, match="a process of this script was ended"):
            for _ in range(99):
                pool.run(where, [(0,)], {"disable": True})
                time.sleep(0.05)

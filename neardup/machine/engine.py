"""Tasks side by side, with Dask.

Tasks are threads of the script, or in processes of its own (`neardup.machine.pool`), or on the workers of a cluster
(`neardup.machine.workers`) for as long as one is in use.
"""

import os
import re
import resource
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from uuid import uuid4

import dask
from dask import threaded
from tqdm.dask import TqdmCallback

from neardup.machine import mirror
from neardup.machine.checksums import digest_of_bytes
from neardup.machine.files import write_beside_others
from neardup.machine.npy import PARSING
from neardup.machine.threads import cores, limit_threads, limited, limited_in_thread

_workers = None  # that tasks run on; None: they are threads of this process
_of_folder = ""  # in the names of a cluster's tasks: which work folder they write to, of two sets that of either
_pool = None  # of processes that tasks run on
_processes = 0  # that this one has started
_took = {}  # tasks, and the seconds they took together, by label


@contextmanager
def scheduled(config):
    """Let tasks run where `config.scheduler` says. Raises NeardupError where that isn't ready for them."""
    global _workers, _of_folder
    limit_threads(1)  # between tasks: a library's other threads, once used, wait for more by turning in circles
    if config.scheduler == "threads":
        yield
        return
    from neardup.machine.workers import connected  # takes half a second

    folders = [config.work_dir] if config.against_dir is None else [config.work_dir, config.reference.work_dir]
    marks = [digest_of_bytes(os.fsencode(mirror.shown(folder)))[:16] for folder in folders]
    _of_folder = "-".join(marks)
    with connected(config, marks) as workers:
        _workers = workers
        try:
            yield
        finally:
            _workers = None


def is_local():
    """Whether all tasks run on this machine, in processes that end with it."""
    return _workers is None or _workers.name == "processes"


@contextmanager
def in_processes(config, memory, is_much):
    """Let what is `run` meanwhile be tasks of processes, if it is much and there is room for them.

    They are those of `neardup.machine.pool`. memory: bytes of blocks, of which tasks take half.
    """
    global _pool, _processes
    n_processes = worker_count(config.n_workers)
    if _workers or mirror.attached() or not is_much or n_processes == 1:
        yield
        return
    from neardup.machine.pool import PROCESS_BYTES, started  # takes 50 ms

    if memory / 2 < n_processes * PROCESS_BYTES:
        yield
        return
    with started(n_processes, max(1, cores() // n_processes)) as _pool:
        _processes = n_processes
        try:
            yield
        finally:
            _pool = None


def peak_bytes():
    """Most resident memory of this process and those it started, as if their peaks came at one time: an upper bound."""
    status = Path("/proc/self/status").read_text()  # getrusage begins with the peak of who started it
    own, others = int(re.search(r"VmHWM:\s+(\d+)", status)[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return 1024 * (own + _processes * others)


def open_more_files():
    """Raise the limit of open files to what the system allows: each memory-mapped file takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def task_slots(n_workers):
    """Tasks at a time, everywhere."""
    return _workers.n_workers if _workers else worker_count(n_workers)


def worker_count(n_workers):
    """Tasks at a time in a process: as set, or one a core it may use; on a cluster one, for a worker is a process."""
    return 1 if _workers else n_workers or cores()


def compute(tasks, n_workers, label):
    """Results of tasks, (function, *arguments) each, in order. They begin in that order: put first what takes long.

    At most `n_workers` at a time, with a progress bar; each task's BLAS and OpenMP threads are limited so that tasks
    times threads are no more than the cores.
    """
    with _timed(label, len(tasks)):
        if _workers:
            return _workers.compute(_on_workers(tasks, label), _bar(label))
        return _compute_here(tasks, n_workers or cores(), label)


@contextmanager
def _timed(label, n_tasks):
    """Note what so many tasks of a label take together."""
    began = time.perf_counter()
    yield
    n_before, seconds = _took.get(label, (0, 0))
    _took[label] = n_before + n_tasks, seconds + time.perf_counter() - began


def took():
    """{label: {"tasks", "seconds"}} of the tasks that this process has run so far."""
    return {label: {"tasks": n_tasks, "seconds": round(s, 3)} for label, (n_tasks, s) in _took.items()}


def _bar(label):
    """How a progress bar looks: at a terminal; else what goes on for long says so now and then."""
    watched = sys.stderr.isatty()
    return {"desc": label, "mininterval": 0.1 if watched else 30, "delay": 0 if watched else 30, "leave": False}


def _compute_here(tasks, n_workers, label):
    threads = cores() // n_workers
    calls = [partial(limited_in_thread, task[0], threads, *task[1:]) for task in tasks]
    names = range(len(calls), 0, -1)  # Dask begins with the last one by name
    graph = {f"{n:020}": (call,) for n, call in zip(names, calls, strict=True)}
    with TqdmCallback(**_bar(label)), limit_threads(threads):
        # the scheduler itself: dask.compute takes 2 ms more, and where one is named loads distributed, 0.1 s
        return threaded.get(graph, [*graph], num_workers=n_workers)


def _on_workers(tasks, label):
    """Dask values of tasks. A function, and what comes with it, goes once to each worker; what it does is small or on
    disk.
    """
    token, call = f"{_of_folder}{uuid4().hex}", dask.delayed(on_worker, pure=False)
    common, functions = (1, mirror.attached(), _workers.environment), {id(task[0]): task[0] for task in tasks}
    shared = {
        key: dask.delayed(function, pure=False, name=f"function-{i}-{token}", traverse=False)
        for i, (key, function) in enumerate(functions.items())
    }
    return [
        call(shared[id(function)], *common, *arguments, dask_key_name=f"{label}-{i:06}-{token}")
        for i, (function, *arguments) in enumerate(tasks)
    ]


def run_here(function, *arguments, label):
    """function(*arguments) with all cores of this process: what libraries do in threads of their own."""
    with _timed(label, 1):
        return _compute_here([(function, *arguments)], 1, label)[0]


def run_in_threads(function, arguments, n_workers, label):
    """As `run`, always in this process: what concerns this machine."""
    with _timed(label, len(arguments)):
        return _compute_here([(function, *a) for a in arguments], n_workers or cores(), label)


def run(function, arguments, n_workers, label):
    """function(*a) for each tuple a of `arguments`, as tasks. Returns their results in order."""
    if _pool:
        arguments = list(arguments)
        with _timed(label, len(arguments)):
            return _pool.run(function, arguments, _bar(label))
    return compute([(function, *a) for a in arguments], n_workers, label)


def run_in_turn(runs, beside, n_workers):
    """As `run`, of several in turn: [(function, arguments, label)]. Returns the results of each.

    beside: where not None, threads would wait for each other, as `neardup.machine.pool` has it; so where there are just
    threads, one does all that is in `runs`, and the others do these tasks.
    """
    if _workers or _pool or beside is None:
        return [run(function, arguments, n_workers, label) for function, arguments, label in runs]

    def in_turn():
        """All of `runs`, one task after the other, in this thread."""
        results = []
        for function, arguments, label in runs:
            with _timed(label, len(arguments)):
                results.append([limited_in_thread(function, 1, *a) for a in arguments])
        return results

    return _compute_here([(in_turn,), *beside], n_workers or cores(), runs[0][2])[0]


def apart(function):
    """The same function, in a process of the pool if there is one: it is much Python, which threads would wait for."""
    return partial(_pool.call, function) if _pool else function


def on_worker(function, threads, mirrors, environment, *arguments):
    """As `limited`, beside other processes, perhaps on another host, which may have come since the script began.

    mirrors: of `mirror.attached`; environment: of the script. Raises NeardupError where this process has another.
    """
    from neardup.machine.workers import check_environment

    check_environment(environment)
    open_more_files()
    write_beside_others()
    mirror.attach_all(mirrors)
    return limited(function, threads, *arguments)


def preload(module):
    """Begin to import what is needed only at the end, while the cores are busy without the interpreter.

    Not where tasks are other processes, which may need the cores. The process doesn't end before: a thread that is cut
    off in the middle of an import can abort it.
    """
    if _workers:
        return

    def load():
        with PARSING, suppress(ImportError, OSError, MemoryError):  # whoever needs it will be told
            import_module(module)

    Thread(target=load).start()

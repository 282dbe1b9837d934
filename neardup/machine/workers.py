"""Dask's `distributed`: a scheduler and its workers, in processes of this machine or of many, that run the tasks."""

import logging
import os
import platform
import socket
import time
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path

import dask
from distributed import Client, KilledWorker, LocalCluster, as_completed
from distributed.client import ClosedClientError, FutureCancelledError
from tqdm import tqdm

from neardup import NeardupError
from neardup.machine.checksums import digest_of_bytes, digest_of_sources
from neardup.notices import notice
from neardup.words import first_line

# what is raised where the scheduler is gone; its own errors are OSErrors
_GONE = FutureCancelledError, ClosedClientError, OSError
_WAIT_S = 600  # for a scheduler to come back, for workers to come, and for what these still do
_LOOK_S = 0.5  # how often it is seen whether they do
_SILENT = "distributed", "distributed.client", "asyncio", "tornado"  # loggers: what matters ends as one line of ours
_ROOT = Path(__file__).parents[2]


class Workers:
    """Workers by the name that the settings give them. n_workers: how many there were when the script began."""

    def __init__(self, config, of_folders):
        self.name, self._options, self._wanted = config.scheduler, config.scheduler_options, config.n_workers
        for name in _SILENT:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._own = self._start()
        self.client = self._connect()
        notice(f"dashboard: {self.client.dashboard_link}")
        self.n_workers = self._check_workers()
        if not self._own:
            self._wait_for_earlier(of_folders)

    def _start(self):
        """The cluster that the script starts, and ends; None where there is one already."""
        if "://" in self.name:
            return None
        if self.name == "processes":
            os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # when interrupted
            return LocalCluster(n_workers=self._wanted, threads_per_worker=1, dashboard_address="127.0.0.1:0")
        module, _, kind = self.name.rpartition(".")
        try:
            own = getattr(import_module(module), kind)(**self._options)
            own.scale(self._wanted or 1)
        except (ImportError, AttributeError, ValueError, TypeError, RuntimeError) as error:
            options = f" with scheduler_options of {sorted(self._options)}" if self._options else ""
            raise NeardupError(
                f"scheduler = {self.name!r}{options}: {first_line(error.__cause__ or error)}: set it to a class of "
                "Dask clusters, and scheduler_options to what that takes"
            ) from error
        return own

    def _connect(self):
        try:
            return Client(self._own or self.name, timeout=_WAIT_S if self._own else 10)
        except OSError as error:
            raise NeardupError(
                f"no Dask scheduler answers at {self.name}: start it, or set another scheduler"
            ) from error

    def _check_workers(self):
        """How many there are. Raises NeardupError where one has other packages, sources or several threads."""
        none = f"the Dask scheduler at {self.name} has no workers: start some"
        try:
            self.client.wait_for_workers(1, timeout=_WAIT_S if self._own else 60)
        except TimeoutError as error:
            raise NeardupError(none) from error
        self.environment = environment()
        found, threads = self.client.run(environment, on_error="return"), self.client.nthreads()
        for worker in found.keys() & threads.keys():  # the others have gone meanwhile
            theirs = found[worker]
            if not isinstance(theirs, dict):
                raise NeardupError(f"worker {worker} can't import these scripts ({theirs}): set its PYTHONPATH to them")
            check_environment(self.environment, theirs, worker)
        several = [worker for worker, count in threads.items() if count > 1]
        if several:
            raise NeardupError(
                f"worker {several[0]} has {threads[several[0]]} threads: start workers with --nthreads 1"
            )
        if not threads:
            raise NeardupError(none)
        return len(threads)

    def _wait_for_earlier(self, of_folders):
        """Wait for tasks of a script that ended before they did: they would write among the files of this one's.

        of_folders: what is in their names, one of these. Raises NeardupError where they go on for long.
        """
        deadline, told = time.monotonic() + _WAIT_S, False
        while left := self._left_of_earlier(of_folders):
            if time.monotonic() > deadline:
                raise NeardupError(f"{left[0]} of an earlier script: end it, then start again")
            if not told:
                notice("waiting for tasks of an earlier script in this work folder")
            told = True
            time.sleep(_LOOK_S)

    def _left_of_earlier(self, of_folders):
        """What is left of it, in words: running tasks, or some that the scheduler, which hasn't noticed, will begin."""
        places = self.client.who_has()  # of each task of the scheduler's; none of one that isn't done
        handed = _of(of_folders, (key for key, workers in places.items() if not workers))
        begun = self.client.run(running, of_folders, on_error="ignore")
        left = [f"worker {worker} still runs a task" for worker, names in begun.items() if names]
        return left or [f"the scheduler at {self.name} still has task {name!r}" for name in handed]

    def compute(self, values, bar):
        """Results of Dask values, in order. bar: keywords of the progress bar.

        Where the scheduler goes, it is waited for and all is handed in again: what was finished is on disk.
        """
        while True:
            try:
                futures = self.client.compute(values, optimize_graph=False, retries=0)
                failed = _first_failed(futures, bar)
                if failed is None:
                    return self.client.gather(futures)
                error = failed.exception()
            except _GONE:
                self._wait()
                continue
            if not isinstance(error, KilledWorker):
                raise error
            raise NeardupError(
                f"task {error.task!r} ended {error.allowed_failures + 1} workers, the last one "
                f"{error.last_worker.address}: see their logs (short of memory?), then start it again to go on"
            ) from error

    def _wait(self):
        if self._own:
            raise NeardupError(f"the scheduler of {self.name} ended: start it again to go on")
        notice(f"the scheduler at {self.name} is gone; waiting for it to come back")
        self.client.close(timeout=2)
        try:
            self.client = Client(self.name, timeout=_WAIT_S)
        except OSError as error:
            raise NeardupError(f"the scheduler at {self.name} didn't come back: start it again to go on") from error
        self._check_workers()

    def close(self):
        self.client.close()
        if self._own:
            self._own.close()


def _first_failed(futures, bar):
    """Wait for all, or until one has an error, which is returned. Raises one of `_GONE` where the scheduler is gone."""
    with tqdm(total=len(futures), **bar) as shown:
        for future in as_completed(futures):  # with results it may wait forever when the scheduler goes
            if future.status == "error":
                return future
            if future.status != "finished":
                future.result()  # raises
            shown.update()
    return None


def running(of_folders, dask_worker):
    """Names of the tasks that a worker runs, of those that write to some folders, whether or not they are wanted."""
    return _of(of_folders, (task.key for task in dask_worker.state.all_running_tasks))


def _of(of_folders, keys):
    """Names of tasks that write to some folders, among these."""
    return [str(key) for key in keys if any(of in str(key) for of in of_folders)]


@contextmanager
def connected(config, of_folders):
    """Yield the `Workers` of the settings. of_folders: what is in the names of tasks that write to the work folders."""
    with dask.config.set({"distributed.comm.timeouts.connect": "10s"}):
        workers = Workers(config, of_folders)
        try:
            yield workers
        finally:
            workers.close()


def check_environment(ours, theirs=None, worker=None):
    """Raises NeardupError where a worker, this process if none is given, has others than the script."""
    theirs, worker = theirs or environment(), worker or f"on {socket.gethostname()}"
    other = [f"{n} {theirs.get(n)}, not {version}" for n, version in ours.items() if theirs.get(n) != version]
    if other:
        raise NeardupError(f"worker {worker} has {'; '.join(other)}: install the same there as here")


@lru_cache
def environment():
    """What has to be the same wherever tasks run: {name: version} of Python, packages, and a digest of the sources."""
    required = [
        line.partition("==")[0] for line in (_ROOT / "requirements.txt").read_text().splitlines() if "==" in line
    ]
    versions = {name: metadata.version(name) for name in required}
    sources = digest_of_bytes(digest_of_sources().encode(), (_ROOT / "config.py").read_bytes())
    return {"Python": platform.python_version(), "these scripts": sources[:8]} | versions

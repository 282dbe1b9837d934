"""Processes of a script's own, for tasks of so many short products that threads would wait for each other.

numpy lets go of the interpreter in each, and threads that all want it back take turns: two of them search no faster
than one (docs/experiments.md). A process takes half a second to start, so what takes less stays in threads.
"""

import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from uuid import uuid4

from tqdm import tqdm

from neardup import NeardupError
from neardup.machine.files import write_beside_others
from neardup.machine.imports import without_pandas
from neardup.machine.threads import limited

PROCESS_BYTES = 200 * 10**6  # that one takes beside its blocks


class Pool:
    """Some processes. threads: of libraries, that each may have."""

    def __init__(self, executor, threads):
        self._executor, self._threads = executor, threads

    def call(self, function, *arguments):
        """function(*arguments) in one of the processes."""
        return self.run(function, [arguments], {"disable": True})[0]

    def run(self, function, arguments, bar):
        """function(*a) for each tuple a of `arguments`. Returns their results in order. bar: keywords of tqdm's.

        Raises NeardupError where a process ended.
        """
        futures, which = [], uuid4().hex
        try:
            futures += [self._executor.submit(_call, which, function, self._threads, *a) for a in arguments]
            with tqdm(total=len(futures), **bar) as shown:
                for future in as_completed(futures):
                    future.result()
                    shown.update()
        except BrokenProcessPool as error:
            raise NeardupError(
                "a process of this script was ended (short of memory?): set a lower memory_limit or n_workers, then "
                "start it again to go on"
            ) from error
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]


_called = {}  # in a process: the function that it calls, by what tells it from those of other runs


def _call(which, function, threads, *arguments):
    """As `limited`, with the same object for all tasks of a run: what that opened and looked at stays so."""
    if which not in _called:
        _called.clear()
        _called[which] = function
    return limited(_called[which], threads, *arguments)


@contextmanager
def started(n_processes, threads):
    """Yield a `Pool` of processes that begin to start at once."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # where the script is interrupted
    with ProcessPoolExecutor(n_processes, get_context("spawn"), initializer=_begin) as executor:
        for _ in range(n_processes):
            executor.submit(os.getpid)
        yield Pool(executor, threads)


def _begin():
    """Of a process: the script is who is interrupted, and the process ends with it, however that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    without_pandas()
    write_beside_others()
    Thread(target=_end_with_script, daemon=True).start()


def _end_with_script():
    parent_process().join()
    os._exit(1)

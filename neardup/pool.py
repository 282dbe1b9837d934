"""Processes of a script's own, for tasks of so many short products that threads would wait for each other.

numpy lets go of the interpreter in each, and threads that all want it back take turns: two of them search no faster
than one (docs/performance.md). A process takes half a second to start, so less work than that stays in threads.
"""

import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread

from tqdm import tqdm

from neardup import NeardupError, engine, mirror
from neardup.files import write_beside_others

_LIBRARIES = 200 * 10**6  # bytes that a process takes beside its blocks


@contextmanager
def runner(config, memory, is_much):
    """Yield a function to call as `engine.run`, of tasks in processes if they are much, and memory is.

    memory: bytes of blocks, of which tasks take half. A mirrored work folder is the script's own.
    """
    n_processes = engine.worker_count(config.n_workers)
    room = memory / 2 >= n_processes * _LIBRARIES
    if not (is_much and room and n_processes > 1 and engine.runs_in_threads() and not mirror.attached()):
        yield engine.run
        return
    with ProcessPoolExecutor(n_processes, get_context("spawn"), initializer=_begin) as executor:
        engine.note_processes(n_processes)
        yield lambda *arguments: _run(executor, *arguments)


def _run(executor, function, arguments, n_workers, label):
    """As `engine.run`. Raises NeardupError where a process ended."""
    threads = engine.cores() // engine.worker_count(n_workers)
    with engine.timed(label, len(arguments)), tqdm(total=len(arguments), **engine.bar(label)) as shown:
        futures = [executor.submit(engine.limited, function, threads, *a) for a in arguments]
        try:
            for future in as_completed(futures):
                future.result()
                shown.update()
        except BrokenProcessPool as error:
            raise NeardupError(
                f"a process of '{label}' was ended (short of memory?): set a lower memory_limit, and start it again to "
                "go on"
            ) from error
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]


def _begin():
    """Of a process: the script is who is interrupted, and the process ends with it, however that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write_beside_others()
    Thread(target=_end_with_script, daemon=True).start()


def _end_with_script():
    parent_process().join()
    os._exit(1)

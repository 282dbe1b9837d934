"""Threads of BLAS and OpenMP, shared out in this one place, and memory that each thread keeps."""

import math
import sys
import warnings
from functools import lru_cache
from threading import local

import numpy as np
from dask.system import cpu_count
from threadpoolctl import ThreadpoolController

# of OpenBLAS, which multiplies what happens to lie on the stack, too, for results that it doesn't keep
warnings.filterwarnings("ignore", "invalid value encountered in matmul", RuntimeWarning)

_of_thread = local()


@lru_cache(maxsize=1)
def cores():
    """Cores that this process may use: of the machine's those that its affinity and a container's quota leave."""
    return cpu_count()


def limited(function, threads, *arguments):
    """Call a task, the only one of its process, with its share of the cores."""
    limit_threads(threads)
    return function(*arguments)


def limited_in_thread(function, threads, *arguments):
    """Call a task, in a thread among others, with its share of the cores: of OpenMP, whose pools are a thread's own.

    BLAS's threads are the process's, which `engine.compute` limits. Not here: threadpoolctl lets just the first thread
    that did so change them until it ends, and Dask's threads outlive a run, even begin a task when another has failed.
    """
    limit_threads(threads, "openmp")
    return function(*arguments)


def limit_threads(threads, user_api=None):
    """Let a task have so many threads, or one: of BLAS and OpenMP, or one of them ("blas", "openmp").

    Takes effect at once; as a context manager it also gives them back.
    """
    return _controller(_n_libraries(len(sys.modules))).limit(limits=max(1, threads), user_api=user_api)


@lru_cache(maxsize=1)
def _n_libraries(_n_modules):
    """How many modules loaded by now are libraries; counted anew when a module has come since."""
    return sum(str(getattr(module, "__file__", "")).endswith(".so") for module in [*sys.modules.values()])


@lru_cache(maxsize=1)
def _controller(_count):
    """The thread pools of the libraries loaded by now; looked for anew, in 10 ms, when one has come since."""
    return ThreadpoolController()


def scratch(shape):
    """A float32 array to overwrite, the same memory each time in a thread: new memory costs as much as filling it."""
    size = math.prod(shape)
    if getattr(_of_thread, "scratch", np.empty(0)).size < size:
        _of_thread.scratch = np.empty(size, dtype=np.float32)
    return _of_thread.scratch[:size].reshape(shape)

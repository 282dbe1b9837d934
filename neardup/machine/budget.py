"""How much is held at a time: sizes of blocks and tasks, from the memory limit."""

from neardup import NeardupError
from neardup.machine.engine import worker_count
from neardup.words import memory_size

_LIBRARIES = 270 * 10**6  # bytes that Python and the libraries of a script take at most (docs/reliability.md)
SCRIPT_BYTES_A_ROW = 80  # of the stage that keeps most of each row, mapped parts of files among them
_LEAST_WORKING = 32 * 10**6
_BYTES_A_PRODUCT = 46  # of any two values of a row, while principal axes are found (docs/reliability.md)


def working_memory(memory_limit, n_rows, dim):
    """Bytes of the limit that are left for blocks, beside libraries and what stages keep for all rows.

    Raises NeardupError where too little is left.
    """
    least = least_memory(n_rows, dim)
    if memory_limit < least:
        raise NeardupError(
            f"memory_limit = {memory_limit // 2**20}MiB is too little for {n_rows:,} rows of {dim:,} values: set it "
            f"to at least {memory_size(least)} (libraries take {memory_size(_LIBRARIES)}, and "
            f"{SCRIPT_BYTES_A_ROW} bytes go with each row, and at times {_BYTES_A_PRODUCT} with any two values of one)"
        )
    return memory_limit - least + _LEAST_WORKING


def least_memory(n_rows, dim):
    """Bytes that a script takes with the smallest blocks, or with the principal axes, which need no blocks beside."""
    return _LIBRARIES + SCRIPT_BYTES_A_ROW * n_rows + max(_LEAST_WORKING, _BYTES_A_PRODUCT * dim**2)


def block_rows(memory, n_workers, bytes_per_row, most):
    """Rows a task may hold so that all tasks together take at most half of the working memory.

    The other half is for copies that libraries make. At most `most` rows.
    """
    return int(max(1, min(most, memory / 2 / worker_count(n_workers) / bytes_per_row)))


def task_bytes(memory, n_workers):
    """What a task may hold of another kind than blocks: all together an eighth of the working memory."""
    return memory / 8 / worker_count(n_workers)

"""One script at a time in a work folder."""

import json
import os
import socket
import time

from filelock import FileLock, Timeout

from neardup import NeardupError
from neardup.machine.files import write_json
from neardup.machine.mirror import shown

_LOCK, _HOLDER = ".lock", ".lock.json"
_held = []  # until the process ends: its threads may outlive what failed


def lock(work_dir, script):
    """Hold the work folder as long as this process lives; the system lets go of the lock of one that died.

    Raises NeardupError that says who holds it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(work_dir / _LOCK)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise NeardupError(
            f"work_dir {shown(work_dir)} is in use by {_holder(work_dir)}: wait until that ends, or set another"
        ) from None
    _held.append(file_lock)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"script": script, "process": os.getpid(), "host": socket.gethostname(), "since": since}
    write_json(work_dir / _HOLDER, holder, flush=False)


def _holder(work_dir):
    """Who holds the lock, in words."""
    try:
        holder = json.loads((work_dir / _HOLDER).read_text(encoding="utf-8"))
        return f"{holder['script']} (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it may have just begun, or ended
        return "another script"

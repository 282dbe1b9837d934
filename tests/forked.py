"""What a process does that was forked to run a script. It imports nothing else, for that would take long."""

import os
import runpy
import sys
from pathlib import Path


def run(arguments, cwd, environment, streams):
    """Run a script in this process, as if it were its own. streams: files to be its standard output and errors."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    for number, (name, stream) in enumerate(zip(("stdout", "stderr"), streams, strict=True), 1):
        os.dup2(stream.detach(), number)
        file = open(number, "w", encoding=encoding, closefd=False)  # noqa: SIM115
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")

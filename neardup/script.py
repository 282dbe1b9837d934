"""How each script starts and ends: settings in, one line and an exit status where something is wrong."""

import errno
import json
import os
import re
import signal
import sys
from argparse import ArgumentError
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from config import SECTIONS, Config
from neardup import NeardupError
from neardup.machine import engine, mirror
from neardup.machine.files import write_beside_others
from neardup.machine.imports import settle
from neardup.machine.lock import lock
from neardup.plan import plan, print_plan
from neardup.stages.artifacts import LEADING, STAGES
from neardup.stages.runs import N_REFERENCE, check_folders
from neardup.words import for_terminal

_OF_EACH_SET = [script for script, _ in STAGES.values()][:N_REFERENCE]
EXIT_ERROR, EXIT_SETTING, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
_STDOUT = "standard output"


def main(run, description):
    """Read the settings, call run(config), exit. run: the script's function. description: what --help says of it."""
    name = Path(sys.argv[0]).name
    Config.__doc__ = description
    with report_errors(name) as places:
        config = Config(_cli_settings_source=command_line(name, sys.argv[1:]))
        places.append(config.work_dir)
        engine.open_more_files()
        settle()
        if config.dry_run:
            tell(config, plan(config), print_plan)
        else:
            _run(run, config, name)


def _run(run, config, name):
    """Run a script; of two sets first on the second one, where that has a stage of its own."""
    config = on_this_machine(config)
    reference = config.reference if config.against_dir is not None else None
    check_folders(config)
    if reference and name in _OF_EACH_SET:
        lock(reference.work_dir, name)
    elif reference:
        write_beside_others()  # copies of its input, which several may find missing
    lock(config.work_dir, name)
    with engine.scheduled(config):
        if reference and name in _OF_EACH_SET:
            run(reference)
        run(config)


@contextmanager
def report_errors(name):
    """End the process with one line and an exit status where something is wrong. name: of the script.

    Yields a list, for the folder to name where the system doesn't say which file failed.
    """
    places = ["a file"]
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115
        getattr(sys, stream).reconfigure(errors="backslashreplace")  # ids may hold what a terminal can't show
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(sys.stdout, _StandardOutput)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrapped(sys.stderr, _StandardError)
    signal.signal(signal.SIGINT, lambda *_: _leave(name, EXIT_INTERRUPTED, "interrupted"))
    signal.signal(signal.SIGTERM, lambda *_: _leave(name, EXIT_TERMINATED, "terminated"))
    try:
        yield places
        sys.stdout.flush()
    except ValidationError as error:
        _fail(name, EXIT_SETTING, _setting_message(error))
    except (SettingsError, ArgumentError) as error:
        _fail(name, EXIT_SETTING, f"{error}; --help lists the settings")
    except NeardupError as error:
        _fail(name, EXIT_ERROR, str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename == _STDOUT:
            os._exit(EXIT_ERROR)  # whoever reads what is printed has enough; all results are there
        _fail(name, EXIT_ERROR, f"{_about(error, places)}; mend that, then start it again to go on")
    except MemoryError:
        _fail(name, EXIT_ERROR, "out of memory: set a lower memory_limit or n_workers, then start it again to go on")


class _StandardOutput(FileIO):
    """Tells its name where it can't be written."""

    def write(self, data):
        """As FileIO.write."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


class _StandardError(FileIO):
    """Ends no run where it can't be written: what is said there, progress too, is said beside the results."""

    def write(self, data):
        """As FileIO.write."""
        with suppress(OSError):
            return super().write(data) or len(data)  # None: it would have to wait, where that isn't wanted
        return len(data)


def _wrapped(stream, kind):
    """The same text stream, on a `_StandardOutput` or `_StandardError`."""
    file = BufferedWriter(kind(stream.fileno(), "w", closefd=False))
    return TextIOWrapper(
        file, stream.encoding, stream.errors, line_buffering=stream.line_buffering or stream.write_through
    )


def _about(error, places):
    """What failed, and why: of two files the one that is written. places: of `report_errors`."""
    if error.errno == errno.EMFILE:
        return "more files are open than a process may have: raise that (ulimit -n)"
    return f"{error.filename2 or error.filename or places[-1]}: {error.strerror or error}"


def on_this_machine(config):
    """The settings with work folders of this machine, and with paths that workers in other folders know, too."""
    if config.against_dir is not None:
        second = on_this_machine(config.reference)
        config = config.model_copy(update={"against_dir": second.data_dir, "against_work_dir": second.work_dir})
    paths, url = {name: getattr(config, name) for name in ("data_dir", "work_dir")}, config.work_dir
    if not isinstance(url, Path):
        paths["work_dir"] = mirror.folder_for(url)
        mirror.attach(paths["work_dir"], url, uuid4().hex, LEADING)
    if config.scheduler != "threads":
        paths = {name: p.absolute() if isinstance(p, Path) else p for name, p in paths.items()}
    return config.model_copy(update=paths)


def tell(config, found, report):
    """Print what was found: by report(found), or as one JSON object where that is wanted, of two sets just of both."""
    if not config.json_output:
        report(found)
    elif not config.is_reference:
        print(json.dumps(found if isinstance(found, dict) else found.results | {"folder": str(found.shown)}))


def command_line(name, arguments):
    """The settings on the command line; --help shows them by section. name: of the script."""
    section, group_of = None, {}
    for field in Config.model_fields:
        group_of[field] = section = SECTIONS.get(field, section)

    def add(parser, *names, **options):
        """As ArgumentParser.add_argument, in the group of the setting's section."""
        title = next(filter(None, (group_of.get(n.lstrip("-").replace("-", "_")) for n in names)), None)
        groups = {group.title: group for group in parser._action_groups}
        return (groups.get(title) or (parser.add_argument_group(title) if title else parser)).add_argument(
            *names, **options
        )

    return CliSettingsSource(
        Config, cli_parse_args=arguments, cli_prog_name=name, cli_exit_on_error=False, add_argument_method=add
    )


def _leave(name, status, word):
    """End at once, for all that was finished is on disk; an exception could arise in the middle of any library."""
    with suppress(RuntimeError, OSError):  # the signal may have come while it is flushed
        sys.stdout.flush()
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{name}: {word}; start it again to go on\n".encode())
    os._exit(status)


def _setting_message(error):
    first = error.errors()[0]
    if not first["loc"]:  # of settings that don't go together
        return first["msg"].removeprefix("Value error, ")
    setting = str(first["loc"][0])
    about = getattr(Config.model_fields.get(setting), "description", "")
    found = first["msg"].removeprefix("Value error, ")
    message = f"{found} ({about})" if about and first["type"] != "string_pattern_mismatch" else about
    return (
        f"setting {setting} = {first['input']!r}: {message or found}; give --{setting.replace('_', '-')}, "
        f"NEARDUP_{setting.upper()} or the default in config.py another value"
    )


def _fail(name, status, message):
    line = re.sub(r"\s*\n\s*", " ", message.strip())
    sys.stderr.write(f"{name}: error: {for_terminal(line)}\n")
    try:
        sys.stdout.flush()
    except OSError:  # nor at the end, when Python would try again
        os._exit(status)
    sys.exit(status)

"""The folder of a stage while it is built, published, replaced and removed: each in one step that can't be cut off."""

import os
import shutil

from neardup.machine import mirror
from neardup.machine.files import sync_folder
from neardup.stages.manifests import MANIFEST

PARTIAL, OLD, REMOVED = "partial", "old", "removed"  # endings of hidden folders: being built, replaced, removed
PARTS = "parts"  # folder of work in progress
BEGUN = "begun.json"  # in a folder under construction: the key of what it will be


def hidden(final, ending):
    """A folder beside that of a stage, which is hidden while there are several of it."""
    return final.with_name(f".{final.name}.{ending}")


def publish(folder, final):
    """Put a finished folder in the place of an earlier one."""
    names = [path.relative_to(folder).as_posix() for path in mirror.files(folder) if path.name != BEGUN]
    mirror.publish(folder, final, [name for name in names if not name.startswith(f"{PARTS}/")], last=MANIFEST)
    shutil.rmtree(hidden(final, OLD), ignore_errors=True)
    if final.exists():
        os.rename(final, hidden(final, OLD))
    os.rename(folder, final)
    sync_folder(final.parent)
    tidy(final)


def tidy(final):
    """Remove what a finished stage needs no more."""
    (final / BEGUN).unlink(missing_ok=True)
    for leftover in (final / PARTS, hidden(final, OLD), hidden(final, REMOVED)):
        shutil.rmtree(leftover, ignore_errors=True)


def remove(folder, final):
    """Remove a folder whose content belongs together: out of the way in one step, for removing may be cut off.

    final: the stage's that it is of.
    """
    aside = hidden(final, REMOVED)
    mirror.remove(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def recover(final):
    """Complete a publication that was cut off between its two renames, or after them."""
    if (final / MANIFEST).exists():
        shutil.rmtree(hidden(final, OLD), ignore_errors=True)
    if not final.exists() and hidden(final, OLD).exists():
        finished = (hidden(final, PARTIAL) / MANIFEST).exists()
        os.rename(hidden(final, PARTIAL if finished else OLD), final)


def remove_temporary(folder):
    """Remove the files that an interrupted run was writing."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)

"""What lies beside shards: tables with a row for each of theirs, and what is about all of a folder."""

import re
from pathlib import PurePath

from neardup.input.metadata import BESIDE, SUFFIXES, TEXTS
from neardup.machine.files import is_file

TABLES = "arrow", "parquet"  # formats of tables, which are metadata where they lie beside shards
CLIP = "img_emb", "text_emb"  # folders of clip-retrieval
STATE = "state.json"  # in which `datasets` of Hugging Face lists the files of a folder
OF_DATASET = STATE, "dataset_info.json"  # what tells a folder of `datasets`
ABOUT = *OF_DATASET, TEXTS  # what lies beside all shards of a folder
_HOLD_MORE = ".npz", ".h5", ".hdf5", ".arrow", ".feather", ".parquet"  # than vectors


def tables_of(name, kind):
    """Where the table of a shard's metadata may be, the best place first. name: of the shard."""
    if kind == "clip-retrieval":
        return [clip_table(name)]
    if kind in (*TABLES, "hdf5"):
        return [name]
    return [name.with_suffix(suffix) for suffix in SUFFIXES] + [name] * (kind == "npz")


def clip_table(name):
    """Where clip-retrieval has the table of a shard of images or texts, below the folder of both."""
    return PurePath("metadata", f"metadata_{re.search(r'[0-9]*$', name.stem)[0]}.parquet")


def of_clip(name):
    """The shard of images and that of texts, where clip-retrieval has both. name: of either."""
    return [name.parent.parent / other / name.name.replace(name.parent.name, other) for other in CLIP]


def copied_too(shards):
    """(name, path) of each file of which a copy holds more than rows that are memory-mapped, in order."""
    paths = {s.path for s in shards}
    found = [(s, name) for s in shards for name in names_beside(s, paths)]
    found += [(s, name) for s in shards for name in names_about([s])]
    found += [(s, s.name) for s in shards if s.copy or s.path.suffix in _HOLD_MORE]
    return [*dict.fromkeys((name, root_of(shard) / name) for shard, name in found)]


def root_of(shard):
    """The folder that its name starts from."""
    return shard.path.parents[len(PurePath(shard.name).parts) - 1]


def names_beside(shard, paths):
    """Names of the files that have a row for each of a shard's, as far as they are no shards. paths: of all shards."""
    root, name = root_of(shard), PurePath(shard.name)
    found = [name.with_suffix(suffix) for suffix in BESIDE]
    if name.parent.name in CLIP:
        found += [*of_clip(name), name.parent.parent / clip_table(name)]
    found += [path.relative_to(root) for path in (shard.ids_path, shard.table) if path]
    return [n.as_posix() for n in dict.fromkeys(found) if is_file(root / n) and root / n not in paths]


def names_about(shards):
    """Names of the files that are about all shards of a folder."""
    root, folders = root_of(shards[0]), dict.fromkeys(PurePath(s.name).parent for s in shards)
    return [(f / name).as_posix() for f in folders for name in ABOUT if (root / f / name).is_file()]

"""What the ids stand for, to look at groups by: texts from a JSON file or a column, or images."""

import io
import json
import os
import struct
import warnings
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.input.embeddings import total_rows
from neardup.input.id_table import positions
from neardup.input.ids import BLOCK_ROWS
from neardup.input.metadata import TEXTS, as_text, column_blocks
from neardup.machine.files import is_file, resolved

_LINKED = "https://", "http://"  # what a page links to
OTHERWISE = "to a JSON file (*.json), or to a pattern with {id}"  # what else `preview` may be than a column


class Preview:
    """The setting `preview` of a run: a JSON file of id: text, a column of the tables, a pattern of images, or None.

    Of None it is the texts.json beside each shard, where that is there. ids: an `IdTable`. files: the JSON file of the
    texts of each shard, or None. Raises NeardupError where the one that is set isn't there.
    """

    def __init__(self, setting, shards, ids):
        self.shards, self.ids, self.setting = shards, ids, setting
        self._load = lru_cache(maxsize=2)(load_texts)  # of two sets each has one
        beside = {folder: folder / TEXTS for folder in {shard.path.parent for shard in shards}}
        if setting is None:
            there = {folder: path for folder, path in beside.items() if path.is_file()}
            self.files = [there.get(shard.path.parent) for shard in shards]
        else:
            if setting.endswith(".json") and not is_file(setting):
                raise NeardupError(f"preview {setting!r} is not there: set it to a JSON file of id: text")
            self.files = [Path(setting) if setting.endswith(".json") else None] * len(shards)

    @property
    def is_file(self):
        return any(self.files)

    @property
    def is_pattern(self):
        return self.setting is not None and "{id}" in self.setting

    @property
    def is_of_files(self):
        """Whether it is a pattern of images that are files."""
        return self.is_pattern and "://" not in self.setting

    @property
    def is_column(self):
        return self.setting is not None and not self.is_file and not self.is_pattern

    def url(self, name):
        """Where the image of an id is on the web, or None."""
        if not (self.is_pattern and self.setting.startswith(_LINKED)):
            return None
        return self.setting.replace("{id}", quote(name))

    @property
    def folder(self):
        """The folder that a pattern of files begins with."""
        return resolved(Path(self.setting.partition("{id}")[0] + "_").parent)

    def image(self, name):
        """The file of the image of an id, or None; never one outside the folder that the pattern begins with."""
        if not self.is_of_files or "\0" in name:
            return None
        path = resolved(self.setting.replace("{id}", name))
        return path if path.is_relative_to(self.folder) else None

    def texts(self, rows, most=None):
        """The first `most` characters of the texts of these rows, "" where there is none.

        Reads a JSON file once, or the column of each shard that has some of the rows: better once for many rows.
        Memory: that file, or a block of the column, and these texts.
        """
        if not (self.is_file or self.is_column):
            return [""] * len(rows)
        rows, found = np.asarray(rows, dtype=np.int64), [""] * len(rows)
        for shard, path in zip(self.shards, self.files, strict=True):
            here = np.nonzero((rows >= shard.start) & (rows < shard.stop))[0]
            if not len(here):
                continue
            if self.is_column:
                parts = self._values_of(shard, rows, here)
            else:
                parts = [(here, self._texts_of(path, self.ids.take(rows[here])))]
            for places, values in parts:
                for i, value in zip(places.tolist(), values, strict=True):
                    found[i] = "" if value is None else _writable(str(value)[:most])
        return found

    def _values_of(self, shard, rows, here):
        """Yield places among the rows of a shard's, and the values that its column has of them, block by block."""
        for start, values in self._blocks(shard):
            places = here[(rows[here] >= start) & (rows[here] < start + len(values))]
            wanted = rows[places] - start
            if pa.types.is_temporal(values.type):  # of which Python has not all
                yield places, as_text(values.take(positions(wanted)), shard.table, self.setting).to_pylist()
            else:
                yield places, [values[place].as_py() for place in wanted.tolist()]

    def lengths(self):
        """Characters of the text of each row, (n,) int64. Memory: 8 bytes a row, and the JSON file or a block."""
        found = np.empty(total_rows(self.shards), dtype=np.int64)
        if self.is_column:
            for shard in self.shards:
                for start, values in self._blocks(shard):
                    lengths = pc.utf8_length(as_text(values, shard.table, self.setting))
                    found[start : start + len(values)] = pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
            return found
        if not self.is_file:
            raise NeardupError("representative 'longest_text' needs texts: set preview to a JSON file or a column")
        for shard, path in zip(self.shards, self.files, strict=True):
            end = shard.stop
            for start in range(shard.start, end, BLOCK_ROWS):
                rows = np.arange(start, min(start + BLOCK_ROWS, end))
                texts = self._texts_of(path, self.ids.take(rows))
                found[rows] = [0 if text is None else len(str(text)) for text in texts]
        return found

    def check(self):
        """Raises NeardupError where the setting names what isn't there."""
        for path in dict.fromkeys(self.files):
            self._texts_of(path, [])
        if self.is_column:  # whose names were looked at when the stage began
            self._table(self.shards[0])
        if self.is_pattern and not (self.is_of_files or self.setting.startswith(_LINKED)):
            raise NeardupError(
                f"preview {self.setting!r} is neither a pattern of files nor of {' or '.join(_LINKED)} URLs: set it to "
                "one of those"
            )

    def missing(self, names):
        """What isn't there, in words, if none of these ids has its text or image where the setting says; else None."""
        if self.setting is not None and self.is_file:
            is_there = any(text is not None for text in self._texts_of(self.files[0], names))
            return None if is_there else f"no text of these rows is in {self.setting}, the first id is {names[0]!r}"
        paths = [path for path in map(self.image, names) if path]
        if not self.is_of_files or any(os.access(path, os.R_OK) for path in paths):
            return None
        first = str(paths[0]) if paths else f"that of {names[0]!r}, which isn't below {self.folder}"
        return f"no picture of these rows is there, the first looked for was {first}"

    def _texts_of(self, path, names):
        """What the JSON file of a shard, or None, has of these ids."""
        texts = {} if path is None else self._load(path, self.setting is not None)
        return [texts.get(name) for name in names]

    def _blocks(self, shard):
        """Yield (number of the first row, values) of the column of a shard, block by block."""
        start = shard.start
        for values in column_blocks(self._table(shard), self.setting, shard.rows):
            yield start, values
            start += len(values)

    def _table(self, shard):
        if shard.table is None:
            raise NeardupError(
                f"preview {self.setting!r} is a column, but {shard.path} has no table: set it right, {OTHERWISE}"
            )
        return shard.table


def _writable(text):
    """Text without halves of characters, as programs that count in 16 bits cut it, which UTF-8 can't hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def load_texts(path, named):
    """{id: text} of a JSON file. named: else it is a texts.json that may be somebody else's, and then holds nothing."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        texts, reason = None, f"is not JSON in UTF-8 ({error})"
    else:
        reason = f"holds a JSON {type(texts).__name__}"
    if named and not isinstance(texts, dict):
        raise NeardupError(f"preview {path} {reason}: name a JSON file of id: text")
    return texts if isinstance(texts, dict) else {}


def thumbnail(path, pixels):
    """A picture as WebP, upright, its longer side at most so many pixels; None where it can't be read.

    What PIL raises of damaged files differs by their format, and isn't documented but for OSError and ValueError.
    """
    from PIL import Image, ImageOps

    unreadable = (OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, EOFError, ArithmeticError)
    unreadable += RuntimeError, MemoryError, struct.error, Image.DecompressionBombError
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            image.thumbnail((pixels, pixels))
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except unreadable:
        return None
    data = io.BytesIO()
    upright.save(data, "WEBP", quality=80)
    return data.getvalue()

"""What the ids stand for, to look at groups by: texts from a JSON file or a column, or images."""

import io
import json
import os
import struct
import warnings
from functools import cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neardup import NeardupError
from neardup.metadata import as_text, read_column

_BLOCK_ROWS = 1 << 16  # rows whose ids are handled together
_LINKED = "https://", "http://"  # what a page links to


class Preview:
    """The setting `preview` of a run: a JSON file of id: text, a column of the tables, a pattern of images, or None.

    Of None it is texts.json beside the shards, if that is there. ids: an `IdTable`.
    """

    def __init__(self, setting, shards, ids):
        beside = shards[0].path.parent / "texts.json"
        self.shards, self.ids = shards, ids
        self.named = setting is not None
        self.setting = setting if self.named else str(beside) if beside.is_file() else None

    @property
    def is_file(self):
        return self.setting is not None and self.setting.endswith(".json")

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

    def image(self, name):
        """The file of the image of an id, or None; never one outside the folder that the pattern begins with."""
        if not self.is_of_files or "\0" in name:
            return None
        folder = Path(self.setting.partition("{id}")[0] + "_").parent.resolve()
        path = Path(self.setting.replace("{id}", name)).resolve()
        return path if path.is_relative_to(folder) else None

    def texts(self, rows, most=None):
        """The first `most` characters of the texts of these rows, "" where there is none.

        Reads the JSON file once, or the column of each shard that has some of the rows: better once for many rows.
        Memory: that file, or a column of a shard.
        """
        if self.is_file:
            return [self._text_of(name)[:most] for name in self.ids.take(rows)]
        if not self.is_column:
            return [""] * len(rows)
        rows, found = np.asarray(rows, dtype=np.int64), [""] * len(rows)
        for shard in self.shards:
            here = np.nonzero((rows >= shard.start) & (rows < shard.start + shard.rows))[0]
            if len(here):
                values = self._column(shard).take(pa.array(rows[here] - shard.start))
                for i, value in zip(here.tolist(), values, strict=True):
                    found[i] = str(value.as_py())[:most] if value.is_valid else ""
        return found

    def lengths(self):
        """Characters of the text of each row, (n,) int64. Memory: 8 bytes a row, and as `texts`."""
        if self.is_column:
            parts = []
            for shard in self.shards:
                values = as_text(self._column(shard), shard.table, self.setting)
                parts.append(pc.fill_null(pc.utf8_length(values), 0).to_numpy(zero_copy_only=False))
            return np.concatenate(parts).astype(np.int64)
        if not self.is_file:
            raise NeardupError("representative 'longest_text' needs texts: set preview to a JSON file or a column")
        found = np.empty(len(self.ids), dtype=np.int64)
        for start in range(0, len(found), _BLOCK_ROWS):
            names = self.ids.take(np.arange(start, min(start + _BLOCK_ROWS, len(found))))
            found[start : start + len(names)] = [len(self._text_of(name)) for name in names]
        return found

    def check(self):
        """Raises NeardupError where the setting names what isn't there."""
        if self.is_file:
            self._load()
        if self.is_column:  # whose names were looked at when the stage began
            self._table(self.shards[0])
        if self.is_pattern and not (self.is_of_files or self.setting.startswith(_LINKED)):
            raise NeardupError(
                f"preview {self.setting!r} is neither a pattern of files nor of {' or '.join(_LINKED)} URLs: set it to "
                "one of those"
            )

    def missing(self, names):
        """The first file looked for, if none of the images of these ids can be read; else None."""
        paths = [path for path in map(self.image, names) if path]
        return next(iter(paths), None) if not any(os.access(path, os.R_OK) for path in paths) else None

    def _text_of(self, name):
        text = self._load().get(name)
        return "" if text is None else str(text)

    def _column(self, shard):
        return read_column(self._table(shard), self.setting, shard.rows)

    def _table(self, shard):
        if shard.table is None:
            raise NeardupError(f"preview {self.setting!r} is a column, but {shard.path} has no table: set it right")
        return shard.table

    @cache  # noqa: B019 - one a run
    def _load(self):
        """{id: text}. A texts.json that wasn't named and isn't such a file is somebody else's."""
        try:
            texts = json.loads(Path(self.setting).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            texts, reason = None, f"is not JSON in UTF-8 ({error})"
        else:
            reason = f"holds a JSON {type(texts).__name__}"
        if self.named and not isinstance(texts, dict):
            raise NeardupError(f"preview {self.setting} {reason}: name a JSON file of id: text")
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

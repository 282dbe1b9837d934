"""What a page shows of rows: ids, texts and pictures, as far as there is room, and what is left out."""

import base64
import itertools
import os
from html import escape

import numpy as np

from neardup.input.preview import thumbnail
from neardup.words import shorten

_TEXT, _ID = 400, 120  # characters of a text, of an id
_WORD_BYTES, _IMAGE_BYTES = 1_500_000, 2_700_000  # of what is shown of rows and groups; of thumbnails
_ROW_MARKUP, _STEP_MARKUP, _GROUP_MARKUP = 200, 90, 450  # bytes around what is shown of a row, in a path, of a group
MOST_CHAINS = _WORD_BYTES // (3 * (_ROW_MARKUP + _STEP_MARKUP) + _GROUP_MARKUP)  # that may fit: each has three rows
_PIXELS = 112  # of a thumbnail's longer side


class Shown:
    """Rows as a page shows them: id, text, and a picture in the page itself, as long as there is room for those.

    rows: all that may be shown; room: bytes that are left for all that is no picture; unread: {id: file} of pictures
    that can't be read, None of one that isn't looked for; without_room: ids of those that are left out, here or there,
    pictured: of those that aren't.
    """

    def __init__(self, preview, rows):
        self.preview, self.room, self.image_room = preview, _WORD_BYTES, _IMAGE_BYTES
        self.unread, self.without_room, self.pictured = {}, set(), set()
        rows = np.unique(np.array(rows, dtype=np.int64))
        known = zip(preview.ids.take(rows), preview.texts(rows, _TEXT + 1), strict=True)
        self._known = dict(zip(rows.tolist(), known, strict=True))

    def row(self, row):
        """{id, text, image, url} of a row."""
        name, text = self._known[row]
        row = {"id": shorten_id(name), "text": shorten(text, _TEXT), "url": self.preview.url(name)}
        image = self._image(name)
        self.spend(_ROW_MARKUP, *row.values(), image and (row["text"] or row["id"]))  # which stand for it once more
        return row | {"image": image}

    def group(self, group, path):
        """A group, {members: [{row, …}], …}, with its rows; path: {ends: [[(place, id, similarity)]], …}, or None."""
        self.spend(_GROUP_MARKUP)
        for _, name, _ in itertools.chain(*path["ends"]) if path else ():
            self.spend(_STEP_MARKUP, name)
        return group | {"members": [m | self.row(m["row"]) for m in group["members"]], "path": path}

    def fitting(self, pairs):
        """Those pairs, (similarity, row, row), that there is room for, with the rows as they are shown."""
        return [(similarity, self.row(a), self.row(b)) for similarity, a, b in pairs if self.room >= 0]

    def left_out(self):
        """What pages say of pictures that aren't shown, when all that may be is."""
        unread = [shorten(str(path), _TEXT, _TEXT // 2) for path in self.unread.values() if path]
        outside = [shorten(name, _ID) for name, path in self.unread.items() if not path]
        folder, without_room = self.preview.folder if outside else None, self.without_room - self.pictured
        return {"unread": unread, "outside": outside, "folder": folder, "without_room": without_room}

    def spend(self, markup, *texts):
        """Count bytes that go into the page."""
        self.room -= markup + sum(len(escape(text).encode()) for text in texts if text)

    def _image(self, name):
        """A picture as a data: URL, or None where there is none, or no room left, which is counted."""
        if not self.preview.is_of_files:
            return None
        path = self.preview.image(name)
        if self.image_room < 0 and path and os.access(path, os.R_OK):
            self.without_room.add(name)
            return None
        data = path and thumbnail(path, _PIXELS)
        if not data:
            self.unread[name] = path
            return None
        self.image_room -= len(data) * 4 // 3
        self.pictured.add(name)
        return "data:image/webp;base64," + base64.b64encode(data).decode()


def shorten_id(name):
    """An id, or a value of metadata, as a page shows it."""
    return shorten(name, _ID, _ID // 3)

"""Numbers as people read them: never more, nor less, than they are; and texts as they can be shown."""

import json
import math
import re

_ACTED_ON = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # control characters, and turns of direction


def exact(threshold):
    """A threshold that can be given back: all its digits."""
    return repr(float(threshold)).removesuffix(".0")


def percent(share, decimals=1):
    """A share in per cent; 0 and 100 stand just for none and all."""
    least = 10.0 ** -(decimals + 2)
    if 0 < share < least / 2:
        return f"<{least:.{decimals}%}"
    if 1 - least / 2 <= share < 1:
        return f">{1 - least:.{decimals}%}"
    return f"{share:.{decimals}%}"


def counted(number, noun):
    """So many of what has a plural in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def disk_size(n_bytes):
    """So many bytes, in powers of 1,000, as disks are sold."""
    rounded = float(f"{n_bytes:.3g}")
    power = min(len(f"{rounded:.0f}") - 1, 12) // 3
    return f"{rounded / 1000**power:,.10g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def memory_size(n_bytes):
    """So many bytes, never less, as `memory_limit` takes them."""
    return f"{math.ceil(n_bytes / 2**20)}MiB"


def in_words(similarity, decimals=4):
    """A similarity with so many decimals, never more than it is: who takes it for a threshold still has the pair."""
    return f"{math.floor(math.nextafter(similarity * 10**decimals, math.inf)) / 10**decimals:.{decimals}f}"


def first_line(error):
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shorten(text, most, end=0):
    """Text of at most so many characters, `end` of them its last ones: what tells long ids apart is often there."""
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[len(text) - end :]}"


def for_terminal(text):
    """Text with JSON's escapes in the place of what a terminal would act on instead of showing it."""
    return _ACTED_ON.sub(lambda found: json.dumps(found[0])[1:-1], text)

"""Numbers as people read them: never more, nor less, than they are."""


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

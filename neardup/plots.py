"""Pictures of what was found: as PNG files, and as SVG that takes the colours of the page it is in."""

import io
import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from neardup.machine.files import atomic
from neardup.words import counted, exact

# nothing that was set for other programs changes a picture: the file of settings that matplotlib comes with, no screen
os.environ |= {"MATPLOTLIBRC": str(Path(find_spec("matplotlib").origin).parent / "mpl-data"), "MPLBACKEND": "agg"}
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home that it can't keep its fonts in is no matter here

_INK, _BLUE, _RED = "#010203", "#1f77b4", "#d62728"  # of an SVG, to be exchanged for those of the page
_WIDTH = 8  # inches of each figure
_ON_A_PAGE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "svg.fonttype": "none",
    "svg.hashsalt": "neardup",
}


def save_png(path, figure):
    """Write a figure as a PNG file, whole or not at all, with the same bytes each time."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def page_svg(draw, *values):
    """The figure that draw(*values) makes, as an SVG element to be put into a page; text is text, in its colours."""
    from matplotlib import rc_context

    with rc_context(_ON_A_PAGE):
        figure, text = draw(*values), io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, of_page in ((_INK, "currentColor"), (_BLUE, "var(--accent)"), (_RED, "var(--mark)")):
        svg = svg.replace(color, of_page)
    return svg


def _figure(height=3.5, columns=1):
    """A figure with so many axes side by side; fixed margins, for a layout that fits takes as long as all else."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.9 / _WIDTH, right=1 - 0.3 / _WIDTH, bottom=0.6 / height, top=1 - 0.4 / height, wspace=0.42
    )
    return figure, axes


def _plain_ticks(axis):
    """Few ticks with plain numbers, on a logarithmic axis at powers of ten and what is between: more take 0.1 s."""
    from matplotlib.ticker import LogLocator, NullLocator

    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_plain)


def _plain(number, _place=None):
    """A number at a tick, as short as it has to be to find room."""
    return f"{number:,.10g}" if number < 1e7 else f"{number / 1e6:,.10g} M"


def _counted(axis, most):
    """An axis of counts: from 0 to the greatest one, whole and plain numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.axes.set_ylim(0, 1.05 * max(1, most))
    axis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_major_formatter(_plain)


def _similarities(axes, lowest):
    """A horizontal axis of similarities from the lowest one to 1: whole numbers, of which few long ones find room."""
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.locator_params(axis="x", nbins=5 if lowest < 1 - 1e-4 else 2)


def scree(variances, n_components, target_variance):
    """The share of the variance that the first components keep, with the chosen count marked, and each one's own."""
    (figure, [axes]), numbers = _figure(height=4.5), np.arange(1, len(variances) + 1)
    figure.subplots_adjust(right=0.88)
    shares = np.cumsum(variances) / variances.sum() if variances.any() else np.ones(len(variances))
    keep = f"{'keeps' if n_components == 1 else 'keep'} at least {100 * target_variance:.10g}% of the variance"
    axes.set(title=f"{n_components} of {len(variances)} components {keep}")
    axes.plot(numbers, shares, color=_BLUE)
    axes.axhline(target_variance, color="0.7", linewidth=0.8, linestyle="--")
    axes.axvline(n_components, color=_RED, linewidth=1)
    axes.set(xlabel=f"component (line: n_components = {n_components})")
    axes.set(ylabel="share of the variance, cumulative", xscale="log", ylim=(0, 1.02))
    axes.tick_params(axis="y", colors=_BLUE)
    single = axes.twinx()
    single.plot(numbers, variances, color="tab:gray", linewidth=0.9)
    single.set(ylabel="variance of the component", **({"yscale": "log"} if variances.any() else {"ylim": (0, 1)}))
    _plain_ticks(axes.xaxis)
    _plain_ticks(single.yaxis)
    return figure


def groups(counts, edges, sizes, *, lowest, threshold):
    """How many pairs have which similarity, and how many groups which size, side by side.

    counts: (b,), edges: (b + 1,) of a histogram; sizes: (G,) int64; lowest: threshold from which pairs are counted;
    threshold: the chosen one.
    """
    figure, (left, right) = _figure(columns=2)
    left.stairs(counts, edges, fill=True, color=_BLUE)
    if threshold > lowest:
        left.axvline(threshold, color=_RED, linewidth=1)
    _similarities(left, lowest)
    line = f" (line: threshold = {exact(threshold)})" if threshold > lowest else ""
    title = f"{counted(counts.sum(), 'pair')} at {exact(lowest)} and above"
    left.set(xlabel=f"similarity{line}", ylabel="pairs", title=title)
    _counted(left.yaxis, counts.max())
    size, count = np.unique(sizes, return_counts=True)
    right.loglog(size, count, "o", color=_BLUE, markersize=5)
    right.set(xlabel="rows in the group", ylabel="groups", title=counted(len(sizes), "group"))
    for axis, values in ((right.xaxis, size), (right.yaxis, count)):
        axis.set_view_interval(0.8, max(12, 1.25 * values.max(initial=1)), ignore=True)
        _plain_ticks(axis)
    return figure


def thresholds(table, threshold):
    """How many rows each threshold would drop, and the largest group at each. table: of `thresholds.csv`."""
    figure, both = _figure(columns=2)
    steps = [line["threshold"] for line in table]
    shown = {"dropped": "rows that would be dropped", "largest": "rows of the largest group"}
    for axes, (column, title) in zip(both, shown.items(), strict=True):
        rows = [line[column] for line in table]
        axes.plot(steps, rows, "o-", color=_BLUE, markersize=4)
        axes.axvline(threshold, color=_RED, linewidth=1)
        _similarities(axes, steps[-1])
        axes.set(xlabel=f"threshold (line: chosen threshold = {exact(threshold)})", title=title)
        _counted(axes.yaxis, max(rows))
    return figure

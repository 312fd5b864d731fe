"""Draws reports and histories with matplotlib: sparsity by layer, and sparsity over steps."""

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import zip_longest
from math import ceil

from lampfast import _extras
from lampfast.reports import LayerReport, Report

with _extras.needed("lampfast's plot", "plot", "matplotlib"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.font_manager import FontProperties
    from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator, PercentFormatter

# A blue and greys of clearly different lightness: no colour has to be told from another colour.
_PRUNED, _KEPT, _SIZE, _LINE = "#4477aa", "0.4", "0.8", "0.1"
_NAME_SIZE, _TEXT_SIZE = "x-small", "small"
_LONGEST_NAME = 26  # characters; what is longer would take more room than the bars
_MOST_BARS = 120  # more have gaps that are finer than a pixel, which would show as stripes
_SAMPLES = 500  # of a schedule: finer than a line can show
_WIDTHS = 3.3, 7.0  # inches: one column of a paper, and a whole page


class _Picture(Figure):
    """A figure that shows itself in a notebook, and goes when nobody holds it.

    pyplot keeps every figure of its own until it is closed, so it has no part in this one.
    """

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def layers(
    reports: Sequence[Report],
    labels: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """What `Report.plot` draws: a row of bars for each report, and below them the layers' sizes."""
    _check(reports, labels)
    names = [layer.name for layer in reports[0].layers]
    if all(name.endswith(".weight") for name in names):
        names = [name.removesuffix(".weight") for name in names]
    figure = _drawn_on(figure, _size(names, len(reports)))
    heights = [max(0.75, 1.7 / len(reports))] * len(reports) + [0.75]
    *panels, last = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
    ).flat
    for panel, report, label in zip(panels, reports, labels or [""] * len(reports), strict=True):
        _draw_sparsity(panel, report, label)
    _draw_sizes(last, reports[0], with_kept=len(reports) == 1)
    _name_layers(last, names)
    figure.align_ylabels()
    return figure.figure


def sparsity_over_steps(
    history: Sequence[tuple[int, float]],
    schedule: Callable[[int], float] | None = None,
    figure: Figure | SubFigure | None = None,
    last: int = 0,
) -> Figure:
    """What `Pruner.plot` draws: the sparsity after each pruning, and what the schedule says.

    Args:
        history: The steps at which the model was pruned, ascending, and the sparsity after each.
        schedule: From step to sparsity; a thin line from step 1 to the last.
        figure: An empty matplotlib figure or subfigure to draw into; without it, a new one.
        last: The last step that was made, if it came after the last pruning.

    Returns:
        The figure, with one axes.

    Raises:
        ModuleNotFoundError: matplotlib (the extra `plot`) is not installed, on import.
    """
    figure = _drawn_on(figure, (_WIDTHS[0], 2.2))
    panel = figure.subplots()
    steps, sparsities = [step for step, _ in history], [sparsity for _, sparsity in history]
    prunings = list(range(len(steps)))  # the points of the line that have a marker
    if steps and last > steps[-1]:
        steps, sparsities = [*steps, last], [*sparsities, sparsities[-1]]
    (line,) = panel.plot(steps, sparsities, ".-", color=_PRUNED, ds="steps-post", label="model")
    line.set(markersize=3, markevery=prunings)
    last = max([last, *steps])
    if schedule is not None and last:
        asked = sorted({max(round(last * part / _SAMPLES), 1) for part in range(_SAMPLES + 1)})
        panel.plot(asked, [schedule(step) for step in asked], color=_LINE, lw=0.7, label="schedule")
        panel.legend(fontsize=_NAME_SIZE, frameon=False)
    panel.set_xlabel("step", fontsize=_TEXT_SIZE)
    panel.xaxis.set_major_locator(
        MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    panel.xaxis.get_offset_text().set_fontsize(_NAME_SIZE)
    panel.tick_params(labelsize=_NAME_SIZE)
    _scale_to_percent(panel)
    panel.set_ylim(-0.03, 1.03)  # the frame would hide half of a line along it
    return figure.figure


def _check(reports: Sequence[Report], labels: Sequence[str] | None) -> None:
    for position, report in enumerate(reports, 1):
        if not isinstance(report, Report):
            raise TypeError(f"plot takes reports, but number {position} is {report!r}")
        for ours, theirs in zip_longest(reports[0].layers, report.layers):
            if ours is None or theirs is None or ours[:2] != theirs[:2]:
                raise ValueError(
                    "plot compares reports of the same layers, but where the first report has "
                    f"{_described(ours)}, number {position} has {_described(theirs)}"
                )
    if labels is None:
        return
    is_list = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not is_list or not all(isinstance(label, str) for label in labels):
        found = repr(labels) if isinstance(labels, str) else f"a {type(labels).__name__}"
        raise TypeError(f"labels is {found}; pass a list with a label, a str, for each report")
    if len(labels) != len(reports):
        raise ValueError(
            f"labels: plot takes one for each report, but got {len(labels)} for {len(reports)}"
        )


def _drawn_on(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    """The caller's figure, or a new one of a size in inches."""
    if figure is None:
        return _Picture(size, layout="constrained")
    if not isinstance(figure, Figure | SubFigure):
        raise TypeError(
            f"figure is a {type(figure).__name__}; pass a Figure or SubFigure of matplotlib, such "
            "as axes.figure, or leave it out for a new one"
        )
    return figure


def _described(layer: LayerReport | None) -> str:
    return "no further layer" if layer is None else f"{layer.name} of shape {layer.shape}"


def _size(names: Sequence[str], reports: int) -> tuple[float, float]:
    """The width and height in inches that show all layers."""
    least, most = _WIDTHS
    longest = min(max(map(len, names), default=0), _LONGEST_NAME)
    width = min(max(least, 0.15 * len(names) + 0.7), most)
    return width, 0.95 * max(2.3, reports) + 0.9 + 0.055 * longest


def _draw_sparsity(panel: Axes, report: Report, label: str) -> None:
    sparsities = [layer.sparsity for layer in report.layers]
    _draw_bars(panel, sparsities, _PRUNED, bottom=0)
    panel.axhline(report.sparsity, color=_LINE, lw=0.7, ls="--")
    panel.set_title(label, loc="left", fontsize=_TEXT_SIZE)
    panel.set_title(f"total {report.sparsity:.2%}", loc="right", fontsize=_NAME_SIZE)
    panel.tick_params(labelsize=_NAME_SIZE)
    panel.tick_params(axis="x", bottom=False)
    _scale_to_percent(panel)


def _draw_bars(panel: Axes, heights: Sequence[float], color: str, *, bottom: float) -> None:
    """A bar for each layer; where they are too many for gaps, the filled outline of all."""
    if len(heights) <= _MOST_BARS:
        panel.bar(range(len(heights)), heights, color=color)
    else:
        edges = [position - 0.5 for position in range(len(heights) + 1)]
        panel.stairs(heights, edges, baseline=bottom, fill=True, color=color)


def _draw_sizes(panel: Axes, report: Report, *, with_kept: bool) -> None:
    sizes = [layer.numel for layer in report.layers]
    title, least = f"{report.numel:,} weights", 0.5  # so that a layer of one weight can be seen
    panel.set_yscale("log")
    panel.set_ylim(least, 2 * max([10, *sizes]))
    _draw_bars(panel, sizes, _SIZE, bottom=least)
    if with_kept:
        _draw_bars(panel, [layer.kept for layer in report.layers], _KEPT, bottom=least)
        title += f", dark: {report.kept:,} kept"
    panel.set_title(title, loc="right", fontsize=_NAME_SIZE)
    panel.set_ylabel("weights", fontsize=_TEXT_SIZE)
    panel.yaxis.set_major_locator(LogLocator(numticks=3))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.tick_params(labelsize=_NAME_SIZE)


def _name_layers(panel: Axes, names: Sequence[str]) -> None:
    """Names below the bars: across where all fit, upright otherwise, and then of limited length."""
    size = FontProperties(size=_NAME_SIZE).get_size_in_points()
    width, height = (72 * length / panel.figure.dpi for length in panel.figure.bbox.bounds[2:])
    most = max(8, min(_LONGEST_NAME, int(height / 3 / (0.55 * size))))
    shown = [_end(name, most) for name in names]
    across = 0.6 * size * len(names) * (2 + max(map(len, shown), default=0)) < width - 50
    panel.set_xlim(-0.6, max(len(names), 1) - 0.4)
    panel.xaxis.set_major_locator(_EveryNth(panel, len(names), 1.15 * size))
    # matplotlib reads what is between two dollars as mathematics.
    panel.xaxis.set_major_formatter(lambda position, _: shown[round(position)].replace("$", r"\$"))
    panel.tick_params(axis="x", length=2, rotation=0 if across else 90)


def _end(name: str, most: int) -> str:
    """The name's last characters: they differ where many layers begin alike."""
    return name if len(name) <= most else "…" + name[1 - most :].lstrip(".")


class _EveryNth(Locator):
    """Names every layer, or every n-th where the names would touch; more when zoomed in."""

    def __init__(self, panel: Axes, count: int, spacing: float) -> None:
        self._panel, self._count, self._spacing = panel, count, spacing

    def __call__(self) -> Sequence[float]:
        width = 72 * self._panel.get_window_extent().width / self._panel.figure.dpi
        first, last = self._panel.get_xlim()
        return range(0, self._count, max(1, ceil((last - first) * self._spacing / width)))


def _scale_to_percent(panel: Axes) -> None:
    panel.set_ylim(0, 1)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_ylabel("sparsity", fontsize=_TEXT_SIZE)

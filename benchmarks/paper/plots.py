"""The pictures of the page: accuracy and differences over sparsity, and layerwise sparsity."""

from collections.abc import Mapping, Sequence
from typing import Any

from comparison import Table, layerwise
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)
from models import ARCHITECTURES
from records import LayerRow, Row

# Paul Tol's bright colours and a marker each, so that no colour has to be told from another.
STYLES = {
    "lamp": ("#4477aa", "o"),
    "global": ("#ee6677", "s"),
    "uniform": ("#999933", "^"),
    "uniform+": ("#aa3377", "v"),
    "erk": ("#228833", "D"),
    "rd": ("#66ccee", "X"),
}
DPI = 120
_WIDTH, _HEIGHT = 4.2, 3.4  # inches a panel
DROP = 0.1  # below the dense network, and below LAMP: curves that fall further leave the panel
_BESIDE = 0.025  # of the weights that remain, from one method to the next
_MARGIN = 0.05  # of the height, above and below
_LINEAR = 1.0  # points of difference up to which the scale is linear, logarithmic beyond
_FURTHER = 1.3  # than the last interval: where the scale is logarithmic, a margin
_LINE: dict[str, Any] = {"color": "0.4", "lw": 1, "ls": ":", "zorder": 0}
_POINTS = [0.0, *(sign * size for size in (1, 3, 10, 30, 100) for sign in (-1, 1))]  # with a tick


def accuracy(rows: Sequence[Row], models: Sequence[str], protocol: str) -> Figure:
    """Accuracy over sparsity, and below it LAMP minus every baseline."""
    figure = Figure(figsize=(_WIDTH * len(models) + 1, 1.7 * _HEIGHT), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharex="col", height_ratios=(1, 0.7))
    for (upper, lower), model in zip(panels.T, models, strict=True):
        table = Table(rows, model, protocol)
        _draw_accuracy(upper, table)
        _draw_differences(lower, table)
        upper.set_title(ARCHITECTURES[model].title, fontsize="medium")
        lower.set_xlabel("sparsity")
    panels[0, 0].set_ylabel("test accuracy")
    panels[1, 0].set_ylabel("LAMP minus\nbaseline, points")
    _legend(figure, panels[0, 0])
    return figure


def layers(
    rows: Sequence[LayerRow], protocol: str, rounds: Mapping[str, tuple[int, float]]
) -> Figure:
    """Sparsity of every layer, one panel a model.

    Args:
        rows: Of any models and protocols.
        protocol: The one that is shown.
        rounds: By model the round that is shown, and the sparsity of the whole network in it.
    """
    figure = Figure(figsize=(_WIDTH * len(rounds) + 1, _HEIGHT + 0.6), layout="constrained")
    panels = figure.subplots(1, len(rounds), squeeze=False, sharey=True)[0]
    for panel, (model, (number, whole)) in zip(panels, rounds.items(), strict=True):
        by_method = layerwise(rows, model, protocol, number)
        for method, (colour, marker) in STYLES.items():
            means = [spread.mean for spread in by_method.get(method, {}).values()]
            panel.plot(
                range(1, len(means) + 1),
                means,
                color=colour,
                marker=marker,
                label=method,
                **_emphasis(method),
            )
        panel.axhline(whole, label="whole network", **_LINE)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("layer, in the order of the parameters")
        panel.set_title(ARCHITECTURES[model].title, fontsize="medium")
        panel.grid(axis="y", color="0.9")
    panels[0].set_ylabel("sparsity of the layer")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, panels[0])
    return figure


def _draw_accuracy(panel: Axes, table: Table) -> None:
    for method, (colour, marker) in STYLES.items():
        points = [
            (1 - sparsity, spread.mean, spread.deviation or 0)
            for number, sparsity in table.sparsities.items()
            if (spread := table.spread(method, number))
        ]
        if not points:
            continue
        remaining, means, deviations = zip(*points, strict=True)
        panel.plot(
            remaining, means, color=colour, marker=marker, ms=4, label=method, **_emphasis(method)
        )
        low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        panel.fill_between(remaining, low, high, color=colour, alpha=0.2, lw=0)
    if table.dense is not None:  # else no seed has all methods, and there is nothing to see
        panel.axhline(table.dense, label="before pruning", **_LINE)
        lamp = [each for number in table.sparsities if (each := table.spread("lamp", number))]
        band = [each.mean - (each.deviation or 0) for each in lamp]
        lowest, highest = min([table.dense - DROP, *band]), panel.dataLim.ymax
        margin = _MARGIN * (highest - lowest)
        panel.set_ylim(max(lowest - margin, panel.get_ylim()[0]), highest + margin)
    panel.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    _draw_sparsity(panel, table)


def _draw_differences(panel: Axes, table: Table) -> None:
    baselines = [(method, style) for method, style in STYLES.items() if method != "lamp"]
    lowest, highest = -_LINEAR, _LINEAR
    for place, (method, (colour, marker)) in enumerate(baselines):
        # So that the intervals do not lie on each other.
        beside = 1 + _BESIDE * (place - (len(baselines) - 1) / 2)
        points = [
            (beside * (1 - sparsity), 100 * found.mean, 100 * (found.half or 0))
            for number, sparsity in table.sparsities.items()
            if (found := table.difference("lamp", method, [number]))
        ]
        if points:
            remaining, means, halves = zip(*points, strict=True)
            panel.errorbar(
                remaining, means, halves, color=colour, marker=marker, ms=4, lw=1, elinewidth=1
            )
            lowest = min(lowest, *(mean - half for _, mean, half in points))
            highest = max(highest, *(mean + half for _, mean, half in points))
    panel.axhline(0, color="0.4", lw=1, zorder=0)
    panel.set_yscale("symlog", linthresh=_LINEAR)
    panel.set_ylim(_FURTHER * lowest, _FURTHER * highest)
    panel.yaxis.set_major_locator(FixedLocator(_POINTS))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    _draw_sparsity(panel, table)


def _draw_sparsity(panel: Axes, table: Table) -> None:
    """The more is pruned, the further to the right: the logarithm of what remains."""
    panel.set_xscale("log")
    panel.set_xticks([1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
    sparsities = table.sparsities.values()
    panel.set_xlim(min(1, 1.25 * (1 - min(sparsities))), 0.9 * (1 - max(sparsities)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - value):g}%"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(color="0.9")


def _emphasis(method: str) -> dict[str, Any]:
    return {"lw": 2.2, "zorder": 3} if method == "lamp" else {"lw": 1.2}


def _legend(figure: Figure, panel: Axes) -> None:
    """Above all panels, whose methods are the same."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
        fontsize="small",
        columnspacing=1.2,
    )

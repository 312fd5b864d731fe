"""Makes the pictures that the docs show: python docs/pictures.py, with the extras demo and plot."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter
from PIL import Image

import lampfast
from lampfast import schedules
from lampfast._cli import demo

_DOCS = Path(__file__).parent
_STEPS = 1000
_SPARSITY = 0.9
_PRUNED, _KEPT, _INK, _PALE = "#b9bec4", "#3d73a8", "#222222", "#777777"
_SHOWN = {  # layers of EfficientNet-Lite0 that LAMP treats differently, and what they are
    "_blocks.15._depthwise_conv.weight": "depthwise 3×3",
    "_blocks.9._expand_conv.weight": "expanding 1×1",
    "_fc.weight": "classifier",
}


def _method() -> Figure:
    """How LAMP prunes: three layers, their scores, and one threshold for all of them."""
    weights = demo.imagenet_weights()
    masks, scores = lampfast.masks(weights, _SPARSITY), lampfast.scores(weights)
    threshold = min(float(scores[name][mask].min()) for name, mask in masks.items() if mask.any())
    figure = Figure((8.4, 3.4), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07))
    ratios = {"width_ratios": [3, 3, 1.5], "wspace": 0.08}
    panels = figure.subplots(len(_SHOWN), 3, sharex="col", squeeze=False, gridspec_kw=ratios)
    for (left, middle, right), (name, kind) in zip(panels, _SHOWN.items(), strict=True):
        mask = masks[name].flatten()
        magnitudes = weights[name].abs().flatten()
        _stacked_histogram(left, magnitudes, mask, (-3.5, 0.3))
        left.axvline(float(magnitudes[mask].min()), color=_INK, lw=1.2)
        label = f"{kind}\n{mask.numel():,} weights"
        left.set_ylabel(label, fontsize="small", rotation=0, ha="right", va="center")
        _stacked_histogram(middle, scores[name].flatten(), mask, (-10, 0))
        middle.axvline(threshold, color=_INK, lw=1.2, ls="--")
        kept = float(mask.float().mean())
        right.barh([0], [kept], color=_KEPT)
        right.barh([0], [1 - kept], left=[kept], color=_PRUNED)
        right.set_title(f"{1 - kept:.0%} pruned", fontsize="small", pad=2)
        right.set_ylim(-0.8, 0.8)
        right.set_xlim(0, 1)
        right.axis("off")
    for panel, title in zip(panels[0], ("magnitudes", "LAMP scores"), strict=False):
        panel.set_title(title, fontsize="medium", weight="bold")
    panels[-1][0].set_xlabel("|w|: every layer gets its own threshold", fontsize="small")
    panels[-1][1].set_xlabel("score: one threshold for all layers", fontsize="small")
    return figure


def _stacked_histogram(
    panel: Axes, values: torch.Tensor, kept: torch.Tensor, decades: tuple[float, float]
) -> None:
    """How many weights have which value, on a logarithmic axis; what is pruned is grey."""
    first, last = decades
    edges = torch.logspace(first, last, 90, dtype=torch.float64).tolist()
    parts = [values[~kept].tolist(), values[kept].tolist()]
    panel.hist(parts, edges, stacked=True, color=[_PRUNED, _KEPT])
    panel.set_xscale("log")
    panel.set_xlim(edges[0], edges[-1])
    panel.yaxis.set_major_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize="x-small", length=2)
    panel.tick_params(which="minor", length=0)
    for side in ("top", "left", "right"):
        panel.spines[side].set_visible(False)


def _methods() -> Figure:
    """EfficientNet-Lite0's ImageNet weights, pruned by every method to the same sparsity."""
    weights = demo.imagenet_weights()
    reports = {
        method: lampfast.report(weights, _SPARSITY, method=method)
        for method in ("lamp", "erk", "global", "uniform+", "uniform")
    }
    first, *others = reports.values()
    return first.plot(*others, labels=list(reports))


def _schedules() -> Figure:
    """The four schedules on their way to the same sparsity."""
    drawn: dict[str, Callable[[int], float]] = {
        "constant(0.9, start=100)": schedules.constant(_SPARSITY, start=100),
        "cubic(0.9, 800, start=100)": schedules.cubic(_SPARSITY, 800, start=100),
        "geometric(100, rounds=10)": schedules.geometric(100, rounds=10),
        "linear(0.9, 800, start=100)": schedules.linear(_SPARSITY, 800, start=100),
    }
    looks = [("#bbbbbb", "-"), ("#4477aa", "-"), ("#222222", "-"), ("#4477aa", "--")]
    figure = Figure((5.0, 2.8), layout="constrained")
    panel = figure.subplots()
    steps = range(_STEPS + 1)
    for (name, schedule), (color, style) in zip(drawn.items(), looks, strict=True):
        panel.plot(steps, list(map(schedule, steps)), color=color, ls=style, label=name)
    panel.legend(loc="lower right", fontsize="small", frameon=False)
    panel.set_xlabel("step")
    panel.set_ylabel("sparsity")
    panel.set_ylim(-0.03, 1.03)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _stages() -> Figure:
    """What the stages of a call pass to each other, between the layers' memory and the host."""
    figure = Figure((7.2, 4.4), layout="constrained")
    panel = figure.subplots()
    panel.set_xlim(0, 100)
    panel.set_ylim(0, 62)
    panel.axis("off")
    panel.axhspan(40, 62, color="#eeeeee")
    panel.axhspan(0, 22, color="#eeeeee")
    above = "where the layers live: each backend reads and writes its own, on all its threads"
    panel.text(50, 60.5, above, ha="center", va="top", fontsize="small", style="italic")
    below = "in the host: one small computation for all layers"
    panel.text(50, 1.5, below, ha="center", va="bottom", fontsize="small", style="italic")
    for name, does, x, y in (
        ("draw", "reads a small sample", 12.5, 49),
        ("partition", "the one read of all\nweights; writes masks", 37.5, 49),
        ("narrow", "reads candidates, or\na missed layer again", 62.5, 49),
        ("commit", "zeroes weights, or\ncompletes masks", 87.5, 49),
        ("estimate", "solves for thresholds,\nwith error bars", 21, 13),
        ("bound", "rigorous ranks: which\nlayers are still open?", 56.5, 13),
        ("select", "exact comparisons\nof what is left", 87.5, 13),
    ):
        _stage(panel, name, does, x, y)
    for crosses, x, from_y, to_y in (
        ("histogram,\nerror groups", 14, 43, 19),
        ("an interval of\nkeys a layer", 29, 19, 43),
        ("counts,\nsums, bins", 46, 43, 19),
        ("smaller\nintervals", 56, 19, 43),
        ("bins, or\nsorted keys", 65.5, 43, 19),
        ("a threshold\na layer", 87.5, 19, 43),
    ):
        _arrow(panel, (x, from_y), (x, to_y))
        panel.text(x + 1.2, 31, crosses, va="center", fontsize="x-small")
    _arrow(panel, (67.5, 13), (76.5, 13))
    panel.text(71.5, 14, "none", ha="center", va="bottom", fontsize="x-small")
    return figure


def _stage(panel: Axes, name: str, does: str, x: float, y: float) -> None:
    """A box with the stage's name, and below it what it does."""
    width, height = 22, 12
    corner = x - width / 2, y - height / 2
    style = "round,pad=0,rounding_size=1.2"
    box = FancyBboxPatch(corner, width, height, boxstyle=style, fc="white", ec="#4477aa", lw=1.5)
    panel.add_patch(box)
    panel.text(x, y + 3.2, name, ha="center", va="center", weight="bold")
    panel.text(x, y - 1.8, does, ha="center", va="center", fontsize="x-small")


def _arrow(panel: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    look = {"arrowstyle": "-|>", "color": "#222222", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", end, start, arrowprops=look)


def main() -> None:
    """Writes one file a picture; the same bytes each time, with the same matplotlib."""
    pictures = {
        "layers": _methods,
        "method": _method,
        "schedules": _schedules,
        "stages": _stages,
    }
    for name, draw in pictures.items():
        drawn = BytesIO()
        draw().savefig(drawn, format="png", dpi=150)
        # Few colours are drawn: a palette of them makes a file a third as large.
        Image.open(drawn).convert("RGB").quantize(32).save(_DOCS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

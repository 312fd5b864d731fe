"""Makes the pictures that the docs show: python docs/pictures.py, with the extras demo and plot."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

import lampfast
from lampfast import schedules
from lampfast._cli import demo

_DOCS = Path(__file__).parent
_STEPS = 1000
_SPARSITY = 0.9


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


def main() -> None:
    """Writes one file a picture; the same bytes each time, with the same matplotlib."""
    for name, draw in {"layers": _methods, "schedules": _schedules}.items():
        drawn = BytesIO()
        draw().savefig(drawn, format="png", dpi=150)
        # Few colours are drawn: a palette of them makes a file a third as large.
        Image.open(drawn).convert("RGB").quantize(32).save(_DOCS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

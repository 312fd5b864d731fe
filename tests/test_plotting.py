"""What a plot draws is what the report or the history says; and it leaves nothing behind."""

import gc
import io
import weakref
from collections.abc import Sequence
from itertools import pairwise

import another_python
import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle, StepPatch

import lampfast
from lampfast import _plotting
from lampfast.reports import LayerReport, Report


def _report(layers: int, seed: int = 1, name: str = "blocks.{}.weight") -> Report:
    """Layers of all sizes and sparsities, among them empty, dense and fully pruned ones."""
    sizes = [(7 * i + 1) ** 3 % 10_007 for i in range(layers)]
    return Report(
        LayerReport(name.format(i), (size,), size, size * (seed * i % 5) // 4, None)
        for i, size in enumerate(sizes)
    )


def _panels(figure: Figure) -> list[Axes]:
    figure.draw_without_rendering()
    return list(figure.axes)


def _heights(panel: Axes, bars: int = 0) -> list[float]:
    """The heights of a panel's bars, or of what fills their outline where they are many."""
    if not panel.containers:
        outline = panel.patches[bars]
        assert isinstance(outline, StepPatch)
        values, edges, _ = outline.get_data()
        assert edges.tolist() == [i - 0.5 for i in range(len(values) + 1)]
        return list(values)
    rectangles = list(panel.containers[bars])
    assert all(isinstance(bar, Rectangle) for bar in rectangles)
    centres = [bar.get_x() + bar.get_width() / 2 for bar in rectangles]
    assert centres == pytest.approx(range(len(rectangles)))
    return [bar.get_height() for bar in rectangles]


def _values(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]


def _names(panel: Axes) -> dict[int, str]:
    """The layers that are named, by their position."""
    return {round(tick.get_loc()): tick.label1.get_text() for tick in panel.xaxis.get_major_ticks()}


@pytest.mark.parametrize("layers", [1, 2, 21, 161])
def test_one_report_is_drawn_as_it_is(layers: int) -> None:
    report = _report(layers)
    total = report.sparsity
    sparsity, sizes = _panels(report.plot())
    assert _heights(sparsity) == [layer.sparsity for layer in report.layers]
    assert _heights(sizes) == [layer.numel for layer in report.layers]
    assert _heights(sizes, 1) == [layer.kept for layer in report.layers]
    assert [_values(line) for line in sparsity.lines] == [[(0, total), (1, total)]]
    assert sparsity.get_title("right") == f"total {report.sparsity:.2%}"
    assert f"{report.numel:,} weights, dark: {report.kept:,} kept" == sizes.get_title("right")
    assert sparsity.get_ylim() == (0, 1)
    low, high = sizes.get_ylim()
    assert low < 1
    assert high > max(layer.numel for layer in report.layers)


@pytest.mark.parametrize("reports", [2, 3, 5])
def test_several_reports_are_rows(reports: int) -> None:
    drawn = [_report(21, seed) for seed in range(reports)]
    labels = [f"method {seed}" for seed in range(reports)]
    *rows, sizes = _panels(drawn[0].plot(*drawn[1:], labels=labels))
    assert [_heights(row) for row in rows] == [
        [layer.sparsity for layer in report.layers] for report in drawn
    ]
    assert [row.get_title("left") for row in rows] == labels
    assert [_values(row.lines[0])[0] for row in rows] == [(0, report.sparsity) for report in drawn]
    assert len(sizes.containers) == 1  # what remains would be of one of them only
    assert {row.get_xlim() for row in rows} == {sizes.get_xlim()}


@pytest.mark.parametrize(("layers", "have_gaps"), [(120, True), (121, False), (1000, False)])
def test_many_layers_have_no_gaps_between_them(layers: int, have_gaps: bool) -> None:
    report = _report(layers)
    panel, _ = _panels(report.plot())
    assert bool(panel.containers) == have_gaps
    assert _heights(panel) == [layer.sparsity for layer in report.layers]


def test_labels_are_optional() -> None:
    *rows, _ = _panels(_report(3).plot(_report(3, 2)))
    assert [row.get_title("left") for row in rows] == ["", ""]


@pytest.mark.parametrize("width", [3.3, 7.0])
@pytest.mark.parametrize("layers", [2, 21, 161])
@pytest.mark.parametrize("name", ["{}", "model.encoder.layer.{}.attention.self.query.weight"])
def test_names_are_readable(name: str, layers: int, width: float) -> None:
    report = _report(layers, name=name)
    figure = report.plot()
    figure.set_size_inches(width, figure.get_figheight())  # at any time before it is drawn
    panel = _panels(figure)[-1]
    found = _names(panel)
    assert found
    assert len({second - first for first, second in pairwise(found)}) <= 1
    for position, shown in found.items():
        full = report.layers[position].name.removesuffix(".weight")
        assert shown == full or (shown[0] == "…" and full.endswith(shown[1:]))
    boxes = [tick.label1.get_window_extent() for tick in panel.xaxis.get_major_ticks()]
    assert not any(left.overlaps(right) for left, right in pairwise(boxes))
    inside = figure.get_tightbbox()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= width
    assert inside.y1 <= figure.get_figheight()
    sparsity, sizes = (72 * row.get_window_extent().height / figure.dpi for row in figure.axes)
    assert sparsity > 100  # points: however long the names are, there is room for the bars
    assert sizes > 50


def test_all_names_are_there_where_they_fit() -> None:
    assert list(_names(_panels(_report(54).plot())[-1])) == list(range(54))


def test_zooming_in_names_more() -> None:
    figure = _report(300).plot()
    panel = _panels(figure)[-1]
    assert len(_names(panel)) < 300
    panel.set_xlim(99.5, 119.5)
    figure.draw_without_rendering()
    assert set(range(100, 120)) <= set(_names(panel))


def test_names_are_not_read_as_mathematics() -> None:
    name = "$_{$a"
    panel = _panels(Report([LayerReport(name, (4,), 4, 2, None)]).plot())[-1]
    assert _names(panel) == {0: name.replace("$", r"\$")}  # which is drawn as the name


def test_an_ending_goes_only_where_all_have_it() -> None:
    layers = [LayerReport(name, (4,), 4, 2, None) for name in ("fc.weight", "scale")]
    assert list(_names(_panels(Report(layers).plot())[-1]).values()) == ["fc.weight", "scale"]
    assert list(_names(_panels(Report(layers[:1]).plot())[-1]).values()) == ["fc"]


def test_extremes_are_drawn() -> None:
    sizes = [(1000, 1000), (1000, 0), (0, 0), (1, 1), (1, 0), (10**12, 1)]
    extremes = Report(LayerReport(str(i), (n,), n, kept, None) for i, (n, kept) in enumerate(sizes))
    _panels(extremes.plot(extremes))
    assert np.isfinite(_heights(_panels(extremes.plot())[0])).all()
    _panels(Report(()).plot())
    _panels(Report([LayerReport("empty", (0, 3), 0, 0, None)]).plot())


def test_reports_of_pruned_models_are_drawn() -> None:
    weights = {name: torch.tensor([3.0, 1.0, -2.0, 0.5]) for name in "ab"}
    before = lampfast.report(weights)
    first, second, _ = _panels(before.plot(lampfast.prune(weights, 0.5)))
    assert _heights(first) == [0.0, 0.0]
    assert _heights(second) == [0.5, 0.5]


def test_others_must_be_reports_of_the_same_layers() -> None:
    report = _report(3)
    with pytest.raises(ValueError, match=r"blocks\.2\.weight.*number 2 has no further layer"):
        report.plot(_report(2))
    with pytest.raises(ValueError, match=r"no further layer, number 3 has blocks\.3\.weight"):
        report.plot(report, _report(4))
    renamed = _report(3, name="stage.{}")
    with pytest.raises(ValueError, match=r"blocks\.0\.weight.*stage\.0 of shape \(1,\)"):
        report.plot(renamed)
    first, *rest = report.layers
    with pytest.raises(
        ValueError, match=r"\(1,\), number 2 has blocks\.0\.weight of shape \(1, 1\)"
    ):
        report.plot(Report([first._replace(shape=(1, 1)), *rest]))
    with pytest.raises(TypeError, match="number 2 is 'LAMP'"):
        report.plot("LAMP")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels is 'ab'"):
        report.plot(report, labels="ab")
    with pytest.raises(TypeError, match=r"figure is a Axes; .* axes\.figure"):
        report.plot(figure=Figure().subplots())  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [(), ("one",), ("one", "two", "three")])
def test_there_must_be_a_label_for_each(labels: Sequence[str]) -> None:
    figure = Figure()
    with pytest.raises(ValueError, match=f"got {len(labels)} for 2"):
        _report(3).plot(_report(3), labels=labels, figure=figure)
    assert not figure.axes


def test_it_draws_into_a_figure() -> None:
    figure = Figure((3.3, 2.5), layout="constrained")
    assert _report(161).plot(figure=figure) is figure
    assert len(_panels(figure)) == 2
    assert figure.get_size_inches().tolist() == [3.3, 2.5]


def test_it_draws_into_a_subfigure() -> None:
    figure = Figure((7, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    inner, _ = right.subfigures(2, 1)
    history = [(1, 0.5), (2, 0.75)]
    assert _report(21).plot(_report(21, 2), figure=left) is figure
    assert _plotting.sparsity_over_steps(history, figure=inner) is figure
    assert (len(left.axes), len(inner.axes), len(_panels(figure))) == (3, 1, 4)


def test_no_figure_stays() -> None:
    settings = dict(mpl.rcParams)
    figures = [weakref.ref(_report(5).plot()) for _ in range(3)]
    figures.append(weakref.ref(_plotting.sparsity_over_steps([(1, 0.5)])))
    gc.collect()
    assert [figure() for figure in figures] == [None] * 4
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == settings


def test_a_notebook_shows_it() -> None:
    for figure in (_report(5).plot(), _plotting.sparsity_over_steps([(1, 0.5)])):
        assert figure._repr_png_().startswith(b"\x89PNG\r\n")  # type: ignore[attr-defined]


def test_it_is_saved_as_other_formats_too() -> None:
    for suffix in ("pdf", "svg"):
        file = io.BytesIO()
        _report(5, name="…{}").plot().savefig(file, format=suffix)
        assert file.getvalue()


def test_history_is_drawn_as_steps() -> None:
    history = [(100, 0.2), (200, 0.36), (450, 0.488)]
    (panel,) = _panels(_plotting.sparsity_over_steps(history))
    (line,) = panel.lines
    assert _values(line) == history
    assert line.get_drawstyle() == "steps-post"
    assert panel.get_legend() is None
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("step", "sparsity")


@pytest.mark.parametrize("last", [1, 2, 7, 100_000])
def test_a_schedule_is_drawn_to_the_last_step(last: int) -> None:
    asked = []

    def schedule(step: int) -> float:
        assert type(step) is int
        asked.append(step)
        return min(0.9, step / 1000)

    (panel,) = _panels(_plotting.sparsity_over_steps([(last, 0.5)], schedule))
    _, line = panel.lines
    assert _values(line) == [(step, min(0.9, step / 1000)) for step in asked]
    assert asked == sorted(set(asked))
    assert {asked[0], asked[-1]} == {1, last}
    assert len(asked) <= min(last, 501)
    legend = panel.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["model", "schedule"]


def test_it_is_drawn_to_the_last_step_after_the_last_pruning() -> None:
    drawn = _plotting.sparsity_over_steps([(10, 0.2), (20, 0.5)], lambda step: 0.5, last=50)
    model, schedule = _panels(drawn)[0].lines
    assert _values(model) == [(10, 0.2), (20, 0.5), (50, 0.5)]
    assert model.get_markevery() == [0, 1]  # none where nothing was pruned
    assert _values(schedule)[-1] == (50, 0.5)


def test_before_the_first_pruning_there_is_the_schedule() -> None:
    (panel,) = _panels(_plotting.sparsity_over_steps([], lambda step: 0.5, last=3))
    assert [_values(line) for line in panel.lines] == [[], [(1, 0.5), (2, 0.5), (3, 0.5)]]


def test_nothing_pruned_yet_is_an_empty_picture() -> None:
    (panel,) = _panels(_plotting.sparsity_over_steps([], lambda step: 0.5))
    assert [_values(line) for line in panel.lines] == [[]]


@pytest.mark.parametrize(
    ("missing", "told"), [("matplotlib", "pip install '.[plot]'"), ("cycler", "import of cycler")]
)
def test_it_says_what_is_missing(missing: str, told: str) -> None:
    """An extra that was not installed, or, as it is, a package that matplotlib needs."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
import lampfast
try:
    lampfast.Report(()).plot()
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    done = another_python.run("-c", program)
    assert done.stdout.startswith(f"{missing} "), done.stderr
    assert told in done.stdout
    assert ("[plot]" in done.stdout) == (missing == "matplotlib")

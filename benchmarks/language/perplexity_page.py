"""The page: README.md and its picture, with every number from the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import perplexity_records as records
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from perplexity_records import Row, Run

METHODS = ("lamp", "global", "uniform", "rows", "erk")
IMPORTANCES = ("magnitude", "wanda")

_TEMPLATE = Path(__file__).with_name("template.md")
# Paul Tol's bright colours and a marker each, so that no colour has to be told from another.
_STYLES = {
    "lamp": ("#4477aa", "o"),
    "global": ("#ee6677", "s"),
    "uniform": ("#999933", "^"),
    "rows": ("#aa3377", "v"),
    "erk": ("#228833", "D"),
    "dense": ("0.4", "."),
}
_TITLES = {"magnitude": "one-shot, by |w|", "wanda": "one-shot, by |W|·‖x‖"}


def write(folder: Path, runs: int) -> Path:
    """Write README.md and its picture beside the results.

    Args:
        folder: Where results.csv and results.json are.
        runs: How many there are when all are done.

    Returns:
        The page.
    """
    rows, made = records.read(folder), records.described(folder)
    page = folder / "README.md"
    page.write_text(text(rows, made, runs))
    figure(rows).savefig(folder / "perplexity.png", dpi=120)
    return page


def text(rows: Sequence[Row], made: Mapping[str, Any], runs: int) -> str:
    """The page."""
    settings = made["settings"]
    window, steps = settings["window"], settings["steps"][-1]
    seconds = sum({row.run: row.seconds for row in rows}.values())
    return Template(_TEMPLATE.read_text()).substitute(
        verdict="\n".join(f"- {line}" for line in _verdict(rows)),
        state=_state(len({row.run for row in rows}), runs),
        parameters=f"{made['parameters']:,}",
        prunable=f"{made['prunable']:,}",
        held_out=f"{settings['held_out'] * window:,}",
        calibration=f"{settings['calibration'] * window:,}",
        window=window,
        dense=_shown(_dense(rows)),
        one_shot=_one_shot(rows),
        retrained_at=" and ".join(f"{each:.0%}" for each in settings["retrained"]),
        steps=steps,
        length=settings["length"],
        rate=settings["rate"],
        retrained=_retrained(rows),
        parts="\n".join(
            f"- {name}: {' and '.join(packages)}, {made['tokens'][name]:,} tokens"
            for name, packages in made["parts"].items()
        ),
        trained=f"{steps * settings['length']:,}",
        processor=made["processor"],
        versions=", ".join(f"{name} {version}" for name, version in made["versions"].items()),
        minutes=f"{seconds / 60:.0f}",
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Perplexity by sparsity, for each importance; and over the steps of retraining."""
    drawn = Figure(figsize=(12.5, 4.2), layout="constrained")
    *left, right = drawn.subplots(1, len(IMPORTANCES) + 1)
    for panel, importance in zip(left, IMPORTANCES, strict=True):
        for method in METHODS:
            points = {0.0: _dense(rows), **_by_sparsity(rows, importance, method)}
            _draw(panel, points, method)
        panel.set_title(_TITLES[importance], fontsize="medium")
        panel.set_xlabel("sparsity")
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.sharey(left[0])
    for run in _trained_runs(rows):
        _draw(right, {0: _before(rows, run), **_by_step(rows, run)}, run.method)
    right.set_title("retrained: by |w|, rows by |W|·‖x‖", fontsize="medium")
    right.set_xlabel("step of training")
    right.set_xticks(sorted({0, *(row.step for row in rows)}))
    left[0].set_ylabel("perplexity")
    handles = {}
    for panel in (*left, right):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(color="0.9")
        handles.update({line.get_label(): line for line in panel.lines})
    drawn.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )
    return drawn


def _draw(panel: Axes, points: Mapping[float, float | None], method: str) -> None:
    there = {place: value for place, value in points.items() if value is not None}
    (line,) = panel.plot(list(there), list(there.values()), lw=1.2, ms=5, label=method)
    colour, marker = _STYLES[method]
    line.set(color=colour, marker=marker)
    if method == "lamp":
        line.set(lw=2.2, zorder=3)


def _verdict(rows: Sequence[Row]) -> list[str]:
    """What the results say, in sentences."""
    said = []
    sparsities = sorted({row.sparsity for row in rows if row.method != "dense"})
    for importance, words in (("magnitude", "by magnitude"), ("wanda", "by |W|·‖x‖")):
        complete = [
            each for each in sparsities if len(_line(rows, importance, each)) == len(METHODS)
        ]
        if complete:
            said.append(_without_retraining(rows, importance, words, complete))
    best = {each: found for each in sparsities if (found := _best(rows, each))}
    for importance, method in dict.fromkeys(best.values()):
        at = [each for each, found in best.items() if found == (importance, method)]
        said.append(
            f"**The best without retraining** at {_percents(at)}: `{method}` by `{importance}`."
        )
    said += _after_retraining(rows)
    return said


def _without_retraining(
    rows: Sequence[Row], importance: str, words: str, sparsities: Sequence[float]
) -> str:
    lines = [_line(rows, importance, each) for each in sparsities]
    wins = [
        each
        for each, line in zip(sparsities, lines, strict=True)
        if min(line, key=line.__getitem__) == "lamp"
    ]
    ratios = [line["lamp"] / min(line.values()) for line in lines]
    to_uniform = [line["lamp"] / line["uniform"] for line in lines]
    wins_at = f"at {_percents(wins)}" if wins else "at none"
    return (
        f"**Without retraining, {words}**, LAMP is the best of the five {wins_at} of "
        f"the sparsities {_percents(sparsities)}. At these, in turn, its perplexity is "
        f"{_listed(ratios)} times that of the best, and {_listed(to_uniform)} times that of "
        "`uniform`."
    )


def _after_retraining(rows: Sequence[Row]) -> list[str]:
    said = []
    runs = _trained_runs(rows)
    for sparsity in sorted({run.sparsity for run in runs if run.method != "dense"}):
        ends = {
            _name(run): list(_by_step(rows, run).items())[-1]
            for run in runs
            if run.sparsity in (0, sparsity)
        }
        dense = ends.pop("dense", None)
        if "`lamp`" not in ends or len(ends) < 2:
            continue
        step, lamp = ends.pop("`lamp`")
        before = _found(rows, "magnitude", "lamp", sparsity)
        others = ", ".join(f"{name} {_shown(value)}" for name, (_, value) in ends.items())
        place = sorted([lamp, *(value for _, value in ends.values())]).index(lamp)
        ranks = ["the best", "the second", "the third", "the fourth"]
        said.append(
            f"**Retrained for {step} steps at {sparsity:.0%}**, LAMP is {ranks[place]} of "
            f"{len(ends) + 1}: {_shown(lamp)} ({_shown(before)} before), {others}"
            + (f"; the dense model, trained too, {_shown(dense[1])}" if dense else "")
            + _untrained(rows, sparsity)
            + "."
        )
    return said


def _untrained(rows: Sequence[Row], sparsity: float) -> str:
    """What the best does without training, to compare with."""
    if (best := _best(rows, sparsity)) is None:
        return ""
    value = _found(rows, *best, sparsity)
    return f". Without any training `{best[1]}` by `{best[0]}` has {_shown(value)} there"


def _one_shot(rows: Sequence[Row]) -> str:
    lines = []
    for sparsity in sorted({row.sparsity for row in rows if row.method != "dense"}):
        best = _best(rows, sparsity)
        for importance in IMPORTANCES:
            line = _line(rows, importance, sparsity)
            shown = [
                f"**{_shown(line[method])}**"
                if best == (importance, method)
                else _shown(line.get(method))
                for method in METHODS
            ]
            lines.append([f"{sparsity:.0%}", f"`{importance}`", *shown])
    return _table(["sparsity", "", *(f"`{method}`" for method in METHODS)], lines)


def _retrained(rows: Sequence[Row]) -> str:
    steps = sorted({row.step for row in rows if row.is_trained})
    lines = []
    for run in _trained_runs(rows):
        by_step = _by_step(rows, run)
        shown = [_shown(value) for value in (_before(rows, run), *map(by_step.get, steps))]
        lines.append([f"{run.sparsity:.0%}", _name(run), *shown])
    return _table(["sparsity", "method", "before", *(f"step {step}" for step in steps)], lines)


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---:"] * len(headings)
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *lines])


def _state(done: int, runs: int) -> str:
    if done == runs:
        return f"All {runs} runs are done."
    return f"**It is not finished: {done} of its {runs} runs are done.**"


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _percents(sparsities: Sequence[float]) -> str:
    return ", ".join(f"{each:.0%}" for each in sparsities)


def _found(rows: Sequence[Row], importance: str, method: str, sparsity: float) -> float | None:
    return _by_sparsity(rows, importance, method).get(sparsity)


def _dense(rows: Sequence[Row]) -> float | None:
    return _found(rows, "none", "dense", 0.0)


def _by_sparsity(rows: Sequence[Row], importance: str, method: str) -> dict[float, float]:
    """One-shot, in ascending order."""
    wanted = (importance, method)
    found = [row for row in rows if (row.importance, row.method) == wanted and not row.is_trained]
    return {row.sparsity: row.perplexity for row in sorted(found, key=lambda row: row.sparsity)}


def _by_step(rows: Sequence[Row], run: Run) -> dict[float, float]:
    return {row.step: row.perplexity for row in rows if row.run == run}


def _before(rows: Sequence[Row], run: Run) -> float | None:
    """The perplexity that the training of a run starts from."""
    return _found(rows, run.importance, run.method, run.sparsity)


def _trained_runs(rows: Sequence[Row]) -> list[Run]:
    return list(dict.fromkeys(row.run for row in rows if row.is_trained))


def _name(run: Run) -> str:
    """What a run that is trained is called; those by magnitude go by their method."""
    if run.method == "dense":
        return run.method
    return f"`{run.method}`" + (" by `wanda`" if run.importance == "wanda" else "")


def _line(rows: Sequence[Row], importance: str, sparsity: float) -> dict[str, float]:
    """By method, as far as there are results."""
    found = {method: _found(rows, importance, method, sparsity) for method in METHODS}
    return {method: value for method, value in found.items() if value is not None}


def _best(rows: Sequence[Row], sparsity: float) -> tuple[str, str] | None:
    """Importance and method, where all are there."""
    found = [row for row in rows if row.sparsity == sparsity and not row.is_trained]
    if len(found) < len(IMPORTANCES) * len(METHODS):
        return None
    best = min(found, key=lambda row: row.perplexity)
    return best.importance, best.method

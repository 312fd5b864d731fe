"""What comes out, in tables and sentences: where LAMP leads, ties and loses."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from comparison import Difference, Table
from models import ARCHITECTURES
from protocols import METHODS, PROTOCOLS
from records import Row
from wording import listing, percent, points, sparsity, table

_SHOWN = 0.8, 0.9, 0.95, 0.98, 0.99  # sparsities of the tables, or what comes next to them
_BASELINES = [method for method in METHODS if method != "lamp"]
_VERDICTS = {"leads": "LAMP leads {}", "ties": "ties {}", "loses": "loses to {}"}


class Cell(NamedTuple):
    """All results of a model in a protocol."""

    model: str
    protocol: str
    table: Table

    @property
    def baselines(self) -> list[str]:
        """The baselines that have runs of the same seeds as LAMP."""
        return [method for method in _BASELINES if self.overall(method)]

    def overall(self, baseline: str, first: str = "lamp") -> Difference | None:
        """The difference as a mean over all sparsities."""
        numbers = self.table.common(first, baseline)
        return self.table.difference(first, baseline, numbers) if numbers else None

    def sparsest(self, baseline: str) -> Difference | None:
        """The difference at the highest sparsity that both methods reach."""
        return self.table.difference("lamp", baseline, self.table.common("lamp", baseline)[-1:])

    def counts(self, baseline: str) -> Counter[str]:
        """At how many sparsities LAMP leads, ties and loses."""
        numbers = self.table.common("lamp", baseline)
        found = [self.table.difference("lamp", baseline, [number]) for number in numbers]
        return Counter(each.verdict for each in found if each)

    @property
    def shown(self) -> list[int]:
        """The rounds of the tables."""
        return list(dict.fromkeys(self.table.nearest(each) for each in _SHOWN))


def cells(rows: Sequence[Row]) -> list[Cell]:
    """The models and protocols in which LAMP has a baseline beside it."""
    every = [
        Cell(model, protocol, Table(rows, model, protocol))
        for model in ARCHITECTURES
        for protocol in PROTOCOLS
    ]
    return [cell for cell in every if cell.baselines]


def verdicts(cells: Iterable[Cell]) -> str:
    """A sentence for each protocol, and the differences over all sparsities."""
    cells = list(cells)
    rows = [
        (
            *(cell.model, cell.protocol, baseline, found.verdict),
            *(str(found.seeds), points(found), points(cell.sparsest(baseline))),
            *(str(cell.counts(baseline)[verdict]) for verdict in _VERDICTS),
        )
        for cell in cells
        for baseline in cell.baselines
        if (found := cell.overall(baseline))
    ]
    headings = ["model", "protocol", "baseline", "LAMP", "seeds", "all sparsities", "the highest"]
    headings += [f"{verdict} at" for verdict in _VERDICTS]
    return _lines(cells, _sentence) + "\n\n" + table(headings, rows, texts=4)


def claims(cells: Iterable[Cell]) -> str:
    """What the paper says, and below it what the same question gives here."""
    cells = list(cells)
    iterative = [cell for cell in cells if cell.protocol == "iterative"]
    rewinding = [cell for cell in cells if cell.protocol == "rewinding"]
    answers = {
        "LAMP does better than every baseline in all its setups.": _lines(cells, _best),
        "ERK is the strongest baseline overall.": _lines(iterative, _strongest),
        "With rewinding too LAMP does better.": _lines(rewinding, _sentence),
        "With rewinding ERK does worse than global magnitude.": _lines(rewinding, _erk_global),
    }
    return "\n\n".join(f"**The paper: {claim}** Here:\n\n{text}" for claim, text in answers.items())


def numbers(cells: Iterable[Cell]) -> str:
    """Accuracies, and LAMP's differences, next to some sparsities."""
    return "\n\n".join(f"### {_place(cell)}\n\n{_numbers(cell)}" for cell in cells)


def _numbers(cell: Cell) -> str:
    shown = [sparsity(cell.table.sparsities[number]) for number in cell.shown]
    accuracies = [
        (method, *(percent(cell.table.spread(method, number)) for number in cell.shown))
        for method in METHODS
        if method in cell.table.methods
    ]
    differences = [
        (
            f"LAMP - {baseline}",
            *(points(cell.table.difference("lamp", baseline, [number])) for number in cell.shown),
        )
        for baseline in cell.baselines
    ]
    return "\n\n".join(
        [
            table(["accuracy, %, mean ± deviation", *shown], accuracies),
            table(["points, mean ± 95 % interval", *shown], differences),
        ]
    )


def _place(cell: Cell) -> str:
    return f"{ARCHITECTURES[cell.model].title}, {cell.protocol}"


def _sentence(cell: Cell) -> str:
    """Against whom LAMP leads, ties and loses over all sparsities."""
    by_verdict: dict[str, list[str]] = {}
    for baseline in cell.baselines:
        if found := cell.overall(baseline):
            by_verdict.setdefault(found.verdict, []).append(baseline)
    if "one seed" in by_verdict:
        return "one seed, which tells nothing"
    return "; ".join(
        text.format(listing(by_verdict[verdict]))
        for verdict, text in _VERDICTS.items()
        if verdict in by_verdict
    )


def _best(cell: Cell) -> str:
    """At how many sparsities LAMP's mean is the highest."""
    numbers = list(cell.table.sparsities)
    means = [
        {method: found.mean for method in METHODS if (found := cell.table.spread(method, number))}
        for number in numbers
    ]
    best = sum(each.get("lamp", 0) == max(each.values()) for each in means)
    total = sum((cell.counts(baseline) for baseline in cell.baselines), Counter[str]())
    if "one seed" in total:
        return f"the highest accuracy at {best} of {len(numbers)} sparsities, with one seed"
    counts = listing([f"{verdict} in {total[verdict]}" for verdict in _VERDICTS])
    return (
        f"the highest mean at {best} of {len(numbers)} sparsities; of {total.total()} paired "
        f"comparisons it {counts}"
    )


def _strongest(cell: Cell) -> str:
    """The baselines in order of their accuracy over all sparsities."""
    behind = {baseline: cell.overall(baseline) for baseline in cell.baselines}
    ordered = sorted((found.mean, baseline) for baseline, found in behind.items() if found)
    names = [f"{baseline} ({-100 * mean:+.2f})" for mean, baseline in ordered]
    return f"best first, points above LAMP over all sparsities: {', '.join(names)}"


def _erk_global(cell: Cell) -> str:
    found = cell.overall("global", first="erk")
    if not found:
        return "not run yet"
    verdict = found.verdict if found.half is not None else "one seed"
    return f"ERK minus global {points(found)} points over all sparsities: ERK {verdict}"


def _lines(cells: Sequence[Cell], text: Callable[[Cell], str]) -> str:
    return "\n".join(f"- {_place(cell)}: {text(cell)}" for cell in cells) or "- not run yet"

"""What comes out, in tables and sentences: where LAMP leads, ties and loses."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from comparison import CHANCE, Difference, Table, corrected
from models import ARCHITECTURES
from protocols import METHODS, PROTOCOLS
from records import Row
from wording import listing, percent, points, sparsity, table

_SHOWN = 0.8, 0.9, 0.95, 0.98, 0.99  # sparsities of the tables, or what comes next to them
_BASELINES = [method for method in METHODS if method != "lamp"]
_ONE_SEED = "one seed, which tells nothing"
_VERDICTS = {"leads": "LAMP leads {}", "ties": "ties {}", "loses": "loses to {}"}


class Cell(NamedTuple):
    """All results of a model in a protocol.

    Attributes:
        firm: The baselines whose verdict stands when all verdicts of the page are corrected for
            their number.
    """

    model: str
    protocol: str
    table: Table
    firm: frozenset[str] = frozenset()

    @property
    def baselines(self) -> list[str]:
        """The baselines that have runs of the same seeds as LAMP."""
        return [method for method in _BASELINES if self.overall(method)]

    def overall(self, baseline: str, first: str = "lamp") -> Difference | None:
        """The difference as a mean over all sparsities."""
        return self.table.difference(first, baseline, self.table.common(first, baseline))

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
    some = [cell for cell in every if cell.baselines]
    return [cell._replace(firm=firm) for cell, firm in zip(some, _firm(some), strict=True)]


def _firm(cells: Sequence[Cell]) -> list[frozenset[str]]:
    """The baselines of each cell whose verdict is not one by chance, Holm's correction says."""
    places = [(i, baseline) for i, cell in enumerate(cells) for baseline in cell.baselines]
    found = {place: cells[place[0]].overall(place[1]) for place in places}
    chances = {
        place: each.chance for place, each in found.items() if each and each.chance is not None
    }
    together = dict(zip(chances, corrected([*chances.values()]), strict=True))
    firm = [place for place, chance in together.items() if chance <= CHANCE]
    return [frozenset(name for j, name in firm if j == i) for i in range(len(cells))]


def verdicts(cells: Sequence[Cell]) -> str:
    """A sentence for each protocol, and the differences over all sparsities."""
    rows = [
        (
            *(cell.model, cell.protocol, baseline, _marked(cell, baseline, found.verdict)),
            *(str(found.seeds), points(found), points(cell.sparsest(baseline))),
            *(str(cell.counts(baseline)[verdict]) for verdict in _VERDICTS),
        )
        for cell in cells
        for baseline in cell.baselines
        if (found := cell.overall(baseline))
    ]
    headings = ["model", "protocol", "baseline", "LAMP", "seeds", "all sparsities", "the highest"]
    headings += [f"{verdict} at" for verdict in _VERDICTS]
    return "\n\n".join([_lines(cells, _sentence), _together(cells), table(headings, rows, texts=4)])


def _together(cells: Sequence[Cell]) -> str:
    """How many verdicts there are, how many chance would give, and how many are firm."""
    found, firm = Counter[str](), Counter[str]()
    for cell in cells:
        for baseline in cell.baselines:
            each = cell.overall(baseline)
            if each and each.chance is not None:
                found[each.verdict] += 1
                firm[each.verdict] += baseline in cell.firm
    return (
        f"Of these {found.total()} verdicts LAMP {_counts(found)}; were there no difference "
        f"anywhere, about {CHANCE * found.total():.2g} of the intervals would leave out zero by "
        "chance. In bold are those that stand when all are corrected for their number (Holm): it "
        f"leads in {firm['leads']} and loses in {firm['loses']}."
    )


def claims(cells: Sequence[Cell]) -> str:
    """What the paper says, and below it what the same question gives here."""
    iterative = [cell for cell in cells if cell.protocol == "iterative"]
    rewinding = [cell for cell in cells if cell.protocol == "rewinding"]
    answers = {
        "LAMP does better than every baseline in all its setups.": _lines(cells, _best),
        "ERK is the strongest baseline overall.": _lines(iterative, _strongest),
        "With rewinding too LAMP does better.": _lines(rewinding, _sentence),
        "With rewinding ERK does worse than global magnitude.": _lines(rewinding, _erk_global),
    }
    return "\n\n".join(f"**The paper: {claim}** Here:\n\n{text}" for claim, text in answers.items())


def numbers(cells: Sequence[Cell]) -> str:
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


def _marked(cell: Cell, baseline: str, text: str) -> str:
    """In bold where the verdict is firm."""
    return f"**{text}**" if baseline in cell.firm else text


def _counts(found: Counter[str]) -> str:
    return listing([f"{verdict} in {found[verdict]}" for verdict in _VERDICTS])


def _sentence(cell: Cell) -> str:
    """Against whom LAMP leads, ties and loses over all sparsities."""
    by_verdict: dict[str, list[str]] = {}
    for baseline in cell.baselines:
        if found := cell.overall(baseline):
            by_verdict.setdefault(found.verdict, []).append(_marked(cell, baseline, baseline))
    if "one seed" in by_verdict:
        return _ONE_SEED
    return "; ".join(
        text.format(listing(by_verdict[verdict]))
        for verdict, text in _VERDICTS.items()
        if verdict in by_verdict
    )


def _best(cell: Cell) -> str:
    """At how many sparsities LAMP's mean is the highest, above all others."""
    numbers = cell.table.common("lamp")
    means = [
        {method: found.mean for method in METHODS if (found := cell.table.spread(method, number))}
        for number in numbers
    ]
    best = sum(each.pop("lamp") > max(each.values(), default=0.0) for each in means)
    total = sum((cell.counts(baseline) for baseline in cell.baselines), Counter[str]())
    if "one seed" in total:
        return f"the highest accuracy at {best} of {len(numbers)} sparsities, with one seed"
    return (
        f"the highest mean at {best} of {len(numbers)} sparsities; of {total.total()} paired "
        f"comparisons it {_counts(total)}"
    )


def _strongest(cell: Cell) -> str:
    """The baselines in order of their accuracy over the sparsities that all reach."""
    numbers = cell.table.common("lamp", *cell.baselines)
    above = {each: cell.table.difference(each, "lamp", numbers) for each in cell.baselines}
    known = {baseline: found for baseline, found in above.items() if found}
    ordered = sorted(known, key=lambda baseline: -known[baseline].mean)
    names = [f"{baseline} ({points(known[baseline])})" for baseline in ordered]
    return f"best first, points above LAMP: {', '.join(names)}"


def _erk_global(cell: Cell) -> str:
    found = cell.overall("global", first="erk")
    if not found:
        return "not run yet"
    verdict = _ONE_SEED if found.half is None else f"ERK {found.verdict}"
    return f"ERK minus global {points(found)} points over all sparsities: {verdict}"


def _lines(cells: Sequence[Cell], text: Callable[[Cell], str]) -> str:
    return "\n".join(f"- {_place(cell)}: {text(cell)}" for cell in cells) or "- not run yet"

"""Where LAMP leads, ties and loses, in tables and sentences."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from comparison import CHANCE, Difference, Table, corrected
from models import ARCHITECTURES
from protocols import METHODS, PROTOCOLS, RIVALS
from records import LayerRow, Row
from wording import listing, percent, points, sparsity, table

_SHOWN = 0.8, 0.9, 0.95, 0.98, 0.99  # sparsities of the tables, or what comes next to them
_METHODS = *METHODS, *RIVALS
_BASELINES = [method for method in _METHODS if method != "lamp"]
_MILDER = 0.95  # the sparsity up to which verdicts are counted once more
_ROUNDED = 1e-3  # a sparsity is of whole weights
_COLLAPSED = 0.2  # accuracy: twice what guessing gives
ONE_SEED = "one seed, which tells nothing"
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

    def overall(self, baseline: str, first: str = "lamp", most: float = 1.0) -> Difference | None:
        """The difference as a mean over all sparsities, or those up to one."""
        numbers = self.table.common(first, baseline)
        chosen = [number for number in numbers if self.table.sparsities[number] <= most]
        return self.table.difference(first, baseline, chosen)

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
    """A sentence for each protocol, what they come to together, and all the differences."""
    parts = [lines(cells, sentence), _together(cells), _by_baseline(cells), _milder(cells)]
    return "\n\n".join([*parts, differences(cells)])


def _together(cells: Sequence[Cell]) -> str:
    """How many verdicts there are, how many chance would give, and how many are firm."""
    found = _tally(cells, _BASELINES)
    firm = _tally(cells, _BASELINES, firm=True)
    return (
        f"Of these {found.total()} verdicts LAMP {counted(found)}. Were there no difference "
        f"anywhere, about {CHANCE * found.total():.2g} of the intervals would leave out zero by "
        "chance, half of them above it; and the verdicts depend on each other, since they share "
        "networks. In bold are those that stand when all are corrected for their number (Holm): it "
        f"leads in {firm['leads']} and loses in {firm['loses']}. By baseline:"
    )


def _by_baseline(cells: Sequence[Cell]) -> str:
    rows = []
    for baseline in _BASELINES:
        found, firm = (_tally(cells, [baseline], firm=firm) for firm in (False, True))
        if found:
            counts = [str(found[verdict]) for verdict in _VERDICTS]
            rows.append((baseline, *counts, str(firm["leads"]), str(firm["loses"])))
    return table(["baseline", "LAMP leads", "ties", "loses", "**leads**", "**loses**"], rows)


def _milder(cells: Sequence[Cell]) -> str:
    """The verdicts without the highest sparsities."""
    found = _tally(cells, _BASELINES, most=_MILDER + _ROUNDED)
    return f"By the mean over the sparsities up to {100 * _MILDER:g} % alone LAMP {counted(found)}."


def _tally(
    cells: Sequence[Cell], baselines: Sequence[str], *, firm: bool = False, most: float = 1.0
) -> Counter[str]:
    """How often each verdict comes out, or the firm ones only; one seed gives none."""
    found = [
        each.verdict
        for cell in cells
        for baseline in baselines
        if (each := cell.overall(baseline, most=most)) and each.chance is not None
        if baseline in cell.firm or not firm
    ]
    return Counter(found)


def differences(cells: Sequence[Cell]) -> str:
    """All differences of LAMP and a baseline, with their intervals."""
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
    return table([*headings, *(f"{verdict} at" for verdict in _VERDICTS)], rows, texts=4)


def collapsed(rows: Sequence[Row], layers: Sequence[LayerRow]) -> str:
    """How many networks hardly beat a guess, or have lost a whole layer, and by which method."""
    pruned = [row for row in rows if row.round]
    lost = Counter(row.method for row in pruned if row.accuracy < _COLLAPSED)
    networks = {
        (row.model, row.method, row.protocol, row.seed, row.round)
        for row in layers
        if row.kept == 0
    }
    empty = Counter(method for _, method, *_ in networks)
    return (
        f"Collapsed: of {len(pruned):,} networks that were pruned and retrained "
        f"{_by_method(lost)} get less than {100 * _COLLAPSED:g} % right, and {_by_method(empty)} "
        "have a layer without any weight, which one with shortcuts may survive. A lead over a "
        "collapsed network is a lead, but its size says little."
    )


def _by_method(found: Counter[str]) -> str:
    each = [f"{method} {number}" for method, number in found.most_common()]
    return f"{found.total()} ({listing(each)})" if each else "0"


def numbers(cells: Sequence[Cell]) -> str:
    """Accuracies, and LAMP's differences, next to some sparsities."""
    return "\n\n".join(f"### {place(cell)}\n\n{_numbers(cell)}" for cell in cells)


def _numbers(cell: Cell) -> str:
    shown = [sparsity(cell.table.sparsities[number]) for number in cell.shown]
    accuracies = [
        (method, *(percent(cell.table.spread(method, number)) for number in cell.shown))
        for method in _METHODS
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


def place(cell: Cell) -> str:
    """The model and the protocol."""
    return f"{ARCHITECTURES[cell.model].title}, {cell.protocol}"


def _marked(cell: Cell, baseline: str, text: str) -> str:
    """In bold where the verdict is firm."""
    return f"**{text}**" if baseline in cell.firm else text


def counted(found: Counter[str]) -> str:
    """How often LAMP leads, ties and loses."""
    return listing([f"{verdict} in {found[verdict]}" for verdict in _VERDICTS])


def sentence(cell: Cell) -> str:
    """Against whom LAMP leads, ties and loses over all sparsities."""
    by_verdict: dict[str, list[str]] = {}
    for baseline in cell.baselines:
        if found := cell.overall(baseline):
            by_verdict.setdefault(found.verdict, []).append(_marked(cell, baseline, baseline))
    if "one seed" in by_verdict:
        return ONE_SEED
    return "; ".join(
        text.format(listing(by_verdict[verdict]))
        for verdict, text in _VERDICTS.items()
        if verdict in by_verdict
    )


def lines(cells: Sequence[Cell], text: Callable[[Cell], str]) -> str:
    """A line for each model and protocol."""
    return "\n".join(f"- {place(cell)}: {text(cell)}" for cell in cells) or "- not run yet"

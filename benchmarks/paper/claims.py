"""What the paper says of LAMP and its baselines, and what the same question gives here."""

from collections import Counter
from collections.abc import Sequence

from comparison import Difference
from findings import ONE_SEED, Cell, counted, lines, sentence
from protocols import METHODS
from wording import points

_ANSWERS = {"leads": "as in the paper", "ties": "undecided", "loses": "not so here"}


def claims(cells: Sequence[Cell]) -> str:
    """The paper's claims, each with what comes out here."""
    rewinding = [cell for cell in cells if cell.protocol == "rewinding"]
    answers = {
        "LAMP consistently outperforms the other schemes, in various setups.": lines(cells, _best),
        "ERK is the strongest baseline overall.": lines(cells, _strongest),
        "With rewinding too LAMP outperforms the baselines.": lines(rewinding, _rewound),
        "With rewinding ERK does worse than global magnitude.": lines(rewinding, _erk_global),
    }
    return "\n\n".join(f"**The paper: {claim}** Here:\n\n{text}" for claim, text in answers.items())


def _answer(found: Sequence[Difference | None]) -> str:
    """What differences, each of which leads where the claim holds, say of it together."""
    verdicts = [each.verdict for each in found if each]
    if "one seed" in verdicts:
        return ONE_SEED
    return f"*{_ANSWERS[max(verdicts, key=list(_ANSWERS).index)]}*"


def _best(cell: Cell) -> str:
    """At how many sparsities LAMP's mean is the highest, above all others."""
    numbers = cell.table.common("lamp")
    means = [
        {method: found.mean for method in METHODS if (found := cell.table.spread(method, number))}
        for number in numbers
    ]
    best = sum(each.pop("lamp") > max(each.values(), default=0.0) for each in means)
    total = sum((cell.counts(baseline) for baseline in cell.baselines), Counter[str]())
    text = f"{_ahead(cell)}; the highest mean at {best} of {len(numbers)} sparsities"
    if "one seed" in total:
        return text
    return f"{text}; of {total.total()} paired comparisons it {counted(total)}"


def _ahead(cell: Cell) -> str:
    """Whether LAMP leads all baselines over all sparsities."""
    return _answer([cell.overall(baseline) for baseline in cell.baselines])


def _rewound(cell: Cell) -> str:
    answer, text = _ahead(cell), sentence(cell)
    return text if text == ONE_SEED else f"{answer}; {text}"


def _strongest(cell: Cell) -> str:
    """The baselines in order of their accuracy over the sparsities that all reach."""
    numbers = cell.table.common("lamp", *cell.baselines)
    above = {each: cell.table.difference(each, "lamp", numbers) for each in cell.baselines}
    known = {baseline: found for baseline, found in above.items() if found}
    ordered = sorted(known, key=lambda baseline: -known[baseline].mean)
    names = [f"{baseline} ({points(known[baseline])})" for baseline in ordered]
    text = f"best first, points above LAMP: {', '.join(names)}"
    others = [baseline for baseline in ordered if baseline != "erk"]
    if len(others) == len(ordered) or not others:
        return text
    return f"{_answer([cell.table.difference('erk', each, numbers) for each in others])}; {text}"


def _erk_global(cell: Cell) -> str:
    found = cell.overall("global", first="erk")
    if not found:
        return "not run yet"
    answer = _answer([cell.overall("erk", first="global")])
    return f"{answer}; ERK minus global {points(found)} points over all sparsities"

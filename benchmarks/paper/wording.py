"""Numbers and tables as the page writes them."""

from collections.abc import Iterable, Sequence

from comparison import Difference, Spread


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first columns are texts and whose others are numbers, set to the right."""
    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, rule, *rows])


def points(found: Difference | None) -> str:
    """A difference of accuracies with half its interval, in points."""
    if found is None:
        return "-"
    mean = f"{round(100 * found.mean, 2) + 0.0:+.2f}"  # no negative zero
    return mean if found.half is None else f"{mean} ± {100 * found.half:.2f}"


def percent(found: Spread | None) -> str:
    """Accuracies with their standard deviation, in percent."""
    if found is None:
        return "-"
    if found.deviation is None:
        return f"{100 * found.mean:.2f}"
    return f"{100 * found.mean:.2f} ± {100 * found.deviation:.2f}"


def sparsity(fraction: float) -> str:
    """A sparsity in percent."""
    return f"{100 * fraction:.1f} %"


def listing(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> listing(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

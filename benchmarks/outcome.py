"""Figures beside their goals."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """The bar for a figure: what it must reach, and what is aimed at.

    Attributes:
        must: It is at most this.
        aim: What is aimed at, if anything better.
        form: How the figure is written, a format string.
        at_least: Turns it round: more is better.
    """

    must: float
    aim: float | None = None
    form: str = "{:.2f} ×"
    at_least: bool = False

    def verdict(self, figure: float) -> str:
        """Says which of the two bars the figure reaches."""
        if self.aim is not None and self._reached(figure, self.aim):
            return "aim met"
        return "must met" if self._reached(figure, self.must) else "MISSED"

    def write(self, bar: float | None) -> str:
        """Writes one of the two bars."""
        sign = "≥" if self.at_least else "≤"
        return "" if bar is None else f"{sign} {self.form.format(bar)}"

    def _reached(self, figure: float, bar: float) -> bool:
        return figure >= bar if self.at_least else figure <= bar


@dataclass(frozen=True)
class Line:
    """One figure.

    Attributes:
        what: What was measured.
        figure: What the goal is about.
        goal: Its bar.
        median: The median time of lampfast's call in seconds, where there is a single one.
        beside: What stands beside it, with its own median.
    """

    what: str
    figure: float
    goal: Goal
    median: float | None = None
    beside: str = ""

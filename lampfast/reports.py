"""What a pruning left, as `Report`: a table for people, attributes and a dict for programs."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure, SubFigure

__all__ = ["LayerReport", "LeftOut", "Report"]

# Of the printed table, of CSV files and of data frames.
COLUMNS = ("layer", "shape", "weights", "kept", "sparsity", "threshold")

_Row = TypeVar("_Row")
_FOLDED = 60  # a notebook folds longer tables
_LEFT, _RIGHT = "text-align:left", "text-align:right;font-variant-numeric:tabular-nums"
_TOTAL = "border-top:1px solid;font-weight:bold;"


class LayerReport(NamedTuple):
    """One layer's row of a `Report`.

    Attributes:
        name: The layer's name in the model.
        shape: The shape of its weight.
        numel: How many weights it has.
        kept: How many of them remain.
        threshold: The smallest magnitude that remains (of the importance, where one was given);
            None if none remains, or where given masks decided, as in `lampfast.apply`.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    kept: int
    threshold: float | None

    @property
    def sparsity(self) -> float:
        """The pruned fraction of the layer, 0.0 to 1.0; 0.0 if it has no weights."""
        return _sparsity(self)


class LeftOut(NamedTuple):
    """A matrix of a model that is no layer.

    Attributes:
        name: Its name in the model; of a stack that is only partly left out, the slice's name.
        shape: Its shape, as it is stored.
        numel: How many weights it has.
        reason: "embedding", "position table", "bare parameter", "custom class ..." (a module that
            is none of those that are known), "adapter", "router", "quantised", "computed" (a weight
            is computed from it), or that include= or exclude= leaves it out.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    reason: str


class Report:
    """The sparsity of a model, overall and layer by layer; print it for a table.

    After `lampfast.prune` exactly the weights that it pruned count as pruned. From
    `lampfast.report` every weight that is zero does.

    Example:
        >>> print(Report((LayerReport("fc.weight", (2, 50), 100, 10, 0.25),)))
        layer      shape    weights  kept  sparsity  threshold
        fc.weight  (2, 50)      100    10    90.00%       0.25
        total                   100    10    90.00%
    """

    def __init__(self, layers: Iterable[LayerReport], left_out: Iterable[LeftOut] = ()) -> None:
        self._layers: tuple[LayerReport, ...] | None = _all_of(LayerReport, "layers", layers)
        self._make_layers: Callable[[], Iterable[LayerReport]] = tuple
        self._left_out = _all_of(LeftOut, "left_out", left_out)

    @classmethod
    def lazily(
        cls, rows: Callable[[], Iterable[LayerReport]], left_out: Iterable[LeftOut] = ()
    ) -> "Report":
        """A report whose rows are made when first asked for: loops that prune rarely look."""
        report = cls((), left_out)
        report._layers, report._make_layers = None, rows
        return report

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """One `LayerReport` per layer, in the model's order."""
        if self._layers is None:
            self._layers = tuple(self._make_layers())
        return self._layers

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The model's other matrices: parameters that are no layers, and why.

        Vectors, such as biases and what normalises, are no matrices.

        Example:
            >>> import lampfast, torch
            >>> model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4))
            >>> lampfast.report(model).left_out
            (LeftOut(name='0.weight', shape=(5, 4), numel=20, reason='embedding'),)
        """
        return self._left_out

    @property
    def coverage(self) -> float:
        """The share of the model's matrix weights that are in layers, 0.0 to 1.0."""
        every = self.numel + sum(left.numel for left in self.left_out)
        return self.numel / every if every else 1.0

    def __reduce__(
        self,
    ) -> tuple[type["Report"], tuple[tuple[LayerReport, ...], tuple[LeftOut, ...]]]:
        return Report, (self.layers, self.left_out)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report) and self.layers == other.layers

    def __hash__(self) -> int:
        return hash(self.layers)

    @property
    def numel(self) -> int:
        """How many weights all layers have together."""
        return sum(layer.numel for layer in self.layers)

    @property
    def kept(self) -> int:
        """How many weights remain in all layers together."""
        return sum(layer.kept for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The pruned fraction of all weights, 0.0 to 1.0; 0.0 if there are none."""
        return _sparsity(self)

    def to_dict(self) -> dict[str, Any]:
        """The whole report in plain dicts, lists and numbers, ready for `json.dumps`.

        Example:
            >>> Report((LayerReport("fc", (4,), 4, 1, 0.5),)).to_dict()["layers"][0]["sparsity"]
            0.75
        """
        return {
            "numel": self.numel,
            "kept": self.kept,
            "sparsity": self.sparsity,
            "coverage": self.coverage,
            "left_out": [{**left._asdict(), "shape": list(left.shape)} for left in self.left_out],
            "layers": [
                {**layer._asdict(), "shape": list(layer.shape), "sparsity": layer.sparsity}
                for layer in self.layers
            ],
        }

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a row for each layer to a CSV file.

        Example:
            >>> import pathlib, tempfile
            >>> report = Report((LayerReport("fc.weight", (2, 50), 100, 10, 0.25),))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "layers.csv")
            ...     report.to_csv(path)
            ...     path.read_text().splitlines()
            ['layer,shape,weights,kept,sparsity,threshold', 'fc.weight,2x50,100,10,0.9,0.25']

        Args:
            path: Of the file; one that exists is replaced. The threshold is empty where there is
                none.

        Raises:
            TypeError: The path is not a str or a path.
            ValueError: The path is empty.
            OSError: The file cannot be written.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path is a {type(path).__name__}; pass a str or a pathlib.Path")
        if not os.fspath(path):
            raise ValueError("path is empty; pass that of the file to write")
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            rows.writerows(csv_rows(self))

    def to_dataframe(self) -> "pandas.DataFrame":
        """Make a pandas data frame with a row for each layer, by the layers' names.

        Example:
            >>> report = Report((LayerReport("fc.weight", (2, 50), 100, 10, 0.25),))
            >>> report.to_dataframe()  # doctest: +SKIP
                         shape  weights  kept  sparsity  threshold
            layer
            fc.weight  (2, 50)      100    10       0.9       0.25

        Returns:
            The data frame; its threshold is NaN where there is none.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            if error.name != "pandas":
                raise
            raise ModuleNotFoundError(
                "Report.to_dataframe needs pandas, which is not installed. Install it with "
                "pip install pandas, or use to_dict() or to_csv(path)",
                name="pandas",
            ) from None
        rows = [
            (it.name, it.shape, it.numel, it.kept, it.sparsity, it.threshold) for it in self.layers
        ]
        frame = pandas.DataFrame(rows, columns=list(COLUMNS))
        return frame.astype({"threshold": "float64"}).set_index("layer")

    def plot(
        self,
        *others: "Report",
        labels: Sequence[str] | None = None,
        figure: "Figure | SubFigure | None" = None,
    ) -> "Figure":
        """Draw the sparsity of every layer as bars in the model's order, and the layers' sizes.

        Each report is a row: bars for its layers and a dashed line for all of them together. The
        lowest row shows, on a logarithmic scale, how many weights the layers have (light) and,
        where there is one report only, how many remain (dark). Names that all end in ".weight" go
        without it; where there is no room for all names, there is one for every second layer, or
        fewer. A notebook shows the figure by itself; no pyplot keeps it.

        Example:
            >>> import lampfast, torch
            >>> weights = {name: torch.randn(64, 64) for name in ("fc1", "fc2")}
            >>> half, most = lampfast.prune(weights, 0.5), lampfast.prune(weights, 0.9)
            >>> figure = half.plot(most, labels=("half", "most"))
            >>> figure.savefig("layers.pdf")  # doctest: +SKIP

        Args:
            others: Reports of the same layers, to compare with this one: of other methods, rounds
                or sparsities.
            labels: A label for each report, this one first.
            figure: An empty matplotlib figure or subfigure to draw into, best made with
                `layout="constrained"`; without it, a new figure of a size that suits the layers.

        Returns:
            The figure, with the rows as its axes.

        Raises:
            ModuleNotFoundError: matplotlib (the extra `plot`) is not installed.
            TypeError: One of the others is not a report.
            ValueError: The reports are of different layers, or there are too few or many labels.
        """
        from lampfast import _plotting

        return _plotting.layers((self, *others), labels, figure)

    def __repr__(self) -> str:
        return (
            f"Report(numel={self.numel}, kept={self.kept}, sparsity={self.sparsity:.4f}, "
            f"layers={len(self.layers)})"
        )

    def __str__(self) -> str:
        rows = list(self._rows())
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        align: tuple[Callable[[str, int], str], ...] = (str.ljust, str.ljust, *[str.rjust] * 4)
        lines = [
            "  ".join(
                put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._last_line()])

    def _repr_html_(self) -> str:
        head, *body, total = self._rows()
        table = (
            f"<table><thead>{_html_row(head, 'th')}</thead>"
            f"<tbody>{''.join(_html_row(row, 'td') for row in body)}</tbody>"
            f"<tfoot>{_html_row(total, 'td', _TOTAL)}</tfoot></table>"
        )
        if len(body) > _FOLDED:
            weights, kept, sparsity = _counts(self)
            summary = f"{len(body):,} layers, {weights} weights, {kept} kept, sparsity {sparsity}"
            table = f"<details><summary>{summary}</summary>{table}</details>"
        return table + "".join(f"<p>{escape(line)}</p>" for line in self._last_line())

    def _last_line(self) -> Iterable[str]:
        """What was left out, in one line; none if that is nothing."""
        if not self.left_out:
            return
        reasons = Counter(left.reason for left in self.left_out)
        yield (
            f"left out: {sum(left.numel for left in self.left_out):,} weights, "
            f"{1 - self.coverage:.1%} of all matrices' "
            f"({', '.join(f'{count} {reason}' for reason, count in reasons.items())})"
        )

    def _rows(self) -> Iterable[tuple[str, ...]]:
        """The table as text: a heading, the layers, the total."""
        yield COLUMNS
        for layer in self.layers:
            threshold = "" if layer.threshold is None else f"{layer.threshold:.4g}"
            yield layer.name, str(layer.shape), *_counts(layer), threshold
        yield "total", "", *_counts(self), ""


def csv_rows(report: Report) -> Iterable[tuple[Any, ...]]:
    """What a CSV file has of each layer, in the order of `COLUMNS`."""
    for layer in report.layers:
        shape = "x".join(map(str, layer.shape))
        yield layer.name, shape, layer.numel, layer.kept, layer.sparsity, layer.threshold


def _all_of(kind: type[_Row], argument: str, given: Iterable[_Row]) -> tuple[_Row, ...]:
    """What was given, if it is rows of one kind."""
    # A tensor says that it is iterable, and is not where it has no dimension.
    if not isinstance(given, Iterable) or hasattr(given, "shape"):
        raise TypeError(f"{argument} is a {type(given).__name__}; pass {kind.__name__}s, in a list")
    rows = tuple(given)
    for position, row in enumerate(rows):
        if not isinstance(row, kind):
            raise TypeError(
                f"{argument} has a {type(row).__name__} at position {position}; pass "
                f"{kind.__name__}s"
            )
    return rows


def _sparsity(part: LayerReport | Report) -> float:
    return (part.numel - part.kept) / part.numel if part.numel else 0.0


def _counts(part: LayerReport | Report) -> tuple[str, str, str]:
    return f"{part.numel:,}", f"{part.kept:,}", f"{part.sparsity:.2%}"


def _html_row(cells: Sequence[str], tag: str, style: str = "") -> str:
    """A row of the table: names and shapes to the left, numbers to the right."""
    sides = [_LEFT, _LEFT, *[_RIGHT] * (len(cells) - 2)]
    return (
        "<tr>"
        + "".join(
            f'<{tag} style="{style}{side}">{escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        + "</tr>"
    )

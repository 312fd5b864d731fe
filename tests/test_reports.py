"""What a report says, as attributes, text, HTML and a dict; and what it counts."""

import copy
import csv
import json
import pickle
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from refusal import Weight
from torch import nn

import lampfast
from lampfast.reports import LayerReport, Report

REPORT = Report(
    (
        LayerReport("conv.weight", (64, 3, 7, 7), 9408, 1234, 0.0123456),
        LayerReport("<fc>", (10,), 10, 0, None),
        LayerReport("scale", (), 1, 1, 2.5e-38),
        LayerReport("empty", (0, 3), 0, 0, None),
    )
)


def test_numbers() -> None:
    assert (REPORT.numel, REPORT.kept) == (9419, 1235)
    assert REPORT.sparsity == 8184 / 9419
    assert [layer.sparsity for layer in REPORT.layers] == [8174 / 9408, 1.0, 0.0, 0.0]
    assert Report(()).sparsity == 0.0


def test_text() -> None:
    assert str(REPORT) == "\n".join(
        [
            "layer        shape          weights   kept  sparsity  threshold",
            "conv.weight  (64, 3, 7, 7)    9,408  1,234    86.88%    0.01235",
            "<fc>         (10,)               10      0   100.00%",
            "scale        ()                   1      1     0.00%    2.5e-38",
            "empty        (0, 3)               0      0     0.00%",
            "total                         9,419  1,235    86.89%",
        ]
    )
    assert repr(REPORT) == "Report(numel=9419, kept=1235, sparsity=0.8689, layers=4)"
    assert str(Report(())).splitlines()[1].split() == ["total", "0", "0", "0.00%"]


def test_html() -> None:
    class Cells(HTMLParser):
        rows: list[list[str]] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag == "tr":
                self.rows.append([])
            elif tag in ("th", "td"):
                self.rows[-1].append("")

        def handle_data(self, data: str) -> None:
            self.rows[-1][-1] += data

    cells = Cells()
    cells.feed(REPORT._repr_html_())
    assert cells.rows[0] == ["layer", "shape", "weights", "kept", "sparsity", "threshold"]
    assert cells.rows[2] == ["<fc>", "(10,)", "10", "0", "100.00%", ""]
    assert cells.rows[-1] == ["total", "", "9,419", "1,235", "86.89%", ""]
    assert len(cells.rows) == 6


def test_html_aligns_numbers_and_sets_the_total_off() -> None:
    html = REPORT._repr_html_()
    head, *_, total = html.split("<tr>")[1:]
    assert head.count("text-align:left") == 2
    assert head.count("text-align:right") == 4
    assert "<tfoot>" in html
    assert total.count("border-top") == total.count("bold") == 6


@pytest.mark.parametrize(("layers", "folded"), [(60, False), (61, True)])
def test_html_folds_long_models(layers: int, folded: bool) -> None:
    report = Report(LayerReport(f"<{i}>", (4,), 4, 1, 0.5) for i in range(layers))
    html = report._repr_html_()
    assert ("<details>" in html) == folded
    assert ("61 layers, 244 weights, 61 kept, sparsity 75.00%" in html) == folded
    assert html.count("<tr>") == layers + 2


def test_csv(tmp_path: Path) -> None:
    REPORT.to_csv(tmp_path / "layers.csv")
    with open(tmp_path / "layers.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["layer", "shape", "weights", "kept", "sparsity", "threshold"]
    assert rows[1] == ["conv.weight", "64x3x7x7", "9408", "1234", str(8174 / 9408), "0.0123456"]
    assert rows[2] == ["<fc>", "10", "10", "0", "1.0", ""]
    assert len(rows) == 5


def test_dataframe() -> None:
    pytest.importorskip("pandas")
    frame = REPORT.to_dataframe()
    assert list(frame.index) == ["conv.weight", "<fc>", "scale", "empty"]
    assert list(frame.columns) == ["shape", "weights", "kept", "sparsity", "threshold"]
    assert frame.loc["conv.weight"].tolist() == [(64, 3, 7, 7), 9408, 1234, 8174 / 9408, 0.0123456]
    assert frame["threshold"].isna().tolist() == [False, True, False, True]
    assert Report(()).to_dataframe().empty


def test_it_says_where_pandas_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas") as error:
        REPORT.to_dataframe()
    assert error.value.name == "pandas"


def test_dict() -> None:
    found = json.loads(json.dumps(REPORT.to_dict(), allow_nan=False))
    assert found == REPORT.to_dict()
    assert found["numel"] == 9419
    assert found["kept"] == 1235
    assert found["sparsity"] == REPORT.sparsity
    assert found["layers"][0] == {
        "name": "conv.weight",
        "shape": [64, 3, 7, 7],
        "numel": 9408,
        "kept": 1234,
        "sparsity": 8174 / 9408,
        "threshold": 0.0123456,
    }
    assert found["layers"][1]["threshold"] is None


def test_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(REPORT)) == copy.deepcopy(REPORT) == REPORT
    with pytest.raises(AttributeError):
        REPORT.layers = ()  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_prune_reports_what_it_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5)).to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = lampfast.prune(model, 0.75)
    assert report.numel == 216 + 40
    assert report.kept == 64
    assert report.sparsity == 0.75
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight"]
    for layer in report.layers:
        weight = model.get_parameter(layer.name).detach()
        assert layer.shape == tuple(weight.shape)
        assert type(layer.shape) is tuple
        assert layer.numel == weight.numel()
        assert layer.kept == torch.count_nonzero(weight)
        smallest = before[layer.name][weight != 0].abs().min()
        assert layer.threshold == smallest
    assert lampfast.report(model) == report
    json.dumps(report.to_dict(), allow_nan=False)


def test_report_counts_zeros_of_either_sign_and_subnormals_as_they_are() -> None:
    model: dict[str, Weight] = {
        "a": torch.tensor([[0.0, -0.0, 3.0], [-2.0, 0.0, 5e-324]], dtype=torch.float64),
        "b": np.array([0.0, -0.0], np.float16),
        "c": torch.tensor([2.0**-16, -3.0]).to(torch.float8_e5m2),
        "d": torch.tensor(-7.0, dtype=torch.bfloat16),
        "e": torch.empty(0, 3),
    }
    torch.set_flush_denormal(True)
    try:
        report = lampfast.report(model)
    finally:
        torch.set_flush_denormal(False)
    assert [layer.kept for layer in report.layers] == [3, 0, 2, 1, 0]
    assert [layer.threshold for layer in report.layers] == [5e-324, None, 2.0**-16, 7.0, None]
    assert (report.numel, report.kept) == (11, 6)


def test_prune_counts_what_it_pruned_and_report_what_is_zero() -> None:
    weight = torch.tensor([0.0, 0.0, 0.0, 4.0])
    report = lampfast.prune([weight], 1)
    assert (report.kept, report.layers[0].threshold) == (3, 0.0)
    assert lampfast.report([weight]).kept == 1
    report = lampfast.prune([weight], 1.0)
    assert (report.kept, report.sparsity, report.layers[0].threshold) == (0, 1.0, None)


def test_threshold_of_an_importance_is_the_importance_kept() -> None:
    weight, importance = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-30.0, 20.0, 10.0])
    report = lampfast.prune({"fc": weight}, 1, importance={"fc": importance})
    assert report.layers[0].threshold == 20.0
    assert weight.tolist() == [1.0, 2.0, 0.0]

"""The benchmark of language models (benchmarks/language): its text, its runs, its page."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "language"))
import perplexity
import perplexity_page
import perplexity_records as records
import prose
import smollm2
from perplexity import QUICK, Settings, plan

pytest.importorskip("transformers")

SENTENCE = "This is a sentence that has {} and twelve words in all now."


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_prose(tmp_path: Path) -> None:
    long = [" ".join([SENTENCE.format(word)] * 4) for word in ("one", "two", "three", "four")]
    (tmp_path / "module.py").write_text(
        f'''"""{long[0]}

    Parameters
    ----------
    x : int
        {long[1]}

    {SENTENCE}

    {long[1].replace("and", "`and`")}
    """
if True:
    class A:
        """{long[2]}"""
        def f(self):
            """{long[0]}"""
            return """{long[3]}"""
'''
    )
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "module.py").write_text(f'"""{long[3]}"""')
    assert sorted(prose.text([tmp_path]).splitlines()) == sorted([long[0], long[2]])


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prose.PARTS, "training", ("no_such_package",))
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed"):
        prose.part("training")


def test_runs_go_on(tmp_path: Path) -> None:
    runs = list(plan(QUICK))
    subject = smollm2.tiny()
    perplexity.go_on(subject, QUICK, tmp_path)
    rows = records.read(tmp_path)
    assert list(dict.fromkeys(row.run for row in rows)) == runs
    prunable = records.described(tmp_path)["prunable"]
    for row in rows:
        assert row.zeros == row.sparsity * prunable
        assert 1 < row.perplexity < 100
        assert (row.step in QUICK.steps) == row.is_trained

    file = tmp_path / "results.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5] + lines[6:]))
    perplexity.go_on(subject, QUICK, tmp_path)
    again = records.read(tmp_path)
    assert [row[:7] for row in sorted(again)] == [row[:7] for row in sorted(rows)]

    with pytest.raises(ValueError, match="settings was"):
        perplexity.go_on(subject, Settings(), tmp_path)

    page = perplexity_page.write(tmp_path, len(runs)).read_text()
    assert f"All {len(runs)} runs are done." in page
    assert (tmp_path / "perplexity.png").stat().st_size > 10_000
    file.write_text("".join(lines[:4]))
    page = perplexity_page.write(tmp_path, len(runs)).read_text()
    assert f"**It is not finished: 3 of its {len(runs)} runs are done.**" in page


def test_the_page_is_of_the_results() -> None:
    folder = perplexity.HERE
    rows, made = records.read(folder), records.described(folder)
    text = perplexity_page.text(rows, made, len(list(plan(Settings()))))
    assert (folder / "README.md").read_text() == text

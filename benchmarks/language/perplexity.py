"""Perplexity of a pruned language model: `python benchmarks/language/perplexity.py`.

It may be interrupted at any moment: the next call goes on with what is missing.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import perplexity_page
import perplexity_records as records
import prose
import smollm2
import torch
from perplexity_records import Row, Run
from smollm2 import Subject
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import lampfast
from lampfast.methods import Method

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from machine import processor  # noqa: E402

HEAD = "model.embed_tokens.weight"  # the embedding, and tied to it the last layer: not pruned
ROWS = "*_proj.weight"


@dataclass(frozen=True)
class Settings:
    """How much of everything.

    Attributes:
        sparsities: Of one-shot pruning.
        retrained: The sparsities that are retrained.
        window: How many tokens the model sees at once, where it is not trained.
        held_out: How many windows the perplexity is of.
        calibration: How many windows the norms are of.
        length: Tokens of a step of training.
        steps: The steps after which the perplexity is taken.
        rate: AdamW's at the first step; it falls to 0 in a line.
    """

    sparsities: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6)
    retrained: tuple[float, ...] = (0.6,)
    window: int = 512
    held_out: int = 4
    calibration: int = 15
    length: int = 128
    steps: tuple[int, ...] = (50, 100, 200, 300)
    rate: float = 1e-4


QUICK = Settings((0.5,), (0.5,), 16, 2, 2, 16, (1, 2))


def plan(settings: Settings) -> Iterator[Run]:
    """All runs, in their order."""
    yield Run("none", "dense", 0.0, False)
    for sparsity in settings.sparsities:
        for importance in ("magnitude", "wanda"):
            for method in ("lamp", "global", "uniform", "rows", "erk"):
                yield Run(importance, method, sparsity, False)
    yield Run("none", "dense", 0.0, True)
    for sparsity in settings.retrained:
        for method in ("lamp", "uniform", "global"):
            yield Run("magnitude", method, sparsity, True)
        yield Run("wanda", "rows", sparsity, True)


def main() -> None:
    """Do the runs that are missing, then write the page of what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny random model: only shows that all works"
    )
    parser.add_argument("--results", type=Path, help="the folder of the results and the page")
    chosen = parser.parse_args()
    settings = QUICK if chosen.quick else Settings()
    folder = chosen.results
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="lampfast-")) if chosen.quick else HERE
    go_on(smollm2.tiny() if chosen.quick else smollm2.load(), settings, folder)
    page = perplexity_page.write(folder, len(list(plan(settings))))
    print(f"The page: {page}")


def go_on(subject: Subject, settings: Settings, folder: Path) -> None:
    """Do the runs that are missing in a folder, and note each in its results.csv.

    Raises:
        ValueError: The folder has results of another text or of other settings.
    """
    records.describe(folder, _conditions(subject, settings))
    done = {row.run for row in records.read(folder)}
    importance: dict[str, torch.Tensor] = {}
    for run in plan(settings):
        if run in done:
            continue
        if run.importance == "wanda" and not importance:
            importance = _wanda(subject, settings)
        start = time.perf_counter()
        _prune(subject, run, importance)
        steps = _trained(subject, run, settings) if run.is_trained else [0]
        measured = [(step, _perplexity(subject, settings), _zeros(subject)) for step in steps]
        seconds = round(time.perf_counter() - start, 1)
        records.append(folder, [Row(*run, *each, seconds) for each in measured])
        print(*run, f"{measured[-1][1]:.2f}", f"{seconds} s", flush=True)


def _conditions(subject: Subject, settings: Settings) -> dict[str, Any]:
    """What the results depend on, and where they were made."""
    return {
        "settings": asdict(settings),
        "text": subject.digest,
        "parts": prose.PARTS,
        "tokens": {name: len(tokens) for name, tokens in subject.tokens.items()},
        "parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "prunable": lampfast.report(subject.model, exclude=HEAD).numel,
        "versions": {name: version(name) for name in ("lampfast", "torch", "transformers")},
        "processor": processor(),
        "day": date.today().isoformat(),
    }


def _wanda(subject: Subject, settings: Settings) -> dict[str, torch.Tensor]:
    subject.model.load_state_dict(subject.state)
    windows = _windows(subject.tokens["calibration"], settings.window, settings.calibration)
    return lampfast.importance.wanda(subject.model, torch.split(windows, 4), exclude=HEAD)


def _prune(subject: Subject, run: Run, importance: dict[str, torch.Tensor]) -> None:
    """Give the model its weights again, and prune it."""
    subject.model.load_state_dict(subject.state)
    if run.method == "dense":
        return
    by_rows = run.method == "rows"
    lampfast.prune(
        subject.model,
        run.sparsity,
        method="uniform" if by_rows else cast(Method, run.method),
        exclude=HEAD,
        stacked=ROWS if by_rows else None,
        importance=importance if run.importance == "wanda" else None,
    )


def _trained(subject: Subject, run: Run, settings: Settings) -> Iterator[int]:
    """Train with the zeros kept, and stop at each of the steps to be measured."""
    model, last = subject.model.train(), settings.steps[-1]
    windows = _windows(subject.tokens["training"], settings.length, last)
    optimizer = AdamW(model.parameters(), lr=settings.rate, weight_decay=0.0, fused=True)
    slower = LambdaLR(optimizer, lambda step: 1 - step / last)
    kept = (
        nullcontext()
        if run.method == "dense"
        else lampfast.keep_zeros(model, optimizer, exclude=HEAD)
    )
    with kept:
        for step in range(last):
            optimizer.zero_grad()
            window = windows[step % len(windows)][None]
            model(window, labels=window).loss.backward()
            optimizer.step()
            slower.step()
            if step + 1 in settings.steps:
                model.eval()
                yield step + 1
                model.train()
    model.eval()


def _perplexity(subject: Subject, settings: Settings) -> float:
    """Of the held-out windows, each by itself: the exponential of the mean loss of a token."""
    windows = _windows(subject.tokens["held-out"], settings.window, settings.held_out)
    with torch.no_grad():
        losses = [subject.model(each[None], labels=each[None]).loss.item() for each in windows]
    return exp(fmean(losses))


def _zeros(subject: Subject) -> int:
    """How many of the weights that are pruned are zero."""
    report = lampfast.report(subject.model, exclude=HEAD)
    return report.numel - report.kept


def _windows(tokens: torch.Tensor, length: int, most: int) -> torch.Tensor:
    """Rows of so many tokens, from the beginning of a text; not more than there are."""
    count = min(most, len(tokens) // length)
    return tokens[: count * length].view(count, length)


if __name__ == "__main__":
    main()

"""The study's own tests: its reader, its protocols, resuming, the rival, its page."""

import csv
import doctest
import gzip
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from types import ModuleType

import comparison
import data
import execution
import findings
import numpy as np
import page
import protocols
import pytest
import rate_distortion
import records
import study
import torch
import training
import wording
from claims import claims
from data import Dataset
from models import ARCHITECTURES
from records import LayerRow, LeftOut, Outcome, Records, Row, Run
from rich.console import Console
from settings import QUICK, STUDY
from torch import nn
from typer.testing import CliRunner

import lampfast

SETTINGS = replace(QUICK, dense_steps=3, retrain_steps=1, batch=20)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As in the study; more only disturb each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a few random images."""
    folder = tmp_path_factory.mktemp("fashion")
    random = np.random.default_rng(0)
    for name, count in (("train", 100), ("t10k", 40)):
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", random.integers(0, 10, count, np.uint8))
    return folder


@pytest.fixture(scope="module")
def dataset(place: Path) -> Dataset:
    return data.load(place)


def write_idx(path: Path, values: np.ndarray) -> None:
    path.write_bytes(gzip.compress(idx(values)))


def idx(values: np.ndarray) -> bytes:
    heading = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    return heading + values.astype(np.uint8).tobytes()


# The reader.


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 3, 4), (5, 28, 28)])
def test_idx_gives_what_was_written(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(prod(shape), dtype=np.uint8).reshape(shape)
    write_idx(tmp_path / "x.gz", values)
    read = data.read_idx(tmp_path / "x.gz")
    assert read.dtype == np.uint8
    assert read.shape == shape
    assert (read == values).all()


WHOLE = idx(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not compressed", "no whole gzip file"),
        (gzip.compress(WHOLE)[:-9], "no whole gzip file"),
        (gzip.compress(b""), "starts with ''"),
        (gzip.compress(b"\0\0\x0d" + WHOLE[3:]), "starts with '00 00 0d 02'"),
        (gzip.compress(WHOLE[:-1]), re.escape("shape (2, 3), which 5 bytes")),
        (gzip.compress(WHOLE + b"\0"), re.escape("shape (2, 3), which 7 bytes")),
        (gzip.compress(WHOLE[:10]), "starts with '00 00 08 02'"),
    ],
    ids=["no gzip", "cut gzip", "empty", "another type", "too short", "too long", "cut heading"],
)
def test_idx_refuses_what_is_broken(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.read_idx(tmp_path / "x.gz")


def test_the_dataset_is_normalised(dataset: Dataset) -> None:
    assert dataset.train.pixels.shape == (100, 1, 28, 28)
    assert dataset.test.pixels.shape == (40, 1, 28, 28)
    assert dataset.train.classes.shape == (100,)
    assert dataset.train.pixels.mean().abs() < 1e-4
    assert (dataset.train.pixels.std() - 1).abs() < 1e-4


def test_a_missing_dataset_says_how_to_get_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(study.app, ["--quick", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "apt install dataset-fashion-mnist" in result.output
    assert "--data" in result.output


def test_images_of_another_shape_are_refused(place: Path, tmp_path: Path) -> None:
    for file in place.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(99, np.uint8))
    with pytest.raises(ValueError, match="100 images for 99 classes"):
        data.load(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((9, 28, 27), np.uint8))
    with pytest.raises(ValueError, match="shape"):
        data.load(tmp_path)


def test_every_epoch_has_every_image_once(dataset: Dataset) -> None:
    pixels = [batch for batch, _ in dataset.train.batches(20, 10, seed=3)]
    epochs = [torch.cat(pixels[:5]), torch.cat(pixels[5:])]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        assert Counter(map(float, epoch.sum((1, 2, 3)))) == Counter(
            map(float, dataset.train.pixels.sum((1, 2, 3)))
        )
    again = [batch for batch, _ in dataset.train.batches(20, 10, seed=3)]
    assert all(map(torch.equal, pixels, again))
    assert not torch.equal(pixels[0], next(dataset.train.batches(20, 1, seed=4))[0])


# The protocols.


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, torch.Tensor], list[float]]]:
    """What each call of `train` starts from, and its batches."""
    calls = []

    def spy(model: nn.Module, optimizer: object, batches: Iterable[data.Batch]) -> None:
        batches = list(batches)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        calls.append((state, [float(pixels.sum()) for pixels, _ in batches]))
        training.train(model, optimizer, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(protocols, "train", spy)
    return calls


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_all_methods_start_from_one_network_in_one_order(
    model: str,
    dataset: Dataset,
    tmp_path: Path,
    seen: list[tuple[dict[str, torch.Tensor], list[float]]],
) -> None:
    start = protocols.prepare(model, 1, dataset, SETTINGS, tmp_path)
    again = protocols.prepare(model, 1, dataset, SETTINGS, tmp_path)
    assert len(seen) == 2  # up to the early step and from there; the second time it was loaded
    assert start.identity == again.identity
    other = protocols.prepare(model, 2, dataset, SETTINGS, tmp_path)
    assert other.identity != start.identity
    assert all(torch.equal(value, start.early[name]) for name, value in seen[1][0].items())
    orders = []
    for method in protocols.METHODS:
        seen.clear()
        run = Run(model, 1, "iterative", method)
        outcome = protocols.perform(run, start, dataset, SETTINGS, "now")
        assert {row.dense for row in outcome.rows} == {start.identity}
        orders.append([order for _, order in seen])
        for name, value in seen[0][0].items():  # pruned once from the trained network
            remains = value != 0
            assert torch.equal(value[remains], start.trained[name][remains]), name
    assert all(order == orders[0] for order in orders)
    assert orders[0][0] != orders[0][1]


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
@pytest.mark.parametrize("method", [*protocols.METHODS, *protocols.RIVALS])
def test_a_run_leaves_a_row_a_round_and_the_layers_of_each(
    protocol: str, method: str, dataset: Dataset, tmp_path: Path
) -> None:
    start = protocols.prepare("mlp", 0, dataset, SETTINGS, tmp_path)
    run = Run("mlp", 0, protocol, method)
    outcome = protocols.perform(run, start, dataset, SETTINGS, "now")
    wanted = protocols.sparsities(protocol, SETTINGS)
    assert [row.round for row in outcome.rows] == [1, 2]
    assert outcome.left_out == []
    for row, sparsity in zip(outcome.rows, wanted, strict=True):
        layers = [line for line in outcome.layers if line.round == row.round]
        weights = sum(line.weights for line in layers)
        assert [line.layer for line in layers] == ["1.weight", "3.weight", "5.weight"]
        assert weights - sum(line.kept for line in layers) == round(sparsity * weights)
        assert row.sparsity == pytest.approx(sparsity, abs=1 / weights)
        assert 0 <= row.accuracy <= 1
        assert row.seconds_pruning is not None
        assert (row.seconds_pruning_textbook is not None) == (method == "lamp")


def test_one_shot_prunes_the_trained_network_every_time(
    dataset: Dataset,
    tmp_path: Path,
    seen: list[tuple[dict[str, torch.Tensor], list[float]]],
) -> None:
    start = protocols.prepare("mlp", 0, dataset, SETTINGS, tmp_path)
    seen.clear()
    protocols.perform(Run("mlp", 0, "one-shot", "erk"), start, dataset, SETTINGS, "now")
    for state, _ in seen:
        remains = state["1.weight"] != 0
        assert torch.equal(state["1.weight"][remains], start.trained["1.weight"][remains])


def test_rewinding_goes_back_to_the_early_step(
    dataset: Dataset,
    tmp_path: Path,
    seen: list[tuple[dict[str, torch.Tensor], list[float]]],
) -> None:
    start = protocols.prepare("resnet", 0, dataset, SETTINGS, tmp_path)
    assert not torch.equal(start.early["0.weight"], start.trained["0.weight"])
    seen.clear()
    protocols.perform(Run("resnet", 0, "rewinding", "lamp"), start, dataset, SETTINGS, "now")
    for state, _ in seen:
        for name, value in state.items():
            remains = value != 0
            assert torch.equal(value[remains], start.early[name][remains]), name
    zeros = [sum(int((value == 0).sum()) for value in state.values()) for state, _ in seen]
    assert zeros[0] < zeros[1]


def test_zeros_that_come_back_are_noticed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = protocols.prepare("mlp", 0, dataset, SETTINGS, tmp_path)
    monkeypatch.setattr(lampfast, "keep_zeros", lambda *_: nullcontext())
    with pytest.raises(RuntimeError, match="came back"):
        protocols.perform(Run("mlp", 0, "iterative", "lamp"), start, dataset, SETTINGS, "now")


def test_what_a_method_cannot_do_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    settings = replace(SETTINGS, one_shot=(0.8, 0.9999))
    start = protocols.prepare("vgg", 0, dataset, settings, tmp_path)
    outcome = protocols.perform(
        Run("vgg", 0, "one-shot", "uniform+"), start, dataset, settings, "now"
    )
    assert [row.round for row in outcome.rows] == [1]
    (left_out,) = outcome.left_out
    assert left_out.round == 2
    assert "it keeps at least" in left_out.reason


# The rival that looks at data.


@pytest.mark.parametrize("seed", range(20))
def test_allocations_have_the_least_sum_of_distortions(seed: int) -> None:
    random = np.random.default_rng(seed)
    curves = [
        rate_distortion.Curve(np.arange(size + 1), np.sort(random.random(size + 1))[::-1])
        for size in random.integers(1, 6, 3)
    ]
    total = int(random.integers(0, sum(curve.available for curve in curves) + 1))

    def distortion(kept: Iterable[int]) -> float:
        return sum(float(curve.distortion[i]) for curve, i in zip(curves, kept, strict=True))

    every = product(*(range(curve.available + 1) for curve in curves))
    least = min(distortion(kept) for kept in every if sum(kept) == total)
    found = rate_distortion.allocate(curves, total)
    assert sum(found) == total
    assert distortion(found) == pytest.approx(least)


def test_large_layers_are_shared_in_units() -> None:
    kept = np.array([0, 100_000])
    curves = [rate_distortion.Curve(kept, np.array([worst, 0.0])) for worst in (1.0, 2.0)]
    assert rate_distortion.allocate(curves, 123_457) == [23_457, 100_000]


def test_an_allocation_leaves_the_network_as_it_was(dataset: Dataset) -> None:
    model = ARCHITECTURES["resnet"].make()
    lampfast.prune(model, 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    counts = rate_distortion.allocation(model, dataset.train, 0.9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = lampfast.prune(model, method=counts)
    assert report.numel - report.kept == round(0.9 * report.numel)


def test_the_page_has_the_rival_beside_lamp(tmp_path: Path) -> None:
    assert page._rival(tmp_path) == "Not run yet."
    seeds = {"lamp": [[0.8, 0.7], [0.8, 0.7]], "rd": [[0.8, 0.1], [0.8, 0.1]]}
    layers = [LayerRow("mlp", "rd", "iterative", 0, 2, "a.weight", 100, 0)]
    call = {"started": "then", "command": "study.py", "workers": 1, "processor": "abacus"}
    call |= {"cores": 1, "instruction_set": "beads", "lampfast": "1", "torch": "2", "python": "3"}
    Records(tmp_path).add(Outcome(list(invented(seeds)), layers, []), STUDY, call)
    text = page._rival(tmp_path)
    assert "300-100, iterative: LAMP leads **rd**" in text
    assert "| mlp | iterative | rd | **leads** | 2 | +30.00" in text
    assert "2 (rd 2) get less than 20 % right, and 1 (rd 1) have a layer without any weight" in text
    assert "(rate-distortion/results.json)" in text


# Resuming.


RUNS = protocols.plan(["mlp"], ["one-shot", "iterative"], ["lamp", "uniform"], [0, 1])


def go_on(folder: Path, place: Path, workers: int = 1, runs: list[Run] = RUNS) -> None:
    execution.go_on(runs, SETTINGS, place, folder, workers, Console(quiet=True))


def comparable(folder: Path) -> tuple[list[Row], list[LayerRow]]:
    """What the same study has on any day."""
    results = Records(folder)
    untimed = [
        row._replace(
            seconds_pruning=None, seconds_pruning_textbook=None, seconds_training=0, started=""
        )
        for row in results.rows
    ]
    return sorted(untimed), sorted(results.layers)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Path:
    """A study that nothing interrupted, for all tests to read."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    go_on(folder, place)
    return folder


@pytest.fixture
def whole(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return shutil.copytree(uninterrupted, tmp_path / "whole")


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are made, in the order in which they begin."""
    runs: list[Run] = []
    perform = protocols.perform

    def spy(run: Run, *others: object) -> Outcome:
        runs.append(run)
        return perform(run, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(protocols, "perform", spy)
    return runs


def test_an_interrupted_study_goes_on_without_repeating(
    whole: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made, perform = tmp_path / "interrupted", list[Run](), protocols.perform

    def interrupted(run: Run, *others: object) -> Outcome:
        if len(made) % 3 == 2:  # after every second run
            made.append(Run("", 0, "", ""))
            raise KeyboardInterrupt
        made.append(run)
        return perform(run, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(protocols, "perform", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            go_on(folder, place)
    go_on(folder, place)
    assert [run for run in made if run.model] == RUNS
    assert comparable(folder) == comparable(whole)


@pytest.mark.parametrize("broken", [records.RESULTS, records.LAYERS])
def test_an_interruption_between_two_files_is_harmless(
    broken: str, whole: Path, place: Path, performed: list[Run]
) -> None:
    expected = comparable(whole)
    results = Records(whole)
    results.rows = [row for row in results.rows if records.run_of(row) != RUNS[-1]]
    if broken == records.LAYERS:
        results.layers = [row for row in results.layers if records.run_of(row) != RUNS[-1]]
    records.write(whole / records.RESULTS, Row, results.rows)
    records.write(whole / records.LAYERS, LayerRow, results.layers)
    go_on(whole, place)
    assert performed == [RUNS[-1]]
    assert comparable(whole) == expected


def test_a_run_that_is_not_whole_is_made_again(
    whole: Path, place: Path, performed: list[Run]
) -> None:
    expected = comparable(whole)
    results = Records(whole)
    records.write(whole / records.RESULTS, Row, results.rows[:-1])
    go_on(whole, place)
    assert performed == [RUNS[-1]]
    assert comparable(whole) == expected
    performed.clear()
    go_on(whole, place)
    assert performed == []


def test_two_workers_make_the_same(whole: Path, place: Path, tmp_path: Path) -> None:
    go_on(tmp_path / "two", place, workers=2)
    assert comparable(tmp_path / "two") == comparable(whole)


def test_the_rows_are_tidy(whole: Path) -> None:
    with gzip.open(whole / records.RESULTS, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = "dataset model method protocol seed round sparsity accuracy loss"
    assert list(rows[0])[:9] == wanted.split()
    keys = [tuple(row[key] for key in wanted.split()[1:6]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * (1 + 4 * 2)
    for row in rows:
        assert row["dataset"] == "fashion-mnist"
        assert row["settings"] == SETTINGS.identity
        for column in ("sparsity", "accuracy", "loss", "seconds_training"):
            assert float(row[column]) >= 0
    assert Records(whole).rows  # read back as they are meant


def test_other_settings_are_not_mixed_in(whole: Path, place: Path) -> None:
    before = (whole / records.RESULTS).read_bytes()
    other = replace(SETTINGS, learning_rate=1e-3)
    assert other.identity != SETTINGS.identity
    with pytest.raises(ValueError, match=f"{SETTINGS.identity}, not {other.identity}"):
        execution.go_on(RUNS, other, place, whole, 1, Console(quiet=True))
    assert (whole / records.RESULTS).read_bytes() == before


def test_another_trained_network_is_not_mixed_in(whole: Path, place: Path) -> None:
    for cached in (whole / "work").glob("*.pt"):
        state = torch.load(cached, weights_only=True)
        state["trained"]["1.weight"] += 1  # as another machine might train it
        torch.save(state, cached)
    more = [*RUNS, Run("mlp", 0, "one-shot", "erk")]
    before = (whole / records.RESULTS).read_bytes()
    with pytest.raises(ValueError, match="start from the trained network"):
        go_on(whole, place, runs=more)
    assert (whole / records.RESULTS).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (records.RESULTS, "", r"has the columns \[\], not \['dataset'"),
        (records.LAYERS, "model,method\n", r"has the columns \['model', 'method'\]"),
        (records.RESULTS, None, r"results.csv.gz, line \d+: 4 cells instead of 15; copy"),
        ("results.json", "", r"results.json cannot be read"),
    ],
)
def test_broken_results_are_named(
    name: str, content: str | None, message: str, whole: Path, place: Path
) -> None:
    file = whole / name
    if name.endswith(".gz"):
        before = gzip.decompress(file.read_bytes()).decode()
        text = before + "a,b,c,d\n" if content is None else content
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(content or "")
    with pytest.raises(ValueError, match=message):
        go_on(whole, place, runs=[*RUNS, Run("mlp", 0, "one-shot", "erk")])


def test_a_broken_network_is_named(whole: Path, place: Path) -> None:
    cached = next((whole / "work").glob("mlp-0-*.pt"))
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{cached.name} cannot be read .* remove it"):
        go_on(whole, place, runs=[Run("mlp", 0, "one-shot", "erk")])


def test_a_trained_network_is_of_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = protocols.trained("vgg", 0, SETTINGS, tmp_path)
    assert protocols.trained("vgg", 0, SETTINGS, tmp_path) == before
    assert protocols.trained("vgg", 0, STUDY, tmp_path) != before
    changed = replace(ARCHITECTURES["vgg"], make=lambda: nn.Sequential(nn.MaxPool2d(3)))
    monkeypatch.setitem(ARCHITECTURES, "vgg", changed)
    assert protocols.trained("vgg", 0, SETTINGS, tmp_path) != before


def test_a_killed_worker_ends_the_study() -> None:
    with pytest.raises(BrokenProcessPool), execution._workers(2) as each:
        list(each(signal.raise_signal, [signal.SIGKILL]))  # type: ignore[arg-type]


def test_two_studies_do_not_share_a_folder(whole: Path, place: Path) -> None:
    with execution._alone(whole), pytest.raises(ValueError, match="another study is at work"):
        go_on(whole, place)
    go_on(whole, place)


def test_the_whole_study() -> None:
    runs = protocols.plan(list(ARCHITECTURES), protocols.PROTOCOLS, protocols.METHODS, None)
    assert len(set(runs)) == len(runs) == (5 + 3 + 3) * 3 * 5
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert [len(protocols.sparsities(each, STUDY)) for each in protocols.PROTOCOLS] == [20, 5, 20]


def test_quick_writes_a_page(place: Path, tmp_path: Path) -> None:
    options = ["--quick", "--models", "mlp", "--protocols", "iterative,one-shot"]
    paths = ["--data", str(place), "--results", str(tmp_path)]
    result = CliRunner().invoke(study.app, [*options, *paths])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "README.md").read_text()
    assert "a try with other settings, not the study" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "iterative.png",
        "one-shot.png",
        "layers.png",
    }


# The page.


def invented(accuracies: dict[str, list[list[float]]]) -> Iterator[Row]:
    """Rows of the iterative protocol, by method the accuracies of each seed in each round."""
    for method, seeds in accuracies.items():
        for seed, rounds in enumerate(seeds):
            for number, accuracy in enumerate(rounds, 1):
                lamp = method == "lamp"
                yield Row(
                    dataset=data.NAME,
                    model="mlp",
                    method=method,
                    protocol="iterative",
                    seed=seed,
                    round=number,
                    sparsity=(0.8, 0.9)[number - 1],
                    accuracy=accuracy,
                    loss=1.0,
                    seconds_pruning=0.001,
                    seconds_pruning_textbook=0.025 if lamp else None,
                    seconds_training=0.999 if lamp else 5.0,
                    dense="0",
                    started="then",
                    settings=SETTINGS.identity,
                )


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of results whose answers are known."""
    lamp = [[0.80, 0.70], [0.81, 0.71], [0.82, 0.72]]
    rows = list(
        invented(
            {
                "lamp": lamp,
                "global": [[0.79, 0.69], [0.79, 0.69], [0.79, 0.69]],  # 1, 2 and 3 points behind
                "uniform": [[0.60, 0.50], [0.61, 0.51], [0.61, 0.51]],  # 20, 20 and 21
                "erk": [[0.82, 0.72], [0.83, 0.73], [0.84, 0.75]],  # 2, 2 and 2.5 ahead
            }
        )
    )
    dense = rows[0]._replace(method="dense", protocol="dense", round=0, sparsity=0.0, accuracy=0.85)
    layers = [
        LayerRow(row.model, row.method, row.protocol, row.seed, row.round, name, weights, kept)
        for row in rows
        for name, weights, kept in (
            ("a.weight", 100, 10),
            ("shortcut.weight", 20, 0 if (row.method, row.seed) == ("erk", 0) else 10),
        )
    ]
    left_out = LeftOut("mlp", "uniform+", "iterative", 0, 1, 0.8, "it keeps at least 3")
    call = {
        "started": "then",
        "command": "study.py",
        "workers": 1,
        "processor": "abacus",
        "cores": 1,
        "instruction_set": "beads",
        "lampfast": "1",
        "commit": "abc+",
        "torch": "2",
        "python": "3",
    }
    # Of a seed that the others do not have yet: it counts as done, and is compared with nothing.
    rows.append(rows[0]._replace(seed=3, accuracy=0.1))
    outcome = Outcome([dense, *rows], layers, [left_out])
    folder = tmp_path_factory.mktemp("made up")
    Records(folder).add(outcome, STUDY, call)
    return page.write(folder).read_text()


@pytest.mark.parametrize(
    "line",
    [
        "| mlp | iterative | global | ties | 3 | +2.00 ± 2.48 | +2.00 ± 2.48 | 0 | 2 | 0 |",
        "| mlp | iterative | uniform | **leads** | 3 | +20.33 ± 1.43 | +20.33 ± 1.43 | 2 | 0 | 0 |",
        "| mlp | iterative | erk | **loses** | 3 | -2.17 ± 0.72 | -2.33 ± 1.43 | 0 | 0 | 2 |",
        "300-100, iterative: LAMP leads **uniform**; ties global; loses to **erk**",
        "Of these 3 verdicts LAMP leads in 1, ties in 1 and loses in 1. Were there no difference "
        "anywhere, about 0.15 of the intervals would leave out zero by chance, half",
        "it leads in 1 and loses in 1. By baseline:",
        "| uniform | 1 | 0 | 0 | 1 | 0 |\n| erk | 0 | 0 | 1 | 0 | 1 |\n\n",
        "up to 95 % alone LAMP leads in 1, ties in 1 and loses in 1.",
        "of 25 networks that were pruned and retrained 1 (lamp 1) get less than 20 % right, and 2 "
        "(erk 2) have a layer without any weight",
        "| lamp | 81.00 ± 1.00 | 71.00 ± 1.00 |",
        "| LAMP - erk | -2.00 ± 0.00 | -2.33 ± 1.43 |",
        "300-100, iterative: *as in the paper*; best first, points above LAMP: "
        "erk (+2.17 ± 0.72), global (-2.00 ± 2.48), uniform (-20.33",
        "300-100, iterative: *not so here*; the highest mean at 0 of 2 sparsities; of 6 paired "
        "comparisons it leads in 2, ties in 2 and loses in 2",
        "| fully connected, 300-100 | none | 120 | 4 | 25.00 | 25.03 | 2.441 % | "
        "1.00 | 1.00 | 0.100 % | 25 |",
        "| fully connected, 300-100 | some | 120 | 3 | 25.00 | 25.03 | 2.441 % | "
        "1.00 | 1.00 | 0.100 % | 25 |",
        "| mlp | uniform+ | iterative | 80.0 % | it keeps at least 3 |",
        "**The study is not finished: 13 of its 165 runs are done.**",
        "| `mlp` | fully connected, 300-100 | 13 of 75 | 0, 1, 2, 3 | 2 |",
        "| then | `study.py` | 1 | abacus, 1 cores, beads | lampfast 1 (abc+), torch 2, Python 3 |",
        "where the whole network has 90.0 %",
        "Of *fully connected, 300-100*, 2 are the 1×1 convolutions of shortcuts.",
    ],
)
def test_the_page_has_the_known_answers(line: str, made_up: str) -> None:
    assert line in made_up


def test_every_part_of_the_template_is_filled(made_up: str) -> None:
    assert "$" not in made_up


def test_what_comes_out_at_the_highest_sparsities_only() -> None:
    ahead = {"lamp": [[0.8, 0.70], [0.8, 0.71]], "global": [[0.8, 0.6], [0.8, 0.61]]}
    rows = [row._replace(sparsity=(0.95, 0.99)[row.round - 1]) for row in invented(ahead)]
    text = findings.verdicts(findings.cells(rows))
    assert "Of these 1 verdicts LAMP leads in 1, ties in 0 and loses in 0." in text
    assert "up to 95 % alone LAMP leads in 0, ties in 1 and loses in 0." in text


@pytest.mark.parametrize(
    ("erk", "answer"),
    [
        ([[0.6], [0.61], [0.62]], "*as in the paper*; ERK minus global -18.00 ± 0.00"),
        ([[0.8], [0.81], [0.82]], "*not so here*; ERK minus global +2.00 ± 0.00"),
        ([[0.6], [0.81], [0.82]], "*undecided*; ERK minus global -4.67"),
    ],
)
def test_a_claim_about_two_baselines(erk: list[list[float]], answer: str) -> None:
    others = [[0.78], [0.79], [0.80]]
    rows = invented({"lamp": others, "global": others, "erk": erk})
    cells = findings.cells([row._replace(protocol="rewinding") for row in rows])
    assert f"300-100, rewinding: {answer}" in claims(cells)


def test_one_seed_tells_nothing() -> None:
    assert comparison.difference([0.1]).half is None
    assert comparison.difference([0.1]).chance is None
    assert comparison.difference([0.1]).verdict == "one seed"
    assert comparison.difference([0.1, 0.1]).verdict == "leads"
    assert comparison.difference([0.0, 0.0]).verdict == "ties"


@pytest.mark.parametrize("module", [comparison, rate_distortion, wording])
def test_examples_hold(module: ModuleType) -> None:
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


def test_an_interval_leaves_out_zero_where_chance_is_small() -> None:
    for values in ([1.0, 2.0, 3.0], [1.0, 1.1, 1.2], [-0.3, -0.1, -0.2, -0.25], [0.0, 1e-9]):
        found = comparison.difference(values)
        assert found.chance is not None
        assert (found.verdict != "ties") == (found.chance < comparison.CHANCE)
    (chance,) = comparison.corrected([0.02])
    assert chance == 0.02
    assert comparison.corrected([]) == []
    assert comparison.corrected([0.9, 0.9]) == [1.0, 1.0]


def test_no_results_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run study"):
        page.write(tmp_path)

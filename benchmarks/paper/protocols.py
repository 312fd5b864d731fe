"""The protocols: train once, then prune and retrain, in rounds, at once, or with rewinding."""

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from time import process_time
from typing import Any, NamedTuple, cast, get_args

import data
import rate_distortion
import torch
from data import Dataset
from models import ARCHITECTURES
from records import LayerRow, LeftOut, Outcome, Row, Run
from settings import Settings
from torch import nn
from training import new_optimizer, test, train

import lampfast
from lampfast import parameters, textbook
from lampfast.methods import Method

METHODS: tuple[Method, ...] = get_args(Method)  # of the study
RIVALS = ("rd",)  # what can be put beside LAMP, too: rate_distortion.py
PROTOCOLS = "iterative", "one-shot", "rewinding"
DENSE = "dense"  # the protocol of the row of a network that is not pruned

_SEEDS_APART = 1000  # more than there are rounds


class Start(NamedTuple):
    """The trained network that all runs of a model and seed start from.

    Attributes:
        early: Its state early in training, for rewinding.
        trained: Its state after training.
        score: The accuracy, the loss and the seconds of training.
    """

    early: dict[str, torch.Tensor]
    trained: dict[str, torch.Tensor]
    score: dict[str, float]

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that a network of other weights does not have."""
        digest = hashlib.sha256()
        for tensor in [*self.early.values(), *self.trained.values()]:
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


def plan(
    models: Sequence[str],
    chosen_protocols: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int] | None,
) -> list[Run]:
    """All runs that are asked for, seed by seed, so that an unfinished study is of use."""
    per_model = {
        model: range(ARCHITECTURES[model].seeds) if seeds is None else seeds for model in models
    }
    return [
        Run(model, seed, protocol, method)
        for seed in sorted({seed for some in per_model.values() for seed in some})
        for model in models
        if seed in per_model[model]
        for protocol in chosen_protocols
        for method in methods
    ]


def sparsities(protocol: str, settings: Settings) -> list[float]:
    """What a run prunes to, round by round."""
    if protocol == "one-shot":
        return list(settings.one_shot)
    schedule = lampfast.schedules.geometric(fraction=settings.fraction)
    return [schedule(number) for number in range(1, settings.rounds + 1)]


def trained(model: str, seed: int, settings: Settings, work: Path) -> Path:
    """Where the trained network of a seed lies, once it does; its name says how it was made."""
    made = f"{settings.identity} {ARCHITECTURES[model].make()}"  # all modules with their options
    return work / f"{model}-{seed}-{hashlib.sha256(made.encode()).hexdigest()[:8]}.pt"


def prepare(model: str, seed: int, dataset: Dataset, settings: Settings, work: Path) -> Start:
    """The trained network of a seed, trained now unless it lies in the work folder.

    Raises:
        ValueError: What lies there cannot be read.
    """
    place = trained(model, seed, settings, work)
    if not place.exists():
        temporary = place.with_suffix(".writing")
        torch.save(_train_dense(model, seed, dataset, settings)._asdict(), temporary)
        temporary.replace(place)
    try:
        return Start(**torch.load(place, weights_only=True))
    except (EOFError, OSError, RuntimeError, UnpicklingError) as error:
        raise ValueError(
            f"{place} cannot be read ({error}); copy it again, or remove it to train anew"
        ) from None


def dense_row(model: str, seed: int, start: Start, settings: Settings, started: str) -> Row:
    """The row of the network before any pruning."""
    return Row(
        dataset=data.NAME,
        model=model,
        method=DENSE,
        protocol=DENSE,
        seed=seed,
        round=0,
        sparsity=0.0,
        accuracy=start.score["accuracy"],
        loss=start.score["loss"],
        seconds_pruning=None,
        seconds_pruning_textbook=None,
        seconds_training=start.score["seconds"],
        dense=start.identity,
        started=started,
        settings=settings.identity,
    )


def perform(run: Run, start: Start, dataset: Dataset, settings: Settings, started: str) -> Outcome:
    """Prune and retrain, as often as the protocol of the run says.

    Raises:
        RuntimeError: A weight that was pruned came back in training.
    """
    outcome, model = Outcome([], [], []), ARCHITECTURES[run.model].make()
    for number, sparsity in enumerate(sparsities(run.protocol, settings), 1):
        if number == 1 or run.protocol == "one-shot":
            model.load_state_dict(start.trained)
        where: dict[str, Any] = {**run._asdict(), "round": number}
        if reason := _impossible(model, sparsity, run.method):
            outcome.left_out.append(LeftOut(**where, sparsity=sparsity, reason=reason))
            continue
        seconds, textbook_seconds = _prune(model, sparsity, run.method, dataset)
        if run.protocol == "rewinding":
            lampfast.rewind(model, start.early)
        training_seconds = _retrain(model, run.seed, number, dataset, settings)
        left = lampfast.report(model)
        row = Row(
            **where,
            **test(model, dataset.test)._asdict(),
            dataset=data.NAME,
            sparsity=left.sparsity,
            seconds_pruning=seconds,
            seconds_pruning_textbook=textbook_seconds,
            seconds_training=training_seconds,
            dense=start.identity,
            started=started,
            settings=settings.identity,
        )
        outcome.rows.append(row)
        outcome.layers.extend(
            LayerRow(**where, layer=layer.name, weights=layer.numel, kept=layer.kept)
            for layer in left.layers
        )
    return outcome


def warm_up() -> None:
    """Prune once both ways, so that the first time that is taken is no longer than others."""
    _prune_by_lamp(nn.Linear(8, 8), 0.5)


def _train_dense(model: str, seed: int, dataset: Dataset, settings: Settings) -> Start:
    torch.manual_seed(seed)
    network = ARCHITECTURES[model].make()
    optimizer = new_optimizer(network, settings)
    batches = _batches(dataset, seed, 0, settings.dense_steps, settings)
    begin = process_time()
    train(network, optimizer, (next(batches) for _ in range(settings.early_step)))
    early = copy.deepcopy(network.state_dict())
    train(network, optimizer, batches)
    seconds = process_time() - begin
    score = test(network, dataset.test)._asdict() | {"seconds": seconds}
    return Start(dict(early), dict(network.state_dict()), score)


def _retrain(
    model: nn.Module, seed: int, number: int, dataset: Dataset, settings: Settings
) -> float:
    """Train what remains, with a new optimizer; the seconds that it took."""
    optimizer, before = new_optimizer(model, settings), lampfast.report(model)
    begin = process_time()
    with warnings.catch_warnings():
        # At the highest sparsities some methods prune a layer to nothing, as the figures show.
        warnings.filterwarnings("ignore", message=".* zero throughout")
        kept = lampfast.keep_zeros(model, optimizer)
    with kept:
        train(model, optimizer, _batches(dataset, seed, number, settings.retrain_steps, settings))
    seconds = process_time() - begin
    if (after := lampfast.report(model)).kept > before.kept:
        raise RuntimeError(f"{after.kept - before.kept} weights that were pruned came back")
    return seconds


def _batches(
    dataset: Dataset, seed: int, number: int, count: int, settings: Settings
) -> Iterator[data.Batch]:
    """The batches of a round, in the same order for all methods and protocols of a seed."""
    return dataset.train.batches(settings.batch, count, _SEEDS_APART * seed + number)


def _impossible(model: nn.Module, sparsity: float, method: str) -> str | None:
    """Why a method cannot prune to a sparsity, if it cannot; only the sizes of layers matter."""
    if method in RIVALS:
        return None
    try:
        sizes = {name: torch.ones(layer.shape) for name, layer in _layers(model).items()}
        lampfast.report(sizes, sparsity, method=cast(Method, method))
    except ValueError as error:
        return str(error)
    return None


def _prune(
    model: nn.Module, sparsity: float, method: str, dataset: Dataset
) -> tuple[float, float | None]:
    """Prune; the seconds of it, and for LAMP those of the textbook with a copy before."""
    if method == "lamp":
        return _prune_by_lamp(model, sparsity)
    if method in RIVALS:
        images = dataset.train.first(rate_distortion.CALIBRATION)
        counts = rate_distortion.allocation(model, images, sparsity)
        return _seconds(lambda: lampfast.prune(model, method=counts)), None
    return _seconds(lambda: lampfast.prune(model, sparsity, method=cast(Method, method))), None


def _prune_by_lamp(model: nn.Module, sparsity: float) -> tuple[float, float]:
    """Prune by LAMP, a copy by the textbook before; the seconds of both."""
    copies = {name: layer.detach().clone() for name, layer in _layers(model).items()}
    textbook_seconds = _seconds(lambda: textbook.prune(copies, sparsity))
    return _seconds(lambda: lampfast.prune(model, sparsity)), textbook_seconds


def _layers(model: nn.Module) -> dict[str, nn.Parameter]:
    names = parameters.named(model)
    return {name: layer for name, layer in model.named_parameters() if name in names}


def _seconds(call: Callable[[], object]) -> float:
    begin = process_time()
    call()
    return process_time() - begin

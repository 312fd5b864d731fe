"""The protocols: train once, then prune and retrain, in rounds, at once, or with rewinding."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, get_args

import data
import torch
from data import Dataset
from models import ARCHITECTURES
from records import LayerRow, LeftOut, Outcome, Row, Run
from settings import Settings
from torch import nn
from training import new_optimizer, test, train

import lampfast
from lampfast import parameters, textbook
from lampfast.schemes import Method

METHODS: tuple[Method, ...] = get_args(Method)
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


def sparsities(protocol: str, settings: Settings) -> list[float]:
    """What a run prunes to, round by round."""
    if protocol == "one-shot":
        return list(settings.one_shot)
    schedule = lampfast.schedules.geometric(fraction=settings.fraction)
    return [schedule(number) for number in range(1, settings.rounds + 1)]


def prepare(model: str, seed: int, dataset: Dataset, settings: Settings, work: Path) -> Start:
    """The trained network of a seed, trained now unless it lies in the work folder."""
    place = work / f"{settings.identity}-{model}-{seed}.pt"
    if not place.exists():
        temporary = place.with_suffix(".writing")
        torch.save(_train_dense(model, seed, dataset, settings)._asdict(), temporary)
        temporary.replace(place)
    return Start(**torch.load(place, weights_only=True))


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
    model.load_state_dict(start.trained)
    for number, sparsity in enumerate(sparsities(run.protocol, settings), 1):
        where = {**run._asdict(), "round": number}
        if run.protocol == "one-shot":
            model.load_state_dict(start.trained)
        try:
            times = _prune(model, sparsity, run.method)
        except ValueError as error:
            if run.method != "uniform+" or "keeps at least" not in str(error):
                raise
            outcome.left_out.append(LeftOut(**where, sparsity=sparsity, reason=str(error)))
            continue
        if run.protocol == "rewinding":
            lampfast.rewind(model, start.early)
        pruned = lampfast.report(model)
        seconds = _retrain(model, run.seed, number, dataset, settings)
        left = lampfast.report(model)
        if left.kept > pruned.kept:
            raise RuntimeError(f"{run}, round {number}: {left.kept - pruned.kept} zeros came back")
        row = Row(
            **where,
            **times,
            **test(model, dataset.test)._asdict(),
            dataset=data.NAME,
            sparsity=left.sparsity,
            seconds_training=seconds,
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
    model = nn.Linear(8, 8)
    _prune(model, 0.5, "lamp")


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
    optimizer = new_optimizer(model, settings)
    begin = process_time()
    with lampfast.keep_zeros(model, optimizer):
        train(model, optimizer, _batches(dataset, seed, number, settings.retrain_steps, settings))
    return process_time() - begin


def _batches(
    dataset: Dataset, seed: int, number: int, count: int, settings: Settings
) -> Iterator[data.Batch]:
    """The batches of a round, in the same order for all methods and protocols of a seed."""
    return dataset.train.batches(settings.batch, count, _SEEDS_APART * seed + number)


def _prune(model: nn.Module, sparsity: float, method: Any) -> dict[str, float | None]:
    """Prune, after the textbook has done so with a copy; the seconds of each."""
    taken: float | None = None
    if method == "lamp":
        copies = {name: layer.detach().clone() for name, layer in _layers(model).items()}
        taken = _seconds(lambda: textbook.prune(copies, sparsity))
    ours = _seconds(lambda: lampfast.prune(model, sparsity, method=method))
    return {"seconds_pruning": ours, "seconds_pruning_textbook": taken}


def _layers(model: nn.Module) -> Mapping[str, torch.Tensor]:
    return parameters.named(model, None, None)


def _seconds(call: Callable[[], object]) -> float:
    begin = process_time()
    call()
    return process_time() - begin

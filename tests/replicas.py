"""One rank of a run of test_replicas: trains a replica under DDP, and says what came of it.

Usage: replicas.py FOLDER RANK RANKS
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from ranks import join
from torch import distributed, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lampfast
from lampfast import Pruner
from lampfast.schedules import linear

NAN = float("nan")


def _digest(model: nn.Module) -> str:
    weights = (value.numpy().tobytes() for value in model.state_dict().values())
    return sha256(b"".join(weights)).hexdigest()


class _Run:
    """A model under DDP, and a Pruner of it."""

    def __init__(self, rank: int, group: distributed.ProcessGroup | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.rank = rank
        self.replica = DistributedDataParallel(self.model)
        weights = self.replica.parameters()
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(weights, 0.01)
        self.pruner = Pruner(
            self.replica, self.optimizer, linear(0.8, 8), every=2, process_group=group
        )

    def train(self, steps: int) -> None:
        for _ in range(steps):
            data = torch.randn(4, 6, generator=torch.Generator().manual_seed(self.rank))
            self.optimizer.zero_grad()
            self.replica(data).square().mean().backward()
            self.optimizer.step()
            self.pruner.step()

    def attempt(self, change: Callable[[], object] | None = None) -> dict[str, object]:
        """What one step of the Pruner alone does, or something else."""
        before, state = _digest(self.model), str(self.pruner.state_dict())
        error = None
        try:
            (change or self.pruner.step)()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        unchanged = before == _digest(self.model) and state == str(self.pruner.state_dict())
        return {"error": error, "unchanged": unchanged}


def agreeing(rank: int) -> dict[str, object]:
    run = _Run(rank)
    digests = []
    for _ in range(10):
        run.train(1)
        digests.append(_digest(run.model))
    history = run.pruner.history
    kept = lampfast.report(run.model).kept
    exchanges, report = _exchanges(run.pruner.step), run.pruner.report.kept
    results = {"digests": digests, "history": history, "kept": kept, "report": report}
    return {**results, "exchanges": exchanges}


def _exchanges(call: Callable[[], object]) -> int:
    """How often a call exchanges objects, which are pickled for it."""
    exchange, count = distributed.all_gather_object, 0

    def counted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        exchange(*arguments)

    distributed.all_gather_object = counted  # type: ignore[assignment]
    try:
        with suppress(Exception):
            call()
    finally:
        distributed.all_gather_object = exchange
    return count


def _attempt(change: Callable[[_Run], None]) -> Callable[[int], dict[str, object]]:
    """A run that is changed, each rank in its way, before a step that prunes."""

    def run(rank: int) -> dict[str, object]:
        run = _Run(rank)
        run.train(3)
        before = run.model.state_dict()["2.weight"].clone()
        change(run)
        result = run.attempt()
        result["exchanges"] = _exchanges(run.pruner.step)
        with torch.no_grad():
            run.model.get_parameter("2.weight").copy_(before)
        return {**result, "again": run.attempt()}

    return run


def _diverge(run: _Run) -> None:
    if run.rank == 1:
        run.model.get_parameter("2.weight").data.neg_().reciprocal_().nan_to_num_(0, 0, 0)


def _nan_on_one(run: _Run) -> None:
    if run.rank == 1:
        run.model.get_parameter("2.weight").data[0, 0] = NAN


def _nan_on_all(run: _Run) -> None:
    run.model.get_parameter("2.weight").data[0, run.rank] = NAN


def other_schedule(rank: int) -> dict[str, object]:
    run = _Run(rank)
    run.pruner._schedule = linear(0.8, 8 + rank)
    run.train(1)
    return run.attempt()


def schedule_raises(rank: int) -> dict[str, object]:
    """On one rank, at a step at which the other prunes, then at one at which it does not."""
    run = _Run(rank)
    run.train(3)
    good = run.pruner._schedule

    def fail(step: int) -> float:
        raise KeyError("no such step")

    results = {}
    for name, other in (("prunes", good), ("waits", lambda step: 0.2)):
        run.pruner._schedule = fail if rank == 1 else other
        results[name] = run.attempt()
    run.pruner._schedule = good
    return {**results, "again": run.attempt()}


def other_steps(rank: int) -> dict[str, object]:
    """One rank has counted two steps more."""
    run = _Run(rank)
    run.train(1)
    run.pruner._step += 2 * rank
    return run.attempt()


def gradients(rank: int) -> dict[str, object]:
    """Masked gradients under each way in which DDP reduces them, accumulated over two passes."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "views": {"gradient_as_bucket_view": True},
        "unused": {"find_unused_parameters": True},
        "static": {"static_graph": True, "gradient_as_bucket_view": True},
    }
    return {kind: _gradients(rank, options) for kind, options in kinds.items()}


def _gradients(rank: int, options: dict[str, Any]) -> dict[str, object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Linear(3, 3))
    lampfast.prune(model, 0.6)
    replica = DistributedDataParallel(model, **options)
    optimizer = torch.optim.SGD(replica.parameters(), 0.01)
    masks = {name: p.detach() != 0 for name, p in model.named_parameters() if p.ndim == 2}
    lampfast.keep_zeros(replica, optimizer, mask_gradients=True)

    def loss(network: Callable[..., Any], other: int, step: int) -> Any:
        generator = torch.Generator().manual_seed(10 * step + other)
        return network(torch.randn(4, 6, generator=generator)).square().mean()

    pruned, averages = 0.0, {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    for step in range(3):
        if step == 1:  # its gradients are reduced by the next pass
            with replica.no_sync():
                loss(replica, rank, step).backward()
        else:
            loss(replica, rank, step).backward()
        for name, mask in masks.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            pruned += float(gradient[~mask].abs().sum())
        for other in range(distributed.get_world_size()):
            found = torch.autograd.grad(
                loss(model, other, step), [model.get_parameter(name) for name in masks]
            )
            for name, gradient in zip(masks, found, strict=True):
                averages[name] += gradient * masks[name] / distributed.get_world_size()
    is_average = all(
        torch.allclose(model.get_parameter(name).grad, average, atol=1e-6)  # type: ignore[arg-type]
        for name, average in averages.items()
    )
    return {"pruned": pruned, "is the average": is_average}


def update(rank: int) -> dict[str, object]:
    """The masks that a Pruner is given: the same on all ranks, others, and what is none."""
    run = _Run(rank)
    run.train(3)
    masks = {name: weight != 0 for name, weight in run.model.named_parameters() if weight.ndim > 1}
    name = next(iter(masks))
    grown, other = {**masks, name: ~masks[name]}, {**masks}
    results = {"same": run.attempt(lambda: run.pruner.update(grown))}
    if rank == 1:
        other[name] = torch.ones_like(masks[name])
    results["other"] = run.attempt(lambda: run.pruner.update(other))
    if rank == 1:
        other[name] = masks[name].float()
    return {**results, "wrong": run.attempt(lambda: run.pruner.update(other))}


def apart(rank: int) -> dict[str, object]:
    """Models of their own, in groups of one rank."""
    groups = [distributed.new_group([other]) for other in range(distributed.get_world_size())]
    run = _Run(rank, groups[rank])
    run.train(3)
    _diverge(run)
    return run.attempt()


class _Redundant(_Run):
    """A run whose optimizer has the state of a part of the parameters on each rank."""

    def __init__(self, rank: int, is_zero: bool) -> None:
        super().__init__(rank)
        self.pruner.remove()
        weights = self.replica.parameters()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
        self.optimizer = (
            ZeroRedundancyOptimizer(weights, torch.optim.AdamW, lr=0.01)
            if is_zero
            else torch.optim.AdamW(weights, 0.01)
        )
        self.pruner = Pruner(
            self.replica, self.optimizer, linear(0.8, 8), every=2, copies=self.average
        )


def zero_redundancy(rank: int) -> dict[str, object]:
    """Beside one with an optimizer of all of the state on each rank, step by step."""
    runs = _Redundant(rank, is_zero=True), _Redundant(rank, is_zero=False)
    same = []
    for _ in range(10):
        for run in runs:
            run.train(1)
            run.average.update_parameters(run.model)
        models = runs[0].model, runs[1].model, runs[0].average.module
        zeros = [[weight == 0 for weight in model.parameters()] for model in models]
        same += [all(map(torch.equal, zeros[0], zeros[1])), all(map(torch.equal, *zeros[::2]))]
    digests = [_digest(run.model) for run in runs]
    kept = lampfast.report(runs[0].model).kept
    return {"same": same, "digests": digests, "kept": kept}


RUNS: dict[str, Callable[[int], dict[str, object]]] = {
    "agreeing": agreeing,
    "diverged": _attempt(_diverge),
    "nan on one": _attempt(_nan_on_one),
    "nan on all": _attempt(_nan_on_all),
    "other schedule": other_schedule,
    "schedule raises": schedule_raises,
    "other steps": other_steps,
    "gradients": gradients,
    "update": update,
    "apart": apart,
    "zero redundancy": zero_redundancy,
}


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    join(folder, rank, ranks)
    results = {name: run(rank) for name, run in RUNS.items()}
    (folder / f"{rank}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

"""One rank of a run of test_sharded_training: sharded models that are trained, saved and resumed.

Usage: training_ranks.py FOLDER RANK RANKS
"""

from __future__ import annotations

import copy
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from gloo_ranks import WIDTHS, Make, attempt, full, listening, makes, mlp
from ranks import join, results
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lampfast
from lampfast.schedules import linear

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
Weights = Mapping[str, torch.Tensor]


def whole(tensors: Weights) -> dict[str, torch.Tensor]:
    """What all ranks have together."""
    return {name: full(tensor.detach()).clone() for name, tensor in tensors.items()}


def same(one: Weights, other: Weights) -> bool:
    """Whether tensors of the same names have the same bits on all ranks together."""
    ours, theirs = whole(one), whole(other)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@cache
def alone() -> distributed.ProcessGroup:
    """This rank alone, which plain models are for."""
    groups = [distributed.new_group([rank]) for rank in range(distributed.get_world_size())]
    found: distributed.ProcessGroup = groups[distributed.get_rank()]
    return found


class Training:
    """A model, an optimizer and a Pruner; every rank sees the same data."""

    def __init__(
        self, make: Make, optimizer: str = "AdamW", how: Mapping[str, Any] = {}, **options: Any
    ) -> None:
        self.model: Any = make(mlp())
        cls = getattr(torch.optim, optimizer)
        self.optimizer = cls(self.model.parameters(), lr=0.01, **options)
        self.pruner = lampfast.Pruner(
            self.model, self.optimizer, linear(0.9, 12), every=2, process_group=alone(), **how
        )

    def train(self, steps: Iterable[int]) -> None:
        """Take some steps."""
        for step in steps:
            self.optimizer.zero_grad()
            self.backward(step)
            self.optimizer.step()
            self.pruner.step()

    def backward(self, step: int) -> None:
        """Accumulate the gradients of a step."""
        data = torch.randn(4, WIDTHS[0], generator=torch.Generator().manual_seed(step))
        self.model(data).square().mean().backward()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "pruner": self.pruner.state_dict(),
        }

    def resume(self, folder: Path, group: Any) -> None:
        """Go on from a checkpoint that the ranks of a group load, or this one alone."""
        state = self.state()
        is_alone = group is None
        load(state, checkpoint_id=folder, process_group=group, no_dist=is_alone)
        self.model.load_state_dict(state["model"])
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"])
        self.pruner.load_state_dict(state["pruner"])

    def results(self) -> dict[str, torch.Tensor]:
        """The weights, and the masks whose zeros are kept."""
        masks = {f"mask {name}": it for name, it in self.pruner.state_dict()["zeros"].items()}
        return whole({**weights_of(self.model), **masks})


def chosen(ranks: int) -> list[tuple[str, Make]]:
    """Some ways to shard a model."""
    names = "fsdp", "tensor parallel", "fsdp and tensor parallel", "both dimensions"
    return [(name, make) for name, make in makes(ranks) if name in names]


def plain(model: nn.Module) -> nn.Module:
    return model


def resumed(folder: Path, rank: int) -> list[str]:
    """In what a run that is resumed on 2, 4, 1 and 2 ranks differs from an uninterrupted one."""
    everyone = distributed.group.WORLD
    two, four = DeviceMesh("cpu", [0, 1]), DeviceMesh("cpu", [0, 1, 2, 3])

    def shard(mesh: DeviceMesh) -> Make:
        return lambda model: fully_shard(model, mesh=mesh)

    stages: list[tuple[list[int], Make, Any]] = [
        ([0, 1], shard(two), two.get_group() if rank < 2 else None),
        ([0, 1, 2, 3], shard(four), everyone),
        ([0], plain, None),
        ([0, 1], shard(two), two.get_group() if rank < 2 else None),
    ]
    reference, differences = Training(plain), []
    for i, (ranks, make, group) in enumerate(stages):
        steps = range(4 * i, 4 * i + 4)
        reference.train(steps)
        if rank in ranks:
            run = Training(make)
            if i:
                run.resume(folder / f"stage{i - 1}", group)
            run.train(steps)
            is_alone = group is None
            save(
                run.state(),
                checkpoint_id=folder / f"stage{i}",
                process_group=group,
                no_dist=is_alone,
            )
            if not same(run.results(), reference.results()):
                differences.append(f"results of stage {i}")
            if run.pruner.history != reference.pruner.history:
                differences.append(f"history of stage {i}: {run.pruner.history}")
        distributed.barrier()
    return differences


def elsewhere(folder: Path, ranks: int) -> list[str]:
    """States loaded into models that are sharded in every way, by a checkpoint and as they are."""
    ways = [("plain", plain), *chosen(ranks)]
    reference = Training(plain)
    reference.train(range(4))
    expected = reference.results()
    file = io.BytesIO()
    torch.save(reference.pruner._packed_state(), file)
    file.seek(0)
    packed = torch.load(file, weights_only=True)
    differences, before = [], reference
    for i, (name, make) in enumerate(ways):
        place = folder / f"way{i}"
        states = [before.pruner.state_dict(), packed]
        save({"pruner": states[0], "model": before.model.state_dict()}, checkpoint_id=place)
        run = Training(make)
        loaded = {"pruner": run.pruner.state_dict(), "model": run.model.state_dict()}
        load(loaded, checkpoint_id=place)
        run.model.load_state_dict(loaded["model"])
        run.pruner.load_state_dict(loaded["pruner"])
        if not same(run.results(), expected):
            differences.append(f"{name}, by a checkpoint")
        for state in states:
            again = Training(make)
            again.model.load_state_dict(loaded["model"])
            again.pruner.load_state_dict(state)
            if not same(again.results(), expected) or again.pruner.history != run.pruner.history:
                differences.append(f"{name}, from a state that is not placed so")
        if not same(
            {"": torch.cat([it.float() for it in run.pruner._packed_state()["zeros"].values()])},
            {"": torch.cat([it.float() for it in packed["zeros"].values()])},
        ):
            differences.append(f"{name}, as bits")
        before = run
    return differences


def verbs(folder: Path, rank: int, ranks: int) -> list[str]:
    """In what apply, rewind, save_masks and load_masks differ from what they do to plain models."""
    differences = []
    mesh = init_device_mesh("cpu", (ranks,))
    lampfast.save_masks(lampfast.masks(mlp(), 0.7), folder / f"plain{rank}")

    def columns(tensors: Weights) -> dict[str, torch.Tensor]:
        return {
            name: distribute_tensor(full(it), mesh, [Shard(it.ndim - 1)])
            for name, it in tensors.items()
        }

    for name, make in chosen(ranks):
        model, masks = make(mlp()), lampfast.masks(mlp(), 0.7)
        pruned = mlp()
        report = lampfast.prune(pruned, 0.7)
        own = lampfast.masks(model, 0.7)
        for kind, given in (("whole", masks), ("own", own), ("columns", columns(masks))):
            target = make(mlp())
            found = lampfast.apply(target, given)
            if str(found) != str(lampfast.apply(mlp(), masks)) or found.kept != report.kept:
                differences.append(f"report of apply {kind} to {name}: {found}")
            if not same(weights_of(target), weights_of(pruned)):
                differences.append(f"weights of apply {kind} to {name}")
        lampfast.save_masks(own, folder / "masks")
        if not same(lampfast.load_masks(folder / "masks"), masks):
            differences.append(f"file of {name}")
        loaded = lampfast.load_masks(folder / "masks", model)
        distributed.barrier()
        if not same(loaded, masks):
            differences.append(f"loaded masks of {name}")
        for layer, mask in loaded.items():
            weight = model.get_parameter(layer)
            if getattr(mask, "placements", 0) != getattr(weight, "placements", 0):
                differences.append(f"placements of loaded masks of {name}")
        initial = mlp().state_dict()
        wanted = mlp(coarse=True)
        lampfast.prune(wanted, 0.7)
        expected = lampfast.rewind(wanted, initial)
        for kind, state in (
            ("whole", initial),
            ("own", copy.deepcopy(make(mlp()).state_dict())),
            ("columns", columns(initial)),
        ):
            target = make(mlp(coarse=True))
            lampfast.prune(target, 0.7)
            found = lampfast.rewind(target, state)
            if str(found) != str(expected) or not same(weights_of(target), weights_of(wanted)):
                differences.append(f"rewind of {name} to {kind}")
    return differences


def errors(folder: Path, rank: int, ranks: int) -> dict[str, tuple[str, bool]]:
    """What goes wrong on one rank, and what each rank says of it."""
    mesh = init_device_mesh("cpu", (ranks,))
    is_last, found = rank == ranks - 1, {}
    masks = lampfast.masks(mlp(), 0.7)
    one_less = dict(list(masks.items())[1:])
    numbers = {**masks, "0.weight": masks["0.weight"].float()}
    model: Any = fully_shard(mlp(), mesh=mesh)
    handle = lampfast.keep_zeros(model, torch.optim.SGD(model.parameters()))
    calls: dict[str, Callable[[Any], object]] = {
        "apply": lambda masks: lampfast.apply(model, masks),
        "update": handle.update,
        "load": handle.load_state_dict,
    }
    for name, other in (("a name", one_less), ("a dtype", numbers), ("no mapping", 3)):
        given: Any = other if is_last else masks
        for verb, call in calls.items():
            found[f"{verb}, {name}"] = attempt(model, partial(call, given))
    state = mlp(coarse=True).state_dict()
    if is_last:
        state["1.weight"][-1, -1] = float("nan")  # in what the last rank has
    found["rewind, nan"] = attempt(model, lambda: lampfast.rewind(model, state))
    if is_last:
        del state["1.weight"]
    found["rewind, a name"] = attempt(model, lambda: lampfast.rewind(model, state))
    run = Training(lambda model: fully_shard(model, mesh=mesh))

    def steps() -> None:
        run.pruner.step()
        run.pruner.step()

    with listening(raises=is_last):
        error, is_unchanged = attempt(run.model, steps)
    is_same = is_unchanged and (run.pruner._step, run.pruner.history) == (1, [])
    found["step, a listener raises"] = error, is_same
    if is_last:
        run.pruner._schedule = linear(0.5, 3)
    found["step, another schedule"] = attempt(run.model, run.pruner.step)
    path = folder / ("absent" if is_last else f"plain{rank}")
    found["load_masks"] = attempt(model, lambda: lampfast.load_masks(path, model))
    own = lampfast.masks(model, 0.7)
    nowhere = folder / "no such folder" / "masks"
    found["save_masks"] = attempt(model, lambda: lampfast.save_masks(own, nowhere))
    return found


def trained(ranks: int) -> list[str]:
    """In what trainings of sharded models differ from those of a plain one, bit for bit."""
    mesh = init_device_mesh("cpu", (ranks,))
    differences = []

    def shard(model: nn.Module) -> Any:
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    kinds: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("AdamW", {"foreach": True, "amsgrad": True}, {}),
        ("SGD", {"momentum": 0.9, "foreach": False}, {"mask_gradients": True}),
    ]
    for optimizer, options, how in kinds:
        runs = [Training(make, optimizer, how, **options) for make in (plain, shard)]
        for step in range(16):
            for run in runs:
                run.train([step])
                if step == 13:  # other weights grow, with nothing of the moments they had
                    run.pruner.update(lampfast.masks(mlp(coarse=True), 0.5))
        if not same(runs[0].results(), runs[1].results()):
            differences.append(f"results of {optimizer} {options}")
        if runs[0].pruner.history != runs[1].pruner.history:
            differences.append(f"history of {optimizer} {options}")
    return differences


def kept(ranks: int) -> list[str]:
    """What is wrong in trainings whose arithmetic is not that of one process."""
    both = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("dp", "tp"))
    plan: dict[str, Any] = {"0": ColwiseParallel(), "1": RowwiseParallel(), "2": ColwiseParallel()}
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def fsdp_and_tp(model: nn.Module) -> Any:
        torch.manual_seed(0)  # a model of its own, since torch computes even shards only
        widths = [(WIDTHS[0], 64), (64, 30), (30, 12)]
        model = nn.Sequential(*[nn.Linear(a, b) for a, b in widths])
        return fully_shard(parallelize_module(model, both["tp"], plan), mesh=both["dp"])

    def hybrid(model: nn.Module) -> Any:
        return fully_shard(model, mesh=both, mp_policy=half)

    found = []
    for make, options in ((fsdp_and_tp, {"foreach": True}), (hybrid, {"fused": True})):
        name = f"{make.__name__} {options}"
        run = Training(make, "AdamW", {"mask_gradients": True}, **options)
        for step in range(12):
            run.optimizer.zero_grad()
            for batch in (2 * step, 2 * step + 1):
                run.backward(batch)
            before = layers_of(run.model)
            for layer, weight in before.items():
                gradient = full(run.model.get_parameter(layer).grad)
                if gradient[weight == 0].any():
                    found.append(f"{name}: gradients of {layer} in step {step}")
            nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
            run.optimizer.step()
            after = layers_of(run.model)
            if any(after[it][before[it] == 0].any() for it in after):
                found.append(f"{name}: zeros in step {step}")
            prunings = len(run.pruner.history)
            run.pruner.step()
            if len(run.pruner.history) > prunings:
                expected = lampfast.masks(after, run.pruner.history[-1][1])
                now = layers_of(run.model)
                if any(not torch.equal(now[it], after[it] * expected[it]) for it in now):
                    found.append(f"{name}: pruning after step {step}")
        if lampfast.report(run.model).kept != round(0.1 * sum(it.numel() for it in after.values())):
            found.append(f"{name}: {lampfast.report(run.model)}")
    return found


def stages(rank: int) -> list[str]:
    """In what pipeline stages, each rank with a layer of its own, differ from the whole model."""
    own = f"{min(rank, 2)}.weight"  # the last one is on two ranks
    runs: list[Any] = []
    for names, how in (
        (["0.weight", "1.weight", "2.weight"], {"process_group": alone()}),
        ([own], {"group": distributed.group.WORLD}),
    ):
        weights = {name: nn.Parameter(mlp().get_parameter(name).detach()) for name in names}
        optimizer = torch.optim.AdamW(weights.values(), lr=0.01)
        runs.append(
            (weights, optimizer, lampfast.Pruner(weights, optimizer, linear(0.9, 6), **how))
        )
    for step in range(8):
        for weights, optimizer, pruner in runs:
            for name, weight in weights.items():
                generator = torch.Generator().manual_seed(10 * step + int(name[0]))
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
            pruner.step()
    found = [] if torch.equal(runs[0][0][own], runs[1][0][own]) else [f"weights of {own}"]
    if runs[0][2].history != runs[1][2].history or str(runs[0][2].report) != str(runs[1][2].report):
        found.append(f"history {runs[1][2].history} or {runs[1][2].report}")
    return found


def layers_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: it for name, it in whole(weights_of(model)).items() if it.ndim > 1}


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    join(folder, rank, ranks)
    alone()
    parts: dict[str, Callable[[], Any]] = {
        "resumed": lambda: resumed(folder, rank),
        "elsewhere": lambda: elsewhere(folder, ranks),
        "verbs": lambda: verbs(folder, rank, ranks),
        "errors": lambda: errors(folder, rank, ranks),
        "trained": lambda: trained(ranks),
        "kept": lambda: kept(ranks),
        "stages": lambda: stages(rank),
    }
    (folder / f"{rank}.json").write_text(json.dumps(results(parts)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

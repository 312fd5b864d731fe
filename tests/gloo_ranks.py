"""One rank of a run of test_sharded: models that are sharded in every way, against plain ones.

Usage: gloo_ranks.py FOLDER RANK RANKS
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ranks import join
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lampfast
from lampfast._engine import changes, communicator, pieces, sharded
from lampfast.schedules import linear

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
WIDTHS = 37, 65, 29, 13
Make = Callable[[nn.Module], Any]


def mlp(coarse: bool = False, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small model; a coarse one has many ties and zeros."""
    torch.manual_seed(0)
    pairs = itertools.pairwise(WIDTHS)
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in pairs])
    if coarse:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 40).round() / 8)
    return model.to(dtype)


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def makes(ranks: int) -> Iterator[tuple[str, Make]]:
    """The ways to shard a model."""
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("dp",))
    plan: dict[str, Any] = {"0": ColwiseParallel(), "1": RowwiseParallel(), "2": ColwiseParallel()}

    def each(model: nn.Module) -> Any:
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    yield "fsdp", each
    yield "columns", lambda model: placed(model, mesh, [Shard(1)])
    yield "replicated", lambda model: placed(model, mesh, [Replicate()])
    yield "tensor parallel", lambda model: parallelize_module(model, mesh, plan)
    if ranks == 4:
        both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

        def fsdp_and_tp(model: nn.Module) -> Any:
            parallelize_module(model, both["tp"], plan)
            return fully_shard(model, mesh=both["dp"])

        yield "fsdp and tensor parallel", fsdp_and_tp
        yield "hybrid", lambda model: fully_shard(model, mesh=both)
        yield "both dimensions", lambda model: placed(model, both, [Shard(1), Shard(0)])
        yield "one dimension twice", lambda model: placed(model, both, [Shard(0), Shard(0)])


def placed(model: nn.Module, mesh: DeviceMesh, placements: list[Any]) -> nn.Module:
    """A model whose weights are distributed so; biases stay plain."""
    for layer in model.children():
        weight = distribute_tensor(layer.get_parameter("weight").detach(), mesh, placements)
        layer.register_parameter("weight", nn.Parameter(weight))
    return model


def same(make: Make) -> list[str]:
    """In what a sharded model differs from a plain one."""
    differences = []
    for coarse, dtype in ((False, torch.float32), (True, torch.float32), (False, torch.bfloat16)):
        for sparsity in (0.0, 0.3, 0.9, 1.0):
            for method in ("lamp", "global", "uniform", "erk"):
                if method != "lamp" and (coarse or sparsity != 0.9):
                    continue
                plain, model = mlp(coarse, dtype), make(mlp(coarse, dtype))
                case = f"{coarse} {dtype} {sparsity} {method}"
                expected = lampfast.masks(plain, sparsity, method=method)
                found = lampfast.masks(model, sparsity, method=method)
                for name, mask in found.items():
                    weight = model.get_parameter(name)
                    if not torch.equal(full(mask), expected[name]):
                        differences.append(f"mask {name} of {case}")
                    if getattr(mask, "placements", 0) != getattr(weight, "placements", 0):
                        differences.append(f"placements of mask {name} of {case}")
                if sparsity == 0.9 and method == "lamp":
                    scores = lampfast.scores(plain)
                    for name, score in lampfast.scores(model).items():
                        if not torch.equal(full(score), scores[name]):
                            differences.append(f"scores of {name} of {case}")
                report = lampfast.report(model, sparsity, method=method)
                pruned = lampfast.prune(model, sparsity, method=method)
                wanted = lampfast.prune(plain, sparsity, method=method)
                if not str(report) == str(pruned) == str(wanted):
                    differences.append(f"report of {case}: {report} {pruned} {wanted}")
                if str(lampfast.report(model)) != str(lampfast.report(plain)):
                    differences.append(f"what there is of {case}")
                for name, weight in plain.named_parameters():
                    if not torch.equal(full(model.get_parameter(name)), weight):
                        differences.append(f"weight {name} of {case}")
    return differences


ASKED: list[dict[str, Any]] = [
    {"pattern": "2:4"},
    {"sparsity": 0.6, "pattern": ":8"},
    {"sparsity": 0.7, "block": "row"},
    {"sparsity": 0.6, "block": (1, 4)},
    {"sparsity": 0.6, "block": (1, 4), "method": "uniform"},
]


def by_patterns_and_blocks(ranks: int) -> list[str]:
    """In what models of FSDP2 differ from plain ones."""
    mesh = init_device_mesh("cpu", (ranks,))
    differences = []
    for asked, coarse in itertools.product(ASKED, (False, True)):
        plain = mlp(coarse)
        model: Any = fully_shard(mlp(coarse), mesh=mesh)
        expected, found = lampfast.masks(plain, **asked), lampfast.masks(model, **asked)
        pruned, wanted = lampfast.prune(model, **asked), lampfast.prune(plain, **asked)
        if str(pruned) != str(wanted):
            differences.append(f"report of {asked}: {pruned} {wanted}")
        for name, mask in expected.items():
            if not torch.equal(full(found[name]), mask):
                differences.append(f"mask {name} of {asked}")
        for name, weight in plain.named_parameters():
            if not torch.equal(full(model.get_parameter(name)), weight):
                differences.append(f"weight {name} of {asked}")
    return differences


def stages_by_patterns_and_blocks(rank: int) -> list[str]:
    """The same of layers that live on some ranks only, one of which stores its inputs first."""
    torch.manual_seed(0)
    plain = nn.ModuleDict({"a": nn.Linear(8, 12), "b": nn.ConvTranspose2d(12, 6, 3)})
    name = "ab"[min(rank, 1)]
    own = nn.ModuleDict({name: plain[name]})
    differences = []
    for asked in ASKED:
        expected = lampfast.masks(plain, **asked)
        found = lampfast.masks(own, group=distributed.group.WORLD, **asked)
        report = lampfast.report(own, group=distributed.group.WORLD, **asked)
        if str(report) != str(lampfast.report(plain, **asked)):
            differences.append(f"report of {asked}: {report}")
        if not torch.equal(found[f"{name}.weight"], expected[f"{name}.weight"]):
            differences.append(f"mask of {asked}")
    return differences


def attempt(model: nn.Module, call: Callable[[], object]) -> tuple[str, bool]:
    """What a call raises, and whether it leaves the weights as they were."""
    before = {name: _local(weight).clone() for name, weight in model.named_parameters()}
    error = ""
    try:
        call()
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    after = {name: _local(weight) for name, weight in model.named_parameters()}
    same = all(torch.equal(before[it].nan_to_num(9), after[it].nan_to_num(9)) for it in before)
    return error, same


@contextmanager
def listening(*, raises: bool) -> Iterator[None]:
    """Have a listener of prunings, which raises before they are written, or does nothing."""
    listener = mock.Mock()
    if raises:
        listener.pruning.side_effect = KeyError("on the last rank")
    changes.listen(listener)
    try:
        yield
    finally:
        changes.stop_listening(listener)


def _local(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local().detach() if isinstance(weight, DTensor) else weight.detach()


def errors(rank: int, ranks: int) -> dict[str, tuple[str, bool]]:
    """What goes wrong on one rank, and what each rank says of it."""
    mesh = init_device_mesh("cpu", (ranks,))
    is_last = rank == ranks - 1

    def make() -> Any:
        return fully_shard(mlp(), mesh=mesh)

    found = {}
    model = make()
    if is_last:
        _local(model.get_parameter("1.weight"))[-1, -1] = float("nan")
    found["nan on the last rank"] = attempt(model, lambda: lampfast.prune(model, 0.5))
    model = make()
    found["other arguments"] = attempt(model, lambda: lampfast.prune(model, 0.5 + rank / 64))
    with listening(raises=is_last):
        found["a listener raises"] = attempt(model, lambda: lampfast.prune(model, 0.5))
    include = "nothing*" if is_last else None
    found["a pattern of the last rank"] = attempt(
        model, lambda: lampfast.prune(model, 0.5, include=include)
    )
    with mock.patch.object(pieces, "own", _fails if is_last else pieces.own):
        found["scores"] = attempt(model, lambda: lampfast.scores(model))
    partial = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
    found["partial"] = attempt(model, lambda: lampfast.masks({"a": partial}, 0.5))
    return found


def _fails(*_: object) -> None:
    raise MemoryError("for the scores of the last rank")


def in_group(rank: int, ranks: int) -> dict[str, Any]:
    """Layers that live on some ranks only, as pipeline stages and experts do."""
    group = distributed.group.WORLD
    plain = mlp(coarse=True)
    weights = {name: weight for name, weight in plain.named_parameters() if weight.ndim > 1}
    expected = lampfast.masks(weights, 0.6)
    found: dict[str, Any] = {}

    def same(own: Mapping[str, torch.Tensor]) -> bool:
        copies = {name: weight.detach().clone() for name, weight in own.items()}
        masks = lampfast.masks(copies, 0.6, group=group)
        report = lampfast.prune(copies, 0.6, group=group)
        good = str(report) == str(lampfast.report(weights, 0.6))
        for name, mask in masks.items():
            good = good and torch.equal(mask, expected[name])
            good = good and torch.equal(copies[name], weights[name] * expected[name])
        return good and masks.keys() == own.keys()

    names = list(weights)
    mine = {name: weights[name] for i, name in enumerate(names) if i * ranks // len(names) == rank}
    found["stages"] = same(mine)
    found["some on all"] = same(mine | {names[0]: weights[names[0]]})
    other = {name: weight.detach() + (rank == ranks - 1) for name, weight in weights.items()}
    found["copies differ"] = attempt(plain, lambda: lampfast.prune(other, 0.6, group=group))[0]
    shorter = {names[0]: weights[names[0]][rank:]}
    found["shapes differ"] = attempt(plain, lambda: lampfast.prune(shorter, 0.6, group=group))[0]
    return found


def trained(ranks: int) -> dict[str, bool]:
    """A Pruner's training under FSDP, every rank with the same data, beside a plain model's."""
    plain = mlp()
    model: Any = fully_shard(mlp(), mesh=init_device_mesh("cpu", (ranks,)))
    results = []
    for each in (plain, model):
        optimizer = torch.optim.AdamW(each.parameters(), 0.01)
        pruner = lampfast.Pruner(each, optimizer, linear(0.8, 8), every=2)
        generator = torch.Generator().manual_seed(1)
        stay_zero = True
        for _ in range(12):
            data = torch.randn(4, WIDTHS[0], generator=generator)
            optimizer.zero_grad()
            each(data).square().mean().backward()
            before = lampfast.report(each)
            optimizer.step()
            stay_zero = stay_zero and lampfast.report(each).kept <= before.kept
            pruner.step()
        results.append((stay_zero, pruner.history, pruner.report.kept))
    weights = zip(plain.parameters(), model.parameters(), strict=True)
    return {
        "zeros stay": results[1][0],
        "same history": results[0][1:] == results[1][1:],
        "same weights": all(torch.equal(full(b), a) for a, b in weights),
    }


def cost(ranks: int) -> tuple[int, int]:
    """Collectives of a call, and bytes that a rank sends a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)])
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    lampfast.prune(model, 0.5)
    made = []

    class Recorded(communicator.GroupCommunicator):
        def __init__(self, group: distributed.ProcessGroup) -> None:
            super().__init__(group)
            made.append(self)

    with mock.patch.object(sharded, "GroupCommunicator", Recorded):
        lampfast.prune(model, 0.9)
    return made[0].collectives, made[0].sent // 4


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    join(folder, rank, ranks)
    differences: dict[str, list[str]] = {}
    for name, make in makes(ranks):
        try:
            differences[name] = same(make)
        except Exception:
            differences[name] = [traceback.format_exc()]
    differences["patterns and blocks"] = by_patterns_and_blocks(ranks)
    differences["stages by patterns and blocks"] = stages_by_patterns_and_blocks(rank)
    results = {"same": differences, "errors": errors(rank, ranks), "cost": cost(ranks)}
    results["in a group"] = in_group(rank, ranks)
    results["trained"] = trained(ranks)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

"""One rank of a run of test_sharded_trainers: the callbacks for trainers, with models of FSDP2.

Usage: trainer_ranks.py FOLDER RANK RANKS
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ranks import join, results
from tiny_transformers import GPT2
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

import lampfast
from lampfast import schedules

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
SCHEDULE = schedules.cubic(0.9, 16)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 8, generator=generator) for _ in range(6)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value.detach().clone()
        for name, value in model.state_dict().items()
    }


def differences(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def plain(rank: int, ranks: int) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]]]:
    """What a loop in one process makes of the same model with the same data."""
    groups = [distributed.new_group([other]) for other in range(ranks)]
    model = network()
    optimizer = sgd(model)
    pruner = lampfast.Pruner(model, optimizer, SCHEDULE, every=5, process_group=groups[rank])
    for batch in batches() * 3:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        pruner.step()
    return whole(model), pruner.history


def with_lightning(folder: Path, rank: int, ranks: int) -> list[str]:
    """In what fits with ModelParallelStrategy, and resumed ones, differ from a plain loop."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy

    from lampfast.lightning import PruningCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def configure_model(self) -> None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: torch.Tensor, _: int) -> Any:
            return self.network(batch).square().mean()

        def validation_step(self, batch: torch.Tensor, _: int) -> None:
            self.network(batch)  # which leaves its weights gathered

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    def fit(is_sharded: bool, **settings: Any) -> tuple[Any, PruningCallback]:
        pruning = PruningCallback(SCHEDULE, every=5)
        saving = ModelCheckpoint(folder / f"{is_sharded}", filename="{step}", save_top_k=-1)
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices=ranks,
            strategy=ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=is_sharded),
            callbacks=[pruning, saving],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        module = Module()
        loader: Any = DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(module, loader, loader, **settings)
        module.network.reshard()  # type: ignore[operator]
        return module.network, pruning

    expected, history = plain(rank, ranks)
    found = []
    for is_sharded in (True, False):
        name = f"sharded checkpoints: {is_sharded}"
        for kind, path in (
            ("whole", None),
            ("resumed", f"{folder / str(is_sharded)}/step=12.ckpt"),
        ):
            model, pruning = fit(is_sharded, ckpt_path=path)
            if not all(isinstance(it, DTensor) for it in model.parameters()):
                found.append(f"{name}, {kind}: the model is not sharded")
            found += [f"{name}, {kind}: {it}" for it in differences(whole(model), expected)]
            assert pruning.pruner is not None
            if pruning.pruner.history != history:
                found.append(f"{name}, {kind}: {pruning.pruner.history}")
    return found


def with_trainer(folder: Path) -> list[str]:
    """In what a resumed training of the Trainer differs from a whole one, and what else is odd."""
    import transformers
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    from lampfast.transformers import PruningCallback

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 11, (24, 8), generator=generator)
    rows = [{"input_ids": row, "labels": row} for row in tokens]

    def train(name: str, resume: str | None = None) -> tuple[Any, PruningCallback]:
        torch.manual_seed(0)
        config = transformers.GPT2Config(**GPT2, tie_word_embeddings=False)
        pruning = PruningCallback(SCHEDULE, every=3)
        arguments = transformers.TrainingArguments(
            str(folder / name),
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            max_steps=12,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            save_steps=5,
            eval_strategy="steps",
            eval_steps=4,
        )
        trainer = transformers.Trainer(
            model=transformers.GPT2LMHeadModel(config),
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows[:4],
            callbacks=[pruning],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model, pruning

    found = []
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            cpu_ram_efficient_loading=False,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["GPT2Block"],
            state_dict_type=kind,
        )
        # accelerate offers FSDP on accelerators only; nothing of it needs one.
        is_fsdp = property(lambda self: DistributedType.FSDP, lambda self, value: None)
        with (
            mock.patch.object(AcceleratorState, "distributed_type", is_fsdp, create=True),
            mock.patch.object(AcceleratorState, "fsdp_plugin", plugin, create=True),
        ):
            model, pruning = train(kind)
            again, resumed = train(f"{kind} again", f"{folder / kind}/checkpoint-5")
        if not all(isinstance(it, DTensor) for it in model.parameters()):
            found.append(f"{kind}: the model is not sharded")
        found += [f"{kind}: {it}" for it in differences(whole(model), whole(again))]
        assert pruning.pruner is not None
        assert resumed.pruner is not None
        history = pruning.pruner.history
        if [step for step, _ in history] != [3, 6, 9, 12] or lampfast.report(model) != (
            pruning.pruner.report
        ):
            found.append(f"{kind}: {history}")
        if resumed.pruner.history != (history if kind[0] == "F" else history[1:]):
            found.append(f"{kind}, resumed: {resumed.pruner.history}")
        sparsity = lampfast.report(model).sparsity
        if abs(sparsity - SCHEDULE(12)) > 1e-3:
            found.append(f"{kind}: sparsity {sparsity}")
    return found


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    as_torchrun = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "GROUP_RANK": "0"}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(**as_torchrun, TORCHELASTIC_RUN_ID="none", ACCELERATE_USE_CPU="true")
    join(folder, rank, ranks)
    parts: dict[str, Callable[[], list[str]]] = {
        "lightning": lambda: with_lightning(folder, rank, ranks),
        "transformers": lambda: with_trainer(folder),
    }
    (folder / f"{rank}.json").write_text(json.dumps(results(parts)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

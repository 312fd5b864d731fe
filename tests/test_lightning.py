"""Short fits with Lightning: the callback does what a plain loop would, also when resumed."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import lampfast
from lampfast import schedules

lightning = pytest.importorskip("lightning.pytorch")
pytorch_lightning = pytest.importorskip("pytorch_lightning")

from lightning.pytorch import Callback, LightningModule  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from lampfast.lightning import PruningCallback  # noqa: E402
from lampfast.torch_prune import LAMPUnstructured  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    ),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]

BATCHES = 6
WEIGHTS = 8 * 16 + 16 * 4
SCHEDULE = schedules.cubic(0.9, 16)
EVERY = 5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors this small are not worth a second one; tests/conftest.py puts it back."""
    torch.set_num_threads(1)


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 8, generator=generator), torch.randn(4, 4, generator=generator))
        for _ in range(BATCHES)
    ]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def _optimizer(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01)


def _loss(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Any:
    return (network(batch[0]) - batch[1]).square().mean()


def _module(package: Any = lightning) -> Any:
    class Module(package.LightningModule):
        """Made for a package, since each has its own base class."""

        def __init__(self) -> None:
            super().__init__()
            self.network = _network()

        def training_step(self, batch: Any, _: int) -> Any:
            return _loss(self.network, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self.parameters())

    return Module()


class _TwoOptimizers(LightningModule):
    """Steps one optimizer at every batch, the other at every second one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = _network()

    def training_step(self, batch: Any, i: int) -> None:
        first, second = self.optimizers()
        self.manual_backward(_loss(self.network, batch))
        first.step()
        first.zero_grad()
        if i % 2:
            second.step()
            second.zero_grad()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [_optimizer(self.network[i].parameters()) for i in (0, 2)]


def _trainer(*callbacks: Any, package: Any = lightning, **settings: Any) -> Any:
    defaults = {"max_epochs": 3, "accelerator": "cpu", "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    return package.Trainer(callbacks=list(callbacks), **{**defaults, **quiet, **settings})


def _fit(module: Any, trainer: Any, **settings: Any) -> Any:
    trainer.fit(module, DataLoader(_batches(), batch_size=None), **settings)  # type: ignore[arg-type]
    return module


def _saving(folder: Path) -> Any:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1)


class _Plain:
    """What a fit is compared with: weights multiplied by their masks after each step."""

    def __init__(self) -> None:
        self.network = _network()
        self._layers = {
            name: weight for name, weight in self.network.named_parameters() if weight.ndim == 2
        }
        self._masks = {name: torch.ones_like(weight) for name, weight in self._layers.items()}
        self._step = 0

    @torch.no_grad()
    def keep(self) -> None:
        for name, weight in self._layers.items():
            weight.mul_(self._masks[name])

    @torch.no_grad()
    def prune(self) -> None:
        self._step += 1
        if self._step % EVERY == 0:
            lampfast.prune(self._layers, SCHEDULE(self._step))
            self._masks = {name: weight != 0 for name, weight in self._layers.items()}


def _assert_same(states: Any, others: Any) -> None:
    assert states.keys() == others.keys()
    for name, state in states.items():
        if isinstance(state, dict):
            _assert_same(state, others[name])
        else:
            assert torch.equal(torch.as_tensor(state), torch.as_tensor(others[name])), name


def _hooks(trainer: Any) -> int:
    return sum(len(optimizer._optimizer_step_post_hooks) for optimizer in trainer.optimizers)


def _steps(pruning: PruningCallback) -> list[int]:
    assert pruning.pruner is not None
    return [step for step, _ in pruning.pruner.history]


def _sparsity(step: int) -> float:
    return round(SCHEDULE(step // EVERY * EVERY) * WEIGHTS) / WEIGHTS


@pytest.mark.parametrize("package", [lightning, pytorch_lightning], ids=lambda each: each.__name__)
@pytest.mark.parametrize("accumulated", [1, 4])
def test_fit_equals_a_plain_loop(package: Any, accumulated: int) -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(pruning, package=package, max_epochs=9, accumulate_grad_batches=accumulated)
    module = _fit(_module(package), trainer)

    plain, step = _Plain(), 0
    optimizer = _optimizer(plain.network.parameters())
    for _ in range(9):
        for i, batch in enumerate(_batches(), 1):
            (_loss(plain.network, batch) / accumulated).backward()
            if i % accumulated == 0 or i == BATCHES:  # Lightning lets no gradients over
                optimizer.step()
                plain.keep()
                plain.prune()
                optimizer.zero_grad()
                step += 1
    _assert_same(module.network.state_dict(), plain.network.state_dict())
    assert trainer.global_step == step
    assert lampfast.report(module).sparsity == _sparsity(step)
    assert _hooks(trainer) == 0


def test_each_step_of_several_optimizers_counts() -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(pruning)
    module = _fit(_TwoOptimizers(), trainer)

    plain, steps = _Plain(), 0
    first, second = (_optimizer(plain.network[i].parameters()) for i in (0, 2))
    for batch in 3 * _batches():
        _loss(plain.network, batch).backward()
        stepping = [first, second] if steps % 3 else [first]
        for optimizer in stepping:
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        plain.keep()
        for _ in stepping:
            plain.prune()
    _assert_same(module.network.state_dict(), plain.network.state_dict())
    assert trainer.global_step == steps == 27
    assert _hooks(trainer) == 0


def test_an_optimizer_may_train_other_layers_only() -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY, include="network.0.weight")
    module = _fit(_TwoOptimizers(), _trainer(pruning))
    assert _steps(pruning) == [5, 10, 15, 20]
    assert [layer.kept for layer in lampfast.report(module).layers] == [13, 64]


class _Overflow(Callback):
    """Makes a GradScaler skip every second step, and counts those that it does not."""

    taken = 0

    def on_train_start(self, trainer: Any, _: Any) -> None:
        trainer.optimizers[0].register_step_post_hook(self._count)

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if trainer.global_step % 2:
            module.network[0].weight.grad[0, 0] = torch.inf

    def _count(self, *_: Any) -> None:
        self.taken += 1


def test_steps_that_a_gradient_scaler_skips_count() -> None:
    pruning, overflow = PruningCallback(SCHEDULE, every=EVERY), _Overflow()
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    module = _fit(_module(), _trainer(pruning, overflow, plugins=[precision]))
    assert overflow.taken == 9
    assert _steps(pruning) == [5, 10, 15]
    assert lampfast.report(module).sparsity == _sparsity(18)


class _Zero(Callback):
    """Sets a kept weight to zero at a step: it is not pruned, and the next step moves it."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            weight = module.network[0].weight.data.view(-1)
            weight[weight.abs().argmax()] = 0.0


@pytest.mark.parametrize("saved", [6, 12])
def test_resumed_equals_uninterrupted(tmp_path: Path, saved: int) -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    module = _fit(_module(), _trainer(pruning, _Zero(saved), _saving(tmp_path)))

    checkpoint = torch.load(tmp_path / f"step={saved}.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == module.state_dict().keys()
    zeros = sum(int((weight == 0).sum()) for weight in checkpoint["state_dict"].values())
    assert zeros == round(_sparsity(saved) * WEIGHTS) + 1

    again = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(again, _saving(tmp_path))
    resumed = _fit(_module(), trainer, ckpt_path=tmp_path / f"step={saved}.ckpt")
    _assert_same(resumed.state_dict(), module.state_dict())
    _assert_same(again.state_dict(), pruning.state_dict())
    assert _steps(again) == [5, 10, 15]
    assert _hooks(trainer) == 0


def test_a_dense_checkpoint_is_pruned_from_its_step_on(tmp_path: Path) -> None:
    trainer = _trainer(max_epochs=2)
    _fit(_module(), trainer)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    module = _fit(_module(), _trainer(pruning), ckpt_path=tmp_path / "dense.ckpt")
    assert _steps(pruning) == [15]
    assert lampfast.report(module).sparsity == _sparsity(18)


def test_callbacks_for_layers_of_their_own(tmp_path: Path) -> None:
    def callbacks() -> list[PruningCallback]:
        return [
            PruningCallback(schedules.linear(0.5, 18), include="network.0.weight"),
            PruningCallback(schedules.constant(0.75), include="network.2.weight"),
        ]

    module = _fit(_module(), _trainer(*callbacks(), _saving(tmp_path)))
    assert [layer.kept for layer in lampfast.report(module).layers] == [64, 16]
    trainer = _trainer(*callbacks(), _saving(tmp_path))
    resumed = _fit(_module(), trainer, ckpt_path=tmp_path / "step=6.ckpt")
    _assert_same(resumed.state_dict(), module.state_dict())


def _initial(module: Any) -> Any:
    """The initial values of a module's weights where they remain, and of all else."""
    initial = _network().state_dict()
    for i in (0, 2):
        initial[f"{i}.weight"][module.network[i].weight == 0] = 0.0
    return initial


class _AtPruning(Callback):
    """Last of all, looks at the module and its optimizer after each pruning."""

    def __init__(self, pruning: PruningCallback, choose: Any = _initial) -> None:
        self._pruning, self._choose, self.seen = pruning, choose, 0

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if len(_steps(self._pruning)) > self.seen:
            self.seen += 1
            _assert_same(module.network.state_dict(), self._choose(module))
            assert not any(trainer.optimizers[0].state.values())


def test_each_pruning_rewinds_to_the_initial_values() -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY, rewind="initial")
    watch = _AtPruning(pruning)
    module = _fit(_module(), _trainer(pruning, watch, max_epochs=4))
    assert _steps(pruning) == [5, 10, 15, 20]
    assert watch.seen == 4

    plain = _Plain()
    optimizer = _optimizer(plain.network.parameters())
    for step, batch in enumerate(4 * _batches(), 1):
        _loss(plain.network, batch).backward()
        optimizer.step()
        plain.keep()
        plain.prune()
        optimizer.zero_grad()
        if step % EVERY == 0:
            plain.network.load_state_dict(_network().state_dict())
            plain.keep()
            optimizer = _optimizer(plain.network.parameters())
    _assert_same(module.network.state_dict(), plain.network.state_dict())


def test_rewinding_to_a_given_state_leaves_learning_rates() -> None:
    torch.manual_seed(1)
    given = {
        f"network.{name}": torch.randn_like(it) for name, it in _network().state_dict().items()
    }

    def choose(module: Any) -> Any:
        values = {name.removeprefix("network."): it.clone() for name, it in given.items()}
        for i in (0, 2):
            values[f"{i}.weight"][module.network[i].weight == 0] = 0.0
        return values

    class Decaying(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.optimizers[0].param_groups[0]["lr"] *= 0.5

    pruning = PruningCallback(SCHEDULE, every=EVERY, rewind=given)
    watch = _AtPruning(pruning, choose)
    trainer = _trainer(pruning, watch, Decaying(), max_epochs=2)
    _fit(_module(), trainer)
    assert watch.seen == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**12


@pytest.mark.parametrize("saved", [6, 12])
@pytest.mark.parametrize("given", [False, True])
def test_a_resumed_fit_rewinds_to_the_same_values(given: bool, saved: int, tmp_path: Path) -> None:
    def pruning() -> PruningCallback:
        rewind: Any = _module().state_dict() if given else "initial"
        return PruningCallback(SCHEDULE, every=EVERY, rewind=rewind)

    module = _fit(_module(), _trainer(pruning(), _saving(tmp_path)))
    checkpoint = torch.load(tmp_path / f"step={saved}.ckpt", weights_only=True)
    start = checkpoint["callbacks"][pruning().state_key]["start"]
    assert start.keys() == ({"optimizers"} if given else {"optimizers", "model"})
    other = _module()
    other.network[0].weight.data.fill_(7.0)  # its own initial values are none
    trainer = _trainer(pruning(), _saving(tmp_path))
    resumed = _fit(other, trainer, ckpt_path=tmp_path / f"step={saved}.ckpt")
    _assert_same(resumed.state_dict(), module.state_dict())


@pytest.mark.parametrize("how", ["without the callback", "without rewinding", "given a state"])
def test_initial_values_that_are_missing(how: str, tmp_path: Path) -> None:
    state = _module().state_dict() if how == "given a state" else None
    before = PruningCallback(SCHEDULE, every=EVERY, rewind=state)
    trainer = _trainer(*[] if how == "without the callback" else [before], max_epochs=2)
    _fit(_module(), trainer)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    trainer = _trainer(PruningCallback(SCHEDULE, rewind="initial"))
    with pytest.raises(ValueError, match=r"from step 12 .*rewind=state_dict"):
        _fit(_module(), trainer, ckpt_path=tmp_path / "without.ckpt")
    assert _hooks(trainer) == 0

    given = PruningCallback(SCHEDULE, every=EVERY, rewind=_module().state_dict())
    watch = _AtPruning(given)
    watch.seen = 0 if how == "without the callback" else 2  # those that the state tells of
    _fit(_module(), _trainer(given, watch), ckpt_path=tmp_path / "without.ckpt")
    assert _steps(given)[-1] == 15
    assert watch.seen == len(_steps(given))


def test_a_rewinding_leaves_the_zeros_of_other_callbacks() -> None:
    first = PruningCallback(
        schedules.linear(0.5, 10), every=EVERY, include="network.0.weight", rewind="initial"
    )
    second = PruningCallback(
        schedules.linear(0.8, 10), every=EVERY, include="network.2.weight", rewind="initial"
    )
    watch = _AtPruning(second)
    module = _fit(_module(), _trainer(first, second, watch))
    assert watch.seen == 2
    assert [layer.kept for layer in lampfast.report(module).layers] == [64, 13]


@pytest.mark.parametrize(
    ("rewind", "error", "match"),
    [("first", ValueError, "rewind is 'first'"), (3, TypeError, "rewind is a int")],
)
def test_what_cannot_be_rewound_to(rewind: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        PruningCallback(SCHEDULE, rewind=rewind)
    pruning = PruningCallback(SCHEDULE, rewind={"no.such": torch.ones(2)})
    trainer = _trainer(pruning)
    with pytest.raises(ValueError, match=r"saved_state does not fit"):
        _fit(_module(), trainer)
    assert _hooks(trainer) == 0


def test_an_optimizer_with_a_state_from_the_start() -> None:
    class Module(type(_module())):  # type: ignore[misc]
        """Its optimizer has sums before the first step."""

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adagrad(self.parameters(), 0.1, initial_accumulator_value=0.5)

    pruning = PruningCallback(schedules.constant(0.5, start=6), every=6, rewind="initial")
    trainer = _trainer(pruning, max_epochs=1)
    module = _fit(Module(), trainer)
    _assert_same(module.network.state_dict(), _initial(module))
    for state in trainer.optimizers[0].state.values():
        assert state["step"] == 0
        assert (state["sum"] == 0.5).all()


def test_the_same_callback_again() -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(pruning, max_epochs=2)
    module = _fit(_module(), trainer)
    trainer.fit_loop.max_epochs = 3
    _fit(module, trainer)
    assert _steps(pruning) == [5, 10, 15]  # the same Trainer goes on
    assert lampfast.report(module).sparsity == _sparsity(18)

    module = _fit(_module(), _trainer(pruning, max_epochs=1))
    assert _steps(pruning) == [5]  # another one begins
    assert lampfast.report(module).sparsity == _sparsity(6)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end", "on_train_epoch_end"])
def test_a_fit_that_raises_leaves_no_hooks(hook: str, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    failing, pruning = Callback(), PruningCallback(SCHEDULE)
    setattr(failing, hook, fail)
    trainer = _trainer(pruning, failing)
    with pytest.raises(RuntimeError, match="out of luck"):
        _fit(_module(), trainer)
    assert _hooks(trainer) == 0
    trainer.save_checkpoint(tmp_path / "failed.ckpt")
    states = torch.load(tmp_path / "failed.ckpt", weights_only=True)["callbacks"]
    _assert_same(states[pruning.state_key], pruning.state_dict())


def test_the_state_of_other_layers_is_refused() -> None:
    pruning = PruningCallback(SCHEDULE)
    pruning.load_state_dict({"step": 0, "history": [], "zeros": {"no such layer": torch.ones(1)}})
    trainer = _trainer(pruning)
    with pytest.raises(ValueError, match="layer"):
        _fit(_module(), trainer)
    assert _hooks(trainer) == 0


def test_the_sparsity_is_logged(tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(tmp_path)
    trainer = _trainer(
        PruningCallback(SCHEDULE, every=EVERY), logger=logger, log_every_n_steps=1, max_epochs=1
    )
    _fit(_module(), trainer)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        logged = [float(row["sparsity"]) for row in csv.DictReader(file)]
    assert logged == pytest.approx([0.0, 0.0, 0.0, 0.0, SCHEDULE(5), SCHEDULE(5)])


def test_a_barebones_trainer_logs_nothing() -> None:
    trainer = _trainer(PruningCallback(SCHEDULE), barebones=True)
    _fit(_module(), trainer)
    assert not trainer.callback_metrics


def test_one_that_is_removed_prunes_no_more() -> None:
    class Removing(PruningCallback):
        def on_train_epoch_end(self, *_: Any) -> None:
            self.remove()

    pruning = Removing(SCHEDULE, every=EVERY)
    _fit(_module(), _trainer(pruning))
    assert _steps(pruning) == [5]


@pytest.mark.parametrize("missing", ["lightning", "pytorch_lightning"])
def test_import_says_which_extra_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or name == "lampfast.lightning":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}, .*'lightning'"):
        import lampfast.lightning  # noqa: F401


@pytest.mark.parametrize("package", [lightning, pytorch_lightning])
def test_lightnings_own_callback_refuses_our_method_when_it_is_made(package: Any) -> None:
    """It prunes one vector of all layers, and only after an epoch."""
    model_pruning = package.callbacks.ModelPruning
    weights = [(_network()[0], "weight")]
    for lottery in (True, False):
        with pytest.raises(Exception, match=r"lampfast\.lightning\.PruningCallback"):
            model_pruning(
                LAMPUnstructured,
                parameters_to_prune=weights,
                use_lottery_ticket_hypothesis=lottery,
            )
        with pytest.raises(Exception, match="use_global_unstructured=True"):
            model_pruning(
                LAMPUnstructured,
                parameters_to_prune=weights,
                use_global_unstructured=False,
                use_lottery_ticket_hypothesis=lottery,
            )


class _Leaks(Callback):
    """Counts gradients of pruned weights, and how often it has looked at some."""

    def __init__(self) -> None:
        self.leaks, self.looks = 0, 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for weight in pl_module.parameters():
            gradients = weight.grad[weight == 0]
            self.leaks += int(gradients.count_nonzero())
            self.looks += gradients.numel()


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_are_masked_before_clipping(masked: bool) -> None:
    pruning, watch = PruningCallback(SCHEDULE, every=EVERY, mask_gradients=masked), _Leaks()
    trainer = _trainer(pruning, watch, accumulate_grad_batches=2, gradient_clip_val=0.1)
    _fit(_module(), trainer)
    assert watch.looks > 0
    assert (watch.leaks == 0) is masked

"""Lightning's averages beside the callback that prunes: in each order they have the same zeros."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lightning import (
    BATCHES,
    EVERY,
    SCHEDULE,
    _batches,
    _fit,
    _module,
    _saving,
    _trainer,
    pytestmark,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

import lampfast
from lampfast import schedules

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch import Callback  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)

from lampfast.lightning import PruningCallback  # noqa: E402

__all__ = ["pytestmark"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors this small are not worth a second one; tests/conftest.py puts it back."""
    torch.set_num_threads(1)


class _AtEpochs(WeightAveraging):
    """Averages after each epoch, as SWA does."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


AVERAGES: dict[str, Any] = {
    "EMA": lambda: EMAWeightAveraging(decay=0.8),
    "EMA on the host": lambda: EMAWeightAveraging(device="cpu", decay=0.8),
    "late EMA": lambda: EMAWeightAveraging(decay=0.8, update_starting_at_step=7),
    "every step": WeightAveraging,
    "every epoch": _AtEpochs,
    "SWA": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=2),
}


def _zeros(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("module."): weight == 0
        for name, weight in module.named_parameters()
        if weight.ndim == 2
    }


def _assert_same_zeros(module: nn.Module, other: nn.Module) -> None:
    zeros, others = _zeros(module), _zeros(other)
    assert zeros.keys() == others.keys()
    for name, where in zeros.items():
        assert torch.equal(where, others[name]), name


class _Watch(Callback):
    """Last of all, looks at the model and the average at every turn; counts where it did."""

    def __init__(self, averaging: Any) -> None:
        self._averaging, self.seen = averaging, {"batch": 0, "validation": 0, "end": 0}

    def _look(self, where: str, module: nn.Module) -> None:
        _assert_same_zeros(module, self._averaging._average_model)
        self.seen[where] += 1

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self._look("batch", module)

    def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._look("validation", module)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._look("end", module)


def _validated(package: Any = lightning) -> Any:
    module = _module(package)
    type(module).validation_step = type(module).training_step
    return module


@pytest.mark.parametrize("order", ["average first", "pruning first"])
@pytest.mark.parametrize("name", AVERAGES)
def test_the_average_has_the_zeros_of_the_model(name: str, order: str, tmp_path: Path) -> None:
    averaging = AVERAGES[name]()
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    pair = [averaging, pruning] if order == "average first" else [pruning, averaging]
    watch = _Watch(averaging)
    trainer = _trainer(*pair, watch, _saving(tmp_path), max_epochs=5)
    module = _validated()
    data: Any = DataLoader(_batches(), batch_size=None)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*average.*")
        trainer.fit(module, data, data)
    assert watch.seen == {"batch": 5 * BATCHES, "validation": 5 * BATCHES, "end": 1}
    assert lampfast.report(module).sparsity == pytest.approx(0.9, abs=0.003)
    for step in (6, 12, 18, 24, 30):
        checkpoint = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        current = checkpoint.get("current_model_state", checkpoint["state_dict"])
        for key, value in checkpoint["state_dict"].items():
            if value.ndim == 2:
                assert torch.equal(value == 0, current[key] == 0)
        assert current["network.0.weight"].eq(0).any()


def test_without_it_the_average_has_others() -> None:
    """What all of this is for."""
    averaging = EMAWeightAveraging(decay=0.8)
    module = _module()
    trainer = _trainer(averaging, _Plain(), max_epochs=3)
    _fit(module, trainer)
    assert lampfast.report(module).sparsity < 0.5


class _Plain(Callback):
    """Prunes by hand, and knows of no average."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._pruner = lampfast.Pruner(
            module, trainer.optimizers, schedules.constant(0.9, start=18), every=1
        )

    def on_train_batch_end(self, *_: Any) -> None:
        self._pruner.step()


@pytest.mark.parametrize("order", ["average first", "pruning first"])
def test_resumed_equals_uninterrupted(order: str, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        pair = [EMAWeightAveraging(decay=0.8), PruningCallback(SCHEDULE, every=EVERY)]
        return pair if order == "average first" else pair[::-1]

    module = _fit(_module(), _trainer(*callbacks(), _saving(tmp_path)))
    trainer = _trainer(*callbacks(), _saving(tmp_path))
    resumed = _fit(_module(), trainer, ckpt_path=tmp_path / "step=6.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


class _OwnEma(Callback):
    """An EMA of somebody's own, made when training starts, and never told of."""

    def __init__(self, make: Any) -> None:
        self._make, self.ema_model = make, None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.ema_model = self._make(module)


@pytest.mark.parametrize(
    "make",
    [copy.deepcopy, lambda module: copy.deepcopy(module.state_dict()), AveragedModel],
    ids=["module", "state", "AveragedModel"],
)
def test_an_average_that_is_made_too_late_is_pointed_out(make: Any) -> None:
    own = _OwnEma(make)
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    with pytest.warns(UserWarning, match=r"_OwnEma .*'ema_model'.*copies="):
        _fit(_module(), _trainer(pruning, own, max_epochs=1))
    pruning = PruningCallback(SCHEDULE, every=EVERY, copies=lambda: own.ema_model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*average.*")
        module = _fit(_module(), _trainer(own, pruning, max_epochs=1))
    average: Any = own.ema_model
    weight = dict(average)["network.0.weight"] if isinstance(average, dict) else None
    if weight is not None:
        assert torch.equal(weight == 0, module.network[0].weight == 0)
    else:
        _assert_same_zeros(module, average)


def test_an_averaged_model_of_another_callback_is_taken() -> None:
    own = _OwnEma(AveragedModel)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*average.*")
        module = _fit(_module(), _trainer(own, PruningCallback(SCHEDULE, every=EVERY)))
    _assert_same_zeros(module, own.ema_model)  # type: ignore[arg-type]


def test_copies_are_checked_before_any_training() -> None:
    with pytest.raises(TypeError, match="copies is a int"):
        PruningCallback(SCHEDULE, copies=3)  # type: ignore[arg-type]
    pruning = PruningCallback(SCHEDULE, copies=lambda: nn.ReLU())
    with pytest.raises(ValueError, match=r"copies\[0\] has no layer"):
        _fit(_module(), _trainer(pruning))

"""Short trainings with the Hugging Face Trainer: what a plain loop does, also when resumed."""

import json
import sys
from pathlib import Path
from typing import Any

import another_python
import pytest
import torch
from tiny_transformers import GPT2
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import lampfast
from lampfast import schedules

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from lampfast.transformers import PruningCallback  # noqa: E402

SCHEDULE = schedules.cubic(0.9, 10)
EVERY = 3
ROWS, BATCH = 24, 4
WEIGHTS = 16 * 48 + 16 * 16 + 2 * 16 * 64 + 11 * 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors this small are not worth a second one; tests/conftest.py puts it back."""
    torch.set_num_threads(1)


def _model() -> Any:
    """A GPT-2 of transformers' own Conv1D layers, with its head tied to the embedding."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))


def _layers(model: nn.Module) -> Any:
    return lampfast.report(model).layers


def _rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 11, (ROWS, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def _trainer(folder: Path, *callbacks: Any, model: Any = None, **settings: Any) -> Any:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    quiet |= {"logging_strategy": "no", "use_cpu": True}
    length = {"max_steps": 12, "per_device_train_batch_size": BATCH, "learning_rate": 0.01}
    return transformers.Trainer(
        model=model or _model(),
        args=transformers.TrainingArguments(str(folder), **{**quiet, **length, **settings}),
        train_dataset=_rows(),
        eval_dataset=_rows()[:4],
        callbacks=list(callbacks),
    )


def _optimizer(trainer: Any) -> torch.optim.Optimizer:
    return trainer.optimizer.optimizer  # type: ignore[no-any-return]


def _hooks(trainer: Any) -> int:
    optimizer = _optimizer(trainer)
    step, state = optimizer._optimizer_step_post_hooks, optimizer._optimizer_state_dict_post_hooks
    return len(step) + len(state)


def _steps(pruning: PruningCallback) -> list[int]:
    assert pruning.pruner is not None
    return [step for step, _ in pruning.pruner.history]


def _sparsity(step: int) -> float:
    return round(SCHEDULE(step // EVERY * EVERY) * WEIGHTS) / WEIGHTS


def _assert_same(value: Any, other: Any) -> None:
    assert type(value) is type(other)
    if isinstance(value, torch.Tensor):
        assert torch.equal(value, other)
    elif isinstance(value, dict):
        assert value.keys() == other.keys()
        for key in value:
            _assert_same(value[key], other[key])
    else:
        assert value == other


class _Plain(TrainerCallback):
    """What PruningCallback is compared with: multiplies the weights by their masks."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = {layer.name: model.get_parameter(layer.name) for layer in _layers(model)}
        self._masks = {name: torch.ones_like(weight) for name, weight in self._layers.items()}
        self._step = 0

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._step += 1
        for name, weight in self._layers.items():
            weight.mul_(self._masks[name])
        if self._step % EVERY == 0:
            lampfast.prune(self._layers, SCHEDULE(self._step))
            self._masks = {name: weight != 0 for name, weight in self._layers.items()}


@pytest.mark.parametrize("accumulated", [1, 4])
def test_training_equals_a_plain_loop(accumulated: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gradient_accumulation_steps": accumulated}
    trainer = _trainer(tmp_path, PruningCallback(SCHEDULE, every=EVERY), **settings)
    trainer.train()
    model = _model()
    plain = _trainer(tmp_path, _Plain(model), model=model, **settings)
    plain.train()
    _assert_same(trainer.model.state_dict(), model.state_dict())
    _assert_same(_optimizer(trainer).state_dict(), _optimizer(plain).state_dict())
    assert lampfast.report(trainer.model).sparsity == _sparsity(12)
    assert _hooks(trainer) == 0


class _Leaks(TrainerCallback):
    """Counts gradients of pruned weights, and how often it has looked at some."""

    def __init__(self) -> None:
        self.leaks, self.looks = 0, 0

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        for layer in _layers(model):
            weight = model.get_parameter(layer.name)
            assert weight.grad is not None
            gradients = weight.grad[weight == 0]
            self.leaks += int(gradients.count_nonzero())
            self.looks += gradients.numel()


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_are_masked(masked: bool, tmp_path: Path) -> None:
    pruning, watch = PruningCallback(SCHEDULE, every=EVERY, mask_gradients=masked), _Leaks()
    _trainer(tmp_path, pruning, watch, gradient_accumulation_steps=2).train()
    assert watch.looks > 0
    assert (watch.leaks == 0) is masked


class _Zero(TrainerCallback):
    """Sets a kept weight to zero at a step: it is not pruned, and the next step moves it."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, _: Any, state: Any, __: Any, *, model: Any, **___: Any) -> None:
        if state.global_step == self._step:
            weight = model.transformer.h[0].attn.c_attn.weight.data.view(-1)
            weight[weight.abs().argmax()] = 0.0


SAVING = {"save_strategy": "steps", "save_steps": 4}


@pytest.mark.parametrize("saved", [4, 8])
def test_resumed_equals_uninterrupted(saved: int, tmp_path: Path) -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(tmp_path / "first", pruning, _Zero(saved), **SAVING)
    trainer.train()

    folder = tmp_path / "first" / f"checkpoint-{saved}"
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == trainer.model.state_dict().keys() - {"lm_head.weight"}  # tied
    saved_model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    assert lampfast.report(saved_model).kept == round((1 - _sparsity(saved)) * WEIGHTS) - 1

    again = PruningCallback(SCHEDULE, every=EVERY)
    resumed = _trainer(tmp_path / "second", again)
    resumed.train(resume_from_checkpoint=str(folder))
    _assert_same(resumed.model.state_dict(), trainer.model.state_dict())
    _assert_same(_optimizer(resumed).state_dict(), _optimizer(trainer).state_dict())
    assert _steps(again) == [3, 6, 9, 12]
    assert _hooks(resumed) == 0


def test_a_dense_checkpoint_is_pruned_from_its_step_on(tmp_path: Path) -> None:
    _trainer(tmp_path, max_steps=8, **SAVING).train()
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(tmp_path, pruning)
    trainer.train(resume_from_checkpoint=True)
    assert _steps(pruning) == [9, 12]
    assert lampfast.report(trainer.model).sparsity == _sparsity(12)


def test_a_state_left_behind_is_not_taken_for_a_later_one(tmp_path: Path) -> None:
    _trainer(tmp_path, PruningCallback(SCHEDULE, every=EVERY), max_steps=4, **SAVING).train()
    # Without the callback the optimizer hands its state on, and nothing keeps the zeros.
    _trainer(tmp_path, max_steps=8, **SAVING).train(resume_from_checkpoint=True)
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(tmp_path, pruning)
    trainer.train(resume_from_checkpoint=True)
    assert _steps(pruning) == [9, 12]


def test_callbacks_for_layers_of_their_own(tmp_path: Path) -> None:
    def callbacks() -> list[PruningCallback]:
        return [
            PruningCallback(schedules.linear(0.5, 12), include="*.attn.c_attn.weight"),
            PruningCallback(schedules.constant(0.75), include="*.mlp.c_fc.weight"),
        ]

    trainer = _trainer(tmp_path, *callbacks(), **SAVING)
    trainer.train()
    kept = {layer.name: layer.kept for layer in lampfast.report(trainer.model).layers}
    assert kept["transformer.h.0.attn.c_attn.weight"] == 384
    assert kept["transformer.h.0.mlp.c_fc.weight"] == 256
    resumed = _trainer(tmp_path, *callbacks())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    _assert_same(resumed.model.state_dict(), trainer.model.state_dict())


class _FirstIsBest(TrainerCallback):
    """Makes the first evaluation the best one."""

    def on_evaluate(self, _: Any, state: Any, __: Any, *, metrics: Any, **___: Any) -> None:
        metrics["eval_loss"] = float(state.global_step)


def test_the_best_model_has_its_own_zeros(tmp_path: Path) -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4}
    trainer = _trainer(tmp_path, pruning, _FirstIsBest(), **SAVING, **best)
    trainer.train()
    assert lampfast.report(trainer.model).sparsity == _sparsity(4) < _sparsity(12)
    assert _hooks(trainer) == 0


class _Average(TrainerCallback):
    """Averages a model after each step."""

    def __init__(self, model: nn.Module) -> None:
        self.average: Any = AveragedModel(model, avg_fn=get_ema_avg_fn(0.8))  # type: ignore[no-untyped-call]

    def on_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.average.update_parameters(model)


class _Compare(TrainerCallback):
    """Last of all, compares the zeros of an average with those of the model after each step."""

    def __init__(self, average: nn.Module) -> None:
        self._average, self.steps = average, 0

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps += 1
        for layer in _layers(model):
            average = self._average.get_parameter(f"module.{layer.name}")
            assert torch.equal(average == 0, model.get_parameter(layer.name) == 0)


@pytest.mark.parametrize("is_function", [False, True])
def test_an_average_that_is_passed_has_the_zeros_of_the_model(
    is_function: bool, tmp_path: Path
) -> None:
    model = _model()
    other = _Average(model)
    copies = (lambda: [other.average]) if is_function else other.average
    pruning = PruningCallback(SCHEDULE, every=EVERY, copies=copies)
    compare = _Compare(other.average)
    _trainer(tmp_path, other, pruning, compare, model=model).train()
    assert compare.steps == 12
    assert lampfast.report(other.average).sparsity == _sparsity(12)


class _Restarting(_Plain):
    """Puts the initial values back after each pruning, with an optimizer that is as new."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._initial = {name: it.clone() for name, it in model.state_dict().items()}

    @torch.no_grad()
    def on_step_end(self, *_: Any, model: Any = None, optimizer: Any = None, **__: Any) -> None:
        if self._step % EVERY == 0 and self._step <= 12:
            model.load_state_dict(self._initial)
            for name, weight in self._layers.items():
                weight.mul_(self._masks[name])
            optimizer.optimizer.state.clear()


def test_each_pruning_rewinds_to_the_initial_values(tmp_path: Path) -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY, rewind="initial")
    trainer = _trainer(tmp_path, pruning, max_steps=14)
    trainer.train()
    assert _steps(pruning) == [3, 6, 9, 12]
    plain = _model()
    other = _trainer(tmp_path, _Restarting(plain), model=plain, max_steps=14)
    other.train()
    _assert_same(dict(trainer.model.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("given", [False, True])
def test_a_resumed_training_rewinds_to_the_same_values(given: bool, tmp_path: Path) -> None:
    def trainer() -> Any:
        rewind: Any = _model().state_dict() if given else "initial"
        pruning = PruningCallback(SCHEDULE, every=EVERY, rewind=rewind)
        return _trainer(tmp_path, pruning, save_strategy="steps", save_steps=4)

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    _assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


def test_initial_values_that_are_missing(tmp_path: Path) -> None:
    _trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    trainer = _trainer(tmp_path, PruningCallback(SCHEDULE, rewind="initial"))
    with pytest.raises(ValueError, match=r"from step 4 .*rewind=state_dict"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert _hooks(trainer) == 0


def test_a_training_that_raises_leaves_its_hooks_to_remove_or_the_next(tmp_path: Path) -> None:
    class Failing(TrainerCallback):
        def on_epoch_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 6:
                raise RuntimeError("out of luck")

    pruning, failing = PruningCallback(SCHEDULE, every=EVERY), Failing()
    trainer = _trainer(tmp_path, pruning, failing)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"):
            trainer.train()
        assert _hooks(trainer) == 2
    pruning.remove()
    assert _hooks(trainer) == 0
    trainer.remove_callback(failing)
    trainer.train()
    assert _steps(pruning) == [6, 9, 12]  # at 3, it was sparser from before
    assert _hooks(trainer) == 0


def test_the_state_of_other_layers_is_refused(tmp_path: Path) -> None:
    pruning = PruningCallback(SCHEDULE, every=EVERY)
    trainer = _trainer(tmp_path, pruning)
    group = trainer.create_optimizer().param_groups[0]
    group[pruning._key] = {"step": 0, "history": [], "zeros": {"no such layer": torch.ones(1)}}
    with pytest.raises(ValueError, match="layer"):
        trainer.train()
    assert _hooks(trainer) == 0


def test_one_that_is_removed_prunes_no_more(tmp_path: Path) -> None:
    class Removing(PruningCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.remove()

    pruning = Removing(SCHEDULE, every=EVERY)
    trainer = _trainer(tmp_path, pruning)
    trainer.train()
    assert _steps(pruning) == [3, 6]
    trainer.evaluate()
    assert "sparsity" not in trainer.state.log_history[-1]


def test_the_sparsity_is_logged(tmp_path: Path) -> None:
    logging = {"logging_strategy": "steps", "logging_steps": 4}
    trainer = _trainer(tmp_path, PruningCallback(SCHEDULE, every=EVERY), **logging, **SAVING)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    logged = {row["step"]: row["sparsity"] for row in state["log_history"]}
    assert logged == {4: SCHEDULE(3), 8: SCHEDULE(6), 12: SCHEDULE(12)}


def test_lampfast_alone_imports_no_trainer() -> None:
    look = "import lampfast, sys; print(sorted({'lightning', 'transformers'} & sys.modules.keys()))"
    done = another_python.run("-c", look)
    assert done.stdout == "[]\n", done.stderr


def test_arguments_are_checked_before_any_training() -> None:
    with pytest.raises(TypeError, match="schedule is a float"):
        PruningCallback(0.9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every is 0"):
        PruningCallback(SCHEDULE, every=0)
    with pytest.raises(ValueError, match="method='best'"):
        PruningCallback(SCHEDULE, method="best")  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["accelerate", "transformers"])
def test_import_says_which_extra_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or name == "lampfast.transformers":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}, .*'transformers'"):
        import lampfast.transformers  # noqa: F401

"""Mixtures of experts from transformers: their stacked experts are pruned as if they lay apart."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import lampfast
from lampfast.parameters import named

transformers = pytest.importorskip("transformers", minversion="5")  # experts lay apart before

_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Kind(NamedTuple):
    """A tiny model, and how its experts lie.

    Attributes:
        name: Of the configuration and the model in transformers.
        sizes: What the configuration needs beside _SIZES.
        halves: Cuts one expert's gate and up apart.
    """

    name: str
    sizes: dict[str, Any]
    halves: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def _rows(expert: torch.Tensor) -> tuple[torch.Tensor, ...]:
    n = expert.shape[0] // 2
    return expert[:n], expert[n:]


def _columns(expert: torch.Tensor) -> tuple[torch.Tensor, ...]:
    n = expert.shape[1] // 2
    return expert[:, :n], expert[:, n:]


def _every_second(expert: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return expert[:, ::2], expert[:, 1::2]


KINDS = {
    "Mixtral": Kind("Mixtral", {"intermediate_size": 12, "num_local_experts": 4}, _rows),
    "Qwen2Moe": Kind(
        "Qwen2Moe",
        {
            "intermediate_size": 12,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        _rows,
    ),
    "GptOss": Kind(
        "GptOss",
        {"intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        _every_second,
    ),
    "DeepseekV3": Kind(
        "DeepseekV3",
        {
            "intermediate_size": 12,
            "moe_intermediate_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
        _rows,
    ),
    "Llama4": Kind(
        "Llama4ForCausalLM",
        {
            "intermediate_size": 12,
            "intermediate_size_mlp": 12,
            "num_local_experts": 4,
            "head_dim": 8,
            "interleave_moe_layer_step": 1,
        },
        _columns,
    ),
    "Olmoe": Kind(
        "Olmoe", {"intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}, _rows
    ),
    "GraniteMoe": Kind(
        "GraniteMoe",
        {"intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2},
        _rows,
    ),
}


def _model(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    if kind.name == "Llama4ForCausalLM":
        config, cls = transformers.Llama4TextConfig, transformers.Llama4ForCausalLM
    else:
        config = getattr(transformers, f"{kind.name}Config")
        cls = getattr(transformers, f"{kind.name}ForCausalLM")
    model: nn.Module = cls(config(**_SIZES, **kind.sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # some start at zero
            parameter.copy_(torch.randn(parameter.shape) / 8)
    return model


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


def _unfused(model: nn.Module, kind: Kind) -> dict[str, torch.Tensor]:
    """The weights of a model whose experts lie apart, in the same order, and nothing else."""
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "embed_tokens" in name or parameter.ndim < 2:
            continue
        if ".router" in name or ".gate." in name or "shared_expert_gate" in name:
            continue
        if parameter.ndim == 2:
            if ".experts." not in name:  # elsewhere these are stacked biases
                weights[name] = parameter.detach().clone()
            continue
        for i, expert in enumerate(parameter.detach()):
            parts = kind.halves(expert) if "gate_up" in name else (expert,)
            for half, part in zip(
                (".gate", ".up") if len(parts) == 2 else ("",), parts, strict=True
            ):
                weights[f"{name}[{i}]{half}"] = part.clone()
    return weights


def _parts(masks: dict[str, torch.Tensor], kind: Kind) -> Iterator[torch.Tensor]:
    """Masks by parameter as masks by layer."""
    for name, mask in masks.items():
        if mask.ndim == 3:
            for expert in mask:
                yield from kind.halves(expert) if "gate_up" in name else (expert,)
        else:
            yield mask


def _train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tokens = torch.randint(3, 40, (2, 8))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("method", ["lamp", "global", "uniform", "erk"])
def test_masks_are_those_of_the_unfused_model(kind: Kind, method: Any) -> None:
    model = _model(kind)
    apart = _unfused(model, kind)
    assert list(named(model)) == list(apart)
    expected = lampfast.masks(apart, 0.7, method=method)
    masks = lampfast.masks(model, 0.7, method=method)
    for name, mask in masks.items():
        assert mask.shape == model.get_parameter(name).shape
    for found, (name, mask) in zip(_parts(masks, kind), expected.items(), strict=True):
        assert torch.equal(found, mask), name


def test_scores_are_those_of_the_unfused_model(kind: Kind) -> None:
    model = _model(kind)
    expected = lampfast.scores(_unfused(model, kind))
    for found, scores in zip(_parts(lampfast.scores(model), kind), expected.values(), strict=True):
        assert torch.equal(found, scores)


def test_prune_save_and_load(kind: Kind, tmp_path: Path) -> None:
    model = _model(kind)
    masks = lampfast.masks(model, 0.8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = lampfast.prune(model, 0.8)
    assert report.coverage > 0.7
    assert {left.reason for left in report.left_out} == {"embedding", "router"}
    for name, value in model.state_dict().items():
        expected = torch.where(masks[name], before[name], 0) if name in masks else before[name]
        assert torch.equal(value, expected), name

    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert lampfast.report(loaded).layers == lampfast.report(model).layers
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_zeros_last_while_it_trains(kind: Kind) -> None:
    model = _model(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    lampfast.prune(model, 0.8)
    zeros = {name: value == 0 for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = lampfast.masks(model, 0.8)
    with lampfast.keep_zeros(model, optimizer):
        for _ in range(3):
            _train(model, optimizer)
    for name, mask in masks.items():
        value = model.state_dict()[name]
        assert not value[zeros[name]].any()
        assert not torch.equal(value, before[name])
        assert torch.equal(value != 0, mask)


def test_a_pruner_prunes_and_resumes_from_what_was_saved(kind: Kind, tmp_path: Path) -> None:
    def trained(steps: int, resume: dict[str, Any] | None = None) -> tuple[nn.Module, Any]:
        model = _model(kind)
        if resume is not None:
            model = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]
            model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        schedule = lampfast.schedules.linear(0.8, 4)
        with lampfast.Pruner(model, optimizer, schedule, every=2) as pruner:
            if resume is not None:
                pruner.load_state_dict(resume)
            for _ in range(steps):
                torch.manual_seed(pruner.state_dict()["step"])
                _train(model, optimizer)
                pruner.step()
            assert pruner.report.sparsity == pytest.approx(
                0.2 * (steps + 2 * bool(resume)), abs=1e-3
            )
            return model, pruner.state_dict()

    stopped, state = trained(2)
    stopped.save_pretrained(tmp_path)  # type: ignore[operator]
    resumed, _ = trained(2, state)
    assert lampfast.report(resumed).sparsity == pytest.approx(0.8, abs=1e-3)
    through, _ = trained(4)
    for name, value in through.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_it_rewinds(kind: Kind) -> None:
    model = _model(kind)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    masks = lampfast.masks(model, 0.8)
    lampfast.prune(model, 0.8)
    lampfast.rewind(model, saved)
    for name, value in model.state_dict().items():
        expected = torch.where(masks[name], saved[name], 0) if name in masks else saved[name]
        assert torch.equal(value, expected), name

"""A checkpoint's masks are those of the model that transformers loads from it, bit for bit.

Models of many layouts: experts that lie unfused on disk, stacked, transposed or interleaved ones,
names that transformers changes, tied weights, heads that are not in the checkpoint.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import GROUPED, SIZES

import lampfast
from lampfast import checkpoints
from lampfast.checkpoints import origins

transformers = pytest.importorskip("transformers")


def _mixtral() -> Any:
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=3)
    return transformers.MixtralForCausalLM(config).bfloat16()


def _qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(**GROUPED, moe_intermediate_size=24, num_experts=3)
    return transformers.Qwen3MoeForCausalLM(config)


def _gpt_oss() -> Any:
    """Gate and up in every second column."""
    config = transformers.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=3)
    return transformers.GptOssForCausalLM(config).bfloat16()


def _llama4() -> Any:
    """Experts that multiply from the right."""
    config = transformers.Llama4TextConfig(
        **GROUPED, intermediate_size_mlp=48, num_local_experts=3, head_dim=8
    )
    return transformers.Llama4ForCausalLM(config).half()


def _llama_tied() -> Any:
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config).bfloat16()


def _bert() -> Any:
    config = transformers.BertConfig(**SIZES, max_position_embeddings=32)
    return transformers.BertModel(config)


def _gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def _vit() -> Any:
    """Its layers have other names in transformers 5 than in the files."""
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
    )
    return transformers.ViTForImageClassification(config)


def _olmo_hybrid() -> Any:
    """Kernels of q, k and v that lie in three tensors and are one in the model."""
    config = transformers.OlmoHybridConfig(
        **{**GROUPED, "num_hidden_layers": 2},
        layer_types=["linear_attention", "full_attention"],
        pad_token_id=0,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    return transformers.OlmoHybridForCausalLM(config).bfloat16()


def _nomic_bert() -> Any:
    """q, k and v that lie in one tensor and are three in the model."""
    return transformers.NomicBertModel(transformers.NomicBertConfig(**SIZES))


MODELS: list[Callable[[], Any]] = [
    _mixtral,
    _qwen3_moe,
    _gpt_oss,
    _llama4,
    _llama_tied,
    _bert,
    _gpt2,
    _vit,
    _olmo_hybrid,
    _nomic_bert,
]


def _saved(make: Callable[[], Any], folder: Path) -> Any:
    torch.manual_seed(0)
    try:
        model = make()
    except AttributeError as error:
        pytest.skip(str(error))  # not in this version of transformers
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((4 * torch.randn(parameter.shape)).round() / 4)  # many are equal
    model.save_pretrained(folder, max_shard_size="30KB")
    return type(model).from_pretrained(folder, dtype="auto")


@pytest.mark.filterwarnings(
    "ignore"
)  # transformers' own, and that most of a tiny model is left out
@pytest.mark.parametrize("make", MODELS, ids=[make.__name__.strip("_") for make in MODELS])
def test_agreement(make: Callable[[], Any], tmp_path: Path) -> None:
    model = _saved(make, tmp_path / "dense")
    expected, masks = lampfast.masks(model, 0.7), checkpoints.masks(tmp_path / "dense", 0.7)
    assert list(masks) == list(expected)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    report = checkpoints.prune(tmp_path / "dense", 0.7, out=tmp_path / "sparse")
    assert report == lampfast.prune(model, 0.7)
    pruned = type(model).from_pretrained(tmp_path / "sparse", dtype="auto")
    for name, tensor in model.state_dict().items():
        assert torch.equal(pruned.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [_mixtral, _gpt2, _olmo_hybrid, _gpt_oss])
@pytest.mark.parametrize(
    ("sparsity", "arguments"),
    [
        (None, {"pattern": "2:4"}),
        (0.6, {"pattern": ":8"}),
        (0.6, {"block": (4, 2)}),
        (0.4, {"block": (8, 16), "method": "uniform"}),
        (0.4, {"block": "row"}),
    ],
    ids=str,
)
def test_agreement_of_patterns_and_blocks(
    make: Callable[[], Any], sparsity: float | None, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Also where inputs lie in the first dimension, or the last."""
    model = _saved(make, tmp_path / "dense")
    expected = lampfast.masks(model, sparsity, **arguments)
    masks = checkpoints.masks(tmp_path / "dense", sparsity, **arguments)
    assert list(masks) == list(expected)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    checkpoints.prune(tmp_path / "dense", sparsity, out=tmp_path / "sparse", **arguments)
    lampfast.prune(model, sparsity, **arguments)
    pruned = type(model).from_pretrained(tmp_path / "sparse", dtype="auto").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(pruned[name], tensor), name


@pytest.mark.filterwarnings("ignore")
def test_layers_that_are_computed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _saved(_olmo_hybrid, tmp_path / "dense")
    monkeypatch.setattr(origins.Origins, "note", lambda *_: None)  # as if it were no torch.cat
    with pytest.raises(ValueError, match=r"conv1d\.weight' is computed from others"):
        checkpoints.report(tmp_path / "dense")


@pytest.mark.filterwarnings("ignore")
def test_patterns_mean_the_names_of_the_model(tmp_path: Path) -> None:
    model = _saved(_mixtral, tmp_path / "dense")
    include, exclude = "*experts*", "*[[]1].gate"
    expected = lampfast.masks(model, 0.7, include=include, exclude=exclude)
    masks = checkpoints.masks(tmp_path / "dense", 0.7, include=include, exclude=exclude)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    _saved(_bert, tmp_path / "dense")
    config = tmp_path / "dense" / "config.json"
    content = json.loads(config.read_text())
    content["architectures"] = ["BertForSequenceClassification"]
    config.write_text(json.dumps(content))
    report = checkpoints.report(tmp_path / "dense")
    reasons = {it.name: it.reason for it in report.left_out}
    assert reasons["classifier.weight"] == "not in the checkpoint"


@pytest.mark.filterwarnings("ignore")
def test_a_tied_weight_that_is_stored_twice_is_zeroed_twice(tmp_path: Path) -> None:
    _saved(_gpt2, tmp_path / "dense")
    file = min((tmp_path / "dense").glob("*.safetensors"))
    content: dict[str, torch.Tensor] = {}
    for part in sorted((tmp_path / "dense").glob("*.safetensors")):
        content |= load_file(part)
        part.unlink()
    (tmp_path / "dense" / "model.safetensors.index.json").unlink()
    content["lm_head.weight"] = content["transformer.wte.weight"].clone()
    save_file(content, file.with_name("model.safetensors"), {"format": "pt"})
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense")
    report = checkpoints.prune(tmp_path / "dense", 0.7, out=tmp_path / "sparse")
    assert report == lampfast.prune(model, 0.7)
    found = load_file(tmp_path / "sparse" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["transformer.wte.weight"])
    assert (found["lm_head.weight"] == 0).any()


@pytest.mark.filterwarnings("ignore")
def test_an_architecture_that_nobody_knows_goes_by_names(tmp_path: Path) -> None:
    _saved(_bert, tmp_path / "dense")
    config = tmp_path / "dense" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "architectures": ["NoSuchModel"]}))
    report = checkpoints.report(tmp_path / "dense")
    assert {it.reason for it in report.left_out} == {"embedding", "position table"}
    config.write_text(json.dumps({**content, "hidden_size": 40}))
    with pytest.raises(ValueError, match="transformers cannot load BertModel"):
        checkpoints.report(tmp_path / "dense")

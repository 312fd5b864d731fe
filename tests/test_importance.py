"""|W|·‖x‖: the norms of what each weight is multiplied with, and Wanda as a recipe."""

import re
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transformers import GROUPED
from torch import nn
from torch.nn import functional as F  # noqa: N812, its usual name

import lampfast
from lampfast.importance import wanda


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def norms(model: nn.Module, batches: Any, **choice: Any) -> dict[str, torch.Tensor]:
    """The norms themselves: the importance of weights of 1."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.fill_(1.0)
    return wanda(model, batches, **choice)


def norm(*inputs: torch.Tensor) -> torch.Tensor:
    """Of each feature over all tokens."""
    tokens = torch.cat([each.flatten(0, -2) for each in inputs])
    return tokens.square().sum(0).sqrt()


class Call(nn.Module):
    """A module that does what it is told with its weight."""

    def __init__(self, call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.call = call
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What it is told."""
        return self.call(inputs, self.fc.weight)


# The norms.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_linear(dtype: torch.dtype) -> None:
    one, two = nn.Linear(4, 3, dtype=dtype), nn.Linear(3, 2, bias=False, dtype=dtype)
    model = nn.Sequential(one, two)
    batches = [torch.randn(2, 5, 4, dtype=dtype), torch.randn(4, dtype=dtype)]
    found = wanda(model, batches)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {name: each.dtype for name, each in found.items()} == {
        "0.weight": wide,
        "1.weight": wide,
    }
    first = torch.cat([each.reshape(-1, 4) for each in batches])
    for name, layer, inputs in (("0", one, first), ("1", two, one(first))):
        expected = layer.weight.to(wide).abs() * inputs.double().norm(dim=0).to(wide)
        torch.testing.assert_close(found[f"{name}.weight"], expected.detach(), rtol=3e-7, atol=0)


CALLS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "linear": F.linear,
    "matmul": lambda x, w: x @ w.T,
    "from the left": lambda x, w: (w @ x[0].T).T,
    "vector": lambda x, w: w @ x.flatten(0, 1)[0],
    "mv": lambda x, w: torch.mv(w, x[0, 0]),
    "addmv": lambda x, w: torch.addmv(x.new_zeros(3), w, x[0, 0]),
    "addmm": lambda x, w: torch.addmm(x.new_zeros(3), x[0], w.T),
    "baddbmm": lambda x, w: torch.baddbmm(x.new_zeros(3), x, w.T.expand(2, 4, 3)),
    "einsum": lambda x, w: torch.einsum("oi,bti->bto", w, x),
    "in parts": lambda x, w: torch.cat([F.linear(x, part) for part in (w[:2], w[2:])], -1),
    "inference": lambda x, w: torch.inference_mode()(F.linear)(x, w),
    "inference, matmul": lambda x, w: torch.inference_mode()(torch.matmul)(x, w.T),
    "inference, einsum": lambda x, w: torch.inference_mode()(torch.einsum)("bti,oi->bto", x, w),
}


@pytest.mark.parametrize("call", CALLS)
def test_however_it_is_multiplied(call: str) -> None:
    inputs = torch.randn(2, 5, 4)
    met = inputs
    if call in ("from the left", "addmm"):
        met = inputs[:1]
    elif call in ("vector", "mv", "addmv"):
        met = inputs[:1, :1]
    torch.testing.assert_close(
        norms(Call(CALLS[call]), [inputs])["fc.weight"], norm(met).expand(3, 4)
    )


def test_parts_that_overlap_add_up() -> None:
    inputs = torch.randn(2, 5, 4)
    model = Call(lambda x, w: F.linear(x, w)[..., :2] + F.linear(2 * x, w[:2]))
    once, more = norm(inputs), norm(inputs, 2 * inputs)
    found = norms(model, [inputs])["fc.weight"]
    torch.testing.assert_close(found, torch.stack([more, more, once]))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (2, 6, 9, 8)),
        (nn.Conv2d(3, 4, (1, 3), padding="same", bias=False), (1, 3, 5, 6)),
        (nn.Conv2d(3, 4, 1), (3, 5, 6)),
        (nn.Conv1d(4, 4, 3, groups=4, padding_mode="circular", padding=2), (2, 4, 7)),
        (nn.Conv3d(2, 3, 2, dilation=2), (1, 2, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3, stride=3, groups=2), (2, 4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 4)),
    ],
    ids=str,
)
def test_convolutions(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """A weight alone, of 1, gives as outputs what it is multiplied with."""
    inputs = torch.randn(shape)
    found = norms(layer, [inputs])["weight"]
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    weight = layer.get_parameter("weight")
    for place in torch.randint(weight.numel(), (20,)).tolist():
        with torch.no_grad():
            weight.zero_().view(-1)[place] = 1.0
            expected = layer(inputs).norm()
        torch.testing.assert_close(found.view(-1)[place], expected)


def test_inference_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.LSTM(16, 5))
    inputs = torch.randn(2, 3, 6, 6)
    expected = wanda(model, [inputs])
    with torch.inference_mode():
        found = wanda(model, [inputs])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_channels_last() -> None:
    layer, inputs = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    expected = wanda(layer, [inputs])["weight"]
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    found = wanda(layer, [inputs])["weight"]
    assert found.stride() == layer.weight.stride()
    torch.testing.assert_close(found, expected)


def test_attention() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    query, key = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    found = norms(layer, [(query, query, query), (query, key, key)])
    of_query, of_key = norm(query, query), norm(query, key)
    expected = torch.cat([of_query.expand(8, 8), of_key.expand(16, 8)])
    torch.testing.assert_close(found["in_proj_weight"], expected)
    with torch.no_grad():
        layer.out_proj.weight.copy_(torch.eye(8))
        heads = [layer(query, each, each)[0] for each in (query, key)]
    torch.testing.assert_close(found["out_proj.weight"], norm(*heads).expand(8, 8))


def test_transformers_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    inputs = torch.randn(2, 5, 8)
    found = norms(layer, [inputs])
    assert list(found) == list(lampfast.masks(layer, 0.5))
    torch.testing.assert_close(found["self_attn.in_proj_weight"], norm(inputs).expand(24, 8))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("layer", [nn.LSTM(4, 3), nn.GRU(4, 3), nn.RNN(4, 3)], ids=str)
def test_recurrent(layer: nn.RNNBase) -> None:
    inputs = torch.randn(5, 2, 4)
    found = wanda(layer, [inputs])
    outputs = layer(inputs)[0].detach()
    states = torch.cat([torch.zeros(1, 2, 3), outputs[:-1]])
    for name, met in (("weight_ih_l0", inputs), ("weight_hh_l0", states)):
        expected = layer.get_parameter(name).abs().detach() * norm(met)
        torch.testing.assert_close(found[name], expected)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


def test_deep_recurrent() -> None:
    layer = nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2)
    assert list(wanda(layer, [torch.randn(5, 2, 4)])) == list(lampfast.masks(layer, 0.5))


def test_tied_to_an_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(tokens).sin())  # type: ignore[no-any-return]

    model, tokens = Tied(), torch.tensor([[0, 1, 5]])
    met = model.embed(tokens).sin().detach()
    found = wanda(model, [tokens])
    assert list(found) == list(lampfast.masks(model, 0.5))
    torch.testing.assert_close(found["head.weight"], model.embed.weight.abs().detach() * norm(met))
    lampfast.prune(model, 0.5, importance=found)


def test_compiled_and_autocast() -> None:
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    expected = wanda(model, [inputs])["weight"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wanda(model, [inputs])["weight"], expected)
    compiled = torch.compile(model, backend="eager")
    compiled(inputs)
    (found,) = wanda(compiled, [inputs]).values()  # type: ignore[arg-type]
    assert torch.equal(found, expected)


# Transformers.


def test_conv1d_is_transposed() -> None:
    transformers = pytest.importorskip("transformers")
    layer, inputs = transformers.pytorch_utils.Conv1D(3, 4), torch.randn(2, 5, 4)
    torch.testing.assert_close(norms(layer, [inputs])["weight"], norm(inputs)[:, None].expand(4, 3))


def _mixture(tokens: torch.Tensor) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A tiny mixture, with the inputs and choices of its experts for some tokens."""
    transformers = pytest.importorskip("transformers", minversion="5")
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=4)
    model = transformers.MixtralForCausalLM(config).eval()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[:2])
    )
    with torch.no_grad():
        model(tokens)
    hook.remove()
    return model, seen


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_experts(implementation: str) -> None:
    tokens = torch.randint(3, 40, (4, 16))
    model, [(hidden, choice)] = _mixture(tokens)
    model.set_experts_implementation(implementation)  # type: ignore[operator]
    found = wanda(model, [{"input_ids": tokens}])
    experts = model.get_submodule("model.layers.0.mlp.experts")
    gate_up, down = experts.get_parameter("gate_up_proj"), experts.get_parameter("down_proj")
    for i in range(4):
        met = hidden[(choice == i).any(-1)]
        expected = gate_up[i].abs() * norm(met)
        name = "model.layers.0.mlp.experts.gate_up_proj"
        torch.testing.assert_close(found[name][i], expected.detach())
        gate, up = F.linear(met, gate_up[i]).chunk(2, dim=-1)
        expected = down[i].abs() * norm(F.silu(gate) * up)
        name = "model.layers.0.mlp.experts.down_proj"
        torch.testing.assert_close(found[name][i], expected.detach())
    lampfast.prune(model, 0.5, importance=found)


def test_experts_that_are_copied_are_told_of() -> None:
    tokens = torch.randint(3, 40, (4, 16))
    model, _ = _mixture(tokens)
    model.set_experts_implementation("batched_mm")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"no batch reached layer '.*gate_up_proj\[0\].*'eager'"):
        wanda(model, [{"input_ids": tokens}])


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_an_expert_that_no_token_goes_to(implementation: str) -> None:
    tokens = torch.randint(3, 40, (1, 1))
    model, [(_, choice)] = _mixture(tokens)
    model.set_experts_implementation(implementation)  # type: ignore[operator]
    idle = next(i for i in range(4) if i not in choice)
    with pytest.raises(ValueError, match=rf"no batch reached layer '.*proj\[{idle}\]"):
        wanda(model, [{"input_ids": tokens}])
    others = [f"model.layers.0.mlp.experts.*[[]{i}]*" for i in range(4) if i not in choice]
    found = wanda(model, [{"input_ids": tokens}], exclude=others)
    lampfast.prune(model, 0.5, exclude=others, importance=found)


# What may go wrong.


def test_layers_that_no_batch_reaches() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"no batch reached layer 'spare.weight': .*exclude="):
        wanda(Lazy(), [torch.randn(2, 4)])
    assert list(wanda(Lazy(), [torch.randn(2, 4)], exclude="spare*")) == ["used.weight"]
    with pytest.raises(ValueError, match=r"no batch reached layer 'used\.bias'"):
        wanda(Lazy(), [torch.randn(2, 4)], include="used*")
    with pytest.raises(ValueError, match=r"no batch reached layer 'used\.weight'"):
        wanda(Lazy(), [torch.randn(0, 4)], exclude="spare*")
    with pytest.raises(ValueError, match=r"no batch reached layer 'weight'"):
        wanda(nn.Bilinear(3, 4, 2), [(torch.randn(2, 3), torch.randn(2, 4))])


def test_inputs_that_are_zero_are_told_of() -> None:
    first = nn.Linear(4, 3)
    nn.init.zeros_(first.weight)
    nn.init.zeros_(first.bias)
    model = nn.Sequential(first, nn.Linear(3, 2))
    with pytest.warns(UserWarning, match=r"all inputs of layer '1.weight' were zero") as warned:
        found = wanda(model, [torch.randn(2, 4)])
    assert warned[0].filename == __file__
    assert not found["1.weight"].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(value: float) -> None:
    first = nn.Linear(4, 3)
    with torch.no_grad():
        first.bias[1] = value
    model = nn.Sequential(first, nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"layer '1.weight' had an input .*position 1 of batches"):
        wanda(model, _then_bad(first.bias))


def _then_bad(bias: torch.Tensor) -> Iterator[torch.Tensor]:
    """A batch with which all is finite, and one with which it is not."""
    bad = bias.detach().clone()
    bias.data.zero_()
    yield torch.randn(2, 4)
    bias.data.copy_(bad)
    yield torch.randn(2, 4)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].eval()
    modes = [module.training for module in model.modules()]
    before = {name: each.clone() for name, each in model.state_dict().items()}
    for batches in ([torch.randn(3, 4)], [torch.randn(3, 5)], [torch.full((2, 4), torch.nan)]):
        try:
            found = wanda(model, batches)
        except (RuntimeError, ValueError):
            found = {}
        assert [module.training for module in model.modules()] == modes
        assert torch.is_grad_enabled()
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        assert not any(each.requires_grad for each in found.values())


def test_batches() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3, bias=False)

        def forward(self, inputs: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
            return self.fc(inputs * scale)  # type: ignore[no-any-return]

    inputs = torch.randn(5, 4)
    expected = norms(Two(), [inputs, inputs])["fc.weight"]
    for batches in (
        iter([inputs, (inputs,)]),
        [{"inputs": inputs, "scale": -1.0}, [inputs]],
        [UserDict(inputs=inputs), inputs],
        [torch.cat([inputs, inputs])],
    ):
        torch.testing.assert_close(norms(Two(), batches)["fc.weight"], expected)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "batches is empty"),
        (torch.randn(2, 4), TypeError, r"batches is a Tensor; .*\[batch\]"),
        ({"inputs": torch.randn(2, 4)}, TypeError, r"batches is a dict; .*\[batch\]"),
        (None, TypeError, "batches is a NoneType"),
        ([torch.randn(2, 4), "text"], TypeError, "batches has a str at position 1, 'text'"),
        ([{1: torch.randn(2, 4)}], TypeError, "batches has a dict at position 0"),
    ],
    ids=str,
)
def test_wrong_batches(batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wanda(nn.Linear(4, 3), batches)


def test_wrong_model() -> None:
    with pytest.raises(TypeError, match=r"model is a dict; pass a torch\.nn\.Module"):
        wanda({"weight": torch.ones(2, 2)}, [torch.ones(2, 2)])  # type: ignore[arg-type]


# Wanda.


def plain_wanda(layer: nn.Linear, inputs: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The mask as Wanda's own code makes it: of each row the least |W|·‖x‖ go."""
    metric = layer.weight.abs() * inputs.reshape(-1, layer.in_features).norm(dim=0)
    order = metric.sort(dim=1, stable=True).indices
    mask = torch.ones_like(metric, dtype=torch.bool)
    return mask.scatter(1, order[:, : int(layer.in_features * sparsity)], False)


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_wanda(sparsity: float) -> None:
    one, two = nn.Linear(64, 40), nn.Linear(40, 12)
    model = nn.Sequential(one, nn.GELU(), two)
    inputs = torch.randn(7, 9, 64) * torch.rand(64)
    met = {"0.weight": inputs, "2.weight": model[:2](inputs).detach()}
    importance = wanda(model, [inputs[:3], inputs[3:]])
    masks = lampfast.masks(
        model, sparsity, method="uniform", stacked="*weight", importance=importance
    )
    for name, layer in (("0.weight", one), ("2.weight", two)):
        expected = plain_wanda(layer, met[name], sparsity)
        assert torch.equal(masks[name].sum(1), expected.sum(1))
        assert torch.equal(masks[name], expected)


def test_the_recipe_of_the_docs() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**GROUPED)
    model = transformers.LlamaForCausalLM(config)
    page = Path(__file__).parents[1] / "docs" / "language-models.md"
    (recipe,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    tokens = {"input_ids": torch.randint(3, 40, (1, 20))}
    exec(recipe, {"model": model, "texts": ["", ""], "tokenizer": lambda *_, **__: tokens})
    for name, weight in model.named_parameters():
        pruned = (weight == 0).sum(-1) * 2
        assert (pruned == (weight.shape[-1] if "_proj" in name else 0)).all()

"""Real modules through their lives: pruned, copied, saved, loaded, trained; only zeros are new."""

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from compare import assert_same_masks
from torch import nn
from torch.nn import functional

import lampfast
from lampfast import reference

# oneDNN has no LSTM with projections, and torch says so once.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, and a 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class _ResNet(nn.Sequential):
    """A small residual network for 3 x 8 x 8 images."""

    def __init__(self) -> None:
        stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        blocks = _Block(4, 4, 1), _Block(4, 8, 2)
        super().__init__(
            stem, nn.BatchNorm2d(4), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        )

    def example(self) -> torch.Tensor:
        return torch.randn(2, 3, 8, 8)


class _LanguageModel(nn.Module):
    """A transformer encoder whose decoder is tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.Linear(8, 11)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(self.embedding(tokens)))  # type: ignore[no-any-return]

    def example(self) -> torch.Tensor:
        return torch.randint(11, (2, 6))


class _Recurrent(nn.Module):
    """An LSTM in both directions with projections, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]

    def example(self) -> torch.Tensor:
        return torch.randn(5, 2, 4)


class _Attention(nn.Module):
    """Attention with packed projections, then with separate ones."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.MultiheadAttention(8, 2, batch_first=True)
        self.separate = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.packed(x, x, x)
        return self.separate(y, x[..., :4], x[..., 4:])[0]  # type: ignore[no-any-return]

    def example(self) -> torch.Tensor:
        return torch.randn(2, 5, 8)


Model = _ResNet | _LanguageModel | _Recurrent | _Attention
MODELS: dict[str, tuple[type[Model], list[str]]] = {
    "resnet": (
        _ResNet,
        [
            "0.weight",
            *("2.conv1.weight", "2.conv2.weight"),
            *("3.conv1.weight", "3.conv2.weight", "3.shortcut.0.weight"),
            "6.weight",
        ],
    ),
    "language model": (
        _LanguageModel,
        [
            f"encoder.layers.{i}.{name}.weight".replace("in_proj.", "in_proj_")
            for i in range(2)
            for name in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
        ]
        + ["decoder.weight"],
    ),
    "lstm": (
        _Recurrent,
        [
            f"lstm.weight_{kind}_l{i}{direction}"
            for i in range(2)
            for direction in ("", "_reverse")
            for kind in ("ih", "hh", "hr")
        ]
        + ["head.weight"],
    ),
    "attention": (
        _Attention,
        [
            *("packed.in_proj_weight", "packed.out_proj.weight"),
            *(f"separate.{kind}_proj_weight" for kind in "qkv"),
            "separate.out_proj.weight",
        ],
    ),
}
models = pytest.mark.parametrize(("make", "names"), MODELS.values(), ids=MODELS)


def make_seeded(make: type[Model]) -> Model:
    torch.manual_seed(0)
    return make()


def save_and_load(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: Model = torch.load(file, weights_only=False)
    return loaded


def save_and_load_state(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = type(model)()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def assign_state(model: Model) -> Model:
    fresh = type(model)()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    if isinstance(fresh, _LanguageModel):
        fresh.decoder.weight = fresh.embedding.weight
    return fresh


LIVES: list[Callable[[Model], Model]] = [
    copy.deepcopy,
    save_and_load,
    save_and_load_state,
    assign_state,
]


@models
@pytest.mark.parametrize("s", [0.5, 0.9])
def test_only_layers_change_and_only_to_zero(make: type[Model], names: list[str], s: float) -> None:
    model = make_seeded(make)
    before = copy.deepcopy(model.state_dict())
    objects = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    layers = {name: before[name] for name in names}
    expected = reference.masks(layers, s)
    assert_same_masks(lampfast.masks(model, s), expected)

    report = lampfast.prune(model, s)
    assert [layer.name for layer in report.layers] == names
    numel = sum(layer.numel() for layer in layers.values())
    assert (report.numel, report.kept) == (numel, numel - round(s * numel))
    assert lampfast.report(model) == report

    after = model.state_dict()
    assert list(after) == list(before)
    assert objects == {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    if isinstance(model, _LanguageModel):
        expected["embedding.weight"] = expected["decoder.weight"]
    for name, value in after.items():
        mask = expected.get(name)
        assert torch.equal(value, before[name] if mask is None else before[name] * mask), name


@models
@pytest.mark.parametrize("live", LIVES)
def test_a_copy_is_pruned_as_the_original(
    make: type[Model], names: list[str], live: Callable[[Model], Model]
) -> None:
    model = make_seeded(make)
    twin = live(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = lampfast.masks(model, 0.7)
    assert list(masks) == names
    report = lampfast.prune(twin, 0.7)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the original changed with its copy"
    assert lampfast.prune(model, 0.7) == report
    for name, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@models
@pytest.mark.parametrize("live", LIVES)
def test_a_pruned_model_lives_on(
    make: type[Model], names: list[str], live: Callable[[Model], Model]
) -> None:
    model = make_seeded(make)
    x = model.example()
    report = lampfast.prune(model, 0.8)
    twin = live(model)
    assert list(twin.state_dict()) == list(model.state_dict()) == list(make().state_dict())
    assert lampfast.report(twin) == report
    assert torch.equal(model.eval()(x), twin.eval()(x))
    assert [layer.name for layer in lampfast.prune(twin, 0.9).layers] == names
    assert lampfast.report(model) == report


@models
def test_training_goes_on(make: type[Model], names: list[str]) -> None:
    model = make_seeded(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = model.example()
    for s in (0.3, 0.6):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        report = lampfast.prune(model, s)
        assert report.kept == report.numel - round(s * report.numel)
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())
        assert all(model.get_parameter(name).grad is not None for name in names)
    assert torch.isfinite(model(x)).all()


@models
def test_a_stale_backward_is_caught(make: type[Model], names: list[str]) -> None:
    model = make_seeded(make)
    loss = model(model.example()).square().mean()
    lampfast.prune(model, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@models
def test_the_state_dict_is_the_model(make: type[Model], names: list[str]) -> None:
    model, twin = make_seeded(make), make_seeded(make)
    report = lampfast.prune(model.state_dict(), 0.6, include=names)
    assert lampfast.prune(twin, 0.6) == report
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


@models
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(make: type[Model], names: list[str], dtype: torch.dtype) -> None:
    model = make_seeded(make).to(dtype)
    layers = {name: model.get_parameter(name).detach().clone() for name in names}
    assert_same_masks(lampfast.masks(model, 0.6), reference.masks(layers, 0.6))
    assert lampfast.prune(model, 0.6) == lampfast.report(model)


def test_channels_last() -> None:
    model, twin = make_seeded(_ResNet), make_seeded(_ResNet)
    twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert lampfast.prune(model, 0.8) == lampfast.prune(twin, 0.8)
    for name, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert twin.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)


def test_the_recurrent_kernel_sees_the_zeros() -> None:
    """An LSTM keeps its weights in a list of its own as well."""
    model = make_seeded(_Recurrent)
    lampfast.prune(model, 1.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.zero_()
    assert not torch.count_nonzero(model(model.example()))


def _compiled(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():  # of torch's own imports
        warnings.simplefilter("ignore")
        return torch.compile(model, backend="eager")  # type: ignore[return-value]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": _compiled,
    "parallel": nn.DataParallel,
    "both": lambda model: _compiled(nn.DataParallel(model)),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@wrappers
def test_a_wrapped_model_has_the_names_of_its_own(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model, twin = make_seeded(_ResNet), make_seeded(_ResNet)
    wrapped = wrap(model)
    names = MODELS["resnet"][1]
    masks = lampfast.masks(wrapped, 0.7)
    assert list(masks) == names
    assert [layer.name for layer in lampfast.report(wrapped).layers] == names
    chosen = lampfast.report(wrapped, include="2.*.weight", exclude="*.conv2.weight")
    names = ["2.conv1.weight", "2.bn1.weight", "2.bn2.weight"]
    assert [layer.name for layer in chosen.layers] == names
    lampfast.apply(twin, masks)
    lampfast.prune(wrapped, 0.7)
    assert lampfast.report(model) == lampfast.report(twin)
    lampfast.apply(wrapped, lampfast.masks(twin, 0.9))
    lampfast.prune(twin, 0.9)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


@wrappers
def test_states_go_between_a_wrapped_model_and_a_plain_one(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    plain = make_seeded(_ResNet)
    start = copy.deepcopy(plain.state_dict())
    for first, second in [(plain, wrap(make_seeded(_ResNet))), (wrap(plain), make_seeded(_ResNet))]:
        schedule = lampfast.schedules.constant(0.8)
        pruners = [
            lampfast.Pruner(model, torch.optim.SGD(model.parameters()), schedule)
            for model in (first, second)
        ]
        pruners[0].step()
        pruners[1].load_state_dict(pruners[0].state_dict())
        assert lampfast.report(first) == lampfast.report(second)
        for saved in (start, copy.deepcopy(wrap(make_seeded(_ResNet)).state_dict())):
            report = lampfast.rewind(first, saved if first is not plain else start)
            assert report.sparsity == pytest.approx(0.8, abs=1e-3)
        for pruner in pruners:
            pruner.remove()
    saved = copy.deepcopy(_compiled(make_seeded(_ResNet)).state_dict())
    lampfast.rewind(plain, saved)


@wrappers
def test_groups_of_a_wrapped_model_lie_along_its_inputs(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(nn.ConvTranspose1d(8, 4, 2), nn.Sequential(nn.ConvTranspose1d(4, 8, 2)))
    expected = lampfast.masks(model, pattern="2:4")
    assert (expected["0.weight"].reshape(2, 4, 4, 2).sum(1) == 2).all()
    assert_same_masks(lampfast.masks(wrap(model), pattern="2:4"), expected)
    model.add_module("1", _compiled(model[1]))
    assert_same_masks(lampfast.masks(model, pattern="2:4"), expected)


def test_a_compiled_part_of_a_model_has_no_name() -> None:
    model, twin = make_seeded(_ResNet), make_seeded(_ResNet)
    model.add_module("2", _compiled(model.get_submodule("2")))
    assert list(lampfast.masks(model, 0.5)) == MODELS["resnet"][1]
    for include in ("2.conv1.weight", "*conv1.weight"):
        assert lampfast.report(model, include=include) == lampfast.report(twin, include=include)
    assert lampfast.prune(model, 0.7) == lampfast.prune(twin, 0.7)
    assert torch.equal(model.get_parameter("2.conv2.weight"), twin.get_parameter("2.conv2.weight"))

"""What is let in and what is refused, before anything changes; whose memory counts once."""

import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from refusal import Weight, refused
from torch import nn

import lampfast
from lampfast import _arguments
from lampfast._engine import protection, views

VERBS: dict[str, Callable[..., object]] = {
    "prune": lambda model, **choice: lampfast.prune(model, 0.5, **choice),
    "masks": lambda model, **choice: lampfast.masks(model, 0.5, **choice),
    "scores": lampfast.scores,
    "report": lampfast.report,
}
verbs = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
reading_verbs = pytest.mark.parametrize(
    "verb", [VERBS[name] for name in ("masks", "scores", "report")], ids=list(VERBS)[1:]
)


class _Wrapper(torch.Tensor):
    """A tensor subclass that holds its values in another tensor, as DTensor does."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "_Wrapper":
        make = torch.Tensor._make_wrapper_subclass
        return make(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, *_: object) -> object:
        raise NotImplementedError


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop them
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype in torch
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def freed() -> torch.Tensor:
    tensor = torch.ones(8)[4:]
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk() -> torch.Tensor:
    tensor = torch.ones(4, 4)[:, :2]
    tensor.untyped_storage().resize_(40)
    return tensor


def masked() -> Any:
    return np.ma.MaskedArray(np.ones(3, np.float32), mask=[True, False, False])


class _Foreign:
    """An array of another library, as JAX's are."""

    def __array__(self, *_: object, **__: object) -> npt.NDArray[Any]:
        return np.ones(3, np.float32)


def sparse_csr() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a beta in torch
        return torch.eye(3).to_sparse_csr()


UNFIT: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "integers": (lambda: torch.ones(3, dtype=torch.int64), ("torch.int64", "exclude=")),
    "bools": (lambda: torch.ones(3, dtype=torch.bool), ("torch.bool", "exclude=")),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), ("torch.complex64", "float32")),
    "another float8": (
        lambda: torch.ones(3).to(torch.float8_e4m3fnuz),
        ("torch.float8_e4m3fnuz", "float8_e4m3fn, float8_e5m2", "convert"),
    ),
    "quantised": (quantised, ("torch.qint8", "convert")),
    "sparse": (lambda: torch.eye(3).to_sparse(), ("sparse", ".to_dense()")),
    "sparse csr": (sparse_csr, ("sparse", ".to_dense()")),
    "nested": (nested, ("nested", ".to_dense()")),
    "meta": (lambda: torch.ones(3, device="meta"), ("meta", "load")),
    "lazy": (lambda: nn.LazyLinear(3).weight, ("not initialised", "run its lazy module")),
    "wrapper": (lambda: _Wrapper(torch.ones(3)), ("_Wrapper", "plain tensors")),
    "negated": (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, ("resolve_neg",)),
    "freed": (freed, ("storage was freed", "restore")),
    "shrunk": (shrunk, ("beyond its memory", "resized to 40 bytes", "copy")),
    "implied zeros": (lambda: torch._efficientzerotensor(3), ("no memory of its own", "copy")),
    "functional": (
        lambda: torch._to_functional_tensor(torch.ones(3)),
        ("no memory of its own", "functionalize", "copy"),
    ),
    "many dimensions": (lambda: torch.ones([1] * 65), ("65 dimensions", "64", ".flatten()")),
    "masked array": (masked, ("mask", ".filled(0)")),
    "array of another library": (_Foreign, ("_Foreign", "numpy.asarray(x)", "from_dlpack")),
    "number": (lambda: 1.0, ("float", "torch tensor or a numpy array", "exclude=")),
    "module": (lambda: nn.Linear(2, 2), ("Linear", "module by itself", '(module, "weight")')),
    "pair": (lambda: ("fc", torch.ones(2)), ("tuple", "dict(pairs)")),
    "nothing": (lambda: None, ("NoneType", "torch tensor or a numpy array", "exclude=")),
    "numpy integers": (lambda: np.ones(3, np.int32), ("int32", "exclude=")),
    "numpy long double": (lambda: np.ones(3, np.longdouble), ("dtype", "convert")),
    "numpy foreign bytes": (lambda: np.ones(3, ">f4"), ("'>f4'", "order", ".astype('<f4')")),
    "numpy unaligned": (
        lambda: np.frombuffer(bytes(13), np.uint8)[1:].view(np.float32),
        ("aligned", "copy"),
    ),
    "numpy in records": (
        lambda: np.zeros(3, np.dtype([("w", "f4"), ("n", "i2")]))["w"],
        ("aligned", "copy"),
    ),
}


@verbs
@pytest.mark.parametrize(("make", "words"), UNFIT.values(), ids=UNFIT)
def test_unfit_weights(
    verb: Callable[..., object], make: Callable[[], Any], words: tuple[str, ...]
) -> None:
    good = torch.randn(10)
    model = {"good": good, "bad": make()}
    with refused(TypeError, "layer 'bad'", *words, keeps=[good]):
        verb(model)


@pytest.mark.parametrize("verb", [VERBS[v] for v in ("prune", "masks", "scores")])
@pytest.mark.parametrize(("make", "words"), UNFIT.values(), ids=UNFIT)
def test_unfit_importances(
    verb: Callable[..., object], make: Callable[[], Any], words: tuple[str, ...]
) -> None:
    weight = torch.randn(3)
    with refused(TypeError, "importance of layer 'fc'", *words, keeps=[weight]):
        verb({"fc": weight}, importance={"fc": make()})


def laid_out(value: float, dtype: torch.dtype) -> dict[str, Weight]:
    """The value at (1, 2, 0, 1) of tensors and arrays in several memory formats."""
    tensor = torch.ones(2, 3, 2, 2)
    tensor[1, 2, 0, 1] = value
    tensor = tensor.to(dtype)
    weights: dict[str, Weight] = {
        "contiguous": tensor,
        "parameter": nn.Parameter(tensor.clone()),
        "channels_last": tensor.contiguous(memory_format=torch.channels_last),
        "transposed": tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    }
    if dtype in (torch.float32, torch.float64, torch.float16):
        weights["array"] = tensor.numpy().copy()
        weights["flipped array"] = tensor.numpy()[::-1, :, ::-1].copy()[::-1, :, ::-1]
    return weights


NONFINITE = [
    (dtype, value)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2)
    for value in (float("nan"), float("inf"), -float("inf"))
] + [(torch.float8_e4m3fn, float("nan"))]


@verbs
@pytest.mark.parametrize(("dtype", "value"), NONFINITE)
def test_nonfinite_weights(verb: Callable[..., object], dtype: torch.dtype, value: float) -> None:
    for bad in laid_out(value, dtype).values():
        good = torch.randn(10)
        words = (f"layer 'bad' has {value} at index (1, 2, 0, 1)", "exclude=")
        with refused(ValueError, *words, keeps=[good, bad]):
            verb({"good": good, "bad": bad})


@pytest.mark.parametrize("verb", [VERBS[v] for v in ("prune", "masks", "scores")])
def test_nonfinite_with_importance(verb: Callable[..., object]) -> None:
    nan, good = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])
    with refused(ValueError, "importance of layer 'fc' has nan at index (1,)", keeps=[good]):
        verb({"fc": good}, importance={"fc": nan})
    with refused(ValueError, "layer 'fc' has nan at index (1,)", keeps=[nan]):
        verb({"fc": nan}, importance={"fc": good})


@verbs
def test_a_nonfinite_scalar(verb: Callable[..., object]) -> None:
    with refused(ValueError, "layer 'scale' has inf at index ()", keeps=[]):
        verb({"scale": torch.tensor(float("inf"))})


@pytest.mark.parametrize(
    ("s", "k"),
    [
        (0, 0),
        (10, 10),
        (1, 1),
        (1.0, 10),
        (0.0, 0),
        (-0.0, 0),
        (0.25, 2),  # Python rounds half to even
        (0.35, 4),
        (np.float64(0.5), 5),
        (np.float32(0.5), 5),
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (Fraction(1, 2), 5),
    ],
)
def test_count(s: float, k: int) -> None:
    assert _arguments.count("sparsity", s, 10) == k
    assert lampfast.prune([torch.ones(10)], s).kept == 10 - k


@pytest.mark.parametrize(
    ("s", "words"),
    [
        (90.0, ("sparsity is 90.0", "0.0 to 1.0", "0.9 for 90 %")),
        (-0.1, ("sparsity is -0.1", "0.0 to 1.0")),
        (1.0000001, ("sparsity is 1.0000001", "0.0 to 1.0")),
        (float("nan"), ("sparsity is nan", "0.0 to 1.0")),
        (float("inf"), ("sparsity is inf", "0.0 to 1.0")),
        (np.float32(2), ("sparsity is 2.0", "0.0 to 1.0")),
        (11, ("sparsity is 11", "0 to 10", "a float")),
        (-1, ("sparsity is -1", "0 to 10", "a float")),
    ],
)
@pytest.mark.parametrize("verb", [lampfast.prune, lampfast.masks])
def test_sparsity_out_of_range(
    verb: Callable[..., object], s: float, words: tuple[str, ...]
) -> None:
    weight = torch.randn(10)
    with refused(ValueError, *words, keeps=[weight]):
        verb([weight], s)


@pytest.mark.parametrize(
    "s", [True, np.bool_(True), "0.9", 0.9j, Decimal("0.9"), torch.tensor(0.9), [0.9]]
)
@pytest.mark.parametrize("verb", [lampfast.prune, lampfast.masks])
def test_sparsity_of_another_type(verb: Callable[..., object], s: Any) -> None:
    weight = torch.randn(10)
    with refused(
        TypeError, f"sparsity is a {type(s).__name__}", "a float", "an int", keeps=[weight]
    ):
        verb([weight], s)


def tied_views(of: torch.Tensor) -> dict[str, Weight]:
    """Other names for the memory of a contiguous (4, 6) tensor."""
    return {
        "itself": of,
        "detached": of.detach(),
        "parameter": nn.Parameter(of),
        "transposed": of.T,
        "flat": of.view(-1),
        "split": of.view(2, 2, 6),
        "array": of.numpy(),
        "flipped array": of.numpy()[:, ::-1],
    }


@verbs
@pytest.mark.parametrize("name", tied_views(torch.ones(4, 6)))
def test_tied_weights_count_once_under_their_first_name(
    verb: Callable[..., object], name: str
) -> None:
    weight = torch.randn(4, 6)
    alone = weight.clone()
    model = {"a": torch.ones(3), "first": weight, "tied": tied_views(weight)[name]}
    expected = {"a": torch.ones(3), "first": alone}
    assert str(verb(model)) == str(verb(expected))
    assert torch.equal(weight, alone)


@verbs
def test_tied_slices(verb: Callable[..., object]) -> None:
    weight = torch.randn(4, 6)
    model = {"first": weight[:, :3], "tied": weight.T[:3], "other": weight[:, 3:]}
    expected = {"first": weight[:, :3].clone(), "other": weight[:, 3:].clone()}
    assert str(verb(model)) == str(verb(expected))


def overlaps(of: torch.Tensor) -> dict[str, tuple[Weight, Weight]]:
    """Pairs of views of a (4, 6) tensor that share memory without being the same."""
    return {
        "contained": (of, of[1:2]),
        "partial": (of[:3], of[2:]),
        "columns": (of[:, :4], of[:, 3:]),
        "interleaved": (of[:, ::2], of[:, ::3]),
        "another dtype": (of, of.view(torch.bfloat16)),
        "another dtype of the same size": (of.view(torch.float16), of.view(torch.bfloat16)),
        "array": (of, of.numpy()[0]),
    }


@verbs
@pytest.mark.parametrize("name", overlaps(torch.ones(4, 6)))
def test_weights_that_share_part_of_their_memory(verb: Callable[..., object], name: str) -> None:
    weight = torch.ones(4, 6)
    one, two = overlaps(weight)[name]
    words = ("layers 'one' and 'two'", "share part of their memory", "copy", "exclude=")
    with refused(ValueError, *words, keeps=[weight]):
        verb({"zero": torch.ones(2), "one": one, "between": torch.ones(5), "two": two})


@reading_verbs
def test_a_weight_and_its_expansion(verb: Callable[..., object]) -> None:
    weight = torch.ones(4, 1)
    with refused(ValueError, "layers 'one' and 'two'", keeps=[weight]):
        verb({"one": weight, "two": weight.expand(4, 2)})


def test_disjoint_views_of_one_storage_are_layers_of_their_own() -> None:
    flat = torch.randn(48)
    rows, columns = flat[:24].view(4, 6), flat[24:].view(4, 6)
    model = {
        "rows": rows[:2],
        "more rows": rows[2:],
        "left": columns[:, :3],
        "even": columns[:, 3::2],
        "odd": columns[:, 4::2],
        "empty": flat[:0],
    }
    expected = {name: view.clone() for name, view in model.items()}
    assert str(lampfast.prune(model, 0.5)) == str(lampfast.prune(expected, 0.5))
    assert all(torch.equal(model[name], expected[name]) for name in model)


def test_read_only_arrays() -> None:
    array = np.array([3.0, 1.0, 2.0], np.float32)
    array.flags.writeable = False
    with refused(ValueError, "layer 'fc' is a read-only array", "copy", keeps=[array]):
        lampfast.prune({"fc": array}, 1)
    assert lampfast.masks({"fc": array}, 1)["fc"].tolist() == [True, False, True]
    assert lampfast.scores({"fc": array})["fc"].argmax() == 0
    assert lampfast.report({"fc": array}).kept == 3


def self_sharing() -> dict[str, Weight]:
    return {
        "expanded": torch.randn(3, 1).expand(3, 4),
        "scalar expanded": torch.tensor(2.0).expand(5),
        "windows": torch.randn(10).unfold(0, 4, 1),
        "broadcast": np.broadcast_to(np.float32(3), (2, 3)),
        "array windows": np.lib.stride_tricks.as_strided(
            np.arange(10, dtype=np.float32), (3, 4), (4, 4)
        ),
    }


@pytest.mark.parametrize("name", self_sharing())
def test_weights_whose_elements_share_memory(name: str) -> None:
    weight = self_sharing()[name]
    copy = weight.clone() if isinstance(weight, torch.Tensor) else weight.copy()
    with refused(ValueError, "layer '0'", "copy", keeps=[weight]):
        lampfast.prune([weight], 1)
    assert np.array_equal(lampfast.masks([weight], 0.5)["0"], lampfast.masks([copy], 0.5)["0"])
    assert np.array_equal(lampfast.scores([weight])["0"], lampfast.scores([copy])["0"])
    assert lampfast.report([weight]) == lampfast.report([copy])


def test_odd_strides_that_share_nothing_are_pruned() -> None:
    weight = torch.arange(1.0, 9.0).as_strided((2, 3), (3, 2))  # elements 0 2 4 3 5 7
    lampfast.prune([weight], 3)
    assert weight.tolist() == [[0.0, 0.0, 5.0], [0.0, 6.0, 8.0]]


@pytest.mark.parametrize("verb", [VERBS[v] for v in ("prune", "masks", "scores")])
def test_importance_by_other_names(verb: Callable[..., object]) -> None:
    model = {"a": torch.randn(3), "b": torch.randn(3)}
    keeps = model.values()
    words = ("missing: ['b']", "unknown: ['c']", "report")
    with refused(ValueError, *words, keeps=keeps):
        verb(model, importance={"a": torch.ones(3), "c": torch.ones(3)})
    with refused(ValueError, "missing: ['a', 'b']", "unknown: []", keeps=keeps):
        verb(model, importance={})
    with refused(ValueError, "missing: []", "unknown: ['b']", keeps=keeps):
        verb(model, exclude="b", importance=model)


@pytest.mark.parametrize("verb", [VERBS[v] for v in ("prune", "masks", "scores")])
def test_importance_of_another_kind(verb: Callable[..., object]) -> None:
    weight = torch.randn(2, 3)
    with refused(TypeError, "importance is a list", "mapping", keeps=[weight]):
        verb([weight], importance=[torch.ones(2, 3)])
    words = ("importance of layer '0'", "(3, 2)", "(2, 3)")
    with refused(ValueError, *words, keeps=[weight]):
        verb([weight], importance={"0": torch.ones(3, 2)})


def test_importance_that_pruning_would_change() -> None:
    one, two = torch.randn(3, 3), torch.randn(3, 3)
    model = {"one": one, "two": two}
    importances: list[dict[str, Weight]] = [
        {"one": two, "two": one},
        {"one": one.T, "two": two},
        {"one": torch.ones(3, 3), "two": two.numpy()[::-1]},
        {"one": two[:1].expand(3, 3), "two": two},
    ]
    for importance in importances:
        with refused(ValueError, "importance of layer", "shares memory", "copy", keeps=[one, two]):
            lampfast.prune(model, 3, importance=importance)
        lampfast.masks(model, 3, importance=importance)


def test_importances_may_share_memory_with_each_other_and_their_own_weight() -> None:
    one, two, three = torch.randn(3, 3), torch.randn(3, 3), torch.randn(3, 3)
    model = {"one": one, "two": two, "three": three}
    shared = torch.randn(3, 3)
    importance = {"one": shared, "two": shared.T, "three": three.detach()}
    masks = lampfast.masks(model, 10, importance=importance)
    lampfast.prune(model, 10, importance=importance)
    assert all(torch.equal(model[name] != 0, masks[name]) for name in model)


def test_views_that_fit_into_what_is_left_of_their_storage() -> None:
    tensor = torch.ones(4, 4)[:, :2]
    tensor.untyped_storage().resize_(4 * 14)  # the last of its elements is the 14th
    assert lampfast.prune([tensor], 0.5).kept == 4
    empty = torch.ones(3)[:0]
    empty.untyped_storage().resize_(0)
    assert lampfast.prune([empty, tensor], 0.5).kept == 4


def test_a_dimension_of_size_1_may_have_any_stride() -> None:
    odd = np.lib.stride_tricks.as_strided(np.arange(1, 4, dtype=np.float32), (1, 3), (5, 4))
    assert lampfast.masks([odd], 1)["0"].tolist() == [[False, True, True]]
    lampfast.prune([odd], 1)
    assert odd.tolist() == [[0, 2, 3]]


@pytest.mark.filterwarnings("ignore:.*not writable:UserWarning")
@pytest.mark.skipif(protection._asker() is None, reason="the system does not tell")
def test_read_only_memory(tmp_path: Path) -> None:
    np.arange(1, 5001, dtype=np.float32).tofile(tmp_path / "weights")
    as_mode = {mode: np.memmap(tmp_path / "weights", np.float32, mode) for mode in ("r", "r+", "c")}
    weight = torch.from_numpy(as_mode["r"])
    words = ("read-only memory", "memmap")
    for verb in (
        lambda: lampfast.prune([torch.ones(3), weight], 0.5),
        lambda: lampfast.keep_zeros([weight], torch.optim.SGD([weight])),
    ):
        with refused(ValueError, *words, keeps=[weight]):
            verb()
    out = {"0": weight.view(torch.bool)[:5000]}
    with refused(ValueError, "out of layer '0'", *words, keeps=[weight]):
        lampfast.masks([torch.ones(5000)], 0.5, out=out)
    assert lampfast.masks([weight], 4999)["0"].tolist() == [False] * 4999 + [True]
    for mode in ("c", "r+"):  # what is written goes to memory only, or to the file
        lampfast.prune([torch.from_numpy(as_mode[mode])], 10)
        assert np.fromfile(tmp_path / "weights", np.float32)[9] == (0 if mode == "r+" else 10)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_arrays_of_ml_dtypes_are_pruned_in_place(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = torch.randn(6, 8).to(getattr(torch, name))
    as_bytes = {1: torch.uint8, 2: torch.int16}[values.itemsize]
    array = values.clone().view(as_bytes).numpy().view(getattr(ml_dtypes, name))[:, ::2]
    tensor = values[:, ::2].clone()
    masks = lampfast.masks([array], 0.5)["0"]
    assert masks.tolist() == lampfast.masks([tensor], 0.5)["0"].tolist()
    scores = lampfast.scores([array])["0"]
    assert scores.tolist() == lampfast.scores([tensor])["0"].tolist()
    assert lampfast.prune([array], 0.5).kept == 12
    assert array.astype(np.float32).tolist() == np.where(masks, tensor.float(), 0).tolist()
    array[1, 2] = np.nan
    with refused(ValueError, "layer '0' has nan at index (1, 2)", keeps=[]):
        lampfast.prune([array], 0.5)


def test_dtypes_of_ml_dtypes_that_are_not_pruned() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.ones(3, ml_dtypes.float8_e4m3b11fnuz)
    with refused(TypeError, "dtype float8_e4m3b11fnuz", "convert", keeps=[]):
        lampfast.prune([array], 0.5)


@pytest.mark.parametrize("asked", ["_shape_of", "_strides_of", "_dtype_of"])
def test_a_tensor_that_gets_other_memory_meanwhile(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, ask = torch.randn(10, 10), getattr(views, asked)

    def ask_and_change(what: Any) -> Any:
        answer = ask(what)
        weight.data = torch.randn(3)  # as another thread may
        return answer

    monkeypatch.setattr(views, asked, ask_and_change)
    (view,) = views.layers({"a": weight})
    start, stop = view.span
    address, _, shape, strides, _ = view.pointer
    assert view.storage is not None
    begin = view.storage.data_ptr()
    assert begin <= start <= stop <= begin + view.storage.nbytes()
    assert (address, start + 4 * view.size) == (start, stop)
    assert (shape, strides) in (((10, 10), (10, 1)), ((3,), (1,)))
    assert view.size == prod(shape)

"""masks of other dtypes, by other methods and patterns, instruction sets, and of hard weights."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple, get_args

import contenders
import peers
import pytest
import torch
from shapes import Shapes
from timing import Clock
from weights import Weights, cycled, gaussian

import lampfast
from lampfast import _core
from lampfast.methods import Method

S = 0.9
_BLOCK = 128  # rows and columns that share a scale, as in fp8 checkpoints
_SIDE, _QUICK_SIDE, _LAYERS = 2000, 64, 5
_DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(masks: Weights, weights: Weights, s: float) -> None:
    """Checks that exactly as many weights are dropped as asked for."""
    assert contenders.dropped(masks) == round(s * contenders.numel(weights))


@pytest.mark.parametrize("dtype", _DTYPES, ids=name_of)
def test_dtype(dtype: torch.dtype, resnet50: Weights, clock: Clock) -> None:
    weights = {name: weight.to(dtype) for name, weight in resnet50.items()}
    masks = clock("dtypes: masks of resnet50", contenders.masks(weights, S))
    check(masks, weights, S)


@pytest.mark.parametrize("method", get_args(Method))
def test_method(method: Method, resnet50: Weights, clock: Clock) -> None:
    masks = clock("methods: masks of resnet50", contenders.masks(resnet50, S, method))
    check(masks, resnet50, S)


def test_method_of_ones_own(resnet50: Weights, clock: Clock) -> None:
    ask = partial(lampfast.masks, resnet50, method=dict.fromkeys(resnet50, S))
    masks = clock("methods: masks of resnet50", lambda: ask)
    for mask in masks.values():
        assert int((~mask).sum()) == round(S * mask.numel())


# Square matrices: fp8 codes with and without scales, and n:m patterns.


@pytest.fixture(scope="module")
def matrices(sized: Callable[[Shapes], Shapes]) -> Weights:
    side = sized({"": (4096, 4096)})[""][0]
    return gaussian({f"{layer}.weight": (side, 4096) for layer in range(2)})


@pytest.mark.parametrize("ranked", ["codes", "codes-times-scales", "dequantised-float32"])
def test_scaled_float8(ranked: str, matrices: Weights, clock: Clock) -> None:
    codes = {name: weight.to(torch.float8_e4m3fn) for name, weight in matrices.items()}
    scales, products = {}, {}
    generator = torch.Generator().manual_seed(0)
    for name, code in codes.items():
        blocks = [-(-size // _BLOCK) for size in code.shape]
        scale = torch.randint(-4, 5, blocks, generator=generator).float().exp2()  # exact products
        scales[f"{name}_scale_inv"] = scale
        whole = scale.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
        products[name] = code.float() * whole[: code.shape[0], : code.shape[1]]
    given = {"codes": codes, "codes-times-scales": codes | scales}.get(ranked, products)
    masks = clock("float8 with scales: masks of 2 matrices", contenders.masks(given, S))
    check(masks, codes, S)
    if ranked == "codes-times-scales":
        expected = lampfast.masks(products, S)
        assert all(torch.equal(masks[name], expected[name]) for name in expected)


@pytest.mark.parametrize("who", ["lampfast", "torch-topk", "torch-ao-sparsifier"])
@pytest.mark.parametrize(
    ("n", "m"), [(2, 4), (4, 8), (1, 4), (8, 16), (4, 32)], ids=lambda size: str(size)
)
def test_pattern(n: int, m: int, who: str, matrices: Weights, clock: Clock) -> None:
    ours = partial(lampfast.masks, matrices, pattern=f"{n}:{m}")
    topk = partial(peers.topk_masks, matrices, n, m)
    sparsifier = partial(peers.sparsifier_masks, matrices, n, m)
    call = {"torch-topk": topk, "torch-ao-sparsifier": sparsifier}.get(who, ours)
    slow = who == "torch-ao-sparsifier"
    masks = clock(f"{n}:{m} patterns: masks of 2 matrices", lambda: call, slow=slow)
    expected = ours()
    for name, mask in masks.items():
        assert (mask.view(-1, m).sum(1) == n).all()
        magnitudes = matrices[name].abs()  # of equal ones topk may keep others
        theirs, own = (magnitudes * each for each in (mask, expected[name]))
        torch.testing.assert_close(theirs.view(-1, m).sum(1), own.view(-1, m).sum(1))


# In place, groups along either dimension, beside a copy, which reads and writes as much.


@pytest.mark.parametrize("call", ["copy", "dimension-1", "dimension-0"])
@pytest.mark.parametrize("pattern", ["2:4", "8:16", "4:32"])
def test_prune_by_pattern(pattern: str, call: str, matrices: Weights, clock: Clock) -> None:
    def prepare() -> Callable[[], object]:
        weights = {name: weight.clone() for name, weight in matrices.items()}
        if call == "copy":
            return lambda: [weights[name].copy_(it) for name, it in matrices.items()]
        dim = int(call[-1])
        return lambda: lampfast.prune(weights, pattern=pattern, dim=dim).sparsity

    result = clock(f"{pattern} patterns: prune 2 matrices", prepare)
    n, m = map(int, pattern.split(":"))
    assert call == "copy" or abs(result - (1 - n / m)) < 1e-9


# Weights on which a method made for Gaussian ones might be slow.


class _Hard(NamedTuple):
    change: Callable[[torch.Tensor], torch.Tensor]
    sparsity: float = S


def _pruned(weight: torch.Tensor) -> torch.Tensor:
    pruned = weight.clone()
    lampfast.prune([pruned], S)
    return pruned


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    kernels = weight.view(len(weight) // 4, -1, 4, 4)
    return kernels.contiguous(memory_format=torch.channels_last)


def _repeating(period: int, weight: torch.Tensor) -> torch.Tensor:
    return cycled(weight.flatten()[:period], 0, weight.numel()).view_as(weight)


_HARD = {
    "gaussian": _Hard(torch.clone),
    "all-magnitudes-equal": _Hard(lambda weight: torch.full_like(weight, 0.5).copysign(weight)),
    "two-magnitudes": _Hard(lambda weight: 1 + (weight.abs() > 1).float()),
    "pruned-before-to-0.9-now-0.95": _Hard(_pruned, 0.95),
    "pruned-before-to-0.9-now-0.9": _Hard(_pruned),
    "sorted": _Hard(lambda weight: weight.flatten().sort().values),
    "repeats-every-16": _Hard(partial(_repeating, 16)),
    "repeats-every-4096": _Hard(partial(_repeating, 4096)),
    "channels-last": _Hard(_channels_last),
    "transposed": _Hard(torch.t),
    "every-other-column": _Hard(lambda weight: torch.cat([weight, weight], 1)[:, ::2]),
}


@pytest.fixture(scope="module")
def squares(quick: bool) -> Weights:
    side = _QUICK_SIDE if quick else _SIDE
    return gaussian({str(layer): (side, side) for layer in range(_LAYERS)})


@pytest.mark.parametrize("kind", _HARD)
def test_hard_weights(kind: str, squares: Weights, clock: Clock) -> None:
    change, s = _HARD[kind]
    weights = {name: change(weight) for name, weight in squares.items()}
    masks = clock(f"hard weights: masks of {_LAYERS} layers", contenders.masks(weights, s))
    check(masks, weights, s)


# lampfast chooses the instruction set once a process, so each has one of its own.


_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_there: dict[str, Weights] = {}  # in the other process


def prepare_there(name: str, shapes: Shapes) -> bool:
    """Makes the weights in a process that has not used lampfast yet; whether it has the set."""
    os.environ["LAMPFAST_ISA"] = name
    try:
        assert _core.instruction_set() == name
    except RuntimeError:
        return False
    _there["weights"] = gaussian(shapes)
    return True


def forget_there() -> None:
    """Frees the masks of the call before, untimed."""
    _there.pop("masks", None)


def masks_there() -> None:
    """What is timed; the masks stay where they are."""
    _there["masks"] = lampfast.masks(_there["weights"], S)


def digest_there() -> str:
    """Of the masks."""
    return digest(_there["masks"])


def digest(masks: Weights) -> str:
    """Tells masks from others that differ in a single weight."""
    found = hashlib.sha256()
    for mask in masks.values():
        found.update(mask.numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module", params=_INSTRUCTION_SETS)
def there(request: pytest.FixtureRequest, resnet50: Weights) -> Iterator[ProcessPoolExecutor]:
    """A process that uses one instruction set, and has the weights."""
    shapes = {name: tuple(weight.shape) for name, weight in resnet50.items()}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
        if not process.submit(prepare_there, request.param, shapes).result():
            pytest.skip(f"this processor does not have {request.param}")
        yield process


@pytest.mark.parametrize("threads", [1, 2])
def test_instruction_set(
    threads: int, there: ProcessPoolExecutor, resnet50: Weights, clock: Clock
) -> None:
    there.submit(torch.set_num_threads, threads).result()

    def prepare() -> Callable[[], object]:
        there.submit(forget_there).result()
        return lambda: there.submit(masks_there).result()

    clock(f"instruction sets: masks of resnet50, {threads} threads", prepare)
    assert there.submit(digest_there).result() == digest(lampfast.masks(resnet50, S))

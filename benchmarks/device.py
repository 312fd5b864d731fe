"""The steps of device.sh that need Python: are a GPU's answers right, and what does each call cost?

`python benchmarks/device.py smoke|times|kernels|calls [--device cuda|cpu|emulated] [--few]`. Every
line is printed as it comes. Needs no package that lampfast does not need itself.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from shapes import Shapes, resnet50

import lampfast
from lampfast import _core
from lampfast._cli.measure import Call, median_seconds
from lampfast._engine import gpus, packed_masks, views

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
SPARSITIES = (0.0, 0.5, 0.9, 0.99, 1.0)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_STAGES = ("estimate", "partition", "narrow", "select", "commit")

Model = dict[str, torch.Tensor]


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("smoke", "times", "kernels", "calls"))
    parser.add_argument("--device", choices=("cuda", "cpu", "emulated"), default="cuda")
    parser.add_argument("--few", action="store_true", help="Few weights, dtypes and sparsities.")
    asked = parser.parse_args()
    place = Place(asked.device)
    _say(
        f"lampfast {lampfast.__version__}, CUDA built {_core.cuda_built}, "
        f"runs on GPU 0 {_core.cuda_runs_on(0)}; torch {torch.__version__}, on {place}"
    )
    if asked.device != "cpu" and not _core.cuda_runs_on(0):
        sys.exit("this build has no engine for the GPU: nothing is tried")
    step = {"smoke": smoke, "times": times, "kernels": kernels, "calls": calls}[asked.step]
    sys.exit(step(place, asked.few))


class Place:
    """Where the layers are: on a GPU, or in host memory, with or without emulated kernels."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.device = torch.device("cuda" if name == "cuda" else "cpu")

    def __str__(self) -> str:
        return torch.cuda.get_device_name() if self.name == "cuda" else self.name

    def engine(self) -> AbstractContextManager[None]:
        """While it is entered, layers in host memory may pass for ones on a GPU."""
        if self.name != "emulated":
            return nullcontext()
        sys.path.append(str(Path(__file__).parent.parent / "tests"))
        from emulation import emulated

        return emulated()


# --- smoke ---


def smoke(place: Place, few: bool) -> int:
    """Compare every bit with the CPU's; returns how many comparisons failed."""
    failures = 0
    values = _values(few)
    for dtype in DTYPES:
        for s in SPARSITIES[1:3] if few else SPARSITIES:
            wrong = _wrong(values, dtype, s, place)
            failures += len(wrong)
            _say(f"{dtype} to {s}: {', '.join(wrong) or 'right'}")
    _say("smoke: " + (f"{failures} WRONG" if failures else "all right"))
    return min(failures, 1)


def _values(few: bool) -> Model:
    """Layers of all sizes: noise of several scales, ties, and mostly zeros."""
    generator = torch.Generator().manual_seed(0)
    wide = 300 if few else 3000
    shapes = {
        "dense": (wide, 1000),
        "conv": (64, 30, 3, 3),
        "odd": (100_001,),
        "gaps": (wide, 400),
        "transposed": (500, 300),
        "tiny": (5,),
        "ties": (wide, 250),
        "sparse": (400, 300),
    }
    found = {
        name: torch.randn(shape, generator=generator) * 0.1 ** (i % 4)
        for i, (name, shape) in enumerate(shapes.items())
    }
    found["ties"] = (found["ties"] * 4e4).round().remainder(8) / 8
    found["sparse"] *= torch.rand((400, 300), generator=generator) < 0.2
    return found


def _laid_out(values: Model, dtype: torch.dtype, device: torch.device) -> Model:
    """Copies on a device, in the memory formats that their names say."""
    found = {name: value.to(dtype).to(device, copy=True) for name, value in values.items()}
    found["conv"] = found["conv"].contiguous(memory_format=torch.channels_last)
    odd, gaps = found["odd"], found["gaps"]
    found["odd"] = torch.empty(len(odd) + 1, dtype=dtype, device=device)[1:].copy_(odd)
    rows, columns = gaps.shape
    found["gaps"] = torch.empty(rows, 2 * columns, dtype=dtype, device=device)[:, ::2].copy_(gaps)
    found["transposed"] = found["transposed"].t().contiguous().t()
    return found


def _wrong(values: Model, dtype: torch.dtype, s: float, place: Place) -> list[str]:
    """What differs from what the CPU does with the same values, or raises."""
    host = _laid_out(values, dtype, torch.device("cpu"))
    there = _laid_out(values, dtype, place.device)
    wrong = []
    checks = {"masks": _same_masks, "scores": _same_scores, "prune and keep": _same_weights}
    for name, is_same in checks.items():
        try:
            if not is_same(host, there, s, place):
                wrong.append(f"{name} DIFFER")
        except Exception as error:  # what is left is still worth knowing
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    return wrong


def _same_masks(host: Model, there: Model, s: float, place: Place) -> bool:
    expected = lampfast.masks(host, s)
    with place.engine():
        found = lampfast.masks(there, s)
    return all(torch.equal(found[name].cpu(), expected[name]) for name in expected)


def _same_scores(host: Model, there: Model, s: float, place: Place) -> bool:
    """Both are right to a unit in the last place, so they differ by two at most."""
    if s != 0.5:
        return True
    expected = lampfast.scores(host)
    with place.engine():
        found = lampfast.scores(there)
    tolerance = {name: 3 * torch.finfo(scores.dtype).eps for name, scores in expected.items()}
    return all(
        torch.allclose(found[name].cpu(), scores, rtol=tolerance[name], atol=0)
        for name, scores in expected.items()
    )


def _same_weights(host: Model, there: Model, s: float, place: Place) -> bool:
    """After pruning; and after ones were written over the weights and zeros put back."""
    pruned = {name: weight.clone() for name, weight in host.items()}
    lampfast.prune(pruned, s)
    with place.engine():
        lampfast.prune(there, s)
        is_same = all(_same_bits(there[name], weight) for name, weight in pruned.items())
        layers = views.layers(there, write=True)
        masks = packed_masks.record(layers)
        for weight in there.values():
            weight.copy_(torch.ones(weight.shape).to(weight.dtype))
        packed_masks.apply(layers, masks)
    ones = {name: (weight.double() != 0).to(weight.dtype) for name, weight in pruned.items()}
    return is_same and all(_same_bits(there[name], weight) for name, weight in ones.items())


def _same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    bits = _BITS[found.itemsize]
    return torch.equal(found.cpu().contiguous().view(bits), expected.cpu().contiguous().view(bits))


# --- times ---


def times(place: Place, few: bool) -> None:
    """What calls and their stages cost, from an idle device to an idle device."""
    for name, weights in _models(place, few):
        numel = sum(weight.numel() for weight in weights.values())
        _say(f"{name}: {numel:,} weights in {len(weights)} layers")
        with place.engine():
            _time(place, name, weights)


def _time(place: Place, name: str, weights: Model) -> None:
    layers, kept = views.layers(weights), lampfast.masks(weights, 0.9)
    targets = {layer: weight.clone() for layer, weight in weights.items()}
    halves = {layer: weight.bfloat16() for layer, weight in weights.items()}
    written = views.layers(targets, write=True)
    packed = packed_masks.record(written)

    def report(what: str, prepare: Callable[[], Call], rounds: int = 9) -> None:
        (median,) = median_seconds([idle(prepare, place.device)], rounds)
        _say(f"  {name}: {what}: {1e3 * median:.3f} ms")

    def prune() -> Call:
        _copy(weights, targets)
        return partial(lampfast.prune, targets, 0.9)

    report("copy of the weights", lambda: partial(_copy, weights, targets))
    report("masks to 0.5", lambda: partial(lampfast.masks, weights, 0.5))
    report("masks to 0.9", lambda: partial(lampfast.masks, weights, 0.9))
    report("masks to 0.9, out=", lambda: partial(lampfast.masks, weights, 0.9, out=kept))
    report("masks to 0.9, bfloat16", lambda: partial(lampfast.masks, halves, 0.9))
    report("prune to 0.9", prune)
    report("zeros put back", lambda: partial(packed_masks.apply, written, packed))
    report("report", lambda: partial(lampfast.report, weights))
    report("Python: views", lambda: partial(views.layers, weights))
    report("Python: empty masks", lambda: partial(views.empty_masks, layers))
    listed = ", ".join(f"{stage} {1e3 * t:.3f}" for stage, t in stages(weights, 0.9, 9).items())
    _say(f"  {name}: stages of masks to 0.9, as the host sees them: {listed} ms")
    report("scores", lambda: partial(lampfast.scores, weights), rounds=2)


def kernels(place: Place, few: bool) -> None:
    """How long each kernel and each copy takes, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = place.name == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    for name, weights in _models(place, few):
        for what, call in _each_call(weights).items():
            with place.engine():
                call()
                _wait(place)
                with profile(activities=[activity]) as profiled:
                    call()
                    _wait(place)
            _say(f"{name}: {what}")
            events = profiled.key_averages()
            events.sort(key=lambda event: -event.self_device_time_total)
            for event in events[:16] if on_gpu else events[:2]:
                microseconds = event.self_device_time_total
                _say(f"  {microseconds:10.1f} us {event.count:4d} x {event.key[:110]}")


def calls(place: Place, few: bool) -> None:
    """One call of each kind, for tools that look inside."""
    shape = (256, 64) if few else (1024, 1024)
    weights = {str(i): torch.randn(shape, device=place.device) for i in range(4 if few else 64)}
    for call in _each_call(weights).values():
        with place.engine():
            call()
    _wait(place)


def _each_call(weights: Model) -> dict[str, Call]:
    targets = {name: weight.clone() for name, weight in weights.items()}
    halves = {name: weight.bfloat16() for name, weight in weights.items()}

    def keep() -> None:
        layers = views.layers(targets, write=True)
        packed_masks.apply(layers, packed_masks.record(layers))

    return {
        "masks, float32": partial(lampfast.masks, weights, 0.9),
        "masks, bfloat16": partial(lampfast.masks, halves, 0.9),
        "prune, float32": partial(lampfast.prune, targets, 0.9),
        "zeros recorded and put back": keep,
        "scores": partial(lampfast.scores, {name: weights[name] for name in list(weights)[:4]}),
    }


def _models(place: Place, few: bool) -> Iterator[tuple[str, Model]]:
    """Models for times, the largest last; made on the device."""
    wide = 8 if few else 3256
    shapes: dict[str, Shapes] = {
        "resnet50": {"conv": (64, 3, 7, 7), "fc": (100, 64)} if few else resnet50(),
        "1,000 layers of 1,000": {str(i): (25, 40) for i in range(20 if few else 1000)},
        "300 layers of 3.3M": {str(i): (1024, wide) for i in range(3 if few else 300)},
    }
    for name, named in shapes.items():
        yield name, gaussian(named, place.device)


def _copy(weights: Model, targets: Model) -> None:
    torch._foreach_copy_(list(targets.values()), list(weights.values()))


def _wait(place: Place) -> None:
    if place.name == "cuda":
        torch.cuda.synchronize()


# --- for gpu.py too ---


def gaussian(shapes: Shapes, device: torch.device) -> Model:
    """Normal weights by fan-out, made on the device."""
    generator = torch.Generator(device).manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, device=device)
        * math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
        for name, shape in shapes.items()
    }


def idle(prepare: Callable[[], Call], device: torch.device) -> Callable[[], Call]:
    """Sets up the same call, but from an idle GPU to an idle GPU."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def prepare_and_wait() -> Call:
        call = prepare()
        wait()

        def call_and_wait() -> object:
            result = call()
            wait()
            return result

        return call_and_wait

    return prepare_and_wait


def stages(weights: Model, s: float, rounds: int) -> dict[str, float]:
    """How many seconds the host spends in each stage of a call of masks, waiting included."""
    layers = views.layers(weights)
    sources = [layer.pointer for layer in layers]
    masks = views.empty_masks(layers)
    targets = [mask.pointer for mask in masks]
    numel = sum(layer.size for layer in layers)
    spec = _core.SelectionSpec(_core.Ranking.lamp, [round(s * numel)])
    found = []
    for _ in range(rounds):
        profile = _core.CallProfile()
        with gpus.machine(sources, _core.cuda_needs) as machine:
            _core.masks(sources, targets, spec, machine, profile)
        found.append(profile)
    return {stage: statistics.median(getattr(one, stage) for one in found) for stage in _STAGES}


def _say(*words: object) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    main()

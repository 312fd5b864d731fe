"""The compiled engine: addresses in, decisions out. Nothing here knows torch."""

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

__version__: str
cuda_built: bool

class Dtype:
    """How the elements of a layer are stored; float dtypes have torch's meaning."""

    float32: ClassVar[Dtype]
    float16: ClassVar[Dtype]
    bfloat16: ClassVar[Dtype]
    float64: ClassVar[Dtype]
    float8_e4m3fn: ClassVar[Dtype]
    float8_e5m2: ClassVar[Dtype]
    boolean: ClassVar[Dtype]

    @property
    def name(self) -> str: ...

# A strided tensor: address, dtype, shape, strides in elements, and the index of its GPU, or -1 in
# host memory. The caller keeps it alive.
Layer: TypeAlias = tuple[int, Dtype, tuple[int, ...], tuple[int, ...], int]

# Device, stream, address and size of memory there, address and size of page-locked host memory.
Gpu: TypeAlias = tuple[int, int, int, int, int, int]

class Ranking:
    """How elements are ranked: all layers together by a score, or each layer by itself."""

    lamp: ClassVar[Ranking]
    magnitude: ClassVar[Ranking]
    each_apart: ClassVar[Ranking]

class Goal:
    """What is selected: how elements are ranked, and how many of the first go, or of each's."""

    def __init__(self, ranking: Ranking, counts: Sequence[int]) -> None: ...

class Cut:
    """A layer's answer: magnitudes with a smaller key go, and the first `ties` of the equals."""

    @property
    def key(self) -> int: ...
    @property
    def ties(self) -> int: ...
    @property
    def pruned(self) -> int: ...
    @property
    def threshold(self) -> float: ...  # magnitude of the smallest kept weight; inf if none is kept

class Stages:
    """How long each stage of a call took, in seconds."""

    def __init__(self) -> None: ...
    @property
    def guess(self) -> float: ...
    @property
    def survey(self) -> float: ...
    @property
    def select(self) -> float: ...
    @property
    def apply(self) -> float: ...

def instruction_set() -> str: ...
def cuda_usable() -> bool: ...
def cuda_needs(layers: Sequence[Layer], device: int) -> tuple[int, int]: ...
def cuda_needs_of_scores(layers: Sequence[Layer], device: int) -> tuple[int, int]: ...
def select(
    layers: Sequence[Layer], goal: Goal, threads: int, gpus: Sequence[Gpu] = ()
) -> list[Cut]: ...
def mask(
    sources: Sequence[Layer],
    targets: Sequence[Layer],
    cuts: Sequence[Cut],
    threads: int,
    gpus: Sequence[Gpu] = (),
) -> None: ...
def masks(
    sources: Sequence[Layer],
    targets: Sequence[Layer],
    goal: Goal,
    threads: int,
    gpus: Sequence[Gpu] = (),
    *,
    stages: Stages | None = None,
) -> list[Cut]: ...
def prune(
    targets: Sequence[Layer],
    importances: Sequence[Layer] | None,
    goal: Goal,
    threads: int,
    gpus: Sequence[Gpu] = (),
    *,
    stages: Stages | None = None,
) -> list[Cut]: ...
def score(
    layers: Sequence[Layer], outputs: Sequence[Layer], threads: int, gpus: Sequence[Gpu] = ()
) -> None: ...
def census(layers: Sequence[Layer], threads: int, gpus: Sequence[Gpu] = ()) -> list[Cut]: ...
def first_nonfinite(
    layers: Sequence[Layer], threads: int, gpus: Sequence[Gpu] = ()
) -> tuple[int, int] | None: ...

# Masks of one bit a weight, by the addresses of their 64-bit words, where the layers live: bit
# i % 64 of word i / 64 is set where the weight at position i, in the order of memory, is kept. GPUs
# need lend nothing.
def pack(
    layers: Sequence[Layer], masks: Sequence[int], threads: int, gpus: Sequence[Gpu] = ()
) -> None: ...
def keep(
    layers: Sequence[Layer], masks: Sequence[int], threads: int, gpus: Sequence[Gpu] = ()
) -> None: ...

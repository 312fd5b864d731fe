"""The compiled engine: addresses in, decisions out. Nothing here knows torch."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

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

# The float32 scales of a layer of float8 codes, one for each block: address, extents of a block,
# and in every dimension the stride from one scale to the next, 0 where they do not depend on it.
Scales: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]

# A strided tensor: address, dtype, shape, strides in elements, and the index of its GPU, or -1 in
# host memory. One with scales lies there and is ranked by the products. The caller keeps it alive.
Layer: TypeAlias = (
    tuple[int, Dtype, tuple[int, ...], tuple[int, ...], int]
    | tuple[int, Dtype, tuple[int, ...], tuple[int, ...], int, Scales]
)

# Device, stream, address and size of memory there, address and size of page-locked host memory.
Gpu: TypeAlias = tuple[int, int, int, int, int, int]

# What of the machine a call may use: how many threads, and GPUs.
Machine: TypeAlias = tuple[int, Sequence[Gpu]]
# With what the engine is told of a sharding (csrc/sharding.h).
ShardedMachine: TypeAlias = tuple[int, Sequence[Gpu], tuple[Any, ...]]

class Ranking:
    """How elements are ranked: all layers together by a score, or each layer by itself."""

    lamp: ClassVar[Ranking]
    magnitude: ClassVar[Ranking]
    per_layer: ClassVar[Ranking]

class SelectionSpec(NamedTuple):
    """What is selected: how elements are ranked, and how many of the first, or of each layer's."""

    ranking: Ranking
    counts: Sequence[int]

class LayerThreshold(NamedTuple):
    """A layer's answer: elements with a smaller key go, and the first `ties` of the equal ones."""

    key: int
    ties: int
    pruned: int
    magnitude: float  # of the smallest kept weight; inf if none is kept

class ElementIndex(NamedTuple):
    """Where an element lies: its layer's position, its row-major index there, and on which rank."""

    layer: int
    index: int  # type: ignore[assignment]  # not the method of tuples
    rank: int

class NotFiniteError(ValueError):
    """A layer has NaN or infinity: the first one, or None where it has changed meanwhile."""

    element: ElementIndex | None

class CallProfile:
    """What a call has cost: how long each stage took, in seconds, and how many elements were read.

    `drawn` is for the estimate, `read` counts probes and partitions, `candidates` what lay inside
    the intervals, and `misses` how often a layer's interval did not hold its threshold.
    """

    def __init__(self) -> None: ...
    @property
    def estimate(self) -> float: ...
    @property
    def partition(self) -> float: ...
    @property
    def narrow(self) -> float: ...
    @property
    def select(self) -> float: ...
    @property
    def commit(self) -> float: ...
    @property
    def drawn(self) -> int: ...
    @property
    def read(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def misses(self) -> int: ...

class Needs(NamedTuple):
    """How many bytes a call needs on a GPU, and page-locked in the host."""

    bytes: int
    host_bytes: int

def instruction_set() -> str: ...
def cuda_usable() -> bool: ...
def cuda_runs_on(device: int) -> bool: ...
def cuda_needs(layers: Sequence[Layer], device: int) -> Needs: ...
def cuda_needs_of_scores(layers: Sequence[Layer], device: int) -> Needs: ...

# `before_writing` is called with what prune and masks return, once all is decided that may fail and
# before a weight is written; if it raises, none is. Masks may be partly written by then.
def prune(
    layers: Sequence[Layer],
    targets: Sequence[Layer] | None,  # the layers themselves if it is None
    spec: SelectionSpec,
    machine: Machine | ShardedMachine,
    profile: CallProfile | None = None,
    before_writing: Callable[[list[LayerThreshold]], object] | None = None,
) -> list[LayerThreshold]: ...
def masks(
    layers: Sequence[Layer],
    masks: Sequence[Layer],
    spec: SelectionSpec,
    machine: Machine | ShardedMachine,
    profile: CallProfile | None = None,
    before_writing: Callable[[list[LayerThreshold]], object] | None = None,
) -> list[LayerThreshold]: ...
def thresholds(
    layers: Sequence[Layer], spec: SelectionSpec, machine: Machine | ShardedMachine
) -> list[LayerThreshold]: ...
def zero_thresholds(
    layers: Sequence[Layer], machine: Machine | ShardedMachine
) -> list[LayerThreshold]: ...
def prune_zeros(
    layers: Sequence[Layer],
    targets: Sequence[Layer],
    machine: Machine,
    before_writing: Callable[[list[LayerThreshold]], object] | None = None,
) -> list[LayerThreshold]: ...

# Patterns are tuples (n, m, axis), one for each layer. Of the thresholds only `pruned` is told.
def group_thresholds(
    layers: Sequence[Layer],
    patterns: Sequence[tuple[int, int, int]],
    machine: Machine | ShardedMachine,
) -> list[LayerThreshold]: ...
def prune_groups(
    layers: Sequence[Layer],
    targets: Sequence[Layer],
    patterns: Sequence[tuple[int, int, int]],
    machine: Machine | ShardedMachine,
    before_writing: Callable[[list[LayerThreshold]], object] | None = None,
) -> list[LayerThreshold]: ...
def mask_groups(
    layers: Sequence[Layer],
    masks: Sequence[Layer],
    patterns: Sequence[tuple[int, int, int]],
    machine: Machine | ShardedMachine,
) -> None: ...

# Blocks are tuples (rows, columns, dimension of the inputs), one for each layer in host memory.
def block_thresholds(
    layers: Sequence[Layer],
    blocks: Sequence[tuple[int, int, int]],
    spec: SelectionSpec,
    machine: Machine | ShardedMachine,
) -> list[LayerThreshold]: ...
def prune_blocks(
    layers: Sequence[Layer],
    targets: Sequence[Layer],
    blocks: Sequence[tuple[int, int, int]],
    spec: SelectionSpec,
    machine: Machine | ShardedMachine,
    before_writing: Callable[[list[LayerThreshold]], object] | None = None,
) -> list[LayerThreshold]: ...
def mask_blocks(
    layers: Sequence[Layer],
    masks: Sequence[Layer],
    blocks: Sequence[tuple[int, int, int]],
    spec: SelectionSpec,
    machine: Machine | ShardedMachine,
) -> None: ...
def sizes_of_zero_blocks(
    layers: Sequence[Layer],
    blocks: Sequence[tuple[int, int, int]],
    machine: Machine | ShardedMachine,
) -> list[int]: ...
def score(layers: Sequence[Layer], scores: Sequence[Layer], machine: Machine) -> None: ...
def first_not_finite(
    layers: Sequence[Layer], machine: Machine | ShardedMachine
) -> ElementIndex | None: ...

# Masks of one bit a weight, by the addresses of their 64-bit words, where the layers live: bit
# i % 64 of word i / 64 is set where the weight at position i, in the order of memory, is kept. GPUs
# need lend nothing.
def pack(layers: Sequence[Layer], masks: Sequence[int], machine: Machine) -> None: ...
def apply_packed_masks(layers: Sequence[Layer], masks: Sequence[int], machine: Machine) -> None: ...

"""masks and prune for every instruction set that the processor has, on one thread and on two.

lampfast chooses the instruction set once a process, so each is measured in a fresh one.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import contenders
import torch
from outcome import Cell, Grid, Outcome
from run import USUAL, Run
from shapes import Shapes
from weights import gaussian

from lampfast import _core
from lampfast._cli import measure

_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_THREADS = (1, 2)
_COLUMNS = {
    "instruction set": "",
    "threads": "",
    "masks ns/weight": ".3f",
    "over floor": ".2f",
    "prune ns/weight": ".3f",
    "over copy": ".2f",
}


def instruction_sets(run: Run) -> Outcome:
    """Masks over its floor and prune over a copy, on resnet50."""
    rows: list[tuple[Cell, ...]] = []
    spawn = multiprocessing.get_context("spawn")
    for name in _INSTRUCTION_SETS:
        run.progress(f"isa: {name}")
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
            rows += process.submit(measure_here, name, run.model("resnet50"), run.rounds).result()
    return Outcome(grids=[Grid("resnet50, gaussian, 0.9, by LAMPFAST_ISA", _COLUMNS, rows)])


def measure_here(name: str, shapes: Shapes, rounds: int) -> list[tuple[Cell, ...]]:
    """Measures one instruction set, in a process that has not used lampfast yet."""
    os.environ["LAMPFAST_ISA"] = name
    try:
        assert _core.instruction_set() == name
    except RuntimeError:
        return [(name, "this processor does not have it", None, None, None, None)]
    weights = gaussian(shapes)
    targets, numel = contenders.clone(weights), contenders.numel(weights)
    rows: list[tuple[Cell, ...]] = []
    for threads in _THREADS:
        torch.set_num_threads(threads)
        contenders.check_masks(weights, USUAL)
        contenders.check_prune(weights, targets, USUAL)
        floor, _ = contenders.masks_floors(weights, USUAL)
        masks, written, copied, prune = measure.median_seconds(
            [
                contenders.masks(weights, USUAL),
                floor,
                contenders.copy_floor(weights, targets),
                contenders.prune(weights, targets, USUAL),
            ],
            rounds,
        )
        ns = masks / numel * 1e9, prune / numel * 1e9
        rows.append((name, str(threads), ns[0], masks / written, ns[1], prune / copied))
    return rows

"""masks by every method, beside the floor of writing masks from known thresholds."""

import contenders
from outcome import Cell, Grid, Outcome
from run import USUAL, Run
from shapes import MODELS
from weights import gaussian, row_scaled

from lampfast.methods import Method

# uniform+ is uniform with other counts, and cannot prune as much of a single layer.
_METHODS: tuple[Method, ...] = ("lamp", "global", "uniform", "erk")
_COLUMNS = {
    "model": "",
    "weights": "",
    "lamp": ".2f",
    "global": ".2f",
    "uniform": ".2f",
    "erk": ".2f",
}


def methods(run: Run) -> Outcome:
    """How much the other layerwise sparsities cost beside LAMP's."""
    rows: list[tuple[Cell, ...]] = []
    for model in MODELS:
        for kind in (gaussian, row_scaled):
            weights = kind(run.model(model))
            run.progress(f"methods: {model}, {kind.__name__}")
            floor, *times = run.medians(
                contenders.masks_floors(weights, USUAL)[0],
                *(contenders.masks(weights, USUAL, method) for method in _METHODS),
            )
            name = kind.__name__.replace("_", "-")
            rows.append((model, name, *(seconds / floor for seconds in times)))
    title = f"masks of sparsity {USUAL} by method, over their floor: known thresholds"
    return Outcome(grids=[Grid(title, _COLUMNS, rows)])

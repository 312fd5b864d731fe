"""The page: README.md from its template, with every number from the results."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from string import Template
from typing import Any

import findings
import plots
from claims import claims
from comparison import Share, Table, share
from models import ARCHITECTURES
from protocols import METHODS, PROTOCOLS, plan
from records import RESULTS, LeftOut, Records, Row, Run, described, run_of
from settings import STUDY
from wording import listing, sparsity, table

_TEMPLATE = Path(__file__).with_name("template.md")
_LAYERS_AT, _LAYERS_IN = 0.95, "iterative"
_RIVAL = "rate-distortion"  # the folder of its results: other networks than the study's


def write(folder: Path) -> Path:
    """Write README.md and its pictures beside the results.

    Args:
        folder: Where results.csv.gz is.

    Returns:
        The page.

    Raises:
        ValueError: There is nothing to compare yet.
    """
    results = Records(folder)
    cells = findings.cells(results.rows)
    if not cells:
        raise ValueError(
            f"{folder / RESULTS} has no run of LAMP beside one of a baseline; run study.py"
        )
    made = described(folder)
    texts = {
        "state": _state(results.rows, made["settings"]),
        "networks": listing([f"`{name}` ({each.title})" for name, each in ARCHITECTURES.items()]),
        "verdicts": findings.verdicts(cells),
        "collapsed": findings.collapsed(results.rows, results.layers),
        "claims": claims(cells),
        "rival": _rival(folder / _RIVAL),
        "numbers": findings.numbers(cells),
        "drop": f"{100 * plots.DROP:g}",
        "training": _training(made["settings"]),
        "plots": _plots(results.rows, folder),
        "layers": _layers(results, folder),
        "time": _time(results, made["settings"]["retrain_steps"]),
        "method": _method(made["settings"]),
        "left_out": _left_out(results.left_out),
        "runs": _runs(results.rows),
        "made": _made(made["calls"]),
    }
    page = folder / "README.md"
    page.write_text(Template(_TEMPLATE.read_text()).substitute(texts))
    return page


def _state(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    if settings["identity"] != STUDY.identity:
        return "**This is a try with other settings, not the study.**"
    runs = plan(list(ARCHITECTURES), PROTOCOLS, METHODS, None)
    done = len(_done(rows, runs))
    if done == len(runs):
        return f"All {done} runs of the study are done."
    return f"**The study is not finished: {done} of its {len(runs)} runs are done.**"


def _runs(rows: Sequence[Row]) -> str:
    lines = []
    for model, architecture in ARCHITECTURES.items():
        own = [row for row in rows if row.model == model]
        seeds = sorted({row.seed for row in own if row.round})
        planned = plan([model], PROTOCOLS, METHODS, None)
        minutes = sum(row.seconds_training for row in own) / 60
        lines.append(
            (
                f"`{model}`",
                architecture.title,
                f"{len(_done(own, planned))} of {len(planned)}",
                ", ".join(map(str, seeds)) or "-",
                f"{minutes:.0f}",
            )
        )
    return table(
        ["model", "", "runs done", "seeds begun", "processor minutes of training"], lines, texts=2
    )


def _plots(rows: Sequence[Row], folder: Path) -> str:
    parts = []
    for protocol in PROTOCOLS:
        here = [row for row in rows if row.protocol == protocol or row.round == 0]
        models = [
            name for name in ARCHITECTURES if any(row.model == name for row in here if row.round)
        ]
        if models:
            name = f"{protocol}.png"
            plots.accuracy(here, models, protocol).savefig(folder / name, dpi=plots.DPI)
            parts.append(
                f"### {protocol.capitalize()}\n\n![Accuracy over sparsity, {protocol}]({name})"
            )
    return "\n\n".join(parts)


def _layers(results: Records, folder: Path) -> str:
    """The picture of layerwise sparsity, at one sparsity."""
    rounds = {}
    for model in ARCHITECTURES:
        own = Table(results.rows, model, _LAYERS_IN)
        if own.sparsities:
            rounds[model] = own.nearest(_LAYERS_AT), own.sparsities[own.nearest(_LAYERS_AT)]
    if not rounds:
        return f"No {_LAYERS_IN} run is done yet."
    picture = plots.layers(results.layers, _LAYERS_IN, rounds)
    picture.savefig(folder / "layers.png", dpi=plots.DPI)
    at = listing(list(dict.fromkeys(sparsity(whole) for _, whole in rounds.values())))
    return (
        f"The sparsity of each layer where the whole network has {at} (the dotted line), "
        f"{_LAYERS_IN}, means over the seeds, in the order of the parameters.{_shortcuts(results)}"
        "\n\n![Layerwise sparsity by all methods](layers.png)"
    )


def _shortcuts(results: Records) -> str:
    """Which layers stand beside others, not between them."""
    texts = []
    for model, architecture in ARCHITECTURES.items():
        names = dict.fromkeys(row.layer for row in results.layers if row.model == model)
        beside = [str(i) for i, name in enumerate(names, 1) if "shortcut" in name]
        if beside:
            texts.append(
                f" Of *{architecture.title}*, {listing(beside)} are the 1×1 convolutions of "
                "shortcuts."
            )
    return "".join(texts)


def _rival(folder: Path) -> str:
    """LAMP beside the rival that looks at data, by what its own folder has."""
    results = Records(folder)
    cells = findings.cells(results.rows)
    if not cells:
        return "Not run yet."
    parts = [findings.lines(cells, findings.sentence), findings.differences(cells)]
    parts += [findings.numbers(cells), findings.collapsed(results.rows, results.layers)]
    return "\n\n".join([*parts, _made(described(folder)["calls"], f"{_RIVAL}/")])


def _time(results: Records, steps: int) -> str:
    """What one pruning takes, and the share of it in the loop, of the textbook and of lampfast."""
    lines = []
    for (model, architecture), fresh in product(ARCHITECTURES.items(), (True, False)):
        lamp = [row for row in results.rows if (row.model, row.method) == (model, "lamp")]
        made = [row for row in lamp if fresh == (row.protocol == "one-shot" or row.round == 1)]
        ours = share(made, lambda row: row.seconds_pruning)
        usual = share(made, lambda row: row.seconds_pruning_textbook)
        if not ours or not usual:
            continue
        weights = {row.layer: row.weights for row in results.layers if row.model == model}
        lines.append(
            (
                architecture.title,
                "none" if fresh else "some",
                f"{sum(weights.values()):,}",
                str(ours.prunings),
                *_one(usual, steps),
                *_one(ours, steps),
                f"{usual.pruning / ours.pruning:.0f}",
            )
        )
    one = ["ms", "steps", "share"]
    headings = ["model", "zeros before", "weights", "prunings"]
    headings += [f"{who}, {each}" for who in ("textbook", "lampfast") for each in one]
    return table([*headings, "ratio"], lines, texts=2)


def _one(found: Share, steps: int) -> tuple[str, str, str]:
    """One pruning: milliseconds, how many training steps take as long, its share of the loop."""
    return (
        f"{1e3 * found.pruning:.2f}",
        f"{found.pruning / (found.training / steps):.2f}",
        f"{100 * found.fraction:.3f} %",
    )


def _method(settings: Mapping[str, Any]) -> str:
    one_shot = listing([f"{100 * each:g} %" for each in settings["one_shot"]])
    passes = settings["dense_steps"] * settings["batch"] / settings["train_images"]
    lines = [
        f"- Data: {settings['train_images']:,} training and {settings['test_images']:,} test "
        f"images of Fashion-MNIST; no augmentation, batches of {settings['batch']}, no validation "
        "set, no choice of a best step.",
        f"- Training before pruning: {settings['dense_steps']:,} steps ({passes:.2g} passes over "
        f"the images) of AdamW at {settings['learning_rate']:g} with weight decay "
        f"{settings['weight_decay']:g}, constant. It stops early: what is pruned a little goes on "
        "to learn, and may do better than the network that it came from.",
        f"- Every pruning is followed by {settings['retrain_steps']:,} steps of a new optimizer, "
        "the same in all protocols; the weights that are zero are kept at zero.",
        f"- *Iterative*: {settings['rounds']} rounds, each prunes {100 * settings['fraction']:g} % "
        "of what remains, and trains what is left on.",
        f"- *One-shot*: to {one_shot}, each from the trained network.",
        "- *Rewinding*: as iterative, but what remains goes back to its values at step "
        f"{settings['early_step']:,} before it is retrained, on data in another order.",
        "- Linear and convolution weights are pruned; biases and normalisation are not.",
    ]
    return "\n".join(lines)


def _training(settings: Mapping[str, Any]) -> str:
    dense, retrain = settings["dense_steps"], settings["retrain_steps"]
    return (
        f"Before pruning a network has been trained for {dense:,} steps (the dotted line). At the "
        f"end an iterative run has trained {settings['rounds'] * retrain:,} more, a one-shot "
        f"network {retrain:,} more, and a rewound one, at any sparsity, "
        f"{settings['early_step'] + retrain:,} in all."
    )


def _left_out(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "In the runs done every method could prune to every sparsity: no round was left out."
    lines = [
        (each.model, each.method, each.protocol, sparsity(each.sparsity), each.reason)
        for each in left_out
        if each.seed == min(other.seed for other in left_out if other.model == each.model)
    ]
    return "Rounds that a method cannot do, which have no row:\n\n" + table(
        ["model", "method", "protocol", "sparsity", "why"], lines, texts=5
    )


def _made(calls: Mapping[str, Mapping[str, Any]], folder: str = "") -> str:
    headings = ["started", "command", "workers", "machine", "versions"]
    lines = [
        (
            call["started"],
            f"`{call['command']}`",
            str(call["workers"]),
            f"{call['processor']}, {call['cores']} cores, {call['instruction_set']}",
            f"lampfast {call['lampfast']}{_commit(call)}, torch {call['torch']}, "
            f"Python {call['python']}",
        )
        for call in calls.values()
    ]
    return f"Made by ([results.json]({folder}results.json)):\n\n" + table(headings, lines, texts=5)


def _commit(call: Mapping[str, Any]) -> str:
    return f" ({call.get('commit') or 'commit not recorded'})"


def _done(rows: Sequence[Row], runs: Sequence[Run]) -> set[Run]:
    return {run_of(row) for row in rows} & set(runs)

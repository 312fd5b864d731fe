"""lampfast prunes torch models by the LAMP score: exactly, in place, at the speed of memory.

The score rescales each weight's magnitude by what pruning it, and nothing larger, would cost its
layer. One global threshold on the score then gives every layer its own sparsity, with no
hyper-parameter (Lee et al., Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR 2021,
arXiv 2010.07611).

Example:
    >>> import torch, lampfast
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
    >>> lampfast.prune(model, 0.9)
    Report(numel=4736, kept=474, sparsity=0.8999, layers=2)
"""

from importlib.metadata import version
from importlib.util import find_spec

if find_spec("lampfast._core") is None:
    raise ImportError(
        f"{__path__[0]} has no compiled extension, as it is the source folder; run Python from "
        "another folder to import the installed lampfast, or install it with pip install -e ."
    )

from lampfast import importance, methods, reference, schedules, textbook, torch_prune
from lampfast._engine.build_info import config
from lampfast._training.pruner import Pruner
from lampfast._training.rewinding import rewind
from lampfast._training.zeros import KeptZeros, keep_zeros
from lampfast.applying import apply
from lampfast.mask_files import load_masks, save_masks
from lampfast.pruning import layerwise_sparsity, masks, prune, report, scores
from lampfast.reports import Report

__all__ = [
    "KeptZeros",
    "Pruner",
    "Report",
    "__version__",
    "apply",
    "config",
    "importance",
    "keep_zeros",
    "layerwise_sparsity",
    "load_masks",
    "masks",
    "methods",
    "prune",
    "reference",
    "report",
    "rewind",
    "save_masks",
    "schedules",
    "scores",
    "textbook",
    "torch_prune",
]
__version__ = version("lampfast")

for _public in (KeptZeros, Pruner, config, keep_zeros, rewind):
    _public.__module__ = __name__  # where users import it from, not the private module it lies in

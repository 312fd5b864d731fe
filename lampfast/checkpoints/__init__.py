"""Prunes checkpoints on disk, also those larger than memory: read once, copied once.

Example:
    >>> import lampfast.checkpoints, safetensors.torch, tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> dense, sparse = f"{folder}/dense.safetensors", f"{folder}/sparse.safetensors"
    >>> safetensors.torch.save_file({"fc.weight": torch.randn(64, 64)}, dense)
    >>> lampfast.checkpoints.prune(dense, 0.9, out=sparse)
    Report(numel=4096, kept=410, sparsity=0.8999, layers=1)
    >>> lampfast.checkpoints.report(sparse)
    Report(numel=4096, kept=410, sparsity=0.8999, layers=1)
"""

from lampfast.checkpoints.verbs import masks, prune, report

__all__ = ["masks", "prune", "report"]

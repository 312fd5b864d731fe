"""What tiles save on a CPU: torch's block CSR times a dense matrix, beside the dense product.

python benchmarks/block_csr.py prunes one square float32 layer to 90 % by block=(b, b) and by single
weights, and times both products in turns; it checks first that they agree.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch

import lampfast


def main() -> None:
    """Print one line for each form of the weight."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the layer")
    parser.add_argument("--tokens", type=int, default=64, help="columns of what it multiplies")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sparsity", type=float, default=0.9)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse (CSR|BSR) tensor support is in beta state")
    torch.manual_seed(0)
    dense = torch.randn(options.size, options.size)
    given = torch.randn(options.size, options.tokens)
    forms: dict[str, torch.Tensor] = {}
    for b in (16, 32, 64):
        pruned = dense.clone()
        lampfast.prune([pruned], options.sparsity, block=(b, b))
        forms[f"block CSR, tiles of {b} x {b}"] = pruned.to_sparse_bsr((b, b))
    single = dense.clone()
    lampfast.prune([single], options.sparsity)
    forms["CSR, single weights"] = single.to_sparse_csr()
    print(
        f"{options.size} x {options.size} times {options.size} x {options.tokens}, float32, "
        f"{options.sparsity:.0%} zeros, threads: {torch.get_num_threads()}, torch "
        f"{torch.__version__}"
    )
    for name, form in forms.items():
        torch.testing.assert_close(form @ given, form.to_dense() @ given, atol=1e-3, rtol=1e-3)
        whole, tiles = _medians(
            [partial(torch.matmul, it, given) for it in (dense, form)], options.rounds
        )
        print(
            f"{name}: {tiles * 1e3:.2f} ms, dense {whole * 1e3:.2f} ms: "
            f"{whole / tiles:.2f} times as fast"
        )


def _medians(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """The median time of each call; all are called in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


if __name__ == "__main__":
    main()

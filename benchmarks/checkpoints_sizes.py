"""How large sparse weights are in the forms that docs/sparse_weights.md tells of, as a table.

Usage: checkpoints_sizes.py. Needs the program zstd.
"""

import subprocess

import torch

import lampfast

NUMEL = 1 << 22
SPARSITIES = (0.0, 0.5, 0.7, 0.9, 0.95)
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


def main() -> None:
    """Prunes Gaussian weights and prints what share of the dense bytes each form takes."""
    torch.manual_seed(0)
    print("| dtype | sparsity | zstd -1 | bitmask and values | CSR, 32-bit indices |")
    print("| --- | --- | --- | --- | --- |")
    for dtype in DTYPES:
        for sparsity in SPARSITIES:
            weight = (torch.randn(2048, NUMEL // 2048) * 0.5).to(dtype)
            lampfast.prune([weight], sparsity)
            shares = " | ".join(f"{share:.1%}" for share in _shares(weight))
            print(f"| {str(dtype)[6:]} | {sparsity:.0%} | {shares} |")


def _shares(weight: torch.Tensor) -> tuple[float, float, float]:
    dense = weight.nbytes
    kept = int((weight.float() != 0).sum())
    raw = weight.view(torch.uint8).numpy().tobytes()
    packed = subprocess.run(["zstd", "-1", "-q", "-c"], input=raw, capture_output=True, check=True)
    bitmask = weight.numel() / 8 + kept * weight.itemsize
    csr = kept * (weight.itemsize + 4) + 4 * (weight.shape[0] + 1)
    return len(packed.stdout) / dense, bitmask / dense, csr / dense


if __name__ == "__main__":
    main()

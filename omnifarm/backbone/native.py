"""Which number formats a device multiplies in hardware.

Torch multiplies bf16 on a CPU through oneDNN, which wants AVX-512 (or Arm's bf16 instructions). Elsewhere, on most
laptops, it falls back to plain loops, fifty times slower than float32.
"""

import torch


def multiplies_bf16(device: torch.device | str) -> bool:
    """Say whether products in bf16 are no slower on a device than in float32."""
    return torch.device(device).type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """Return bf16 where a device multiplies it, float32 elsewhere."""
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32

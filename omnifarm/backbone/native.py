"""Which number formats a device multiplies in hardware.

Torch multiplies bf16 on a CPU through oneDNN. Without AVX-512 (most laptops) that is plain loops, fifty times slower than
float32; with AVX-512 alone it converts to float32 and back; Intel's bf16 instructions outside its matrix units (AMX) do
half of what float32 does. Matrix units, AMD's AVX-512 and Arm's bf16 instructions are faster than float32.
"""

from collections.abc import Mapping

import torch


def multiplies_bf16(device: torch.device | str) -> bool:
    """Say whether products in bf16 are no slower on a device than in float32."""
    if torch.device(device).type != "cpu":
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and gains_by_bf16(torch.cpu.get_capabilities())


def gains_by_bf16(cpu: Mapping[str, bool | int | str]) -> bool:
    """Say whether a processor that multiplies bf16 is faster so.

    Args:
        cpu: As `torch.cpu.get_capabilities()` describes it.
    """
    if cpu.get("architecture") != "x86_64":
        return True
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and "Intel" not in str(cpu.get("cpu_name"))))


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """Return bf16 where a device multiplies it, float32 elsewhere."""
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32

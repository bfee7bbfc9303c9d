"""The type in which frozen weights lie: what a recipe asks for, as far as the device has products for it.

On a CPU without products in bf16 such weights are held in float32: the same numbers, computed with less rounding.
"""

import torch

from omnifarm.backbone.fp8 import uses_fp8
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.native import fast_dtype, multiplies_bf16
from omnifarm.concept.recipe import Precision

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float8": torch.bfloat16,
}
"""What a recipe's precision names."""


def weights_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """Return the type in which a device holds weights of a precision."""
    dtype = DTYPES[precision]
    return fast_dtype(device) if dtype == torch.bfloat16 else dtype


def precision_of(model: Backbone) -> Precision:
    """Return the name of a loaded model's precision."""
    return "float8" if uses_fp8(model) else "float32" if model.dtype == torch.float32 else "bfloat16"


def serves(model: Backbone, precision: Precision) -> bool:
    """Say whether a loaded model is what recipes of a precision are learned on."""
    found = precision_of(model)
    return found == precision or (precision == "bfloat16" and found == "float32" and not multiplies_bf16(model.device))

"""Pixels that an edit leaves alone: taken from the source, instead of what the autoencoder makes of them.

An edited picture is decoded from latents, so even what the edit did not touch comes back softened. Where the result
differs from the source's own round trip through the autoencoder no more than round trips differ from one another, the
edit did nothing, and the source's pixels are the better ones.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omnifarm.backbone.image_ops import to_image, to_tensor

UNTOUCHED = 10 / 127.5
"""Largest difference of a colour, in units of [-1, 1], that is no edit."""
TOUCHED = 20 / 127.5
"""Smallest one that certainly is; between the two both pictures are mixed."""


def keep_unchanged(edited: Image.Image, *, source: Image.Image, decoded: Image.Image) -> Image.Image:
    """Return an edit with the source's pixels where it changed nothing.

    Args:
        edited: The result, decoded from latents.
        source: What was edited, of the same size.
        decoded: The source's own latents, decoded.
    """
    change_HW = (to_tensor(edited) - to_tensor(decoded)).abs().amax(dim=0)
    # A pixel's noise is no edit, and the pixels beside an edit belong to it.
    share_HW = (_smooth(change_HW) - UNTOUCHED).div(TOUCHED - UNTOUCHED).clamp(0, 1)
    share_HW = _smooth(F.max_pool2d(share_HW[None], 3, stride=1, padding=1)[0])
    return to_image(torch.lerp(to_tensor(source), to_tensor(edited), share_HW))


def _smooth(values_HW: Tensor) -> Tensor:
    """Return means over 3 x 3 pixels, edges repeated."""
    padded = F.pad(values_HW[None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1)[0]

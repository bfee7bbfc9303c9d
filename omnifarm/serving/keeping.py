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

LOCAL = (60 / 127.5, 80 / 127.5)
"""Of an edit of a part of the picture: the largest difference of a colour, in units of [-1, 1], that is no edit, and
the smallest that certainly is one; between the two both pictures are mixed. What lies beyond the part is drawn anew
too, a little off, so small differences are no edit."""
GLOBAL = (10 / 127.5, 20 / 127.5)
"""The same of an edit of the whole picture, such as its light or style: there small differences are the edit."""
LARGEST_PART = 2 / 3
"""Share of the pixels that change more than `GLOBAL` allows from which on an edit is of the whole picture. On the
miniature, edits of light, place and style change .73 and more of them, nine of ten others at most .62."""


def keep_unchanged(edited: Image.Image, *, source: Image.Image, decoded: Image.Image) -> Image.Image:
    """Return an edit with the source's pixels where it changed nothing.

    Args:
        edited: The result, decoded from latents.
        source: What was edited, of the same size.
        decoded: The source's own latents, decoded.
    """
    # A pixel's noise is no edit; its neighbours' say which it is.
    change_HW = _smooth(_smooth((to_tensor(edited) - to_tensor(decoded)).abs().amax(dim=0)))
    changed = (change_HW > GLOBAL[0]).float().mean()
    untouched, touched = GLOBAL if changed > LARGEST_PART else LOCAL
    share_HW = (change_HW - untouched).div(touched - untouched).clamp(0, 1)
    # The pixels beside an edit belong to it: without them the outline of what was removed would stay.
    share_HW = _smooth(F.max_pool2d(share_HW[None], 3, stride=1, padding=1)[0])
    return to_image(torch.lerp(to_tensor(source), to_tensor(edited), share_HW))


def _smooth(values_HW: Tensor) -> Tensor:
    """Return means over 3 x 3 pixels, edges repeated."""
    padded = F.pad(values_HW[None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1)[0]

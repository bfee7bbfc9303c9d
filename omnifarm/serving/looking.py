"""Where a concept's identifier looks in a photo: the paper's figure 8, for people who want to see what was learned."""

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.attention_map import attention_of
from omnifarm.backbone.image_ops import ImageTransform, patchify_vit, to_rgb, vit_patch_size
from omnifarm.backbone.segments import Segment, VitSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.prompts import system_prompt, user_text
from omnifarm.concept.soft_tokens import SoftTokens


@torch.no_grad()
def looking_at(loaded: LoadedBackbone, image: Image.Image, *, concept: SoftTokens) -> Tensor:
    """Return how much the identifier in "Is <sks> in the photo?" attends to each patch of a photo.

    Args:
        loaded: The backbone the concept was learned for.
        image: Any photo; resized by the backbone's rules.
        concept: What is looked for.

    Returns:
        (layers, rows, columns) float32, the heads' mean weights; rows and columns are ViT patches.
    """
    vae, vit = (ImageTransform(config=rule) for rule in (loaded.config.vae_transform, loaded.config.vit_transform))
    patches, grid = patchify_vit(vit.pixels(vae.resize(to_rgb(image))), patch=vit_patch_size(loaded.config))
    introduction = system_prompt(concept, tokenizer=loaded.tokenizer)
    identifier = "<sks>"
    question = user_text(f"Is {identifier} in the photo?", tokenizer=loaded.tokenizer, rows={identifier: 0})
    segments: list[Segment] = [introduction, VitSegment(patches=patches, grid=grid), question]
    # Every segment stands between two markers.
    first_patch = len(introduction.ids) + 3
    end = first_patch + len(patches)
    weights = attention_of(
        loaded.model,
        segments,
        query=end + 2 + question.soft[0].offset,
        keys=range(first_patch, end),
        soft_table=concept.table(),
    )
    return weights.mean(dim=1).reshape(-1, *grid)

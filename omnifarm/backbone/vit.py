"""The vision tower: SigLIP blocks on packed patches of several images, each image seeing only itself.

Differences from the published SigLIP: patches come as rows of numbers in (y, x, channel) order into a linear layer,
position rows are looked up by id and never interpolated, there is no pooling head, and the configuration holds one
layer less than the file says. Names of the parameters are the official ones.

Shape letters: N patches of all images, V width, H heads, d head width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SiglipVisionConfig

from omnifarm.backbone.attention import AttentionPlan, Visibility, plan_attention
from omnifarm.backbone.attention_kernels import Attention, prepare_attention
from omnifarm.backbone.layers import Embedding, RowwiseLinear, activation_function


class VisionModel(nn.Module):
    """Holds the tower under the official name `vision_model`."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config)

    def forward(self, patches: Tensor, *, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """See `VisionTransformer.forward`."""
        return self.vision_model(patches, position_ids=position_ids, plan=plan)  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Embedding, encoder, final norm."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.num_heads = int(config.num_attention_heads)
        self.gradient_checkpointing = False

    def forward(self, patches: Tensor, *, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Encode patches.

        Args:
            patches: (N, P*P*channels) pixels in [-1, 1].
            position_ids: (N,) table rows.
            plan: From `plan_images`; which patches belong together.

        Returns:
            (N, V) after the final norm.
        """
        hidden = self.embeddings(patches, position_ids=position_ids)
        attention = prepare_attention(
            plan,
            num_heads=self.num_heads,
            num_key_heads=self.num_heads,
            like=hidden,
            needs_gradient=torch.is_grad_enabled() and hidden.requires_grad,
            kernel=None,
        )
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, attention=attention, use_reentrant=False)
            else:
                hidden = layer(hidden, attention=attention)
        return self.post_layernorm(hidden)  # type: ignore[no-any-return]


class VisionEmbeddings(nn.Module):
    """Linear patch embedding plus a learned position row."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        image_size, patch_size = cast(int, config.image_size), cast(int, config.patch_size)
        self.patch_embedding = RowwiseLinear(config.num_channels * patch_size**2, config.hidden_size)
        self.position_embedding = Embedding((image_size // patch_size) ** 2, config.hidden_size)

    def forward(self, patches: Tensor, *, position_ids: Tensor) -> Tensor:
        """Map (N, P*P*channels) to (N, V)."""
        pixels = patches.to(self.patch_embedding.weight.dtype)
        return self.patch_embedding(pixels) + self.position_embedding(position_ids)  # type: ignore[no-any-return]


class VisionLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, hidden: Tensor, *, attention: Attention) -> Tensor:
        """Map (N, V) to (N, V)."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), attention=attention)
        return hidden + self.mlp(self.layer_norm2(hidden))  # type: ignore[no-any-return]


class VisionAttention(nn.Module):
    """Full attention inside each image, with biases everywhere."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = RowwiseLinear(width, width)
        self.k_proj = RowwiseLinear(width, width)
        self.v_proj = RowwiseLinear(width, width)
        self.out_proj = RowwiseLinear(width, width)

    def forward(self, hidden: Tensor, *, attention: Attention) -> Tensor:
        """Map (N, V) to (N, V)."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(query, key, value))  # type: ignore[no-any-return]


class VisionMLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.fc1 = RowwiseLinear(config.hidden_size, config.intermediate_size)
        self.activation = activation_function(config.hidden_act)
        self.fc2 = RowwiseLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, V) to (N, V)."""
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


def plan_images(lengths: Sequence[int]) -> AttentionPlan:
    """Plan full attention inside each of several images whose patches lie one after the other.

    Args:
        lengths: Patches per image.
    """
    sequences, start = [], 0
    for length in lengths:
        rows = torch.arange(start, start + length)
        sequences.append(Visibility(query_rows=rows, key_rows=rows, mask=None))
        start += length
    return plan_attention(sequences, num_queries=start)

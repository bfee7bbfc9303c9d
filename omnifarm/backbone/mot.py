"""The language model: a mixture of two transformers that share nothing but attention.

Every token belongs to the understanding or to the generation expert, which decides its norms, projections and MLP;
one softmax mixes all tokens (BAGEL specification 4). Tokens come as two slices, so routing costs no gathers.
Official parameter names: the generation copies carry the suffix `_moe_gen`.

Shape letters: U understanding rows, E generation rows, N = U + E, D width, H heads, G key heads, d head width.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config

from omnifarm.backbone.attention import AttentionPlan, attend
from omnifarm.backbone.config import rope_theta
from omnifarm.backbone.layers import GatedMLP, RMSNorm
from omnifarm.backbone.positions import rotary_tables, rotate

SUFFIXES = ("", "_moe_gen")
"""Name suffix of the understanding and of the generation modules."""


class KeyStore(Protocol):
    """Where keys and values of earlier passes live."""

    def update(self, layer: int, key_NGd: Tensor, value_NGd: Tensor) -> tuple[Tensor, Tensor]:
        """Take the new rows of one layer; return all rows (M, G, d) that the pass's plan indexes."""


class LanguageModel(nn.Module):
    """Holds the transformer and the output head under their official names."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class MoTModel(nn.Module):
    """Embedding table, layers, one final norm per expert."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.theta = rope_theta(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(config, index=index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.touch_every_parameter = False
        """Run both experts even on no tokens: sharded training needs every rank to touch the same weights."""

    def forward(
        self, hidden_ND: Tensor, *, num_und: int, positions: Tensor, plan: AttentionPlan, store: KeyStore | None = None
    ) -> Tensor:
        """Run all layers and the final norms.

        Args:
            hidden_ND: Input vectors in memory order: understanding rows, then generation rows.
            num_und: Number of understanding rows U.
            positions: (N,) rotary positions, in memory order.
            plan: Attention over memory rows.
            store: Cached keys and values; None for a pass on its own.

        Returns:
            (N, D) after the final norms, in memory order.
        """
        tables = rotary_tables(positions, head_dim=self.head_dim, theta=self.theta, dtype=hidden_ND.dtype)
        und, gen = torch.split(hidden_ND, [num_und, len(hidden_ND) - num_und])
        slices = (und, gen)
        touch = self.touch_every_parameter or not len(hidden_ND)
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                slices = checkpoint(layer, slices, tables, plan, store, touch, use_reentrant=False)
            else:
                slices = layer(slices, tables, plan, store, touch)
        return torch.cat((self.norm(slices[0]), self.norm_moe_gen(slices[1])))


class MoTLayer(nn.Module):
    """One pre-norm block, twice, around one attention."""

    def __init__(self, config: Qwen2Config, *, index: int) -> None:
        super().__init__()
        self.self_attn = MoTAttention(config, index=index)
        for suffix in SUFFIXES:
            self.add_module(f"mlp{suffix}", GatedMLP(config.hidden_size, inner=config.intermediate_size))
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.add_module(name + suffix, RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(
        self,
        slices: tuple[Tensor, Tensor],
        tables: tuple[Tensor, Tensor],
        plan: AttentionPlan,
        store: KeyStore | None,
        touch: bool,
    ) -> tuple[Tensor, Tensor]:
        """Map ((U, D), (E, D)) to the same shapes."""
        normed = tuple(
            getattr(self, f"input_layernorm{suffix}")(hidden) if hidden.shape[0] or touch else hidden
            for suffix, hidden in zip(SUFFIXES, slices, strict=True)
        )
        mixed = self.self_attn(normed, tables, plan, store, touch)
        out = []
        for suffix, hidden, update in zip(SUFFIXES, slices, mixed, strict=True):
            if hidden.shape[0] or touch:
                hidden = hidden + update
                post_norm, mlp = getattr(self, f"post_attention_layernorm{suffix}"), getattr(self, f"mlp{suffix}")
                hidden = hidden + mlp(post_norm(hidden))
            out.append(hidden)
        return out[0], out[1]


class MoTAttention(nn.Module):
    """Separate projections and head norms per expert, one softmax over everybody."""

    def __init__(self, config: Qwen2Config, *, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.hidden_size // config.num_attention_heads
        key_width = self.head_dim * int(config.num_key_value_heads or config.num_attention_heads)
        for suffix in SUFFIXES:
            self.add_module(f"q_proj{suffix}", nn.Linear(config.hidden_size, config.hidden_size))
            self.add_module(f"k_proj{suffix}", nn.Linear(config.hidden_size, key_width))
            self.add_module(f"v_proj{suffix}", nn.Linear(config.hidden_size, key_width))
            self.add_module(f"o_proj{suffix}", nn.Linear(config.hidden_size, config.hidden_size, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(self.head_dim, eps=config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(self.head_dim, eps=config.rms_norm_eps))

    def forward(
        self,
        slices: tuple[Tensor, Tensor],
        tables: tuple[Tensor, Tensor],
        plan: AttentionPlan,
        store: KeyStore | None,
        touch: bool,
    ) -> tuple[Tensor, Tensor]:
        """Map normed ((U, D), (E, D)) to attention outputs of the same shapes."""
        projected = [
            self._project(hidden, suffix=suffix)
            for suffix, hidden in zip(SUFFIXES, slices, strict=True)
            if hidden.shape[0] or touch
        ]
        query, key, value = (
            parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*projected, strict=True)
        )
        cos, sin = tables
        query = rotate(query, cos_Nd=cos, sin_Nd=sin)
        key = rotate(key, cos_Nd=cos, sin_Nd=sin)
        if store is not None:
            key, value = store.update(self.index, key, value)
        mixed = attend(query, key, value, plan=plan)
        parts = torch.split(mixed, [slices[0].shape[0], slices[1].shape[0]])
        return tuple(  # type: ignore[return-value]
            getattr(self, f"o_proj{suffix}")(part) if part.shape[0] or touch else part
            for suffix, part in zip(SUFFIXES, parts, strict=True)
        )

    def _project(self, hidden: Tensor, *, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (n, H, d), keys and values (n, G, d) of one expert, before rotary."""
        query, key, value = (
            getattr(self, f"{name}_proj{suffix}")(hidden).unflatten(-1, (-1, self.head_dim)) for name in "qkv"
        )
        return getattr(self, f"q_norm{suffix}")(query), getattr(self, f"k_norm{suffix}")(key), value

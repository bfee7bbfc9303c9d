"""The language model: a mixture of two transformers that share nothing but attention.

Every token belongs to the understanding or to the generation expert, which decides its norms, projections and MLP;
one softmax mixes all tokens (BAGEL specification 4). Tokens come as two slices, so routing costs no gathers.
Official parameter names: the generation copies carry the suffix `_moe_gen`.

Shape letters: U understanding rows, E generation rows, N = U + E, D width, H heads, G key heads, d head width.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config

from omnifarm.backbone.attention import AttentionPlan
from omnifarm.backbone.attention_kernels import Attention, prepare_attention
from omnifarm.backbone.config import rope_theta
from omnifarm.backbone.layers import Embedding, GatedMLP, RMSNorm, RowwiseLinear
from omnifarm.backbone.packed import Outputs
from omnifarm.backbone.positions import rotary_tables, rotate

SUFFIXES = ("", "_moe_gen")
"""Name suffix of the understanding and of the generation modules."""


RotaryTables = tuple[Tensor, Tensor]
"""Cosines and sines (n, d) of some rows."""


class KeyStore(Protocol):
    """Where keys and values of earlier passes live."""

    def update(self, layer: int, key_NGd: Tensor, value_NGd: Tensor) -> tuple[Tensor, Tensor]:
        """Take the new rows of one layer; return all rows (M, G, d) that the pass's plan indexes."""


class LanguageModel(nn.Module):
    """Holds the transformer and the output head under their official names."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = RowwiseLinear(config.hidden_size, config.vocab_size, bias=False)


class MoTModel(nn.Module):
    """Embedding table, layers, one final norm per expert."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.num_heads = int(config.num_attention_heads)
        self.num_key_heads = int(config.num_key_value_heads or config.num_attention_heads)
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.theta = rope_theta(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(config, index=index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.touch_every_parameter = False
        """Run both experts even on no tokens: sharded training needs every rank to touch the same weights."""
        self.compiled = False
        """Fuse what surrounds attention with torch.compile: for long runs, since it first compiles for a minute."""
        self.attention_kernel: str | None = None
        """A name in `attention_kernels.KERNELS`, for passes on their own; None takes the usual one, as passes behind a
        store always do: a kernel chosen for training need not know their plans."""

    def forward(
        self,
        hidden_ND: Tensor,
        *,
        num_und: int,
        positions: Tensor,
        plan: AttentionPlan,
        store: KeyStore | None = None,
        outputs: Outputs | None = None,
    ) -> Tensor:
        """Run all layers and the final norms.

        Args:
            hidden_ND: Input vectors in memory order: understanding rows, then generation rows.
            num_und: Number of understanding rows U.
            positions: (N,) rotary positions, in memory order.
            plan: Attention over memory rows.
            store: Cached keys and values; None for a pass on its own.
            outputs: The rows whose result is wanted; None wants all. The last layer attends and multiplies for them
                alone.

        Returns:
            (N, D) after the final norms, in memory order; or the rows of `outputs`.
        """
        counts = [num_und, len(hidden_ND) - num_und]
        tables = self.rotary(positions, counts=counts, dtype=hidden_ND.dtype)
        slices = torch.split(hidden_ND, counts)
        touch = self.touch_every_parameter or not len(hidden_ND)
        kernel = self.attention_kernel if store is None else None
        attention = self._prepared(plan, hidden_ND, kernel=kernel)
        for index, layer in enumerate(self.layers):
            wanted = outputs if index == len(self.layers) - 1 else None
            if wanted is not None:
                attention = self._prepared(wanted.plan, hidden_ND, kernel=kernel)
            inputs = (slices, tables, attention, store, touch, self.compiled, wanted)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                slices = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                slices = layer(*inputs)
        return torch.cat((self.norm(slices[0]), self.norm_moe_gen(slices[1])))

    def _prepared(self, plan: AttentionPlan, hidden_ND: Tensor, *, kernel: str | None) -> Attention:
        return prepare_attention(
            plan,
            num_heads=self.num_heads,
            num_key_heads=self.num_key_heads,
            like=hidden_ND,
            needs_gradient=torch.is_grad_enabled() and hidden_ND.requires_grad,
            kernel=kernel,
        )

    def rotary(self, positions: Tensor, *, counts: list[int], dtype: torch.dtype) -> tuple[RotaryTables, ...]:
        """Return (cos, sin) of each expert's rows; `counts` are their numbers of rows."""
        cos, sin = rotary_tables(positions, head_dim=self.head_dim, theta=self.theta, dtype=dtype)
        return tuple(zip(torch.split(cos, counts), torch.split(sin, counts), strict=True))


class MoTLayer(nn.Module):
    """One pre-norm block, twice, around one attention."""

    def __init__(self, config: Qwen2Config, *, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_attn = MoTAttention(config)
        for suffix in SUFFIXES:
            self.add_module(f"mlp{suffix}", GatedMLP(config.hidden_size, inner=config.intermediate_size))
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.add_module(name + suffix, RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(
        self,
        slices: tuple[Tensor, ...],
        tables: tuple[RotaryTables, ...],
        attention: Attention,
        store: KeyStore | None,
        touch: bool,
        compiled: bool = False,
        outputs: Outputs | None = None,
    ) -> tuple[Tensor, ...]:
        """Map ((U, D), (E, D)) to the same shapes, or to the rows of `outputs`; `tables` holds each expert's own rows."""
        enter, leave = _compiled() if compiled else (_enter, _leave)
        is_run = [bool(hidden.shape[0]) or touch for hidden in slices]
        entered = [
            enter(self._entrance(suffix), hidden, *table, self.self_attn.head_dim)
            for suffix, hidden, table, run in zip(SUFFIXES, slices, tables, is_run, strict=True)
            if run
        ]
        query, key, value = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*entered, strict=True))
        if store is not None:
            key, value = store.update(self.index, key, value)
        if outputs is not None:
            query = query.index_select(0, outputs.rows)
            slices = tuple(hidden.index_select(0, rows) for hidden, rows in zip(slices, outputs.by_expert, strict=True))
        mixed = torch.split(attention(query, key, value), [hidden.shape[0] for hidden in slices])
        return tuple(
            leave(self._exit(suffix), hidden, part) if hidden.shape[0] or touch else hidden
            for suffix, hidden, part in zip(SUFFIXES, slices, mixed, strict=True)
        )

    def _entrance(self, suffix: str) -> tuple[nn.Module, ...]:
        names = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")
        inner = (getattr(self.self_attn, name + suffix) for name in names)
        return (getattr(self, f"input_layernorm{suffix}"), *inner)

    def _exit(self, suffix: str) -> tuple[nn.Module, ...]:
        output = getattr(self.self_attn, f"o_proj{suffix}")
        return output, getattr(self, f"post_attention_layernorm{suffix}"), getattr(self, f"mlp{suffix}")


class MoTAttention(nn.Module):
    """Holds separate projections and head norms per expert; the layer mixes them in one softmax."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        key_width = self.head_dim * int(config.num_key_value_heads or config.num_attention_heads)
        for suffix in SUFFIXES:
            self.add_module(f"q_proj{suffix}", RowwiseLinear(config.hidden_size, config.hidden_size))
            self.add_module(f"k_proj{suffix}", RowwiseLinear(config.hidden_size, key_width))
            self.add_module(f"v_proj{suffix}", RowwiseLinear(config.hidden_size, key_width))
            self.add_module(f"o_proj{suffix}", RowwiseLinear(config.hidden_size, config.hidden_size, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(self.head_dim, eps=config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(self.head_dim, eps=config.rms_norm_eps))


def _enter(
    modules: tuple[nn.Module, ...], hidden: Tensor, cos: Tensor, sin: Tensor, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one expert's rotated queries (n, H, d) and keys (n, G, d), and its values (n, G, d)."""
    norm, q_proj, k_proj, v_proj, q_norm, k_norm = modules
    normed = norm(hidden)
    query, key, value = (proj(normed).unflatten(-1, (-1, head_dim)) for proj in (q_proj, k_proj, v_proj))
    return rotate(q_norm(query), cos_Nd=cos, sin_Nd=sin), rotate(k_norm(key), cos_Nd=cos, sin_Nd=sin), value


def _leave(modules: tuple[nn.Module, ...], hidden: Tensor, mixed: Tensor) -> Tensor:
    """Add attention output and MLP to one expert's rows (n, D)."""
    output, norm, mlp = modules
    hidden = hidden + output(mixed)
    added: Tensor = hidden + mlp(norm(hidden))
    return added


@cache
def _compiled() -> tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., Tensor]]:
    return torch.compile(_enter, dynamic=True), torch.compile(_leave, dynamic=True)

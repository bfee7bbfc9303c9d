"""Fast training of the generation expert: many noised copies of one picture behind conditions that are read once.

The understanding expert is frozen, so conditions cost a forward pass and no gradient but where the generation expert
itself reads (clean pictures, generation slots). Copies of a batch have one shape, which leaves dense arithmetic that
torch.compile fuses. Mathematically the same as `Backbone.train_forward` on packs, but for the gradient that would
reach generation weights through hidden states of the understanding expert: there is none here.

Shape letters: B samples, R copies of each, T latent tokens of a picture, F frame tokens around it (2), C condition
tokens (padded), D width, H heads, d head width, E numbers per latent token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from omnifarm.backbone.attention_kernels import FusedGroups
from omnifarm.backbone.kv_cache import GrowingStore
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.mot import MoTLayer
from omnifarm.backbone.packing import Pack, Segment, pack, shifted
from omnifarm.backbone.positions import grid_position_ids, rotary_tables
from omnifarm.errors import ConfigError

_BUCKET = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What was read before the pictures.

    Attributes:
        keys: Per layer (B, H, C, d).
        values: Per layer (B, H, C, d).
        bias: (B, 1, 1, C) zero where there is a token, minus infinity in the padding.
        positions: (B,) rotary position of the picture that follows.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor
    positions: Tensor


def is_drawing_weight(name: str) -> bool:
    """Say whether a parameter of the backbone belongs to the generation side."""
    return "_moe_gen" in name or name.startswith(("vae2llm", "llm2vae", "time_embedder"))


def read_conditions(
    model: Backbone, samples: Sequence[Sequence[Segment]], *, soft_table: Tensor | None = None
) -> Conditions:
    """Run the conditions of every sample in one pass; gradients flow through generation rows alone.

    Args:
        model: With `special_ids` set; understanding weights frozen.
        samples: Clean segments per sample; a sample may be empty.
        soft_table: (R, D) table of soft slots.
    """
    packed, read = _read(model, samples, soft_table=soft_table, is_understanding_frozen=True)
    longest = max(packed.sample_lens, default=0)
    padded = max(_BUCKET, -(-longest // _BUCKET) * _BUCKET)
    rows = torch.zeros(len(samples), padded, dtype=torch.long)
    bias = torch.full((len(samples), 1, 1, padded), float("-inf"))
    token = 0
    for index, length in enumerate(packed.sample_lens):
        rows[index, :length] = packed.memory_of[token : token + length]
        bias[index, ..., :length] = 0
        token += length
    layers = range(len(read))

    def gathered(part: int) -> tuple[Tensor, ...]:
        flat = rows.flatten().to(model.device)
        chosen = (read[layer][part].index_select(0, flat) for layer in layers)
        return tuple(rows_of.reshape(*rows.shape, *rows_of.shape[1:]).transpose(1, 2) for rows_of in chosen)

    return Conditions(
        keys=gathered(0),
        values=gathered(1),
        bias=bias.to(model.device, model.dtype),
        positions=torch.tensor(packed.rope_after, device=model.device),
    )


def keys_and_values(
    model: Backbone, samples: Sequence[Sequence[Segment]], *, soft_table: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return per layer the keys and values (tokens, H, d) that drawing reads of the conditions; gradients flow everywhere.

    Args:
        model: With `special_ids` set.
        samples: Clean segments per sample.
        soft_table: (R, D) table of soft slots.
    """
    return _read(model, samples, soft_table=soft_table, is_understanding_frozen=False)[1]


def _read(
    model: Backbone, samples: Sequence[Sequence[Segment]], *, soft_table: Tensor | None, is_understanding_frozen: bool
) -> tuple[Pack, list[tuple[Tensor, Tensor]]]:
    packed = pack(samples, special_ids=model.require_special_ids(), config=model.config).to(model.device)
    language = model.language_model.model
    hidden = model.embed(packed, soft_table=soft_table)
    counts = [packed.num_und, len(hidden) - packed.num_und]
    tables = language.rotary(packed.position_ids[packed.sequence_of], counts=counts, dtype=hidden.dtype)
    und, gen = torch.split(hidden, counts)
    store = GrowingStore([])
    heads, key_heads = language.num_heads, language.num_key_heads
    attention = FusedGroups(packed.plan, num_heads=heads, num_key_heads=key_heads, dtype=hidden.dtype)
    for layer in language.layers:
        und, gen = layer((und.detach() if is_understanding_frozen else und, gen), tables, attention, store, False)
    return packed, [store.new[index] for index in range(len(language.layers))]


class CopiesForward:
    """Velocities of noised copies behind conditions.

    Args:
        model: Whose layers are run; weights are read at every call.
        grid: (rows, columns) of latent tokens of every picture.
        compiled: Fuse the element-wise work with torch.compile (a minute of compiling at first use).
    """

    def __init__(self, model: Backbone, *, grid: tuple[int, int], compiled: bool = False) -> None:
        llm = model.config.llm
        if llm.num_key_value_heads not in (None, llm.num_attention_heads):
            raise ConfigError("the drawing stage expects as many key heads as query heads")
        self.model, self.grid = model, grid
        self.heads, self.eps = int(llm.num_attention_heads), float(llm.rms_norm_eps)
        self._project, self._attend, self._finish = _project, _attend, _finish
        if compiled:
            self._project = torch.compile(_project, dynamic=False)
            self._attend = torch.compile(_attend, dynamic=False)
            self._finish = torch.compile(_finish, dynamic=False)

    def __call__(self, latents: Tensor, noise: Tensor, times: Tensor, *, conditions: Conditions) -> Tensor:
        """Return the velocities (B, R, T, E).

        Args:
            latents: (B, T, E) clean pictures.
            noise: (B, R, T, E).
            times: (B, R) in [0, 1], shifted already.
            conditions: Of the same B samples.
        """
        model, language = self.model, self.model.language_model.model
        dtype = model.dtype
        device = model.device
        latents, noise, times = latents.to(device), noise.to(device), times.to(device)
        mixed = (1 - times[..., None, None]) * latents[:, None] + times[..., None, None] * noise
        ids = grid_position_ids(self.grid, side=model.config.max_latent_size).to(device)
        count, copies = times.shape
        gen = model.vae2llm(mixed.to(dtype)) + model.latent_pos_embed(ids)
        gen = gen + model.time_embedder(times.flatten()).reshape(count, copies, 1, -1)
        special = model.require_special_ids()
        with torch.no_grad():
            ends = language.embed_tokens(torch.tensor([special.vision_start, special.vision_end], device=device))
            frame = ends.expand(count, copies, 2, -1).contiguous()
        cos, sin = rotary_tables(conditions.positions, head_dim=language.head_dim, theta=language.theta, dtype=dtype)
        cos, sin = cos[:, None, None, None], sin[:, None, None, None]
        layer: MoTLayer
        for index, layer in enumerate(language.layers):  # type: ignore[assignment]
            key, value = conditions.keys[index], conditions.values[index]
            own = _weights(layer, "_moe_gen")
            q, k, v = self._project(gen, own, cos, sin, self.heads, self.eps)
            with torch.no_grad():
                fixed = _weights(layer, "")
                frame_q, frame_k, frame_v = _project(frame, fixed, cos, sin, self.heads, self.eps)
            k, v = torch.cat((k, frame_k), dim=3), torch.cat((v, frame_v), dim=3)
            mixed = self._attend(q, k, v, key, value, conditions.bias)
            with torch.no_grad():
                frame = _finish(frame, _attend(frame_q, k, v, key, value, conditions.bias), fixed, self.eps)
            gen = self._finish(gen, mixed, own, self.eps)
        velocity: Tensor = model.llm2vae(language.norm_moe_gen(gen))
        return velocity


def copy_times(count: int, copies: int, *, shift: float, generator: torch.Generator) -> Tensor:
    """Draw times (B, R): sigmoid of a standard normal, shifted; the copies of a sample are spread over its quantiles."""
    place = torch.arange(copies) + torch.rand(count, copies, generator=generator)
    logits = torch.special.ndtri((place / copies).clamp(1e-4, 1 - 1e-4))
    times = torch.sigmoid(logits)
    return shifted(times, shift=shift)  # type: ignore[arg-type,return-value]


class _Weights(NamedTuple):
    """One expert's weights of a layer; matrices that multiply the same rows are one."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    q_norm: Tensor
    k_norm: Tensor
    output: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


def _weights(layer: MoTLayer, suffix: str) -> _Weights:
    attention = layer.self_attn
    projections = [getattr(attention, f"{name}_proj{suffix}") for name in "qkv"]
    mlp = getattr(layer, f"mlp{suffix}")
    return _Weights(
        input_norm=getattr(layer, f"input_layernorm{suffix}").weight,
        qkv=torch.cat([p.weight for p in projections]),
        qkv_bias=torch.cat([p.bias for p in projections]),
        q_norm=getattr(attention, f"q_norm{suffix}").weight,
        k_norm=getattr(attention, f"k_norm{suffix}").weight,
        output=getattr(attention, f"o_proj{suffix}").weight,
        post_norm=getattr(layer, f"post_attention_layernorm{suffix}").weight,
        gate_up=torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)),
        down=mlp.down_proj.weight,
    )


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def _project(
    hidden: Tensor, weights: _Weights, cos: Tensor, sin: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Map (B, R, T, D) to queries, keys and values (B, R, H, T, d)."""
    rows = F.linear(_norm(hidden, weights.input_norm, eps), weights.qkv, weights.qkv_bias)
    q, k, v = rows.reshape(*rows.shape[:-1], 3, heads, -1).permute(3, 0, 1, 4, 2, 5).unbind(0)
    return _turn(_norm(q, weights.q_norm, eps), cos, sin), _turn(_norm(k, weights.k_norm, eps), cos, sin), v


def _attend(q: Tensor, k: Tensor, v: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attend from (B, R, H, T, d) to the copy's own S tokens and to the conditions; return (B, R, T, H*d)."""
    batch, copies, heads, tokens, width = q.shape
    q = q * width**-0.5
    shared = q.transpose(1, 2).reshape(batch, heads, copies * tokens, width)
    far = shared @ key.transpose(-1, -2) + bias
    far = far.reshape(batch, heads, copies, tokens, -1).transpose(1, 2)
    near = q @ k.transpose(-1, -2)
    weights = torch.softmax(torch.cat((far, near), dim=-1).float(), dim=-1).to(q.dtype)
    split = far.shape[-1]
    far, near = weights[..., :split], weights[..., split:]
    from_far = far.transpose(1, 2).reshape(batch, heads, copies * tokens, -1) @ value
    out = from_far.reshape(batch, heads, copies, tokens, width).transpose(1, 2) + near @ v
    return out.transpose(2, 3).flatten(3)


def _finish(hidden: Tensor, mixed: Tensor, weights: _Weights, eps: float) -> Tensor:
    """Add attention output and MLP to (B, R, T, D)."""
    hidden = hidden + F.linear(mixed, weights.output)
    gate, up = F.linear(_norm(hidden, weights.post_norm, eps), weights.gate_up).chunk(2, dim=-1)
    return hidden + F.linear(F.silu(gate) * up, weights.down)

"""Where a token looks in an image: attention weights of one query over an image's patches (paper figure 8).

A debug output. The pass runs as always; queries are noted on their way through the head norms and the weights are
computed a second time, because fused attention never writes them out.

Shape letters: N tokens of the pass, H heads, G key heads, d head width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from omnifarm.backbone.inference import empty_context, prefill
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.mot import MoTLayer
from omnifarm.backbone.packing import pack
from omnifarm.backbone.positions import rotary_tables, rotate
from omnifarm.backbone.segments import Segment
from omnifarm.errors import ConfigError


@torch.no_grad()
def attention_of(
    model: Backbone,
    segments: Sequence[Segment],
    *,
    query: int,
    keys: range,
    soft_table: Tensor | None = None,
) -> Tensor:
    """Return how much one token attends to a range of tokens, per layer.

    Args:
        model: With `special_ids` set.
        segments: Read from the beginning; texts and pictures.
        query: Place of the looking token in the sequence, markers counted; one of the understanding expert.
        keys: Places that are looked at, all before `query`.
        soft_table: Table of the soft slots.

    Returns:
        (layers, H, len(keys)) float32: softmax weights; a row sums to at most 1, the rest goes elsewhere.

    Raises:
        ConfigError: The places do not lie as they should.
    """
    if not 0 <= keys.start < keys.stop <= query:
        raise ConfigError(f"expected keys before the query, found keys {keys.start}..{keys.stop}, query {query}")
    noted: list[Tensor] = []
    layers = (cast(MoTLayer, layer) for layer in model.language_model.model.layers)
    hooks = [layer.self_attn.get_submodule("q_norm").register_forward_hook(_note(noted)) for layer in layers]
    try:
        read = prefill(model, [empty_context(model)], [segments], soft_table=soft_table)
    finally:
        for hook in hooks:
            hook.remove()
    context = read.contexts[0]
    if query >= context.kv_len:
        raise ConfigError(f"expected the query within the {context.kv_len} tokens that were read, found {query}")
    row, rope = _und_row(model, segments, query=query)
    cos, sin = rotary_tables(
        torch.tensor([rope], device=model.device),
        head_dim=model.config.head_dim,
        theta=model.language_model.model.theta,
        dtype=model.dtype,
    )
    weights = []
    for layer, queries_NHd in enumerate(noted):
        query_Hd = rotate(queries_NHd[row : row + 1], cos_Nd=cos, sin_Nd=sin)[0].float()
        keys_TGd = context.keys[layer][: query + 1].float()
        keys_THd = keys_TGd.repeat_interleave(query_Hd.shape[0] // keys_TGd.shape[1], dim=1)
        scores_HT = torch.einsum("hd,thd->ht", query_Hd, keys_THd) * query_Hd.shape[-1] ** -0.5
        weights.append(torch.softmax(scores_HT, dim=-1)[:, keys.start : keys.stop])
    return torch.stack(weights).cpu()


def _note(noted: list[Tensor]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        noted.append(output)

    return hook


def _und_row(model: Backbone, segments: Sequence[Segment], *, query: int) -> tuple[int, int]:
    """Return a token's row among those of the understanding expert, and its rotary position."""
    packed = pack([segments], special_ids=model.require_special_ids(), config=model.config)
    row = int(packed.memory_of[query])
    if row >= packed.num_und:
        raise ConfigError(
            f"expected a token of the understanding expert at {query}, found one of the generation expert"
        )
    return row, int(packed.position_ids[query])

"""What training will take, before a machine is paid for: operations counted, seconds and bytes predicted.

Operations are counted on the packs a recipe really draws; a rate in operations per second is measured on a few steps
of the machine at hand, or given for another. Predictions multiply the two.

A token is multiplied with every weight of one expert: 2 operations per weight forward and 2 backward, for gradients
are taken with respect to inputs alone. Attention adds 4 H d per visible pair forward, twice that backward. The last
layer's projections, beyond keys and values, and the heads run on rows with a loss only. A held-out measurement is a
forward pass.

Kept for the backward pass are what each norm was given (four of them, in float32 whatever the weights are), gate, up
and their activation in the MLP, queries, keys and values as attention lays them out and, where it writes them out, its
weights. No weight has a gradient, so what a projection was given is not kept. Compiled passes keep less.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from omnifarm.backbone.attention import AttentionGroup
from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.packing import Pack
from omnifarm.errors import ConfigError
from omnifarm.training.lane import Lane
from omnifarm.training.step import pack_lanes


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """One packed step, or one held-out measurement of its lanes."""

    flops: float
    """Floating-point operations, forward and, of a step, backward to the inputs."""
    num_tokens: int
    """Tokens computed."""
    share_saved: float
    """Share of all tokens that sharing prefixes saved."""
    activation_bytes: float
    """Kept between forward and backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A whole training."""

    seconds: float
    """Stepping, of all concepts, on one device."""
    device_hours: float
    """The same in hours."""
    cost: float
    """Device hours times the price of one."""
    memory_bytes: float
    """Weights, activations of one pass, soft tokens and their AdamW memory; encoded pictures, which wait in the host's
    memory, are not counted."""


def step_cost(
    packed: Pack,
    *,
    config: BackboneConfig,
    bytes_per_number: int,
    keeps_scores: bool = True,
    is_learned: bool = True,
) -> StepCost:
    """Count one packed training step.

    Args:
        packed: A training pack.
        config: Of the backbone.
        bytes_per_number: Of the weights and activations.
        keeps_scores: Whether attention writes its weights out, as the matrix products of small packs on the CPU do.
        is_learned: Whether a backward pass follows; without one the pack is only measured.
    """
    llm = config.llm
    width, inner, layers = int(llm.hidden_size), int(llm.intermediate_size), int(llm.num_hidden_layers)
    heads = int(llm.num_attention_heads)
    key_width = width // heads * int(llm.num_key_value_heads or heads)
    enter, leave = width * (width + 2 * key_width), width * width + 3 * width * inner
    tokens, outputs = packed.num_tokens, len(packed.outputs.rows)
    weights = layers * enter * tokens + leave * ((layers - 1) * tokens + outputs)
    weights += len(packed.ce_index) * width * int(llm.vocab_size) + len(packed.mse_index) * width * config.latent_dim
    weights += len(packed.vit.index) * width * (int(config.vit.hidden_size) + width)
    pairs, last_pairs = (_pairs(plan.groups) for plan in (packed.plan, packed.outputs.plan))
    attention = 4 * width * ((layers - 1) * pairs + last_pairs)
    norm_bytes, mlp_bytes = 4 * width, bytes_per_number * 3 * inner
    key_norm_bytes = 4 * key_width
    kept = (layers - 1) * tokens * (3 * norm_bytes + key_norm_bytes + mlp_bytes)
    kept += tokens * (norm_bytes + key_norm_bytes) + outputs * (3 * norm_bytes + mlp_bytes)
    kept += 2 * 4 * len(packed.ce_index) * int(llm.vocab_size)
    for plan, times in ((packed.plan, layers - 1), (packed.outputs.plan, 1)):
        queries, keys = _rows(plan.groups)
        # Queries and what came of them, keys and values.
        laid_out = 2 * (queries * width + keys * key_width)
        if keeps_scores:
            # Keys and values stand there once for each head; the weights stand instead of what came of the queries.
            laid_out = queries * width + 2 * keys * width + heads * _pairs(plan.groups)
        kept += times * bytes_per_number * laid_out
    return StepCost(
        flops=4.0 * weights + 3 * attention if is_learned else 2.0 * weights + attention,
        num_tokens=tokens,
        share_saved=packed.num_shared / max(1, packed.num_shared + tokens),
        activation_bytes=float(kept),
    )


def lane_costs(
    lanes: Sequence[Lane],
    *,
    special_ids: SpecialIds,
    config: BackboneConfig,
    bytes_per_number: int,
    keeps_scores: bool,
    steps: range,
) -> StepCost:
    """Count what some steps of lanes in one pack would take, without taking them; their held-out samples not counted.

    Args:
        lanes: The lanes that would share the pack.
        special_ids: Ids of the frame tokens.
        config: Of the backbone.
        bytes_per_number: Of the weights and activations.
        keeps_scores: See `step_cost`.
        steps: Which steps.

    Returns:
        The mean; its memory is that of the largest step.
    """
    costs = []
    for step in steps:
        drawn = [lane.source.draw(step) for lane in lanes]
        packed, *_ = pack_lanes(lanes, drawn, special_ids=special_ids, config=config)
        costs.append(step_cost(packed, config=config, bytes_per_number=bytes_per_number, keeps_scores=keeps_scores))
    return mean_cost(costs)


def measuring_cost(
    lanes: Sequence[Lane],
    *,
    special_ids: SpecialIds,
    config: BackboneConfig,
    bytes_per_number: int,
    keeps_scores: bool,
) -> StepCost | None:
    """Count what one held-out measurement of each lane takes, one after the other; None if no lane measures.

    Args:
        lanes: The lanes of a pack.
        special_ids: Ids of the frame tokens.
        config: Of the backbone.
        bytes_per_number: Of the weights and activations.
        keeps_scores: See `step_cost`.

    Returns:
        The sum; its memory is that of the largest.
    """
    costs = []
    for lane in lanes:
        if lane.held_out is not None:
            packed, *_ = pack_lanes([lane], [lane.held_out.draw(0)], special_ids=special_ids, config=config)
            costs.append(
                step_cost(
                    packed,
                    config=config,
                    bytes_per_number=bytes_per_number,
                    keeps_scores=keeps_scores,
                    is_learned=False,
                )
            )
    if not costs:
        return None
    mean = mean_cost(costs)
    return replace(mean, flops=len(costs) * mean.flops, num_tokens=sum(one.num_tokens for one in costs))


def mean_cost(costs: Sequence[StepCost]) -> StepCost:
    """Return the cost of a typical step; the memory is that of the largest."""
    count = len(costs)
    return StepCost(
        flops=sum(one.flops for one in costs) / count,
        num_tokens=round(sum(one.num_tokens for one in costs) / count),
        share_saved=sum(one.share_saved for one in costs) / count,
        activation_bytes=max(one.activation_bytes for one in costs),
    )


def predict(
    step: StepCost,
    *,
    num_concepts: int,
    lanes: int,
    steps: int,
    flops_per_s: float,
    weight_bytes: float,
    soft_numbers: int,
    measuring: StepCost | None = None,
    measurements: int = 0,
    price_per_hour: float = 0.0,
) -> Prediction:
    """Predict a training of `num_concepts`, `lanes` of them in a pack, none of which ends early.

    Args:
        step: Cost of one packed step of `lanes` lanes.
        num_concepts: How many concepts (>= 1).
        lanes: Lanes per pack (>= 1).
        steps: Optimizer steps per concept.
        flops_per_s: What the device reaches on such packs.
        weight_bytes: Of the frozen weights.
        soft_numbers: Numbers in one concept's soft tokens.
        measuring: Cost of one held-out measurement of all `lanes` lanes; None if the recipe has none.
        measurements: Held-out measurements per concept.
        price_per_hour: Of one device, in any currency.

    Raises:
        ConfigError: A count or the rate is not above zero.
    """
    if min(num_concepts, lanes, steps) < 1 or flops_per_s <= 0:
        raise ConfigError(
            f"a plan needs at least one concept, lane and step and a rate above 0, found {num_concepts} concepts, "
            f"{lanes} lanes, {steps} steps, {flops_per_s} operations per second"
        )
    # A last pack that is not full costs its share: lanes leave and others join at any step.
    flops = steps * step.flops + (measurements * measuring.flops if measuring else 0.0)
    seconds = flops * num_concepts / lanes / flops_per_s
    hours = seconds / 3600
    optimizer_bytes = 4 * 4 * soft_numbers * lanes
    return Prediction(
        seconds=seconds,
        device_hours=hours,
        cost=hours * price_per_hour,
        memory_bytes=weight_bytes + max(one.activation_bytes for one in (step, measuring) if one) + optimizer_bytes,
    )


def _pairs(groups: Sequence[AttentionGroup]) -> int:
    """Return the query-key pairs a plan computes, padding among them."""
    return sum(
        group.query_rows.numel() * group.key_rows.shape[1]
        for group in groups
        if group.query_rows is not None and group.key_rows is not None
    )


def _rows(groups: Sequence[AttentionGroup]) -> tuple[int, int]:
    """Return how many query rows and key rows a plan lays out, padding and repetitions among them."""
    found = [(group.query_rows, group.key_rows) for group in groups]
    queries = sum(rows.numel() for rows, _ in found if rows is not None)
    return queries, sum(rows.numel() for _, rows in found if rows is not None)

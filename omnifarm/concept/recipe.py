"""How one concept is learned: every number that decides what its soft tokens become.

A recipe is part of an artifact's identity: two trainings with the same photographs, backbone and recipe are the
same job. So it holds nothing that only decides how fast or where the work is done (lanes, workers, checkpoints).
Values the method's source states are the defaults; the rest are this project's decisions.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from omnifarm.errors import ConfigError

Init = Literal["zero", "random", "class_word", "visual"]
"""How soft tokens start."""
Keep = Literal["last", "best"]
"""Which soft tokens become the artifact."""
Precision = Literal["float32", "bfloat16", "float8"]
"""Number format of the frozen weights; soft tokens and optimizer state are always float32."""
Task = Literal["understanding", "generation", "editing"]
"""What a training sample teaches."""
TASKS: tuple[Task, ...] = get_args(Task)
"""The tasks, in the order in which a step lists its samples."""

_DIGEST_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecipe:
    """Settings of one concept's optimisation. Rates are per optimizer step, fractions lie in [0, 1]."""

    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 8
    """Samples per step, over all tasks."""
    learning_rate: float = 1e-4
    """Peak AdamW rate."""
    beta1: float = 0.9
    """AdamW decay of the first moment."""
    beta2: float = 0.999
    """AdamW decay of the second moment."""
    eps: float = 1e-8
    """AdamW denominator floor."""
    weight_decay: float = 0.0
    """AdamW decoupled weight decay."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 1/warmup_steps of the peak rate; 0 for none."""
    decay_from: float = 1.0
    """Fraction of the steps after which the rate falls linearly; 1 keeps it constant."""
    decay_to: float = 0.05
    """Rate at the last step as a fraction of the peak (only with decay_from below 1)."""
    max_grad_norm: float = 1.0
    """Clip of the concept's own gradient norm (all its soft tokens together)."""
    lambda_image: float = 1.0
    """Weight of the generation loss."""
    lambda_edit: float = 1.0
    """Weight of the editing loss."""
    share_understanding: float = 1 / 3
    """Share of the samples that are questions."""
    share_generation: float = 1 / 3
    """Share of the samples that are captions with a drawing."""
    share_editing: float = 1 / 3
    """Share of the samples that are edits."""
    noise_draws: int = 1
    """Noised copies of each drawing or edit behind its condition, which is read once for all of them."""
    text_dropout: float = 0.1
    """Probability that a drawing or edit is learned without its text (and system prompt)."""
    vae_dropout: float = 0.3
    """Probability that an edit is learned without the source's latents."""
    vit_dropout: float = 0.3
    """Probability that an edit is learned without the source's ViT features."""
    num_und: int = 16
    """Soft tokens of the understanding expert besides the identifier's own (N_u)."""
    num_gen: int = 16
    """Soft tokens of the generation expert (N_g)."""
    is_coupled: bool = False
    """Send all soft tokens through the understanding expert: the ablation without decoupling."""
    is_self_described: bool = False
    """Ask the frozen backbone first what the photographs show, and teach its answers, too, as questions without a picture."""
    init: Init = "zero"
    """Start of the soft tokens: all zero; N(0, init_std); the class noun's mean embedding + N(0, init_std); or centres
    of the photographs' own visual tokens + N(0, init_std)."""
    init_std: float = 0.02
    """Standard deviation of the random part of an init other than zero."""
    identifier_init: str = ""
    """Text whose mean embedding starts the identifier's vector; empty: like the others."""
    precision: Precision = "bfloat16"
    """Number format of the frozen weights; `float8` rounds the layers' products to 8 bits around bfloat16. A CPU without
    products in bfloat16 holds such weights in float32 (see `training.precision`)."""
    held_out_photos: int = 0
    """Photographs kept from training to measure the loss on, with the questions and edits that belong to them."""
    held_out_every: int = 0
    """Steps between two held-out measurements; 0 for none."""
    patience: int = 0
    """Held-out measurements in a row without a new best after which training ends early; 0 takes every step."""
    keep: Keep = "last"
    """Keep the last soft tokens, or those with the best held-out loss."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "noise_draws"):
            _whole(name, getattr(self, name), least=1)
        for name in (
            "warmup_steps", "num_und", "num_gen", "seed", "held_out_photos", "held_out_every", "patience",
        ):  # fmt: skip
            _whole(name, getattr(self, name), least=0)
        for name in ("learning_rate", "eps", "max_grad_norm"):
            _number(name, getattr(self, name), low=0.0, high=math.inf, open_low=True)
        for name in ("weight_decay", "lambda_image", "lambda_edit", "init_std"):
            _number(name, getattr(self, name), low=0.0, high=math.inf)
        for name in ("decay_from", "decay_to", "text_dropout", "vae_dropout", "vit_dropout"):
            _number(name, getattr(self, name), low=0.0, high=1.0)
        for name in ("share_understanding", "share_generation", "share_editing"):
            _number(name, getattr(self, name), low=0.0, high=1.0)
        for name in ("beta1", "beta2"):
            _number(name, getattr(self, name), low=0.0, high=1.0)
            if getattr(self, name) == 1.0:
                raise ConfigError(f"recipe: {name} must be below 1, found 1")
        if abs(sum(self.shares.values()) - 1.0) > 1e-6:
            raise ConfigError(
                f"recipe: the shares of understanding, generation and editing must sum to 1, found {self.shares}"
            )
        for name, choices in (("init", get_args(Init)), ("precision", get_args(Precision)), ("keep", get_args(Keep))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"recipe: {name} must be one of {choices}, found {getattr(self, name)!r}")
        for name in ("is_coupled", "is_self_described"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"recipe: {name} must be true or false, found {getattr(self, name)!r}")
        if bool(self.held_out_photos) != bool(self.held_out_every):
            raise ConfigError(
                f"recipe: held_out_photos and held_out_every must both be set or both be 0, found "
                f"{self.held_out_photos} and {self.held_out_every}"
            )
        if (self.patience or self.keep == "best") and not self.held_out_every:
            raise ConfigError(
                "recipe: patience and keep 'best' need held-out measurements; set held_out_every and held_out_photos"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build a recipe from plain values; missing ones take the defaults.

        Args:
            values: Field name to value, as `to_json` gives or a backbone's `defaults["recipe"]` holds.

        Raises:
            ConfigError: An unknown name, or a value of the wrong kind or range.
        """
        return cls(**_known(values, of=cls))

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Return the recipe with some fields replaced; entries that are None are ignored.

        Raises:
            ConfigError: An unknown name, or a value of the wrong kind or range.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        return dataclasses.replace(self, **_known(given, of=type(self)))

    def to_json(self) -> dict[str, Any]:
        """Return every field as a JSON value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def digest(self) -> str:
        """Return the identity of the recipe: 64 hexadecimal digits, equal exactly when all fields are equal."""
        text = json.dumps({"version": _DIGEST_VERSION, **self.to_json()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def shares(self) -> dict[Task, float]:
        """Share of the samples per task."""
        return {
            "understanding": self.share_understanding,
            "generation": self.share_generation,
            "editing": self.share_editing,
        }

    @property
    def num_soft_tokens(self) -> int:
        """Learned vectors in all: the identifier's, N_u and N_g."""
        return 1 + self.num_und + self.num_gen

    def learning_rate_at(self, step: int) -> float:
        """Return the rate of optimizer step `step` (0-based).

        Linear warm-up, then constant, then (with decay_from below 1) linear decay to decay_to of the peak.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        start = self.decay_from * self.steps
        if self.decay_from >= 1.0 or step < start:
            return self.learning_rate
        progress = min(1.0, (step - start) / max(1.0, self.steps - 1 - start))
        return self.learning_rate * (1.0 - (1.0 - self.decay_to) * progress)

    def num_samples_at(self, step: int) -> dict[Task, int]:
        """Return how many samples of each task optimizer step `step` (0-based) holds.

        The counts sum to batch_size in every step and, over the steps, to the shares: what rounding holds back in
        one step comes in a later one.
        """
        bounds = [0.0, self.share_understanding, self.share_understanding + self.share_generation, 1.0]
        counts: dict[Task, int] = {}
        for task, low, high in zip(TASKS, bounds[:-1], bounds[1:], strict=True):
            # Sample i (counted over the whole run) belongs to the task whose interval holds its place in a fixed,
            # evenly spread sequence: a difference of two running totals per task.
            counts[task] = self._total_below(high, step) - self._total_below(low, step)
        return counts

    def _total_below(self, bound: float, step: int) -> int:
        # Rounding error must not lose a sample at the outer bound, hence the small slack.
        done, ahead = step * self.batch_size, (step + 1) * self.batch_size
        return math.floor(ahead * bound + 1e-6) - math.floor(done * bound + 1e-6)


def _known(values: Mapping[str, Any], *, of: type[TrainingRecipe]) -> dict[str, Any]:
    kinds = {field.name: field.type for field in fields(of)}
    if unknown := sorted(set(values) - set(kinds)):
        raise ConfigError(f"recipe: unknown settings {unknown}; known: {sorted(kinds)}")
    # JSON and the command line write 1 for 1.0.
    return {
        name: float(value) if kinds[name] is float and isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in values.items()
    }


def _whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"recipe: {name} must be a whole number of at least {least}, found {value!r}")


def _number(name: str, value: object, *, low: float, high: float, open_low: bool = False) -> None:
    if not isinstance(value, float | int) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"recipe: {name} must be a finite number, found {value!r}")
    if value > high or value < low or (open_low and value == low):
        wanted = f"above {low}" if math.isinf(high) and open_low else f"between {low} and {high}"
        raise ConfigError(f"recipe: {name} must be {wanted}, found {value!r}")

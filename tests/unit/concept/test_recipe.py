import dataclasses

import pytest

from omnifarm.concept.recipe import TASKS, TrainingRecipe
from omnifarm.errors import ConfigError


def test_defaults_are_the_published_ones() -> None:
    recipe = TrainingRecipe()
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.max_grad_norm) == (2000, 8, 1e-4, 1.0)
    assert (recipe.num_und, recipe.num_gen, recipe.num_soft_tokens, recipe.init) == (16, 16, 33, "zero")


def test_every_field_moves_the_digest() -> None:
    base = TrainingRecipe()
    changes = {
        "steps": 3, "batch_size": 3, "learning_rate": 2e-4, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6,
        "weight_decay": 0.1, "warmup_steps": 3, "decay_from": 0.5, "decay_to": 0.1, "max_grad_norm": 2.0,
        "lambda_image": 0.5, "lambda_edit": 0.5, "noise_draws": 2, "text_dropout": 0.2, "vae_dropout": 0.2, "vit_dropout": 0.2,
        "num_und": 3, "num_gen": 3, "init": "random", "init_std": 0.1, "identifier_init": "a", "precision": "float32",
        "seed": 3, "is_coupled": True, "is_self_described": True,
    }  # fmt: skip
    shares = {"share_understanding", "share_generation", "share_editing"}
    measuring = {"held_out_photos": 2, "held_out_every": 10, "patience": 3, "keep": "best"}
    assert set(changes) | shares | set(measuring) == {field.name for field in dataclasses.fields(TrainingRecipe)}
    digests = {base.with_overrides({name: value}).digest() for name, value in changes.items()}
    digests.add(
        base.with_overrides({"share_understanding": 0.5, "share_generation": 0.5, "share_editing": 0.0}).digest()
    )
    for taken in range(2, len(measuring) + 1):
        digests.add(base.with_overrides(dict(list(measuring.items())[:taken])).digest())
    assert len(digests) == len(changes) + 4
    assert base.digest() not in digests


def test_json_round_trip_keeps_the_digest() -> None:
    recipe = TrainingRecipe(steps=5, learning_rate=5e-3)
    assert TrainingRecipe.from_json(recipe.to_json()).digest() == recipe.digest()


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"batch_size": 1.5},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"beta2": 1.0},
        {"text_dropout": 1.5},
        {"share_editing": 0.5},
        {"init": "ones"},
        {"precision": "int4"},
        {"setps": 5},
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values)).split("_")[0]):
        TrainingRecipe.from_json(values)


def test_none_overrides_change_nothing() -> None:
    assert TrainingRecipe().with_overrides({"steps": None, "seed": 4}) == TrainingRecipe(seed=4)


def test_rate_warms_up_stays_and_decays() -> None:
    recipe = TrainingRecipe(steps=100, learning_rate=1.0, warmup_steps=10, decay_from=0.6, decay_to=0.05)
    assert recipe.learning_rate_at(0) == pytest.approx(0.1)
    assert recipe.learning_rate_at(9) == recipe.learning_rate_at(59) == 1.0
    assert recipe.learning_rate_at(99) == pytest.approx(0.05)
    assert TrainingRecipe().learning_rate_at(1999) == 1e-4


@pytest.mark.parametrize("batch_size", [1, 2, 8, 11])
def test_task_counts_fill_every_batch_and_keep_the_shares(batch_size: int) -> None:
    recipe = TrainingRecipe(batch_size=batch_size)
    steps = [recipe.num_samples_at(step) for step in range(300)]
    assert all(sum(counts.values()) == batch_size and min(counts.values()) >= 0 for counts in steps)
    for task in TASKS:
        assert sum(counts[task] for counts in steps) == pytest.approx(100 * batch_size, abs=1)


def test_shares_that_fit_the_batch_give_the_same_counts_in_every_step() -> None:
    recipe = TrainingRecipe(batch_size=11, share_understanding=8 / 11, share_generation=2 / 11, share_editing=1 / 11)
    for step in range(500):
        assert recipe.num_samples_at(step) == {"understanding": 8, "generation": 2, "editing": 1}

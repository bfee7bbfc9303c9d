import pytest
import torch
from torch import Tensor

from omnifarm.backbone.flow import Branches, SamplingOptions, Step, guide, sample, schedule
from omnifarm.errors import ConfigError


def constant(value: float, *, calls: list[float] | None = None):
    def velocity(x: Tensor, t: float) -> Tensor:
        if calls is not None:
            calls.append(t)
        return torch.full_like(x, value)

    return velocity


def test_schedule_runs_from_one_to_zero_and_follows_the_shift() -> None:
    grid = schedule(5, shift=3.0)
    assert grid[0] == 1
    assert grid[-1] == 0
    torch.testing.assert_close(grid[2], torch.tensor(3 * 0.5 / (1 + 2 * 0.5)))
    torch.testing.assert_close(schedule(4, shift=1.0), torch.tensor([1, 2 / 3, 1 / 3, 0]))


def test_n_grid_values_make_n_minus_one_steps_and_one_value_makes_none() -> None:
    noise = torch.zeros(2, 3)
    steps: list[Step] = []
    branches = Branches(main=constant(1.0), without_text=constant(0), without_image=constant(0))
    out = sample(
        branches, noise=noise, options=SamplingOptions(num_timesteps=6, cfg_text_scale=1), on_step=steps.append
    )
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    torch.testing.assert_close(out, torch.full((2, 3), -1.0))
    assert sample(branches, noise=noise, options=SamplingOptions(num_timesteps=1)) is noise


def test_branches_are_asked_only_when_their_guidance_is_in_force() -> None:
    main, text, image = [], [], []
    branches = Branches(
        main=constant(1.0, calls=main), without_text=constant(0.5, calls=text), without_image=constant(0.2, calls=image)
    )
    options = SamplingOptions(num_timesteps=10, cfg_interval=(0.4, 0.9), cfg_text_scale=4, cfg_img_scale=1)
    sample(branches, noise=torch.zeros(2, 3), options=options)
    assert len(main) == 9
    assert text
    assert all(0.4 < t <= 0.9 for t in text)
    assert not image


def test_the_interval_is_open_below_and_closed_above() -> None:
    options = SamplingOptions(cfg_interval=(0.4, 0.8), cfg_text_scale=3.0, cfg_img_scale=2.0)
    assert options.scales_at(0.8) == (3.0, 2.0)
    assert options.scales_at(0.4) == (1.0, 1.0)
    assert options.scales_at(0.81) == (1.0, 1.0)


def test_image_guidance_alone_is_ignored() -> None:
    v = torch.randn(3, 4)
    options = SamplingOptions(cfg_text_scale=1.0, cfg_img_scale=2.0)
    assert guide(v, v_text=None, v_img=torch.zeros(3, 4), options=options) is v


@pytest.mark.parametrize("kind", ["global", "channel", "text_channel"])
def test_renormalisation_never_lets_text_guidance_grow(kind: str) -> None:
    torch.manual_seed(0)
    v, v_text = torch.randn(5, 8), torch.randn(5, 8)
    options = SamplingOptions(cfg_text_scale=4.0, cfg_renorm_type=kind)
    guided = guide(v, v_text=v_text, v_img=None, options=options)
    if kind == "global":
        assert guided.norm() <= v.norm() * 1.0001
    else:
        assert (guided.norm(dim=-1) <= v.norm(dim=-1) * 1.0001).all()


def test_a_renorm_minimum_of_one_gives_plain_guidance() -> None:
    torch.manual_seed(0)
    v, v_text, v_img = torch.randn(3, 5, 8)
    options = SamplingOptions(cfg_text_scale=4.0, cfg_img_scale=2.0, cfg_renorm_min=1.0)
    expected = v_img + 2 * (v_text + 4 * (v - v_text) - v_img)
    torch.testing.assert_close(guide(v, v_text=v_text, v_img=v_img, options=options), expected)


def test_an_exception_from_on_step_ends_the_run() -> None:
    class CancelledError(Exception):
        pass

    calls: list[float] = []

    def stop(step: Step) -> None:
        if step.index == 1:
            raise CancelledError

    branches = Branches(main=constant(1.0, calls=calls), without_text=constant(0), without_image=constant(0))
    with pytest.raises(CancelledError):
        sample(branches, noise=torch.zeros(1, 1), options=SamplingOptions(cfg_text_scale=1), on_step=stop)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"cfg_renorm_type": "local"},
        {"num_timesteps": 0},
        {"timestep_shift": 0.0},
        {"cfg_renorm_min": 2.0},
        {"steps": 3},
    ],
)
def test_wrong_options_are_refused_with_their_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        SamplingOptions.from_mapping(values)


def test_options_of_a_backbone_override_the_official_ones_and_keep_the_rest() -> None:
    class Config:
        defaults = {"editing": {"num_timesteps": 9, "size": [96, 96], "cfg_interval": [0.1, 1.0]}}  # noqa: RUF012

    options = SamplingOptions.for_editing(Config())
    assert options.num_timesteps == 9
    assert options.cfg_interval == (0.1, 1.0)
    assert options.cfg_renorm_type == "text_channel"
    assert SamplingOptions.for_generation(Config()) == SamplingOptions()

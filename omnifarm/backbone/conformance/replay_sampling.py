"""Replays of whole drawings: text-to-image, think mode, editing, interleaved requests."""

import torch

from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden
from omnifarm.backbone.conformance.replay_cached import trusted
from omnifarm.backbone.conformance.replay_parts import compare_picture
from omnifarm.backbone.flow import SamplingOptions, Step
from omnifarm.backbone.interleave import SYSTEM_PROMPTS, Contexts, Drawing, Input


def replay_drawing(golden: Golden, group: Group) -> None:
    """A text, or an image and a text; with a thought if the parameters say so."""
    inputs: list[Input] = []
    if "image" in group.params:
        inputs.append(golden.image(group.param("image")))
    inputs.append(group.param("text"))
    drawing = _draw(golden, group, inputs)
    if group.params.get("think"):
        group.fact("system_prompt", SYSTEM_PROMPTS["generation"])
        group.fact("thought", drawing.thought)


def replay_interleave(golden: Golden, group: Group) -> None:
    """Text, image, text; and a thought about two images."""
    drawing = _draw(golden, group, _inputs(golden, group.param("inputs")))
    group.fact("contexts", _lengths(drawing.contexts))
    answer = trusted(golden).understand(
        _inputs(golden, group.param("understand_two_images_think_inputs")),
        think=True,
        max_tokens=group.param("understand_max_tokens"),
    )
    group.fact("understand_two_images_think_output", answer)


def sampling_options(group: Group) -> SamplingOptions:
    """Return the sampling options recorded in a group's parameters."""
    names = (
        "num_timesteps",
        "timestep_shift",
        "cfg_text_scale",
        "cfg_img_scale",
        "cfg_interval",
        "cfg_renorm_type",
        "cfg_renorm_min",
    )
    return SamplingOptions.from_mapping({name: group.param(name) for name in names})


def _draw(golden: Golden, group: Group, inputs: list[Input]) -> Drawing:
    steps: list[Step] = []
    hw = tuple(group.param("hw"))
    drawing = trusted(golden).draw(
        inputs,
        options=sampling_options(group),
        size=(hw[0], hw[1]),
        think=bool(group.params.get("think")),
        max_think_tokens=int(group.params.get("max_think_token_n", 1)),
        noise=group.given("init_noise"),
        on_step=steps.append,
    )
    group.fact("num_model_steps", len(steps))
    group.fact("hw", drawing.contexts.size or hw)
    if steps:
        group.compare("x_t_steps", torch.stack([step.x for step in steps]))
        group.compare("t_steps", torch.tensor([step.t for step in steps]))
        group.compare("cfg_scales_steps", torch.tensor([step.scales for step in steps]))
        group.compare("v_steps", torch.stack([step.velocity for step in steps]))
    group.compare("final_latent", drawing.latents)
    group.compare("decoded", drawing.pixels[None])
    compare_picture(group, "image_u8", drawing.pixels)
    return drawing


def _inputs(golden: Golden, recorded: list[str]) -> list[Input]:
    return [golden.image(item) if item.startswith("images/") else item for item in recorded]


def _lengths(contexts: Contexts) -> dict[str, dict[str, int]]:
    named = {"main": contexts.main, "text": contexts.without_text, "img": contexts.without_image}
    return {name: {"kv_len": context.kv_len, "rope": context.rope} for name, context in named.items()}

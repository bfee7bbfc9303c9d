"""The recorded sampling trajectories, all in the same passes of the serving loop."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden
from omnifarm.backbone.conformance.replay_cached import trusted
from omnifarm.backbone.conformance.replay_sampling import sampling_options
from omnifarm.backbone.flow import Step
from omnifarm.backbone.image_ops import latent_grid
from omnifarm.backbone.interleave import SYSTEM_PROMPTS
from omnifarm.backbone.kv_pool import NOTHING, KvPool
from omnifarm.backbone.weights import load_backbone
from omnifarm.serving.loop import Entry, Loop
from omnifarm.serving.prefixes import PrefixCache
from omnifarm.serving.runner import Runner
from omnifarm.serving.scheduler import Budget
from omnifarm.serving.work import Decode, Draw, Guidance, Read, Work, Write

SET_A = Path(__file__).parent / "a"
GROUPS = ("f_t2i", "f2_t2i_think", "f3_t2i_window", "g_edit", "g3_interleave", "g4_edit_window")


@pytest.fixture(scope="module")
def golden() -> Golden:
    torch.set_num_threads(1)
    index = json.loads((SET_A / "index.json").read_text())
    return Golden(folder=SET_A, index=index, backbone=load_backbone(SET_A / "checkpoint"))


def script(golden: Golden, group: Group) -> Generator[list[Work], list[Any], None]:
    """Draw what the group recorded, from its own noise, and compare every step."""
    interleaver = trusted(golden)
    recorded = group.params.get("inputs") or [*filter(None, [group.params.get("image")]), group.param("text")]
    main = without_text = without_image = NOTHING
    size = tuple(group.param("hw"))
    if group.params.get("think"):
        (main,) = yield [Read(context=NOTHING, segments=[interleaver.text(SYSTEM_PROMPTS["generation"])])]
        without_image = main
    for item in recorded:
        if item.startswith("images/") or item == group.params.get("image"):
            image: Image.Image = golden.latent_transform.resize(golden.image(item))
            size = (image.height, image.width)
            (main,) = yield [Read(context=main, segments=[interleaver.latent(image), interleaver.vit(image)])]
            without_text = main
        else:
            without_text, text = main, interleaver.text(item)
            main, without_image = yield [Read(context=one, segments=[text]) for one in (main, without_image)]
    if group.params.get("think"):
        # The recorded limit counts the start token.
        (ids,) = yield [Write(context=main, max_tokens=int(group.param("max_think_token_n")) - 1)]
        thought = golden.tokenizer.decode_generated(ids)
        group.fact("thought", thought)
        (main,) = yield [Read(context=main, segments=[interleaver.text(thought)])]
    steps: list[Step] = []
    (drawn,) = yield [
        Draw(
            guidance=Guidance(main=main, without_text=without_text, without_image=without_image),
            grid=latent_grid((size[0], size[1]), config=golden.config),
            options=sampling_options(group),
            noise=group.given("init_noise"),
            on_step=lambda step: steps.append(step),
        )
    ]
    (picture,) = yield [Decode(latents=drawn)]
    group.fact("num_model_steps", len(steps))
    group.fact("hw", (picture.height, picture.width))
    group.compare("x_t_steps", torch.stack([step.x for step in steps]))
    group.compare("t_steps", torch.tensor([step.t for step in steps]))
    group.compare("cfg_scales_steps", torch.tensor([step.scales for step in steps]))
    group.compare("v_steps", torch.stack([step.velocity for step in steps]))
    group.compare("final_latent", drawn.tokens)


def test_all_recorded_trajectories_pass_through_the_engine_together(golden: Golden) -> None:
    pool = KvPool(golden.model, capacity=16384)
    loop = Loop(
        Runner(golden.backbone, pool=pool),
        pool=pool,
        prefixes=PrefixCache(max_rows=0),
        budget=Budget(),
        soft_table=lambda: None,
        max_waiting=100,
    )
    groups = {name: Group(name, entry=golden.index["groups"][name], folder=SET_A) for name in GROUPS}
    errors: list[object] = []
    for number, group in enumerate(groups.values()):
        loop.submit(
            Entry(
                number=number,
                script=script(golden, group),
                rows=2000,
                tenant="",
                on_start=lambda: None,
                on_end=lambda result, error: errors.append(error),
            )
        )
    drawn = 0
    while loop.step():
        drawn = max(drawn, sum(type(one.task).__name__ == "DrawTask" for one in loop._tasks.values()))
    assert errors == [None] * len(GROUPS)
    assert drawn >= 5, "they were denoised in the same passes"
    for name, group in groups.items():
        report = group.report(seconds=0.0)
        compared = ("x_t_steps", "v_steps", "final_latent", "t_steps", "cfg_scales_steps")
        assert {f"{name}/{one}" for one in compared if group.expects(one)} <= {f"{name}/{one}" for one in report.ratios}
        # Pictures are compared elsewhere: nothing but "not covered" is left to say about them.
        assert [line for line in report.failures if "not covered" not in line] == []
        assert max(report.ratios[one] for one in compared if group.expects(one)) < 0.2

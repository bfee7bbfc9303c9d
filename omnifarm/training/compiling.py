"""Fusing what surrounds attention with torch.compile: when it pays, and doing it before a lane has to wait for it."""

import os
import shutil

import torch
from PIL import Image

from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import Segment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.prepared import prepare
from omnifarm.concept.samples import Prompter
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.concept.spec import PLACEHOLDER

WORTH_LANE_STEPS = 800
"""Steps of one concept from which on a worker gains more than it waits: on the miniature ten seconds, against a fifth of
every step afterwards."""


def compiling_pays(*, num_concepts: int, steps: int, num_workers: int) -> bool:
    """Say whether the workers of a job should compile.

    Args:
        num_concepts: Concepts to learn, those included that an earlier run has finished.
        steps: Steps of each.
        num_workers: Workers that share them; each compiles for itself.
    """
    return num_concepts * steps >= WORTH_LANE_STEPS * num_workers


def has_compiler(device: str) -> bool:
    """Say whether this machine can compile for a device: on the CPU that takes a C++ compiler."""
    if device != "cpu":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def compile_backbone(backbone: LoadedBackbone) -> None:
    """Make a backbone run compiled, and compile it now: a lane's first step would otherwise outlast its lease."""
    backbone.model.set_training_mode(compiled=True)
    layout = SoftTokenLayout(num_und=2, num_gen=2)
    prompter = Prompter(tokenizer=backbone.tokenizer, layout=layout, identifier=PLACEHOLDER)
    picture = prepare(backbone, Image.new("RGB", (64, 64)))
    drawn = picture.target(timestep_logit=0.0, noise=torch.zeros_like(picture.mean))
    asked: list[Segment] = [prompter.system(), picture.vit(), prompter.user("What?"), prompter.target("Yes.")]
    packed = pack(
        [asked, [prompter.system(), prompter.user("A photo."), drawn]],
        special_ids=backbone.special_ids,
        config=backbone.config,
        share_prefixes=True,
    )
    table = torch.zeros(layout.num_rows, backbone.config.hidden_size, requires_grad=True)
    output = backbone.model.train_forward(packed, soft_table=table)
    torch.autograd.grad(output.ce.sum() + output.mse.sum(), table)

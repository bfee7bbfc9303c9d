"""What a process settles before its first lane: the attention kernel, and whether torch.compile fuses the rest."""

import logging
import os
import shutil
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.attention_kernels import GPU_KERNELS, fastest_kernel
from omnifarm.backbone.packing import Pack, pack
from omnifarm.backbone.segments import Segment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.prepared import prepare
from omnifarm.concept.samples import Prompter
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.concept.spec import PLACEHOLDER
from omnifarm.logs import event

_logger = logging.getLogger(__name__)

_TYPICAL_SIDE = 512
"""Pixels of the picture that kernels are compared on; a backbone with smaller pictures shrinks it."""
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
    kernel = backbone.model.language_model.model.attention_kernel
    backbone.model.set_training_mode(compiled=True, attention_kernel=kernel)
    packed, table = _first_pack(backbone)
    output = backbone.model.train_forward(packed, soft_table=table)
    torch.autograd.grad(output.ce.sum() + output.mse.sum(), table)


def choose_attention(backbone: LoadedBackbone, *, among: Sequence[str] | None = None) -> None:
    """Have a backbone train with the attention kernel that is fastest on its device.

    Args:
        backbone: Held whole by this process.
        among: Kernels to try, the preferred ones first; None tries `GPU_KERNELS` on a GPU and keeps a CPU's usual ones.
    """
    model, llm = backbone.model, backbone.config.llm
    if among is None and model.device.type == "cpu":
        return
    packed, _ = _first_pack(backbone, side=_TYPICAL_SIDE)
    kernel, seconds = fastest_kernel(
        packed.plan.to(model.device),
        num_heads=int(llm.num_attention_heads),
        num_key_heads=int(llm.num_key_value_heads or llm.num_attention_heads),
        width=backbone.config.head_dim,
        dtype=model.dtype,
        device=model.device,
        num_layers=int(llm.num_hidden_layers),
        among=GPU_KERNELS if among is None else among,
    )
    model.set_training_mode(attention_kernel=kernel)
    event(_logger, "attention_chosen", kernel=kernel, seconds={name: round(s, 6) for name, s in seconds.items()})


def _first_pack(backbone: LoadedBackbone, *, side: int = 64) -> tuple[Pack, Tensor]:
    """Return a question and a drawing about a picture of `side` pixels as one pack, and the soft tokens they look into."""
    layout = SoftTokenLayout(num_und=2, num_gen=2)
    prompter = Prompter(tokenizer=backbone.tokenizer, layout=layout, identifier=PLACEHOLDER)
    picture = prepare(backbone, Image.new("RGB", (side, side)))
    drawn = picture.target(timestep_logit=0.0, noise=torch.zeros_like(picture.mean))
    asked: list[Segment] = [prompter.system(), picture.vit(), prompter.user("What?"), prompter.target("Yes.")]
    packed = pack(
        [asked, [prompter.system(), prompter.user("A photo."), drawn]],
        special_ids=backbone.special_ids,
        config=backbone.config,
        share_prefixes=True,
    )
    return packed, torch.zeros(layout.num_rows, backbone.config.hidden_size, requires_grad=True)

"""Concepts with random soft tokens for the tiny backbone of the golden vectors."""

from pathlib import Path

import torch

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.serving.replay import ReplayStyle

CHECKPOINT = Path(__file__).parents[2] / "golden" / "a" / "checkpoint"
QUICK = SamplingOptions(num_timesteps=4, cfg_interval=(0.0, 1.0))
NAMES = ("maeve", "bo", "cleo", "dax")
STYLE = ReplayStyle(num_exemplars=2, max_tokens=6)
EDIT = SamplingOptions(num_timesteps=4, cfg_img_scale=2.0, cfg_interval=(0.0, 1.0), cfg_renorm_type="text_channel")


def commit(
    repository: ConceptRepository, loaded: LoadedBackbone, name: str, *, seed: int, fingerprint: str = ""
) -> None:
    draw = torch.Generator().manual_seed(seed)
    width = loaded.config.hidden_size
    soft_tokens = SoftTokens(
        und=torch.randn(4, width, generator=draw) * 0.2, gen=torch.randn(3, width, generator=draw) * 0.2
    )
    manifest = ArtifactManifest(
        name=name,
        version=f"{seed:064x}",
        class_noun="dog",
        fingerprint=fingerprint or loaded.fingerprint,
        data_digest="0" * 64,
        tensors_digest=tensors_digest(encode_soft_tokens(soft_tokens)),
        num_und=3,
        num_gen=3,
        width=width,
        created_at_s=float(seed),
    )
    assert repository.commit(manifest, soft_tokens)

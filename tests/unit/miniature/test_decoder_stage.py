"""Refining the decoder: latents stay what they were, and an interrupted stage goes on where it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.weights import load_backbone
from omnifarm.miniature.pretrain.codec import CodecConfig, to_pixels
from omnifarm.miniature.pretrain.corpus import load_corpus, render_corpus
from omnifarm.miniature.pretrain.decoder_stage import refine_decoder
from omnifarm.miniature.pretrain.records import load_state


def _refine(folder: Path, codec: LatentCodec, *, budget_s: float) -> list[dict[str, float]]:
    pictures = load_corpus(folder / "pictures.npy")
    refine_decoder(
        folder,
        config=CodecConfig(budget_s=budget_s, batch_size=2),
        codec=codec,
        pictures=pictures,
        held_out=np.repeat(pictures, 32, axis=0),
    )
    return [json.loads(line) for line in (folder / "decoder.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_only_the_decoder_learns_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    render_corpus(tmp_path / "pictures.npy", num_groups=2, seed=1)
    pixels = to_pixels(torch.from_numpy(load_corpus(tmp_path / "pictures.npy")[0, :2].copy()))
    codec = load_backbone("miniature", dtype=torch.float32).autoencoder
    latents, before = codec.encode(pixels), codec.decode(codec.encode(pixels))
    first = _refine(tmp_path, codec, budget_s=1.0)
    assert torch.equal(codec.encode(pixels), latents), "what the language model draws means what it meant"
    assert not torch.equal(codec.decode(latents), before)
    assert all(np.isfinite(line["loss"]) for line in first)

    _, facts = load_state(tmp_path / "decoder_state.safetensors")
    assert facts["spent_s"] >= 1.0
    second = _refine(tmp_path, codec, budget_s=facts["spent_s"] + 0.01)
    assert second[-1]["step"] <= first[-1]["step"] + 2, "most of the budget was spent before"

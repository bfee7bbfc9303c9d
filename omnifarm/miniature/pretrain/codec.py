"""The codec stage: trains the latent autoencoder on rendered scenes and puts its latents at unit scale.

Three lessons are built in. Group norm has 32 groups, so with 32 channels every channel is its own group, its mean is
lost and colours never appear (11 dB after 400 steps, twice); every level has at least 64. Posterior noise from the
start drowns the signal; a little noise comes later, because the flow model will not hit latents exactly. Convolutions
at full resolution cost most and give least, so the residual blocks there stay identities (second convolution zero)
and are not even computed here; the decoder's learn in the stage that refines it.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omnifarm.backbone.config import AutoencoderConfig
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.native import fast_dtype
from omnifarm.miniature.pretrain import corpus
from omnifarm.miniature.pretrain.optimizer import MasterOptimizer, OptimizerConfig, cosine
from omnifarm.miniature.pretrain.records import Recorder, load_state, resumed_draws, save_state

AUTOENCODER = AutoencoderConfig(ch=32, ch_mult=(2, 2, 2, 4), num_res_blocks=1, scale_factor=1.0, shift_factor=0.0)
"""Sizes; scale and shift are measured after training."""

_IDENTITY_BLOCKS = (
    ("encoder.down.0.block", 0),
    ("decoder.up.0.block", 0),
    ("decoder.up.0.block", 1),
    ("decoder.up.1.block", 1),
)
_CHANGED = 10 / 255
_SUBJECT_WEIGHT = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfig:
    """How the codec is trained."""

    budget_s: float
    """Wall-clock seconds."""
    batch_size: int = 8
    """Pictures per step."""
    crop: int = 64
    """Side of the squares that the first part of training sees; a multiple of 16."""
    crop_share: float = 0.7
    """Share of the budget spent on crops; the rest sees whole pictures."""
    noise: float = 0.07
    """Noise added to half of the latents (their own standard deviation is about 1)."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_rate=0.015, adam_rate=2e-3))
    """Rates."""
    seed: int = 0
    """Of crops, noise and weights."""


class _Nothing(nn.Module):
    """An identity in the place of a residual block."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return `x`."""
        return x


def train_codec(
    folder: Path, *, config: CodecConfig, pictures: NDArray[np.uint8], held_out: NDArray[np.uint8]
) -> LatentCodec:
    """Train the codec, or go on from the state in `folder`.

    Args:
        folder: Receives `codec.jsonl`, `codec_state.safetensors` (state) and is looked at for one.
        config: Budget and rates.
        pictures: (N, V, 96, 96, 3) groups in the views of `corpus`.
        held_out: The same of identities that are not trained on.

    Returns:
        The codec in float32, its scale and shift set so that latents have unit scale.
    """
    torch.manual_seed(config.seed)
    codec = LatentCodec(AUTOENCODER)
    dtype = fast_dtype("cpu")
    module = without_identities(codec.module).to(dtype).train()
    encoder, decoder = module.get_submodule("encoder"), module.get_submodule("decoder")
    optimizer = MasterOptimizer(module.named_parameters(), config=config.optimizer, adam_only=("conv_in", "conv_out"))
    recorder = Recorder(folder / "codec.jsonl")
    spent, step = 0.0, 0
    state_path = folder / "codec_state.safetensors"
    if state_path.is_file():
        state, facts = load_state(state_path)
        optimizer.load_state_dict(state)
        spent, step = facts["spent_s"], facts["step"]
    rng = resumed_draws(config.seed, step)
    start, saved = time.monotonic() - spent, time.monotonic()
    while (fraction := (time.monotonic() - start) / config.budget_s) < 1:
        pixels, weight = _batch(rng, pictures, config=config, is_cropped=fraction < config.crop_share)
        latent = encoder(pixels.to(dtype))[:, : AUTOENCODER.z_channels]
        strength = config.noise * min(1.0, step / 300)
        noisy = latent + strength * (torch.rand(len(latent), 1, 1, 1) < 0.5) * torch.randn_like(latent)
        loss = _loss(decoder(noisy.to(dtype)).float(), pixels, weight)
        spread = latent.float().square().mean(dim=(0, 2, 3))
        loss = loss + 0.02 * (spread - 1).square().mean()
        torch.autograd.backward(loss)
        norm = optimizer.step(min(1.0, (step + 1) / 50) * cosine(fraction))
        step += 1
        recorder.add(step=step, loss=float(loss.detach()), grad_norm=norm)
        if time.monotonic() - saved > 60 or step in (50, 150):
            saved = time.monotonic()
            quality = measure(module, held_out)
            recorder.write(seconds=round(time.monotonic() - start, 1), skipped=optimizer.num_skipped, **quality)
            save_state(state_path, optimizer.state_dict(), step=step, spent_s=time.monotonic() - start)
    save_state(state_path, optimizer.state_dict(), step=step, spent_s=time.monotonic() - start)
    recorder.write(seconds=round(time.monotonic() - start, 1), final=True, **measure(module, held_out))
    return finished(optimizer, module, pictures=pictures)


def load_codec_state(folder: Path, *, pictures: NDArray[np.uint8]) -> LatentCodec:
    """Return the codec of a training state that may still be in progress."""
    codec = LatentCodec(AUTOENCODER)
    module = without_identities(codec.module).to(fast_dtype("cpu"))
    optimizer = MasterOptimizer(module.named_parameters(), config=OptimizerConfig(), adam_only=("conv_in", "conv_out"))
    optimizer.load_state_dict(load_state(folder / "codec_state.safetensors")[0])
    return finished(optimizer, module, pictures=pictures)


def finished(optimizer: MasterOptimizer, module: nn.Module, *, pictures: NDArray[np.uint8]) -> LatentCodec:
    """Return the codec with all its blocks, latents at unit scale."""
    masters = dict(zip((name for name, _ in module.named_parameters()), optimizer.masters, strict=True))
    whole = LatentCodec(AUTOENCODER)
    with torch.no_grad():
        for name, parameter in whole.module.named_parameters():
            if name in masters:
                parameter.copy_(masters[name])
            elif ".conv2." in name:
                parameter.zero_()
    whole.module.requires_grad_(False)
    sample = torch.from_numpy(pictures[:: max(1, len(pictures) // 24), corpus.BOTH].copy())
    mean, _ = whole.moments(to_pixels(sample))
    config = dataclasses.replace(AUTOENCODER, scale_factor=1 / float(mean.std()), shift_factor=float(mean.mean()))
    rescaled = LatentCodec(config)
    state = whole.module.state_dict()
    for name, value in state.items():
        # The posterior's log-variance is not used; a small constant keeps sampled encodings close to the mean.
        if name == "encoder.conv_out.weight":
            value[AUTOENCODER.z_channels :] = 0
        elif name == "encoder.conv_out.bias":
            value[AUTOENCODER.z_channels :] = -6.0
    rescaled.load_state(state, source="codec training")
    rescaled.module.requires_grad_(False)
    return rescaled


@torch.no_grad()
def measure(module: nn.Module, held_out: NDArray[np.uint8]) -> dict[str, float]:
    """Return mean PSNR in dB of 64 held-out pictures: whole, and on the pixels of subjects."""
    whole, subject, count = [], 0.0, 0
    for first in range(0, 64, 16):
        seen, gone = (to_pixels(torch.from_numpy(held_out[first : first + 16, v].copy())) for v in (0, 4))
        dtype = next(module.parameters()).dtype
        latent = module.get_submodule("encoder")(seen.to(dtype))[:, : AUTOENCODER.z_channels]
        out = module.get_submodule("decoder")(latent).float().clamp(-1, 1)
        error = ((out - seen) / 2).square().mean(dim=1)
        mask = ((seen - gone).abs().amax(dim=1) / 2) > _CHANGED
        whole += (-10 * error.mean(dim=(1, 2)).log10()).tolist()
        subject += float(error[mask].sum())
        count += int(mask.sum())
    return {"psnr": sum(whole) / len(whole), "psnr_subject": -10 * float(np.log10(subject / max(count, 1)))}


def to_pixels(pictures: Tensor) -> Tensor:
    """Return (B, 96, 96, 3) uint8 as (B, 3, 96, 96) float32 in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def without_identities(module: nn.Module) -> nn.Module:
    """Replace, in place, the residual blocks that are identities by nothing at all; returns the module."""
    for path, index in _IDENTITY_BLOCKS:
        cast(nn.ModuleList, module.get_submodule(path))[index] = _Nothing()
    return module


def draw_pairs(rng: np.random.Generator, pictures: NDArray[np.uint8], *, count: int) -> tuple[Tensor, Tensor]:
    """Draw pictures, and say where their subjects are.

    Args:
        rng: Draws.
        pictures: (N, V, 96, 96, 3) groups in the views of `corpus`.
        count: B.

    Returns:
        Pixels (B, 3, 96, 96) in [-1, 1], and which of them are a subject's, (B, 1, 96, 96), 1 or 0.
    """
    groups = rng.integers(0, len(pictures), count)
    # Pairs with and without the subject say which pixels are the subject's.
    choices = [(corpus.FIRST, corpus.FIRST_GONE), (corpus.BOTH, corpus.BOTH_GONE), (corpus.SECOND, corpus.EDITED[0])]
    chosen = [choices[i] for i in rng.integers(0, 3, count)]
    seen = np.stack([pictures[g, v] for g, (v, _) in zip(groups, chosen, strict=True)])
    gone = np.stack([pictures[g, v] for g, (_, v) in zip(groups, chosen, strict=True)])
    pixels = to_pixels(torch.from_numpy(seen))
    changed = (pixels - to_pixels(torch.from_numpy(gone))).abs().amax(dim=1) / 2 > _CHANGED
    return pixels, changed.float()[:, None]


def _batch(
    rng: np.random.Generator, pictures: NDArray[np.uint8], *, config: CodecConfig, is_cropped: bool
) -> tuple[Tensor, Tensor]:
    pixels, subject = draw_pairs(rng, pictures, count=config.batch_size)
    weight = 1 + _SUBJECT_WEIGHT * subject
    if rng.random() < 0.5:
        pixels, weight = pixels.flip(-1), weight.flip(-1)
    if is_cropped:
        top, left = rng.integers(0, pixels.shape[-1] - config.crop + 1, 2)
        window = (..., slice(top, top + config.crop), slice(left, left + config.crop))
        pixels, weight = pixels[window].contiguous(), weight[window].contiguous()
    return pixels, weight


def _loss(out: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    error = out - pixels
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return (weight * error.abs()).mean() + 4 * (weight * error.square()).mean() + 0.25 * edges

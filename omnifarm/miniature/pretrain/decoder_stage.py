"""The refining stage: the codec's decoder goes on alone behind the finished encoder, at full resolution too.

Latents stay what the language model has learned to draw, so this may run at any time after the codec stage. Two
things set it apart from that stage: the residual blocks at full resolution, identities until now, are trained (a drawn
world is made of sharp lines), and squared errors count most, of subjects above all, because that is what is measured.
"""

import copy
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omnifarm.allocator import keep_freed_memory
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.native import fast_dtype
from omnifarm.miniature.pretrain.codec import AUTOENCODER, CodecConfig, draw_pairs, measure, without_identities
from omnifarm.miniature.pretrain.optimizer import MasterOptimizer, cosine
from omnifarm.miniature.pretrain.records import Recorder, load_state, resumed_draws, save_state

_SUBJECT_WEIGHT = 4.0
_LARGEST_NOISE = 0.1
"""Of latents, whose own standard deviation is about 1: drawn ones are never exact."""
_SAVE_EVERY_S = 60.0


def refine_decoder(
    folder: Path,
    *,
    config: CodecConfig,
    codec: LatentCodec,
    pictures: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
) -> None:
    """Train the decoder until the budget is spent, or go on from the state in `folder`; the codec is changed in place.

    Args:
        folder: Receives `decoder.jsonl` and `decoder_state.safetensors`, and is looked at for one.
        config: Budget, rates and batch; crops are not used.
        codec: In float32.
        pictures: (N, V, 96, 96, 3) groups in the views of `corpus`.
        held_out: The same of identities that are not trained on; at least 64.
    """
    keep_freed_memory()
    state_path = folder / "decoder_state.safetensors"
    spent, step = 0.0, 0
    dtype = fast_dtype("cpu")
    module = copy.deepcopy(codec.module).to(dtype).train()
    encoder = without_identities(copy.deepcopy(module)).get_submodule("encoder")
    decoder = module.get_submodule("decoder").requires_grad_(True)
    optimizer = MasterOptimizer(decoder.named_parameters(), config=config.optimizer, adam_only=("conv_in", "conv_out"))
    if state_path.is_file():
        state, facts = load_state(state_path)
        optimizer.load_state_dict(state)
        spent, step = facts["spent_s"], facts["step"]
    rng = resumed_draws(config.seed, step)
    recorder = Recorder(folder / "decoder.jsonl")
    start, saved = time.monotonic() - spent, time.monotonic()
    done = False
    while not done:
        fraction = (time.monotonic() - start) / config.budget_s
        done = fraction >= 1
        pixels, subject = draw_pairs(rng, pictures, count=config.batch_size)
        if rng.random() < 0.5:
            pixels, subject = pixels.flip(-1), subject.flip(-1)
        with torch.no_grad():
            latent = encoder(pixels.to(dtype))[:, : AUTOENCODER.z_channels].float()
        strength = _LARGEST_NOISE / codec.config.scale_factor * torch.rand(len(latent), 1, 1, 1)
        noisy = latent + (torch.rand_like(strength) < 0.5) * strength * torch.randn_like(latent)
        loss = _loss(decoder(noisy.to(dtype)).float(), pixels, subject)
        torch.autograd.backward(loss)
        norm = optimizer.step(min(1.0, (step + 1) / 50) * cosine(fraction))
        step += 1
        recorder.add(step=step, loss=float(loss.detach()), grad_norm=norm)
        if time.monotonic() - saved > _SAVE_EVERY_S or done:
            saved = time.monotonic()
            save_state(state_path, optimizer.state_dict(), step=step, spent_s=saved - start)
            recorder.write(seconds=round(saved - start, 1), skipped=optimizer.num_skipped, **measure(module, held_out))
    _take_over(codec.module.get_submodule("decoder"), decoder, optimizer)


@torch.no_grad()
def _take_over(target: nn.Module, trained: nn.Module, optimizer: MasterOptimizer) -> None:
    masters = dict(zip((name for name, _ in trained.named_parameters()), optimizer.masters, strict=True))
    for name, parameter in target.named_parameters():
        parameter.copy_(masters[name])


def _loss(out: Tensor, pixels: Tensor, subject: Tensor) -> Tensor:
    weight, error = 1 + _SUBJECT_WEIGHT * subject, out - pixels
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return 0.5 * (weight * error.abs()).mean() + 10 * (weight * error.square()).mean() + 0.25 * edges

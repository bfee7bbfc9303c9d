"""The convolutional autoencoder of FLUX, its modules named as the tensors of the official file.

Levels count from the highest resolution on both sides: level L of the encoder halves what level L of the decoder
doubles.

Shape letters: B images, C channels, H and W pixels of a level, Z latent channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from omnifarm.backbone.config import AutoencoderConfig

_GROUPS, _EPS = 32, 1e-6


class Autoencoder(nn.Module):
    """Both halves, with random weights.

    Args:
        config: Sizes.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) to mean and log-variance (B, 2 Z, H / 2^(levels - 1), W / 2^(levels - 1))."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        last = len(widths) - 1
        # The official code begins with `ch` channels, which is the same where the first factor is 1.
        before = [widths[0], *widths[:-1]]
        self.conv_in = _conv3(config.in_channels, widths[0])
        self.down = nn.ModuleList(
            _Level(before[index], width, num_blocks=config.num_res_blocks, down=index < last)
            for index, width in enumerate(widths)
        )
        self.mid = _Middle(widths[last])
        self.norm_out = _norm(widths[last])
        self.conv_out = _conv3(widths[last], 2 * config.z_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        hidden = self.conv_in(pixels)
        for level in self.down:
            hidden = level(hidden)
        result: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(hidden))))
        return result


class Decoder(nn.Module):
    """Latents (B, Z, h, w) to pixels (B, 3, h * 2^(levels - 1), w * 2^(levels - 1))."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        self.conv_in = _conv3(config.z_channels, widths[-1])
        self.mid = _Middle(widths[-1])
        # Entered from the last level to the first.
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            _Level(before[index], width, num_blocks=config.num_res_blocks + 1, up=index > 0)
            for index, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv3(widths[0], config.out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        hidden = self.mid(self.conv_in(latents))
        for index in reversed(range(len(self.up))):
            hidden = self.up[index](hidden)
        result: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return result


class _Level(nn.Module):
    """Residual blocks at one resolution, then perhaps a change of it."""

    def __init__(self, width: int, after: int, *, num_blocks: int, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Residual(width if index == 0 else after, after) for index in range(num_blocks))
        self.downsample = _Halve(after) if down else nn.Identity()
        self.upsample = _Double(after) if up else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.block:
            hidden = block(hidden)
        result: Tensor = self.upsample(self.downsample(hidden))
        return result


class _Middle(nn.Module):
    """Two residual blocks around attention, at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = _Residual(width, width)
        self.attn_1 = _Attention(width)
        self.block_2 = _Residual(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.block_2(self.attn_1(self.block_1(hidden)))
        return result


class _Residual(nn.Module):
    """Two convolutions beside the identity, or beside a 1x1 convolution where the width changes."""

    def __init__(self, width: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width), _conv3(width, after)
        self.norm2, self.conv2 = _norm(after), _conv3(after, after)
        self.nin_shortcut = nn.Conv2d(width, after, kernel_size=1) if width != after else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(hidden)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        result: Tensor = self.nin_shortcut(hidden) + inner
        return result


class _Attention(nn.Module):
    """Softmax attention of all places of an image to all, one head, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, kernel_size=1) for _ in range(4))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        normed = self.norm(hidden_BCHW)
        query, key, value = (proj(normed).flatten(2).mT.contiguous() for proj in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        result: Tensor = hidden_BCHW + self.proj_out(mixed.mT.reshape(hidden_BCHW.shape))
        return result


class _Halve(nn.Module):
    """Half the resolution; the border is padded at the right and bottom alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(hidden, (0, 1, 0, 1)))
        return result


class _Double(nn.Module):
    """Twice the resolution: every place repeated, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv3(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return result


def _conv3(width: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(width, after, kernel_size=3, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width, eps=_EPS)

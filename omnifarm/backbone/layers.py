"""Small building blocks shared by the language model, the vision tower and the image paths."""

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnifarm.backbone.positions import sincos_table
from omnifarm.errors import ConfigError

MIN_ROWS = 16
"""From this many rows on MKL's float32 product gives every row the same bits, however many there are (measured on
AVX-512 for inner sizes of 64 to 512: it differs at 13 rows and below on an Intel Xeon, at 2 and below on an AMD EPYC).
oneDNN's product in bf16 does so from a single row on."""


class RowwiseLinear(nn.Linear):
    """A linear layer that gives a row the same bits on a CPU whatever rows lie beside it, forward and backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""
        return tall(super().forward, x)


def tall(product: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return `product` of rows (N, D), with zeros behind fewer than `MIN_ROWS` in float32; none stay none."""
    missing = MIN_ROWS - len(rows)
    if not 0 < missing < MIN_ROWS or rows.dtype == torch.bfloat16 or rows.ndim > 2:
        return product(rows)
    return product(F.pad(rows, (0, 0, 0, missing)))[: len(rows)]


class RMSNorm(nn.Module):
    """Root-mean-square norm: in float32 at least, rounded back to the input's type, then weighted.

    Args:
        width: Size of the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # The official order rounds before the weight, which a fused bf16 kernel does not.
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, *, inner: int) -> None:
        super().__init__()
        self.gate_proj = RowwiseLinear(width, inner, bias=False)
        self.up_proj = RowwiseLinear(width, inner, bias=False)
        self.down_proj = RowwiseLinear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width) to (N, width)."""
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Embedding(nn.Embedding):
    """An embedding without a start of its own where it has no memory yet, to be loaded into."""

    def reset_parameters(self) -> None:
        """Draw a start, as `nn.Embedding` does, unless the weight is only a shape: for that torch imports its compiler,
        two seconds of every process."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Connector(nn.Module):
    """Two linears with an activation between: from the vision tower's width to the language model's."""

    def __init__(self, inputs: int, *, width: int, activation: str) -> None:
        super().__init__()
        self.fc1 = RowwiseLinear(inputs, width)
        self.activation = activation_function(activation)
        self.fc2 = RowwiseLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to (N, width)."""
        return cast(Tensor, self.fc2(self.activation(self.fc1(x))))


class TimestepEmbedder(nn.Module):
    """Diffusion time to a vector of the model's width: 256-d sinusoid (cos block first), linear, SiLU, linear."""

    frequencies = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(RowwiseLinear(self.frequencies, width), nn.SiLU(), RowwiseLinear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Map (S,) times in [0, 1] to (S, width)."""
        first = cast(nn.Linear, self.mlp[0])
        return cast(Tensor, self.mlp(self.sinusoid(t).to(first.weight.dtype)))

    @classmethod
    def sinusoid(cls, t: Tensor) -> Tensor:
        """Return (S, 256) float32: cos then sin of t * exp(-ln(10000) k / 128). Time is not multiplied by 1000."""
        half = cls.frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class PositionTable(nn.Module):
    """A fixed sin-cos table that is stored in checkpoints but never trained.

    Args:
        side: Table side in tokens.
        width: Channels.
    """

    def __init__(self, side: int, *, width: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        # A buffer, so that no optimiser ever finds it among the parameters.
        self.register_buffer("pos_embed", torch.empty(side * side, width))
        self.pos_embed: Tensor
        self.reset()

    def reset(self) -> None:
        """Fill the table with its formula; used when a checkpoint does not carry it."""
        if not self.pos_embed.is_meta:
            with torch.no_grad():
                self.pos_embed.copy_(sincos_table(self.side, width=self.width))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` (N,) as (N, width)."""
        return self.pos_embed[ids]


# transformers' own table is not imported: it takes two seconds of every process that starts.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": lambda: nn.GELU("tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
"""By the names that configuration files use."""


def activation_function(name: str) -> nn.Module:
    """Return the activation that transformers' configurations call `name`.

    Raises:
        ConfigError: It is none of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, found {name!r}")
    return ACTIVATIONS[name]()

"""Where tokens are: rotary angles along the sequence, sin-cos tables and table rows inside an image.

Rotary positions say where a segment stands; inside an image all tokens share one, and a fixed two-dimensional table
is added instead (BAGEL specification 4, 5.3).
"""

import torch
from torch import Tensor

from omnifarm.errors import ConfigError


def rotary_tables(positions: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (cos, sin), each (N, head_dim), for rotate-half rotary embedding.

    Angles are computed in float32 whatever the model's precision, then rounded to `dtype`.

    Args:
        positions: (N,) integer rotary positions.
        head_dim: Even head width d.
        theta: Base; frequency j is theta ** (-2j / d).
        dtype: Type of the hidden state.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions.device).float() / head_dim
    angles = positions.float()[:, None] * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_NHd: Tensor, *, cos_Nd: Tensor, sin_Nd: Tensor) -> Tensor:
    """Apply rotary embedding to (N, H, d) queries or keys: first half against second half."""
    half = x_NHd.shape[-1] // 2
    turned = torch.cat((-x_NHd[..., half:], x_NHd[..., :half]), dim=-1)
    return x_NHd * cos_Nd[:, None] + turned * sin_Nd[:, None]


def sincos_table(side: int, *, width: int) -> Tensor:
    """Return the fixed (side * side, width) float32 table of two-dimensional positions.

    Row index is r * side + c. The first half of the channels encodes the column c, the second half the row r; each
    half is sin then cos over width/4 frequencies 10000 ** (-k / (width/4)), computed in float64.

    Args:
        side: Table side in tokens.
        width: Channels, a multiple of 4.
    """
    quarter = width // 4
    frequencies = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns = line[None].expand(side, side, 2 * quarter)
    rows = line[:, None].expand(side, side, 2 * quarter)
    return torch.cat((columns, rows), dim=2).reshape(side * side, width).float()


def grid_position_ids(grid: tuple[int, int], *, side: int, interpolate: bool = False) -> Tensor:
    """Return the table rows of an image's tokens, row-major.

    Args:
        grid: (rows, columns) of the image in tokens.
        side: Side of the table.
        interpolate: Spread the grid over the whole table (BAGEL specification 10) instead of counting from its corner.

    Returns:
        (rows * columns,) int64.

    Raises:
        ConfigError: The grid is larger than the table; its ids would silently point into the next row.
    """
    rows, columns = grid
    if not interpolate:
        if rows > side or columns > side:
            raise ConfigError(
                f"image grid {rows}x{columns} must fit the {side}x{side} position table; resize the image first"
            )
        return (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    row_ids = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / rows), boundaries, right=True)
    column_ids = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / columns), boundaries, right=True)
    return (row_ids[:, None] * side + column_ids).flatten()

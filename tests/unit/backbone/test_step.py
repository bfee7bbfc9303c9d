"""One pass over many parts: of rows nobody looks at, the last layer leaves keys and values and nothing else."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnifarm.backbone.attention import Visibility
from omnifarm.backbone.kv_pool import KvPool, Rows
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.step import Part, lay_out, run_parts

SIZES = ((3, 0), (2, 5), (0, 4), (1, 0))
"""Understanding and generation rows of each part: a text, a picture being denoised, latents alone, a token."""
WISHES = tuple(itertools.product((False, True), repeat=2))


def parts_of(rows: list[Rows], *, wants: tuple[tuple[bool, bool], ...]) -> list[Part]:
    draws = torch.Generator().manual_seed(5)
    parts = []
    for (u, e), own, wishes in zip(SIZES, rows, wants, strict=True):
        sees = Visibility(query_rows=torch.arange(u + e), key_rows=own.index, mask=None)
        if (u, e) == SIZES[0]:
            sees = replace(sees, mask=torch.ones(u, u, dtype=torch.bool).tril())
        vectors = torch.randn(u + e, 48, generator=draws, dtype=torch.float64)
        parts.append(
            Part(und=vectors[:u], gen=vectors[u:], positions=torch.arange(u + e), rows=own.index, sequences=(sees,), wants=wishes)
        )  # fmt: skip
    return parts


def run(model: Backbone, *, wants: tuple[tuple[bool, bool], ...]) -> tuple[list[tuple[Tensor, Tensor]], KvPool]:
    pool = KvPool(model, capacity=64)
    rows = [pool.take(u + e) for u, e in SIZES]
    with torch.inference_mode():
        return run_parts(model, pool, parts_of(rows, wants=wants)), pool


@pytest.mark.parametrize("second", WISHES)
@pytest.mark.parametrize("first", WISHES)
def test_what_is_wanted_is_what_a_pass_that_wants_everything_finds(
    tiny_model: Backbone, first: tuple[bool, bool], second: tuple[bool, bool]
) -> None:
    wants = (first, second, second[::-1], first[::-1])
    everything, filled = run(tiny_model, wants=((True, True),) * len(SIZES))
    some, pool = run(tiny_model, wants=wants)
    for whole, found, wishes in zip(everything, some, wants, strict=True):
        for all_rows, rows, is_wanted in zip(whole, found, wishes, strict=True):
            torch.testing.assert_close(rows, all_rows if is_wanted else all_rows[:0], rtol=0, atol=1e-12)
    for tables, others in ((pool.keys, filled.keys), (pool.values, filled.values)):
        for table, other in zip(tables, others, strict=True):
            torch.testing.assert_close(table, other, rtol=0, atol=1e-12)


def test_the_last_layer_attends_for_what_is_wanted_alone(tiny_model: Backbone) -> None:
    pool = KvPool(tiny_model, capacity=64)
    rows = [pool.take(u + e) for u, e in SIZES]

    def queries(wants: tuple[bool, bool]) -> int | None:
        layout = lay_out(parts_of(rows, wants=(wants,) * len(SIZES)), device="cpu", dtype=torch.float64)
        return None if layout.outputs is None else len(layout.outputs.rows)

    assert queries((True, True)) is None
    assert queries((True, False)) == sum(u for u, _ in SIZES)
    assert queries((False, True)) == sum(e for _, e in SIZES)
    assert queries((False, False)) == 0

"""What goes wrong in one request stays with that request, also in a pass that it shares."""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from omnifarm.backbone.kv_pool import NOTHING, KvPool
from omnifarm.backbone.segments import TextSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.errors import OmniFarmError, OverloadedError, ServingError
from omnifarm.serving import runner
from omnifarm.serving.engine import Engine
from omnifarm.serving.loop import Entry, Loop
from omnifarm.serving.prefixes import PrefixCache
from omnifarm.serving.runner import Runner
from omnifarm.serving.scheduler import Budget
from omnifarm.serving.work import Draw, Guidance, Latents, Read, Script, Write
from tests.unit.serving.concepts import QUICK
from tests.unit.serving.test_batching import content, mixed_requests, run_together

Ended = tuple[Any, OmniFarmError | None]


@pytest.fixture(autouse=True)
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pytest keeps log records, a record the frames of its error, and those the rows that must come back."""
    monkeypatch.setattr(logging.getLogger("omnifarm.serving"), "disabled", True)


def run_all(loaded: LoadedBackbone, scripts: Sequence[Script[Any]]) -> list[Ended]:
    """Run scripts side by side; return the result or the error of each."""
    pool = KvPool(loaded.model, capacity=4096)
    loop = Loop(
        Runner(loaded, pool=pool),
        pool=pool,
        prefixes=PrefixCache(max_rows=0),
        budget=Budget(),
        soft_table=lambda: None,
        max_waiting=len(scripts),
    )
    ended: dict[int, Ended] = {}
    for number, script in enumerate(scripts):

        def note(result: Any, error: OmniFarmError | None, number: int = number) -> None:
            ended[number] = (result, error)

        loop.submit(Entry(number=number, script=script, rows=100, tenant="", on_start=lambda: None, on_end=note))
    while loop.step():
        pass
    assert pool.num_used == 0
    return [ended[number] for number in range(len(scripts))]


def drawing(loaded: LoadedBackbone, *, seed: int, num_latents: int = 4, on_step: Any = None) -> Script[list[float]]:
    (context,) = yield [Read(context=NOTHING, segments=[TextSegment(ids=(5, 6, 7))])]
    noise = torch.randn(num_latents, loaded.config.latent_dim, generator=torch.Generator().manual_seed(seed))
    guidance = Guidance(main=context, without_text=NOTHING, without_image=context)
    (drawn,) = yield [Draw(guidance=guidance, grid=(2, 2), options=QUICK, noise=noise, on_step=on_step)]
    assert isinstance(drawn, Latents)
    return drawn.tokens.flatten().tolist()


def writing(*, first: int, on_tokens: Callable[[list[int]], None] | None = None) -> Script[list[int]]:
    (context,) = yield [Read(context=NOTHING, segments=[TextSegment(ids=(first, 6, 7))])]
    (ids,) = yield [Write(context=context, max_tokens=6, on_tokens=on_tokens)]
    return list(ids)


def neighbours(loaded: LoadedBackbone) -> list[Script[Any]]:
    return [drawing(loaded, seed=1), writing(first=8), drawing(loaded, seed=2), writing(first=9)]


def test_what_breaks_the_pass_fails_alone(loaded: LoadedBackbone) -> None:
    alone = [run_all(loaded, [one])[0] for one in neighbours(loaded)]
    # Three latents where the picture has four: nobody notices before the pass.
    *found, broken = run_all(loaded, [*neighbours(loaded), drawing(loaded, seed=3, num_latents=3)])
    assert found == alone
    assert [error for _, error in alone] == [None] * 4
    assert type(broken[1]) is ServingError


def test_a_listener_that_raises_takes_nobody_with_it(loaded: LoadedBackbone) -> None:
    def deaf(ids: list[int]) -> None:
        if len(ids) == 3:
            raise ValueError("a listener's mistake")

    alone = [run_all(loaded, [one])[0] for one in neighbours(loaded)]
    # In the middle of the pass: those before it and those behind it go on.
    others = neighbours(loaded)
    found = run_all(loaded, [*others[:2], writing(first=5, on_tokens=deaf), *others[2:]])
    broken = found.pop(2)
    assert found == alone
    assert type(broken[1]) is ServingError
    assert "ValueError" in str(broken[1])


def test_who_runs_out_of_memory_is_asked_to_come_back(loaded: LoadedBackbone) -> None:
    alone = [run_all(loaded, [one])[0] for one in neighbours(loaded)]
    greedy = drawing(loaded, seed=3, on_step=lambda step: torch.empty(10**15))
    *found, broken = run_all(loaded, [*neighbours(loaded), greedy])
    assert found == alone
    assert isinstance(broken[1], OverloadedError)
    assert broken[1].facts["retry_after_s"] > 0


def test_a_pass_too_large_for_memory_is_run_in_parts(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run_together(new_engine(), mixed_requests(new_engine()))
    run_parts, sizes = runner.run_parts, list[int]()

    def cramped(model: Any, pool: Any, parts: Any, **options: Any) -> list[tuple[Tensor, Tensor]]:
        size = len(list(itertools.chain.from_iterable(part.sequences for part in parts)))
        sizes.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("no room for more than three sequences")
        return run_parts(model, pool, parts, **options)

    monkeypatch.setattr(runner, "run_parts", cramped)
    engine = new_engine()
    assert run_together(engine, mixed_requests(engine)) == alone
    assert max(sizes) > 3
    assert [content(engine.run(request)) for request in mixed_requests(engine)[:1]] == alone[:1]

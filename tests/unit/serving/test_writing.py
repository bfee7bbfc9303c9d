"""A text being written, token by token: where it ends and what counts."""

import pytest
import torch

from omnifarm.backbone.kv_pool import NOTHING, KvPool
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.serving.tasks import WriteTask
from omnifarm.serving.work import Write


def write(loaded: LoadedBackbone, tokens: list[int], *, max_tokens: int) -> tuple[list[list[int]], list[int] | None]:
    """Let the model predict `tokens`; return what was told after every pass, and the result."""
    told: list[list[int]] = []
    task = WriteTask(
        Write(context=NOTHING, max_tokens=max_tokens, on_tokens=told.append),
        model=loaded.model,
        pool=KvPool(loaded.model, capacity=max_tokens),
    )
    for token in tokens:
        assert len(task.visible) == task.position + 1
        logits = torch.zeros(loaded.config.llm.vocab_size)
        logits[token] = 1.0
        written = task.advance(logits)
        if written is not None:
            return told, written
    return told, None


def test_every_pass_adds_a_token_until_the_limit(loaded: LoadedBackbone) -> None:
    start = loaded.model.require_special_ids().im_start
    told, written = write(loaded, [5, 6, 7, 8], max_tokens=3)
    assert told == [[start, 5], [start, 5, 6], [start, 5, 6, 7]]
    assert written == told[-1]


@pytest.mark.parametrize("max_tokens", [3, 4, 9])
def test_the_end_token_ends_a_text_and_does_not_count(loaded: LoadedBackbone, max_tokens: int) -> None:
    ids = loaded.model.require_special_ids()
    told, written = write(loaded, [5, 6, ids.im_end], max_tokens=max_tokens)
    assert written == [ids.im_start, 5, 6]
    assert len(told) == 3


def test_a_text_may_be_empty(loaded: LoadedBackbone) -> None:
    ids = loaded.model.require_special_ids()
    assert write(loaded, [ids.im_end], max_tokens=1) == ([[ids.im_start]], [ids.im_start])

"""Asks a system everything that is not on file yet. Knows no metric, no judge and no process but its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.system import Reply, System
from omnifarm.bench.tasks import UNDERSTANDING, Benchmark, Item, Task
from omnifarm.clock import Clock, SystemClock
from omnifarm.errors import OmniFarmError


def ask_all(
    system: System,
    benchmark: Benchmark,
    replies: ReplyFile,
    *,
    tasks: Sequence[Task],
    base_seed: int,
    concepts: Sequence[str] = (),
    on_reply: Callable[[Item], None] = lambda item: None,
    clock: Clock | None = None,
) -> int:
    """Ask what is missing, concept by concept.

    Args:
        system: Who is asked.
        benchmark: What is asked.
        replies: Where replies go; what is there is left alone.
        tasks: Which tasks the system takes part in.
        base_seed: Seeds of items derive from it.
        concepts: Only these; empty for all. Any division of the concepts over processes gives the same replies.
        on_reply: Called after each new reply.
        clock: For `total_s`, the seconds a reply took, pictures read and all.

    Returns:
        How many items were asked.
    """
    clock = clock or SystemClock()
    done = replies.done()
    asked = 0
    for concept in benchmark.concepts:
        if concepts and concept.name not in concepts:
            continue
        missing = [item for item in benchmark.items_of(concept.name, *tasks) if (concept.name, item.id) not in done]
        if not missing:
            continue
        try:
            system.fit(concept)
        except OmniFarmError as error:
            for item in missing:
                replies.write(item, None, failure=f"not fitted: {error}", seed=item.seed(base_seed))
                on_reply(item)
            asked += len(missing)
            continue
        for item in missing:
            seed = item.seed(base_seed)
            began_s = clock.monotonic_s()
            try:
                reply = _ask(system, benchmark, item, seed=seed)
            except OmniFarmError as error:
                replies.write(item, None, failure=str(error), seed=seed)
            else:
                total_s = round(clock.monotonic_s() - began_s, 4)
                replies.write(item, replace(reply, timings={**reply.timings, "total_s": total_s}), seed=seed)
            asked += 1
            on_reply(item)
    return asked


def _ask(system: System, benchmark: Benchmark, item: Item, *, seed: int) -> Reply:
    picture = benchmark.picture_of(item)
    if item.task in UNDERSTANDING:
        return system.answer(item.text, picture)
    if item.task == "edit":
        assert picture is not None, item
        return system.edit(picture, item.text, seed=seed)
    return system.generate(item.text, seed=seed)

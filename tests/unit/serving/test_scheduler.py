"""Who runs and who is let in: whole numbers only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnifarm.errors import ConfigError
from omnifarm.serving.scheduler import Budget, Candidate, Claim, Kind, admit, choose, pieces_of

BUDGET = Budget(step_tokens=100, draw_tokens_beside_text=40, codec_jobs=1, max_running=4)


def write(task: int, *, served: int = 0) -> Candidate:
    return Candidate(task=task, kind=Kind.WRITE, pieces=(1,), last_served=served)


def read(task: int, *pieces: int, served: int = 0, text: bool = False) -> Candidate:
    return Candidate(task=task, kind=Kind.READ, pieces=pieces, last_served=served, is_towards_text=text)


def draw(task: int, tokens: int, *, served: int = 0) -> Candidate:
    return Candidate(task=task, kind=Kind.DRAW, pieces=(tokens,), last_served=served)


def granted(*candidates: Candidate, budget: Budget = BUDGET) -> dict[int, int]:
    return {grant.task: grant.num_pieces for grant in choose(candidates, budget=budget)}


def test_everything_runs_while_it_fits() -> None:
    assert granted(draw(1, 30), read(2, 20, 10), write(3)) == {1: 1, 2: 2, 3: 1}


def test_reading_takes_as_many_pieces_as_fit() -> None:
    assert granted(read(1, 60, 30, 30)) == {1: 2}


def test_denoising_takes_only_its_share_while_text_is_written_or_waited_for() -> None:
    assert granted(draw(1, 30), draw(2, 30)) == {1: 1, 2: 1}
    assert granted(draw(1, 30), draw(2, 30), write(3)) == {1: 1, 3: 1}
    assert granted(draw(1, 30), draw(2, 30), read(3, 10, text=True)) == {1: 1, 3: 1}
    assert granted(draw(1, 30), draw(2, 30), read(3, 10)) == {1: 1, 2: 1, 3: 1}


def test_the_least_recently_served_goes_first() -> None:
    assert granted(draw(1, 60, served=5), draw(2, 60, served=4)) == {2: 1}


def test_a_piece_larger_than_any_budget_has_its_turn_too() -> None:
    assert granted(read(1, 500)) == {1: 1}
    assert granted(draw(1, 500)) == {1: 1}
    assert granted(draw(1, 500, served=1), draw(2, 60)) == {2: 1}
    assert granted(draw(1, 500), draw(2, 60, served=1)) == {1: 1}
    assert granted(draw(1, 500), read(2, 500), write(3)) == {1: 1, 2: 1, 3: 1}


def test_codec_jobs_are_counted_by_themselves() -> None:
    codec = [Candidate(task=task, kind=Kind.CODEC, pieces=(0,), last_served=0) for task in (1, 2)]
    assert granted(*codec, draw(3, 90)) == {1: 1, 3: 1}


candidates = st.lists(
    st.one_of(
        st.builds(write, st.integers(0, 10**6)),
        st.builds(
            lambda task, pieces: read(task, *pieces), st.integers(0, 10**6), st.lists(st.integers(1, 300), min_size=1)
        ),
        st.builds(draw, st.integers(0, 10**6), st.integers(1, 300)),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda one: one.task,
)


@settings(deadline=None, max_examples=60)
@given(candidates)
def test_some_task_always_runs_and_only_the_first_of_a_kind_exceeds_the_budget(waiting: list[Candidate]) -> None:
    by_task = {one.task: one for one in waiting}
    grants = choose(waiting, budget=BUDGET)
    assert grants
    assert all(grant.num_pieces >= 1 for grant in grants)
    firsts: dict[Kind, int] = {}
    for grant in grants:
        firsts.setdefault(by_task[grant.task].kind, grant.task)
    rest = [grant for grant in grants if grant.task not in firsts.values()]
    assert sum(sum(by_task[grant.task].pieces[: grant.num_pieces]) for grant in rest) <= BUDGET.step_tokens
    writers = {one.task for one in waiting if one.kind is Kind.WRITE}
    assert writers <= {grant.task for grant in grants}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.booleans())
def test_every_drawing_finishes_beside_any_others(sizes: list[int], beside_text: bool) -> None:
    steps_left = dict.fromkeys(range(len(sizes)), 3)
    served = dict.fromkeys(steps_left, 0)
    for step in range(1, 3 * len(sizes) + 1):
        waiting = [draw(task, sizes[task], served=served[task]) for task in steps_left]
        if beside_text:
            waiting.append(write(10**9))
        ran = [grant.task for grant in choose(waiting, budget=BUDGET) if grant.task in steps_left]
        assert ran, "denoising goes on beside text, if slowly"
        for task in ran:
            served[task] = step
            steps_left[task] -= 1
            if not steps_left[task]:
                del steps_left[task]
        if not steps_left:
            break
    assert not steps_left


def claim(request: int, rows: int, tenant: str = "") -> Claim:
    return Claim(request=request, rows=rows, tenant=tenant)


def admitted(waiting: Sequence[Claim], *, running: Mapping[str, int], free_rows: int) -> list[int]:
    return admit(waiting, running=running, free_rows=free_rows, budget=BUDGET).admitted


def test_tenants_take_turns_and_nobody_overtakes_within_one() -> None:
    waiting = [claim(1, 10, "a"), claim(2, 10, "a"), claim(3, 10, "a"), claim(4, 10, "b")]
    assert admitted(waiting, running={}, free_rows=1000) == [1, 4, 2, 3]
    assert admitted(waiting, running={"a": 2}, free_rows=1000) == [4, 1]
    assert admitted([claim(1, 80, "a"), claim(2, 10, "a")], running={}, free_rows=50) == []
    assert admitted([claim(1, 40, "a"), claim(2, 20, "a"), claim(3, 5, "a")], running={}, free_rows=50) == [1]


def test_a_large_request_lets_other_tenants_pass_until_it_is_due() -> None:
    large = claim(1, 80, "a")
    decided = admit([large, claim(2, 10, "a"), claim(3, 10, "b")], running={}, free_rows=50, budget=BUDGET)
    assert decided.admitted == [3]
    assert decided.waiting == [replace(large, overtakes=1), claim(2, 10, "a")]
    due = replace(large, overtakes=BUDGET.max_overtakes)
    others = [claim(4, 10, "b"), claim(5, 10, "c")]
    assert admitted([due, *others], running={}, free_rows=50) == []
    assert admitted([due, *others], running={"a": 3}, free_rows=95) == [1]


arrivals = st.lists(
    st.tuples(st.integers(1, 100), st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(arrivals)
def test_everybody_is_let_in_and_nobody_is_overtaken_too_often(coming: list[tuple[int, str, int, int]]) -> None:
    """Requests come over time (rows, tenant, steps it runs, steps until the next comes) to a pool of 100 rows."""
    budget = Budget(max_running=4, max_overtakes=3)
    waiting: list[Claim] = []
    ends: dict[int, int] = {}
    overtakes: Counter[int] = Counter()
    due = [0]
    for *_, pause in coming:
        due.append(due[-1] + pause)
    let_in: list[int] = []
    for step in range(due[-1] + 5 * len(coming)):
        waiting += [
            claim(number, rows, tenant) for number, (rows, tenant, _, _) in enumerate(coming) if due[number] == step
        ]
        under_way = [number for number, end in ends.items() if end > step]
        decided = admit(
            waiting,
            running=Counter(coming[number][1] for number in under_way),
            free_rows=100 - sum(coming[number][0] for number in under_way),
            budget=budget,
        )
        for number in decided.admitted:
            gone = set(let_in) | {number}
            lines = [one.request for one in waiting if one.request not in gone]
            firsts = {coming[one][1]: one for one in reversed(lines)}
            overtakes.update(one for tenant, one in firsts.items() if tenant != coming[number][1] and one < number)
            assert not any(coming[one][1] == coming[number][1] and one < number for one in lines), "in order of arrival"
            let_in.append(number)
            ends[number] = step + coming[number][2]
        waiting = decided.waiting
        assert sum(coming[number][0] for number, end in ends.items() if end > step) <= 100
        assert len([end for end in ends.values() if end > step]) <= budget.max_running
    assert sorted(let_in) == list(range(len(coming)))
    assert max(overtakes.values(), default=0) <= budget.max_overtakes


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 900), st.booleans()), max_size=8), st.integers(1, 256))
def test_pieces_add_up_and_only_a_picture_is_larger_than_allowed(splits: list[tuple[int, bool]], largest: int) -> None:
    pieces = pieces_of(splits, largest=largest)
    assert sum(pieces) == sum(length for length, _ in splits)
    assert Counter(size for size in pieces if size > largest) <= Counter(
        n for n, may_be_cut in splits if not may_be_cut
    )
    ends = set()
    total = 0
    for size in pieces:
        total += size
        ends.add(total)
    first = 0
    for length, may_be_cut in splits:
        if not may_be_cut:
            assert not any(first < end < first + length for end in ends), "a picture is never cut"
        first += length


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="step_tokens"):
        Budget(step_tokens=0)

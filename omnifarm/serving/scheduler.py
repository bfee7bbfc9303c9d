"""Who runs in the next step, and who is let in: pure functions over whole numbers, no tensor and no clock.

Four rules. Whoever writes text gets its token in every step, because somebody is reading along. What is left of the
step's budget goes to reading, then to denoising, least recently served first. While text is being written or waited
for, denoising takes only a share of the budget, so that a token does not wait for a gallery. One piece to read and one
drawing run in every step, so that nobody starves.

Admission reserves the most rows a request can ever hold, so nothing that was let in is ever thrown out again.
Tenants take turns, and nobody overtakes within a tenant. Whoever does not fit yet waits and lets other tenants pass,
a bounded number of times: then everybody waits until there is room for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from omnifarm.errors import ConfigError


class Kind(IntEnum):
    """What a task does in a step; smaller goes first."""

    WRITE = 0
    """One token of text."""
    READ = 1
    """Pieces of text or pictures."""
    DRAW = 2
    """One denoising evaluation, all guidance branches at once."""
    CODEC = 3
    """Pixels to latents or back: outside the pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one step may cost, and what may be under way."""

    step_tokens: int = 2560
    """Tokens of one pass, all experts and branches; one piece to read and one drawing run whatever they cost."""
    draw_tokens_beside_text: int = 640
    """Of these, for denoising while somebody writes or reads towards text."""
    codec_jobs: int = 2
    """Pictures encoded or decoded after a pass."""
    max_running: int = 64
    """Requests under way."""
    max_overtakes: int = 16
    """Later requests of other tenants that are let in before the first of a tenant's line."""

    @classmethod
    def of(cls, step_tokens: int) -> "Budget":
        """Return a budget of so many tokens a step, the usual quarter of them for denoising beside text."""
        return cls(step_tokens=step_tokens, draw_tokens_beside_text=max(1, step_tokens // 4))

    def __post_init__(self) -> None:
        for name in ("step_tokens", "draw_tokens_beside_text", "codec_jobs", "max_running", "max_overtakes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A task that could run now."""

    task: int
    """Its number; grows with time."""
    kind: Kind
    """What it does."""
    pieces: tuple[int, ...]
    """Tokens of its next pieces in order, each indivisible; a token or an evaluation is one piece."""
    last_served: int
    """Number of the step that served it last, or when it came."""
    is_towards_text: bool = False
    """Whether somebody waits for text behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """A task's share of the next step."""

    task: int
    """Its number."""
    num_pieces: int
    """How many of its pieces run."""


def choose(candidates: Sequence[Candidate], *, budget: Budget) -> list[Grant]:
    """Return what runs in the next step; something does whenever there is a candidate.

    Args:
        candidates: Tasks that could run.
        budget: What the step may cost.
    """
    grants: list[Grant] = []
    left = budget.step_tokens
    somebody_waits_for_text = any(one.kind is Kind.WRITE or one.is_towards_text for one in candidates)
    draw_left = budget.draw_tokens_beside_text if somebody_waits_for_text else left
    codec_left = budget.codec_jobs
    kinds_served: set[Kind] = set()
    for one in sorted(candidates, key=lambda one: (one.kind, one.last_served, one.task)):
        if one.kind is Kind.CODEC:
            if codec_left:
                grants.append(Grant(task=one.task, num_pieces=1))
                codec_left -= 1
            continue
        room = left if one.kind is not Kind.DRAW else min(left, draw_left)
        # The first of its kind always runs, whatever it costs: the others could leave it too little room for ever.
        taken = _fitting(one.pieces, room=room) or (1 if one.kind not in kinds_served else 0)
        if not taken:
            continue
        grants.append(Grant(task=one.task, num_pieces=taken))
        kinds_served.add(one.kind)
        cost = sum(one.pieces[:taken])
        left = max(0, left - cost)
        if one.kind is Kind.DRAW:
            draw_left = max(0, draw_left - cost)
    return grants


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A request that wants to be let in."""

    request: int
    """Its number; grows with time."""
    rows: int
    """The most rows it can ever hold."""
    tenant: str
    """Whose it is."""
    overtakes: int = 0
    """Later requests of other tenants that were let in while it was the first of its tenant's line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Who is let in, and who was overtaken by that."""

    admitted: list[int]
    """Requests, in order."""
    waiting: list[Claim]
    """The others as they are now, in order of arrival."""


def admit(waiting: Sequence[Claim], *, running: Mapping[str, int], free_rows: int, budget: Budget) -> Admission:
    """Decide which waiting requests to let in now.

    The tenant with the fewest requests under way goes first; one whose first request does not fit is passed over. A
    request that was overtaken `max_overtakes` times is next, whoever it belongs to, and nobody else is let in before
    it: otherwise small ones would keep a large one out for ever.

    Args:
        waiting: In order of arrival; each fits an empty pool.
        running: Requests under way by tenant.
        free_rows: Rows not reserved.
        budget: For `max_running` and `max_overtakes`.
    """
    counts = dict(running)
    lines: dict[str, list[Claim]] = {}
    for claim in waiting:
        lines.setdefault(claim.tenant, []).append(claim)
    admitted: list[int] = []
    places = budget.max_running - sum(counts.values())
    while lines and places > 0:
        firsts = [line[0] for line in lines.values()]
        due = [claim for claim in firsts if claim.overtakes >= budget.max_overtakes]
        eligible = [min(due, key=lambda claim: claim.request)] if due else firsts
        fitting = [claim for claim in eligible if claim.rows <= free_rows]
        if not fitting:
            break
        claim = min(fitting, key=lambda claim: (counts.get(claim.tenant, 0), claim.request))
        admitted.append(claim.request)
        counts[claim.tenant] = counts.get(claim.tenant, 0) + 1
        free_rows, places = free_rows - claim.rows, places - 1
        del lines[claim.tenant][0]
        if not lines[claim.tenant]:
            del lines[claim.tenant]
        for tenant, line in lines.items():
            if tenant != claim.tenant and line[0].request < claim.request:
                line[0] = replace(line[0], overtakes=line[0].overtakes + 1)
    left = sorted((claim for line in lines.values() for claim in line), key=lambda claim: claim.request)
    return Admission(admitted=admitted, waiting=left)


def pieces_of(splits: Sequence[tuple[int, bool]], *, largest: int) -> tuple[int, ...]:
    """Cut something to be read into pieces of at most `largest` tokens where that is possible.

    Args:
        splits: Per attention split its tokens, and whether it may be cut anywhere (causal text) or not (a picture).
        largest: Tokens of a piece, at least 1.

    Returns:
        Tokens per piece, in order; only a picture can make one that is larger.
    """
    pieces: list[int] = []
    open_tokens = 0
    for length, may_be_cut in splits:
        rest = length
        while rest:
            room = largest - open_tokens
            taken = rest if rest <= room else room if may_be_cut else 0
            if taken:
                open_tokens, rest = open_tokens + taken, rest - taken
            elif not open_tokens:
                pieces.append(rest)
                rest = 0
            if rest and open_tokens:
                pieces.append(open_tokens)
                open_tokens = 0
    if open_tokens:
        pieces.append(open_tokens)
    return tuple(pieces)


def _fitting(pieces: Sequence[int], *, room: int) -> int:
    taken = 0
    for tokens in pieces:
        if tokens > room:
            break
        room, taken = room - tokens, taken + 1
    return taken

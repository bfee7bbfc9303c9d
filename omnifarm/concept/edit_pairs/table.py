"""The record of every pair ever made: one row a pair, in `edit_pairs/pairs.parquet` beside a set's concepts.

    made -> auto_pass | auto_fail            by the automatic check
    auto_pass | auto_fail -> accepted | rejected, and between the two        by a person

Pictures lie in the same folder, named relative to it; sources are the set's own photographs and stay where they are.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from omnifarm.errors import ConceptError

FOLDER = "edit_pairs"
"""Folder of a set that holds the table and its pictures."""
FILE = "pairs.parquet"
"""The table."""

_SCHEMA_VERSION = 1
_TEXTS = (
    "pair_id", "concept", "class_noun", "source", "source_digest", "target", "target_digest", "mask", "instruction",
    "locator", "segmenter", "inpainter", "reason", "reviewer",
)  # fmt: skip


class PairState(StrEnum):
    """Where a pair stands."""

    AUTO_PASS = "auto_pass"
    """The automatic check found nothing; nobody has looked."""
    AUTO_FAIL = "auto_fail"
    """The automatic check found a fault; `reason` names it."""
    ACCEPTED = "accepted"
    """A person found it good."""
    REJECTED = "rejected"
    """A person found it bad."""

    @property
    def is_learned(self) -> bool:
        """Whether concepts learn from pairs in this state: only what a person found good.

        Of the classical steps' pairs that passed the automatic check a third were bad (docs/results.md).
        """
        return self is PairState.ACCEPTED

    @property
    def has_passed(self) -> bool:
        """Whether the pair is good as far as is known."""
        return self in (PairState.AUTO_PASS, PairState.ACCEPTED)

    @property
    def is_reviewed(self) -> bool:
        """Whether a person has decided."""
        return self in _REVIEWED


_REVIEWED = (PairState.ACCEPTED, PairState.REJECTED)
MOVES: Mapping[PairState, tuple[PairState, ...]] = dict.fromkeys(PairState, _REVIEWED)
"""Where each state may go: only a person moves a pair, and may change their mind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One row."""

    pair_id: str
    """Concept and the first digits of the source's digest."""
    concept: str
    """Name of the concept that is to be removed."""
    class_noun: str
    """What it is."""
    source: str
    """Photograph, relative to the set."""
    source_digest: str
    """Of its pixels."""
    target: str
    """The photograph without the subject, relative to the table's folder; empty: the source itself."""
    target_digest: str
    """Of its pixels."""
    mask: str
    """What was filled, relative to the table's folder; empty when nothing was."""
    instruction: str
    """What is asked."""
    locator: str
    """How the subject was found."""
    segmenter: str
    """How it was cut out."""
    inpainter: str
    """How the hole was filled."""
    seed: int
    """Of the filling."""
    state: PairState
    """Where the pair stands."""
    reason: str = ""
    """Why it failed or was rejected."""
    reviewer: str = ""
    """Who decided."""
    checks: Mapping[str, float] = field(default_factory=dict)
    """What the automatic check measured."""

    @property
    def method(self) -> tuple[str, str, str, int]:
        """What a pair made again would have to share to be the same."""
        return self.locator, self.segmenter, self.inpainter, self.seed


def decide(pair: Pair, *, state: PairState, reason: str, reviewer: str) -> Pair:
    """Return the pair as a person decided.

    Raises:
        ConceptError: A person cannot decide for this state.
    """
    if state not in MOVES[pair.state]:
        allowed = " or ".join(MOVES[pair.state])
        raise ConceptError(f"pair {pair.pair_id} is {pair.state} and can become {allowed}, found {state}")
    return replace(pair, state=state, reason=reason, reviewer=reviewer)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write the table, replacing the old one in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {**{name: getattr(pair, name) for name in _TEXTS}, "seed": pair.seed, "state": str(pair.state), "checks": list(pair.checks.items())}
        for pair in pairs
    ]  # fmt: skip
    fields = [pa.field(name, pa.string()) for name in _TEXTS]
    fields += [pa.field("seed", pa.int64()), pa.field("state", pa.string())]
    fields.append(pa.field("checks", pa.map_(pa.string(), pa.float64())))
    schema = pa.schema(fields, metadata={"schema_version": str(_SCHEMA_VERSION)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
    os.replace(partial, path)


def read_pairs(data: bytes, *, where: str) -> list[Pair]:
    """Read the table.

    Raises:
        ConceptError: It is no parquet file, of another version, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
        version = (table.schema.metadata or {}).get(b"schema_version", b"?").decode()
        if version != str(_SCHEMA_VERSION):
            raise ConceptError(
                f"{where}: expected version {_SCHEMA_VERSION} of the table of edit pairs, found {version}; build it again"
            )
        return [_pair(row) for row in table.to_pylist()]
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        if isinstance(error, ConceptError):
            raise
        raise ConceptError(
            f"{where}: is no table of edit pairs ({error}); build it again with jobs/build_edit_pairs.py"
        ) from error


def _pair(row: Mapping[str, Any]) -> Pair:
    texts = {name: row[name] or "" for name in _TEXTS}
    return Pair(**texts, seed=row["seed"], state=PairState(row["state"]), checks=dict(row["checks"] or ()))

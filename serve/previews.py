"""What a concept looks like while it is being learned: its last checkpoint, read and lent to the engine.

A worker writes each lane's soft tokens and losses every few seconds. Here they become a curve for people, and a
concept of a space of its own (`early/<tenant>`, a name no tenant can have) that the engine can draw and nobody else
can reach. Nothing here is kept in the store.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omnifarm.clock import Clock
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.samples import ConceptSample
from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens
from omnifarm.errors import NotFoundError, TrainingError
from omnifarm.farm.worker import CHECKPOINTS
from omnifarm.store.memory import MemoryStore
from omnifarm.training.checkpoint import load_lane
from omnifarm.training.curves import loss_curve
from serve.spaces import Space, Spaces
from serve.tuning import Job

_EARLY = "early/"
_MAX_POINTS = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Glimpse:
    """A concept as it is at one step of its training."""

    etag: str
    """Of the checkpoint it was read from."""
    step: int
    """Optimizer steps taken."""
    curve: dict[str, list[float | None]]
    """Losses so far, thinned (see `loss_curve`)."""
    soft_tokens: SoftTokens = field(repr=False)
    """The vectors at this step."""


class _NoSamples:
    """A checkpoint that is only looked at needs no data."""

    def draw(self, step: int) -> Sequence[ConceptSample]:
        """Never called: nobody steps this lane."""
        raise AssertionError(f"a glimpse of a lane was asked for the samples of step {step}")


class Previews:
    """Reads checkpoints and lends what is in them to the engine. Safe to share between threads.

    Args:
        spaces: The tenants' stores.
        clock: Time.
    """

    def __init__(self, spaces: Spaces, *, clock: Clock) -> None:
        self._spaces = spaces
        self._clock = clock
        self._early: dict[str, ConceptRepository] = {}
        self._lock = threading.Lock()

    def repository(self, tenant: str) -> ConceptRepository:
        """Return where the engine finds the concepts of a tenant, or of its early space."""
        if not tenant.startswith(_EARLY):
            return self._spaces.of(tenant).repository
        with self._lock:
            return self._early.setdefault(tenant, ConceptRepository(MemoryStore()))

    def glimpse(self, space: Space, job: Job, *, known: Glimpse | None = None) -> Glimpse | None:
        """Return how far a job's soft tokens are, or None while it has no checkpoint.

        Args:
            space: Whose job it is.
            job: The job.
            known: An earlier glimpse, given back when there is nothing newer.

        Raises:
            StoreError: The store does not answer.
        """
        key = f"{CHECKPOINTS}{job.request.job_id}.safetensors"
        recipe = TrainingRecipe.from_json(job.request.recipe)
        try:
            if known is not None and space.store.head(key).etag == known.etag:
                return known
            found = space.store.get(key)
            lane = load_lane(found.data, identity=job.request.job_id, recipe=recipe, source=_NoSamples())
        except (NotFoundError, TrainingError):
            # Over since the job was looked at, or written by another version of us: there is nothing to show.
            return known
        return Glimpse(
            etag=found.etag,
            step=lane.step,
            curve=loss_curve(lane, max_points=_MAX_POINTS),
            soft_tokens=SoftTokenLayout.of_recipe(recipe).split(lane.soft.detach()),
        )

    def lend(self, tenant: str, job: Job, glimpse: Glimpse, *, fingerprint: str) -> str:
        """Make the engine able to draw a glimpse; return the early space under which it finds the concept.

        Args:
            tenant: Whose job it is.
            job: The job; the concept keeps its name.
            glimpse: What to draw; replaces the job's earlier ones.
            fingerprint: The backbone's.
        """
        early = f"{_EARLY}{tenant}"
        repository, name, tokens = self.repository(early), job.request.name, glimpse.soft_tokens
        version = f"{job.request.job_id}-{glimpse.step}"
        if not repository.is_committed(name, version):
            repository.delete(name)
        manifest = ArtifactManifest(
            name=name,
            version=version,
            class_noun="preview",
            fingerprint=fingerprint,
            data_digest=job.record.identity.spec_digest,
            tensors_digest=tensors_digest(encode_soft_tokens(tokens)),
            num_und=tokens.layout.num_und,
            num_gen=tokens.layout.num_gen,
            width=tokens.width,
            is_coupled=tokens.is_coupled,
            created_at_s=self._clock.now_s(),
        )
        repository.commit(manifest, tokens)
        return early

    def take_back(self, tenant: str, job: Job) -> None:
        """Forget a job's glimpses. Safe to repeat."""
        self.repository(f"{_EARLY}{tenant}").delete(job.request.name)


def curve_of(losses: dict[str, Any]) -> dict[str, list[float | None]]:
    """Return the columns of a manifest's losses that people look at."""
    return {name: list(losses[name]) for name in ("step", "understanding", "generation", "editing") if name in losses}

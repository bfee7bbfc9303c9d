"""One backbone, many concepts, many requests at once: ask, generate and edit, in process.

    submit -> residents pinned, rows counted -> Loop: wait, admit, step, step, step -> events -> ticket

Requests join and leave between steps; what a request gets does not depend on whom it shares its steps with. Whoever
waits for a result takes the steps, one thread at a time, so the engine works with one caller, with many, and with a
thread of its own (`worker.py`). Knows no HTTP and no Ray.
"""

import itertools
import threading
from collections.abc import Sequence
from typing import Any, cast

from PIL.Image import Image
from torch import Tensor

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.kv_pool import KvPool
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import Clock, SystemClock
from omnifarm.concept.artifact import ArtifactManifest
from omnifarm.errors import OmniFarmError
from omnifarm.serving.capacity import Capacity, usual_budget
from omnifarm.serving.door import Door
from omnifarm.serving.events import Cancelled, Failed, Finished, Listener, Ticket
from omnifarm.serving.footprint import Footprint
from omnifarm.serving.looking import looking_at
from omnifarm.serving.loop import Entry, Loop
from omnifarm.serving.prefixes import PrefixCache
from omnifarm.serving.replay import ReplayStyle
from omnifarm.serving.requests import Answer, AskRequest, GenerateRequest, Limits, Picture, Request, Result
from omnifarm.serving.resident import Repositories, Resident, ResidentConcepts
from omnifarm.serving.runner import Runner
from omnifarm.serving.scripts import Scripts
from omnifarm.serving.stopwatch import Stopwatch
from omnifarm.serving.work import Script


class Engine:
    """Answers requests with one loaded backbone and learned concepts.

    Args:
        loaded: The frozen backbone; its `defaults` fill in what requests leave out.
        repositories: Where committed artifacts lie: one repository, or a function from tenant to repository.
        limits: What one request may cost.
        capacity: What the engine may use.
        clock: For timings and for looking up new versions.
        replay_style: Instead of the backbone's own.

    Raises:
        ConfigError: The backbone's defaults hold something that does not exist.
    """

    def __init__(
        self,
        loaded: LoadedBackbone,
        repositories: Repositories,
        *,
        limits: Limits | None = None,
        capacity: Capacity | None = None,
        clock: Clock | None = None,
        replay_style: ReplayStyle | None = None,
    ) -> None:
        capacity = capacity or Capacity()
        self._clock = clock or SystemClock()
        self._loaded = loaded
        self.fingerprint = loaded.fingerprint
        self.door = Door(loaded.config, limits=limits or Limits())
        """Builds checked requests."""
        self.replay_style = replay_style or ReplayStyle.from_defaults(loaded.config.defaults.get("replay", {}))
        self._pool = KvPool(loaded.model, capacity=capacity.cached_tokens)
        self._prefixes = PrefixCache(max_rows=int(capacity.cached_tokens * capacity.kept_prefixes))
        self._pool.relieve = self._prefixes.let_go
        self._residents = ResidentConcepts(
            repositories,
            fingerprint=loaded.fingerprint,
            clock=self._clock,
            width=loaded.config.hidden_size,
            dtype=loaded.model.dtype,
            device=loaded.model.device,
            capacity=capacity.concepts,
            refresh_s=capacity.refresh_s,
            on_gone=self._prefixes.forget,
        )
        self._scripts = Scripts(loaded, style=self.replay_style, clock=self._clock)
        self._footprint = Footprint(loaded, scripts=self._scripts, style=self.replay_style)
        self._loop = Loop(
            Runner(loaded, pool=self._pool),
            pool=self._pool,
            prefixes=self._prefixes,
            budget=capacity.budget or usual_budget(loaded.config, device=loaded.model.device),
            soft_table=lambda: self._residents.table,
            max_waiting=self.door.limits.max_waiting,
        )
        self._stepping = threading.Lock()
        self._moved_s = self._clock.monotonic_s()
        self._numbers = itertools.count(1)

    @property
    def generation_options(self) -> SamplingOptions:
        """Options of drawings that say nothing else."""
        return self.door.generation_options

    @property
    def editing_options(self) -> SamplingOptions:
        """Options of edits that say nothing else."""
        return self.door.editing_options

    @property
    def generation_size(self) -> tuple[int, int]:
        """(height, width) of drawings that say nothing else."""
        return self.door.generation_size

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or is under way."""
        return self._loop.is_idle

    @property
    def stalled_s(self) -> float:
        """Seconds for which there has been work and no step has ended that did any; 0 without work.

        Grows while a step runs or hangs, while steps fail one after the other, and while nobody takes them.
        """
        return 0.0 if self.is_idle else self._clock.monotonic_s() - self._moved_s

    def list_concepts(self, tenant: str = "", *, after: str = "", limit: int | None = None) -> list[ArtifactManifest]:
        """Return the manifests of the concepts of a tenant that this backbone can use; see `manifests` of residents."""
        return self._residents.manifests(tenant, after=after, limit=limit)

    def concept(self, name: str, *, tenant: str = "") -> ArtifactManifest:
        """Return the manifest of one concept that this backbone can use; arguments and errors as of residents."""
        return self._residents.manifest(name, tenant=tenant)

    def forget(self, name: str, *, tenant: str = "") -> None:
        """Let go of a concept that was deleted and of what was read with it; requests under way keep theirs."""
        self._residents.forget(name, tenant=tenant)

    def forget_deleted(self, *, limit: int) -> int:
        """Let go of concepts that somebody else deleted; arguments, result and errors as of residents."""
        num_gone = self._residents.forget_deleted(limit=limit)
        # Also what a request under way had kept after its concept was forgotten, and what was read with concepts that
        # gave way to others: nobody looks for those any more.
        self._prefixes.keep_only(self._residents.labels())
        return num_gone

    def ask(self, question: str, *, concepts: Sequence[str] | None = None, **settings: Any) -> Answer:
        """Answer a question and wait for it; arguments and errors of `Door.ask` and `submit`."""
        return cast(Answer, self.run(self.door.ask(question, concepts=concepts, **settings)))

    def generate(self, prompt: str, *, concepts: Sequence[str] | None = None, **settings: Any) -> Picture:
        """Draw a picture and wait for it; arguments and errors of `Door.generate` and `submit`."""
        return cast(Picture, self.run(self.door.generate(prompt, concepts=concepts, **settings)))

    def edit(
        self,
        image: Image | Sequence[Image],
        instruction: str,
        *,
        concepts: Sequence[str] | None = None,
        **settings: Any,
    ) -> Picture:
        """Change a picture and wait for it; arguments and errors of `Door.edit` and `submit`."""
        return cast(Picture, self.run(self.door.edit(image, instruction, concepts=concepts, **settings)))

    def looking(self, image: Image, *, concept: str, tenant: str = "") -> Tensor:
        """Return how much a concept's identifier attends to each patch of a photo; see `looking_at`.

        A pass of its own, between two steps: everybody else waits for it, about as long as for one answer's first word.

        Args:
            image: Any photo.
            concept: Bare name.
            tenant: Whose concept is meant.

        Raises:
            UnknownConceptError: The concept does not exist for this tenant.
            ArtifactError: It is damaged or belongs to another backbone.
        """
        (resident,) = self._residents.get([concept], tenant=tenant)
        with self._stepping:
            soft = resident.layout.split(self._residents.table[resident.rows.index])
            return looking_at(self._loaded, image, concept=soft)

    def run(self, request: Request) -> Result:
        """Submit a request, take steps until it has ended, return its result.

        Raises:
            OmniFarmError: It was refused, or failed.
        """
        ticket = self.submit(request)
        while not ticket.is_done:
            self.step()
        return ticket.result()

    def submit(self, request: Request, listener: Listener | None = None) -> Ticket:
        """Put a request in the line. May read concepts from the store, in the caller's thread.

        Args:
            request: Built by `door`.
            listener: Told every event, in the thread that takes the steps.

        Raises:
            UnknownConceptError: A concept does not exist for this tenant.
            ArtifactError: A concept is damaged or belongs to another backbone.
            RequestError: The request can never fit.
            OverloadedError: Too many requests wait.
        """
        watch = Stopwatch(self._clock)
        residents = self._residents.get(request.concepts, tenant=request.tenant)
        entry: Entry
        ticket = Ticket(listener, cancel=lambda: self._loop.cancel(entry))
        entry = Entry(
            number=next(self._numbers),
            script=self._script(request, residents, ticket=ticket, watch=watch),
            rows=self._footprint.rows(request, residents),
            tenant=request.tenant,
            on_start=lambda: watch.mark("queue_s"),
            on_end=lambda result, error: ticket.tell(_last(result, error)),
            labels=tuple(resident.label for resident in residents),
        )
        if self.is_idle:
            self._moved_s = self._clock.monotonic_s()
        self._loop.submit(entry)
        return ticket

    def step(self) -> bool:
        """Take one step for everybody; return whether anything is left to do."""
        with self._stepping:
            before = self._loop.num_steps
            is_left = self._loop.step()
            if self._loop.num_steps > before or not is_left:
                self._moved_s = self._clock.monotonic_s()
            return is_left

    def statistics(self) -> dict[str, Any]:
        """Return counters and gauges: requests, steps, tokens by kind, cache hits, rows, concepts."""
        return {**self._loop.statistics(), "residents": len(self._residents)}

    def _script(
        self, request: Request, residents: Sequence[Resident], *, ticket: Ticket, watch: Stopwatch
    ) -> Script[Result]:
        scripts = self._scripts
        if isinstance(request, AskRequest):
            return scripts.ask(request, residents, tell=ticket.tell, watch=watch)
        if isinstance(request, GenerateRequest):
            return scripts.generate(request, residents, tell=ticket.tell, watch=watch)
        return scripts.edit(request, residents, tell=ticket.tell, watch=watch)


def _last(result: Result | None, error: OmniFarmError | None) -> Finished | Failed | Cancelled:
    if error is not None:
        return Failed(error=error)
    return Cancelled() if result is None else Finished(result=result)

"""What `omnifarm perf serve` measures: one request at a time the official way against the engine, side by side.

Concepts are random soft tokens: what they mean costs nothing. Both sides answer the same requests; before anything is
timed, their results are compared.
"""

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnifarm.allocator import keep_freed_memory
from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.cli.output import people
from omnifarm.cli.perf_official import OfficialWay
from omnifarm.cli.perf_reuse import distance, step_reuse
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.errors import ConfigError, ServingError
from omnifarm.serving.capacity import Capacity
from omnifarm.serving.engine import Engine
from omnifarm.serving.requests import Answer, Request, Result
from omnifarm.store.local import LocalStore
from omnifarm.training.precision import precision_of, weights_dtype

CONCURRENCIES = (1, 8, 32)
"""Requests under way at once, each over its own concept."""
KINDS = ("questions", "images", "edits")
"""What is asked."""
_ANSWER_TOKENS = 12
_GENERATE = SamplingOptions()
"""The paper's options (table 6), which are BAGEL's own."""
_EDIT = SamplingOptions(cfg_img_scale=2.0, cfg_interval=(0.0, 1.0), cfg_renorm_type="text_channel")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServePlan:
    """What is measured."""

    backbone: str = "miniature"
    """Name or folder."""
    precision: str = "bfloat16"
    """Type of the weights, on both sides."""
    threads: int = 2
    """CPU threads, on both sides."""
    steps: int = 50
    """Values of the denoising schedule."""
    side: int = 96
    """Pixels of a picture's sides."""
    rounds: int = 3
    """Turns of each side; medians count."""
    residents: int = 10_000
    """Concepts in memory when throughput is compared with one."""
    compiled: bool = False
    """Whether the engine's side runs what surrounds attention compiled, as a long-running server may."""
    url: str = ""
    """A running server's address, for the overhead of HTTP; empty leaves that out."""

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"expected a precision of float32 or bfloat16, found {self.precision!r}")
        least = max(CONCURRENCIES) * (self.resident_rounds + 1)
        if self.residents < least:
            raise ConfigError(f"expected at least {least} residents, other ones in every turn, found {self.residents}")

    @property
    def resident_rounds(self) -> int:
        """Turns that compare many residents with one: a few per cent are to be told, and single turns vary by as much."""
        return 8 * self.rounds


def measure_serve(plan: ServePlan) -> dict[str, Any]:
    """Measure and return the report.

    Args:
        plan: What is measured.

    Raises:
        ServingError: The two sides disagree about a result.
    """
    keep_freed_memory()
    torch.set_num_threads(plan.threads)
    loaded = load_backbone(plan.backbone, dtype=weights_dtype(plan.precision, "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(loaded, plan=plan, folder=Path(folder))
        precision = precision_of(loaded.model)
        report: dict[str, Any] = {"precision": precision, "threads": plan.threads, "steps": plan.steps}
        report["compiled"] = plan.compiled
        people.print("comparing results of both sides")
        bench.check()
        for kind in KINDS:
            people.print(f"measuring {kind}")
            report[kind] = bench.compare(kind)
            report[f"{kind}_c32_ratio"] = report[kind]["c32"]["ratio"]
            # A run that is cut off later has told this much.
            people.print(f"{kind}: {report[kind]}", highlight=False)
        people.print("measuring replay")
        report["replay_s"] = bench.replay()
        people.print("measuring drawings that leave steps out")
        report["step_reuse"] = step_reuse(bench.engine, options=bench.options("images"), size=(plan.side, plan.side))
        people.print(f"measuring {plan.residents} residents against one")
        loss = bench.resident_loss()
        report["resident_10k_loss"], report["resident_10k_computing_loss"] = loss["wall"], loss["computing"]
        report["http_overhead"], report["http_overheads"] = None, None
        if plan.url:
            from omnifarm.cli.perf_http import http_overhead

            overheads = http_overhead(plan.url, engine=bench.engine, options=bench.options("images"))
            report["http_overhead"], report["http_overheads"] = round(statistics.median(overheads), 4), overheads
    return report


class _Bench:
    """Both sides over the same concepts."""

    def __init__(self, loaded: LoadedBackbone, *, plan: ServePlan, folder: Path) -> None:
        self._loaded, self._plan = loaded, plan
        self._is_exact = precision_of(loaded.model) == "float32"
        self._repository = ConceptRepository(LocalStore(Path(folder)))
        self._concepts = {f"c{index}": _random_concept(loaded, index) for index in range(max(CONCURRENCIES))}
        for name, concept in self._concepts.items():
            _commit(self._repository, loaded, name, concept)
        self._official = OfficialWay(loaded)
        self.engine = self._new_engine()
        self._photo = Image.radial_gradient("L").resize((plan.side, plan.side)).convert("RGB")

    def options(self, kind: str) -> SamplingOptions:
        """Return the sampling options of drawings or edits."""
        return replace(_EDIT if kind == "edits" else _GENERATE, num_timesteps=self._plan.steps)

    def check(self) -> None:
        """Compare both sides' results: answers token by token in float32, pictures in every case."""
        for kind in KINDS:
            ours, theirs = self.engine.run(self._request(kind, 0)), self._run_official(kind, 0)
            if isinstance(ours, Answer):
                assert isinstance(theirs, int)
                # In bf16 near ties may fall either way; the number of passes is what must be equal.
                is_same = ours.num_tokens + ours.is_complete == theirs or not self._is_exact
            else:
                assert isinstance(theirs, Image.Image)
                is_same = distance(ours.image, theirs) < (1.0 if self._is_exact else 12.0)
            if not is_same:
                raise ServingError(f"the two sides disagree about {kind}: measuring them would mean nothing")

    def compare(self, kind: str) -> dict[str, Any]:
        """Return seconds per request the official way and throughput, ratio and latencies at every concurrency."""
        # One thread may be enough for rows so few: the official way gets whichever number is faster for it.
        official: dict[int, list[_Took]] = {threads: [] for threads in sorted({1, self._plan.threads})}
        ours: dict[int, list[_Batch]] = {count: [] for count in CONCURRENCIES}
        num_official = 8 if kind == "questions" else 2
        for turn in range(self._plan.rounds + 1):
            self._loaded.model.set_training_mode(compiled=False)
            for threads, taken in official.items():
                torch.set_num_threads(threads)
                watch = _Watch()
                for index in range(num_official):
                    self._run_official(kind, index)
                if turn:
                    taken.append(watch.took(num_official))
            torch.set_num_threads(self._plan.threads)
            self._loaded.model.set_training_mode(compiled=self._plan.compiled)
            batches = {count: self._together(kind, count) for count in CONCURRENCIES}
            if turn:
                for count, batch in batches.items():
                    ours[count].append(batch)
        threads, best = min(((n, _median(taken)) for n, taken in official.items()), key=lambda one: one[1].seconds)
        report: dict[str, Any] = {
            "official_s": round(best.seconds, 4),
            "official_computing_s": round(best.computing, 4),
            "official_threads": threads,
        }
        for count, rounds in ours.items():
            latencies = sorted(latency for batch in rounds for latency in batch.latencies)
            each = _median([batch.each for batch in rounds])
            entry = {
                "per_request_s": round(each.seconds, 4),
                "requests_per_s": round(1 / each.seconds, 3),
                "ratio": round(best.seconds / each.seconds, 2),
                "computing_s": round(each.computing, 4),
                "computing_ratio": round(best.computing / each.computing, 2),
                "p50_s": round(statistics.median(latencies), 4),
                "p99_s": round(latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))], 4),
            }
            first = sorted(value for batch in rounds for value in batch.first_tokens)
            if first:
                entry["first_token_p50_s"] = round(statistics.median(first), 4)
            report[f"c{count}"] = entry
        return report

    def replay(self) -> dict[str, float]:
        """Return the median seconds of replay alone, one request at a time, in one call and in three."""
        seconds: dict[str, list[float]] = {"unified": [], "three_stage": []}
        quick = replace(_GENERATE, num_timesteps=2)
        for turn in range(3 * self._plan.rounds + 1):
            for mode, values in seconds.items():
                name = f"c{turn % len(self._concepts)}"
                picture = self.engine.generate(
                    f"A photo of <{name}> with the favorite toy.", size=(48, 48), options=quick, replay=mode
                )
                if turn:
                    values.append(picture.timings["replay_s"])
        return {
            "unified": round(statistics.median(seconds["unified"]), 4),
            "sequential": round(statistics.median(seconds["three_stage"]), 4),
        }

    def resident_loss(self) -> dict[str, float]:
        """Return the part of image throughput that is lost with many concepts in memory instead of one, by both clocks.

        Medians over pairs of turns, one side right after the other and each first in every second pair: a machine's
        slow drift is in both.
        """
        names = [f"r{index}" for index in range(self._plan.residents)]
        for index, name in enumerate(names):
            _commit(self._repository, self._loaded, name, _random_concept(self._loaded, 1000 + index))
        one, many = self._new_engine(), self._new_engine()
        for name in names:
            many._residents.get([name])
        count = max(CONCURRENCIES)
        losses: list[_Took] = []
        for turn in range(self._plan.resident_rounds + 1):
            took: dict[str, _Took] = {}
            sides = (("one", one), ("many", many))
            for side, engine in sides if turn % 2 else sides[::-1]:
                # Other concepts in every turn: none of their prefixes has been read before.
                first = turn * count
                chosen = [names[0]] * count if side == "one" else names[first : first + count]
                batch = _run_together(engine, [self._image(engine, name, seed) for seed, name in enumerate(chosen)])
                took[side] = batch.each
            if turn:
                wall, computing = (getattr(took["one"], c) / getattr(took["many"], c) for c in ("seconds", "computing"))
                losses.append(_Took(seconds=1 - wall, computing=1 - computing))
        loss = _median(losses)
        return {"wall": round(loss.seconds, 4), "computing": round(loss.computing, 4)}

    def _together(self, kind: str, count: int) -> "_Batch":
        return _run_together(self.engine, [self._request(kind, index) for index in range(count)])

    def _request(self, kind: str, index: int) -> Request:
        name, door = f"c{index}", self.engine.door
        if kind == "questions":
            return door.ask(_question(name), max_tokens=_ANSWER_TOKENS)
        if kind == "images":
            return self._image(self.engine, name, index)
        # The official way decodes what was edited and leaves it at that.
        return door.edit(
            self._photo,
            _instruction(name),
            options=self.options(kind),
            seed=index,
            keep_unchanged=False,
            attempts=1,
        )

    def _image(self, engine: Engine, name: str, seed: int) -> Request:
        return engine.door.generate(
            _prompt(name),
            size=(self._plan.side, self._plan.side),
            options=self.options("images"),
            seed=seed,
            replay="off",
        )

    def _run_official(self, kind: str, index: int) -> int | Image.Image:
        name = f"c{index}"
        concept = self._concepts[name]
        if kind == "questions":
            return len(self._official.ask(_question(name), name=name, concept=concept, max_tokens=_ANSWER_TOKENS))
        options = self.options(kind)
        if kind == "images":
            return self._official.generate(
                _prompt(name),
                name=name,
                concept=concept,
                size=(self._plan.side, self._plan.side),
                options=options,
                seed=index,
            )
        return self._official.edit(
            self._photo, _instruction(name), name=name, concept=concept, options=options, seed=index
        )

    def _new_engine(self) -> Engine:
        # Nothing changes in this store while we measure; a server looks concepts up again every two seconds.
        return Engine(self._loaded, self._repository, capacity=Capacity(refresh_s=3600.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Took:
    """Seconds by both clocks: a busy machine shows in the first, not in the second."""

    seconds: float
    """On the wall."""
    computing: float
    """Of this process's threads, waiting in a loop for each other included."""


class _Watch:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._wall, self._computing = time.perf_counter(), time.process_time()

    def took(self, count: int) -> _Took:
        """Return what one of `count` took."""
        wall, computing = time.perf_counter() - self._wall, time.process_time() - self._computing
        return _Took(seconds=wall / count, computing=computing / count)


def _median(taken: Sequence[_Took]) -> _Took:
    return _Took(
        seconds=statistics.median(one.seconds for one in taken),
        computing=statistics.median(one.computing for one in taken),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Requests that were under way together."""

    each: _Took
    latencies: Sequence[float]
    first_tokens: Sequence[float]


def _run_together(engine: Engine, requests: Sequence[Request]) -> _Batch:
    watch = _Watch()
    tickets = deque(engine.submit(request) for request in requests)
    while engine.step():
        pass
    each = watch.took(len(requests))
    results: list[Result] = [ticket.result(0) for ticket in tickets]
    return _Batch(
        each=each,
        latencies=[result.timings["total_s"] for result in results],
        first_tokens=[result.timings["first_token_s"] for result in results if isinstance(result, Answer)],
    )


def _random_concept(loaded: LoadedBackbone, seed: int) -> SoftTokens:
    draw = torch.Generator().manual_seed(seed)
    width = loaded.config.hidden_size
    return SoftTokens(
        und=torch.randn(17, width, generator=draw) * 0.2, gen=torch.randn(16, width, generator=draw) * 0.2
    )


def _commit(repository: ConceptRepository, loaded: LoadedBackbone, name: str, concept: SoftTokens) -> None:
    layout = concept.layout
    manifest = ArtifactManifest(
        name=name,
        version=tensors_digest(encode_soft_tokens(concept)),
        class_noun="dog",
        fingerprint=loaded.fingerprint,
        data_digest="0" * 64,
        tensors_digest=tensors_digest(encode_soft_tokens(concept)),
        num_und=layout.num_und,
        num_gen=layout.num_gen,
        width=concept.width,
    )
    repository.commit(manifest, concept)


def _question(name: str) -> str:
    return f"What does <{name}> like to do on a rainy day?"


def _prompt(name: str) -> str:
    return f"A photo of <{name}> in the park."


def _instruction(name: str) -> str:
    return f"remove <{name}>: dog from the photo"

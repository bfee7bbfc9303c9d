"""From `--data` to a benchmark: a data folder in any layout, or the drawn world under a seed.

`miniature:SEED` writes the drawn concepts as a UnifyBench folder and reads them back through the same door as
everybody's data; what is known exactly about them stays beside the benchmark for the world's judge.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omnifarm.bench.data.items import build_benchmark
from omnifarm.bench.data.prompts import PROMPTS
from omnifarm.bench.tasks import Benchmark, Sizes
from omnifarm.concept.datasets.load import load_concepts, load_held_out, split_layout
from omnifarm.concept.sources import open_source
from omnifarm.concept.spec import PLACEHOLDER, ConceptSpec
from omnifarm.concept.validate import validate
from omnifarm.errors import ConceptError, ConfigError
from omnifarm.miniature.benchmark import BenchmarkConcept, BenchmarkSizes, draw_benchmark
from omnifarm.miniature.benchmark_files import write_unifybench
from omnifarm.miniature.text import AT_PLACE

PROMPTS_FILE = "prompts_to_eval.json"
"""Read from the root of the data where it lies there, as the public scripts read it from their working directory."""

_MINIATURE = re.compile(r"miniature:(\d+)")
_STAMP = ".drawn"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchData:
    """A benchmark and where it came from."""

    benchmark: Benchmark
    """What is asked."""
    url: str
    """Folder or store URL of the data, for training."""
    drawn: tuple[BenchmarkConcept, ...] = ()
    """Exact knowledge of the concepts; empty for photographs."""


def load_benchmark(data: str, *, sizes: Sizes, scratch: Path, drawn_sizes: BenchmarkSizes | None = None) -> BenchData:
    """Read a benchmark.

    Args:
        data: `miniature:SEED`, a folder, or a store URL.
        sizes: How much is asked.
        scratch: Where the drawn world's folder goes.
        drawn_sizes: How much each drawn concept comes with; for tests.

    Raises:
        ConceptError: Nothing there looks like a concept, or no concept of it can be scored.
        ConfigError: The seed is no number.
    """
    if (found := _MINIATURE.fullmatch(data)) is not None:
        return _drawn_world(int(found[1]), sizes=sizes, root=scratch / f"miniature-{found[1]}", drawn_sizes=drawn_sizes)
    if data.startswith("miniature"):
        raise ConfigError(f"the drawn world is named miniature:SEED, such as miniature:0, found {data!r}")
    return BenchData(benchmark=_read(data, sizes=sizes), url=data)


def with_gaps(data: BenchData) -> BenchData:
    """Return data whose notes begin with everything that photographs' data lack, and who would have needed it.

    Reads everything once more, so it is done once a run and not by every worker.
    """
    if data.drawn:
        return data
    gaps = [problem.sentence() for problem in validate(data.url) if problem.severity == "warning"]
    return replace(data, benchmark=replace(data.benchmark, notes=(*gaps, *data.benchmark.notes)))


def _drawn_world(seed: int, *, sizes: Sizes, root: Path, drawn_sizes: BenchmarkSizes | None) -> BenchData:
    number = {"num_persons": 10, "num_pets": 5, "num_objects": 5}
    if sizes.concepts is not None and sizes.concepts < sum(number.values()):
        # A larger set begins with the smaller one's, so fewer concepts are the same concepts.
        shares = [sizes.concepts // 3 + (rank < sizes.concepts % 3) for rank in range(3)]
        number = dict(zip(number, shares, strict=True))
    drawn = draw_benchmark(seed, sizes=drawn_sizes, **number)
    # Drawing takes seconds; a half-written folder of an interrupted run has no stamp and is drawn again.
    stamp = f"{seed} {number} {drawn_sizes}"
    if not (root / _STAMP).is_file() or (root / _STAMP).read_text() != stamp:
        shutil.rmtree(root, ignore_errors=True)
        write_unifybench(root, drawn)
        (root / PROMPTS_FILE).write_text(json.dumps({kind: _world_prompts() for kind in PROMPTS}))
        (root / _STAMP).write_text(stamp)
    return BenchData(benchmark=_read(str(root), sizes=replace(sizes, concepts=None)), url=str(root), drawn=drawn)


def _world_prompts() -> list[str]:
    return [f"A photo of {PLACEHOLDER} {phrase}." for phrase in AT_PLACE.values()]


def _read(url: str, *, sizes: Sizes) -> Benchmark:
    held_out = dict(load_held_out(url))
    pairs = []
    notes = []
    for name, spec in load_concepts(url):
        test = held_out.get(name)
        for part in (spec, test):
            if isinstance(part, ConceptError):
                notes.append(f"left out: {part}")
        if isinstance(spec, ConceptSpec) and test is not None and not isinstance(test, ConceptError):
            pairs.append((spec, test))
    if not pairs:
        raise ConceptError(f"no concept at {url} can be scored: {'; '.join(notes) or 'there are none'}", url=url)
    benchmark = build_benchmark(pairs, sizes=sizes, prompts=_prompts(url))
    return replace(benchmark, notes=(*notes, *benchmark.notes))


def _prompts(url: str) -> Mapping[str, Sequence[str]]:
    source = open_source(split_layout(url)[1])
    if PROMPTS_FILE not in source.paths():
        return PROMPTS
    try:
        values = json.loads(source.read(PROMPTS_FILE, max_bytes=1 << 20))
        prompts = {kind: [str(one) for one in values[kind]] for kind in PROMPTS}
    except (ValueError, KeyError, TypeError) as error:
        raise ConceptError(
            f"{PROMPTS_FILE}: expected {{object: [...], live_subject: [...]}} with <sks> in every prompt ({error}); "
            "mend or delete it"
        ) from error
    if missing := [prompt for found in prompts.values() for prompt in found if PLACEHOLDER not in prompt]:
        raise ConceptError(f"{PROMPTS_FILE}: every prompt names {PLACEHOLDER}, found {missing[0]!r}; mend it")
    return prompts

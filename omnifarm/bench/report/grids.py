"""Pictures of a report: for every concept a line of photographs and of what each row drew after the same words."""

import io
from dataclasses import dataclass

from PIL import Image

from omnifarm.bench.plan import RunPlan
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.tasks import Benchmark, Item, Task
from omnifarm.store.base import Store

SIDE = 112
"""Pixels of a picture's sides in the report."""
_MAX_CONCEPTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One picture."""

    caption: str
    """What stands below it."""
    jpeg: bytes
    """The picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One line of pictures after the same words."""

    concept: str
    """Bare name."""
    asked: str
    """The words."""
    tiles: tuple[Tile, ...]
    """Photographs first, then rows in the order of the report."""


def draw_grids(plan: RunPlan, benchmark: Benchmark, store: Store) -> list[Strip]:
    """Return strips of the first seed: one general prompt, one that leans on a fact and one edit a concept."""
    rows = plan.chosen()
    files = {row.key: ReplyFile(store, prefix=plan.replies_key(row, seed=plan.seeds[0])) for row in rows}
    done = {key: replies.done() for key, replies in files.items()}
    strips = []
    kinds: tuple[Task, ...] = ("pure", "parg", "edit")
    for concept in benchmark.concepts[:_MAX_CONCEPTS]:
        for task in kinds:
            items = benchmark.items_of(concept.name, task)
            if not items:
                continue
            item = items[0]
            tiles = [_known(benchmark, item)]
            for row in rows:
                if task in row.tasks and (concept.name, item.id) in done[row.key]:
                    filed = files[row.key].read(item)
                    if filed.has_picture:
                        tiles.append(Tile(caption=row.title, jpeg=_small(files[row.key].picture(item))))
            strips.append(Strip(concept=concept.name, asked=item.text, tiles=tuple(tiles)))
    return strips


def _known(benchmark: Benchmark, item: Item) -> Tile:
    source = benchmark.picture_of(item)
    if source is not None:
        return Tile(caption="source", jpeg=_small(source))
    spec = benchmark.concept(item.concept).spec
    return Tile(caption="photograph", jpeg=_small(spec.open_image(spec.images[0])))


def _small(picture: Image.Image) -> bytes:
    shrunk = picture.convert("RGB")
    shrunk.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shrunk.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()

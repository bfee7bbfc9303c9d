"""Replies on file: one record and at most one picture an item, in the store.

    <prefix>/<concept>/<item>.json      what was asked, what came back, or why nothing did
    <prefix>/<concept>/<item>.png       the picture, written first: a record without its picture does not exist

A reply that is on file is never asked for again. Writing is safe to repeat and to race: equal seeds give equal bytes,
and failures are written too, so that a table always says of how many items it speaks.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import Item
from omnifarm.errors import StoreError
from omnifarm.store.base import Store

SCHEMA_VERSION = 2
"""Version of the records' fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filed:
    """One reply as filed."""

    item: str
    """Id of the item."""
    concept: str
    """Bare name."""
    text: str = ""
    """The answer in words."""
    failure: str = ""
    """Why there is no reply; empty when there is one."""
    has_picture: bool = False
    """Whether a picture lies beside the record."""
    seed: int = 0
    """Seed it was made with."""
    trace: dict[str, Any] = field(default_factory=dict)
    """Knowledge replay."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by phase; `total_s` from asking to the reply, `spent_s` this reply's part of its process's time."""
    at_once: int = 1
    """Items that were under way at the same time, at most."""


class ReplyFile:
    """Replies of one system under one seed. Safe for concurrent writers.

    Args:
        store: Holds the records.
        prefix: Key of the folder, without a slash at the end.
    """

    def __init__(self, store: Store, *, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def done(self, *, with_failures: bool = True) -> set[tuple[str, str]]:
        """Return (concept, item id) of everything on file; without failures, every record is read."""
        keys = [key for key in self._store.list(f"{self._prefix}/") if key.endswith(".json")]
        if not with_failures:
            keys = [key for key in keys if not json.loads(self._store.get(key).data).get("failure")]
        names = [key.removeprefix(f"{self._prefix}/").removesuffix(".json") for key in keys]
        return {(concept, item) for concept, _, item in (name.partition("/") for name in names)}

    def write(self, item: Item, reply: Reply | None, *, failure: str = "", seed: int, at_once: int = 1) -> None:
        """File a reply, or with None the reason why there is none."""
        base = f"{self._prefix}/{item.concept}/{item.id}"
        reply = reply or Reply()
        if reply.picture is not None:
            self._store.put(f"{base}.png", _png(reply.picture))
        values = {
            "schema_version": SCHEMA_VERSION,
            "item": item.id,
            "concept": item.concept,
            "asked": item.text,
            "image": item.image.digest if item.image else "",
            "seed": seed,
            "text": reply.text,
            "failure": failure,
            "has_picture": reply.picture is not None,
            "trace": dict(reply.trace),
            "timings": dict(reply.timings),
            "at_once": at_once,
        }
        self._store.put(f"{base}.json", json.dumps(values, ensure_ascii=False, indent=1).encode())

    def read(self, item: Item) -> Filed:
        """Return one reply.

        Raises:
            NotFoundError: The item is not on file.
            StoreError: The record is damaged, or answers another question.
        """
        key = f"{self._prefix}/{item.concept}/{item.id}.json"
        data = self._store.get(key).data
        try:
            values = json.loads(data)
            filed = Filed(
                item=values["item"],
                concept=values["concept"],
                text=values["text"],
                failure=values["failure"],
                has_picture=values["has_picture"],
                seed=values["seed"],
                trace=values["trace"],
                timings=values["timings"],
                at_once=values["at_once"],
            )
            asked = values["asked"], values["image"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{key} is no reply of this version ({error}); delete it and run again", key=key
            ) from error
        if asked != (item.text, item.image.digest if item.image else ""):
            raise StoreError(f"{key} answers {asked[0]!r}, not {item.text!r}; give the run another name", key=key)
        return filed

    def read_all(self, items: list[Item]) -> Iterator[tuple[Item, Filed]]:
        """Yield every item of a list that is on file with its reply."""
        done = self.done()
        for item in items:
            if (item.concept, item.id) in done:
                yield item, self.read(item)

    def picture(self, item: Item) -> Image.Image:
        """Return the picture of an item.

        Raises:
            NotFoundError: It has none.
        """
        data = self._store.get(self.picture_key(item)).data
        return Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")

    def picture_key(self, item: Item) -> str:
        """Return where the picture of an item lies in the store."""
        return f"{self._prefix}/{item.concept}/{item.id}.png"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()

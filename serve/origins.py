"""What a learned concept was learned from: its photographs and facts, read again for its owner to look at."""

import re
import threading
from collections import OrderedDict

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, ConfigError, NotFoundError
from omnifarm.farm.job import UnreadableRecordError
from serve.errors import MissingError
from serve.pictures import encode_picture
from serve.spaces import Space

_KEPT = 64
_JOB_ID = re.compile(r"[0-9a-f]{32}")


class Origins:
    """Finds and keeps the specs behind learned versions. Safe to share between threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], ConceptSpec] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, space: Space, *, name: str, version: str) -> ConceptSpec | None:
        """Return what a version was learned from, or None when that is not there any more, or nobody can say.

        Args:
            space: Whose concept it is.
            name: The concept's bare name.
            version: One of its versions: the id of the job that made it.

        Raises:
            StoreError: The store does not answer.
        """
        if not _JOB_ID.fullmatch(version):
            return None
        try:
            # Asked each time: what was deleted must not be shown from memory.
            record = space.queue.get(version)
        except (NotFoundError, ConfigError, UnreadableRecordError):
            return None
        place = (space.tenant, version)
        with self._lock:
            if record.name != name:
                return None
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        try:
            spec = dict(load_concepts(record.concept_url)).get(name)
        except ConceptError:
            return None
        if not isinstance(spec, ConceptSpec):
            return None
        with self._lock:
            self._kept[place] = spec
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return spec

    def let_go(self) -> None:
        """Forget everything that was kept: it serves the many thumbnails of a page, not the next day."""
        with self._lock:
            self._kept.clear()

    def photo(self, space: Space, *, name: str, version: str, number: int, side: int) -> bytes:
        """Return one of its photographs as a PNG.

        Args:
            space: Whose concept it is.
            name: The concept's bare name.
            version: One of its versions.
            number: Which photograph, from 0.
            side: Longer side in pixels; smaller photographs stay as they are.

        Raises:
            MissingError: There is no such photograph (any more).
            StoreError: The store does not answer.
        """
        spec = self.of(space, name=name, version=version)
        if spec is None or not 0 <= number < len(spec.images):
            raise MissingError(
                f"expected a photograph of <{name}>, found none with the number {number}", field="number"
            )
        try:
            image = spec.open_image(spec.images[number])
        except (ConceptError, NotFoundError):
            raise MissingError(
                f"expected a photograph of <{name}>, found that it was deleted", field="number"
            ) from None
        image.thumbnail((side, side))
        return encode_picture(image)

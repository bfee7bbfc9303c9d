"""Which attributes somebody is introduced by when a backbone learns to compare: one after the other.

Told of everything at once, a model learns to compare the attribute that is right most often, and stops there. So many
introductions tell one attribute beside the class, and mostly the same one until it is told apart: the comparison of an
attribute comes suddenly, after some thousand questions about it alone.
"""

import random
from collections.abc import Mapping

from omnifarm.miniature.identity import GROUPS, LABELS, Group

_GUESSING, _LEARNED = 0.69, 0.3
"""Mean cross entropy of Yes and No of who guesses, and under which an attribute counts as told apart."""
_MEMORY = 0.98
_NEW, _NEAREST = 0.7, 0.75
"""Share of introductions by attributes that are not told apart yet, and of these by the one that is nearest to it."""


class Curriculum:
    """Chooses what is told, from how well single attributes are told apart."""

    def __init__(self) -> None:
        # Attributes of many values first: they tell most others apart.
        self.loss = {head: _GUESSING - 0.001 * len(values) for head, values in LABELS.items() if head != "noun"}
        self._heads: Mapping[Group, list[str]] = {
            group: [head for head in self.loss if head.startswith(f"{group}.")] for group in GROUPS
        }

    def told(self, rng: random.Random, group: Group) -> tuple[str, ...]:
        """Return the attributes that an introduction of somebody of this group tells, the class first."""
        heads = self._heads[group]
        new = [head for head in heads if self.loss[head] > _LEARNED]
        known = [head for head in heads if head not in new]
        if new and (not known or rng.random() < _NEW):
            # Now and then any, so that one that cannot be learned holds up no other.
            is_nearest = rng.random() < _NEAREST
            return "noun", min(new, key=self.loss.__getitem__) if is_nearest else rng.choice(new)
        return "noun", *rng.sample(known, min(len(known), rng.choice((1, 1, 2, 3))))

    def note(self, told: tuple[str, ...], loss: float) -> None:
        """Remember the loss of a question behind an introduction that tells `told`; of several it tells nothing."""
        if len(told) == 2:
            head = told[1]
            self.loss[head] = _MEMORY * self.loss[head] + (1 - _MEMORY) * loss

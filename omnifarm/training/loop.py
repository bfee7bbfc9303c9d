"""The training loop of one process: lanes join, step together, and leave when they are done.

trainer = Trainer(sharding, special_ids=..., config=...)
trainer.add(lane)
while trainer.lanes:
    for lane in trainer.step():
        ...  # done or stopped, and no longer in the trainer
"""

import logging
from collections.abc import Sequence

import torch

from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.clock import Clock, SystemClock
from omnifarm.errors import StoreError, TrainingError
from omnifarm.logs import event
from omnifarm.training.lane import Lane
from omnifarm.training.sharding import Sharding, Turn
from omnifarm.training.step import PackCount, packed_step

_logger = logging.getLogger(__name__)

LOG_EVERY = 200
"""Steps between two log lines on what sharing saved; one more is written when a lane ends."""


class Trainer:
    """Steps any number of lanes over one frozen backbone. Not safe for concurrent use.

    Args:
        sharding: The frozen backbone.
        special_ids: Ids of the frame tokens.
        config: The backbone's configuration.
        lanes_per_pack: Lanes that share one forward. On a CPU a lane's result is bit for bit what it would be alone,
            however many; on a GPU products of other heights may round the last digit differently, but with 1.
        share_prefixes: Lay equal prefixes of samples out once; off only to measure what that saves.
        clock: For the lanes' training time.
    """

    def __init__(
        self,
        sharding: Sharding,
        *,
        special_ids: SpecialIds,
        config: BackboneConfig,
        lanes_per_pack: int = 1,
        share_prefixes: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if lanes_per_pack < 1:
            raise TrainingError(f"lanes_per_pack must be at least 1, found {lanes_per_pack}")
        self._sharding = sharding
        self._special_ids = special_ids
        self._config = config
        self._lanes_per_pack = lanes_per_pack
        self._share_prefixes = share_prefixes
        self._clock = clock or SystemClock()
        self.count = PackCount()
        """Tokens of all steps so far."""
        self.waiting: dict[str, StoreError] = {}
        """Lanes that sat the last step out because their pictures could not be fetched, by name, with the reason."""
        self._steps = 0
        self._lanes: dict[str, Lane] = {}

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes that still train, in the order in which they joined."""
        return tuple(self._lanes.values())

    def add(self, lane: Lane) -> None:
        """Let a lane join from the next step on.

        Raises:
            TrainingError: A lane of that name is already training here.
        """
        if lane.name in self._lanes:
            raise TrainingError(f"a lane named {lane.name!r} is already training here; names must differ")
        self._lanes[lane.name] = lane

    def remove(self, name: str) -> Lane:
        """Take a lane out between two steps; it can go on elsewhere.

        Raises:
            TrainingError: No such lane.
        """
        try:
            return self._lanes.pop(name)
        except KeyError as error:
            raise TrainingError(f"no lane named {name!r} here; training: {sorted(self._lanes)}") from error

    def pack_fewer(self) -> None:
        """Let half as many lanes share a forward from now on, at least one; for when they do not fit together."""
        self._lanes_per_pack = max(1, self._lanes_per_pack // 2)

    def require_device(self) -> None:
        """Let the device add one and one: after some errors it does nothing any more, whoever asks.

        Raises:
            RuntimeError: It does nothing any more; only a new process can use it.
        """
        torch.ones(2, device=self._sharding.device).sum().item()

    def step(self, *, only: str | None = None) -> Sequence[Lane]:
        """Advance every lane by one step and return those that will take no other, removed from the trainer.

        What a step raises leaves every lane whole: it has taken its step or not, and may go on.

        Args:
            only: Name of the one lane to advance.
        """
        self.waiting = {}
        active = [lane for lane in self._lanes.values() if lane.is_active and only in (None, lane.name)]
        for start in range(0, len(active), self._lanes_per_pack):
            together = active[start : start + self._lanes_per_pack]
            began_s = self._clock.monotonic_s()
            count, waiting = packed_step(
                together,
                sharding=self._sharding,
                special_ids=self._special_ids,
                config=self._config,
                share_prefixes=self._share_prefixes,
            )
            self.count += count
            self.waiting |= waiting
            for lane in together:
                lane.train_s += (self._clock.monotonic_s() - began_s) / len(together)
        over = [lane for lane in self._lanes.values() if not lane.is_active]
        for lane in over:
            del self._lanes[lane.name]
        if active:
            self._steps += 1
            if over or self._steps % LOG_EVERY == 1:
                saved = round(self.count.share_saved, 4)
                event(_logger, "tokens_packed", steps=self._steps, num_tokens=self.count.num_tokens, share_saved=saved)
        return over

    def idle_turn(self, *, is_finished: bool) -> Turn:
        """Let the other processes of the cell step while there is no lane here; see `Sharding.idle_turn`."""
        return self._sharding.idle_turn(is_finished=is_finished)

"""What one run of the benchmark does, as plain data: saved once, compared when the run goes on."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from omnifarm.bench.others import OtherModel
from omnifarm.bench.rows import OWN_LEARNING, ROWS, Row, chosen_rows
from omnifarm.bench.tasks import Sizes
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import ConfigError

PREFIX = "benchmark"
"""Keys of everything the benchmark writes begin with this."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,78}[A-Za-z0-9_-])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """Which rows, on which data, from which seeds."""

    data: str
    """`miniature:SEED`, a folder, or a store URL."""
    backbone: str = "miniature"
    """Name or folder."""
    rows: tuple[str, ...]
    """Keys of the rows."""
    seeds: tuple[int, ...] = (0,)
    """Base seeds; each learns and draws everything anew."""
    sizes: Sizes = field(default_factory=Sizes)
    """How much is asked."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Recipe settings of every learned row, such as fewer steps."""
    others: tuple[OtherModel, ...] = ()
    """Rows that are other models."""
    name: str = ""
    """Name of the run; empty derives one from everything above, so that the same command goes on with its own run."""

    def __post_init__(self) -> None:
        if not (self.rows or self.others) or not self.seeds:
            raise ConfigError("a run needs at least one row and one seed")
        if self.name and not is_run_name(self.name):
            raise ConfigError(
                "expected a run's name of 1 to 80 letters, digits, '_', '.' or '-', with a letter or digit first and no "
                f"'.' last, found {self.name[:80]!r}; choose another"
            )

    @property
    def run(self) -> str:
        """Name of the run."""
        if self.name:
            return self.name
        slug = re.sub(r"[^A-Za-z0-9]+", "-", self.data.rstrip("/").rpartition("/")[2]).strip("-") or "data"
        return f"{slug[:40]}-{hashlib.sha256(self._text().encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> str:
        """Key of the run's folder, without a slash at the end."""
        return f"{PREFIX}/{self.run}"

    def chosen(self) -> list[Row]:
        """Return the rows, in the order of the report."""
        return [*chosen_rows(self.rows), *(other.row() for other in self.others)]

    def row(self, key: str) -> Row:
        """Return one of the rows."""
        return next(row for row in self.chosen() if row.key == key)

    def other(self, row: Row) -> OtherModel:
        """Return the model behind a row that is another model."""
        return next(other for other in self.others if other.key == row.key)

    def recipe_of(self, row: Row, base: TrainingRecipe, *, seed: int) -> TrainingRecipe:
        """Return how a row learns under one seed; the rows of one recipe share their training."""
        return row.recipe_of(base.with_overrides(self.recipe)).with_overrides({"seed": seed})

    def training_key(self, row: Row, recipe: TrainingRecipe, *, fingerprint: str, data: str) -> str:
        """Return the key of a training's store: same data, recipe and backbone, same place, whichever run asks."""
        how = [row.kind] if row.kind in OWN_LEARNING else []
        digest = hashlib.sha256(json.dumps([recipe.digest(), fingerprint, data, *how]).encode()).hexdigest()
        return f"{PREFIX}/training/{digest[:24]}"

    def replies_key(self, row: Row, *, seed: int) -> str:
        """Return the key of a row's replies."""
        return f"{self.folder}/replies/{row.key}/seed{seed}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **asdict(self),
            "rows": list(self.rows),
            "seeds": list(self.seeds),
            "others": list(map(asdict, self.others)),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build a plan from what `to_json` gave.

        Raises:
            ConfigError: A field is missing or unknown, or a row does not exist.
        """
        try:
            given = {
                **values,
                "sizes": Sizes(**values["sizes"]),
                "rows": tuple(values["rows"]),
                "seeds": tuple(values["seeds"]),
                "others": tuple(OtherModel(**one) for one in values["others"]),
            }
            plan = cls(**given)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"expected the plan of a benchmark run, found something else ({error})") from error
        if unknown := sorted(set(plan.rows) - set(ROWS)):
            raise ConfigError(f"the plan names rows that this version does not have: {', '.join(unknown)}")
        return plan

    def _text(self) -> str:
        return json.dumps({key: value for key, value in self.to_json().items() if key != "name"}, sort_keys=True)


def is_run_name(text: str) -> bool:
    """Return whether a run can have this name: a part of a key that every store can hold."""
    return _NAME.fullmatch(text) is not None

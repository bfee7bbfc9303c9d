"""Other models as rows: behind an endpoint or in a folder, with the concept in their prompt."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from omnifarm.bench.rows import Row
from omnifarm.bench.tasks import DRAWING, UNDERSTANDING
from omnifarm.errors import ConfigError

Prompt = Literal["tp", "ip"]
"""The concept's description, or a photograph of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherModel:
    """One of them."""

    model: str
    """Pinned id behind the endpoint, or a folder that transformers can load."""
    prompt: Prompt
    """What it is shown of the concept."""
    url: str = ""
    """Of an OpenAI-compatible server; empty for a folder."""
    draws: bool = False
    """Whether it draws, too."""

    def __post_init__(self) -> None:
        if not self.model or self.prompt not in get_args(Prompt):
            raise ConfigError(f"another model is MODEL:tp or MODEL:ip, found {self.model}:{self.prompt}")

    @property
    def key(self) -> str:
        """Key of its row."""
        name = re.sub(r"[^a-z0-9.]+", "-", self.model.rstrip("/").rpartition("/")[2].lower())
        return f"{name}_{self.prompt}"

    def row(self) -> Row:
        """Return its row."""
        shown = "its description" if self.prompt == "tp" else "a photograph"
        name = self.model.rstrip("/").rpartition("/")[2]
        return Row(
            key=self.key,
            title=f"{name} + {self.prompt.upper()}",
            section="baseline",
            kind="endpoint" if self.url else "local",
            tasks=(*UNDERSTANDING, *DRAWING) if self.draws else UNDERSTANDING,
            prompt=self.prompt,
            replay="off",
            note=f"another model, shown {shown} of the concept",
        )

"""Every setting of the server, read once from the environment (or from `args` of a Serve configuration)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from omnifarm.errors import ConfigError

PREFIX = "OMNIFARM_"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """What one replica needs to know. `field` is set by `OMNIFARM_FIELD`."""

    store: str
    """Where the learned concepts lie: `s3://bucket/prefix` or a local folder."""
    backbone: str = "miniature"
    """`miniature`, a checkpoint folder or a hub id."""
    device: str = "cpu"
    """Where the backbone runs, such as `cuda:0`."""
    dtype: str = "float32"
    """Number format of the weights: `float32` or `bfloat16`."""
    threads: int = 0
    """CPU threads of one forward; 0 leaves it to torch."""
    max_body_bytes: int = 16 * 2**20
    """A larger request body is refused with 413 before it is parsed."""
    max_pixels: int = 16 * 10**6
    """A picture with more pixels is refused with 413 before it is decoded."""
    max_text_chars: int = 2000
    """A longer question, prompt or instruction is refused with 422."""
    max_waiting: int = 16
    """Requests that may wait for the backbone; the next one gets 503 and Retry-After."""
    log_level: str = "INFO"
    """Lowest level of event that is logged."""

    def __post_init__(self) -> None:
        if not self.store:
            raise ConfigError(
                f"expected {PREFIX}STORE to name the store with the learned concepts, found nothing; set it"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"expected {PREFIX}DTYPE to be float32 or bfloat16, found {self.dtype!r}")
        for name, low in (
            ("threads", 0),
            ("max_body_bytes", 1024),
            ("max_pixels", 1),
            ("max_text_chars", 1),
            ("max_waiting", 1),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"expected {PREFIX}{name.upper()} of at least {low}, found {getattr(self, name)}")

    @classmethod
    def read(cls, environment: Mapping[str, str], arguments: Mapping[str, str]) -> Self:
        """Build the settings.

        Args:
            environment: Usually `os.environ`; only names starting with `OMNIFARM_` that match a field count.
            arguments: Field names and values that win over the environment (`args:` in serve.yaml).

        Raises:
            ConfigError: An argument is unknown, a number does not parse, a value is out of range, or there is no store.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        unknown = sorted(set(arguments) - set(kinds))
        if unknown:
            raise ConfigError(f"expected arguments among {sorted(kinds)}, found {unknown}; remove them")
        given = {name: environment[PREFIX + name.upper()] for name in kinds if PREFIX + name.upper() in environment}
        given.update(arguments)
        values: dict[str, str | int] = {"store": ""}
        for name, text in given.items():
            if kinds[name] is int:
                try:
                    values[name] = int(text)
                except ValueError:
                    raise ConfigError(f"expected a whole number in {PREFIX}{name.upper()}, found {text!r}") from None
            else:
                values[name] = text
        return cls(**values)  # type: ignore[arg-type]

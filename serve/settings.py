"""Every setting of the server, read once from the environment (or from `args` of a Serve configuration)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from omnifarm.errors import ConfigError

PREFIX = "OMNIFARM_"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:\d{1,5})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """What one replica needs to know. `field` is set by `OMNIFARM_FIELD`."""

    store: str
    """Where accounts, jobs and learned concepts lie: `s3://bucket/prefix` or a local folder."""
    backbone: str = "miniature"
    """`miniature`, a checkpoint folder or a hub id."""
    device: str = "cpu"
    """Where the backbone runs, such as `cuda:0`."""
    dtype: str = "float32"
    """Number format of the weights: `float32` or `bfloat16` (float32 all the same on a CPU that cannot multiply it)."""
    threads: int = 0
    """CPU threads of one forward; 0 leaves it to torch. Fewer than there are cores: HTTP needs one, or every forward waits."""
    compiled: bool = False
    """Compile what surrounds attention: faster, but a replica then takes a minute to start, and needs a C++ compiler on
    a CPU. Float32 answers still follow the backbone, but no longer bit for bit whatever they share a batch with."""
    access: str = "keys"
    """`keys`: every request needs a tenant's key. `owner`: requests from this machine itself act for the whole store,
    without a key."""
    train: bool = True
    """Whether this application trains what is uploaded. With false it takes no jobs of tenants, as cells
    (`jobs/train_concepts.py`) lease from the owner's part of the store only; the owner's own jobs are left to cells."""
    train_lanes: int = 2
    """Concepts of one tenant trained side by side."""
    checkpoint_s: int = 4
    """Seconds of work that a crashed training loses; also how often who watches it sees something new."""
    recipe: str = ""
    """Recipe settings as a JSON object that replace the backbone's own, such as `{"steps": 400}`."""
    max_body_bytes: int = 32 * 2**20
    """A larger request body is refused with 413 before it is parsed."""
    max_image_bytes: int = 16 * 2**20
    """A larger picture file is refused with 413 before it is decoded."""
    max_pixels: int = 50 * 10**6
    """A picture with more pixels is refused with 413 before it is decoded."""
    max_images: int = 4
    """Pictures in one request."""
    max_text_chars: int = 2000
    """A longer question, prompt or instruction is refused with 422."""
    max_drawings: int = 4
    """Pictures drawn for one request (`n`)."""
    max_waiting: int = 64
    """Requests a replica holds; the next one gets 503 and Retry-After. Behind Ray Serve `max_ongoing_requests` is to be at
    most this, so that requests wait in Serve's queue instead."""
    cached_tokens: int = 65536
    """Tokens whose keys and values have room on the device: 9 kB each for the miniature, 56 kB for the released model."""
    step_tokens: int = 0
    """Tokens of one forward pass of all requests together; 0 takes what suits the backbone on its device."""
    stall_s: int = 300
    """A replica with work whose engine ends no step for so long is replaced; more than the longest step takes."""
    fetch_hosts: str = ""
    """Hosts (comma-separated, with `:port` where it is not 443) from which pictures may be fetched over https."""
    log_level: str = "INFO"
    """Lowest level of event that is logged."""

    def __post_init__(self) -> None:
        if not self.store:
            raise ConfigError(
                f"expected {PREFIX}STORE to name the store with the learned concepts, found nothing; set it"
            )
        for name, known in (("dtype", ("float32", "bfloat16")), ("access", ("keys", "owner"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"expected {PREFIX}{name.upper()} to be {' or '.join(known)}, found {getattr(self, name)!r}"
                )
        for name, low in (
            ("threads", 0),
            ("train_lanes", 1),
            ("checkpoint_s", 1),
            ("max_body_bytes", 1024),
            ("max_image_bytes", 1024),
            ("max_pixels", 1),
            ("max_images", 1),
            ("max_text_chars", 1),
            ("max_drawings", 1),
            ("max_waiting", 1),
            ("cached_tokens", 1),
            ("step_tokens", 0),
            ("stall_s", 1),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"expected {PREFIX}{name.upper()} of at least {low}, found {getattr(self, name)}")
        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host):
                raise ConfigError(f"expected host names in {PREFIX}FETCH_HOSTS, found {host!r}")

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """`fetch_hosts` as a set."""
        return frozenset(host for part in self.fetch_hosts.split(",") if (host := part.strip().lower()))

    @classmethod
    def read(cls, environment: Mapping[str, str], arguments: Mapping[str, str]) -> Self:
        """Build the settings.

        Args:
            environment: Usually `os.environ`; only names starting with `OMNIFARM_` that match a field count.
            arguments: Field names and values that win over the environment (`args:` in serve.yaml).

        Raises:
            ConfigError: An argument is unknown, a value does not parse or is out of range, or there is no store.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        unknown = sorted(set(arguments) - set(kinds))
        if unknown:
            raise ConfigError(f"expected arguments among {sorted(kinds)}, found {unknown}; remove them")
        given = {name: environment[PREFIX + name.upper()] for name in kinds if PREFIX + name.upper() in environment}
        given.update(arguments)
        values: dict[str, Any] = {"store": ""}
        for name, text in given.items():
            values[name] = _parse(text, kind=kinds[name], name=PREFIX + name.upper())
        return cls(**values)


def _parse(given: str | int | bool, *, kind: object, name: str) -> str | int | bool:
    # YAML has read numbers and truth values already; the environment holds text alone.
    text = str(given)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ConfigError(f"expected true or false in {name}, found {text!r}")
        return text.lower() in ("true", "1")
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"expected a whole number in {name}, found {text!r}") from None
    return text

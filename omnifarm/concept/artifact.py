"""What a finished concept is stored as: one safetensors file and one JSON manifest.

    soft_tokens.safetensors   und (N_u + 1, D), gen (N_g, D); float32; nothing else
    manifest.json             what it is, what it was made from, which backbone it fits

Both are read as if a stranger had written them: sizes are capped before parsing, the header is read by our own code,
names, types, shapes and offsets must be exactly these, numbers finite and of bounded length. Never pickle.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens
from omnifarm.concept.spec import name_problem
from omnifarm.errors import ArtifactError, ConceptError

SCHEMA_VERSION = 1
"""Version of the manifest's fields."""
MAX_TENSOR_BYTES = 64 * 2**20
"""Largest soft token file read (the released sizes need 0.5 MB)."""
MAX_HEADER_BYTES = 16 * 2**10
"""Largest safetensors header read."""
MAX_MANIFEST_BYTES = 16 * 2**20
"""Largest manifest read; loss curves are the bulk of it."""
MAX_ROWS = 1025
"""Rows of either tensor."""
MAX_WIDTH = 65536
"""Width of a row."""
MAX_NORM = 1e4
"""Length of a row; token embeddings have lengths around 1, trained soft tokens at most a few hundred."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactManifest:
    """What an artifact says about itself."""

    name: str
    """The concept's name."""
    version: str
    """Identity of the artifact: the job that made it, a digest of data, recipe and backbone."""
    class_noun: str
    """Such as "dog"."""
    fingerprint: str
    """The backbone the soft tokens fit."""
    data_digest: str
    """`ConceptSpec.digest` of what it was learned from."""
    tensors_digest: str
    """SHA-256 of the safetensors file."""
    num_und: int
    """N_u."""
    num_gen: int
    """N_g."""
    width: int
    """D."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """`TrainingRecipe.to_json`."""
    losses: Mapping[str, Any] = field(default_factory=dict)
    """Loss curves by task: lists of one number per logged step."""
    train_s: float = 0.0
    """Seconds of training, waiting not counted."""
    created_at_s: float = 0.0
    """Seconds since the Unix epoch."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the software that made it."""
    warnings: tuple[str, ...] = ()
    """What was not learned, for the owner's eyes."""
    is_coupled: bool = False
    """All soft tokens through the understanding expert."""
    schema_version: int = SCHEMA_VERSION
    """Version of these fields."""

    @property
    def identifier(self) -> str:
        """The name in angle brackets."""
        return f"<{self.name}>"

    @property
    def backbone_fingerprint(self) -> str:
        """Another name of `fingerprint`."""
        return self.fingerprint

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        mappings = {key: dict(values[key]) for key in ("recipe", "losses", "versions")}
        return {**values, **mappings, "warnings": list(self.warnings), "identifier": self.identifier}

    @classmethod
    def from_json(cls, values: object, *, where: str = "manifest.json") -> Self:
        """Check and build a manifest.

        Raises:
            ArtifactError: Fields are missing, unknown or of the wrong kind, or a newer program wrote it.
        """
        if not isinstance(values, dict):
            raise _damaged(where, "must be an object", type(values).__name__)
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{where}: expected schema_version {SCHEMA_VERSION}, found {version!r}; "
                "use the version of OmniFarm that wrote it, or train the concept again"
            )
        given = {key: value for key, value in values.items() if key != "identifier"}
        known = {one.name: str(one.type) for one in fields(cls)}
        if wrong := set(given) ^ set(known):
            raise _damaged(where, f"must hold exactly {sorted(known)}", f"a difference in {sorted(wrong)}")
        for key, value in given.items():
            if not isinstance(value, _KINDS[key]) or (isinstance(value, bool) and key != "is_coupled"):
                raise _damaged(where, f"{key} is of the wrong kind", repr(value)[:80])
        if not isinstance(given["name"], str) or name_problem(given["name"]) is not None:
            raise _damaged(where, "name must be a concept's name", repr(given["name"])[:80])
        return cls(**{**given, "warnings": tuple(map(str, given["warnings"]))})


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "version", "class_noun", "fingerprint", "data_digest", "tensors_digest"), str),
    **dict.fromkeys(("num_und", "num_gen", "width", "schema_version"), int),
    **dict.fromkeys(("recipe", "losses", "versions"), dict),
    **dict.fromkeys(("train_s", "created_at_s"), (int, float)),
    "warnings": list,
    "is_coupled": bool,
}


def encode_manifest(manifest: ArtifactManifest) -> bytes:
    """Return the bytes of `manifest.json`."""
    return json.dumps(manifest.to_json(), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()


def decode_manifest(data: bytes, *, where: str = "manifest.json") -> ArtifactManifest:
    """Read `manifest.json`.

    Raises:
        ArtifactError: Too large, no JSON, or not a manifest.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _damaged(where, f"must hold at most {MAX_MANIFEST_BYTES:,} bytes", f"{len(data):,}")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, "must be JSON", str(error)) from error
    return ArtifactManifest.from_json(values, where=where)


def encode_soft_tokens(soft_tokens: SoftTokens) -> bytes:
    """Return the bytes of `soft_tokens.safetensors`; equal tensors give equal bytes.

    Raises:
        ArtifactError: The tensors would not be accepted when read back.
    """
    tensors = {
        "und": soft_tokens.und.detach().to("cpu", torch.float32).contiguous(),
        "gen": soft_tokens.gen.detach().to("cpu", torch.float32).contiguous(),
    }
    for name, tensor in tensors.items():
        _require_sound(name, tensor, where="soft tokens")
    return save(tensors)


def decode_soft_tokens(
    data: bytes, *, layout: SoftTokenLayout, width: int, where: str = "soft_tokens.safetensors"
) -> SoftTokens:
    """Read `soft_tokens.safetensors`.

    Args:
        data: The file.
        layout: What the manifest promises.
        width: D the manifest promises.
        where: Name for messages.

    Raises:
        ArtifactError: Anything is not exactly as promised.
    """
    header, body = _split(data, where)
    expected = {"und": (1 + layout.num_und, width), "gen": (layout.num_gen, width)}
    if set(header) != set(expected):
        raise _damaged(where, "must hold exactly the tensors und and gen", f"{sorted(map(str, header))[:8]}")
    spans = {name: _span(name, header[name], expected[name], len(body), where) for name in expected}
    order = sorted(spans.values())
    if order[0][0] != 0 or order[0][1] != order[1][0] or order[1][1] != len(body):
        raise _damaged(where, "tensors must fill the file without gaps or overlaps", f"{order} of {len(body)} bytes")
    tensors = {}
    for name, (begin, end) in spans.items():
        values = np.frombuffer(body[begin:end], dtype="<f4").reshape(expected[name]).copy()
        tensors[name] = torch.from_numpy(values)
        _require_sound(name, tensors[name], where=where)
    return SoftTokens(und=tensors["und"], gen=tensors["gen"], is_coupled=layout.is_coupled)


def tensors_digest(data: bytes) -> str:
    """Return the SHA-256 of a soft token file."""
    return hashlib.sha256(data).hexdigest()


def _split(data: bytes, where: str) -> tuple[dict[str, Any], bytes]:
    if len(data) > MAX_TENSOR_BYTES:
        raise _damaged(where, f"must hold at most {MAX_TENSOR_BYTES:,} bytes", f"{len(data):,}")
    if len(data) < 8:
        raise _damaged(where, "must begin with an 8-byte header length", f"{len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise _damaged(where, f"must have a header of at most {MAX_HEADER_BYTES:,} bytes", f"{length:,}")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, "must have a JSON header", str(error)) from error
    if not isinstance(header, dict):
        raise _damaged(where, "must have an object as header", type(header).__name__)
    return header, data[8 + length :]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _span(name: str, entry: object, shape: tuple[int, int], size: int, where: str) -> tuple[int, int]:
    wanted = {"dtype": "F32", "shape": list(shape)}
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(where, f"{name} must have dtype, shape and data_offsets", repr(entry)[:80])
    # Types are compared too: JSON has 17.0 and true, which equal whole numbers.
    if repr({key: entry[key] for key in wanted}) != repr(wanted):
        raise _damaged(where, f"{name} must be F32 of shape {shape}", f"{entry['dtype']!r} {entry['shape']!r}"[:80])
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(one) is not int for one in offsets):
        raise _damaged(where, f"{name} must have two offsets", repr(offsets)[:80])
    begin, end = offsets
    if not 0 <= begin <= end <= size or end - begin != 4 * math.prod(shape):
        raise _damaged(where, f"{name} must lie inside the file and hold {4 * math.prod(shape)} bytes", f"{offsets}")
    return begin, end


def _require_sound(name: str, tensor: Tensor, *, where: str) -> None:
    if tensor.ndim != 2 or tensor.shape[0] > MAX_ROWS or not 1 <= tensor.shape[1] <= MAX_WIDTH:
        raise _damaged(where, f"{name} must have at most {MAX_ROWS} rows of 1..{MAX_WIDTH}", f"{tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise _damaged(where, f"{name} must be finite", "infinities or nans")
    longest = float(tensor.double().norm(dim=1).max()) if tensor.shape[0] else 0.0
    if longest > MAX_NORM:
        raise _damaged(where, f"{name} must have rows no longer than {MAX_NORM:g}", f"{longest:.3g}")


def _damaged(where: str, expected: str, found: str) -> ArtifactError:
    return ArtifactError(f"{where}: {expected}, found {found}; the file is damaged: train the concept again")


def check_name(name: str) -> None:
    """Refuse a name that is no concept's.

    Raises:
        ConceptError: It holds anything but letters, digits, `_` and `-`.
    """
    if (reason := name_problem(name)) is not None:
        raise ConceptError(reason, concept=name)

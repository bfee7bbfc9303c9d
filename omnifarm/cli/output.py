"""What commands print: one JSON document on standard output, everything else for people."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from omnifarm.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]

people = Console(stderr=True, highlight=False)
"""Progress and remarks: standard error, so that standard output stays machine-readable."""

results = Console(highlight=False, soft_wrap=True)
"""Results for people: standard output."""


def print_json(document: Any) -> None:
    """Write `document` (JSON-compatible) to standard output, indented, keys as given."""
    print(json_text(document))


def json_text(document: Any) -> str:
    """Return `document` as indented JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False, default=str)


def json_object(text: str | None, *, what: str) -> dict[str, Any]:
    """Read the JSON object given as option `what`; nothing gives an empty one.

    Raises:
        ConfigError: It is no JSON object.
    """
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{what} must be a JSON object, found {text!r}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{what} must be a JSON object, found {text!r}")
    return values

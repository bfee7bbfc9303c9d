"""Data sets of every layout, drawn small."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnifarm.concept.datasets.held_out import HeldOut
from omnifarm.concept.datasets.load import load_concepts, load_held_out
from omnifarm.concept.spec import ConceptSpec

Put = Callable[[Path, bytes | Any], None]


@pytest.fixture(scope="session")
def put() -> Put:
    def write(path: Path, content: bytes | Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return write


def load(url: Path | str, name: str) -> ConceptSpec:
    spec = dict(load_concepts(str(url)))[name]
    if isinstance(spec, Exception):
        raise spec
    return spec


def load_test(url: Path | str, name: str) -> HeldOut:
    held_out = dict(load_held_out(str(url)))[name]
    if isinstance(held_out, Exception):
        raise held_out
    return held_out

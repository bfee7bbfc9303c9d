"""JSON from strangers: what is no object, no number or no text."""

import json

import pytest

from omnifarm.errors import RequestError
from serve.json_text import parse_object, require_unicode


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": "\xed\xa0\x80"}'])  # fmt: skip
def test_what_is_no_json_does_not_parse(data: bytes) -> None:
    with pytest.raises(RequestError, match="expected a note, found something that does not parse"):
        parse_object(data, expected="a note")


def test_another_value_than_an_object_is_named() -> None:
    with pytest.raises(RequestError, match="found a list"):
        parse_object(b"[]", expected="a note")


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'{"a": [{"b": "x\udfffy"}]}', r'{"\ude00": 1}', r'{"a": "\ude00\ud83d"}'])  # fmt: skip
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(text: str) -> None:
    with pytest.raises(RequestError, match=r"found '\\ud[0-9a-f]{3}', one half of a surrogate pair") as refused:
        parse_object(text.encode(), expected="a note", field="file")
    assert refused.value.facts["field"] == "file"


def test_a_whole_pair_is_one_character() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude00"}', expected="a note") == {"a": "\N{GRINNING FACE}"}


def test_depth_costs_no_stack() -> None:
    deep: object = "\ud800"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError):
        require_unicode(deep)
    assert parse_object(json.dumps({"a": 1}).encode(), expected="a note") == {"a": 1}

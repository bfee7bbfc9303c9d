"""JSON from strangers: objects whose numbers are numbers and whose texts are Unicode.

`json.loads` lets in more than JSON is: NaN, and half a surrogate pair (`"\\ud800"`), which no encoder takes again and which
would so fail much later, inside of us.
"""

import json
from typing import Any, NoReturn

from omnifarm.errors import RequestError


def parse_object(data: bytes, *, expected: str, field: str | None = None) -> dict[str, Any]:
    """Return the JSON object in `data`.

    Args:
        data: UTF-8.
        expected: What it should have been, for messages: "a JSON object as body".
        field: The request's field, for messages.

    Raises:
        RequestError: It is no JSON object, or holds text that is not Unicode.
    """
    try:
        values = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RequestError(f"expected {expected}, found something that does not parse", field=field) from None
    if not isinstance(values, dict):
        raise RequestError(f"expected {expected}, found a {type(values).__name__}", field=field)
    require_unicode(values, field=field)
    return values


def require_unicode(values: Any, *, field: str | None = None) -> None:
    """Refuse text that cannot be encoded, wherever it stands.

    Args:
        values: As JSON or a form gave them.
        field: The request's field, for messages.

    Raises:
        RequestError: A text or a name holds half a surrogate pair.
    """
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                found = ascii(value[error.start])
                raise RequestError(
                    f"expected text in Unicode, found {found}, one half of a surrogate pair; send whole characters",
                    field=field,
                ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")

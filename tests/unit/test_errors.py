import pickle

import pytest

from omnifarm import errors


def all_errors() -> list[type[errors.OmniFarmError]]:
    found: list[type[errors.OmniFarmError]] = []
    pending = [errors.OmniFarmError]
    while pending:
        cls = pending.pop()
        found.append(cls)
        pending.extend(cls.__subclasses__())
    return found


@pytest.mark.parametrize("cls", all_errors())
def test_every_error_survives_the_trip_between_processes(cls: type[errors.OmniFarmError]) -> None:
    error = cls("expected 3, found 4; remove one", expected=3, found=4)
    back = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(back) is cls
    assert str(back) == "expected 3, found 4; remove one"
    assert back.facts == {"expected": 3, "found": 4}


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    missing = [
        cls.__name__ for cls in all_errors() if cls.__name__ not in errors.__doc__ and cls.__module__ == errors.__name__
    ]
    assert missing == []

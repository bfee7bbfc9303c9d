"""What the server reads from its environment, and which status an error gets."""

import pytest

from omnifarm import errors
from serve.errors import STATUS, TooLargeError, UnsupportedMediaError, explain, status_of
from serve.settings import ServeSettings


def test_arguments_win_over_the_environment() -> None:
    environment = {"OMNIFARM_STORE": "s3://a/b", "OMNIFARM_MAX_WAITING": "3", "OTHER": "x"}
    settings = ServeSettings.read(environment, {"store": "/srv/store"})
    assert (settings.store, settings.max_waiting, settings.backbone) == ("/srv/store", 3, "miniature")


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, {}, "OMNIFARM_STORE"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_MAX_WAITING": "many"}, {}, "whole number in OMNIFARM_MAX_WAITING"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_MAX_PIXELS": "0"}, {}, "OMNIFARM_MAX_PIXELS of at least 1"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_DTYPE": "int4"}, {}, "float32 or bfloat16"),
        ({"OMNIFARM_STORE": "a"}, {"sotre": "b"}, "sotre"),
    ],
)
def test_a_bad_setting_fails_at_start(environment: dict[str, str], arguments: dict[str, str], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        ServeSettings.read(environment, arguments)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownConceptError("x"), 404),
        (errors.OverloadedError("x"), 503),
        (errors.RequestError("x"), 422),
        (TooLargeError("x"), 413),
        (UnsupportedMediaError("x"), 415),
        (errors.ConfigError("x"), 422),
        (errors.ArtifactError("x"), 409),
        (errors.AccessError("x"), 503),
        (errors.TrainingError("x"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_has_one_status(error: errors.OmniFarmError, status: int) -> None:
    assert status_of(error) == status


def test_no_entry_of_the_table_hides_a_later_one() -> None:
    kinds = [kind for kind, _ in STATUS]
    assert not any(issubclass(later, kind) for i, kind in enumerate(kinds) for later in kinds[i + 1 :])


def test_a_schema_problem_names_the_field() -> None:
    assert explain([{"loc": ("body", "question"), "msg": "Field required"}]) == "question: Field required"

"""What the server reads from its environment, and which status an error gets."""

import logging

import pytest

from omnifarm import errors
from serve import errors as http_errors
from serve.errors import STATUS, body_of, explain, headers_of, report, status_of
from serve.settings import ServeSettings


def test_arguments_win_over_the_environment() -> None:
    environment = {"OMNIFARM_STORE": "s3://a/b", "OMNIFARM_MAX_WAITING": "3", "OMNIFARM_TRAIN": "false", "OTHER": "x"}
    settings = ServeSettings.read(environment, {"store": "/srv/store"})
    assert (settings.store, settings.max_waiting, settings.backbone) == ("/srv/store", 3, "miniature")
    assert (settings.train, settings.access) == (False, "keys")


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, {}, "OMNIFARM_STORE"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_MAX_WAITING": "many"}, {}, "whole number in OMNIFARM_MAX_WAITING"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_MAX_PIXELS": "0"}, {}, "OMNIFARM_MAX_PIXELS of at least 1"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_DTYPE": "int4"}, {}, "float32 or bfloat16"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_ACCESS": "anyone"}, {}, "keys or owner"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_TRAIN": "perhaps"}, {}, "true or false"),
        ({"OMNIFARM_STORE": "a", "OMNIFARM_FETCH_HOSTS": "https://a.org/"}, {}, "host names"),
        ({"OMNIFARM_STORE": "a"}, {"sotre": "b"}, "sotre"),
    ],
)
def test_a_bad_setting_fails_at_start(environment: dict[str, str], arguments: dict[str, str], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        ServeSettings.read(environment, arguments)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (http_errors.UnauthenticatedError("x"), 401),
        (http_errors.ForbiddenError("x"), 403),
        (errors.UnknownConceptError("x"), 404),
        (http_errors.MissingError("x"), 404),
        (errors.NotFoundError("x"), 404),
        (http_errors.ConflictError("x"), 409),
        (errors.ArtifactError("x"), 409),
        (http_errors.TooLargeError("x"), 413),
        (http_errors.UnsupportedMediaError("x"), 415),
        (errors.RequestError("x"), 422),
        (errors.ConceptError("x"), 422),
        (errors.ConfigError("x"), 422),
        (http_errors.RateLimitError("x"), 429),
        (http_errors.QuotaError("x"), 429),
        (errors.OverloadedError("x"), 503),
        (errors.AccessError("x"), 503),
        (errors.TrainingError("x"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_has_one_status_and_openais_shape(error: errors.OmniFarmError, status: int) -> None:
    assert status_of(error) == status
    assert set(body_of(error)["error"]) >= {"message", "type", "param", "code"}


def test_no_entry_of_the_table_hides_a_later_one() -> None:
    kinds = [entry[0] for entry in STATUS]
    assert not any(issubclass(later, kind) for i, kind in enumerate(kinds) for later in kinds[i + 1 :])


def test_whoever_may_come_back_is_told_when() -> None:
    assert headers_of(http_errors.RateLimitError("x", retry_after_s=0.2)) == {"Retry-After": "1"}
    assert headers_of(errors.OverloadedError("x", retry_after_s=4.1)) == {"Retry-After": "5"}
    assert headers_of(http_errors.QuotaError("x")) == {"x-should-retry": "false"}


def test_facts_stand_beside_the_message_and_never_in_its_place() -> None:
    body = body_of(errors.RequestError("too wide", field="size", limit=96, type="fake"))["error"]
    assert (body["message"], body["param"], body["limit"]) == ("too wide", "size", 96)
    assert body["type"] == "invalid_request_error"


def test_our_own_mistakes_say_nothing_of_our_insides() -> None:
    assert "tensor" not in str(body_of(errors.TrainingError("tensor at /srv/x")))


@pytest.mark.parametrize(
    "error", [errors.StoreError, errors.NotFoundError, errors.PreconditionError, errors.AccessError]
)
def test_where_the_store_is_concerns_nobody_but_its_operator(error: type[errors.OmniFarmError]) -> None:
    told = str(body_of(error("s3://bucket/tenants/acme/jobs/1 is gone", store="s3://bucket", key="jobs/1")))
    assert "bucket" not in told
    assert "jobs/1" not in told


@pytest.mark.parametrize(
    ("error", "name", "level"),
    [
        (errors.OverloadedError("x"), "request_refused", logging.INFO),
        (errors.AccessError("s3://bucket"), "store_failed", logging.ERROR),
        (errors.TrainingError("x"), "request_crashed", logging.ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_log_has_what_the_client_is_not_told(
    error: errors.OmniFarmError, name: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("omnifarm.serve")
    log.addHandler(caplog.handler)
    before, log.level = log.level, logging.INFO
    try:
        assert report(error) == body_of(error)
    finally:
        log.removeHandler(caplog.handler)
        log.setLevel(before)
    # Once for each handler that took it.
    assert {(record.message, record.levelno) for record in caplog.records} == {(name, level)}
    assert {record.exc_info is not None for record in caplog.records} == {level == logging.ERROR and "crash" in name}


def test_a_schema_problem_names_the_field() -> None:
    assert explain([{"loc": ("body", "question"), "msg": "Field required"}]) == "question: Field required"

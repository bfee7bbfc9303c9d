"""Requests made up from the OpenAPI document: whatever is sent, the server never fails, and answers as it says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.serve.conftest import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:hypothesis.errors.NonInteractiveExampleWarning"),
]
_CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


def test_nothing_made_up_from_the_document_makes_the_server_fail(server: Server, acme_key: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    headers = {"Authorization": f"Bearer {acme_key}"}
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 19
    for operation in operations:

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attempt(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=server.url, headers=headers, checks=list(_CHECKS), timeout=60)

        attempt()


def test_the_document_describes_bodies_and_errors(server: Server) -> None:
    with server.http() as http:
        document = http.get("/openapi.json").json()
    form = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["image"]["format"] == "binary"
    assert set(form["required"]) == {"prompt", "image"}
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(answers) >= {"200", "401", "403", "404", "413", "415", "422", "429", "503"}
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"HTTPBearer": []}]

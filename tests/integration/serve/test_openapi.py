"""Requests made up from the OpenAPI document: whatever is sent, the server never fails, and answers as it says."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.serve.conftest import Server, picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:hypothesis.errors.NonInteractiveExampleWarning"),
]
_CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


Change = Callable[[Any, int], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server of its own, as much of it is deleted on the way; a key to it, and what is there."""

    url: str
    headers: dict[str, str]
    ids: dict[str, list[str]]
    """Path parameters that name something."""
    bodies: dict[str, dict[str, Any]]
    """By path, what a body must hold to be about something that is there, and to be done soon."""

    def try_all(self, *, examples: int, mode: GenerationMode, change: Change | None = None) -> Counter[int]:
        """Send so many requests to every operation; return how many got which status."""
        schema = schemathesis.openapi.from_url(f"{self.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 19
        statuses: Counter[int] = Counter()
        # What is deleted is not there for the others.
        for operation in sorted(operations, key=lambda one: one.method.upper() == "DELETE"):

            @settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode), which=st.integers(0, 5))
            def attempt(case: schemathesis.Case, which: int) -> None:
                if change is not None:
                    change(case, which)
                reply = case.call_and_validate(
                    base_url=self.url, headers=self.headers, checks=list(_CHECKS), timeout=60
                )
                statuses[reply.status_code] += 1

            # Some operations take nothing that could be wrong.
            with suppress(Unsatisfiable):
                attempt()
        return statuses

    def name_what_is_there(self, case: Any, which: int) -> None:
        """Make a request about something that exists."""
        for name in set(case.path_parameters or {}) & set(self.ids):
            case.path_parameters[name] = self.ids[name][which % len(self.ids[name])]
        if isinstance(case.body, dict):
            case.body.update(self.bodies.get(case.operation.path, {}))


@pytest.fixture(scope="module")
def target(serve_with: Callable[..., Server]) -> Target:
    server = serve_with()
    key = server.key("acme")
    openai = server.openai(key)
    photos = [openai.files.create(file=("a.png", picture(seed=seed)), purpose="vision").id for seed in (1, 2)]
    text = json.dumps({"class": "dog", "photos": photos}).encode()
    documents = [openai.files.create(file=("c.json", text), purpose="fine-tune").id for _ in range(2)]
    jobs = [
        openai.fine_tuning.jobs.create(model="bagel", training_file=documents[0], suffix=suffix).id
        for suffix in ("rex", "kim")
    ]
    # One is learned and one called off, so that whoever follows them is not kept waiting.
    openai.fine_tuning.jobs.cancel(jobs[1])
    server.train()
    model, small = {"model": "bagel:<maeve>"}, {"num_timesteps": 2, "n": 1}
    return Target(
        url=server.url,
        headers={"Authorization": f"Bearer {key}"},
        ids={
            "name": ["maeve", "only-acme", "rex"],
            "model": ["bagel", "bagel:<maeve>", "bagel:only-acme"],
            "file_id": [*photos, *documents],
            "job_id": jobs,
        },
        bodies={
            "/v1/chat/completions": {**model, "max_tokens": 2, "max_completion_tokens": 2},
            "/v1/images/generations": {**model, **small, "prompt": "A dog.", "size": "32x32", "concepts": None},
            "/v1/images/edits": {**model, **small, "image": picture()},
            "/v1/files": {"purpose": "vision", "file": picture()},
            "/v1/fine_tuning/jobs": {"model": "bagel", "training_file": documents[1], "suffix": "new"},
        },
    )


def test_nothing_made_up_from_the_document_makes_the_server_fail(target: Target) -> None:
    assert target.try_all(examples=8, mode=GenerationMode.POSITIVE)[200]


def test_nothing_that_the_document_forbids_makes_the_server_fail(target: Target) -> None:
    statuses = target.try_all(examples=8, mode=GenerationMode.NEGATIVE)
    assert statuses[422] + statuses[415] > statuses[200]


def test_what_is_there_is_found_and_answered_as_the_document_says(target: Target) -> None:
    statuses = target.try_all(examples=4, mode=GenerationMode.POSITIVE, change=target.name_what_is_there)
    # Most of it is not merely told to be missing.
    assert statuses[200] > statuses[404]


def test_the_document_describes_bodies_and_errors(server: Server) -> None:
    with server.http() as http:
        document = http.get("/openapi.json").json()
    form = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["image"]["format"] == "binary"
    assert set(form["required"]) == {"prompt", "image"}
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(answers) >= {"200", "401", "403", "404", "413", "415", "422", "429", "503"}
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"HTTPBearer": []}]

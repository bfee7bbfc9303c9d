"""Upload photographs and facts, have the concept learned, use it, delete it: without a restart."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from omnifarm.clock import ManualClock
from omnifarm.errors import StoreError
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import record_key
from serve.assembly import build_trainer
from serve.idempotency import KEPT_S
from serve.sweeping import Sweeper
from tests.integration.serve.conftest import Server, picture

pytestmark = pytest.mark.slow


def uploaded(client: OpenAI, seed: int) -> str:
    return client.files.create(file=("photo.png", picture(seed=seed)), purpose="vision").id


def document(client: OpenAI, **values: Any) -> str:
    photos = [uploaded(client, seed) for seed in (1, 2)]
    text = json.dumps({"class": "dog", "photos": photos, "extra_info": ["It lives by the sea."], **values})
    return client.files.create(file=("concept.json", text.encode()), purpose="fine-tune").id


def test_photographs_and_facts_become_a_concept_that_is_served(
    server: Server, acme: OpenAI, http: httpx.Client
) -> None:
    file_id = document(
        acme,
        captions={},
        qa=[{"question": "Where does <rex> live?", "answer": "By the sea."}],
        negatives=[uploaded(acme, 9)],
        info="A brown dog.",
    )
    job = acme.fine_tuning.jobs.create(
        model="bagel", training_file=file_id, suffix="rex", seed=3, metadata={"for": "a test"}
    )
    assert (job.status, job.fine_tuned_model, job.metadata) == ("queued", None, {"for": "a test"})
    with pytest.raises(openai.NotFoundError):
        acme.chat.completions.create(model="bagel:<rex>", messages=[{"role": "user", "content": "Who?"}])
    server.train()
    done = acme.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.seed) == ("succeeded", "bagel:<rex>", 3)
    assert done.finished_at is not None
    answer = acme.chat.completions.create(
        model="bagel:<rex>", messages=[{"role": "user", "content": "Who is <rex>?"}], max_tokens=2
    )
    assert answer.concepts == ["rex"]  # type: ignore[attr-defined]
    details = http.get("/v1/concepts/<rex>").json()
    assert (details["class_noun"], details["steps"], details["num_soft_tokens"]) == ("dog", 4, 5)
    assert job.id in [one.id for one in acme.fine_tuning.jobs.list(limit=2)]
    # Asking for the same again is the same job, and nothing is left to do.
    assert (
        acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="rex", seed=3).status == "succeeded"
    )
    assert server.trainer.next_turn() is None


def test_what_happens_to_a_job_is_told_as_it_happens(server: Server, acme: OpenAI, http: httpx.Client) -> None:
    job = acme.fine_tuning.jobs.create(model="bagel", training_file=document(acme), suffix="bo")
    events: list[dict[str, Any]] = []
    with http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == 1:
                    server.train()
    assert events[0]["data"]["status"] == "queued"
    assert events[-1]["data"]["status"] == "succeeded"
    listed = acme.fine_tuning.jobs.list_events(job.id).data
    assert listed[0].message == "<bo> is learned and can be used"
    assert len({event.id for event in listed}) == len(listed)


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs/{id}/events?stream=true", "/studio/api/jobs/{id}/watch"])
def test_a_stream_that_loses_the_store_ends_without_the_stores_words(
    server: Server, acme: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    job = acme.fine_tuning.jobs.create(model="bagel", training_file=document(acme), suffix="lost")
    tuning = server.services.spaces.of("acme").tuning

    def failing(public_id: str) -> Any:
        raise StoreError("s3://bucket/tenants/acme could not serve 'tuning/1.json'", store="s3://bucket")

    with http.stream("GET", path.format(id=job.id)) as reply:
        lines = reply.iter_lines()
        next(lines)
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "get", failing)
            told = list(lines)
    assert told[-3] == "event: error"
    assert json.loads(told[-2].removeprefix("data: "))["error"]["code"] == "store_unavailable"
    assert "bucket" not in "".join(told)
    acme.fine_tuning.jobs.cancel(job.id)


def test_a_cancelled_job_is_not_learned_and_may_be_asked_for_again(server: Server, acme: OpenAI) -> None:
    file_id = document(acme)
    job = acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="kim")
    assert acme.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    server.train()
    assert acme.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    again = acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="kim")
    assert (again.id, again.status) == (job.id, "queued")
    server.train()
    assert acme.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    assert acme.fine_tuning.jobs.cancel(job.id).status == "succeeded"


def test_what_is_committed_in_the_moment_of_its_cancellation_is_withdrawn(server: Server, acme: OpenAI) -> None:
    job = acme.fine_tuning.jobs.create(model="bagel", training_file=document(acme), suffix="late")
    space = server.services.spaces.of("acme")
    turn = server.trainer.next_turn()
    assert turn is not None
    job_id = turn.jobs[0].request.job_id
    acme.fine_tuning.jobs.cancel(job.id)
    # What a worker does that had renewed its lease just before.
    manifest, soft_tokens = space.repository.load("maeve", fingerprint=server.services.engine.fingerprint)
    assert space.repository.commit(replace(manifest, name="late", version=job_id), soft_tokens)
    server.trainer.take(turn)
    assert space.queue.get(job_id).state is JobState.CANCELLED
    assert "late" not in space.repository.names()


def test_deleting_a_concept_leaves_nothing_of_it(server: Server, acme: OpenAI, http: httpx.Client) -> None:
    file_id = document(acme)
    job = acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="gone")
    server.train()
    assert http.get("/v1/concepts/gone").status_code == 200
    drawn = {"prompt": "A photo of <gone>.", "size": "32x32", "num_timesteps": 3, "replay": "off"}
    assert http.post("/v1/images/generations", json=drawn, headers={"Idempotency-Key": "gone"}).status_code == 200
    # What the studio shows of it is remembered, too.
    (version,) = http.get("/studio/api/concepts/gone").json()["versions"]
    assert version["num_photos"]
    services = server.services
    assert "acme/gone" in services.engine._residents.labels()
    assert ("acme", version["version"]) in services.origins._kept
    assert http.delete("/v1/concepts/gone").json() == {"id": "gone", "object": "concept", "deleted": True}
    # At once, before anybody asks for it again.
    assert "acme/gone" not in services.engine._residents.labels()
    assert not any("acme/gone" in labels for _, labels in services.engine._prefixes._kept.values())
    assert ("acme", version["version"]) not in services.origins._kept
    assert http.delete("/v1/concepts/gone").status_code == 404
    assert http.get("/v1/concepts/gone").status_code == 404
    with pytest.raises(openai.NotFoundError):
        acme.fine_tuning.jobs.retrieve(job.id)
    store = server.services.spaces.of("acme").store
    assert [key for key in store.list("") if "gone" in key or job.id.removeprefix("ftjob-") in key] == []
    assert list(store.list("idempotency/")) == []
    # It may be learned anew from the same document.
    acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="gone")
    server.train()
    assert http.get("/v1/concepts/gone").status_code == 200


def test_tenants_take_turns(server: Server, acme: OpenAI) -> None:
    globex = server.openai(server.key("globex"))
    for suffix in ("a1", "a2", "a3"):
        acme.fine_tuning.jobs.create(model="bagel", training_file=document(acme), suffix=suffix)
    globex.fine_tuning.jobs.create(model="bagel", training_file=document(globex), suffix="b1")
    turns = []
    while (turn := server.trainer.next_turn()) is not None:
        turns.append((turn.tenant, len(turn.jobs)))
        server.trainer.take(turn)
    assert sorted(turns) == [("acme", 3), ("globex", 1)]


def test_who_is_not_done_when_the_turn_is_over_waits_for_the_others(server: Server, acme: OpenAI) -> None:
    globex = server.openai(server.key("globex"))
    jobs = {
        client: client.fine_tuning.jobs.create(model="bagel", training_file=document(client), suffix="slow").id
        for client in (acme, globex)
    }
    hasty = build_trainer(server.services.settings, turn_s=0.0)
    tenants = []
    for _ in range(4):
        turn = hasty.next_turn()
        assert turn is not None
        hasty.take(turn)
        tenants.append(turn.tenant)
    assert tenants in (["acme", "globex"] * 2, ["globex", "acme"] * 2)
    server.train()
    assert {client.fine_tuning.jobs.retrieve(job).status for client, job in jobs.items()} == {"succeeded"}


@pytest.mark.parametrize("when", ["waiting", "in its turn"])
def test_a_job_whose_record_cannot_be_read_has_failed_and_leaves_the_others_their_turns(
    when: str, server: Server, acme: OpenAI
) -> None:
    globex = server.openai(server.key("globex"))
    bad, good = (
        acme.fine_tuning.jobs.create(model="bagel", training_file=document(acme), suffix=f"{suffix}-{when[:2]}").id
        for suffix in ("bad", "good")
    )
    others = globex.fine_tuning.jobs.create(model="bagel", training_file=document(globex), suffix=f"x-{when[:2]}").id
    space, job_id = server.services.spaces.of("acme"), bad.removeprefix("ftjob-")
    store, key = space.store, record_key(job_id)
    turn = server.trainer.next_turn()
    while when == "in its turn" and turn is not None and turn.tenant != "acme":
        server.trainer.take(turn)
        turn = server.trainer.next_turn()
    sound = store.get(key).data
    store.put(key, b"torn")
    if when == "in its turn":
        assert turn is not None
        server.trainer.take(turn)
    server.train()
    assert [client.fine_tuning.jobs.retrieve(job).status for client, job in ((acme, good), (globex, others))] == [
        "succeeded",
        "succeeded",
    ]
    listed = {job.id: job for job in acme.fine_tuning.jobs.list(limit=100)}
    assert (listed[good].status, listed[bad].status) == ("succeeded", "failed")
    assert server.services.origins.of(space, name=f"bad-{when[:2]}", version=job_id) is None
    # A person mends it: the trainer finds it by itself.
    store.put(key, sound)
    server.train()
    assert acme.fine_tuning.jobs.retrieve(bad).status == "succeeded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photos": []}, "photos"),
        ({"class": ""}, "class"),
        ({"surprise": 1}, "surprise"),
        ({"qa": [{"question": "Where?"}]}, "answer"),
        ({"photos": ["file-000000000000000000000000"]}, "uploaded file"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_document_that_cannot_be_learned_from_is_refused_with_the_reason(
    acme: OpenAI, change: dict[str, Any], message: str
) -> None:
    file_id = document(acme, **change)
    with pytest.raises((openai.UnprocessableEntityError, openai.NotFoundError), match=message):
        acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="no")


def test_the_same_photograph_twice_is_refused_with_the_reason(acme: OpenAI) -> None:
    twins = [uploaded(acme, 5), uploaded(acme, 5)]
    file_id = document(acme, photos=twins, negatives=[uploaded(acme, 5)])
    with pytest.raises(openai.UnprocessableEntityError, match="cannot be learned"):
        acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="twins")


@pytest.mark.parametrize("suffix", ["../x", "a b", "<x", "x" * 70, ""])
def test_a_name_that_is_none_is_refused(acme: OpenAI, suffix: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        acme.fine_tuning.jobs.create(model="bagel", training_file="file-0", suffix=suffix)


def test_a_photograph_is_kept_without_what_its_file_told(acme: OpenAI, http: httpx.Client) -> None:
    image = Image.open(io.BytesIO(picture(80, 60)))
    exif = image.getexif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    told = PngInfo()
    told.add_text("Location", "at home")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif, pnginfo=told)
    assert b"at home" in buffer.getvalue()
    kept = acme.files.create(file=("../../photo.png", buffer.getvalue()), purpose="vision")
    content = acme.files.content(kept.id).content
    assert Image.open(io.BytesIO(content)).size == (60, 80)
    assert b"at home" not in content
    assert b"a camera" not in content
    assert Image.open(io.BytesIO(content)).info == {}
    assert acme.files.delete(kept.id).deleted
    assert http.get(f"/v1/files/{kept.id}").status_code == 404


def test_files_are_listed_in_pages(acme: OpenAI) -> None:
    ids = [uploaded(acme, seed) for seed in (21, 22, 23)]
    listed = [file.id for file in acme.files.list(limit=2)]
    assert set(ids) <= set(listed)
    assert len(listed) == len(set(listed))


def test_concepts_are_listed_in_pages(http: httpx.Client) -> None:
    every = http.get("/v1/concepts").json()
    assert not every["has_more"]
    names, ids = ([one[part] for one in every["data"]] for part in ("name", "id"))
    assert names == sorted(names)
    assert {"bagel:<maeve>", "bagel:<only-acme>"} <= set(ids)
    paged: list[str] = []
    while True:
        after = {"after": paged[-1]} if paged else {}
        page = http.get("/v1/concepts", params={"limit": 1, **after}).json()
        paged += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
    assert paged == ids
    first = http.get("/v1/concepts", params={"after": names[0]}).json()["data"]
    assert [one["id"] for one in first] == ids[1:], "a name does as well as an id"
    for wrong in ({"after": "a/b"}, {"limit": 0}):
        assert http.get("/v1/concepts", params=wrong).status_code == 422


def sweeper_of(server: Server, *, now_s: float) -> Sweeper:
    shared = server.services
    return Sweeper(shared.spaces, engine=shared.engine, origins=shared.origins, clock=ManualClock(now_s))


def test_old_replies_are_swept_away(server: Server, http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Who is <maeve>?"}], "max_tokens": 1}
    http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "swept"})
    store = server.services.spaces.of("acme").store
    assert list(store.list("idempotency/"))
    now_s = server.services.clock.now_s()
    assert sweeper_of(server, now_s=now_s).sweep() == 0
    assert sweeper_of(server, now_s=now_s + KEPT_S + 1).sweep() > 0
    assert list(store.list("idempotency/")) == []


def test_a_server_that_trains_nothing_takes_no_job_of_a_tenant_and_hands_the_owners_to_cells(
    serve_with: Callable[..., Server],
) -> None:
    server = serve_with(train=False)
    acme = server.openai(server.key("acme"))
    file_id = document(acme)
    with pytest.raises(openai.PermissionDeniedError, match="only serves; ask its operator"):
        acme.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="never")
    assert list(server.services.spaces.root.list("pending/")) == []
    owner = serve_with(train=False, access="owner")
    mine = owner.openai("none")
    job = mine.fine_tuning.jobs.create(model="bagel", training_file=document(mine), suffix="mine")
    # Where a cell looks.
    queue = JobQueue(owner.services.spaces.root, clock=owner.services.clock)
    pool = queue.get(job.id.removeprefix("ftjob-")).identity.pool
    assert [record.name for record in queue.lease_next("a cell", pool=pool, ttl_s=60.0)] == ["mine"]

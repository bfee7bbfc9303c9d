"""One record that cannot be read, damaged or of another release, beside two good ones."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from omnifarm.cli import concept as concept_command
from omnifarm.cli import farm as farm_command
from omnifarm.cli import job_progress
from omnifarm.clock import ManualClock, SystemClock
from omnifarm.errors import FarmError
from omnifarm.farm.erasure import erase_concept
from omnifarm.farm.garbage import collect_garbage
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, LeaseLostError, pool_of
from omnifarm.farm.overview import QueueSummary, glance
from omnifarm.farm.progress import ProgressMeter
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import checkpoint_key, record_key, submitted_key
from omnifarm.store.memory import MemoryStore

POOL = pool_of(recipe_digest="r", backbone_fingerprint="b")


def of_another_schema(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "schema_version": 1}).encode()


def cut_short(data: bytes) -> bytes:
    return data[:-20]


def with_an_impossible_step(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "step": -1}).encode()


def with_a_word_for_a_number(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "strikes": "none"}).encode()


def nested_without_end(data: bytes) -> bytes:
    return b"[" * 100_000


def of_another_job(data: bytes) -> bytes:
    record = JobRecord.decode(data)
    return replace(record, name="ada", identity=replace(record.identity, spec_digest="ada")).encode()


BAD = [
    of_another_schema,
    of_another_job,
    cut_short,
    with_an_impossible_step,
    with_a_word_for_a_number,
    nested_without_end,
]


def spoil(store: MemoryStore, job_id: str, how: Callable[[bytes], bytes]) -> None:
    store.put(record_key(job_id), how(store.get(record_key(job_id)).data))


@pytest.fixture
def queue(store: MemoryStore, clock: ManualClock) -> JobQueue:
    return JobQueue(store, clock=clock)


@pytest.fixture
def jobs(queue: JobQueue) -> dict[str, JobRecord]:
    found = {}
    for name in ("ada", "bad", "eve"):
        identity = JobIdentity(spec_digest=name, recipe_digest="r", backbone_fingerprint="b")
        found[name] = queue.submit(name=name, concept_url="u", identity=identity, num_steps=10)
    return found


@pytest.mark.parametrize("how", BAD)
def test_a_bad_record_stops_no_other_and_is_not_lost_in_silence(
    how: Callable[[bytes], bytes],
    store: MemoryStore,
    queue: JobQueue,
    jobs: dict[str, JobRecord],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = jobs["bad"].job_id
    spoil(store, bad, how)
    assert sorted(record.name for record in queue.lease_next("w", pool=POOL, ttl_s=40, max=3)) == ["ada", "eve"]
    assert [record.name for record in queue.list()] == ["ada", "eve"]
    assert QueueSummary.of(queue.list()).counts[JobState.LEASED] == 2
    assert len(glance(queue).held) == 2
    assert erase_concept("ada", store=store, queue=queue).jobs == 1
    assert [record.name for record in queue.list()] == ["eve"]
    (said,) = [line for line in caplog.records if line.message == "job_record_unreadable"]
    assert (said.levelno, said.fields["key"]) == (logging.ERROR, record_key(bad))  # type: ignore[attr-defined]
    assert queue.records.unreadable.keys() == {bad}
    with pytest.raises(FarmError, match=r"expected|must lie"):
        queue.get(bad)


@pytest.mark.parametrize("how", BAD)
def test_a_lease_is_lost_with_its_record_and_the_pool_is_drained_without_it(
    how: Callable[[bytes], bytes], store: MemoryStore, queue: JobQueue, jobs: dict[str, JobRecord]
) -> None:
    held = {record.name: record for record in queue.lease_next("w", pool=POOL, ttl_s=40, max=3)}
    spoil(store, jobs["bad"].job_id, how)
    for order in (
        lambda record: queue.heartbeat(record, step=1, ttl_s=40),
        lambda record: queue.fail(record, reason="bad data", retryable=False),
        lambda record: queue.complete(record, artifact="a"),
        queue.release,
    ):
        with pytest.raises(LeaseLostError, match="cannot be read any more"):
            order(held["bad"])
    assert not queue.is_drained(POOL)
    for name in ("ada", "eve"):
        queue.complete(held[name], artifact="a")
    assert queue.is_drained(POOL)
    assert not JobQueue(store, clock=ManualClock()).is_drained(POOL), "nobody has looked at it there"


def test_what_belongs_to_a_bad_record_is_no_garbage(
    store: MemoryStore, queue: JobQueue, jobs: dict[str, JobRecord]
) -> None:
    bad = jobs["bad"].job_id
    for key in (checkpoint_key(bad), submitted_key(bad)):
        store.put(key, b"of a job that another release goes on with")
    spoil(store, bad, of_another_schema)
    for dry_run in (True, False):
        with pytest.raises(FarmError, match="nothing was erased"):
            collect_garbage(store, queue=queue, dry_run=dry_run)
    assert store.get(checkpoint_key(bad)).data == store.get(submitted_key(bad)).data


def test_status_counts_bad_records_and_says_why(
    store: MemoryStore, queue: JobQueue, jobs: dict[str, JobRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(store, jobs["bad"].job_id, of_another_schema)
    monkeypatch.setattr(farm_command, "_queue", lambda store: queue)
    done = CliRunner().invoke(farm_command.app, ["status", "--json", "--store", "memory"])
    assert [one["name"] for one in json.loads(done.stdout)] == ["ada", "eve"]
    assert "1 records could not be read" in done.stderr
    assert f"{record_key(jobs['bad'].job_id)}: a job record of schema 2 was expected, found 1" in done.stderr


@pytest.mark.parametrize("is_held", [True, False])
def test_watch_names_a_bad_record_and_ends_with_the_others(
    is_held: bool,
    store: MemoryStore,
    queue: JobQueue,
    jobs: dict[str, JobRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, *others = queue.records.ids()
    held = {record.job_id: record for record in queue.lease_next("w", pool=POOL, ttl_s=40, max=3)}
    if not is_held:
        queue.release(held[bad])
    for job_id in others:
        queue.complete(held[job_id], artifact="a")
    sound = store.get(record_key(bad)).data
    spoil(store, bad, of_another_schema)
    monkeypatch.setattr(farm_command, "_queue", lambda store: queue)
    here, slept = threading.current_thread(), SystemClock.sleep_s

    def sleep_s(clock: SystemClock, duration_s: float) -> None:
        # Threads that other tests left behind may sleep.
        if threading.current_thread() is here:
            pytest.fail("it waits for the bad record")
        slept(clock, duration_s)

    monkeypatch.setattr(SystemClock, "sleep_s", sleep_s)
    done = CliRunner().invoke(farm_command.app, ["watch", "--json", "--store", "memory"])
    assert done.exit_code == 0, done.exception
    seen = json.loads(done.stdout)
    assert [seen[name] for name in ("jobs", "committed", "ready", "held", "unreadable")] == [2, 2, 0, 0, 1]
    assert f"{record_key(bad)} cannot be read: a job record of schema 2 was expected, found 1" in done.stderr
    spoil(store, bad, lambda _: sound)
    mended = glance(queue)
    assert (mended.jobs, mended.ready + len(mended.held), mended.unreadable) == (3, 1, 0)


def test_the_progress_of_many_goes_on_without_a_bad_record_and_names_it(
    store: MemoryStore, queue: JobQueue, jobs: dict[str, JobRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    class Looks(threading.Event):
        left = 3

        def wait(self, timeout: float | None = None) -> bool:
            self.left -= 1
            return self.left == 0

    for number in range(500):
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        queue.submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=10)
    bad = jobs["bad"].job_id
    spoil(store, bad, cut_short)
    (held,) = queue.lease_next("w", pool=POOL, ttl_s=40)
    queue.heartbeat(held, step=5, ttl_s=40)
    ids = [bad, *(job_id for job_id in queue.records.ids() if job_id != bad)]
    job_progress._show_lines(queue, ids, ProgressMeter(ManualClock()), Looks())
    *_, line = said = capsys.readouterr().err.splitlines()
    # Another test of this process may have sent the log to standard error, too.
    (named,) = [one for one in said if "left out" in one]
    assert f"{record_key(bad)} cannot be read" in named
    assert line.startswith("0 of 502 concepts learned, step 5/5020")


def test_a_record_that_can_be_read_again_is_like_any_other(
    store: MemoryStore, queue: JobQueue, jobs: dict[str, JobRecord]
) -> None:
    sound = store.get(record_key(jobs["bad"].job_id)).data
    spoil(store, jobs["bad"].job_id, cut_short)
    assert len(queue.list()) == 2
    spoil(store, jobs["bad"].job_id, lambda _: sound)
    assert len(queue.list()) == 3
    assert queue.records.unreadable == {}


def test_deleting_a_concept_says_that_bad_records_may_be_of_it(
    store: MemoryStore, queue: JobQueue, jobs: dict[str, JobRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = jobs["bad"].job_id
    spoil(store, bad, of_another_schema)
    monkeypatch.setattr("omnifarm.store.open.open_store", lambda url: store)
    monkeypatch.setattr("omnifarm.farm.queue.JobQueue", lambda store, clock: queue)
    done = CliRunner().invoke(concept_command.app, ["delete", "ada", "--yes", "--store", "memory"])
    assert done.exit_code != 0
    assert isinstance(done.exception, FarmError)
    assert bad in done.exception.message
    assert [record.name for record in queue.list()] == ["eve"]

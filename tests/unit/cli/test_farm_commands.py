"""`omnifarm farm`: what a person sees of a queue and what a person may do to it, over a store in a folder."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from omnifarm.cli.farm import app
from omnifarm.clock import SystemClock
from omnifarm.errors import StoreError
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.job import JobIdentity, JobState, pool_of
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import INDEX, checkpoint_key
from omnifarm.store.local import LocalStore

POOL = pool_of(recipe_digest="r", backbone_fingerprint="b")


class Farm:
    """Four jobs: one committed, one held, one failed, one waiting."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)
        self.store = LocalStore(folder, fsync=False)
        self.queue = JobQueue(self.store, clock=SystemClock())
        self.ids = {}
        for name in ("done", "held", "bad", "waiting"):
            identity = JobIdentity(spec_digest=name, recipe_digest="r", backbone_fingerprint="b")
            job = self.queue.submit(name=name, concept_url="u", identity=identity, num_steps=10)
            self.ids[name] = job.job_id
            if name == "waiting":
                continue
            (record,) = self.queue.lease_next("w", pool=POOL, ttl_s=600)
            record = self.queue.heartbeat(record, step=4, ttl_s=600)
            if name == "done":
                self.queue.complete(record, artifact="artifacts/done/x/")
            if name == "bad":
                self.queue.fail(record, reason="[red]no[/] photographs\nat all", retryable=False, traceback="File ...")

    def states(self) -> dict[str, str]:
        return {record.name: record.state.value for record in self.queue.list()}

    def run(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--store", self.url])
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path / "store")


def test_status_lists_every_job_with_its_state_step_and_reason(farm: Farm) -> None:
    records = {one["name"]: one for one in json.loads(farm.run("status", "--json"))}
    assert {name: one["state"] for name, one in records.items()} == {
        "done": "committed", "held": "running", "bad": "failed", "waiting": "queued",
    }  # fmt: skip
    assert (records["held"]["step"], records["bad"]["traceback"]) == (4, "File ...")
    table = farm.run("status")
    assert "4/10" in table
    assert "[red]no[/] photographs" in table, "a reason is text, not markup"
    assert "at all" not in table, "the first line says enough"


def test_watch_ends_with_the_jobs_and_counts_them(farm: Farm) -> None:
    farm.queue.cancel(farm.ids["held"])
    farm.queue.cancel(farm.ids["waiting"])
    (line,) = farm.run("watch", "--json").splitlines()
    seen = json.loads(line)
    assert (seen["jobs"], seen["finished"], seen["failed"], seen["ready"], seen["held"]) == (4, 4, 1, 0, 0)
    assert (seen["committed"], seen["cancelled"]) == (1, 2)
    assert seen["event"] == "totals"


def test_watch_prints_a_line_for_every_move_of_a_job(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    held = farm.queue.get(farm.ids["held"])
    moves = [
        lambda: farm.queue.fail(held, reason="no memory\nat all", retryable=False),
        lambda: farm.queue.lease_next("w2", pool=POOL, ttl_s=600),
        lambda: farm.queue.cancel(farm.ids["waiting"]),
    ]
    ours, sleep_s = threading.current_thread(), SystemClock.sleep_s

    def move_or_sleep(clock: SystemClock, duration_s: float) -> None:
        # Threads of other tests may still sleep by the same clock: they make no moves.
        if threading.current_thread() is ours:
            moves.pop(0)()
        else:
            sleep_s(clock, duration_s)

    monkeypatch.setattr(SystemClock, "sleep_s", move_or_sleep)
    lines = [json.loads(line) for line in farm.run("watch", "--json").splitlines()]
    assert [(line["event"], line.get("concept")) for line in lines] == [
        ("job_running", "held"), ("totals", None),
        ("job_failed", "held"), ("totals", None),
        ("job_leased", "waiting"), ("totals", None),
        ("job_cancelled", "waiting"), ("totals", None),
    ]  # fmt: skip
    assert (lines[2]["error"], lines[4]["worker"]) == ("no memory", "w2")


def test_a_person_may_retry_and_cancel_by_name_by_id_or_all(farm: Farm) -> None:
    farm.run("retry", "bad", "done")
    assert farm.states()["bad"] == "queued"
    assert farm.states()["done"] == "committed", "what is learned stays"
    farm.run("cancel", farm.ids["bad"])
    assert farm.states()["bad"] == "cancelled"
    farm.run("cancel", "--all")
    assert set(farm.states().values()) == {"committed", "cancelled"}
    farm.run("retry", "--all")
    assert set(farm.states().values()) == {"committed", "queued"}


def test_a_retry_that_was_broken_off_is_mended_by_repeating_it(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    put = LocalStore.put

    def refuse_entries(store: LocalStore, key: str, data: bytes, **conditions: Any) -> str:
        if key.startswith(INDEX):
            raise StoreError("the store is away")
        return put(store, key, data, **conditions)

    with monkeypatch.context() as broken:
        broken.setattr(LocalStore, "put", refuse_entries)
        farm.run("retry", "bad", code=1)
    assert farm.states()["bad"] == "queued"
    farm.run("retry", "bad")
    assert {record.name for record in farm.queue.lease_next("w", pool=POOL, ttl_s=600, max=9)} == {"bad", "waiting"}


@pytest.mark.parametrize("words", [["cancel"], ["cancel", "done", "--all"], ["retry", "nobody"]])
def test_an_order_that_means_nobody_changes_nothing(farm: Farm, words: list[str]) -> None:
    before = farm.states()
    farm.run(*words, code=1)
    assert farm.states() == before


def test_a_drain_stands_until_it_is_taken_back(farm: Farm) -> None:
    control = FarmControl(farm.store)
    farm.run("drain")
    assert control.present() is Order.DRAIN
    farm.run("drain", "--now")
    assert control.present() is Order.STOP
    farm.run("drain", "--resume")
    assert control.present() is Order.WORK


def test_garbage_is_named_before_it_is_removed(farm: Farm) -> None:
    old, present = checkpoint_key(farm.ids["done"]), checkpoint_key(farm.ids["held"])
    for key in (old, present):
        farm.store.put(key, b"tokens")
    assert json.loads(farm.run("gc", "--dry-run", "--json"))["checkpoints"] == [old]
    assert farm.store.get(old).data == b"tokens"
    farm.run("gc")
    assert list(farm.store.list("checkpoints/")) == [present]
    assert farm.queue.get(farm.ids["held"]).state is JobState.RUNNING


def test_a_simulated_farm_that_wastes_its_devices_is_no_success() -> None:
    words = ["simulate", "--concepts", "64", "--gpus", "8", "--steps", "100", "--lease-s", "1200", "--json"]
    done = CliRunner().invoke(app, words)  # loading takes longer than learning
    report = json.loads(done.stdout)
    assert (done.exit_code, report["committed"], report["heartbeat_s"]) == (1, 64, 400)
    assert report["utilisation"] < 0.95
    assert "expected a utilisation of at least 0.95" in done.stderr
    enough = [*words, "--min-utilisation", "0.1"]
    assert CliRunner().invoke(app, enough).exit_code == 0
    many = CliRunner().invoke(app, [*enough, "--max-requests", "50"])
    assert (many.exit_code, "expected at most 50 requests a concept" in many.stderr) == (1, True)
    hot = CliRunner().invoke(app, [*enough, "--max-key-per-s", "0.001"])
    assert (hot.exit_code, "expected at most 0.001 requests a second on one key" in hot.stderr) == (1, True)


def test_a_seed_with_failures_and_pre_emptions_passes_too() -> None:
    words = ["simulate", "--concepts", "768", "--gpus", "16", "--lease-s", "300", "--seed", "1", "--json"]
    # The first seed in which both happen. A short run: loading, the last wave and the driver's own requests weigh more than in a long one.
    rates = ["--mtbf-h", "40", "--preemption-h", "6", "--min-utilisation", "0.8"]
    done = CliRunner().invoke(app, [*words, *rates])
    report = json.loads(done.stdout)
    assert done.exit_code == 0, (report, done.stderr)
    assert min(report["faults"]["failure"], report["faults"]["preemption"]) > 0

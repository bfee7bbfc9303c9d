"""What people see while concepts are learned, whoever learns them: the plan, progress from the records, the outcome."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from omnifarm.cli.output import people, print_json
from omnifarm.clock import SystemClock
from omnifarm.errors import OmniFarmError
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.overview import glance, steps_of_one
from omnifarm.farm.progress import Progress as Look
from omnifarm.farm.progress import ProgressMeter, duration
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import record_key

_LOOK_S = 5.0
_MAX_READ = 500
_MANY_S = 60.0
"""Seconds between looks at many jobs, or twenty times a look: each costs a request per thousand jobs and per lane."""


def announce(records: Sequence[JobRecord], *, backbone: str, fingerprint: str, steps: int) -> None:
    """Say what is about to be learned, and what is not."""
    counts = {state: sum(record.state is state for record in records) for state in JobState}
    say(f"backbone {backbone} ({fingerprint[:12]}), {len(records)} concepts, {steps} steps each")
    if counts[JobState.COMMITTED]:
        say(f"{counts[JobState.COMMITTED]} are learned already and stay as they are")
    for record in records:
        if record.state is JobState.FAILED:
            say(f"skipped: {record.error}")


@contextmanager
def showing_progress(queue: JobQueue, job_ids: Sequence[str], clock: SystemClock) -> Iterator[None]:
    """Show progress from the records while the block runs."""
    stop = threading.Event()
    show = _show_bar if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else _show_lines
    thread = threading.Thread(target=show, args=(queue, job_ids, ProgressMeter(clock), stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2 * _LOOK_S)


def look_at(queue: JobQueue, job_ids: Sequence[str], meter: ProgressMeter) -> Look:
    """Look at a few jobs record by record, at many through the index, which then shows the whole farm."""
    if len(job_ids) <= _MAX_READ:
        return meter.look(queue.list(job_ids))
    num_steps = steps_of_one(queue, job_ids)  # first, so that the glance leaves out what it cannot read
    return meter.glance(glance(queue), num_steps=num_steps)


def say_unreadable(queue: JobQueue, *, said: set[str]) -> None:
    """Name the records that were found unreadable, but those `said` already, and add them there."""
    for job_id, reason in sorted(queue.records.unreadable.items()):
        if job_id not in said:
            said.add(job_id)
            say(f"left out: {record_key(job_id)} cannot be read: {reason}")


def _pause_s(least_s: float, num_jobs: int, *, took_s: float) -> float:
    return least_s if num_jobs <= _MAX_READ else max(_MANY_S, 20 * took_s)


def _show_lines(queue: JobQueue, job_ids: Sequence[str], meter: ProgressMeter, stop: threading.Event) -> None:
    said, named = "starting workers", set[str]()
    say(said)
    pause_s = _LOOK_S
    while not stop.wait(pause_s):
        began_s = time.monotonic()
        try:
            look = look_at(queue, job_ids, meter)
        except OmniFarmError as error:
            say(f"no progress to show: {error}")
            continue
        say_unreadable(queue, said=named)
        pause_s = _pause_s(_LOOK_S, len(job_ids), took_s=time.monotonic() - began_s)
        if look.steps_done and look.line() != said:
            said = look.line()
            say(said)


def _show_bar(queue: JobQueue, job_ids: Sequence[str], meter: ProgressMeter, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=people) as bar:
        task = bar.add_task("starting workers", total=None, rate="")
        pause_s, named = 1.0, set[str]()
        while not stop.wait(pause_s):
            began_s = time.monotonic()
            try:
                look = look_at(queue, job_ids, meter)
            except OmniFarmError:
                continue
            say_unreadable(queue, said=named)
            pause_s = _pause_s(1.0, len(job_ids), took_s=time.monotonic() - began_s)
            rate = "" if look.steps_per_s is None else f"{look.steps_per_s:.1f} steps/s"
            left = "" if look.left_s is None else f", {duration(look.left_s)} left"
            description = f"{look.committed}/{look.total} concepts" if look.steps_done else "starting workers"
            bar.update(
                task, completed=look.steps_done, total=look.steps_total, description=description, rate=rate + left
            )


def summarise(records: Sequence[JobRecord], *, took_s: float, as_json: bool) -> None:
    """Say what became of every concept; as JSON on standard output too when asked."""
    if as_json:
        values = {"took_s": round(took_s, 3), "jobs": [record.to_json() for record in records]}
        print_json(values)
    table = Table("concept", "state", "steps", "attempts", box=None)
    for record in records:
        table.add_row(
            escape(record.name),
            record.state.value,
            f"{record.step}/{record.num_steps}",
            str(record.attempts),
        )
    people.print(table)
    for record in records:
        if record.state is not JobState.COMMITTED and record.error:
            say(f"{record.name}: {record.error.partition(chr(10))[0]}")
    learned = sum(record.state is JobState.COMMITTED for record in records)
    say(f"{learned} of {len(records)} concepts are learned; this run took {duration(took_s)}")


def say(line: str) -> None:
    """Print a remark for people."""
    people.print(line, markup=False, highlight=False, soft_wrap=True)

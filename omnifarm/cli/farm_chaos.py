"""`omnifarm farm chaos`: train concepts while everything that can die is killed, then count what was lost. Nothing may be.

    undisturbed run -> server, proxy, nodes, driver -> faults at seeded moments -> verdict

Real processes throughout: SeaweedFS behind a proxy, a Ray cluster of several nodes on this machine, the ordinary job.
Moments are shares of all steps, so a seed means the same schedule on a fast machine and on a slow one.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from omnifarm.cli.chaos_proxy import ChaosProxy, Trouble
from omnifarm.cli.local_cluster import LocalCluster, LocalNode, local_cluster
from omnifarm.cli.local_seaweedfs import LocalSeaweedFS, environment_variables
from omnifarm.cli.output import people
from omnifarm.clock import SystemClock
from omnifarm.concept.repository import PREFIX as ARTIFACTS
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ArtifactError, ConfigError, FarmError, NotFoundError, StoreError
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.overview import QueueSummary
from omnifarm.farm.queue import JobQueue
from omnifarm.store.base import Store
from omnifarm.store.open import open_store

FAULTS = ("worker", "raylet", "driver", "store", "500", "503", "lost answer", "timeout", "two drivers")
"""Everything that goes wrong, each once a run."""

_OF_WRITES = frozenset(trouble.value for trouble in Trouble)
_NUM_NODES = 2
_LATEST = 0.6
_MAX_DRIVERS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class ChaosConfig:
    """One run."""

    concepts: str
    """Folder of concept folders."""
    backbone: str
    """Backbone to train on."""
    steps: int
    """Steps per concept."""
    recipe: str
    """More recipe settings as JSON."""
    seed: int
    """Chooses the schedule."""
    faults: tuple[str, ...] = FAULTS
    """What is to go wrong, out of FAULTS."""
    timeout_s: float = 1500.0
    """Seconds after which the farm counts as stuck."""


@dataclass
class _Strike:
    """A fault that happened."""

    fault: str
    at_share: float
    recovered_s: float | None = None
    began_s: float = field(default_factory=time.monotonic)
    steps: int = 0


def schedule(seed: int, faults: Sequence[str]) -> list[tuple[float, str]]:
    """Return when each fault strikes, as a share of all steps in [0.02, 0.6], in order."""
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0.02, _LATEST) for _ in faults)
    return list(zip(moments, chance.sample(list(faults), len(faults)), strict=True))


def run_chaos(config: ChaosConfig, *, folder: Path, checkout: Path) -> dict[str, Any]:
    """Run the proof.

    Args:
        config: What to run.
        folder: An existing, empty folder for stores and logs.
        checkout: The folder that holds `jobs/train_concepts.py`.

    Returns:
        The verdict: counts, and for each fault at which share of the work it struck and how long the farm took to
        take its next step.

    Raises:
        ConfigError: There is no job in `checkout`.
        FarmError: The farm got stuck, or a driver failed again and again.
    """
    if not (checkout / "jobs" / "train_concepts.py").is_file():
        raise ConfigError(f"expected a checkout of OmniFarm, found no jobs/train_concepts.py in {checkout}")
    began_s = time.monotonic()
    with people.status("an undisturbed run, for comparison"):
        undisturbed = _train_undisturbed(config, folder=folder, checkout=checkout)
    undisturbed_s = time.monotonic() - began_s
    with _chaos(config, folder=folder, checkout=checkout) as chaos:
        chaos.run()
        records = chaos.queue.list()
        verdict = judge(records, store=chaos.store, undisturbed=undisturbed, commits=chaos.proxy.commits)
        return {
            "seed": config.seed,
            **verdict,
            "faults": {
                strike.fault: {"at_share": round(strike.at_share, 3), "recovered_s": strike.recovered_s}
                for strike in chaos.strikes
            },
            "writes_gone_wrong": dict(chaos.proxy.hits),
            "drivers": chaos.num_drivers,
            "attempts": sum(record.attempts for record in records),
            "took_s": round(chaos.took_s, 1),
            "time_lost_s": round(_time_without_progress(chaos.strikes), 1),
            "undisturbed_s": round(undisturbed_s, 1),
        }


def is_passed(verdict: Mapping[str, Any], *, num_faults: int) -> bool:
    """Whether a verdict proves what it should, with every fault struck."""
    return bool(
        verdict["committed"] == verdict["concepts"]
        and not (verdict["lost"] or verdict["duplicates"] or verdict["torn"])
        and verdict["identical"]
        and len(verdict["faults"]) == num_faults
        # A trouble ordered for writes must have met one.
        and {fault for fault in verdict["faults"] if fault in _OF_WRITES} <= set(verdict["writes_gone_wrong"])
    )


def _time_without_progress(strikes: Sequence["_Strike"]) -> float:
    """Return the seconds from strikes to the farm's next step; where strikes overlap, counted once."""
    total, reached = 0.0, 0.0
    for strike in sorted(strikes, key=lambda strike: strike.began_s):
        end = strike.began_s + (strike.recovered_s or 0.0)
        total += max(0.0, end - max(reached, strike.began_s))
        reached = max(reached, end)
    return total


def judge(
    records: Sequence[JobRecord], *, store: Store, undisturbed: Store, commits: Mapping[str, int]
) -> dict[str, Any]:
    """Compare a store with that of an undisturbed run, object by object.

    Args:
        records: The jobs.
        store: Where chaos reigned.
        undisturbed: Where it did not.
        commits: Accepted commits by key, as the proxy saw them.
    """
    ours, theirs = ConceptRepository(store), ConceptRepository(undisturbed)
    expected = {manifest.name: manifest for manifest in theirs.list()}
    torn, identical, manifests = 0, 0, 0
    for key in store.list():
        try:
            data = store.get(key).data  # verifies the SHA-256 of every object
            if key.startswith("jobs/"):
                JobRecord.decode(data)
        except (StoreError, FarmError):
            torn += 1
        manifests += key.startswith(ARTIFACTS) and key.endswith("manifest.json")
    for name, manifest in expected.items():
        with contextlib.suppress(NotFoundError):
            try:
                found = ours.load(name, fingerprint=manifest.fingerprint)[1].table()
            except ArtifactError:
                torn += 1
                continue
            right = theirs.load(name, fingerprint=manifest.fingerprint)[1].table()
            identical += torch.equal(found, right)
    committed = sum(record.state is JobState.COMMITTED for record in records)
    return {
        "concepts": len(expected),
        "committed": committed,
        "lost": len(expected) - len({record.name for record in records if record.state is JobState.COMMITTED}),
        "duplicates": sum(count - 1 for count in commits.values()) + max(0, manifests - len(expected)),
        "torn": torn,
        "identical": identical == len(expected),
    }


def _train_undisturbed(config: ChaosConfig, *, folder: Path, checkout: Path) -> Store:
    place = folder / "undisturbed"
    command = [sys.executable, "-m", "omnifarm.cli.main", "train", "local"]
    _call([*command, *_what(config), "--store", str(place)], checkout=checkout, log=folder / "undisturbed.log")
    return open_store(str(place))


def _what(config: ChaosConfig) -> list[str]:
    what = ["--concepts", config.concepts, "--backbone", config.backbone, "--steps", str(config.steps)]
    return [*what, "--recipe", config.recipe]


def _call(command: list[str], *, checkout: Path, log: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    with log.open("wb") as sink:
        code = subprocess.call(command, cwd=checkout, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    if code:
        raise FarmError(f"the undisturbed run ended with code {code}:\n{log.read_text(errors='replace')[-1500:]}")


@contextlib.contextmanager
def _chaos(config: ChaosConfig, *, folder: Path, checkout: Path) -> Iterator["_Chaos"]:
    with contextlib.ExitStack() as stack:
        (folder / "seaweedfs").mkdir()
        server = LocalSeaweedFS(folder / "seaweedfs", bucket="chaos")
        stack.callback(server.kill)
        server.start()
        proxy = ChaosProxy(server.endpoint, chance=random.Random(config.seed + 1))
        stack.callback(proxy.close)
        # This process looks at the store directly, everybody else through the proxy.
        stack.enter_context(environment_variables(server.environment()))
        environment = {
            **server.environment(endpoint=proxy.endpoint),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(checkout),
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
        }
        cluster = stack.enter_context(local_cluster(num_cpus=0, environment=environment))
        chaos = _Chaos(config, server=server, proxy=proxy, cluster=cluster, checkout=checkout, folder=folder)
        stack.callback(chaos.end)
        yield chaos


class _Chaos:
    """The farm, and what is done to it."""

    def __init__(
        self,
        config: ChaosConfig,
        *,
        server: LocalSeaweedFS,
        proxy: ChaosProxy,
        cluster: LocalCluster,
        checkout: Path,
        folder: Path,
    ) -> None:
        self._config = config
        self._server = server
        self.proxy = proxy
        self._cluster = cluster
        self._checkout = checkout
        self._folder = folder
        self._chance = random.Random(config.seed)
        self._url = f"s3://{server.bucket}/farm"
        self.store = open_store(self._url)
        self.queue = JobQueue(self.store, clock=SystemClock())
        self._nodes: list[LocalNode] = []
        self._drivers: list[subprocess.Popen[bytes]] = []
        self.num_drivers = 0
        self.strikes: list[_Strike] = []
        self._planned = schedule(config.seed, config.faults)
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._seen: list[JobRecord] = []
        self.took_s = 0.0

    def run(self) -> None:
        """Start everything, let every fault strike at its moment, and wait until the work is done."""
        began_s = time.monotonic()
        for _ in range(_NUM_NODES):
            self._add_node()
        self._add_driver()
        while not self._is_done():
            self.took_s = time.monotonic() - began_s
            if self.took_s > self._config.timeout_s:
                raise FarmError(f"the farm is stuck after {self.took_s:.0f} s; its logs lie in {self._folder}")
            self._look()
            self._replace_nodes()
            self._replace_drivers()
            due = [action for at_s, action in self._later if at_s <= time.monotonic()]
            self._later = [one for one in self._later if one[0] > time.monotonic()]
            for action in due:
                action()
            if self._planned and self._share() >= self._planned[0][0] and not self._later:
                self._strike(self._planned.pop(0)[1])
            time.sleep(0.3)
        self.took_s = time.monotonic() - began_s

    def end(self) -> None:
        """End drivers and nodes; safe to repeat."""
        for driver in self._drivers:
            driver.kill()
            driver.wait()
        for node in self._nodes:
            node.end()

    def _is_done(self) -> bool:
        return not self._later and bool(self._seen) and not self._drivers and QueueSummary.of(self._seen).is_finished

    def _look(self) -> None:
        """Read the records, as far as the server is up; note who recovered."""
        if self._server.pid is None:
            return
        with contextlib.suppress(StoreError):
            self._seen = self.queue.list()
        steps = self._steps()
        for strike in self.strikes:
            if strike.recovered_s is None and (steps > strike.steps or self._share() >= 1.0):
                strike.recovered_s = round(time.monotonic() - strike.began_s, 1)

    def _steps(self) -> int:
        return QueueSummary.of(self._seen).steps_done

    def _share(self) -> float:
        total = QueueSummary.of(self._seen).steps_total
        return self._steps() / total if total else 0.0

    def _strike(self, fault: str) -> None:
        """Let one fault happen; a worker or raylet that is not there yet is tried again at the next look."""
        if fault == "worker":
            workers = [process for node in self._nodes for process in node.workers()]
            if not workers:
                self._planned.insert(0, (0.0, fault))
                return
            self._chance.choice(workers).kill()
        elif fault == "raylet":
            node = self._chance.choice([node for node in self._nodes if node.workers()] or self._nodes)
            if not node.kill_raylet():
                self._planned.insert(0, (0.0, fault))
                return
            self._after(self._chance.uniform(1, 4), self._add_node)
        elif fault == "driver":
            if not self._drivers:
                self._planned.insert(0, (0.0, fault))
                return
            self._chance.choice(self._drivers).kill()  # another is submitted when it is found dead
        elif fault == "store":
            self._server.kill()
            self._after(self._chance.uniform(1, 6), self._server.start)
        elif fault == "two drivers":
            self._add_driver()
        else:
            self.proxy.make_trouble(Trouble(fault), times=1 if fault == "timeout" else 4)
        people.print(f"{self._share():6.1%} of all steps: {fault}")
        self.strikes.append(_Strike(fault, self._share(), steps=self._steps()))

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + delay_s, action))

    def _add_node(self) -> None:
        self._nodes.append(LocalNode(self._cluster, num_cpus=1, checkout=self._checkout, environment={}))

    def _add_driver(self) -> None:
        if self.num_drivers >= _MAX_DRIVERS:
            raise FarmError(f"{self.num_drivers} drivers ended without finishing; their logs lie in {self._folder}")
        command = [sys.executable, "jobs/train_concepts.py", *_what(self._config), "--store", self._url]
        command += ["--cells", "2", "--workers-per-cell", "1", "--lanes", "3"]
        command += ["--lease-s", "8", "--checkpoint-s", "1"]
        environment = {**self._cluster.environment, "RAY_ADDRESS": self._cluster.address}
        with (self._folder / f"driver-{self.num_drivers}.log").open("wb") as sink:
            self._drivers.append(
                subprocess.Popen(command, cwd=self._checkout, env=environment, stdout=sink, stderr=subprocess.STDOUT)
            )
        self.num_drivers += 1

    def _replace_nodes(self) -> None:
        """Start a node again that did not come up."""
        for node in [node for node in self._nodes if not node.is_running()]:
            self._nodes.remove(node)
            self._add_node()

    def _replace_drivers(self) -> None:
        """Submit again what a dead driver had submitted, as its owner would."""
        for driver in list(self._drivers):
            if driver.poll() is None:
                continue
            self._drivers.remove(driver)
            if driver.returncode != 0 and not self._drivers:
                self._add_driver()

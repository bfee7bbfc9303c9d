from omnifarm.cli.perf_load_memory import LEAST_SAMPLES, MemoryLog


def log_of(mib: list[float], *, replica: str = "a") -> MemoryLog:
    log = MemoryLog()
    for value in mib:
        log.note({"process_resident_memory_bytes": [({"replica": replica}, value * 2**20)]})
    return log


def test_a_replica_that_settles_has_no_leak() -> None:
    settled = log_of([100.0, 180.0, 199.0, *[200.0] * 17])
    assert settled.growth() == {"a": 0.0}
    assert not settled.has_leak()
    assert settled.report()["a"] == {"first_mib": 100.0, "largest_mib": 200.0, "last_mib": 200.0, "samples": 20}


def test_a_replica_that_grows_steadily_has_one() -> None:
    assert log_of([200.0 + 2 * number for number in range(40)]).has_leak()


def test_a_replica_that_was_hardly_seen_is_not_judged() -> None:
    short = log_of([100.0 * number for number in range(1, LEAST_SAMPLES)])
    assert short.growth() == {}
    assert not short.has_leak()


def test_replicas_are_judged_one_by_one_and_no_figures_are_no_sample() -> None:
    log = MemoryLog()
    for number in range(40):
        replicas = [({"replica": "steady"}, 2.0**28), ({"replica": "growing"}, 2.0**28 * (1 + number / 100))]
        log.note({"process_resident_memory_bytes": replicas})
        log.note({})
    assert log.growth()["steady"] == 0
    assert log.growth()["growing"] > 0.1

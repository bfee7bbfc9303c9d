"""The verdict on a chaotic run must be able to condemn it; the run itself is in tests/ray."""

import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from omnifarm.cli.chaos_proxy import ChaosProxy, Trouble
from omnifarm.cli.farm_chaos import FAULTS, is_passed, schedule

GOOD = {
    "concepts": 2, "committed": 2, "lost": 0, "duplicates": 0, "torn": 0, "identical": True, "faults": {"worker": {}},
    "writes_gone_wrong": {},
}  # fmt: skip


def test_a_seed_is_a_schedule_of_every_fault() -> None:
    assert schedule(3, FAULTS) == schedule(3, FAULTS) != schedule(4, FAULTS)
    assert sorted(fault for _, fault in schedule(3, FAULTS)) == sorted(FAULTS)
    moments = [moment for moment, _ in schedule(3, FAULTS)]
    assert moments == sorted(moments)
    assert 0.0 < moments[0] < moments[-1] < 0.7


@pytest.mark.parametrize(
    "change",
    [{"committed": 1}, {"lost": 1}, {"duplicates": 1}, {"torn": 1}, {"identical": False}, {"faults": {}}],
)
def test_any_flaw_fails_the_proof(change: dict[str, object]) -> None:
    assert is_passed(GOOD, num_faults=1)
    assert not is_passed({**GOOD, **change}, num_faults=1)


def test_a_trouble_that_met_no_write_proves_nothing() -> None:
    verdict = {**GOOD, "faults": {"503": {}}}
    assert is_passed({**verdict, "writes_gone_wrong": {"503": 4}}, num_faults=1)
    assert not is_passed(verdict, num_faults=1)


class Server(BaseHTTPRequestHandler):
    """Answers every request and remembers it."""

    seen: list[tuple[str, str, bytes]] = []  # noqa: RUF012

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.headers["Host"], body))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_PUT  # noqa: N815 - the name the base class calls

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_proxy_passes_everything_on_and_breaks_only_writes_on_demand() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = ChaosProxy(f"http://127.0.0.1:{server.server_address[1]}", chance=random.Random(0))
    try:
        assert httpx.put(f"{proxy.endpoint}/b/jobs/a.json", content=b'{"state": "committed"}').text == "ok"
        assert Server.seen[-1] == ("PUT", proxy.endpoint.removeprefix("http://"), b'{"state": "committed"}')
        httpx.put(f"{proxy.endpoint}/b/jobs/a.json", content=b'{"state": "queued"}')
        httpx.put(f"{proxy.endpoint}/b/artifacts/x/1/manifest.json", content=b"{}")
        assert proxy.commits == {"/b/jobs/a.json": 1, "/b/artifacts/x/1/manifest.json": 1}
        proxy.make_trouble(Trouble.ANSWER_503, times=2)
        codes = [httpx.put(f"{proxy.endpoint}/x", content=b"x").status_code for _ in range(20)]
        assert (codes.count(503), codes.count(200)) == (2, 18)
        proxy.make_trouble(Trouble.LOST_ANSWER, times=1)
        before = len(Server.seen)
        assert all(httpx.get(f"{proxy.endpoint}/x").status_code == 200 for _ in range(10)), "reads are left alone"
        with pytest.raises(httpx.RemoteProtocolError):
            [httpx.put(f"{proxy.endpoint}/x", content=b"x") for _ in range(20)]
        assert Server.seen[-1][0] == "PUT"
        assert len(Server.seen) > before, "the store carried it out"
        assert proxy.hits == {"503": 2, "lost answer": 1}
    finally:
        proxy.close()
        server.shutdown()
        server.server_close()

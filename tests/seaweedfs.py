"""A real S3 server for tests: one SeaweedFS on loopback per test session, in a temporary folder.

`tests/conftest.py` offers the fixture `seaweedfs` to every test; importing it elsewhere would start a second server.
"""

from collections.abc import Iterator

import pytest

from omnifarm.cli.local_seaweedfs import LocalSeaweedFS, weed_binary
from omnifarm.errors import FarmError


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSeaweedFS]:
    """A SeaweedFS server with one bucket, ended by its pid when the session ends."""
    try:
        weed_binary()
    except FarmError as error:
        pytest.skip(str(error))
    server = LocalSeaweedFS(tmp_path_factory.mktemp("seaweedfs"), bucket="tests")
    try:
        server.start()
        yield server
    finally:
        server.kill()  # its data are temporary; a polite end would take seconds

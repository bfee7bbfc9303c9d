"""`omnifarm concept history`, `rollback` and `delete`, one after the other, as a person uses them."""

import json
from pathlib import Path

from typer.testing import CliRunner

from omnifarm.cli.concept import app
from omnifarm.concept.repository import ConceptRepository
from omnifarm.store.local import LocalStore
from tests.unit.concept.test_artifact import SOFT, manifest_of


def test_a_version_is_read_from_the_history_rolled_back_to_and_deleted(tmp_path: Path) -> None:
    old, new = "0a" * 16, "0b" * 16
    store = LocalStore(tmp_path, fsync=False)
    repository = ConceptRepository(store)
    for version, at_s in ((old, 100.0), (new, 200.0)):
        repository.commit(manifest_of(version=version, created_at_s=at_s), SOFT)

    def run(*words: str, answer: str = "", code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--store", str(tmp_path)], input=answer, env={"COLUMNS": "60"})
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout

    # Whole also where the terminal is narrow: it is what a person types next.
    assert [line.split()[0] for line in run("history", "maeve").splitlines() if line[1:3] in ("0a", "0b")] == [new, old]
    run("rollback", "maeve", old)
    assert {one["version"]: one["in_use"] for one in json.loads(run("history", "maeve", "--json"))} == {
        new: False, old: True,
    }  # fmt: skip
    run("delete", "maeve", answer="n\n", code=1)
    assert repository.latest("maeve").version == old
    run("delete", "maeve", answer="y\n")
    assert list(store.list()) == []

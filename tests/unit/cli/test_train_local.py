"""`omnifarm train local` beside a job record that cannot be read."""

import json
from pathlib import Path

from typer.testing import CliRunner

from omnifarm.cli.train import app
from omnifarm.farm.records import RECORDS
from omnifarm.store.local import LocalStore
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts


def test_a_record_that_cannot_be_read_is_named_at_the_end_and_keeps_no_other_from_being_learned(tmp_path: Path) -> None:
    concepts, store = tmp_path / "concepts", tmp_path / "store"
    write_concepts(concepts, ["ada", "bob"])
    command = ["local", "--concepts", str(concepts), "--store", str(store), "--backbone", str(CHECKPOINT), "--json"]
    command += ["--recipe", json.dumps({**RECIPE, "steps": 2})]
    assert CliRunner().invoke(app, [*command, "--only", "ada"]).exit_code == 0
    opened = LocalStore(store)
    (key,) = opened.list(RECORDS)
    opened.put(key, b"torn")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    ada, bob = json.loads(done.stdout)["jobs"]
    assert (ada["name"], ada["state"], bob["name"], bob["state"]) == ("ada", "failed", "bob", "committed")
    said = f"'ada' cannot be learned: its job record {key} cannot be read"
    assert done.stderr.count(said) == 2, "at the beginning and at the end"
    assert opened.get(key).data == b"torn"

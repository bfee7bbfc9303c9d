"""The command line as a person or a script meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def omnifarm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omnifarm.cli.main", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("noun", ["backbone", "concept", "demo", "farm", "miniature", "perf", "train"])
def test_every_noun_explains_its_verbs(noun: str) -> None:
    done = omnifarm(noun, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_a_users_mistake_is_one_message_on_standard_error_without_a_traceback(tmp_path: Path) -> None:
    done = omnifarm("backbone", "info", str(tmp_path / "nowhere"), "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_output_is_one_document_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "maeve").mkdir()
    done = omnifarm("concept", "validate", str(tmp_path / "maeve"), "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert document["ok"] is False
    assert document["problems"][0].keys() >= {"where", "what", "consumer", "fix", "severity"}


def test_a_store_without_jobs_or_concepts_lists_nothing(tmp_path: Path) -> None:
    for command in (("concept", "list"), ("farm", "status")):
        done = omnifarm(*command, "--store", str(tmp_path), "--json")
        assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr


def test_verify_reports_every_group_in_the_agreed_form(tmp_path: Path) -> None:
    golden = json.loads((ROOT / "tests" / "golden" / "a" / "index.json").read_text())
    done = omnifarm("backbone", "verify", "tests/golden/a", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["pass"] is True
    assert document["groups"].keys() == golden["groups"].keys()
    for group in document["groups"].values():
        assert group["pass"] is True
        assert 0 <= group["worst_ratio"] <= 1
        assert group["tensors"] + group["facts"] > 0


def test_training_in_one_process_commits_once_and_names_what_cannot_be_learned(tmp_path: Path) -> None:
    folder, store = tmp_path / "concepts", tmp_path / "store"
    assert (
        omnifarm("miniature", "concepts", str(folder), "--persons", "1", "--pets", "0", "--objects", "1").returncode
        == 0
    )
    command = ["train", "local", "--concepts", str(folder), "--store", str(store), "--steps", "2", "--json"]
    first = omnifarm(*command)
    assert first.returncode == 0, first.stderr
    jobs = json.loads(first.stdout)["jobs"]
    assert [(job["state"], job["step"], job["attempts"]) for job in jobs] == [("committed", 2, 1)] * 2
    again = omnifarm(*command)
    assert json.loads(again.stdout)["jobs"] == jobs
    assert "learned already" in again.stderr
    listed = json.loads(omnifarm("concept", "list", "--store", str(store), "--json").stdout)
    assert len(listed) == 2
    (next(folder.iterdir()) / "concept.yaml").write_text("class: [")
    broken = omnifarm(*command)
    assert broken.returncode == 1
    assert [job["state"] for job in json.loads(broken.stdout)["jobs"]].count("failed") == 1


def test_a_recipe_that_is_no_object_is_refused(tmp_path: Path) -> None:
    done = omnifarm("train", "local", "--concepts", str(tmp_path), "--store", str(tmp_path / "s"), "--recipe", "[1]")
    assert done.returncode == 1
    assert "--recipe must be a JSON object" in done.stderr


def test_a_tenants_first_key_does_not_read_the_servers_metrics(tmp_path: Path) -> None:
    tenant = ("tenant", "create", "acme", "--store", str(tmp_path), "--json")
    assert json.loads(omnifarm(*tenant).stdout)["scopes"] == ["use", "learn"]
    added = omnifarm("tenant", "add-key", "acme", "--scope", "operate", "--store", str(tmp_path), "--json")
    assert json.loads(added.stdout)["scopes"] == ["operate"]

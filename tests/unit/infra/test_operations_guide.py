"""The operations guide and the infrastructure's pages, held to the programs they speak of."""

import re
import shlex
from pathlib import Path

import pytest

from omnifarm.farm.worker_settings import checkpoint_for, lease_for
from omnifarm.training.sharding import FITTING_SHARE, SHARDINGS
from tests.unit.infra.options import names_of, omnifarm_command, option_names

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "docs" / "operations.md", *sorted((ROOT / "infra").glob("*/README.md"))]
pytestmark = pytest.mark.filterwarnings("ignore")


def commands(path: Path, program: str) -> list[str]:
    """Return every shell command of a page that begins with, or runs, a program."""
    text = path.read_text()
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```\n.*?```", "", text, flags=re.DOTALL))
    found = []
    for line in lines:
        start = line.partition("#")[0].find(program)
        if start == 0 or (start > 0 and line[start - 1] == " "):
            found.append(line.partition("#")[0][start:].strip())
    return found


OMNIFARM = [(path, text) for path in PAGES for text in commands(path, "omnifarm ")]
JOBS = [(path, text) for path in PAGES for text in commands(path, "jobs/")]


def test_there_is_something_to_check() -> None:
    assert len(OMNIFARM) > 8
    assert len(JOBS) > 2


@pytest.mark.parametrize(("path", "text"), OMNIFARM, ids=lambda value: str(getattr(value, "name", value)))
def test_an_omnifarm_command_exists_with_its_options(path: Path, text: str) -> None:
    command, words = omnifarm_command(shlex.split(text)[1:])
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= names_of(command)


@pytest.mark.parametrize(("path", "text"), JOBS, ids=lambda value: str(getattr(value, "name", value)))
def test_a_job_exists_with_its_options(path: Path, text: str) -> None:
    program, *words = shlex.split(text)
    assert (ROOT / program).exists()
    if program.endswith(".py"):
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= option_names(program)


def test_an_option_named_alone_is_one_of_the_jobs() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    alone = {each.split()[0] for each in re.findall(r"`(--[^`]+)`", text)}
    assert alone
    assert alone <= option_names("jobs/train_concepts.py")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_and_links_that_a_page_names_are_there(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#\w+)?\)", text):
        assert "://" in target or (path.parent / target).exists(), target
    for name in re.findall(r"`((?:infra|docs|tests|omnifarm|serve)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_defaults_in_the_guide_are_those_of_the_code() -> None:
    small, large = lease_for(1), lease_for(10_000)
    text = (ROOT / "docs" / "operations.md").read_text()
    assert f"(`--lease-s`, {small:.0f} s; {large:.0f} s in large jobs)" in text
    assert f"`--checkpoint-s` ({checkpoint_for(small):.0f} s; {checkpoint_for(large):.0f} s)" in text
    assert f"{FITTING_SHARE:.0%}".replace("%", " %") in text
    assert all(name in text for name in SHARDINGS)

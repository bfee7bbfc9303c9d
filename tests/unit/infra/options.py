"""What a program of ours can be asked, from the program itself."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[3]


@cache
def option_names(path: str) -> set[str]:
    """Return every option of a job, such as {"--store"}."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer()
    app.command()(module.main)
    return names_of(typer.main.get_command(app))


def names_of(command: Any) -> set[str]:
    """Return every option of a command, `--help` included."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in found if name.startswith("-")} | {"--help"}


def omnifarm_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that `omnifarm WORDS...` runs and the words that are left for it.

    Raises:
        KeyError: There is no such command.
    """
    from omnifarm.cli.main import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    return command, words

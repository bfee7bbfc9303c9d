"""`omnifarm backbone`: inspect a checkpoint folder and hold it to golden vectors."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from omnifarm.cli.output import Json, print_json, results

app = typer.Typer(no_args_is_help=True)


@app.command()
def info(
    backbone: Annotated[
        str, typer.Argument(help="`miniature`, a checkpoint folder, or a hub id such as org/name.")
    ] = "miniature",
    json: Json = False,
) -> None:
    """Print sizes, tensor counts, memory in bf16, special token ids and the fingerprint artifacts are tied to."""
    from omnifarm.backbone.weights import backbone_info

    facts = backbone_info(backbone)
    if json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {item}" for key, item in value.items())
        else:
            shown = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name.replace("_", " "), escape(shown))
    results.print(table)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A golden folder: index.json, its tensors and checkpoint/.")],
    json: Json = False,
) -> None:
    """Replay every group of a golden folder and compare tensor by tensor.

    One line per group: the number of comparisons and the worst error over its tolerance (at most 1 passes). The exit
    code is 0 only if every tensor of every group was compared and is within its tolerance.
    """
    from omnifarm.backbone.conformance import verify_golden

    report = verify_golden(folder)
    if json:
        print_json(report.to_json())
    else:
        for name, group in report.groups.items():
            verdict = "[green]pass[/]" if group.passed else "[bold red]FAIL[/]"
            results.print(
                f"{verdict}  {escape(name):<18} {group.num_tensors:>3} tensors {group.num_facts:>3} facts   worst {group.worst_ratio:.3g} of tolerance"
            )
            for line in group.failures:
                results.print(f"      {escape(line)}")
        results.print("all groups pass" if report.passed else "[bold red]not conformant[/]")
    if not report.passed:
        raise typer.Exit(1)

"""Pre-train the miniature from nothing: one command, resumable, no other input than the drawn world.

    python jobs/pretrain_miniature.py --out /tmp/miniature --budget 100
    python jobs/pretrain_miniature.py --out /tmp/miniature --budget 30 --device cuda --processes 1

Run it again after a crash and it goes on. The finished backbone is in OUT/weights; to ship it, copy that folder over
`omnifarm/miniature/weights`.
"""

from pathlib import Path
from typing import Annotated

import typer

from omnifarm.miniature.pretrain.job import JobConfig, run_job


def main(
    out: Annotated[Path, typer.Option(help="Working folder: pictures, states, curves, weights (about 2 GB).")],
    budget: Annotated[float, typer.Option(help="Minutes of training, all stages together.")] = 100.0,
    groups: Annotated[int, typer.Option(help="Groups of seven pictures to train on.")] = 4000,
    processes: Annotated[int, typer.Option(help="Processes of the main and drawing stages, one core each.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda, for the main and drawing stages.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the corpus.")] = 1,
) -> None:
    """Render, train vision tower, codec, language model and judge, export in the official layout."""
    folder = run_job(
        JobConfig(out=out, budget_s=60 * budget, num_groups=groups, processes=processes, device=device, seed=seed)
    )
    typer.echo(f"The backbone is in {folder}")


if __name__ == "__main__":
    typer.run(main)

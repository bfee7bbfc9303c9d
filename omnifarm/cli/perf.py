"""`omnifarm perf`: speed as ratios, both sides measured in turn in one run."""

from typing import Annotated

import typer

from omnifarm.cli.output import Json, people, print_json, results

app = typer.Typer(no_args_is_help=True)


@app.callback()
def perf() -> None:
    """Speed as ratios, both sides measured in turn in one run."""


@app.command()
def train(
    concepts: Annotated[int, typer.Option(min=2, help="How many concepts learn, and share a pack in ours.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Measured steps of each side, after two unmeasured ones.")] = 6,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    json: Json = False,
) -> None:
    """Compare the training engine with the plain loop, and say what each of its parts gains.

    The same concepts, samples and number of steps on every side; sides take turns, so that a machine whose speed drifts
    does not favour one. MFU counts 4 operations per weight and token, against this machine's fastest matrix product.
    `ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16` shows a machine without bf16 matrix units, `AVX512_CORE` one without bf16.
    """
    from omnifarm.cli.perf_train import AT_ITS_BEST, LADDER, measure

    def log(line: str) -> None:
        people.print(line, style="dim")

    report = measure(num_concepts=concepts, rounds=rounds, threads=threads, log=log)
    if json:
        print_json(report)
        return
    for name, meaning in (LADDER | AT_ITS_BEST).items():
        gain = report["gains"].get(name)
        step_ms = report["step_s"][name] * 1000 / report["concepts"]
        results.print(
            f"{name:<15} {step_ms:8.1f} ms a step of one concept  {f'{gain:.2f}x' if gain else '':<7} {meaning}"
        )
    results.print(
        f"ours is {report['speedup_vs_plain']:.2f}x plain and {report['speedup_vs_best_plain']:.2f}x {report['best_plain']}; "
        f"{report['tokens_per_s']:.0f} tokens/s, MFU {report['mfu']:.1%}; "
        f"loss plain {report['final_loss']['plain']:.4f}, ours {report['final_loss']['ours']:.4f}"
    )


@app.command()
def sharding(
    layouts: Annotated[list[str] | None, typer.Option("--layout", help="zero3 or fsdp2; default: both.")] = None,
    ranks: Annotated[int, typer.Option(min=2, help="Processes that share the backbone.")] = 2,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the random backbone, 6.4 million numbers each.")] = 8,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16 weights.")] = "float32",
    json: Json = False,
) -> None:
    """Train the same lanes over a whole and over a shared backbone: are they equal, and how much does a process hold?

    Real processes on this CPU. Differences are over soft tokens, moments and losses; memory is a part of the weights.
    """
    from omnifarm.cli.perf_sharding import measure_sharding

    report = measure_sharding(
        tuple(layouts or ("zero3", "fsdp2")),
        num_ranks=ranks,
        num_layers=layers,
        precision=precision,
    )
    if json:
        print_json(report)
        return
    for layout, numbers in report.items():
        results.print(
            f"{layout}: largest difference {numbers['max_abs_diff']:g}; a process holds "
            f"{numbers['rest_memory_fraction']:.1%} of the weights at rest (expected {numbers['expected_fraction']:.1%}), "
            f"{numbers['peak_memory_fraction']:.1%} at the most; all together hold {numbers['host_memory_fraction']:.1%} "
            f"and read {numbers['read_fraction']:.1%} of the file"
        )


@app.command()
def queue(
    queued: Annotated[list[int] | None, typer.Option(help="Length of the queue; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers that lease at the same time.")] = 64,
    leases: Annotated[int, typer.Option(min=1, help="Leases of every worker.")] = 8,
    store: Annotated[str | None, typer.Option(help="Measure on this store; default: a SeaweedFS started here.")] = None,
    json: Json = False,
) -> None:
    """Lease with many workers at once from a short and from a long queue (default 1,000 and 100,000 jobs)."""
    from omnifarm.cli.perf_queue import measure_queue

    report = measure_queue(
        lengths=queued or [1_000, 100_000], num_workers=workers, leases_per_worker=leases, store=store
    )
    if json:
        print_json(report)


@app.command()
def serve(
    backbone: Annotated[str, typer.Option(help="miniature or a checkpoint folder.")] = "miniature",
    precision: Annotated[str, typer.Option(help="bfloat16 or float32, on both sides.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads, on both sides.")] = 2,
    steps: Annotated[int, typer.Option(min=2, help="Values of the denoising schedule.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Measured turns of each side, after one to warm up.")] = 3,
    side: Annotated[int, typer.Option(min=48, help="Pixels of a picture's sides.")] = 96,
    residents: Annotated[int, typer.Option(help="Concepts in memory, compared with one.")] = 10_000,
    compiled: Annotated[bool, typer.Option(help="Compile the engine's side; takes a minute before.")] = False,
    url: Annotated[str, typer.Option(help="A running server (OMNIFARM_ACCESS=owner) to measure HTTP with.")] = "",
    json: Json = False,
) -> None:
    """Compare serving one request at a time, the official way, with the engine at concurrency 1, 8 and 32.

    Questions, images and edits, each request over its own concept; latencies, time to first token, replay, and what
    many concepts in memory cost. Ratios above 1 mean the engine serves more requests in the same time.
    """
    from omnifarm.cli.perf_serve import KINDS, ServePlan, measure_serve

    report = measure_serve(
        ServePlan(
            backbone=backbone,
            precision=precision,
            threads=threads,
            steps=steps,
            side=side,
            rounds=rounds,
            residents=residents,
            compiled=compiled,
            url=url,
        )
    )
    if json:
        print_json(report)
        return
    for kind in KINDS:
        numbers = report[kind]
        results.print(
            f"{kind}: {numbers['official_s'] * 1000:.0f} ms each the official way, at its faster number of threads "
            f"({numbers['official_threads']})"
        )
        for count in ("c1", "c8", "c32"):
            one = numbers[count]
            results.print(
                f"  {count:<4} {one['per_request_s'] * 1000:7.1f} ms each, {one['ratio']:.2f}x "
                f"({one['computing_ratio']:.2f}x by computing time); "
                f"latency p50 {one['p50_s']:.2f} s, p99 {one['p99_s']:.2f} s"
            )
    results.print(
        f"replay: {report['replay_s']['unified']} s in one call, {report['replay_s']['sequential']} s in three"
    )
    results.print(f"throughput lost with {residents} concepts in memory: {report['resident_10k_loss']:.1%}")


@app.command()
def load(
    key: Annotated[list[str], typer.Option("--key", help="A tenant's key with every scope; repeat it per tenant.")],
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    seconds: Annotated[float, typer.Option(min=1, help="Length of the run.")] = 600.0,
    calibrate_s: Annotated[float, typer.Option(min=1, help="Seconds of full load, to find the capacity.")] = 30.0,
    share: Annotated[float, typer.Option(min=0.01, max=1.5, help="Of the capacity.")] = 0.8,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps of a picture.")] = 10,
    seed: Annotated[int, typer.Option(help="Of everything drawn by lot.")] = 0,
    kill_replica: Annotated[
        bool, typer.Option("--kill-replica", help="Kill a replica midway; it must run on this machine.")
    ] = False,
    json: Json = False,
) -> None:
    """Load a server with mixed traffic, 5 % of it leaving early and 5 % hostile, and check every answer."""
    from omnifarm.cli.perf_load import load_server

    report = load_server(
        url,
        keys=key,
        seconds=seconds,
        calibrate_s=calibrate_s,
        share=share,
        steps=steps,
        seed=seed,
        is_killing=kill_replica,
    )
    if json:
        print_json(report)
    else:
        results.print_json(data=report)
    if not report["passed"]:
        raise typer.Exit(1)


@app.command()
def farm(
    concepts: Annotated[int, typer.Option(min=2, help="Drawn concepts to learn.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps per concept.")] = 200,
    lanes: Annotated[int, typer.Option(min=1, help="Concepts a worker trains side by side.")] = 2,
    backbone: Annotated[str, typer.Option(help="miniature or a checkpoint folder.")] = "miniature",
    json: Json = False,
) -> None:
    """Learn the same concepts in a bare loop, on a farm of one cell and on a farm of two (needs a checkout).

    With it, over a whole and over a ZeRO-3-shared backbone: are they equal, and how much does a process hold?
    """
    import tempfile
    from pathlib import Path

    from omnifarm.cli.perf_farm import measure_farm
    from omnifarm.cli.perf_sharding import measure_sharding
    from omnifarm.miniature.benchmark import write_concept_folders

    with tempfile.TemporaryDirectory(prefix="omf-perf-") as folder:
        place = Path(folder) / "concepts"
        write_concept_folders(place, num_persons=concepts - concepts // 2, num_pets=concepts // 2, num_objects=0)
        report = measure_farm(concepts=place, steps=steps, lanes=lanes, backbone=backbone, checkout=Path.cwd())
    report["zero3"] = measure_sharding(("zero3",))["zero3"]
    if json:
        print_json(report)
        return
    for name, value in report.items():
        results.print(f"{name}: {value}")

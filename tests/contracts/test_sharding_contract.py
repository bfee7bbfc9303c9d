"""What every sharded layout must keep, held on each with real processes: nothing about learning changes."""

from functools import cache

import pytest

from omnifarm.cli.perf_sharding import measure_sharding

LAYOUTS = ("zero3", "fsdp2")
BESIDES_BYTES = 24e6
"""What a process holds besides weights: the autoencoder (6.5 MB), the libraries' own buffers; 21 MB on an AMD EPYC."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@cache
def measured() -> dict[str, dict[str, float]]:
    """Two processes share a backbone of 200 MB: three lanes in two packs there, one lane with fewer steps here."""
    return measure_sharding(LAYOUTS, num_ranks=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_soft_tokens_gradients_and_losses_are_bit_for_bit_those_of_a_whole_copy(layout: str) -> None:
    assert measured()[layout]["max_abs_diff"] == 0.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_process_holds_its_share_at_rest(layout: str) -> None:
    numbers = measured()[layout]
    assert 0.5 < numbers["expected_fraction"] < 0.53
    limit = 1.1 * numbers["expected_fraction"] + BESIDES_BYTES / numbers["weights_bytes"]
    assert numbers["rest_memory_fraction"] <= limit


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_process_ever_holds_the_whole_model_and_together_they_hold_it_once(layout: str) -> None:
    numbers = measured()[layout]
    assert numbers["loading_memory_fraction"] < 0.8
    assert numbers["host_memory_fraction"] < 1.1 + 2 * BESIDES_BYTES / numbers["weights_bytes"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_file_is_read_once_for_the_shares_and_once_for_the_fingerprint(layout: str) -> None:
    assert 1.9 < measured()[layout]["read_fraction"] < 2.2


def test_bf16_weights_are_no_different_and_a_third_process_may_idle_throughout() -> None:
    report = measure_sharding(("zero3",), num_ranks=3, num_layers=1, precision="bfloat16")
    assert report["zero3"]["max_abs_diff"] == 0.0

import torch

from omnifarm import seeding


def test_a_seed_depends_on_every_name_and_on_its_type() -> None:
    seeds = {
        seeding.derive_seed(0),
        seeding.derive_seed(1),
        seeding.derive_seed(0, "a"),
        seeding.derive_seed(0, "a", "b"),
        seeding.derive_seed(0, "ab"),
        seeding.derive_seed(0, 1),
        seeding.derive_seed(0, "1"),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine_and_run() -> None:
    assert seeding.derive_seed(7, "generate", "<maeve>", 3) == 5351658555416615961


def test_generators_of_one_name_draw_the_same_numbers() -> None:
    first = torch.randn(4, generator=seeding.generator(1, "noise"))
    second = torch.randn(4, generator=seeding.generator(1, "noise"))
    assert torch.equal(first, second)

"""A small benchmark of drawn concepts, and photographs that come with packages, read as any data is read."""

from pathlib import Path

import pytest

from omnifarm.bench.data.load import BenchData, load_benchmark
from omnifarm.bench.tasks import Sizes
from omnifarm.miniature.benchmark import BenchmarkSizes

SMALL = BenchmarkSizes(train=3, test=2, hard_negatives=1, easy_negatives=1, edits=2, edits_per_operation=1, removals=1)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> BenchData:
    sizes = Sizes(concepts=3, prompts=2, images_per_prompt=1, people_images=1, parg_images=1)
    return load_benchmark("miniature:3", sizes=sizes, scratch=tmp_path_factory.mktemp("drawn"), drawn_sizes=SMALL)


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    return tmp_path / "store"

import pytest

from omnifarm.errors import StoreError
from omnifarm.store.memory import MemoryStore
from omnifarm.store.probe import probe_conditional_writes


class CarelessStore(MemoryStore):
    """Accepts conditions and ignores the named ones, as some servers do."""

    def __init__(self, *ignored: str) -> None:
        super().__init__()
        self.ignored = ignored

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        return super().put(
            key,
            data,
            if_none_match=if_none_match and "if_none_match" not in self.ignored,
            if_match=None if "if_match" in self.ignored else if_match,
        )


@pytest.mark.parametrize(
    ("ignored", "found"), [("if_none_match", "racing creators won"), ("if_match", "compare-and-swaps won")]
)
def test_a_store_that_ignores_conditions_is_refused(ignored: str, found: str) -> None:
    store = CarelessStore(ignored)
    with pytest.raises(StoreError, match=found):
        probe_conditional_writes(store)
    assert list(store.list()) == []


def test_a_careful_store_passes() -> None:
    probe_conditional_writes(MemoryStore())

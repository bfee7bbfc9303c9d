"""Orders that stand, and who is told of them."""

import pytest

from omnifarm.errors import FarmError
from omnifarm.farm.control import FarmControl, Order
from omnifarm.store.memory import MemoryStore


@pytest.mark.parametrize("order", [Order.DRAIN, Order.STOP])
def test_a_job_that_begins_under_an_order_is_told_so_and_how_to_take_it_back(order: Order) -> None:
    control = FarmControl(MemoryStore())
    control.require_work(store="./farm")
    control.order(order)
    with pytest.raises(FarmError, match=f"found the order to {order.value} in ./farm.*drain --resume --store ./farm"):
        control.require_work(store="./farm")
    control.resume()
    control.require_work(store="./farm")

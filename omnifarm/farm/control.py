"""What a person or a driver tells workers: to take no new concepts, or to hand back what they have and leave.

    control/drain            whole farm: finish what is being trained, take nothing new
    control/stop             whole farm: save, give back and leave now
    control/stop-<cell>      one cell: the same

Empty objects; workers look at them with one listing every few seconds.
"""

from enum import Enum

from omnifarm.errors import FarmError
from omnifarm.store.base import Store

PREFIX = "control/"
"""Keys of all orders begin with this."""


class Order(Enum):
    """What workers are to do; closed."""

    WORK = "work"
    """Lease and train."""
    DRAIN = "drain"
    """Finish what is held, lease nothing."""
    STOP = "stop"
    """Save checkpoints, give everything back, leave."""


class FarmControl:
    """Orders in a store. Safe to share.

    Args:
        store: The farm's store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def order(self, order: Order, *, cell: str | None = None) -> None:
        """Give an order that stands until `resume`; safe to repeat.

        Args:
            order: DRAIN (whole farm only) or STOP.
            cell: One cell; default the whole farm.
        """
        assert order is Order.STOP or (order is Order.DRAIN and cell is None)
        self._store.put(_key(order, cell), b"")

    def resume(self, *, cell: str | None = None) -> None:
        """Take every order back, for one cell or the whole farm; safe to repeat."""
        for order in (Order.STOP, Order.DRAIN) if cell is None else (Order.STOP,):
            self._store.delete(_key(order, cell))

    def cell_stops(self) -> dict[str, str]:
        """Return the keys of orders that tell a single cell to stop, by cell; one request."""
        prefix = _key(Order.STOP, "")
        return {key.removeprefix(prefix): key for key in self._store.list(prefix)}

    def require_work(self, *, store: str) -> None:
        """Refuse to begin under an order that keeps every new concept from being learned: it may have been forgotten.

        Args:
            store: The store's URL, for the message.

        Raises:
            FarmError: Such an order stands.
        """
        order = self.present()
        if order is not Order.WORK:
            raise FarmError(
                f"expected a farm that takes new concepts, found the order to {order.value} in {store}; take it back with "
                f"`omnifarm farm drain --resume --store {store}`, then run the same again"
            )

    def present(self, *, cell: str | None = None) -> Order:
        """Return the order that stands for a cell's workers; one request."""
        keys = set(self._store.list(PREFIX))
        if keys & {_key(Order.STOP, None), _key(Order.STOP, cell)}:
            return Order.STOP
        return Order.DRAIN if _key(Order.DRAIN, None) in keys else Order.WORK


def _key(order: Order, cell: str | None) -> str:
    return f"{PREFIX}{order.value}" + (f"-{cell}" if cell is not None else "")

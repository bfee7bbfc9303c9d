"""Who may talk to a cluster: off loopback nobody without its token.

A Ray cluster runs whatever code it is sent, so one that listens on a network without authentication belongs to the
network. Ray has tokens and leaves them off; here they are a condition. Pure functions; nothing is contacted.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from omnifarm.errors import FarmError


def require_token(address: str, environment: Mapping[str, str]) -> None:
    """Refuse a cluster that other machines can reach and that does not ask them for a token.

    Args:
        address: "host:port" or "ray://host:port"; "auto" is whatever Ray finds, and counts as reachable.
        environment: Usually `os.environ`; `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` and `HOME` count.

    Raises:
        FarmError: The cluster is not on loopback, and token authentication is off or there is no token.
    """
    if is_loopback(address):
        return
    if environment.get("RAY_AUTH_MODE") != "token":
        raise FarmError(
            f"the cluster at {address} can be reached from other machines and RAY_AUTH_MODE is "
            f"{environment.get('RAY_AUTH_MODE', 'not set')!r}, expected 'token': anybody there could run code on it. "
            "Start every node with RAY_AUTH_MODE=token (infra/plain/ray_node.sh does; KubeRay: authOptions.mode: token)"
        )
    if not has_token(environment):
        raise FarmError(
            f"the cluster at {address} needs its token and none was found: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to "
            "a file with it, or put it into ~/.ray/auth_token"
        )


def is_loopback(address: str) -> bool:
    """Return whether an address names this machine only; a host name other than localhost does not."""
    host = address.removeprefix("ray://").rsplit(":", 1)[0].strip("[]")
    if host in ("localhost", "local"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def has_token(environment: Mapping[str, str]) -> bool:
    """Return whether a token is at hand, in Ray's order of places; its content is not read into any message."""
    if environment.get("RAY_AUTH_TOKEN", "").strip():
        return True
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path(environment.get("HOME", "/")) / ".ray" / "auth_token")
    return path.is_file() and bool(path.read_text().strip())

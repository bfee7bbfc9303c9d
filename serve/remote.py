"""Pictures behind URLs: fetched only from hosts the operator named, never redirected, never more than a limit.

Without an allow-list nothing is fetched. A named host that resolves to a private address is refused all the same, so
that a name cannot be pointed at this machine or its network; and the address that was looked at is the one that is asked, so
that the name cannot be pointed elsewhere in between.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit, urlunsplit

import httpx

from omnifarm.errors import RequestError
from serve.errors import TooLargeError
from serve.settings import ServeSettings

_TIMEOUT_S = 10.0
_WHOLE_S = 30.0


async def public_address(host: str, port: int) -> str:
    """Return an address of a host, if all of its addresses are public ones.

    Raises:
        RequestError: It has none, or one in a private network.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise RequestError(f"expected {host} to have an address, found none", field="image") from None
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    if not all(ipaddress.ip_address(address).is_global for address in addresses):
        raise RequestError(f"expected a public address for {host}, found a private one", field="image")
    return addresses[0]


async def fetch_picture(
    url: str,
    *,
    settings: ServeSettings,
    client: httpx.AsyncClient,
    resolve: Callable[[str, int], Awaitable[str]] = public_address,
) -> bytes:
    """Return the bytes behind `url`.

    Args:
        url: `https://host/...`; the host must be in the allow-list.
        settings: For the allow-list and the largest picture.
        client: Makes the request.
        resolve: Returns the address of a host that may be asked.

    Raises:
        RequestError: The host is not allowed, or it does not answer with a picture.
        TooLargeError: More bytes than this server reads.
    """
    host, port = _allowed(url, settings.allowed_hosts)
    try:
        async with asyncio.timeout(_WHOLE_S):
            return await _read(url, host, port, await resolve(host, port), settings=settings, client=client)
    except (httpx.HTTPError, TimeoutError) as error:
        raise RequestError(f"expected a picture from {host}, found {type(error).__name__}", field="image") from None


async def _read(
    url: str, host: str, port: int, address: str, *, settings: ServeSettings, client: httpx.AsyncClient
) -> bytes:
    place = f"[{address}]" if ":" in address else address
    parts = urlsplit(url)
    at_address = urlunsplit(("https", f"{place}:{port}", parts.path, parts.query, ""))
    named = host if port == 443 else f"{host}:{port}"
    data = bytearray()
    async with client.stream(
        "GET",
        at_address,
        headers={"Host": named},
        # The certificate must be the host's, not the address's.
        extensions={"sni_hostname": host},
        follow_redirects=False,
        timeout=_TIMEOUT_S,
    ) as reply:
        if reply.status_code != 200:
            raise RequestError(f"expected a picture from {host}, found status {reply.status_code}", field="image")
        async for chunk in reply.aiter_bytes():
            data += chunk
            if len(data) > settings.max_image_bytes:
                raise TooLargeError(
                    f"expected at most {settings.max_image_bytes} bytes from {host}, found more", field="image"
                )
    return bytes(data)


def _allowed(url: str, hosts: frozenset[str]) -> tuple[str, int]:
    advice = "send the picture itself as a data: URL"
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or 443
    except ValueError:
        raise RequestError(f"expected a URL, found something else; {advice}", field="image") from None
    named = host if port == 443 else f"{host}:{port}"
    if parts.scheme != "https" or parts.username is not None or named not in hosts:
        raise RequestError(
            f"expected a picture inside the request, found a URL this server does not fetch; {advice}", field="image"
        )
    return host, port

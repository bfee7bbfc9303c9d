"""Pictures behind URLs: fetched only from hosts the operator named, never redirected, never more than a limit.

Without an allow-list nothing is fetched. A named host that resolves to a private address is refused all the same, so
that a name cannot be pointed at this machine or its network.
"""

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

import httpx

from omnifarm.errors import RequestError
from serve.errors import TooLargeError
from serve.settings import ServeSettings

_TIMEOUT_S = 10.0


async def fetch_picture(url: str, *, settings: ServeSettings, client: httpx.AsyncClient) -> bytes:
    """Return the bytes behind `url`.

    Args:
        url: `https://host/...`; the host must be in the allow-list.
        settings: For the allow-list and the largest picture.
        client: Makes the request.

    Raises:
        RequestError: The host is not allowed, or it does not answer with a picture.
        TooLargeError: More bytes than this server reads.
    """
    host, port = _allowed(url, settings.allowed_hosts)
    await _require_public(host, port)
    data = bytearray()
    try:
        async with client.stream("GET", url, follow_redirects=False, timeout=_TIMEOUT_S) as reply:
            if reply.status_code != 200:
                raise RequestError(f"expected a picture from {host}, found status {reply.status_code}", field="image")
            async for chunk in reply.aiter_bytes():
                data += chunk
                if len(data) > settings.max_image_bytes:
                    raise TooLargeError(
                        f"expected at most {settings.max_image_bytes} bytes from {host}, found more", field="image"
                    )
    except httpx.HTTPError as error:
        raise RequestError(f"expected a picture from {host}, found {type(error).__name__}", field="image") from None
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


async def _require_public(host: str, port: int) -> None:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise RequestError(f"expected {host} to have an address, found none", field="image") from None
    for *_, address in found:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise RequestError(f"expected a public address for {host}, found a private one", field="image")

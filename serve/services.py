"""What the endpoints share: one replica's engine, stores, door and counters, and who is calling."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import anyio.to_thread
import httpx
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from omnifarm.clock import Clock
from omnifarm.serving.engine import Engine
from omnifarm.serving.worker import EngineWorker
from omnifarm.tenancy import Accounts, Caller, Scope
from serve.admission import Admission
from serve.errors import ForbiddenError, UnauthenticatedError
from serve.metrics import Metrics
from serve.origins import Origins
from serve.pictures import Intake
from serve.previews import Previews
from serve.readiness import Readiness
from serve.settings import ServeSettings
from serve.spaces import Space, Spaces

Peers = Callable[[], Awaitable[list[tuple[str, str]]]]
"""Returns (replica, exposition of its metrics) of every replica."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_BEARER = HTTPBearer(auto_error=False, description="A tenant's key, `omf_...`.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """Everything a request may need."""

    settings: ServeSettings
    """The replica's settings."""
    clock: Clock
    """Time."""
    engine: Engine
    """For checking requests, listing concepts and statistics."""
    worker: EngineWorker
    """Runs requests."""
    latent_stride: int
    """Pixels between the latent tokens of a picture."""
    accounts: Accounts
    """Who holds which key."""
    spaces: Spaces
    """The tenants' stores."""
    previews: Previews
    """Concepts that are being learned."""
    origins: Origins
    """What concepts were learned from."""
    admission: Admission
    """Who may come in now."""
    metrics: Metrics
    """What is counted."""
    readiness: Readiness
    """Whether the store answers."""
    intake: Intake
    """Decodes pictures."""
    http: httpx.AsyncClient
    """For pictures behind URLs."""
    peers: Peers
    """The metrics of every replica."""
    replica: str
    """This one's name."""
    is_behind_proxy: bool
    """Whether requests come through Ray Serve's proxy."""

    def space(self, caller: Caller) -> Space:
        """The caller's own part of the store."""
        return self.spaces.of(caller.tenant)


def services_of(request: Request) -> Services:
    """Return the services of the application that got the request."""
    services: Services = request.app.state.services
    return services


Shared = Annotated[Services, Depends(services_of)]
"""Parameter of an endpoint that needs the services."""


def caller_with(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency that lets in whoever holds a key with `scope`, and counts the request."""

    async def authenticated(
        request: Request,
        shared: Shared,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)] = None,
    ) -> Caller:
        if shared.settings.access == "owner":
            _require_own_machine(request)
            caller: Caller | None = Caller(tenant="")
        else:
            key = credentials.credentials if credentials is not None else ""
            caller = await anyio.to_thread.run_sync(shared.accounts.authenticate, key) if key else None
        if caller is None:
            raise UnauthenticatedError(
                "expected a tenant's key as 'Authorization: Bearer omf_...', found "
                + ("one that opens nothing" if credentials is not None else "none")
            )
        request.state.tenant, request.state.key_id = caller.tenant, caller.key_id
        shared.admission.check_rate(caller)
        if scope not in caller.scopes:
            raise ForbiddenError(
                f"expected a key with the scope {scope!r}, found one for {', '.join(caller.scopes) or 'nothing'}; "
                "use another key"
            )
        return caller

    return authenticated


User = Annotated[Caller, Depends(caller_with("use"))]
"""Parameter of an endpoint that asks, draws or edits."""
Learner = Annotated[Caller, Depends(caller_with("learn"))]
"""Parameter of an endpoint that uploads, trains or deletes."""
Operator = Annotated[Caller, Depends(caller_with("operate"))]
"""Parameter of an endpoint for whoever runs the server."""


def _require_own_machine(request: Request) -> None:
    """Refuse other machines, and pages of other sites in a browser on this one, where no key is asked for."""
    host = request.headers.get("host", "").lower()
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    origin = request.headers.get("origin")
    if name not in _LOOPBACK or (origin is not None and origin.partition("://")[2].lower() != host):
        raise UnauthenticatedError(
            "expected a request from this machine, found one from elsewhere; to open the server, give tenants keys "
            "(omnifarm tenant create) and set OMNIFARM_ACCESS=keys"
        )

"""What stands between a gateway and its services, and between clients and its names, as seen from this host.

That its files are right is looked at before (`snapshot`, `host`); this is what files do not say.
"""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from portguard.errors import Refused
from portguard.gateway.dial import Dialer, DialFailed, Greet
from portguard.gateway.greeting import greet
from portguard.gateway.proxy_protocol import v1, v2
from portguard.gateway.resolve import Names, Unresolved
from portguard.gateway.setup import Setup
from portguard.gateway.snapshot import Snapshot
from portguard.observe.findings import ANY_SERVICE, Finding, failed, ok, warning
from portguard.policy.addresses import ListenAddress
from portguard.policy.model import Service, Upstream

_AT_A_TIME = 32
_RESOLVE_S = 5.0


async def diagnose_names(snapshot: Snapshot, names: Names) -> AsyncIterator[Finding]:
    """Look whether the names that clients use resolve: the gateway's, that of any service by SNI, and aliases."""
    name = snapshot.configuration.gateway.name
    aliases = [alias for service in snapshot.policy.services.values() for alias in service.aliases]
    own, any_service, *others = await asyncio.gather(
        *(_resolved(names, each) for each in (name, f"{ANY_SERVICE}.{name}", *aliases))
    )
    if own:
        yield ok("name", f"{name} is {', '.join(sorted(own))}")
    else:
        yield warning("name", f"{name} does not resolve here", "clients need it to, or server_name in their profiles")
    if own and own & any_service:
        yield ok("wildcard", f"*.{name} leads there too")
    else:
        found = f"leads to {', '.join(sorted(any_service))}" if any_service else "does not resolve here"
        yield warning("wildcard", f"*.{name} {found}: clients that name services by SNI need it")
    for alias, found_at in zip(aliases, others, strict=True):
        if not found_at:
            yield warning("alias", f"{alias} does not resolve here")


async def diagnose_services(snapshot: Snapshot) -> AsyncIterator[Finding]:
    """Reach every upstream of every service, over TLS where the policy says so, and say nothing more to it.

    A service fails when none of its upstreams can be reached.
    """
    setup = Setup.make(snapshot)
    dialer = Dialer()
    bound = asyncio.Semaphore(_AT_A_TIME)

    async def tried(service: Service, upstream: Upstream) -> str | None:
        async with bound:
            return await _try(dialer, setup, replace(service, upstreams=(upstream,)))

    async def tried_all(service: Service) -> list[str | None]:
        return await asyncio.gather(*(tried(service, upstream) for upstream in service.upstreams))

    services = list(snapshot.policy.services.values())
    looking = [asyncio.create_task(tried_all(service), name=f"try {service.name}") for service in services]
    try:
        for service, look in zip(services, looking, strict=True):
            yield _service(service, await look)
    finally:
        for look in looking:
            look.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
        await dialer.close()


def diagnose_listening(addresses: Iterable[ListenAddress]) -> Iterable[Finding]:
    """Look whether a gateway that does not run could listen; each port is bound for a moment."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            with socket.create_server((address.host, address.port), family=family):
                yield ok("listen", f"{address} is free")
        except OSError as error:
            text = f"{address}: {os.strerror(error.errno) if error.errno else error}"
            # Somebody else's eyes: it may be the gateway that listens, and its user who may.
            unsure = error.errno in (errno.EADDRINUSE, errno.EACCES)
            advice = "`ss -ltnp` shows who listens there" if error.errno == errno.EADDRINUSE else ""
            yield warning("listen", text, advice) if unsure else failed("listen", text)


def _service(service: Service, troubles: list[str | None]) -> Finding:
    found = [trouble for trouble in troubles if trouble is not None]
    reached = ", ".join(str(each) for each, trouble in zip(service.upstreams, troubles, strict=True) if not trouble)
    if not found:
        return ok(service.name, f"{reached} can be reached")
    if reached:
        return warning(service.name, f"{'; '.join(found)} ({reached} can be reached)")
    return failed(service.name, "; ".join(found), "sessions would end with an upstream's reason (502 or 504)")


async def _try(dialer: Dialer, setup: Setup, service: Service) -> str | None:
    """Why the one upstream of `service` cannot be used; None: it can."""
    try:
        dialed = await dialer.dial(
            service, timeout_s=setup.snapshot.configuration.timeouts.connect_s, greet=_greeting(setup, service)
        )
    except DialFailed as error:
        return error.detail
    except Refused as error:
        return f"{service.upstreams[0]}: {error.message}"
    dialed.end.sock.close()
    return None


def _greeting(setup: Setup, service: Service) -> Greet | None:
    if (tls := service.tls) is None:
        return None
    # Where one is expected, no handshake begins without.
    header = {"off": b"", "v1": v1(None, None)}.get(service.proxy_protocol, v2(None, None))
    return lambda sock, upstream: greet(sock, upstream, header, setup.upstream_contexts[service.name], tls.server_name)


async def _resolved(names: Names, host: str) -> set[str]:
    try:
        async with asyncio.timeout(_RESOLVE_S):
            return {address[0] for _, address in await names.resolve(host)}
    except (Unresolved, TimeoutError):
        return set()

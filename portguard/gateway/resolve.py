"""Host names of services to addresses, without blocking the event loop, and remembered.

The system's resolver gives no time to live, so an answer is used for 30 s. After that the name is asked anew; while the
resolver fails or dawdles, the old answer serves up to 5 minutes: a resolver that is down must not take services with
it that are up. A failure is remembered for 2 s. A name is asked for once at a time, however many sessions wait for it.
"""

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

FRESH_S = 30.0
STALE_S = 300.0
FAILURE_S = 2.0
PATIENCE_S = 0.5
"""How long an old answer waits for a new one."""

MOST_NAMES = 1024
MOST_ADDRESSES = 16
"""Of one name; more are left out."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
FamilyAddress = tuple[socket.AddressFamily, SocketAddress]
"""Address family, and what connect() takes, its port left at 0."""

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, SocketAddress]
Lookup = Callable[[str], Awaitable[Sequence[AddressInfo]]]

# The resolver's word that the name has no address, rather than that it could not find out.
_NO_SUCH_NAME = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


class Unresolved(Exception):
    """A host name has no address now. The text says why."""


class Names:
    """The names that were asked for, and what became of it. Belongs to one event loop.

    `clock` counts seconds and `lookup` answers as getaddrinfo() does; None is the loop's own.
    """

    def __init__(self, *, lookup: Lookup | None = None, clock: Callable[[], float] | None = None):
        self._lookup = lookup or _getaddrinfo
        self._clock = clock
        self._known: dict[str, _Name] = {}  # the longest unused first

    async def resolve(self, host: str) -> tuple[FamilyAddress, ...]:
        """Return the addresses of `host`, at least one: by RFC 6724 as the system sorts them, families alternating.

        Cancelling it, as a timeout does, leaves the question to others who may wait for it. Raises Unresolved.
        """
        loop = asyncio.get_running_loop()
        clock = self._clock or loop.time
        now = clock()
        name = self._name(host)
        if name.addresses and now - name.resolved_s < FRESH_S:
            return name.addresses
        stale = name.addresses if now - name.resolved_s < STALE_S else ()
        if name.question is None:
            if now - name.failed_s < FAILURE_S:
                return name.still(stale)
            name.asked_s = now
            name.question = loop.create_task(self._ask(host, name, clock), name=f"resolve {host}")
        question = name.question
        patience_s = max(0.0, name.asked_s + PATIENCE_S - now) if stale else None
        await asyncio.wait({question}, timeout=patience_s)
        if not question.done():
            return stale
        if question.cancelled():
            raise Unresolved("the resolver was stopped")
        question.result()
        # The answer of a question that failed in between may be too old by now.
        return name.still(name.addresses if clock() - name.resolved_s < STALE_S else ())

    async def close(self) -> None:
        """Give up what is being asked; who waits for it gets Unresolved."""
        questions = [name.question for name in self._known.values() if name.question is not None]
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)

    def _name(self, host: str) -> "_Name":
        name = self._known.pop(host, None)
        if name is None:
            name = _Name()
            if len(self._known) >= MOST_NAMES:
                for oldest in [host for host, known in self._known.items() if known.question is None][:1]:
                    del self._known[oldest]
        self._known[host] = name
        return name

    async def _ask(self, host: str, name: "_Name", clock: Callable[[], float]) -> None:
        try:
            addresses = _alternating(await self._lookup(host))
            if not addresses:
                raise OSError("no address")
        except (OSError, UnicodeError) as error:  # UnicodeError: what IDNA cannot encode
            name.failed_s = clock()
            name.failure = getattr(error, "strerror", None) or str(error)
            if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
                name.addresses = ()
        else:
            name.resolved_s = clock()
            name.addresses = addresses
        finally:
            name.question = None


class _Name:
    """One name. Times are the clock's seconds."""

    __slots__ = ("addresses", "asked_s", "failed_s", "failure", "question", "resolved_s")

    def __init__(self) -> None:
        self.addresses: tuple[FamilyAddress, ...] = ()
        self.resolved_s = float("-inf")
        self.failure = ""
        self.failed_s = float("-inf")
        self.asked_s = float("-inf")
        self.question: asyncio.Task[None] | None = None

    def still(self, addresses: tuple[FamilyAddress, ...]) -> tuple[FamilyAddress, ...]:
        if not addresses:
            raise Unresolved(self.failure)
        return addresses


async def _getaddrinfo(host: str) -> Sequence[AddressInfo]:
    # Without AI_ADDRCONFIG: it ignores loopback addresses, and a name of /etc/hosts may have nothing else.
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    # Its type allows for a Python that was built without IPv6.
    return cast(Sequence[AddressInfo], infos)


def _alternating(infos: Sequence[AddressInfo]) -> tuple[FamilyAddress, ...]:
    """The distinct addresses, families taking turns (RFC 8305, section 4), as the first family came first."""
    by_family: dict[socket.AddressFamily, dict[FamilyAddress, None]] = {}
    for family, _, _, _, address in infos:
        by_family.setdefault(family, {})[family, address] = None
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_family.values()))
    return tuple(address for address in turns if address is not None)[:MOST_ADDRESSES]

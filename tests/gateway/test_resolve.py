import asyncio
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from portguard.gateway import resolve
from portguard.gateway.resolve import AddressInfo, FamilyAddress, Names, Unresolved

V4, V6 = socket.AF_INET, socket.AF_INET6


def info(address: str) -> AddressInfo:
    if ":" in address:
        return V6, socket.SOCK_STREAM, 6, "", (address, 0, 0, 0)
    return V4, socket.SOCK_STREAM, 6, "", (address, 0)


def hosts(addresses: Sequence[FamilyAddress]) -> list[str]:
    return [address[0] for _, address in addresses]


class Resolver:
    """A resolver that answers what it is told, when it is told, and a clock."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.asked: list[str] = []
        self.answer: Sequence[str] | BaseException = ["192.0.2.1"]
        self.free = asyncio.Event()
        self.free.set()
        self.names = Names(lookup=self.lookup, clock=lambda: self.now_s)

    async def lookup(self, host: str) -> list[AddressInfo]:
        self.asked.append(host)
        await self.free.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return [info(address) for address in self.answer]

    async def resolve(self) -> list[str]:
        return hosts(await self.names.resolve("db.test"))


@pytest.fixture
async def resolver() -> Resolver:
    return Resolver()


async def test_the_systems_resolver_knows_localhost_and_not_every_name() -> None:
    names = Names()
    assert set(await names.resolve("localhost")) <= {(V4, ("127.0.0.1", 0)), (V6, ("::1", 0, 0, 0))}
    with pytest.raises(Unresolved):
        await names.resolve("nobody.invalid")


async def test_asking_the_system_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_by = []
    getaddrinfo = socket.getaddrinfo

    def watched(*args: Any, **options: Any) -> Any:
        asked_by.append(threading.current_thread())
        return getaddrinfo(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    assert await Names().resolve("localhost")
    assert threading.main_thread() not in asked_by  # uvloop asks without Python's function


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test", "\udcff"])
async def test_a_name_that_cannot_be_asked_for_is_unresolved(host: str) -> None:
    with pytest.raises(Unresolved):
        await Names().resolve(host)


async def test_an_answer_serves_for_30_seconds(resolver: Resolver) -> None:
    assert await resolver.resolve() == ["192.0.2.1"]
    resolver.answer = ["192.0.2.2"]
    resolver.now_s += 29.9
    assert await resolver.resolve() == ["192.0.2.1"]
    resolver.now_s += 0.1
    assert await resolver.resolve() == ["192.0.2.2"]
    assert resolver.asked == ["db.test"] * 2


async def test_names_are_kept_apart(resolver: Resolver) -> None:
    await resolver.resolve()
    resolver.answer = ["192.0.2.2"]
    assert hosts(await resolver.names.resolve("other.test")) == ["192.0.2.2"]
    assert await resolver.resolve() == ["192.0.2.1"]


async def test_families_alternate_and_nothing_comes_twice(resolver: Resolver) -> None:
    resolver.answer = ["2001:db8::1", "2001:db8::2", "2001:db8::1", "2001:db8::3", "192.0.2.1"]
    assert await resolver.resolve() == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"]


async def test_only_so_many_addresses_of_a_name_are_taken(resolver: Resolver) -> None:
    resolver.answer = [f"192.0.2.{number}" for number in range(100)]
    assert await resolver.resolve() == list(resolver.answer)[: resolve.MOST_ADDRESSES]


async def test_while_the_resolver_fails_the_old_answer_serves_for_5_minutes(resolver: Resolver) -> None:
    await resolver.resolve()
    resolver.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    resolver.now_s += 299.9
    assert await resolver.resolve() == ["192.0.2.1"]
    resolver.now_s += 0.1
    with pytest.raises(Unresolved, match="Temporary failure in name resolution"):
        await resolver.resolve()
    assert len(resolver.asked) == 2  # the last failure was remembered


async def test_the_word_that_there_is_no_such_name_ends_an_old_answer(resolver: Resolver) -> None:
    await resolver.resolve()
    resolver.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    resolver.now_s += 31
    with pytest.raises(Unresolved, match="Name or service not known"):
        await resolver.resolve()


async def test_a_failure_is_remembered_for_2_seconds(resolver: Resolver) -> None:
    resolver.answer = OSError("no resolver")
    with pytest.raises(Unresolved, match="no resolver"):
        await resolver.resolve()
    resolver.answer = ["192.0.2.1"]
    resolver.now_s += 1.9
    with pytest.raises(Unresolved, match="no resolver"):
        await resolver.resolve()
    assert len(resolver.asked) == 1
    resolver.now_s += 0.1
    assert await resolver.resolve() == ["192.0.2.1"]


async def test_no_address_at_all_is_a_failure(resolver: Resolver) -> None:
    resolver.answer = []
    for _ in range(2):
        with pytest.raises(Unresolved, match="no address"):
            await resolver.resolve()
    assert len(resolver.asked) == 1


async def test_many_that_wait_for_a_name_ask_once(resolver: Resolver) -> None:
    resolver.free.clear()
    waiting = [asyncio.ensure_future(resolver.resolve()) for _ in range(50)]
    await asyncio.sleep(0)
    resolver.free.set()
    assert await asyncio.gather(*waiting) == [["192.0.2.1"]] * 50
    assert len(resolver.asked) == 1


async def test_one_that_gives_up_takes_no_answer_from_the_others(resolver: Resolver) -> None:
    resolver.free.clear()
    first, second = (asyncio.ensure_future(resolver.resolve()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    resolver.free.set()
    assert await second == ["192.0.2.1"]
    assert len(resolver.asked) == 1


async def test_an_old_answer_waits_a_little_for_a_new_one(resolver: Resolver) -> None:
    await resolver.resolve()
    resolver.free.clear()
    resolver.now_s += 31
    waiting = asyncio.ensure_future(resolver.resolve())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    resolver.answer = ["192.0.2.2"]
    resolver.free.set()
    assert await waiting == ["192.0.2.2"]


async def test_an_old_answer_does_not_wait_long_for_a_resolver_that_dawdles(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "PATIENCE_S", 0.01)
    await resolver.resolve()
    resolver.free.clear()
    resolver.now_s += 31
    assert await resolver.resolve() == ["192.0.2.1"]
    # The next one does not begin to wait anew.
    resolver.now_s += 1
    waits: list[object] = []
    real_wait = asyncio.wait

    async def wait(tasks: set[asyncio.Task[None]], **limits: Any) -> object:
        waits.append(limits["timeout"])
        return await real_wait(tasks, **limits)

    monkeypatch.setattr(asyncio, "wait", wait)
    assert await resolver.resolve() == ["192.0.2.1"]
    assert waits == [0]
    assert len(resolver.asked) == 2
    resolver.answer = ["192.0.2.2"]
    resolver.free.set()
    question = resolver.names._known["db.test"].question
    assert question is not None
    await question
    assert await resolver.resolve() == ["192.0.2.2"]


async def test_an_old_answer_that_grows_too_old_while_it_waits_is_not_taken(resolver: Resolver) -> None:
    await resolver.resolve()
    resolver.free.clear()
    resolver.now_s += 299
    waiting = asyncio.ensure_future(resolver.resolve())
    await asyncio.sleep(0)
    resolver.now_s += 2
    resolver.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    resolver.free.set()
    with pytest.raises(Unresolved, match="try again"):
        await waiting


async def test_when_there_are_too_many_names_the_longest_unused_is_forgotten(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "MOST_NAMES", 2)
    for host in ("a", "b", "a", "c", "a", "b"):
        await resolver.names.resolve(host)
    assert resolver.asked == ["a", "b", "c", "b"]


async def test_closing_ends_what_is_being_asked(resolver: Resolver) -> None:
    resolver.free.clear()
    waiting = asyncio.ensure_future(resolver.resolve())
    await asyncio.sleep(0)
    await resolver.names.close()
    with pytest.raises(Unresolved, match="the resolver was stopped"):
        await waiting


async def test_a_fault_in_the_lookup_itself_is_not_taken_for_a_failing_resolver(resolver: Resolver) -> None:
    resolver.answer = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        await resolver.resolve()
    resolver.answer = ["192.0.2.1"]
    assert await resolver.resolve() == ["192.0.2.1"]

"""Users and groups as the host knows them now, without making an event loop wait for the directory they come from."""

import asyncio
import grp
import os
import pwd
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from portguard.control.access import Account

_FRESH_S = 2.0
"""How long an answer is used again: a change of a group acts after that, and `top` asks LDAP no more often."""

_PATIENCE_S = 5.0
_MOST_KEPT = 256
_THREADS = 2  # of their own: a directory that hangs must not take the threads that others need


class DirectoryUnavailable(Exception):
    """The host did not say in time who a user is."""


def look_up(uid: int, groups: frozenset[str]) -> Account | None:
    """Return the user, with those of `groups` that it is in, by primary or supplementary group; None: unknown.

    Waits for files, or for whatever network service nsswitch.conf(5) names. Raises OSError.
    """
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return None
    if not groups:
        return Account(user.pw_name, frozenset())
    member_of = set(os.getgrouplist(user.pw_name, user.pw_gid))
    held = set()
    for name in groups:
        try:
            if grp.getgrnam(name).gr_gid in member_of:
                held.add(name)
        except KeyError:
            continue
    return Account(user.pw_name, frozenset(held))


class HostAccounts:
    """Looks users up in threads, each once at a time, and remembers for a moment. Belongs to one event loop."""

    def __init__(
        self,
        groups: frozenset[str],
        *,
        look: Callable[[int, frozenset[str]], Account | None] = look_up,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._groups = groups
        self._look = look
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="accounts of the host")
        self._looking: dict[int, asyncio.Future[Account | None]] = {}
        self._known: dict[int, tuple[float, Account | None]] = {}

    async def account(self, uid: int) -> Account | None:
        """Return the user, None for an unknown one. Raises DirectoryUnavailable."""
        known = self._known.get(uid)
        if known is not None and self._clock() - known[0] < _FRESH_S:
            return known[1]
        looking = self._looking.get(uid)
        if looking is None:
            loop = asyncio.get_running_loop()
            looking = self._looking[uid] = loop.run_in_executor(self._threads, self._look, uid, self._groups)
            looking.add_done_callback(lambda done: self._looked(uid, done))
        try:
            # Others may be waiting for it too: whoever loses patience must not end it for them.
            return await asyncio.wait_for(asyncio.shield(looking), _PATIENCE_S)
        except TimeoutError as error:
            raise DirectoryUnavailable(f"no answer within {_PATIENCE_S:.0f} s") from error
        except OSError as error:
            raise DirectoryUnavailable(error.strerror or str(error)) from error

    def close(self) -> None:
        """Look nobody up any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _looked(self, uid: int, done: asyncio.Future[Account | None]) -> None:
        del self._looking[uid]
        if done.cancelled() or done.exception() is not None:
            return
        while len(self._known) >= _MOST_KEPT:
            del self._known[next(iter(self._known))]
        self._known[uid] = self._clock(), done.result()

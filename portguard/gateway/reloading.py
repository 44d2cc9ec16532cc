"""Reload: another configuration for the gateway while it runs, all of it or nothing.

read      all files, and check them                   nothing has changed yet, and any error leaves it so
bind      addresses that are new                      likewise
prepare   have every worker make itself ready         likewise
apply     swap one reference, here and in every worker, and look at every live session again
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from portguard.errors import ConfigurationError, PortguardError
from portguard.gateway.audit_trail import AuditTrail, Loading
from portguard.gateway.bundle import Bundle, read_bundle
from portguard.gateway.configuration import Configuration
from portguard.gateway.host import require_confinement
from portguard.gateway.listeners import Binding, Listener, listeners, written_address
from portguard.gateway.notify import Notifier
from portguard.gateway.snapshot import Snapshot, build
from portguard.gateway.workers import Workers
from portguard.observe import log

_NEEDS_RESTART = (
    "gateway.state",
    "gateway.control",
    "gateway.workers",
    "capacity.max_sessions",
    "ledger.url",
    "ledger.fleet",
    "ledger.password_file",
    "audit.path",
    "audit.rotate_size",
    "audit.rotate_age_s",
    "audit.sync",
    "audit.copy",
    "control.group",
)
"""What stays as it was when the gateway started."""

_OUTLASTS_REEXEC = {"gateway.control", "capacity.max_sessions", "control.group"}
"""What also another version of the program takes over as it was."""

_WRITTEN = {"audit.rotate_age_s": "audit.rotate_age"}

Bound = tuple[tuple[Listener, socket.socket], ...]


@dataclass(frozen=True, slots=True)
class InForce:
    """By what the gateway works, and the sockets that it listens on for that: clients' in order, and the metrics'."""

    bundle: Bundle
    snapshot: Snapshot = field(repr=False)
    bound: Bound
    metrics: socket.socket

    def log_listening(self, before: "InForce | None" = None) -> None:
        """Log on which addresses the gateway listens that it did not listen on before; None: on none."""
        known = set(_sockets(before)) if before is not None else set()
        for listener, sock in self.bound:
            if sock not in known:
                service = listener.service.name if listener.service is not None else None
                log.event("info", "gateway.listen", address=written_address(sock), service=service)
        if self.metrics not in known:
            log.event("info", "metrics.listen", address=written_address(self.metrics))


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload has done. `closed` sessions have lost their right; `needs_restart` are keys that have changed."""

    revision: str
    changed: bool
    closed: int
    needs_restart: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FailedReload:
    """When (seconds since the epoch), and the first thing that was wrong."""

    at_s: float
    problem: str


class Reloader:
    """Reloads, one after the other. Belongs to the running loop.

    `apply(before, after)` swaps what the supervisor works by, before anything else can happen; it must not fail.
    What it returns is awaited for the rest.
    """

    def __init__(
        self,
        in_force: InForce,
        *,
        workers: Workers,
        trail: AuditTrail,
        apply: Callable[[InForce, InForce], Awaitable[None]],
        notifier: Notifier,
    ):
        self.in_force = in_force
        self.last_read = in_force.bundle  # by the last attempt, whatever came of it
        self.failed: FailedReload | None = None  # the last one, unless one has succeeded since
        self.needs_restart: tuple[str, ...] = ()  # keys that the files have otherwise than it is, since the last reload
        self.loaded_by: str | None = None  # who had what is in force loaded, and why; None: it was there at the start
        self.loaded_message: str | None = None
        self._workers = workers
        self._trail = trail
        self._apply = apply
        self._notifier = notifier
        self._one = asyncio.Lock()
        self._due = False  # a reload that nobody waits for will begin
        self._tasks: set[asyncio.Task[None]] = set()

    def paused(self) -> asyncio.Lock:
        """What is held while nothing may be reloaded: `async with`; a reload that is under way ends first."""
        return self._one

    def soon(self, by: str) -> "asyncio.Task[None] | None":
        """Reload for somebody who does not wait; nothing if such a reload is to begin anyway."""
        if self._due:
            return None
        self._due = True
        task = asyncio.get_running_loop().create_task(self.reload_quietly(by, begun=self._begun), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def reload_quietly(self, by: str, *, begun: Callable[[], None] = lambda: None) -> None:
        """Reload; what goes wrong is in the log and the audit."""
        with contextlib.suppress(PortguardError):
            await self.reload(by=by, message=None, begun=begun)

    def _begun(self) -> None:
        self._due = False

    async def reload(self, *, by: str, message: str | None, begun: Callable[[], None] = lambda: None) -> Reloaded:
        """Reload what the files say now. Raises ConfigurationError or another PortguardError, with all as it was.

        `begun()` is called when its turn has come.
        """
        async with self._one:
            begun()
            self._notifier.reloading(time.monotonic())
            try:
                reloaded = await self._reload(by, message)
            except PortguardError as error:
                problems = error.problems if isinstance(error, ConfigurationError) else (error,)
                self.failed = FailedReload(time.time(), str(problems[0]))
                for problem in problems:
                    log.event("error", "gateway.reload_failed", message=str(problem))
                self._trail.not_loaded("; ".join(map(str, problems)), by=by, message=message)
                raise
            finally:
                self._notifier.reloaded()
            self.failed, self.needs_restart = None, reloaded.needs_restart
            log.event(
                "info",
                "gateway.reload",
                by=by,
                message=message,
                policy=reloaded.revision,
                changed=reloaded.changed,
                closed=reloaded.closed,
                needs_restart=", ".join(reloaded.needs_restart) or None,
            )
            return reloaded

    def still_needs_restart(self, keys: Iterable[str]) -> None:
        """Say that to the program whose place this one has taken these keys needed a restart."""
        self.needs_restart = tuple(key for key in keys if key in _OUTLASTS_REEXEC)

    async def _reload(self, by: str, message: str | None) -> Reloaded:
        before = self.in_force
        self.last_read = bundle = await asyncio.to_thread(read_bundle, before.bundle.configuration_path)
        snapshot = await asyncio.to_thread(build, bundle)
        require_confinement(snapshot.configuration)
        kept, needs_restart = _keep_what_needs_a_restart(before.snapshot.configuration, snapshot.configuration)
        if snapshot.revision == before.snapshot.revision:
            return Reloaded(snapshot.revision, False, 0, needs_restart, snapshot.warnings)
        snapshot = replace(snapshot, configuration=kept)
        after = _bind(before, bundle, snapshot)
        try:
            await self._workers.prepare(bundle)
            loading = Loading(bundle, snapshot, by, message)
            policy_kept = await asyncio.to_thread(loading.keep)
        except BaseException:
            _close(set(_sockets(after)) - set(_sockets(before)))
            raise
        closing = self._workers.apply(bundle)
        self.in_force = after
        self.loaded_by, self.loaded_message = by, message
        rest = self._apply(before, after)
        after.log_listening(before)
        self._trail.loaded(loading, kept=policy_kept)
        for warning in snapshot.warnings:
            log.event("warning", "configuration.warning", message=warning)
        await rest
        return Reloaded(snapshot.revision, True, await closing, needs_restart, snapshot.warnings)


def _keep_what_needs_a_restart(before: Configuration, after: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    changed = []
    only_state = _audit_path_as_written(before) == _audit_path_as_written(after)
    for place in _NEEDS_RESTART:
        section, _, key = place.partition(".")
        old, new = getattr(before, section), getattr(after, section)
        if getattr(old, key) != getattr(new, key):
            if place != "audit.path" or not only_state:
                changed.append(_WRITTEN.get(place, place))
            after = replace(after, **{section: replace(new, **{key: getattr(old, key)})})
    return after, tuple(changed)


def _audit_path_as_written(configuration: Configuration) -> str:
    """`audit.path` as far as it does not follow from `gateway.state`."""
    path, state = configuration.audit.path, configuration.gateway.state
    return os.path.relpath(path, state) if path.startswith(f"{state}/") else path


def _bind(before: InForce, bundle: Bundle, snapshot: Snapshot) -> InForce:
    """Find or make a socket for each address. Raises ConfigurationError, with nothing left open."""
    configuration = snapshot.configuration
    free = list(before.bound)
    bound: list[tuple[Listener, socket.socket]] = []
    with Binding(configuration.path) as binding:
        for listener in listeners(configuration, snapshot.policy):
            same = next((one for one in free if one[0].address == listener.address), None)
            if same is not None:
                free.remove(same)
                bound.append((listener, same[1]))
            else:
                bound.append((listener, binding.bind(listener)))
        metrics = before.metrics
        if configuration.metrics.listen != before.snapshot.configuration.metrics.listen:
            metrics = binding.bind_metrics(configuration.metrics.listen)
        return InForce(bundle, snapshot, tuple(bound), metrics)


def _sockets(in_force: InForce) -> list[socket.socket]:
    return [*(sock for _, sock in in_force.bound), in_force.metrics]


def _close(sockets: set[socket.socket]) -> None:
    for sock in sockets:
        sock.close()

"""What one supervisor leaves to the next, which takes its place in the same process, execve(2): a memory file.

It holds a JSON document, and the bundle that is in force. Descriptors are those of the process, and keep their numbers.
"""

import json
import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from portguard.control.listening import ControlSocket
from portguard.errors import PortguardError
from portguard.gateway import messages
from portguard.gateway.bundle import Bundle
from portguard.gateway.notify import Notifier
from portguard.gateway.reloading import InForce
from portguard.gateway.slot_tables import SlotTables

VERSION = 2
_VARIABLE = "PORTGUARD_HANDOVER"


class NotTakenOver(PortguardError):
    """Another version of the program cannot go on with what this one leaves. Nothing has changed."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What is left. `state` is what the parts of the supervisor tell of themselves, by their names."""

    bundle: Bundle
    bound: tuple[int, ...]  # descriptors of the sockets that clients connect to, in the listeners' order
    metrics: int
    control: Mapping[str, Any] = field(repr=False)
    max_sessions: int
    slots: tuple[tuple[int, int], ...]  # workers' numbers and the descriptors of their slot tables
    notifier: tuple[str | None, float | None]  # address and interval of keep-alives, in seconds
    state: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(
        cls,
        in_force: InForce,
        control: ControlSocket,
        slots: SlotTables,
        notifier: Notifier,
        state: Mapping[str, Any],
    ) -> "Handover":
        """What is to be left."""
        return cls(
            in_force.bundle,
            tuple(sock.fileno() for _, sock in in_force.bound),
            in_force.metrics.fileno(),
            {
                "descriptor": control.sock.fileno(),
                "path": control.path,
                "group": in_force.snapshot.configuration.control.group,
                "device": control.device,
                "inode": control.inode,
                "warning": control.warning,
            },
            slots.capacity,
            tuple(slots.descriptors),
            notifier.passed_on,
            state,
        )

    @property
    def descriptors(self) -> Iterable[int]:
        """All that the next program goes on with."""
        workers = [descriptor for _, _, descriptor, *_ in self.state["workers"]["workers"]]
        slots = [descriptor for _, descriptor in self.slots]
        return (*self.bound, self.metrics, self.control["descriptor"], *slots, *workers)

    def write(self) -> int:
        """Return the memory file's descriptor. Raises OSError."""
        document = {
            "version": VERSION,
            "protocol": messages.VERSION,
            "bound": self.bound,
            "metrics": self.metrics,
            "control": dict(self.control),
            "max_sessions": self.max_sessions,
            "slots": self.slots,
            "notifier": self.notifier,
            "state": self.state,
        }
        descriptor = os.memfd_create("portguard-handover", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(json.dumps(document).encode() + b"\n" + self.bundle.to_bytes())
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @classmethod
    def read(cls, descriptor: int) -> "Handover":
        """Read a memory file, which stays open. Raises NotTakenOver for one that this version does not understand."""
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            line, _, bundle = file.read().partition(b"\n")
        document = json.loads(line)
        for key, ours in (("version", VERSION), ("protocol", messages.VERSION)):
            if document.get(key) != ours:
                raise NotTakenOver(f"handover: expected {key} {ours}, got {document.get(key)}: a restart is needed")
        return cls(
            Bundle.from_bytes(bundle),
            tuple(document["bound"]),
            document["metrics"],
            document["control"],
            document["max_sessions"],
            tuple((worker, slots) for worker, slots in document["slots"]),
            tuple(document["notifier"]),
            document["state"],
        )

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> "Handover | None":
        """What was left to this process, whose descriptors are its own again; None when it was started anew."""
        descriptor = environment.pop(_VARIABLE, None)
        if descriptor is None:
            return None
        handover = cls.read(int(descriptor))
        os.close(int(descriptor))
        for each in handover.descriptors:
            os.set_inheritable(each, False)
        return handover

    def leave(self, environment: MutableMapping[str, str]) -> None:
        """Make it what the program finds that this process becomes next. Raises OSError."""
        for each in (descriptor := self.write(), *self.descriptors):
            os.set_inheritable(each, True)
        environment[_VARIABLE] = str(descriptor)

    def control_socket(self) -> ControlSocket:
        """The control socket, taken over."""
        control = self.control
        sock = _adopted(control["descriptor"])
        return ControlSocket(sock, control["path"], control["device"], control["inode"], control["warning"])

    def sockets(self) -> tuple[list[socket.socket], socket.socket]:
        """The sockets that clients connect to, and the metrics', taken over."""
        return [_adopted(descriptor) for descriptor in self.bound], _adopted(self.metrics)


def _adopted(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock

"""How a supervisor comes to serve: from its files, or from what another version of the program has left."""

import os
import signal
from dataclasses import replace

import uvloop

from portguard.control.listening import ControlSocket
from portguard.control.listening import listen as listen_to_operators
from portguard.gateway.activation import receive
from portguard.gateway.audit_trail import AuditTrail, open_recorder
from portguard.gateway.bundle import read_bundle
from portguard.gateway.configuration import Configuration
from portguard.gateway.confinement import landlock
from portguard.gateway.descriptors import raise_descriptor_limit
from portguard.gateway.fleet_ledger import open_ledger
from portguard.gateway.handover import Handover
from portguard.gateway.host import host_warnings, require_confinement
from portguard.gateway.listeners import listen, listeners
from portguard.gateway.notify import Notifier
from portguard.gateway.reexec import keep_name
from portguard.gateway.reloading import InForce
from portguard.gateway.slot_tables import SlotTables
from portguard.gateway.snapshot import build
from portguard.gateway.supervisor import Supervisor
from portguard.observe import log
from portguard.observe.faults import Faults


def serve(configuration_path: str) -> int:
    """Run the gateway until it is told to end; return the exit code, 1 when sessions were cut.

    Raises ConfigurationError before anything listens.
    """
    handover = Handover.take(os.environ)
    return _begin(configuration_path) if handover is None else _take_over(handover)


def _begin(configuration_path: str) -> int:
    for number in (signal.SIGHUP, signal.SIGUSR2):  # they would end the process, and what they ask for is done anyway
        signal.signal(number, signal.SIG_IGN)
    notifier = Notifier.take(os.environ, os.getpid())
    handed_over = receive(os.environ, os.getpid())
    bundle = read_bundle(configuration_path)
    snapshot = build(bundle)
    configuration = snapshot.configuration
    log.configure(json_lines=configuration.log.format == "json", level=configuration.log.level)
    for warning in (*snapshot.warnings, *host_warnings(configuration)):
        log.event("warning", "configuration.warning", message=warning)
    require_confinement(configuration)
    raise_descriptor_limit(configuration.capacity, configuration_path)
    bound, metrics = listen(configuration, snapshot.policy, handed_over)
    slots = SlotTables(configuration.capacity.max_sessions)
    return _serve(InForce(bundle, snapshot, tuple(bound), metrics), slots, notifier, None)


def _take_over(handover: Handover) -> int:
    keep_name()
    snapshot = build(handover.bundle)
    configuration = _as_taken_over(snapshot.configuration, handover)
    snapshot = replace(snapshot, configuration=configuration)
    log.configure(json_lines=configuration.log.format == "json", level=configuration.log.level)
    clients, metrics = handover.sockets()
    bound = tuple(zip(listeners(configuration, snapshot.policy), clients, strict=True))
    in_force = InForce(handover.bundle, snapshot, bound, metrics)
    slots = SlotTables.adopted(handover.max_sessions, handover.slots)
    return _serve(in_force, slots, Notifier(*handover.notifier), handover)


def _as_taken_over(configuration: Configuration, handover: Handover) -> Configuration:
    """What the files say now, but for what stays as the first program has made it: that needs a restart still."""
    control = handover.control
    group = control.get("group", configuration.control.group)  # which earlier versions do not tell
    return replace(
        configuration,
        gateway=replace(configuration.gateway, control=control["path"]),
        control=replace(configuration.control, group=group),
        capacity=replace(configuration.capacity, max_sessions=handover.max_sessions),
    )


def _serve(in_force: InForce, slots: SlotTables, notifier: Notifier, handover: Handover | None) -> int:
    configuration = in_force.snapshot.configuration
    ledger = open_ledger(configuration)
    recorder = open_recorder(configuration)
    control = _control_socket(configuration) if handover is None else handover.control_socket()
    offered = landlock()
    if offered.abi is not None:
        log.event("info", "workers.confined", message=str(offered))
    else:
        log.event("warning", "workers.unconfined", message=offered.missing)
    floods = log.Floods()
    Faults(floods).watch_process()

    async def run() -> int:
        trail = AuditTrail(recorder, required=configuration.audit.required)
        return await Supervisor(in_force, slots, control, floods, trail, ledger, notifier).run(handover)

    return uvloop.run(run())


def _control_socket(configuration: Configuration) -> ControlSocket:
    return listen_to_operators(configuration.gateway.control, configuration.control.group, configuration.path)

"""Whether a gateway could begin on this host, as far as can be seen without making or changing anything.

Serving finds out by doing it. Rights are not looked at: whoever checks may be another user than the gateway's.
"""

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from portguard.control.access import Principal
from portguard.control.listening import check_place
from portguard.errors import ConfigurationError, Problem
from portguard.gateway.bundle import Bundle
from portguard.gateway.configuration import DEFAULT_ADMINS, DEFAULT_OPERATORS, Configuration, read_configuration
from portguard.gateway.confinement import landlock
from portguard.gateway.descriptors import descriptor_problem
from portguard.gateway.fleet_ledger import ledger_password, require_redis


def host_problems(bundle: Bundle) -> list[Problem]:
    """What would keep a gateway from serving here; nothing where its configuration is wrong by itself."""
    path = bundle.configuration_path
    of_configuration: list[Problem] = []
    if path not in bundle.files:
        return []
    configuration = read_configuration(path, bundle.files[path], of_configuration)
    if of_configuration:
        return []
    state, audit = configuration.gateway.state, configuration.audit.path
    problems = list(_folder_problems(state, "gateway.state"))
    if audit != "-" and not problems:
        problems += _audit_problems(audit)
    too_many = descriptor_problem(configuration.capacity, configuration.path)
    problems += [too_many] if too_many is not None else []
    checks: tuple[Callable[[], object], ...] = (
        lambda: require_confinement(configuration),
        lambda: check_place(configuration.gateway.control, configuration.path),
        lambda: require_redis(configuration),
        lambda: ledger_password(configuration),
    )
    for check in checks:
        try:
            check()
        except ConfigurationError as error:
            problems += error.problems
    return problems


def require_confinement(configuration: Configuration) -> None:
    """Raise ConfigurationError where workers are to be confined and the kernel does not know how to."""
    offered = landlock()
    if configuration.gateway.confinement == "required" and offered.abi is None:
        expected = 'a host with Landlock, as it is "required"'
        raise ConfigurationError([Problem(configuration.path, "gateway.confinement", expected, offered.missing)])


def host_warnings(configuration: Configuration) -> Iterator[str]:
    """Users and groups that are given a level and that this host does not know, which is most likely a slip.

    Those that are given one by default are passed over: they come with an installation, which not every host has.
    """
    control = configuration.control
    for key in ("viewers", "operators", "admins"):
        for index, principal in enumerate(getattr(control, key)):
            if principal not in (*DEFAULT_OPERATORS, *DEFAULT_ADMINS) and not _is_known(principal):
                kind, name = principal.kind, principal.name
                yield f"{configuration.path}: control.{key}[{index}]: expected a {kind} of this host, got {name}"


def _is_known(principal: Principal) -> bool:
    try:
        if principal.kind == "user":
            pwd.getpwnam(principal.name)
        else:
            grp.getgrnam(principal.name)
    except KeyError:
        return False
    except OSError:
        pass  # a directory that does not answer says nothing about who is in it
    return True


def _audit_problems(path: str) -> Iterator[Problem]:
    yield from _folder_problems(os.path.dirname(path), "audit.path")
    if os.path.isdir(path):
        yield Problem(path, "", "a file that can be appended to (audit.path)", "is a directory")


def _folder_problems(folder: str, key: str) -> Iterator[Problem]:
    """A folder that is missing is no problem, as serving makes it, unless something else is in its way."""
    for path in (Path(folder), *Path(folder).parents):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return  # the gateway's user may be let in where this one is not
        if not stat.S_ISDIR(mode):
            yield Problem(folder, "", f"a folder that can be written ({key})", "not a directory")
        return

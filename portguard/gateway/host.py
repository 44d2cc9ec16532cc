"""Whether a gateway could begin on this host, as far as can be seen without making or changing anything.

Serving finds out by doing it. Rights are not looked at: whoever checks may be another user than the gateway's.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from portguard.control.listening import check_place
from portguard.errors import ConfigurationError, Problem
from portguard.gateway.configuration import Configuration
from portguard.gateway.descriptors import descriptor_problem


def host_problems(configuration: Configuration) -> list[Problem]:
    """What would keep a gateway of this configuration, which is right by itself, from serving here."""
    state, audit = configuration.gateway.state, configuration.audit.path
    problems = list(_folder_problems(state, "gateway.state"))
    if audit != "-" and not problems:
        problems += _audit_problems(audit)
    too_many = descriptor_problem(configuration.capacity, configuration.path)
    problems += [too_many] if too_many is not None else []
    try:
        check_place(configuration.gateway.control, configuration.path)
    except ConfigurationError as error:
        problems += error.problems
    return problems


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

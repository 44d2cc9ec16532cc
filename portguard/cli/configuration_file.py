"""The gateway's configuration as commands look into it: the file alone, and none of those that it names."""

import os
from collections.abc import Collection
from pathlib import Path

from portguard.cli.options import DEFAULT_CONFIGURATION
from portguard.errors import ConfigurationError, Problem
from portguard.gateway.configuration import Configuration, read_configuration


def configuration_at(path: str, *, needed: Collection[str] | None = None) -> Configuration:
    """Read the configuration. Raises ConfigurationError.

    `needed` are the keys without which it is of no use, "" the file as a whole; what is wrong with others is passed
    over. None: all are.
    """
    path = os.path.abspath(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        found = (error.strerror or str(error)).lower()
        if path == DEFAULT_CONFIGURATION and isinstance(error, FileNotFoundError):
            found += "; -c or $PORTGUARD_CONFIG names another"
        raise ConfigurationError([Problem(path, "", "a file that can be read (the configuration)", found)]) from error
    problems: list[Problem] = []
    configuration = read_configuration(path, content, problems)
    if any(needed is None or problem.key in needed for problem in problems):
        raise ConfigurationError(problems)
    return configuration

"""The group `portguard cert`. What concerns an authority, and what a client does for itself, live apart."""

import click

from portguard.cli.groups import LazyGroup

# A client's commands are to load where the authority's do not: on Windows, and without waiting for them.
_COMMANDS = {
    "gateway": "portguard.cli.issuing:gateway",
    "issue": "portguard.cli.issuing:issue",
    "list": "portguard.cli.issued_certificates:list_certificates",
    "renew": "portguard.cli.renew:renew",
    "revoke": "portguard.cli.revocation:revoke",
    "show": "portguard.cli.issued_certificates:show_certificate",
    "sign": "portguard.cli.signing:sign",
}


@click.group(cls=LazyGroup, modules=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def cert() -> None:
    """Issue certificates, look at them, revoke and renew them."""

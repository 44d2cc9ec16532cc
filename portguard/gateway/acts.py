"""What operators do over the control socket, in the words of the audit."""

from collections.abc import Mapping

from portguard.observe.audit.records import Field

_MOST_ARGUMENTS = 20
_MOST_ITEMS = 20
_LONGEST_NAME = 40
_LONGEST_TEXT = 500
_LARGEST = 2**63

_AS_COMMANDS = {"quotas": "quota"}


def act_event(method: str, path: str) -> str:
    """The event of an act, after the command that does it: `/v1/quotas/grant` is `admin.quota.grant`."""
    words = [_AS_COMMANDS.get(word, word) for word in path.split("/")[2:]]
    if method == "DELETE":
        words.append("delete")
    return ".".join(["admin", *words])


def act_arguments(given: Mapping[str, object]) -> dict[str, Field]:
    """What the act was given, cut to a size that no caller decides. What is missing is left out."""
    shown = {name[:_LONGEST_NAME]: _shown(value) for name, value in list(given.items())[:_MOST_ARGUMENTS]}
    arguments: dict[str, Field] = {name: value for name, value in shown.items() if value is not None}
    if (more := len(given) - _MOST_ARGUMENTS) > 0:
        arguments["…"] = f"and {more} more"
    return arguments


def _shown(value: object) -> Field:
    match value:
        case None | bool():
            return value
        case str():
            return _text(value)
        case int() | float():
            return value if -_LARGEST < value < _LARGEST else "a huge number"  # which includes NaN
        case list():
            items = [_text(item) if isinstance(item, str) else type(item).__name__ for item in value[:_MOST_ITEMS]]
            more = len(value) - _MOST_ITEMS
            return [*items, f"… and {more} more"] if more > 0 else items
        case _:
            return "an object"


def _text(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"

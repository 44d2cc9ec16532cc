"""Arguments of a request, taken apart."""

import pytest

from portguard.control.routes import Arguments, BadArgument


def refused(given, take):
    with pytest.raises(BadArgument) as caught:
        take(Arguments(given))
    return str(caught.value)


@pytest.mark.parametrize(("given", "text"), [({}, None), ({"a": None}, None), ({"a": ""}, None), ({"a": "x"}, "x")])
def test_a_text_is_a_string_or_missing(given, text):
    assert Arguments(given).text("a") == text


@pytest.mark.parametrize(
    ("given", "line"), [({}, ""), ({"a": None}, ""), ({"a": " \n"}, ""), ({"a": " CHG-1: é "}, "CHG-1: é")]
)
def test_a_line_is_a_text_for_people(given, line):
    assert Arguments(given).line("a", 8) == line


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a\nb", r"'a\nb', of 3 characters"), ("\x1b[2J", r"'\x1b[2J', of 4 characters"),
        ("\u202e", r"'\u202e', of 1 characters"), ("\ud800", r"'\ud800', of 1 characters"),
        ("x" * 99, f"'{'x' * 60}'…, of 99 characters"),
    ],
)  # fmt: skip
def test_a_line_that_could_look_like_something_else_is_told_of(value, found):
    told = refused({"a": value}, lambda given: given.line("a", 9))
    assert told == f"a: expected at most 9 printable characters, got {found}"


def test_a_line_that_is_needed_is_missed():
    told = refused({"a": " "}, lambda given: given.line("a", 9, shortest=1))
    assert told == "a: expected 1 to 9 printable characters, got nothing"


@pytest.mark.parametrize(
    ("given", "flag"), [({}, False), ({"a": False}, False), ({"a": True}, True), ({"a": "true"}, True)]
)
def test_a_flag_is_true_or_false(given, flag):
    assert Arguments(given).flag("a") is flag


@pytest.mark.parametrize(("given", "number"), [({}, None), ({"a": 1}, 1), ({"a": "9"}, 9), ({"a": 9}, 9)])
def test_an_integer_is_a_number_or_its_digits(given, number):
    assert Arguments(given).integer("a", 1, 9) == number


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, "0"), (10, "10"), ("10", "10"), (1.5, "1.5"), (True, "true"), ("1e3", "'1e3'"),
        ([], "an array"), ({}, "an object"), (10**70, "a huge number"), ("x" * 99, f"'{'x' * 60}'…"),
        ("\x1b[2J\u202e", r"'\x1b[2J\u202e'"),
    ],
)  # fmt: skip
def test_a_wrong_integer_is_told_of(value, found):
    assert refused({"a": value}, lambda given: given.integer("a", 1, 9)) == (
        f"a: expected an integer, 1 to 9, got {found}"
    )


@pytest.mark.parametrize("value", [1, True, [], {}])
def test_a_wrong_text_is_told_of(value):
    assert refused({"a": value}, lambda given: given.text("a")).startswith("a: expected a string, got ")


@pytest.mark.parametrize("value", [1, 0, "yes", []])
def test_a_wrong_flag_is_told_of(value):
    assert refused({"a": value}, lambda given: given.flag("a")).startswith("a: expected true or false, got ")


def test_an_unknown_argument_is_never_passed_over():
    def take(arguments):
        arguments.text("identity")
        arguments.flag("all")
        arguments.finish()

    take(Arguments({"identity": "alice"}))
    assert refused({"identity": "alice", "al": True}, take) == "'al': expected one of the arguments identity, all"
    assert refused({"x": 1}, Arguments.finish) == "'x': expected no arguments"

import csv
import io

import pytest

from portguard.cli.spreadsheets import csv_lines


def cell(text):
    lines = list(csv_lines(["head"], [[text, "x"]]))
    assert len(lines) == 2
    return lines[1].removesuffix(',"x"')


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@dba", "  =1", "\uff1d1"])
def test_what_a_spreadsheet_takes_for_a_formula_is_text(text):
    assert cell(text) == f'"\'{text}"'


@pytest.mark.parametrize("text", ["alice", "a=b", "corp:*@a", "", "'", "10.0.0.0/8", "a;=b"])
def test_what_is_no_formula_stays_as_it_is_and_is_quoted(text):
    assert cell(text) == f'"{text}"'


def test_nothing_gets_out_of_its_cell():
    assert cell('a","=1+1') == '"a"",""=1+1"'
    assert cell("a\n=1+1\r\t\x1b[2J\u202e") == '"a\\n=1+1\\r\\t\\x1b[2J\\u202e"'
    rows = [["a,b", 'c"d'], ["", "e"]]
    assert list(csv.reader(io.StringIO("\n".join(csv_lines(["x", "y"], rows))))) == [["x", "y"], *rows]


def test_a_tab_before_a_formula_is_escaped():
    assert cell("\t=1") == '"\\t=1"'

import io
import json
import sys
from collections.abc import Callable

import pytest
import yaml
from typing_extensions import override

from coordinator.cli.failure import CommandError, report
from coordinator.cli.output import Format, Table, encode, plain, printable, write_stream

ITEMS = [{"path": "a", "size": 1}, {"path": "b", "size": 2}]


class Terminal(io.StringIO):
    @override
    def isatty(self) -> bool:
        return True


def streamed(items: list[dict[str, object]], output: Format) -> str:
    kept = sys.stdout
    sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    try:
        write_stream(items, output, lambda item: str(item["path"]))
        written = sys.stdout.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode()
    finally:
        sys.stdout = kept


@pytest.mark.parametrize(
    ("output", "decode"), [(Format.JSON, json.loads), (Format.YAML, yaml.safe_load)]
)
@pytest.mark.parametrize("items", [[], ITEMS[:1], ITEMS])
def test_a_streamed_list_is_one_document(
    output: Format, decode: Callable[[str], object], items: list[dict[str, object]]
) -> None:
    assert decode(streamed(items, output)) == items


def test_a_streamed_table_is_a_line_each() -> None:
    assert streamed([{"path": "a"}, {"path": "ü"}], Format.TABLE) == "a\nü\n"


def test_yaml_and_json_are_the_same_document() -> None:
    made = {"a": [1, None, "ü", "on"], "b": {"c": 1.5, "d": "2026-01-01T00:00:00.000000Z"}}

    assert json.loads(encode(made, Format.JSON)) == made
    assert yaml.safe_load(encode(made, Format.YAML)) == made


def test_a_terminal_is_never_given_control_characters() -> None:
    text = "a\x1b[31m\x9b\n\r\u202eb"

    assert printable(text).isprintable()
    assert "\x9b" not in encode(text, Format.JSON)
    assert json.loads(encode(text, Format.JSON)) == text


def test_columns_are_aligned_and_numbers_stand_right() -> None:
    table = Table(
        titles=("name", "size"), rows=[("a", "10"), ("longer", "9")], right=frozenset({1})
    )

    assert plain(table) == "NAME    SIZE\na         10\nlonger     9\n"


def test_scripts_read_the_last_line_and_people_on_a_terminal_are_spared_it() -> None:
    error = CommandError("it broke", hint="mend it", exit_code=3)
    line = {"message_type": "exit_error", "code": 3, "message": "it broke", "hint": "mend it"}
    piped, scripted, terminal = io.StringIO(), Terminal(), Terminal()

    report(error, output="table", stream=piped)
    report(error, output="json", stream=scripted)
    report(error, output="table", stream=terminal)

    assert json.loads(piped.getvalue().splitlines()[-1]) == line
    assert json.loads(scripted.getvalue()) == line
    assert terminal.getvalue() == "Error: it broke\nHint: mend it\n"

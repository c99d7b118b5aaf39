"""The documents for operators say what the program says."""

import re
from pathlib import Path

import click
import pytest

import agent.config
import coordinator.config
from coordinator.cli.failure import CommandError
from repository.errors import TidemarkError
from tests.unit.docs import errors
from tests.unit.docs.commands import Line, lines, parse

CHECKOUT = Path(__file__).parents[3]
OPERATIONS = CHECKOUT / "docs/OPERATIONS.md"
DOCUMENTS = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
# What looks like a command in the description of the format is the name of a key or a domain.
LINES = [each for path in DOCUMENTS if path.name != "FORMAT.md" for each in lines(path)]
# They are caught where they can be raised, and never reach anybody.
INTERNAL = {"LostStateError", "SideGoneError", "StoppedError", "VanishedError"}


def rows() -> dict[str, tuple[int, str]]:
    """Exit code and next step of each kind of error, as the document has them."""
    table = re.findall(
        r"^\| (\w+Error) \| (\d+) \| [^|]+ \| ([^|]+) \|$", OPERATIONS.read_text(), re.MULTILINE
    )
    return {kind: (int(code), step.strip()) for kind, code, step in table}


def exit_code(kind: type[Exception]) -> int:
    if issubclass(kind, TidemarkError):
        return kind.exit_code
    assert issubclass(kind, CommandError)
    return 1


def test_each_kind_of_error_has_its_exit_code_and_a_next_step() -> None:
    kinds = {name: kind for name, kind in errors.kinds().items() if name not in INTERNAL}

    assert {name: code for name, (code, _) in rows().items()} == {
        name: exit_code(kind) for name, kind in kinds.items()
    }
    assert all(step for _, step in rows().values())


def test_each_exit_code_is_explained() -> None:
    listed = set(re.findall(r"^\| (\d+) \| [a-z]", OPERATIONS.read_text(), re.MULTILINE))

    assert {str(code) for code, _ in rows().values()} | {"0", "3"} == listed


def test_the_list_of_messages_is_that_of_the_source() -> None:
    assert errors.DOCUMENT.read_text() == errors.render(set(errors.kinds())), "run: make docs"


def test_a_message_is_found_however_it_is_written() -> None:
    messages = {error.message for error in errors.raised(set(errors.kinds()))}

    assert "another coordinator works on …" in messages
    assert "`latest` of which volume? …" in messages


def test_there_are_commands_in_the_documents() -> None:
    assert {line.document for line in LINES} >= {"README.md", "OPERATIONS.md"}
    assert len([line for line in LINES if line.whole]) > 30


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.document}: {line.text[:60]}")
def test_a_command_in_a_document_is_one_that_the_program_knows(line: Line) -> None:
    if line.program == "tidemark":
        parse(line.words, whole=line.whole)
    elif line.whole:
        module = agent.config if line.program == "tidemark-agent" else coordinator.config
        module._parser().parse_args(line.words)


@pytest.mark.parametrize(
    "words", [["restore", "make"], ["restore", "create", "--form", "latest"], ["snapshot", "ls"]]
)
def test_a_command_that_the_program_does_not_know_is_noticed(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(words, whole=True)


def test_an_option_in_a_sentence_is_looked_at() -> None:
    parse(["node", "revoke"], whole=False)
    with pytest.raises(click.UsageError):
        parse(["node", "token", "--for"], whole=False)


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"

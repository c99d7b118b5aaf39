"""Command lines in documents: found, split, and parsed by the program's own parser."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click

from coordinator.cli.main import application

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(tidemark[^`\n]*(?:\n[^`\n]+)?)`")
_PROGRAMS = ("tidemark", "tidemark-agent", "tidemark-coordinator")


class Line(NamedTuple):
    """One command of one document."""

    document: str
    text: str
    whole: bool
    """Of a block, so that it can be typed as it is; else it may lack arguments."""

    @property
    def words(self) -> list[str]:
        """What the program is given, without what the shell keeps."""
        # A command within a command gives one word.
        text = re.sub(r'"?\$\([^()]*(?:\{\{[^{}]*\}\})?[^()]*\)"?', "/substituted", self.text)
        words = shlex.split(text, comments=True)
        ends = [number for number, word in enumerate(words) if word in {"|", "&&", "&", ">", ";"}]
        return words[1 : ends[0]] if ends else words[1:]

    @property
    def program(self) -> str:
        return Path(self.text.split()[0]).name


def blocks(document: Path) -> list[str]:
    """The blocks of shell, lines that go on joined."""
    return [each.replace("\\\n", " ") for each in _BLOCK.findall(document.read_text())]


def lines(document: Path) -> list[Line]:
    """Every command of ours, in blocks and within sentences."""
    whole = [
        Line(document.name, line.strip(), whole=True)
        for block in blocks(document)
        for line in block.splitlines()
        if Path((line.split() or [""])[0]).name in _PROGRAMS
    ]
    inline = [
        Line(document.name, " ".join(text.split()), whole=False)
        for text in _INLINE.findall(document.read_text())
        if text.split()[0] in _PROGRAMS
    ]
    return whole + inline


def parse(words: list[str], *, whole: bool) -> None:
    """click.UsageError for what the command line would refuse to understand."""
    command: click.Command = application()
    context = click.Context(command, info_name="tidemark")
    while isinstance(command, click.Group):
        if not words:
            assert not whole, "a command is missing"
            return
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        context = click.Context(command, parent=context, info_name=command.name)
    if whole:
        command.make_context(command.name, words, parent=context.parent)
        return
    # A sentence names a command and perhaps an option; what else it needs goes without saying.
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word not in options]
    if unknown:
        raise click.NoSuchOption(unknown[0])

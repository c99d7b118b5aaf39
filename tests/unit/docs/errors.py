"""Every error that the source raises, and the document that lists them; `make docs` writes it."""

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import agent
import coordinator
import repository
from coordinator.cli.failure import CommandError
from repository.errors import TidemarkError

CHECKOUT = Path(__file__).parents[3]
DOCUMENT = CHECKOUT / "docs/ERRORS.md"

_PREFACE = """# Errors, word for word

Made from the source by `make docs`, so that a message can be looked up; `…` is what differs from
case to case. What each kind means, and the next step where an error names none, stands in
[OPERATIONS.md](OPERATIONS.md#errors).
"""


class Raised(NamedTuple):
    """One error as the source has it."""

    kind: str
    message: str
    hint: str


def kinds() -> dict[str, type[Exception]]:
    """Every class of error that a person may meet, by name; those of tests are none."""
    for package in (agent, coordinator, repository):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "__main__" not in module.name and ".migrations" not in module.name:
                importlib.import_module(module.name)
    found: dict[str, type[Exception]] = {}
    waiting: list[type[Exception]] = [CommandError, TidemarkError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.partition(".")[0] in {"agent", "coordinator", "repository"}:
            # The two ConfigErrors mean the same thing, and so do the two UnreachableErrors.
            found.setdefault(kind.__name__, kind)
    return found


def raised(names: set[str]) -> list[Raised]:
    """Each error that is made anywhere with a text of its own, without those that only say …."""
    errors = {
        error
        for folder in ("agent", "coordinator", "repository")
        for path in (CHECKOUT / folder).rglob("*.py")
        for error in _in_source(path.read_text(), names)
    }
    return sorted(each for each in errors if re.search(r"[a-z]{2}", each.message))


def render(names: set[str]) -> str:
    """The whole document."""
    parts = [_PREFACE]
    errors = raised(names)
    for kind in sorted({error.kind for error in errors}):
        parts.append(f"\n## {kind}\n\n| message | next step |\n|---|---|\n")
        parts += [
            f"| {_cell(each.message)} | {_cell(each.hint)} |\n"
            for each in errors
            if each.kind == kind
        ]
    return "".join(parts)


def _in_source(source: str, names: set[str]) -> Iterator[Raised]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in names:
                hints = [_text(each.value) for each in node.keywords if each.arg == "hint"]
                yield Raised(name, _text(first), "".join(hints))
            case _:
                pass


def _text(node: ast.expr) -> str:
    """What an expression says, as far as that is written in the source."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) for value in values)
        case ast.BinOp(left=left, right=right, op=ast.Add()):
            return _text(left) + _text(right)
        case ast.IfExp(body=body, orelse=orelse):
            both = [each for each in (_text(body), _text(orelse)) if each]
            return " / ".join(both)
        case _:
            return "…"


def _cell(text: str) -> str:
    return re.sub(r"(… ?)+…", "…", text).replace("|", "\\|").replace("<", "&lt;").strip()


if __name__ == "__main__":
    DOCUMENT.write_text(render(set(kinds())))
    sys.exit(0)

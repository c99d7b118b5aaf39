import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from coordinator.cli.failure import CommandError
from coordinator.cli.main import application, as_failure, asked_format


def tidemark(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_CONFIG_HOME": str(home), "COLUMNS": "100"}
    environment.pop("TIDEMARK_CONTEXT", None)
    return subprocess.run(
        [sys.executable, "-P", "-c", "from coordinator.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["node", "list"], "table"),
        (["node", "list", "-o", "json"], "json"),
        (["-o", "json", "node", "list", "-o", "yaml"], "yaml"),
        (["node", "list", "-ojson"], "json"),
        (["node", "list", "--output=yaml"], "yaml"),
        (["node", "list", "-o"], "table"),
        (["node", "list", "-o", "xml"], "table"),
        (["node", "show", "--", "-o", "json"], "table"),
    ],
)
def test_the_format_is_known_even_if_the_line_cannot_be_parsed(
    arguments: list[str], output: str
) -> None:
    assert asked_format(arguments) == output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("m", exit_code=11), 11),
        (click.UsageError("m"), 2),
        (click.Abort(), 130),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (RuntimeError("m"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert as_failure(error).exit_code == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["node"],
        ["node", "nonsense"],
        ["node", "list", "--nonsense"],
        ["node", "show"],
        ["backup", "create"],
        ["backup", "create", "a", "--all"],
        ["verify", "create"],
        ["verify", "create", "--all", "--depth", "restore"],
        ["restore", "create", "--from", "latest"],
        ["restore", "create", "--from", "latest", "--to", "d", "--in-place"],
        ["restore", "create", "--from", "latest", "--to", "d", "--delete"],
        ["restore", "create", "--from", "latest", "--in-place"],
        ["restore", "create", "--from", "latest", "--to", "d", "--overwrite", "--delete"],
        ["volume", "move", "a"],
        ["volume", "move", "a", "--to", "n"],
        ["volume", "move", "a", "--to", "n", "--replace"],
        ["job", "list", "--limit", "0"],
        ["node", "token", "--valid", "soon"],
        ["up"],
        ["up", "--data", "d", "--every", "sometimes"],
        ["up", "--data", "d", "--listen", "nowhere"],
    ],
)
def test_usage_errors_exit_2_and_end_with_the_line_for_scripts(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = tidemark(*arguments, "-o", "json", home=tmp_path)

    line = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout) == (2, "")
    assert (line["message_type"], line["code"]) == ("exit_error", 2)
    assert line["message"]
    assert line["hint"]


def test_version_starts_without_grpc_rich_and_yaml() -> None:
    program = (
        "import sys; from coordinator.cli.main import run; run(['version', '-o', 'json']);"
        "slow = {'grpc', 'google.protobuf', 'rich', 'yaml'} & set(sys.modules);"
        "sys.exit(', '.join(slow) or 0)"
    )

    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["version"]


def test_help_names_what_there_is_and_no_alias(tmp_path: Path) -> None:
    done = tidemark("snapshot", "--help", home=tmp_path)
    alias = tidemark("snapshot", "get", "--help", home=tmp_path)

    assert done.returncode == alias.returncode == 0
    for verb in ("list", "show", "ls", "find", "cat", "diff"):
        assert f"\n  {verb} " in done.stdout
    assert "get" not in done.stdout
    assert "describe" not in done.stdout


def test_every_noun_can_be_loaded_and_helps() -> None:
    group = application()
    context = click.Context(group, info_name="tidemark")

    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        assert command is not None
        assert command.get_help(click.Context(command, parent=context, info_name=name))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(tmp_path: Path, shell: str) -> None:
    done = tidemark("completion", shell, home=tmp_path)

    assert done.returncode == 0
    assert "_TIDEMARK_COMPLETE" in done.stdout


def test_without_a_coordinator_the_command_fails_and_says_what_it_tried(tmp_path: Path) -> None:
    done = tidemark("status", "-o", "json", home=tmp_path)

    line = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == line["code"] == 1
    assert str(tmp_path) in line["message"]

"""Units and example settings: what they name exists, and what they start would start."""

import re
import shlex
from pathlib import Path

import pytest

import agent.config
import coordinator.config
from tests.unit.test_house import PROJECT

SYSTEMD = Path(__file__).parents[3] / "deploy/systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
MODULES = {"tidemark-agent": agent.config, "tidemark-coordinator": coordinator.config}


def settings(unit: Path) -> dict[tuple[str, str], list[str]]:
    """Section and key to the values; a setting may stand there several times."""
    found: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, f"{unit.name}: {line}"
            found.setdefault((section, key), []).append(value)
    return found


def service(unit: Path, key: str) -> str:
    (value,) = settings(unit)["Service", key]
    return value


def test_there_is_a_unit_for_each_daemon() -> None:
    assert {unit.stem for unit in UNITS} == set(MODULES)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_what_the_wheel_installs_with_flags_that_it_has(unit: Path) -> None:
    program, *flags = shlex.split(service(unit, "ExecStart"))

    assert program == f"/opt/tidemark/bin/{unit.stem}"
    assert unit.stem in PROJECT["project"]["scripts"]
    parsed = MODULES[unit.stem]._parser().parse_args(flags)
    assert Path(parsed.config) == MODULES[unit.stem].DEFAULT_FILE


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_wrong_setting_is_not_tried_again_and_again(unit: Path) -> None:
    assert service(unit, "Restart") == "on-failure"
    assert "2" in service(unit, "RestartPreventExitStatus").split()


def test_the_example_of_the_coordinator_is_good_and_is_the_default() -> None:
    example = SYSTEMD / "coordinator.yaml"
    arguments = ["--config", str(example), "--check-config"]
    invocation = coordinator.config.load(arguments, {})

    directories = service(SYSTEMD / "tidemark-coordinator.service", "StateDirectory").split()
    made = {Path("/var/lib") / name for name in directories}
    assert {invocation.config.data, invocation.config.repository} == made
    data, repository = invocation.config.data, invocation.config.repository
    assert invocation.config == coordinator.config.Config(data=data, repository=repository)


def test_the_example_of_the_agent_is_good_and_is_the_default() -> None:
    example = SYSTEMD / "agent.yaml"
    invocation = agent.config.load(["--config", str(example), "--check-config"], {})
    config = invocation.config

    assert config.state == Path("/var/lib") / service(
        SYSTEMD / "tidemark-agent.service", "StateDirectory"
    )
    assert config == agent.config.Config(
        coordinator=config.coordinator,
        node_name=config.node_name,
        token_file=Path("/etc/tidemark/token"),
        docker=agent.config.DOCKER,
    )


@pytest.mark.parametrize(
    ("example", "module"), [("agent", agent.config), ("coordinator", coordinator.config)]
)
def test_an_example_names_every_key(example: str, module: object) -> None:
    text = (SYSTEMD / f"{example}.yaml").read_text()

    keys = set(getattr(module, "_KEYS"))  # noqa: B009 - of either module
    assert set(re.findall(r"^(?:# )?([a-z_]+): ", text, re.MULTILINE)) == keys


def test_the_agent_keeps_what_a_faithful_copy_needs() -> None:
    unit = SYSTEMD / "tidemark-agent.service"

    assert set(service(unit, "CapabilityBoundingSet").split()) == {
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_MKNOD",
        "CAP_SETFCAP",
        "CAP_SYS_ADMIN",
    }
    hiding = {"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictSUIDSGID"}
    # It allows no device but the clock, so that none could be restored.
    hiding.add("ProtectClock")
    assert not hiding & {key for _, key in settings(unit)}


def test_the_coordinator_has_no_capability_and_a_user_that_is_made() -> None:
    unit = SYSTEMD / "tidemark-coordinator.service"

    assert service(unit, "CapabilityBoundingSet") == ""
    assert f"u {service(unit, 'User')} " in (SYSTEMD / "tidemark.sysusers").read_text()


def test_everything_is_in_the_wheel() -> None:
    shared = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]

    assert shared["deploy/systemd"] == "share/tidemark/systemd"
    assert all((SYSTEMD.parents[1] / source).exists() for source in shared)

import asyncio
import json
from pathlib import Path

import pytest

from coordinator.cli.up.children import Child, last_words

ERROR = json.dumps({"event": "the port is taken", "hint": "choose another", "level": "error"})
TWO = "two things are wrong:\none\ntwo"
INFO = json.dumps({"event": "starts", "level": "info"})


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ("", "")),
        (f"{INFO}\n{ERROR}\n{INFO}\n", ("the port is taken", "choose another")),
        (f"{INFO}\nSegmentation fault\n\n", ("Segmentation fault", "")),
        (f"{INFO}\n", ("", "")),
        (f"{ERROR}\nerror: no bucket\nhint: make one\n", ("no bucket", "make one")),
        (f"{INFO}\nerror: no bucket\n", ("no bucket", "")),
        ("error: long ago\n" + f"{INFO}\n" * 2, ("", "")),
        ('{"cut', ('{"cut', "")),
        (json.dumps({"event": "bad", "level": "critical"}), ("bad", "")),
        (f"{ERROR}\nerror: no such bucket\nhint: make it\n", ("no such bucket", "make it")),
        (f"{INFO}\nerror: two things are wrong:\n  one\n  two\n", (TWO, "")),
    ],
)
def test_the_last_error_of_a_log_is_the_reason(log: str, words: tuple[str, str]) -> None:
    assert last_words(log) == words


@pytest.mark.asyncio
async def test_one_that_was_killed_has_no_reason_but_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"{INFO}\n")
    process = await asyncio.create_subprocess_exec("sleep", "60")
    child = Child("agent", process, tmp_path / "log", 0)

    process.kill()
    await child.wait()
    death = child.death()

    assert death.message == "the agent was killed by signal 9"
    assert death.hint == f"the kernel's log says if memory ran out; its log is {tmp_path}/log"

import json

import pytest

from coordinator.cli.up.children import last_words

ERROR = json.dumps({"event": "the port is taken", "hint": "choose another", "level": "error"})
INFO = json.dumps({"event": "starts", "level": "info"})


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ("", "")),
        (f"{INFO}\n{ERROR}\n{INFO}\n", ("the port is taken", "choose another")),
        (f"{INFO}\nSegmentation fault\n\n", ("Segmentation fault", "")),
        ('{"cut', ('{"cut', "")),
        (json.dumps({"event": "bad", "level": "critical"}), ("bad", "")),
    ],
)
def test_the_last_error_of_a_log_is_the_reason(log: str, words: tuple[str, str]) -> None:
    assert last_words(log) == words

import threading
from concurrent.futures import ThreadPoolExecutor

from agent.gate import Gate


def test_no_more_are_in_than_are_allowed_also_when_that_changes() -> None:
    gate, lock = Gate(4), threading.Lock()
    inside = most = 0

    def visit(_: int) -> None:
        nonlocal inside, most
        gate.enter()
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.002)
        with lock:
            inside -= 1
        gate.leave()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(40)))
        before, most = most, 0
        changed = gate.allow(1), gate.allow(1)
        list(pool.map(visit, range(10)))

    assert (before, most) == (4, 1)
    assert changed == (True, False)


def test_who_waits_enters_when_more_are_allowed() -> None:
    gate = Gate(2)
    gate.allow(0)  # one at least
    gate.enter()
    waiting = threading.Thread(target=gate.enter)
    waiting.start()

    gate.allow(5)  # two at most

    waiting.join(5)
    assert not waiting.is_alive()

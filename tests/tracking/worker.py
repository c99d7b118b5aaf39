"""A process that carries out plans: its threads do what a burst says, all at once.

Reads a line for each request and answers with one, as JSON. What it holds open stays open from
burst to burst, until a request names another volume.
"""

import errno
import json
import os
import select
import subprocess
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Final

from typing_extensions import override

from tests.tracking.operations import OPERATIONS, Hands
from tests.tracking.plan import THREADS, Burst, Step

# What comes of several threads at the same names, or of a filesystem that has no such thing.
_EXPECTED: Final = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
        *(errno.EINVAL, errno.EOPNOTSUPP, errno.ENODATA, errno.ENXIO, errno.EFAULT, errno.EPERM),
        *(errno.EBUSY, errno.ESTALE, errno.EXDEV, errno.ENODEV, errno.ESPIPE),
        errno.ENOSPC,  # of attributes of one inode in ext4
    }
)


class Worker:
    """That process, as a test has it."""

    def __init__(self) -> None:
        checkout = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
        )

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def begin(self, volume: Path, outside: Path, burst: Burst) -> None:
        """Have it begin."""
        assert self._process.stdin is not None
        print(json.dumps([str(volume), str(outside), burst.threads]), file=self._process.stdin)
        self._process.stdin.flush()

    def is_done(self) -> bool:
        """Whether it has done what it was to do."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def end(self) -> Counter[str]:
        """Wait until all is done; how many steps of each kind there were that did something."""
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        assert "error" not in answer, answer["error"]
        return Counter(answer["done"])


class _Thread(threading.Thread):
    def __init__(self, hands: Hands, steps: list[Step]) -> None:
        super().__init__()
        self._hands = hands
        self._steps = steps
        self.done: Counter[str] = Counter()
        self.error = ""

    @override
    def run(self) -> None:
        try:
            for step in self._steps:
                self._act(step)
        except BaseException:  # noqa: BLE001 - told to whoever asked
            self.error = traceback.format_exc()

    def _act(self, step: Step) -> None:
        try:
            OPERATIONS[step.kind].act(self._hands, step.path, step.other, step.number)
        except OSError as error:
            if error.errno is not None and error.errno not in _EXPECTED:
                raise
        except subprocess.CalledProcessError:
            return
        else:
            self.done[step.kind] += 1


def _serve() -> None:
    where, hands = "", list[Hands]()
    for line in sys.stdin:
        volume, outside, threads = json.loads(line)
        if volume != where:
            for each in hands:
                each.let_all_go()
            where = volume
            hands = [Hands(os.fsencode(volume), os.fsencode(outside)) for _ in range(THREADS)]
        running = [
            _Thread(each, [Step(*step) for step in steps])
            for each, steps in zip(hands, threads, strict=True)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        done = sum((thread.done for thread in running), Counter[str]())
        errors = [thread.error for thread in running if thread.error]
        print(json.dumps({"error": errors[0]} if errors else {"done": done}), flush=True)


if __name__ == "__main__":
    _serve()

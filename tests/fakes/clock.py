"""Seconds that pass when somebody waits for them, and otherwise not."""


class WaitedClock:
    """Call it for the time; `sleep` costs none."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

"""The short form of tests/faults/store_calls.py: one number for each manner, drawn anew."""

import random
from pathlib import Path

import pytest

from tests.faults.store_calls import MANNERS, Bench


@pytest.mark.asyncio
async def test_a_store_that_fails_at_any_call_loses_nothing(seed: int, tmp_path: Path) -> None:
    chosen = random.Random(seed)
    bench = Bench(tmp_path)
    calls = await bench.count_calls()
    # A few packs, refs and a root, each opened, written, committed and closed.
    assert calls >= 16
    for manner in MANNERS:
        number = chosen.randint(1, calls)
        try:
            assert await bench.run(manner, number)
        except BaseException as error:
            error.add_note(f"TIDEMARK_TEST_SEED={seed}: call {number} fails {manner.name}")
            raise

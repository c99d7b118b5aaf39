"""The whole campaign: every failpoint with every action. `make campaign-core` runs it.

Prints its seed, which decides the order of the runs, and how each one that went wrong did.
"""

import argparse
import random
import secrets
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.campaign import Case, Templates, all_cases, report, run


def main() -> int:
    """Run it; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--count", type=int, default=0, help="so many of them")
    options = parser.parse_args()
    cases = [case for case in all_cases() if options.only in str(case)]
    random.Random(options.seed).shuffle(cases)
    cases = cases[: options.count or None]
    print(f"seed {options.seed}, {len(cases)} runs", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidemark-campaign-", dir="/var/tmp") as directory:
        top = Path(directory)
        templates = Templates(top / "templates")
        templates.interrupted()

        def one(numbered: tuple[int, Case]) -> tuple[Case, str]:
            number, case = numbered
            try:
                what = run(case, templates, top / f"run-{number}")
            except Exception:  # noqa: BLE001 - each run is told of, whatever it met
                what = f"FAILED\n{traceback.format_exc()}"
            print(f"{time.monotonic() - began:6.0f} s  {case}: {what}", flush=True)
            return case, what

        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(one, enumerate(cases)))
    print(f"\nseed {options.seed}\n{report(results)}")
    return 0 if all(what == "passed" for _, what in results) else 1


sys.exit(main())

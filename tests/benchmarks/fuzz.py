"""Damaged and weird models without end: does the command line analyse or refuse each, quickly, in little memory?

    python tests/benchmarks/fuzz.py --minutes 10 --seed 1 --save /tmp/fuzz_cases

The same mutations and rules as tests/test_robustness.py; every distinct violation is printed once, with a case.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from corpus import MODELS, corpus  # noqa: E402
from damaged_models import BUILT, FLAGS, PICTURES, random_case, run_case  # noqa: E402

LARGEST = 20_000  # bytes of a model of the corpus: small files are all tables, and quick


def signature(violation: str) -> str:
    """What makes two violations the same: the place of a traceback, else the words without numbers and names."""
    lines = violation.strip().splitlines()
    if violation.startswith("traceback:"):
        places = [line.strip() for line in lines if "tflite_tools.py" in line]
        return f"{places[-1] if places else ''} {lines[-1][:80]}"
    kind = violation.partition(":")[0]
    if kind == "control characters":
        return kind
    return f"{kind}: {re.sub(r'[(].*?[)]|[A-Z_]+[0-9_]+|-?[0-9][0-9,]*', '#', lines[-1])[-100:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write one case per distinct violation into this folder")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    sound = [build() for build in BUILT.values()]
    sound += [path.read_bytes() for path in [*sorted(MODELS.glob("*.tflite")), *corpus()]
              if path.parent == MODELS or 100 < path.stat().st_size < LARGEST]  # fmt: skip
    codes: Counter[int | None] = Counter()
    kinds: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    largest, slowest = 0, 0.0
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        flags = rng.choice(PICTURES if rng.random() < 0.03 else FLAGS)
        data = random_case(rng, rng.choice(sound))
        run = run_case(data, flags)
        codes[run.code] += 1
        largest, slowest = max(largest, run.peak_rss), max(slowest, run.seconds)
        kinds.update({violation.partition(":")[0] for violation in run.violations})
        for violation in run.violations:
            seen[name := signature(violation)] += 1
            if seen[name] > 1:
                continue
            print(f"\nVIOLATION {len(seen)}: {' '.join(flags)}\n{violation[-2000:]}", flush=True)
            if arguments.save:
                arguments.save.mkdir(parents=True, exist_ok=True)
                (arguments.save / f"fuzz{arguments.seed}_{len(seen)}.tflite").write_bytes(data)
    print(
        f"\n{codes.total():,} inputs: {codes[0] + codes[1]:,} analysed, {codes[2]:,} refused, {codes[None]:,} neither"
    )
    print(f"{kinds['traceback']:,} tracebacks, {kinds['hang']:,} hangs, {kinds['crash']:,} crashes, "
          f"{kinds['memory']:,} times too much memory, {len(seen):,} distinct violations")  # fmt: skip
    print(f"largest peak RSS {largest >> 20:,} MiB, slowest {slowest:.1f} s")
    for name, count in seen.most_common():
        print(f"{count:6,}  {name}")
    return int(bool(seen))


if __name__ == "__main__":
    sys.exit(main())

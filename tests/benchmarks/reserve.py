"""Is the arena to reserve the smallest that works? Every model of a folder that TFLM runs, in the real runtime.

The tail (persistent structures) is compared with what the package tflite-micro reports (64 bits), and what the runtime
compiled to WebAssembly does (32 bits, within the rounding of what its benchmark adds); the smallest arena of the former
is found by bisection, in steps of 16 bytes.

python tests/benchmarks/reserve.py [FOLDER] [--largest 1.5e6] [--jobs 2]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from runtimes import fits_in_wheel, run_in_wheel, run_tflm  # noqa: E402

from tflite_tools import (  # noqa: E402
    BITS_32,
    BITS_64,
    ArenaError,
    ModelError,
    align,
    analyse_arena,
    read_model,
    refusals,
    resource_variables,
)

STEP = 16  # bytes, of the runtime's allocator
WEBASSEMBLY_ADDS, ROUNDING = 2_120, 16  # slots for resource variables, and the recording of figures


def smallest_arena(data: bytes, reserve: int) -> int:
    """The least multiple of STEP that works, looked for around the figure that was foretold."""
    if fits_in_wheel(data, reserve):
        too_small, enough = reserve - STEP, reserve
        if not fits_in_wheel(data, too_small):
            return reserve
        too_small = 0
    else:
        too_small, enough = reserve, 2 * reserve + 65_536
    while enough - too_small > STEP:
        middle = (too_small + enough) // 2 // STEP * STEP
        too_small, enough = (too_small, middle) if fits_in_wheel(data, middle) else (middle, enough)
    return enough


def compare(path: Path) -> list[tuple[str, str]]:
    data = path.read_bytes()
    try:
        graph = read_model(data)
        narrow, wide = analyse_arena(graph), analyse_arena(graph, BITS_64)
    except (ModelError, ArenaError):
        return []
    if refusals(graph):
        return []
    found = []
    try:
        run = run_in_wheel(data, [], 0, 2 * wide.reserve + (1 << 20))
        found.append(("64 bits: tail to the byte", run.tail - align(wide.persistent)))
        least = smallest_arena(data, wide.reserve)
        found.append(("64 bits: smallest arena", least - wide.reserve))
    except RuntimeError:
        return []
    try:
        variables = BITS_32.variable * len(resource_variables(graph))
        of_ours = align(12) + align(variables) if variables else 0  # are among the slots that it adds
        added = run_tflm(path).tail - narrow.persistent + of_ours
        found.append(("32 bits: tail", 0 if abs(added - WEBASSEMBLY_ADDS) <= ROUNDING else added))
    except RuntimeError:
        pass
    return [(f"{what}: {'as foretold' if not off else 'OTHER'}", f"{off:+,} B" if off else "") for what, off in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--largest", type=float, default=1.5e6, help="bytes of the largest file that is looked at")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.folder.rglob("*.tflite") if p.stat().st_size <= arguments.largest)
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(arguments.jobs) as executor:
        for path, found in zip(paths, executor.map(compare, paths), strict=True):
            for outcome, details in found:
                counts[outcome] += 1
                if details:
                    print(f"{path.name}: {outcome}: {details}", flush=True)
    for outcome, number in sorted(counts.items()):
        print(f"{number:4}  {outcome}")
    return int(any("OTHER" in outcome for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())

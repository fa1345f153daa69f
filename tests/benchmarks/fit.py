"""README's table of results: what --fit does to well-known models, measured on the real runtime where it runs them.

python tests/benchmarks/fit.py [--kernels NAME]
python tests/benchmarks/fit.py --by-hand  # 20 models, three sizes: the way that is taken against running each by hand
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from corpus import SHARED  # noqa: E402
from split import MODELS, measured  # noqa: E402

from tflite_tools import RECIPES, ArenaError, ModelError, Recipe, TFLiteModel  # noqa: E402

SIZES = (64 << 10, 128 << 10, 256 << 10)


def by_hand(path: Path, way: Recipe, limit: int) -> int:
    """Bytes to reserve after the steps of a way, one method after the other."""
    model = TFLiteModel.load_from_file(path)
    if way.is_lightened:
        model.lighten_operators()
    if way.stripes:
        model.split_operators(try_orders=True, limit=limit, stripes=way.stripes)
    model.optimize_memory(for_arena=True)
    model.plan_memory()
    return model.arena.reserve


def candidates(most: int) -> list[tuple[Path, int]]:
    """Models that TFLM runs, with what they reserve, of 64 to 400 KB."""
    found = []
    for path in sorted(SHARED.glob("models/**/*.tflite")):
        try:
            model = TFLiteModel.load_from_file(path)
            if path.stat().st_size < 2e6 and not model.snapshot.refusals and SIZES[0] < model.arena.reserve < 400 << 10:
                found.append((path, model.arena.reserve))
        except (ArenaError, ModelError):
            continue
    return found[:: max(len(found) // most, 1)][:most]


def check_by_hand(most: int) -> bool:
    is_right = True
    for path, before in candidates(most):
        for limit in SIZES:
            decision = TFLiteModel.load_from_file(path).fit(limit)
            taken = decision.ways[decision.taken].name if not decision.failure else "nothing"
            fits = (way.name for way in RECIPES if by_hand(path, way, limit) <= limit)
            expected = "as it is" if before <= limit else next(fits, "nothing")
            is_right &= taken == expected
            print(f"{path.stem:50} {before:>9,} B, {limit >> 10} KB: {taken}", "" if taken == expected else expected)
            sys.stdout.flush()
    return is_right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default="reference")
    parser.add_argument("--by-hand", action="store_true")
    arguments = parser.parse_args()
    if arguments.by_hand:
        return 0 if check_by_hand(20) else 1
    kernels = arguments.kernels
    is_right = True
    print(
        "| Model | Before (B) | After (B) | Saved | Extra time | Extra MACs | Way | Measured | Seconds |\n|---|"
        + "---:|" * 7
    )
    for title, name in MODELS.items():
        path = SHARED / name if "/" in name else next(SHARED.glob(f"models/**/{name}"))
        model, start = TFLiteModel.load_from_file(path, kernels), time.monotonic()
        decision = model.fit()
        seconds, way = time.monotonic() - start, decision.ways[decision.taken]
        before, after = measured(TFLiteModel.load_from_file(path)), measured(model)
        same = "not run"
        if before and after and kernels == "reference":
            is_right &= after == (model.arena.head, before[1])
            same = "as predicted, same outputs" if after == (model.arena.head, before[1]) else "WRONG"
        saved = f"{100 - 100 * decision.after / decision.before:.0f} %"
        figures = (
            f"{decision.before:,} | {decision.after:,} | {saved} | {way.time_percent:.1f} % | {way.macs_percent:.1f} %"
        )
        print(f"| {title} | {figures} | {way.name} | {same} | {seconds:.1f} |", flush=True)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())

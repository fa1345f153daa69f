"""Every model of a folder, in the real runtimes: is it refused as foretold, is its arena as foretold, and does it
compute the same once it is split, reordered and planned?

python tests/benchmarks/trust.py [FOLDER] [--time-limit 5] [--jobs 2]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from runtimes import run_in_wheel  # noqa: E402

from tflite_tools import (  # noqa: E402
    BITS_64,
    ArenaError,
    ModelError,
    TFLiteModel,
    VerificationError,
    analyse_arena,
    random_inputs,
    refusals,
)

# Files that the runtime does not refuse, but computes wrong with, or never ends.
NOT_REFUSED = ("i3196_external_buffers_cifar10_q", "lstm_fused_keras_f32")
ROOMY = 1 << 28


def outcomes(path: Path, time_limit: float) -> list[tuple[str, str]]:
    """(what was found, details) of one model."""
    try:
        model = TFLiteModel.load_from_file(path)
        model.analysis()
    except ModelError as error:
        return [("not a model", str(error))]
    found = [("analysed", "")]
    if path.stem in NOT_REFUSED:
        return [*found, ("left out, as the runtime does not refuse what it should", "")]
    found += in_tflm(model)
    original = TFLiteModel(model.to_bytes())
    for name, change in (
        ("split", lambda: model.split_operators(time_limit=time_limit, try_orders=True, stripes="auto")),
        ("reordered", lambda: model.optimize_memory(time_limit, for_arena=True)),
        ("planned", lambda: model.plan_memory(time_limit)),
    ):
        if change().changed:
            found.append((name, ""))
    with contextlib.suppress(ArenaError):
        if model.arena.reserve > original.arena.reserve and not original.arena.problems:
            found.append(("MORE TO RESERVE", f"{original.arena.reserve:,} -> {model.arena.reserve:,}"))
    try:
        result = model.verify_against(original)
    except VerificationError as error:
        return [*found, ("verified nowhere", str(error))]
    where = " and ".join(result.runtimes)
    verdict = "bit-identical" if result.identical else "DIFFERENT"
    found.append((f"{verdict} in {where}", "" if result.identical else "\n".join(result.lines())))
    if result.identical and model.to_bytes() != original.to_bytes():
        found.append(("bit-identical, and a changed file", ""))
    refused = [note for note in result.notes if "delegate refuses this model" in note]
    if "LiteRT" in result.runtimes:
        verdict = "REFUSED BY LITERT'S DEFAULT DELEGATE" if refused else "taken by LiteRT's default delegate"
        found.append((verdict, refused[0] if refused else ""))
    if "TFLM" in result.runtimes and not original.graph.plan:
        inputs = random_inputs(model.graph, 0)[:1]
        head = run_in_wheel(model.to_bytes(), inputs, 0, ROOMY).head
        same = head == analyse_arena(model.graph, BITS_64).head
        found.append(("head after all steps as foretold" if same else "HEAD AFTER ALL STEPS DIFFERS", f"{head:,}"))
    return found


def in_tflm(model: TFLiteModel) -> list[tuple[str, str]]:
    reasons = refusals(model.graph)
    try:
        inputs = random_inputs(model.graph, 0)[:1]
        run = run_in_wheel(model.to_bytes(), inputs, 0, ROOMY)
    except VerificationError as error:
        return [("no inputs", str(error))]
    except RuntimeError as error:
        return [
            ("refused as foretold" if reasons else "REFUSED, BUT NOT FORETOLD", reasons[0] if reasons else str(error))
        ]
    found = [("RUNS, BUT A REFUSAL WAS FORETOLD" if reasons else "runs as foretold", reasons[0] if reasons else "")]
    try:
        arena = analyse_arena(model.graph, BITS_64)
    except ArenaError as error:
        return [*found, ("ARENA NOT KNOWN", str(error))]
    found.append(
        ("head as foretold" if arena.head == run.head else "HEAD DIFFERS", f"{arena.head:,}, not {run.head:,}")
    )
    error = arena.persistent / run.tail - 1
    return [
        *found,
        (f"tail within {'1' if abs(error) < 0.01 else '5' if abs(error) < 0.05 else '100'} %", f"{error:.1%}"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--time-limit", type=float, default=5.0)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    paths = sorted(arguments.folder.rglob("*.tflite"))
    with ThreadPoolExecutor(arguments.jobs) as executor:
        for path, found in zip(
            paths, executor.map(partial(outcomes, time_limit=arguments.time_limit), paths), strict=True
        ):
            for outcome, details in found:
                counts[outcome] += 1
                if outcome.isupper() or (
                    details and outcome not in ("head as foretold", "head after all steps as foretold")
                ):
                    print(f"{path.name}: {outcome}: {details}", flush=True)
    for outcome, number in sorted(counts.items()):
        print(f"{number:4}  {outcome}")
    return int(any(outcome.split(" in ")[0].isupper() for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())

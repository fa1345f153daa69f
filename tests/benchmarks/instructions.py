"""Estimated instructions of models and of what --split makes of them, by kernels; with measured ones beside, if given.

python tests/benchmarks/instructions.py [MODEL ...]
python tests/benchmarks/instructions.py --measured FILE  # lines of JSON: file, kernels, invoke (executed instructions)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from corpus import MODELS  # noqa: E402

from tflite_tools import TFLiteModel, allocation_instructions, model_instructions, model_macs  # noqa: E402

KERNELS = ("reference", "cmsis-nn", "cmsis-nn:mve")
WAYS = ("", "unrolled", "loop")


def show(path: Path, kernels: str) -> None:
    before = TFLiteModel.load_from_file(path, kernels)
    for way in WAYS:
        model = TFLiteModel.load_from_file(path, kernels)
        if way and not model.split_operators(100.0, 20.0, True, None, way).changed:
            continue
        time, macs = (count(model.graph) / max(count(before.graph), 1) for count in (model_instructions, model_macs))
        total, setup = model_instructions(model.graph), allocation_instructions(model.graph)
        ratios = f"{100 * (time - 1):+.1f} % | {100 * (macs - 1):+.1f} %"
        print(f"| {path.stem} | {kernels} | {way or 'as it is'} | {total:,} | {setup:,} | {ratios} |", flush=True)


def compare(path: Path) -> None:
    errors = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        estimate = model_instructions(TFLiteModel.load_from_file(row["file"], row["kernels"]).graph)
        errors.append(abs(estimate / row["invoke"] - 1))
        print(f"| {Path(row['file']).stem} | {row['kernels']} | {row['invoke']:,} | {estimate:,} | {errors[-1]:.1%} |")
    print(f"mean {sum(errors) / len(errors):.1%}, largest {max(errors):.1%} of {len(errors)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--measured", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.measured:
        compare(arguments.measured)
        return
    print("| Model | Kernels | Way | Instructions | AllocateTensors() | More time | More MACs |")
    print("|---|---|---|---:|---:|---:|---:|")
    for path in arguments.models or sorted(MODELS.glob("*.tflite")):
        for kernels in KERNELS:
            show(path, kernels)


if __name__ == "__main__":
    main()

"""Every model of a folder: analysed or refused, then optimised, planned and verified bit by bit in LiteRT.

python tests/benchmarks/trust.py [FOLDER] [--time-limit 5]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tflite_tools import ModelError, TFLiteModel, VerificationError  # noqa: E402

REASONS = {
    "an operator that LiteRT does not have": r"custom op|Select TensorFlow op|op code",
    "inputs of a type that cannot be random": r"no random inputs",
    "LiteRT finds the model itself at fault": r"",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--time-limit", type=float, default=5.0)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for path in sorted(arguments.folder.rglob("*.tflite")):
        try:
            model = TFLiteModel.load_from_file(path)
            model.analysis()
        except ModelError as error:
            counts["refused"] += 1
            examples["refused"].append(f"{path.name}: {error}")
            continue
        counts["analysed"] += 1
        counts["analysed, with notes on what is unknown"] += bool(model.graph.notes)
        counts["reordered"] += model.optimize_memory(arguments.time_limit).changed
        counts["planned"] += model.plan_memory(arguments.time_limit).changed
        try:
            result = model.verify_against(TFLiteModel.load_from_file(path))
            outcome = "verified bit-identical" if result.identical else "DIFFERENT"
            if result.identical and model.to_bytes() != path.read_bytes():
                counts["verified bit-identical, of them changed files"] += 1
        except VerificationError as error:
            why = next(reason for reason, pattern in REASONS.items() if re.search(pattern, str(error)))
            outcome = f"not run by LiteRT: {why}"
            examples[outcome].append(f"{path.name}: {error}")
        counts[outcome] += 1
        if outcome == "DIFFERENT":
            examples[outcome].append(path.name)
    for outcome, number in sorted(counts.items()):
        print(f"{number:4}  {outcome}")
        for example in examples[outcome][:60]:
            print(f"        {example}")
    return 1 if counts["DIFFERENT"] else 0


if __name__ == "__main__":
    sys.exit(main())

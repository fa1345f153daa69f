"""Partial execution: what --split --optimize --plan makes of models, and whether their outputs stay the same.

python tests/benchmarks/split.py                  # README's table, measured on the real runtime where it can be
python tests/benchmarks/split.py --loops          # stripes that are written out, and loops
python tests/benchmarks/split.py --lighter        # with --lighten and --integer-io
python tests/benchmarks/split.py --corpus FOLDER  # every model of a folder, verified in LiteRT on five seeds
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from corpus import SHARED  # noqa: E402
from runtimes import run_tflm  # noqa: E402

from tflite_tools import TFLM, ModelError, TFLiteModel, VerificationError  # noqa: E402

MODELS = {
    "MobileNet v1 0.25 96": "nets/mobilenet_v1_025_96.tflite",
    "MobileNet v2 0.35 96": "nets/mobilenet_v2_035_96.tflite",
    "MobileNet v2 1.0 224": "nets/mobilenet_v2_100_224.tflite",
    "MobileNet v3 small 224": "nets/mobilenet_v3_small_224.tflite",
    "SqueezeNet v1 224": "nets/squeezenet_v1_224.tflite",
    "SSD MobileNet v2 300": "nets/ssd_mobilenet_v2_300.tflite",
    "ResNet-8 32": "nets/resnet8_32.tflite",
    "DS-CNN keyword spotting": "nets/dscnn_kws_49x10.tflite",
    "TFLM: person detection": "person_detect.tflite",
    "TinyEngine: MCUNet, visual wake words": "vww.tflite",
}


LIGHTER = {
    "MobileNet v1 0.25 224, floats": ("mobilenet_v1_0.25_224_1_default_1.tflite", "--lighten"),
    "MLPerf Tiny: visual wake words, floats": ("vww_96_float.tflite", "--lighten"),
    "TFLM: micro speech": ("tflite_micro_speech.tflite", "--lighten"),
    "TinyEngine: MCUNet, visual wake words": ("vww.tflite", "--integer-io"),
    "TinyEngine: MCUNet, person detection": ("detection.tflite", "--integer-io"),
    "BlazeFace 128": ("face_detection_front_128_full_integer_quant.tflite", "--integer-io"),
    "MLPerf Tiny: ToyCar": ("model_ToyCar_quant_fullint.tflite", "--integer-io"),
}


def measured(model: TFLiteModel) -> tuple[int, str] | None:
    """(non-persistent bytes, checksum of the outputs) of the real runtime; None where it does not run the model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        model.write_to_file(path)
        try:
            run = run_tflm(path)
        except RuntimeError:
            return None
        return run.head, run.output


def show(title: str, path: Path) -> bool:
    """One row of the table; whether all that could be checked was right."""
    original = TFLiteModel.load_from_file(path)
    model = TFLiteModel.load_from_file(path)
    start = time.monotonic()
    result = model.split_operators(time_limit=30)
    seconds = time.monotonic() - start
    model.optimize_memory(20, for_arena=True)
    model.plan_memory()
    before, after = measured(original), measured(model)
    is_right = before is None or after is None or (after == (model.arena.head, before[1]))
    runtime = "not run" if after is None or before is None else f"{before[0]:,} -> {after[0]:,}"
    cells = [
        title,
        f"{original.peak_memory_usage():,}",
        f"{model.peak_memory_usage():,}",
        f"{model.arena.head:,}",
        runtime,
        f"{result.unsplit.cost.sum:,}",
        f"{model.arena.head + result.chosen.cost.persistent:,}",
        f"{result.chosen.macs_percent:.1f} %",
        f"{result.unsplit.cost.operators} -> {result.chosen.cost.operators}",
        f"{100 * result.file_growth / path.stat().st_size:.1f} %",
        f"{seconds:.1f}",
    ]
    print("| " + " | ".join(cells) + " |" + ("" if is_right else " WRONG"), flush=True)
    return is_right


def show_loops(title: str, path: Path) -> bool:
    original = TFLiteModel.load_from_file(path)
    figures, is_right = [original.arena.reserve], True
    for stripes in ("unrolled", "auto"):
        model = TFLiteModel.load_from_file(path)
        decision = model.split_operators(time_limit=30, try_orders=True, stripes=stripes)
        model.optimize_memory(20, for_arena=True)
        model.plan_memory()
        figures.append(model.arena.reserve)
    before, after = measured(original), measured(model)
    if before and after:
        is_right = after == (model.arena.head, before[1])
    turns = [str(region.stripes) for region in decision.chosen.regions if region.is_loop]
    cells = [
        title,
        *(f"{n:,}" for n in figures),
        f"{100 - 100 * figures[-1] / figures[0]:.0f} %",
        f"{after[0]:,}" if before and after else "not run",
        f"{decision.chosen.macs_percent:.1f} %",
        ", ".join(turns) or "none",
        f"{100 * decision.file_growth / path.stat().st_size:.1f} %",
        f"{decision.seconds:.1f}",
    ]
    print("| " + " | ".join(cells) + " |" + ("" if is_right else " WRONG"), flush=True)
    return is_right


def show_lighter(title: str, path: Path, option: str) -> bool:
    original = TFLiteModel.load_from_file(path)
    figures, is_right = [original.arena.reserve], True
    for step in ("", option):
        model = TFLiteModel.load_from_file(path)
        if step == "--lighten":
            model.lighten_operators()
        elif step:
            model.use_integer_ports()
        model.split_operators(time_limit=30, try_orders=True)
        model.optimize_memory(20, for_arena=True)
        model.plan_memory()
        verdict = model.verify_against(original)
        is_right &= verdict.identical and TFLM in verdict.runtimes
        figures.append(model.arena.reserve)
    cells = [title, *(f"{n:,}" for n in figures[:2]), f"`{option}`", f"{figures[2]:,}"]
    print("| " + " | ".join(cells) + " |" + ("" if is_right else " WRONG"), flush=True)
    return is_right


def check_corpus(folder: Path, seeds: int) -> int:
    counts: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.tflite")):
        if re.search(r"syn_.*_n[13]000_", path.name) or path.stat().st_size > 200e6:
            continue
        try:
            original, model = TFLiteModel.load_from_file(path), TFLiteModel.load_from_file(path)
        except ModelError:
            continue
        result = model.split_operators(max_time=50, time_limit=30)
        if not result.changed:
            counts["left alone" if not result.refusal else "refused"] += 1
            continue
        try:
            same = all(model.verify_against(original, seed).identical for seed in range(seeds))
            outcome = "split, bit-identical" if same else "split, DIFFERENT"
        except VerificationError as error:
            outcome = "split, not run by LiteRT"
            if "does not run the original" not in str(error):
                outcome = "split, no longer RUN by LiteRT"
        counts[outcome] += 1
        saved = f"{result.before:,} -> {result.after:,}"
        print(f"{path.name:60} {saved:28} {outcome} {result.seconds:.1f} s", flush=True)
    print("; ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())))
    return sum(number for outcome, number in counts.items() if "DIFFERENT" in outcome or "RUN" in outcome)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="verify every model of this folder instead")
    parser.add_argument("--lighter", action="store_true", help="what --lighten and --integer-io do")
    parser.add_argument("--loops", action="store_true", help="what loops do")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pattern", default="", help="only rows with this in their title")
    arguments = parser.parse_args()
    if arguments.lighter:
        right = [show_lighter(t, next(SHARED.glob(f"models/**/{n}")), o) for t, (n, o) in LIGHTER.items()]
        return 0 if all(right) else 1
    if arguments.corpus:
        return 1 if check_corpus(arguments.corpus, arguments.seeds) else 0
    if arguments.loops:
        print("| Model | As it is (B) | Written out (B) | Loops (B) | Less | Head, measured (B) | More MACs ", end="")
        print("| Turns | File growth | Search (s) |\n|---|" + "---:|" * 9)
        paths = {t: SHARED / n if "/" in n else next(SHARED.glob(f"models/**/{n}")) for t, n in MODELS.items()}
        right = [show_loops(t, path) for t, path in paths.items() if arguments.pattern in t]
        return 0 if all(right) else 1
    print(
        "| Model | Peak (B) | Peak, split (B) | Planned arena (B) | Arena, measured (B) | Sum (B) | Sum, split (B) ",
        end="",
    )
    print("| More MACs | Operators | File growth | Search (s) |\n|---|" + "---:|" * 10)
    fine = True
    for title, name in MODELS.items():
        found = [SHARED / name] if "/" in name else sorted(SHARED.glob(f"models/**/{name}"))
        if arguments.pattern in title and found and found[0].exists():
            fine &= show(title, found[0])
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

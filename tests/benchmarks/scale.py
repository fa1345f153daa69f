"""Work and its result: seconds of every step at 10,000 operators, and what all steps together reach on whole folders.

python tests/benchmarks/scale.py                     # one row per network and step
python tests/benchmarks/scale.py --against OLD.py    # beside another version of the module, in the same run
python tests/benchmarks/scale.py --densenet          # original and split DenseNet-121 of 224 x 224 pixels
python tests/benchmarks/scale.py --models FOLDER --against OLD.py  # bytes to reserve and seconds, files up to 1.5 MB
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from spatial_nets import Net  # noqa: E402

STEPS = ("", "--optimize", "--plan", "--lighten --integer-io", "--split", "--compress", "--memories fast=4KB")
REPORTS = ("--json {}/a.json", "--csv {}/csv", "--plot {}/a.png", "--memory-map {}/b.png")


def chain(operators: int) -> bytes:
    net = Net()
    x = source = net.picture(16, 16, 8)
    for _ in range(operators):
        x = net.map("RELU", x)
    return net.build([source], [x])


def convolutions(operators: int) -> bytes:
    net = Net()
    x = source = net.picture(16, 16, 8)
    for _ in range(operators):
        x = net.window("CONV_2D", x, 8)
    return net.build([source], [x])


def branches(operators: int) -> bytes:
    net = Net()
    x = source = net.picture(16, 16, 8)
    for _ in range(operators // 5):
        a, b, c = (net.window("CONV_2D", x, 8) for _ in range(3))
        x = net.map("ADD", net.map("ADD", a, b), c)
    return net.build([source], [x])


def densenet(growth: int = 32) -> bytes:
    """DenseNet-121 (Huang et al. 2017) with batch normalisation as Keras leaves it before convolutions: MUL, ADD."""
    net = Net()

    def normalized(x: int) -> int:
        depth = net.shape(x)[3]
        return net.map("ADD", net.map("MUL", x, net.weights(depth)), net.weights(depth))

    source = net.picture(224, 224, 3)
    x = net.window("MAX_POOL_2D", net.window("CONV_2D", source, 64, (7, 7), 2), stride=2)
    for number, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            narrow = net.window("CONV_2D", normalized(x), 4 * growth, (1, 1))
            x = net.concatenate(x, net.window("CONV_2D", normalized(narrow), growth))
        if number < 3:
            half = net.window("CONV_2D", normalized(x), net.shape(x)[3] // 2, (1, 1))
            x = net.window("AVERAGE_POOL_2D", half, kernel=(2, 2), stride=2)
    return net.build([source], [normalized(x)])


ALL_STEPS = ["--lighten", "--split", "--optimize", "--plan"]
MAX_FILE = 1_500_000  # bytes


def run(module: Path, arguments: list[str]) -> tuple[float, str]:
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(module), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr}")
    return time.monotonic() - start, done.stdout


def reserve(module: Path, path: Path, *options: str) -> tuple[float, int]:
    """(seconds, bytes to reserve; 0 if they are unknown)."""
    seconds, output = run(module, ["-i", str(path), *options])
    found = re.findall(r"kTensorArenaSize\): ([\d,]+) B", output)
    return seconds, int(found[0].replace(",", "")) if found else 0


def compare_models(folder: Path, modules: list[Path]) -> None:
    sums = [[0.0, 0] for _ in modules]
    for path in sorted(p for p in folder.rglob("*.tflite") if p.stat().st_size <= MAX_FILE):
        try:
            results = [reserve(module, path, *ALL_STEPS) for module in modules]
        except SystemExit:
            continue  # not a model that can be read
        for total, (seconds, size) in zip(sums, results, strict=True):
            total[0] += seconds
            total[1] += size
        cells = [path.stem, *(f"{size:,} B, {seconds:.1f} s" for seconds, size in results)]
        print(
            "| " + " | ".join(cells) + (" | differ |" if len({size for _, size in results}) > 1 else " |"), flush=True
        )
    print("| all | " + " | ".join(f"{size:,} B, {seconds:.0f} s" for seconds, size in sums) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", type=int, default=10_000)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--densenet", action="store_true")
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    here = ROOT / "tflite_tools.py"
    modules = [here] if arguments.against is None else [arguments.against, here]
    if arguments.models:
        compare_models(arguments.models, modules)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        if arguments.densenet:
            path.write_bytes(densenet())
            for module in modules:
                for options in ([], ALL_STEPS):
                    seconds, size = reserve(module, path, *options)
                    print(f"{module.name} {' '.join(options) or 'as it is'}: {size:,} B, {seconds:.1f} s", flush=True)
            return 0
        print("| Network | Step | Seconds |" + (" Before |" if arguments.against else ""))
        for make in (chain, convolutions, branches):
            path.write_bytes(make(arguments.operators))
            for step in (*STEPS, *REPORTS):
                times = [run(module, ["-i", str(path), *step.format(folder).split()])[0] for module in modules]
                cells = [make.__name__, step.split()[0] if step else "analysis", *(f"{t:.1f}" for t in reversed(times))]
                print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

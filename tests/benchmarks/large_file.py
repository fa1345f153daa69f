"""Analysing a very large file: a model of about 1 GB is generated, read and reported; time and memory are printed.

python tests/benchmarks/large_file.py [--gigabytes 1]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_builder import Builder  # noqa: E402

LAYERS = 64


def write_model(path: Path, size: int) -> None:
    """Fully connected layers whose weights lie behind the FlatBuffer, as converters store them above 2 GB."""
    rows = size // LAYERS // 4096
    b = Builder()
    x = source = b.tensor((1, 4096))
    buffers = []
    for _ in range(LAYERS):
        weights, y, z = b.tensor((rows, 4096)), b.tensor((1, rows)), b.tensor((1, 4096))
        buffer = schema.BufferT()
        buffer.offset, buffer.size = 1 << 32, rows * 4096
        b.model.buffers.append(buffer)
        buffers.append(buffer)
        b.table.tensors[weights].buffer = len(b.model.buffers) - 1
        b.op("FULLY_CONNECTED", [x, weights, -1], [y])
        b.op("TILE", [y], [z])
        x = z
    start = -(-len(b.build([source], [x])) // 4096) * 4096
    for number, buffer in enumerate(buffers):
        buffer.offset = start + number * rows * 4096
    with path.open("wb") as file:
        file.write(b.build([source], [x]).ljust(start, b"\0"))
        block = np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8).tobytes()
        while file.tell() < start + LAYERS * rows * 4096:
            file.write(block[: start + LAYERS * rows * 4096 - file.tell()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    gigabytes = parser.parse_args().gigabytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.tflite")
        write_model(path, int(gigabytes * 2**30))
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "tflite_tools.py"), "-i", str(path), "--calc-size"]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{path.stat().st_size / 2**30:.2f} GiB: exit code {done.returncode}, {seconds:.2f} s, {memory:.0f} MiB")
        print(done.stdout.splitlines()[-1] if done.stdout else done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

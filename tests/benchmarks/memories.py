"""Two memories: how much of what an inference moves stays in the fast one.

Reads networks from ../shared and prints a table, all in per cent: what stays if the largest tensors go to the slow
memory until TFLM's own planner fits the rest into the fast one; what stays with ``plan_two_memories``, with and without
shared places; and a bound where that is not proven optimal.

    python tests/benchmarks/memories.py [model.tflite ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tflite_tools import MemoriesDecision, Plan, TFLiteModel, place_greedily, traffic  # noqa: E402

NETS = ROOT.parent / "shared" / "nets"
NAMES = {
    "mobilenet_v2_100_224": "MobileNet v2 1.0 224",
    "ssd_mobilenet_v1_fpn_320": "SSD MobileNet v1 FPN 320",
    "mobilenet_v3_small_224": "MobileNet v3 small 224",
    "nasnet_mobile_224": "NASNet-A mobile 224",
    "efficientnet_b0_224": "EfficientNet-B0 224",
    "hrnet_like_w18_256": "HRNet-like W18 256",
    "efficientdet_d0_512": "EfficientDet-D0 512",
}
SIZES = (128, 256, 512)  # KB


def largest_out(model: TFLiteModel, fast: int) -> float:
    """Per cent."""
    buffers = model.arena.buffers
    moved = traffic(model.graph, buffers)
    order = sorted((i for i, b in enumerate(buffers) if b.tensor is not None), key=lambda i: -buffers[i].bytes)
    for count in range(len(order) + 1):
        stays = [i for i in range(len(buffers)) if i not in order[:count]]
        placed = place_greedily([buffers[i].interval._replace(offset=None) for i in stays])
        if Plan(placed, 0).height <= fast:
            return 100 * sum(moved[i] for i in stays) / sum(moved)
    return 0.0


def cell(decision: MemoriesDecision) -> str:
    share, most = (100 * (1 - n / decision.before) for n in (decision.after, decision.bound))
    return f"{share:.1f}" if decision.optimal else f"{share:.1f} (at most {most:.1f})"


def main(paths: list[Path]) -> None:
    print("| Model, tensors | Fast memory (KB) | Largest out (%) | `--no-in-place` (%) | `--memories` (%) | Seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for path in paths:
        data = path.read_bytes()
        for size in SIZES:
            model = TFLiteModel(data)
            name = f"{NAMES.get(path.stem, path.stem)}, {sum(b.tensor is not None for b in model.arena.buffers)}"
            before = largest_out(model, size << 10)
            apart = TFLiteModel(data).plan_two_memories(size << 10, in_place=False)
            start = time.perf_counter()
            found = model.plan_two_memories(size << 10)
            seconds = time.perf_counter() - start
            print(f"| {name} | {size} | {before:.1f} | {cell(apart)} | {cell(found)} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or [NETS / f"{name}.tflite" for name in NAMES])

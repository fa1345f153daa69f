"""Buffers that share memory on purpose: only where it is safe, and then what the runtime makes of it is the same."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import is_intact
from model_builder import Builder, ModelBuilder, converting, repeated, updated
from runtimes import run_in_wheel, wheel_agrees
from spatial_nets import VALID, Net, looped, random_net, regions, split

from tflite_tools import (
    ARENA_COSTS,
    IN_PLACE_COSTS,
    KINDS,
    OFFLINE_PLAN,
    Alias,
    Aliases,
    Interval,
    Profile,
    Snapshot,
    Storage,
    TFLiteModel,
    analyse_arena,
    layout_of,
    main,
    may_overwrite,
    node_of,
    ordering_problem,
    plan_by_first_fit,
    plan_faults,
    plan_optimally,
    read_model,
)

# -- blocks: intervals that keep their distance ------------------------------------------------------

lives = st.tuples(st.integers(1, 5), st.integers(0, 8), st.integers(0, 4)).map(
    lambda life: Interval(16 * life[0], life[1], life[1] + life[2])
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(lives, min_size=4, max_size=9), st.integers(0, 4))
def test_blocks_keep_their_distance(intervals: list[Interval], gap: int):
    """Two intervals one above the other, and two in the same place that follow each other."""
    a = intervals[0]
    intervals[2:4] = Interval(32, 0, 3), Interval(48, 4, 9)
    groups = [{0: 0, 1: a.size + 16 * gap}, {2: 0, 3: 0}]
    first = plan_by_first_fit(intervals, groups)
    for plan in (first, plan_optimally(intervals, 5, groups)):
        assert not plan_faults(plan.intervals, str)
        assert plan.intervals[1].offset - plan.intervals[0].offset == a.size + 16 * gap
        assert plan.intervals[2].offset == plan.intervals[3].offset
        assert [i._replace(offset=None) for i in plan.intervals] == intervals
        assert plan.height >= plan.bound >= Profile(intervals).peak


# -- which operators may write where they read -------------------------------------------------------

SAFE = """ABS CEIL COS ELU EXP FLOOR HARD_SWISH LEAKY_RELU LOG LOGISTIC NEG QUANTIZE RELU RELU6 ROUND RSQRT SIN SQRT
    SQUARE TANH ADD DIV MAXIMUM MINIMUM MUL SQUARED_DIFFERENCE SUB EXPAND_DIMS RESHAPE SQUEEZE DYNAMIC_UPDATE_SLICE
    GATHER SELECT_V2 SLICE""".split()


def test_these_kinds_and_no_others():
    assert {name for name, kind in KINDS.items() if kind.in_place} == {*SAFE}


def three(kind: str, middle: Any, inputs: Any = None, dtype: str = "FLOAT32", outputs: Any = None) -> bytes:
    """x -> RELU -> the operator -> RELU -> y; ``inputs`` makes those of the operator from its first one."""
    b = Builder()
    x, a, c = (b.tensor((1, 4, 4, 2), dtype) for _ in range(3))
    m = b.tensor(*middle)
    y = b.tensor(*middle)
    b.op("RELU", [x], [a])
    b.op(kind, [a] if inputs is None else inputs(b, a, c), [m])
    b.op("RELU", [m], [y])
    return b.build([x, c], [y, *([a] if outputs else [])])


def pairs(data: bytes) -> set[tuple[int, int]]:
    """(input, output) tensors that may share memory."""
    arena = analyse_arena(read_model(data))
    return {(arena.buffers[a].tensor, arena.buffers[b].tensor) for a, b in arena.aliases.pairs}


PICTURE = ((1, 4, 4, 2), "FLOAT32")


def constant(*shape: int) -> Any:
    return lambda b, a, c: [a, b.constant(np.ones(shape, np.float32))]


@pytest.mark.parametrize(("kind", "middle", "inputs", "expected"), [
    ("TANH", PICTURE, None, True), ("SOFTMAX", PICTURE, None, False), ("TRANSPOSE", PICTURE, None, False),
    ("RESHAPE", ((1, 32), "FLOAT32"), None, True), ("SQUEEZE", ((4, 4, 2), "FLOAT32"), None, True),
    ("RESHAPE", ((1, 31), "FLOAT32"), None, False), ("CAST", ((1, 4, 4, 2), "INT32"), None, False),
    ("QUANTIZE", ((1, 4, 4, 2), "INT8"), None, False), ("ADD", PICTURE, lambda b, a, c: [a, c], True),
    ("ADD", PICTURE, lambda b, a, c: [c, a], True), ("MUL", PICTURE, lambda b, a, c: [a, a], True),
    ("SUB", PICTURE, constant(2), True), ("SUB", PICTURE, constant(1, 4, 4, 2), True),
    ("SUB", PICTURE, constant(), True),
    ("MUL", PICTURE, lambda b, a, c: [a, b.tensor((1, 1, 1, 1), "FLOAT32")], True),
    ("MUL", PICTURE, lambda b, a, c: [a, b.tensor((1, 1, 1, 2), "FLOAT32")], False),
    ("MUL", ((1, 4, 4, 4), "FLOAT32"), lambda b, a, c: [a, b.tensor((1, 4, 4, 4), "FLOAT32")], False),
    ("MINIMUM", PICTURE, lambda b, a, c: [a, b.tensor((1, 4, 1, 1), "FLOAT32")], True),
    ("SELECT_V2", PICTURE, lambda b, a, c: [b.tensor((1, 4, 1, 1), "BOOL"), a, b.tensor((1,), "FLOAT32")], True),
    ("SELECT_V2", PICTURE, lambda b, a, c: [b.tensor(PICTURE[0], "BOOL"), b.tensor((1,), "FLOAT32"), a], False),
    ("PRELU", PICTURE, constant(2), False), ("EQUAL", ((1, 4, 4, 2), "BOOL"), constant(2), False),
])  # fmt: skip
def test_the_first_input_may_be_overwritten(kind: str, middle: Any, inputs: Any, expected: bool):
    assert any(output == 3 for _, output in pairs(three(kind, middle, inputs))) == expected


def test_what_is_needed_later_is_not_overwritten():
    assert (1, 3) in pairs(three("TANH", PICTURE))
    assert (1, 3) not in pairs(three("TANH", PICTURE, outputs=True))  # an output of the model
    b = Builder()
    x, y = b.tensor(*PICTURE), b.tensor(*PICTURE)
    b.op("TANH", [x], [y])
    assert pairs(b.build([x], [y])) == {(0, 1)}
    assert not pairs(b.build([x], [y, x]))  # the same, at the very end
    b = Builder()
    x, a, m, y = (b.tensor(*PICTURE) for _ in range(4))
    for kind, inputs, output in (("RELU", [x], a), ("TANH", [a], m), ("ADD", [m, a], y)):
        b.op(kind, inputs, [output])
    assert pairs(b.build([x], [y])) == {(0, 1), (2, 3)}  # a is read again; then one of both is enough


@pytest.mark.parametrize(("dtypes", "expected"), [(("INT8", "UINT8"), True), (("UINT8", "INT8"), True),
                                                  (("INT8", "INT8"), False), (("INT16", "INT16"), False)])  # fmt: skip
def test_quantize_may_between_int8_and_uint8(dtypes: tuple[str, str], expected: bool):
    b = Builder()
    x, y = (b.tensor((1, 8), dtype) for dtype in dtypes)
    b.op("QUANTIZE", [x], [y])
    subgraph = read_model(b.build([x], [y])).subgraphs[0]
    assert may_overwrite(node_of(subgraph, subgraph.operators[0]), 0) == expected


@pytest.mark.parametrize(("rows", "chosen", "expected"), [
    ((0, 2, 3, 3), {"axis": 1}, True), ((1, 0, 2, 3), {"axis": 1}, False), ((0, 2, 3), {"axis": 1}, False),
    ((0, 2, 3, 3), {"axis": 2}, False), (((0, 2, 3, 3),), {"axis": 1, "batchDims": 1}, False),
])  # fmt: skip
def test_gather_may_where_each_row_comes_from_itself_or_later(rows: tuple, chosen: dict[str, int], expected: bool):
    b, options = Builder(), schema.GatherOptionsT()
    x, y = b.tensor((1, 4, 4, 2)), b.tensor((1, np.array(rows).size, 4, 2))
    for name, value in chosen.items():
        setattr(options, name, value)
    b.op("GATHER", [x, b.constant(np.array(rows, np.int32))], [y], options)
    subgraph = read_model(b.build([x], [y])).subgraphs[0]
    assert may_overwrite(node_of(subgraph, subgraph.operators[0]), 0) == expected


def test_state_and_what_never_runs_are_left_alone():
    b = Builder()
    x, y = b.tensor((1, 8), isVariable=True), b.tensor((1, 8))
    b.op("RELU", [x], [y])
    subgraph = read_model(b.build([], [y])).subgraphs[0]
    assert subgraph.tensors[0].storage is Storage.STATE
    assert not may_overwrite(node_of(subgraph, subgraph.operators[0]), 0)
    model = ModelBuilder()
    for graph in (Builder(model), Builder(model)):
        x, y = (graph.tensor((1, 8)) for _ in range(2))
        graph.op("RELU", [x], [y])
        graph.finish([x], [y])
    assert pairs(model.build()) == {(0, 1)}


def test_places_where_buffers_would_clash_are_left_out():
    intervals = [Interval(64, 0, 1), Interval(64, 2, 3), Interval(64, 4, 5)]
    places = (Alias(0, 1), Alias(1, 2))
    assert Aliases(places).consistent(intervals).pairs == places
    together = [Interval(64, 0, 3), *intervals[1:]]  # one buffer does not end in time
    assert Aliases((Alias(0, 2), Alias(1, 2))).consistent(together).pairs == (Alias(0, 2),)


def test_what_is_overwritten_unread_is_free():
    """Rows 2 to 5 of the operand, once it is made; the update has memory of its own."""
    data = updated((1, 4, 4, 4), [0, 2, 0, 0]).model.build()
    arena = analyse_arena(read_model(data))
    number = {b.tensor: i for i, b in enumerate(arena.buffers)}
    assert Alias(number[1], number[4]) in arena.aliases.pairs
    row = 64
    assert [(p.size, p.first, p.last, p.offset) for p in arena.aliases.pieces[number[1]]] == [
        (2 * row, 1, 3, 0), (4 * row, 1, 1, 2 * row), (2 * row, 1, 3, 6 * row)]  # fmt: skip
    at = {0: 0, 1: 512, 2: 1024, 3: 640, 4: 512}
    assert Snapshot.read(data).with_offsets({(0, t): offset for t, offset in at.items()}).arena.problems


@pytest.mark.parametrize(("shape", "start"), [
    ((1,), [0, 2, 0, 0]), ((1, 4, 4, 4), [0, 6, 0, 0]), ((1, 4, 2, 4), [0] * 4), ((1, 4, 4, 4), [0, 2]),
    ((1, 4, 4, 4), [0, -1, 0, 0]),
])  # fmt: skip
def test_blocks_that_are_not_whole_rows_inside_are_not_free(shape: tuple[int, ...], start: list[int]):
    assert not analyse_arena(read_model(updated(shape, start).model.build())).aliases.pieces


# -- what plans are worth, and what they are not allowed ----------------------------------------------


def in_stripes(seed: int, dtype: str = "INT8") -> bytes:
    rng = random.Random(seed)
    data = random_net(rng, dtype)
    found = list(regions(data))
    if not found:
        return data
    search, region = rng.choice(found)
    return split(data, search, region)


@settings(max_examples=22, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_plans_of_stripes_leave_intact_what_is_read(seed: int):
    model = TFLiteModel(in_stripes(seed))
    apart = TFLiteModel(model.to_bytes())
    model.plan_memory(1)
    apart.plan_memory(1, in_place=False)
    assert is_intact(model.to_bytes())
    assert not model.arena.problems
    assert not apart.arena.used.pairs
    assert not apart.arena.freed
    assert model.arena.head <= apart.arena.head


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_plan_with_a_fault_is_not_taken_for_shared_memory(seed: int):
    """One tensor is moved; where that breaks something, it is told."""
    rng = random.Random(seed)
    model = TFLiteModel(in_stripes(rng.randrange(20)))
    model.plan_memory(1)
    arena = model.arena
    offsets = {(0, b.tensor): b.interval.offset for b in arena.buffers if b.tensor is not None}
    moved = rng.choice(sorted(offsets))
    offsets[moved] = 16 * rng.randrange(arena.head // 16 + 1)
    changed = bytes(model.snapshot.with_offsets(offsets).data)
    if not is_intact(changed):
        assert analyse_arena(read_model(changed)).problems


def test_what_is_read_by_slices_gives_its_memory_free():
    """Two halves of the input are read one after the other; what is computed from the first lies where it was."""
    b = Builder()
    x = b.tensor((1, 8, 1024))
    ends = []
    for first in (0, 4):
        half, wide, end = b.tensor((1, 4, 1024)), b.tensor((1, 4, 1024)), b.tensor((1, 4, 1024))
        sizes = [b.constant(np.array(values, np.int32)) for values in ((0, first, 0), (1, 4, 1024))]
        b.op("SLICE", [x, *sizes], [half], schema.SliceOptionsT())
        b.op("SOFTMAX", [half], [wide])
        b.op("SOFTMAX", [wide], [end])
        ends.append(end)
    data = b.build([x], ends)
    model, apart = TFLiteModel(data), TFLiteModel(data)
    assert model.plan_memory().read_by_slices == 1
    apart.plan_memory(in_place=False)
    assert (model.arena.head, apart.arena.head) == (12_288, 16_384)
    assert is_intact(model.to_bytes())
    plan = analyse_arena(read_model(model.to_bytes()))
    (number,) = plan.freed
    assert plan.buffers[number].tensor == x


def test_what_if_reads_is_there_until_it_ends():
    """A slice reads one half after IF has read all; the other half ends with IF, not as it begins."""
    model = ModelBuilder()
    main = Builder(model)
    flag, (x, made, y, rest, end) = main.tensor((1,), "BOOL"), floats(main, *[(1, 8, 64)] * 3, *[(1, 4, 64)] * 2)
    options = schema.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    bounds = [main.constant(np.array(values, np.int32)) for values in ((0, 4, 0), (1, 4, 64))]
    softmax(main, [x], [made])
    main.op("IF", [flag, made], [y], options)
    main.op("SLICE", [made, *bounds], [rest])
    softmax(main, [rest], [end])
    main.finish([flag, x], [y, end])
    for _ in range(2):
        b = Builder(model)
        given, result = floats(b, *[(1, 8, 64)] * 2)
        softmax(b, [given], [result])
        b.finish([given], [result])
    arena = planned_agrees(model.build()).arena
    number = {(b.subgraph, b.tensor): i for i, b in enumerate(arena.buffers)}
    first, second = arena.aliases.pieces[number[0, made]]
    inside = max(arena.buffers[number[branch, 1]].interval.last for branch in (1, 2))
    assert inside <= first.last < second.last


def test_what_if_writes_late_is_not_free_before():
    """IF copies its outputs at its end, also the half that nobody reads: it must not lie over what a branch made."""
    model = ModelBuilder()
    main = Builder(model)
    flag, x = main.tensor((1,), "BOOL"), main.tensor((1, 8, 64), "FLOAT32")
    whole, half, rest, end = main.tensor((1, 8, 64), "FLOAT32"), *(main.tensor((1, 4, 64), "FLOAT32") for _ in range(3))
    options = schema.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    bounds = [np.array(values, np.int32) for values in ((0, 4, 0), (1, 4, 64))]
    main.op("IF", [flag, x], [whole, half], options)
    main.op("SLICE", [whole, *map(main.constant, bounds)], [rest])
    main.op("ADD", [rest, half], [end], schema.AddOptionsT())
    main.finish([flag, x], [end])
    for kind in ("RELU", "TANH"):
        b = Builder(model, kind)
        given, made, cut = (b.tensor((1, rows, 64), "FLOAT32") for rows in (8, 8, 4))
        b.op(kind, [given], [made])
        b.op("SLICE", [made, *map(b.constant, bounds)], [cut])
        b.finish([given], [made, cut])
    data = model.build()
    planned = TFLiteModel(data)
    planned.plan_memory()
    buffers = {(b.subgraph, b.tensor): b.interval for b in planned.arena.buffers}
    for branch in (1, 2):
        assert not plan_faults([buffers[0, whole], buffers[branch, 2]], str)
    assert wheel_agrees([(data, planned.to_bytes())]) == [True]


def planned_agrees(data: bytes) -> TFLiteModel:
    """The planned model, which computes the same on TFLM."""
    model = TFLiteModel(data)
    model.plan_memory()
    assert not model.arena.problems
    assert wheel_agrees([(data, model.to_bytes())]) == [True]
    return model


def floats(b: Builder, *shapes: tuple[int, ...]) -> list[int]:
    return [b.tensor(shape, "FLOAT32") for shape in shapes]


def softmax(b: Builder, inputs: list[int], outputs: list[int]) -> None:
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    b.op("SOFTMAX", inputs, outputs, options)


def test_an_output_that_a_loop_passes_through_is_not_overwritten():
    """WHILE hands its operand on as an output of the model; the last operator may overwrite the operand alone."""
    main = Builder()
    x, made, end = floats(main, *[(1, 8, 64)] * 3)
    main.op("RELU", [x], [made])
    (passed,) = repeated(main, [made])
    main.op("ADD", [passed, made], [end], schema.AddOptionsT())
    planned_agrees(main.build([x], [end, passed]))


def test_what_a_loop_passes_through_stays_whole_while_it_is_read():
    """Slices read the operand, a dense layer its copy: no row may go before that."""
    main = Builder()
    x, made, dense, top, bottom = floats(main, *[(1, 8, 4, 4)] * 2, (1, 256), *[(1, 4, 4, 4)] * 2)
    pooling = schema.Pool2DOptionsT()
    pooling.filterHeight = pooling.filterWidth = pooling.strideH = pooling.strideW = 4
    pooling.padding = VALID
    weights = main.constant(np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32))
    softmax(main, [x], [made])
    (passed,) = repeated(main, [made])
    pooled = []
    for row, rows in ((0, top), (4, bottom)):
        begin, size = (main.constant(np.array(values, np.int32)) for values in ((0, row, 0, 0), (1, 4, 4, 4)))
        main.op("SLICE", [made, begin, size], [rows])
        if rows == top:
            main.op("FULLY_CONNECTED", [passed, weights, -1], [dense], schema.FullyConnectedOptionsT())
        pooled.append(main.tensor((1, 1, 1, 4), "FLOAT32"))
        main.op("MAX_POOL_2D", [rows], pooled[-1:], pooling)
    (last,) = floats(main, (1, 2))
    main.op("FULLY_CONNECTED", [dense, main.constant(np.ones((2, 256), np.float32)), -1], [last])
    planned_agrees(main.build([x], [*pooled, last]))


@pytest.mark.parametrize("where", ["cond", "body"])
def test_a_loop_that_writes_over_what_it_is_given_has_no_copies(where: str):
    def doubled(b: Builder, given: list[int]) -> list[int]:
        b.op("ADD", [*given, *given], given, schema.AddOptionsT())
        return given

    main = Builder()
    x, made, total, end = floats(main, *[(1, 64)] * 4)
    softmax(main, [x], [made])
    (passed,) = repeated(main, [made], **{"turn" if where == "body" else "test": doubled})
    main.op("ADD", [made, passed], [total], schema.AddOptionsT())
    softmax(main, [total], [end])
    planned_agrees(main.build([x], [end]))


def test_a_loop_that_swaps_its_variables_leaves_other_operators_in_place():
    main = Builder()
    x, made, other = floats(main, *[(1, 128)] * 3)
    main.op("RELU", [x], [made])
    passed = repeated(main, [made, other], lambda body, given: given[::-1])
    assert planned_agrees(main.build([x, other], passed)).plan_memory().in_place["RELU"] == 1


@pytest.mark.parametrize("is_first", [True, False])
def test_a_loop_updates_its_variable_in_place_of_another_operand(is_first: bool):
    def turn(body: Builder, given: list[int]) -> list[int]:
        share, total = floats(body, *[(1, 128)] * 2)
        softmax(body, given, [share])
        body.op("ADD", [*given, share] if is_first else [share, *given], [total], schema.AddOptionsT())
        return [total]

    main = Builder()
    (x,) = floats(main, (1, 128))
    passed = repeated(main, [x], turn)
    assert planned_agrees(main.build([x], passed)).arena.head == 2 * 512 + 16


def test_state_in_a_branch_rules_out_a_plan():
    """TFLM looks up the offset of such a state under the number of another tensor."""
    model = ModelBuilder()
    main, *branches = (Builder(model) for _ in range(3))
    (x, made, y), flag, options = floats(main, *[(1, 8)] * 3), main.tensor((1,), "BOOL"), schema.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    main.op("RELU", [x], [made])
    main.op("IF", [flag, made], [y], options)
    main.finish([flag, x], [y])
    for branch in branches:
        state, given, result = branch.tensor((1, 8), "FLOAT32", isVariable=True), *floats(branch, (1, 8), (1, 8))
        branch.op("ADD", [state, given], [result], schema.AddOptionsT())
        branch.finish([given], [result])
    data = model.build()
    assert "subgraphs other than the first have state" in TFLiteModel(data).plan_memory().refusal
    model.add_metadata(OFFLINE_PLAN, np.array([1, 3, 10, 0, 32, 64, *[-1] * 7], "<i4").tobytes())
    assert "which TFLM gives no memory" in analyse_arena(read_model(model.build())).problems[-1]


@pytest.mark.parametrize("kind", ["SOFTMAX", "CUMSUM", "L2_NORMALIZATION"])
def test_an_operator_that_may_not_is_refused(kind: str):
    b = Builder()
    x, y = b.tensor((1, 8, 4)), b.tensor((1, 8, 4))
    b.op(kind, [x], [y])
    b.model.add_metadata(OFFLINE_PLAN, np.array([1, 1, 2, 0, 0], "<i4").tobytes())
    problems = analyse_arena(read_model(b.build([x], [y]))).problems
    assert problems == ("tensor 0 and tensor 1 are alive together and share memory, which no operator allows",)


def test_only_the_very_same_place_is_in_place():
    for offset, is_right in ((0, True), (16, False), (32, True)):
        b = Builder()
        x, y = b.tensor((1, 32)), b.tensor((1, 32))
        b.op("RELU", [x], [y])
        b.model.add_metadata(OFFLINE_PLAN, np.array([1, 1, 2, 0, offset], "<i4").tobytes())
        arena = analyse_arena(read_model(b.build([x], [y])))
        assert (not arena.problems) == is_right
        assert bool(arena.used.pairs) == (offset == 0)


def test_a_model_that_reads_what_nobody_writes_is_not_planned():
    """Its results are those of the bytes that happen to be there, and would be others elsewhere."""
    b = Builder()
    x, lost, y = (b.tensor((1, 32)) for _ in range(3))
    b.op("ADD", [lost, x], [y])
    result = TFLiteModel(b.build([x], [y])).plan_memory()
    assert not result.changed
    assert result.refusal.startswith("tensor 1 is read but never written")


# -- the runtime -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAFE)
@pytest.mark.parametrize("dtype", ["INT8", *(pytest.param(t, marks=pytest.mark.slow) for t in ("INT16", "FLOAT32"))])
def test_the_runtime_computes_the_same_in_place(kind: str, dtype: str):
    net = Net(dtype)
    x = source = net.picture(6, 5, 4)
    x = net.window("MAX_POOL_2D", x, kernel=(1, 1))
    if kind in ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "SQUARED_DIFFERENCE", "SUB"):
        y = net.picture(6, 5, 4)
        table = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "SQUARED_DIFFERENCE": "SquaredDifference",
                 "MAXIMUM": "MaximumMinimum", "MINIMUM": "MaximumMinimum"}[kind]  # fmt: skip
        net.op(kind, [x, net.window("AVERAGE_POOL_2D", x, kernel=(1, 1))], [y], getattr(schema, f"{table}OptionsT")())
    elif kind in ("EXPAND_DIMS", "RESHAPE", "SQUEEZE"):
        shape = {"EXPAND_DIMS": (1, 1, 6, 5, 4), "RESHAPE": (1, 30, 4), "SQUEEZE": (6, 5, 4)}[kind]
        y = net.tensor(shape, dtype, **net.quantization())
        more = {"EXPAND_DIMS": [0], "RESHAPE": list(shape), "SQUEEZE": None}[kind]
        inputs = [x] if more is None else [x, net.constant(np.array(more, np.int32))]
        net.op(kind, inputs, [y], schema.SqueezeOptionsT() if kind == "SQUEEZE" else None)
    elif kind == "SLICE":
        y = net.picture(4, 5, 4)
        bounds = [net.constant(np.array(values, np.int32)) for values in ((0, 0, 0, 0), (1, 4, 5, 4))]
        net.op(kind, [x, *bounds], [y], schema.SliceOptionsT())
    elif kind == "GATHER":
        if dtype == "INT16":
            pytest.skip("its kernel does not take it")
        y, options = net.picture(6, 5, 4), schema.GatherOptionsT()
        options.axis = 1
        net.op(kind, [x, net.constant(np.array([2, 3, 2, 3, 5, 5], np.int32))], [y], options)
    elif kind == "DYNAMIC_UPDATE_SLICE":
        y = net.picture(6, 5, 4)
        rows = net.window("MAX_POOL_2D", source, kernel=(5, 1), padding=VALID)
        net.op(kind, [x, rows, net.constant(np.array([0, 3, 0, 0], np.int32))], [y])
    else:
        y = net.map(kind, x)
        fixed = {("LOGISTIC", "INT8"): (1 / 256, -128), ("TANH", "INT8"): (1 / 128, 0)}
        fixed |= {(name, "INT16"): (2**-15, 0) for name in ("LOGISTIC", "TANH")}
        if (kind, dtype) in fixed and dtype != "FLOAT32":
            q = net.table.tensors[y].quantization
            q.scale, q.zeroPoint = [fixed[kind, dtype][0]], [fixed[kind, dtype][1]]
        if kind == "QUANTIZE":
            net.table.tensors[y].type = schema.TensorType.UINT8
        if kind == "LEAKY_RELU":
            net.table.operators[-1].builtinOptions = schema.LeakyReluOptionsT()
            net.table.operators[-1].builtinOptionsType = schema.BuiltinOptions.LeakyReluOptions
            net.table.operators[-1].builtinOptions.alpha = 0.1
    data = net.build([source], [y])
    graph = read_model(data)
    arena = analyse_arena(graph)
    if TFLiteModel(data).snapshot.refusals:
        pytest.skip("TFLM has no such kernel")
    if (kind, dtype) == ("RSQRT", "INT8"):
        pytest.skip("the kernel refuses negative numbers")
    below, above = arena.aliases.pairs[-1]
    assert arena.buffers[above].tensor == y
    top = sum(b.interval.size for b in arena.buffers)
    offsets = {(0, b.tensor): sum(c.interval.size for c in arena.buffers[:i]) for i, b in enumerate(arena.buffers)}
    offsets[0, y] = offsets[0, arena.buffers[below].tensor]
    planned = bytes(Snapshot.read(data).with_offsets(offsets).data)
    after = analyse_arena(read_model(planned))
    assert not after.problems
    assert (below, above) in [(a.old, a.new) for a in after.used.pairs]
    assert after.head <= top
    assert all(wheel_agrees([(data, planned)]))


def test_heads_are_those_of_the_runtime():
    for seed in range(6):
        model = TFLiteModel(in_stripes(seed))
        original = model.to_bytes()
        model.plan_memory(1)
        assert run_in_wheel(model.to_bytes(), [], 0).head == model.arena.head
        assert all(wheel_agrees([(original, model.to_bytes())]))


def test_the_report_says_what_is_shared(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    net = Net()
    x = source = net.picture(8, 8, 4)
    for _ in range(2):
        x = net.map("RELU", x)
    x = net.map("ADD", x, net.window("CONV_2D", x, 4))
    path = tmp_path / "model.tflite"
    path.write_bytes(net.build([source], [x]))
    assert main(["-i", str(path), "--plan", "--memory-map", str(tmp_path / "map.png")]) == 0
    told = capsys.readouterr().out
    assert "Computed in place: 1 ADD, 2 RELU (disable with --no-sharing)" in told
    assert main(["-i", str(path), "--plan", "--no-sharing", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["planning"]["in_place"] == {}
    assert report["planning"]["head"] == 3 * 256
    assert main(["-i", str(path), "--no-sharing"]) == 2
    assert "add --plan" in capsys.readouterr().err


def test_ports_without_conversion_are_planned_in_place_too():
    model = TFLiteModel(converting(outer="UINT8", width=400))
    assert model.plan_memory().in_place == {"LEAKY_RELU": 1, "QUANTIZE": 2}
    assert model.arena.head == 4800


# -- orders that make use of it ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_orders_know_what_certainly_shares_a_place(seed: int):
    """In any order, bytes alive with outputs in the place of inputs that have no other use are no less than what is
    shared in the arena, and no more than without."""
    rng = random.Random(seed)
    snapshot = TFLiteModel(random_net(rng, steps=8)).snapshot
    graph, subgraph = snapshot.graph, snapshot.graph.subgraphs[0]
    plain, shared = (ordering_problem(graph, subgraph, {}, costs) for costs in (ARENA_COSTS, IN_PLACE_COSTS))
    order, waiting = [], list(range(plain.n))
    while waiting:
        ready = [t for t in waiting if not any(plain.predecessors[t] >> other & 1 for other in waiting)]
        order.append(rng.choice(ready))
        waiting.remove(order[-1])
    arena = snapshot.reordered([order]).arena
    alive = Profile(layout_of(arena.intervals, arena.aliases).intervals).peak
    at_the_start = Profile(arena.intervals).at(0)  # an input that nobody reads is unknown to the problem
    assert alive <= max(shared.peak(order), at_the_start)
    assert shared.peak(order) <= plain.peak(order)
    assert shared.ancestors == plain.ancestors


@pytest.mark.parametrize(("in_place", "head"), [(True, 12_288), (False, 16_384)])
def test_an_order_for_a_plan_in_place(in_place: bool, head: int):
    """Without shared places all orders take the same, so that of the file stays; with them, the second sum, which can
    lie on the first, comes before the other reader of the input."""
    b = Builder()
    x, a, total, other, y = (b.tensor((1, 1024), "FLOAT32") for _ in range(5))
    b.op("RELU", [x], [a])
    b.op("ADD", [x, a], [total])
    b.op("SOFTMAX", [x], [other])
    b.op("ADD", [a, total], [y])
    model = TFLiteModel(b.build([x], [other, y]))
    decision = model.optimize_memory(for_arena=True, in_place=in_place)
    assert decision.changed is in_place
    assert model.plan_memory(in_place=in_place).after == head
    assert is_intact(model.to_bytes())


@pytest.mark.parametrize("case", ["variable", "written twice", "input"])
def test_an_output_that_does_not_begin_there_is_no_such_buffer(case: str):
    """It was read, or written, before the operator whose input it might lie on."""
    b = Builder()
    x, c, v, early, y = (b.tensor((1, 16), "FLOAT32") for _ in range(5))
    if case == "variable":
        b.table.tensors[v].isVariable = True
    if case == "written twice":
        b.op("SOFTMAX", [x], [v])
    b.op("SOFTMAX", [v], [early])
    b.op("SOFTMAX", [x], [c])
    b.op("RELU", [c], [v])
    parts = []
    for _ in range(3):
        wide, part = b.tensor((1, 64), "FLOAT32"), b.tensor((1, 16), "FLOAT32")
        b.op("TILE", [x, b.constant(np.array([1, 4], np.int32))], [wide])
        b.op("SLICE", [wide, *(b.constant(np.array(n, np.int32)) for n in ([0, 0], [1, 16]))], [part])
        parts.append(part)
    b.op("ADD_N", [early, v, *parts], [y])
    data = b.build([x, v] if case == "input" else [x], [y])
    problems = [
        ordering_problem(g := read_model(data), g.subgraphs[0], {}, costs) for costs in (ARENA_COSTS, IN_PLACE_COSTS)
    ]
    assert problems[0] == problems[1]
    model = TFLiteModel(data)
    assert not model.optimize_memory(for_arena=True).refusal
    assert model.plan_memory().after <= TFLiteModel(data).arena.head


def test_a_plan_that_shares_memory_is_replaced_when_none_may():
    b = Builder()
    x, y, z = (b.tensor((1, 2000), "FLOAT32") for _ in range(3))
    b.op("RELU", [x], [y])
    b.op("RELU", [y], [z])
    model = TFLiteModel(b.build([x], [z]))
    model.plan_memory()
    shared = model.arena.head
    decision = model.plan_memory(in_place=False)
    assert decision.changed
    assert not model.arena.used
    assert model.arena.head == decision.bound > shared
    assert "no layout is smaller without shared memory" in decision.lines()[0]


def test_peaks_before_and_after_loops_share_memory_are_named(capsys: pytest.CaptureFixture[str]):
    TFLiteModel(looped()).print_model_analysis()
    told = r"usage: [0-9,]+ B \(tensors of loops .* counted once; [0-9,]+ B otherwise\)"
    assert re.search(told, capsys.readouterr().out)


def test_what_is_read_by_slices_before_it_is_written_takes_memory_all_the_same():
    """As a damaged file may have it."""
    b = Builder()
    x, late, *ends = (b.tensor(shape) for shape in [(1, 8, 4096)] * 2 + [(1, 4, 4096)] * 2)
    for first, end in zip((0, 4), ends, strict=True):
        bounds = [b.constant(np.array(values, np.int32)) for values in ((0, first, 0), (1, 4, 4096))]
        b.op("SLICE", [late, *bounds], [end], schema.SliceOptionsT())
    b.op("RELU", [x], [late])
    pieces = TFLiteModel(b.build([x], ends)).arena.aliases.pieces
    assert all(piece.first <= piece.last for piece in itertools.chain(*pieces.values()))

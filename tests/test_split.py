"""Partial execution: every row is computed where it is needed, the outputs stay the same, and the memory is as said."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, SHARED, corpus, corpus_id, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builder import Builder
from runtimes import litert_agrees, random_inputs, run_litert, run_tflm, wheel_agrees
from spatial_nets import Net, quantized_by, random_net, regions, rewritten, search_of, split

import tflite_tools
from tflite_tools import (
    Budget,
    NewOperator,
    Operator,
    Rewrite,
    RowRule,
    SplitSearch,
    Subgraph,
    TFLiteModel,
    main,
    persistent_bytes,
    read_model,
    row_rule,
    schedule_model,
)

# -- the row algebra, checked with rows that know where they come from -----------------------------

Row = tuple[Any, ...]
PADDING: Row = ("padding",)


def whole_rows(subgraph: Subgraph) -> dict[int, list[Row]]:
    """Per tensor its rows, each a value that differs as soon as anything it is computed from differs."""
    rows: dict[int, list[Row]] = {}
    for i in subgraph.inputs:
        rows[i] = [("input", i, r) for r in range(subgraph.tensors[i].shape[1])]
    for operator in subgraph.operators:
        (output,) = operator.outputs
        rows[output] = computed(operator, row_rule(subgraph, operator), rows, operator.inputs,
                                subgraph.tensors[output].shape[1], only_adds_rows(subgraph, operator))  # fmt: skip
    return rows


def only_adds_rows(subgraph: Subgraph, operator: Operator) -> bool:
    """Whether it pads rows, but no columns: the others stay as they are."""
    source, output = (subgraph.tensors[t] for t in (operator.inputs[0], operator.outputs[0]))
    return operator.kind == "PAD" and source.shape[2:] == output.shape[2:]


def computed(operator: Operator, rule: RowRule | str, rows: dict[int, list[Row]], inputs: tuple[int, ...],
             height: int, is_copied: bool) -> list[Row]:  # fmt: skip
    """The output rows of an operator, or of a copy of it on other tensors; ``is_copied``: it only adds rows."""
    if isinstance(rule, str):
        everything = hash(tuple(tuple(rows[i]) for i in inputs if i in rows))
        return [(operator.index, everything, r) for r in range(height)]
    sources = [rows[inputs[operator.inputs.index(i)]] for i in rule.sources]
    result = []
    for row in range(height):
        start = row // rule.repeat * rule.stride - rule.pad_top
        read = [[source[r] if 0 <= r < len(source) else PADDING for r in range(start, start + rule.window)]
                for source in sources]  # fmt: skip
        result.append(read[0][0] if is_copied else (operator.index, hash(tuple(map(tuple, read)))))
    return result


def rewritten_rows(subgraph: Subgraph, rewrite: Rewrite) -> dict[int, list[Row]]:
    """The rows of all old tensors, by running the new operators on rows: an interpreter that knows no rule of reads."""
    old = len(subgraph.tensors)
    constants = {old + i: t.values for i, t in enumerate(rewrite.tensors) if t.values is not None}
    heights = {old + i: t.shape[1] for i, t in enumerate(rewrite.tensors) if t.values is None}
    rows: dict[int, list[Row]] = {}
    for i in subgraph.inputs:
        rows[i] = [("input", i, r) for r in range(subgraph.tensors[i].shape[1])]
    for item in rewrite.operators:
        new = item if isinstance(item, NewOperator) else None
        operator = (
            subgraph.operators[item if new is None else new.like] if new is None or new.like is not None else None
        )
        inputs, (output,) = (new or operator).inputs, (new or operator).outputs
        if operator is None and new.kind == "SLICE":
            _, begin, _, _ = struct.unpack("<4i", constants[inputs[1]])
            _, size, _, _ = struct.unpack("<4i", constants[inputs[2]])
            assert min(begin, size - 1, len(rows[inputs[0]]) - begin - size) >= 0, "it reads rows that do not exist"
            rows[output] = rows[inputs[0]][begin : begin + size]
        elif operator is None and new.kind == "CONCATENATION":
            assert len(inputs) <= 10
            rows[output] = [row for i in inputs for row in rows[i]]
        elif operator is None:
            _, _, above, below, *_ = struct.unpack("<8i", constants[inputs[1]])
            rows[output] = [PADDING] * above + rows[inputs[0]] + [PADDING] * below
        else:
            rule = row_rule(subgraph, operator)
            if new is not None and new.options:
                rule = dataclasses.replace(rule, pad_top=0)
            elif new is not None and operator.kind == "PAD":
                rule = dataclasses.replace(rule, pad_top=struct.unpack("<8i", constants[inputs[1]])[2])
            height = heights.get(output) or subgraph.tensors[output].shape[1]
            rows[output] = computed(operator, rule, rows, inputs, height, only_adds_rows(subgraph, operator))
        assert len(rows[output]) == (heights.get(output) or subgraph.tensors[output].shape[1])
    return rows


def outputs_agree(data: bytes, search: SplitSearch, rewrite: Rewrite) -> bool:
    graph = read_model(data)
    subgraph = graph.subgraphs[0]
    before = whole_rows(subgraph)
    after = rewritten_rows(subgraph, rewrite)
    assert set(subgraph.outputs) <= after.keys()
    return all(before[i] == rows for i, rows in after.items() if i < len(subgraph.tensors))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_stripes_compute_every_row_from_the_right_rows(seed: int):
    rng = random.Random(seed)
    data = random_net(rng)
    found = list(regions(data))
    for search, region in rng.sample(found, min(len(found), 25)):
        assert outputs_agree(data, search, rewritten(search, region)), region


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_one_row_off_is_noticed(seed: int):
    rng = random.Random(seed)
    data = random_net(rng, has_equal_rows=False)
    found = list(regions(data))
    for search, region in rng.sample(found, min(len(found), 10)):
        rewrite = rewritten(search, region)
        old = len(search.problem.subgraph.tensors)
        begins = sorted({o.inputs[1] - old for o in rewrite.operators
                         if isinstance(o, NewOperator) and o.like is None and o.kind == "SLICE"})  # fmt: skip
        if not begins:
            continue
        tensors = list(rewrite.tensors)
        place = rng.choice(begins)
        values = list(struct.unpack("<4i", tensors[place].values or b""))
        values[1] += 1 if values[1] == 0 else rng.choice((-1, 1))
        tensors[place] = tensors[place]._replace(values=struct.pack("<4i", *values))
        try:
            agrees = outputs_agree(data, search, Rewrite(rewrite.operators, tuple(tensors)))
        except AssertionError:
            continue  # rows that do not exist: noticed as well
        assert not agrees, region


@settings(max_examples=28, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cached_rows_are_computed_once(seed: int):
    data = random_net(random.Random(seed))
    for search, region in regions(data):
        if region.is_cached:
            whole = search.problem.region(region.start, region.end, is_cached=True)
            rows = list(tflite_tools.stripe_rows(whole, region.stripes))
            for number, ((output,), rule) in whole.parts.items():
                ranges = [stripe.computed[number] for stripe in rows if number in stripe.computed]
                assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
                height, computed = search.problem.subgraph.tensors[output].shape[1], sum(b - a for a, b in ranges)
                assert computed <= height or isinstance(rule, tflite_tools.CutRule)
                assert computed == height or output not in whole.live_out


# -- the runtimes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["INT8", *(pytest.param(t, marks=pytest.mark.slow) for t in ("INT16", "FLOAT32"))])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_nets_give_the_same_bits_in_litert(dtype: str, seed: int):
    rng = random.Random(seed)
    data = random_net(rng, dtype)
    found = list(regions(data))
    for search, region in rng.sample(found, min(len(found), 6)):
        changed = split(data, search, region)
        assert litert_agrees(data, changed), region


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.sampled_from([-1, 3]))
def test_batches_are_split_like_single_pictures(seed: int, batch: int):
    rng = random.Random(seed)
    data = random_net(rng, batch=batch)
    found = list(regions(data))
    for search, region in rng.sample(found, min(len(found), 4)):
        changed = split(data, search, region)
        assert litert_agrees(data, changed), region
        if batch < 0:
            assert in_a_batch_of_two(changed) in (in_a_batch_of_two(data), None), region


def in_a_batch_of_two(data: bytes) -> list[bytes] | None:
    """What LiteRT computes where it resizes the input; None where it refuses that."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    detail = interpreter.get_input_details()[0]
    shape = [2, *detail["shape"][1:]]
    try:
        interpreter.resize_tensor_input(detail["index"], shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(detail["index"], np.arange(np.prod(shape)).reshape(shape).astype(detail["dtype"]))
        interpreter.invoke()
    except (RuntimeError, ValueError):
        return None
    return [interpreter.get_tensor(output["index"]).tobytes() for output in interpreter.get_output_details()]


def test_uint8_is_not_split_since_tflm_has_no_kernels_for_it():
    b = Builder()
    x, y = b.tensor((1, 8, 8, 4), "UINT8"), b.tensor((1, 8, 8, 4), "UINT8")
    b.op("RELU", [x], [y])
    subgraph = read_model(b.build([x], [y])).subgraphs[0]
    assert "type" in str(row_rule(subgraph, subgraph.operators[0]))


@pytest.mark.parametrize("is_cached", [False, True])
def test_several_regions_and_what_is_around_them(is_cached: bool):
    """Two disjoint regions with a barrier between them, in a model with signatures, metadata and a second subgraph."""
    net = Net()
    x = source = net.picture(16, 8, 3)
    for channels in (8, 8, 4):
        x = net.window("CONV_2D", x, channels)
    scores = net.map("SOFTMAX", x)
    net.table.operators[-1].builtinOptionsType, net.table.operators[-1].builtinOptions = (
        schema.BuiltinOptions.SoftmaxOptions,
        schema.SoftmaxOptionsT(),
    )
    net.table.operators[-1].builtinOptions.beta = 1.0
    x = net.map("ADD", net.window("CONV_2D", scores, 4), scores)
    net.table.tensors[scores].quantization = quantized_by([1 / 256], [-128])
    net.model.add_metadata("note", b"as it was")
    net.model.add_metadata(tflite_tools.OFFLINE_PLAN, np.array([1, 1, 99] + [-1] * 99, "<i4").tobytes())
    data = net.build([source], [x])
    graph = read_model(data)
    search = search_of(data)
    chosen = [search.problem.evaluate(start, end, 4, is_cached) for start, end in ((0, 3), (4, 5))]
    changed = split(data, search, *chosen)
    after = read_model(changed)
    assert [name for name, _ in after.metadata] == ["note"]  # the plan was for other tensors
    assert after.subgraphs[0].inputs == graph.subgraphs[0].inputs
    assert after.subgraphs[0].outputs == graph.subgraphs[0].outputs
    assert max(s.peak for s in schedule_model(after)) < max(s.peak for s in schedule_model(graph))
    used = {i for o in after.subgraphs[0].operators for i in (*o.inputs, *o.outputs)}
    assert used == set(range(len(after.subgraphs[0].tensors)))  # TFLM gives memory to those that nobody uses
    kept = {t.buffer for t in after.subgraphs[0].tensors if t.name in {t.name for t in graph.subgraphs[0].tensors}}
    assert all(after.buffers[b].data.tobytes() == graph.buffers[b].data.tobytes() for b in kept)
    new = {t.buffer for t in after.subgraphs[0].tensors} - {t.buffer for t in graph.subgraphs[0].tensors}
    assert all(after.buffers[b].size <= 32 for b in new)
    assert litert_agrees(data, changed)


# -- what is chosen ----------------------------------------------------------------------------------


def test_the_composition_is_the_best_of_all_that_were_tried():
    """The dynamic programme against every set of disjoint regions."""
    net = Net(seed=5)
    x = source = net.picture(48, 40, 2)
    for channels, stride in ((8, 1), (8, 2), (6, 1), (8, 2)):
        x = net.window("CONV_2D", x, channels, stride=stride)
    data = net.build([source], [x])
    search = search_of(data)
    most_time = search.problem.time // 3
    front = search.front(most_time)
    assert len(front) > 2
    assert all(a.cost.peak > b.cost.peak for a, b in itertools.pairwise(front))
    options = [r for found in search.regions.values() for r in found.values()]
    for limit in {c.cost.peak for c in front[1:]}:
        best = min(
            sum(r.cost.persistent for r in chosen)
            for count in range(1, 4)
            for chosen in itertools.combinations([r for r in options if r.cost.peak <= limit], count)
            if all(a.end <= b.start or b.end <= a.start for a, b in itertools.combinations(chosen, 2))
            and sum(r.cost.time for r in chosen) <= most_time
            and all(step.need <= limit for k, step in enumerate(search.problem.steps)
                    if not any(r.start <= k < r.end for r in chosen))
        )  # fmt: skip
        composed = search.compose(limit, most_time, tflite_tools.in_memory)
        assert composed is not None
        assert composed.cost.persistent == best


def test_the_peak_of_the_written_model_is_the_one_that_was_promised():
    for name in ("cnn", "mobilenet"):
        model = TFLiteModel.load_from_file(MODELS / f"digits_{name}_int8.tflite")
        original = TFLiteModel(model.to_bytes())
        result = model.split_operators(max_time=25)
        assert result.changed
        aligned = tflite_tools.plan_optimally(model.arena.intervals).bound
        assert aligned == result.chosen.cost.peak == result.after
        assert result.chosen.cost.sum < result.unsplit.cost.sum
        assert len(model.to_bytes()) - len(original.to_bytes()) == result.file_growth
        assert len(model.graph.subgraphs[0].operators) == result.chosen.cost.operators
        assert abs(model.arena.persistent - result.chosen.cost.persistent) < 0.01 * result.chosen.cost.persistent
        assert result.chosen.macs_percent <= 25
        assert litert_agrees(original.to_bytes(), model.to_bytes(), seeds=5)


def test_the_better_of_two_orders_is_split():
    """Branches that are all opened before any is closed: in the best order there is less to split."""
    net = Net()
    source = net.picture(32, 32, 4)
    inner = [net.window("CONV_2D", source, 32, kernel=(1, 1)) for _ in range(2)]
    ends = [net.window("CONV_2D", x, 4, kernel=(1, 1)) for x in inner]
    data = net.build([source], [net.concatenate(*ends)])
    sums, results = [], []
    for try_orders in (False, True):
        model = TFLiteModel(data)
        results.append(model.split_operators(try_orders=try_orders, time_limit=3))
        sums.append(model.optimize_memory(3).after + model.arena.persistent)
        assert litert_agrees(data, model.to_bytes())
    assert results[1].is_reordered
    assert sums[1] < sums[0]
    assert "CONCATENATION" not in results[0].new_kinds  # the model has that already
    assert "SLICE" in results[0].new_kinds


@pytest.mark.parametrize("dtype", ["INT8", "FLOAT32"])
@pytest.mark.parametrize("there", [None, 1, 2, 3])
def test_glue_has_the_version_that_its_type_takes(dtype: str, there: int | None):
    """An operator code of the file serves if its version is not too low."""
    net = Net(dtype)
    source = net.picture(32, 32, 4)
    end = net.window("CONV_2D", net.window("CONV_2D", source, 32), 4)
    if there is not None:
        net.model.code("SLICE")
        net.model.codes[-1][1].version = there
    data = net.build([source], [end])
    model = TFLiteModel(data)
    assert model.split_operators().changed
    codes = schema.ModelT.InitFromPackedBuf(model.to_bytes(), 0).operatorCodes
    versions = [c.version for c in codes if c.builtinCode == schema.BuiltinOperator.SLICE]
    needed = 2 if dtype == "INT8" else 1
    assert versions == ([needed] if there is None else [there] if there >= needed else [there, needed])
    used = {o.opcodeIndex for o in schema.ModelT.InitFromPackedBuf(model.to_bytes(), 0).subgraphs[0].operators}
    slices = {i for i, c in enumerate(codes) if c.builtinCode == schema.BuiltinOperator.SLICE}
    assert [codes[i].version for i in used & slices] == [max(needed, there or 0)]
    assert all(c.deprecatedBuiltinCode == min(c.builtinCode, 127) for c in codes)
    assert litert_agrees(data, model.to_bytes())


def test_no_extra_work_is_allowed():
    model = TFLiteModel.load_from_file(MODELS / "digits_mobilenet_int8.tflite")
    result = model.split_operators(max_time=0)
    assert result.chosen.macs_percent <= 0


def test_what_cannot_be_split_stays_as_it_is():
    net = Net()
    x = net.picture(16, 8, 2)
    y = net.map("SOFTMAX", x)
    data = net.build([x], [y])
    model = TFLiteModel(data)
    result = model.split_operators()
    assert not result.changed
    assert result.chosen == result.unsplit
    assert model.to_bytes() == data


def test_a_kernel_of_another_subgraph_without_its_inputs_is_a_refusal():
    """What TFLM takes of such a model is not known, so no way to split it can be said to need less."""
    net = Net()
    x = net.picture(16, 8, 2)
    y = net.window("CONV_2D", net.window("CONV_2D", x, 16), 2)
    net.finish([x], [y])
    other = Builder(net.model, "other")
    other.op("MEAN", [other.tensor((4,))], [other.tensor((1,))])
    other.finish([0], [1])
    model = TFLiteModel(net.model.build())
    result = model.split_operators(try_orders=True)
    assert not result.changed
    assert "MEAN" in result.refusal
    assert result.json()["chosen"] is None


def test_a_file_that_numbers_its_operators_is_refused():
    net = Net()
    x = net.picture(16, 8, 2)
    y = net.window("CONV_2D", net.window("CONV_2D", x, 16), 2)
    net.model.add_metadata("model_control_dependencies", b"1234")
    model = TFLiteModel(net.build([x], [y]))
    result = model.split_operators()
    assert not result.changed
    assert "model_control_dependencies" in result.refusal


@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "L2_POOL_2D", "MEAN", "CUMSUM"])
def test_barriers(kind: str):
    net = Net()
    x = net.picture(9, 9, 2)
    y = net.window(kind, x, stride=2) if kind.endswith("2D") else net.map(kind, x)
    data = net.build([x], [y])
    graph = read_model(data)
    assert isinstance(row_rule(graph.subgraphs[0], graph.subgraphs[0].operators[0]), str)


# -- the estimate of the persistent part, and the real runtime ---------------------------------------

# What the runtime's own benchmark adds: 100 slots of 20 bytes for resource variables, and the recording of figures; how
# that is rounded depends on the model.
BENCHMARK_OVERHEAD, ROUNDING = 2_120, 16


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    "name", ["mobilenet_v1_025_96", "mobilenet_v3_small_224", "resnet8_32", "dscnn_kws_49x10", "nasnet_mobile_224"]
)
def test_persistent_bytes_are_estimated_well(name: str):
    path = SHARED / "nets" / f"{name}.tflite"
    estimate = persistent_bytes(read_model(path.read_bytes())).total
    assert abs(run_tflm(path).tail - BENCHMARK_OVERHEAD - estimate) <= ROUNDING


def test_the_persistent_bytes_of_regions_are_estimated_well():
    data = random_net(random.Random(7), steps=7, size=12)
    unsplit = TFLiteModel(data).arena.persistent
    for search, region in itertools.islice(regions(data), 0, None, 9):
        more = TFLiteModel(split(data, search, region)).arena.persistent - unsplit
        assert more == pytest.approx(region.cost.persistent, abs=16)


def test_searches_never_give_work_back(monkeypatch: pytest.MonkeyPatch):
    spent: list[float] = []
    spend = Budget.spend
    monkeypatch.setattr(Budget, "spend", lambda seconds: (spent.append(seconds), spend(seconds)))
    TFLiteModel(random_net(random.Random(7), steps=7, size=12)).fit(time_limit=1)
    assert min(spent) > 0


@pytest.mark.parametrize("name", ["cnn", "mobilenet"])
def test_the_real_runtime_takes_what_the_plan_says(name: str, tmp_path: Path):
    path = MODELS / f"digits_{name}_int8.tflite"
    model = TFLiteModel.load_from_file(path)
    model.split_operators(max_time=25)
    model.optimize_memory(for_arena=True)
    model.plan_memory()
    model.write_to_file(tmp_path / "split.tflite")
    before, after = run_tflm(path), run_tflm(tmp_path / "split.tflite")
    assert after.head == model.arena.head < before.head
    assert after.output == before.output
    assert abs(after.tail - BENCHMARK_OVERHEAD - model.arena.persistent) <= ROUNDING


SMALL = [p for p in corpus() if p.stat().st_size < 1.2e6][::5]  # tests/benchmarks/split.py --corpus has all


@needs_shared
@pytest.mark.parametrize("path", SMALL, ids=corpus_id)
def test_corpus_is_split_bit_identically(path: Path):
    try:
        model = TFLiteModel.load_from_file(path)
    except tflite_tools.ModelError:
        pytest.skip("not a model")
    original = model.to_bytes()
    result = model.split_operators(max_time=50, time_limit=1)
    if not result.changed:
        assert model.to_bytes() == original
        return
    try:
        inputs = random_inputs(original, 0)
        before = run_litert(original, inputs, reference=True)
    except (ValueError, RuntimeError) as error:
        pytest.skip(f"LiteRT does not run it: {error}")
    after = run_litert(model.to_bytes(), inputs, reference=True)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


# -- what is promised of every step --------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_default_finds_the_best_and_what_it_writes_runs_everywhere(seed: int):
    """With scales of their own, as converters write them: in TFLM, and in LiteRT with the delegate of its default."""
    rng = random.Random(seed)
    data = random_net(rng, steps=rng.randint(3, 8), is_rescaled=True, size=40)
    reserves, pairs, inputs = {}, [], random_inputs(data, 0)
    for stripes in ("auto", "unrolled", "loop"):
        model = TFLiteModel(data)
        before, decision = model.arena.reserve, model.split_operators(20, 20, True, stripes=stripes)
        model.optimize_memory(5, for_arena=True)
        model.plan_memory(5)
        reserves[stripes] = model.arena.reserve
        assert model.arena.reserve <= before
        if decision.changed:
            pairs.append((data, model.to_bytes()))
            one, other = (run_litert(each, inputs, with_delegate=True) for each in pairs[-1])
            assert all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))
    assert reserves["auto"] <= min(reserves.values())
    assert all(wheel_agrees(pairs))


STEPS = {
    "order": TFLiteModel.optimize_memory,
    "split": lambda model: model.split_operators(for_plan=False, max_time=50),
    "split and order": lambda model: (
        model.split_operators(for_plan=False, max_time=50, try_orders=True),
        model.optimize_memory(),  # with which the split is judged
    ),
    "loops": lambda model: model.split_operators(for_plan=False, max_time=50, stripes="auto"),
    "lighten": lambda model: model.lighten_operators(for_plan=False),
    "ports": lambda model: model.use_integer_ports(for_plan=False),
    "plan": TFLiteModel.plan_memory,
    "compress": TFLiteModel.compress_weights,
}


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_step_raises_the_number_to_reserve(step: str, seed: int):
    """Nor the peak, where that number is equal; here as TFLM itself lays the arena out, unless there is a plan."""
    rng = random.Random(seed)
    model = TFLiteModel(random_net(rng, rng.choice(("INT8", "FLOAT32")), steps=8, size=24))
    model.optimize_memory(0)
    before, peak = model.arena.reserve, model.peak_memory_usage()
    STEPS[step](model)
    assert model.arena.reserve <= before
    assert model.arena.reserve < before or model.peak_memory_usage() <= peak


def tangled(rng: random.Random) -> bytes:
    b = Builder()
    alive = [b.tensor((rng.randrange(500, 5000),))]
    read: set[int] = set()
    for _ in range(9):
        inputs = rng.sample(alive, min(len(alive), rng.choice((1, 1, 2))))
        alive.append(b.tensor((rng.randrange(500, 5000),)))
        b.op("CUMSUM" if len(inputs) == 1 else "ADD", inputs, alive[-1:])
        read.update(inputs)
    return b.build(alive[:1], [t for t in alive if t not in read])


def test_an_order_that_would_raise_the_arena_is_not_taken():
    """The smallest peak has not always the smallest layout of TFLM's own planner."""
    data, refused = [tangled(random.Random(seed)) for seed in range(12)], 0
    for model in map(TFLiteModel, data):
        before = model.arena.reserve
        decision = model.optimize_memory()
        assert model.arena.reserve <= before
        refused += "--plan may do better" in decision.lines()[0]
        model.optimize_memory(for_arena=True)
        model.plan_memory()
        assert model.arena.reserve <= before
    assert refused


def test_what_planning_takes_decides_too():
    """Stripes lower the sum of tensors and structures, and raise what TFLM takes while it plans."""
    net = Net()
    x = source = net.picture(16, 8, 4)
    for channels in (12, 4):
        x = net.window("CONV_2D", x, channels, (3, 3))
    for _ in range(40):
        x = net.window("CONV_2D", x, 4, (1, 1))
    model = TFLiteModel(net.build([source], [x]))
    before = model.arena
    assert before.planning > before.head + before.persistent
    decision = model.split_operators(max_time=100, stripes="auto")
    assert not decision.changed
    assert "no way needs a smaller arena" in decision.lines()[-1]
    b = Builder()
    x, y, z = (b.tensor((1, 16), "FLOAT32") for _ in range(3))
    b.op("RELU", [x], [y])
    b.op("RELU", [y], [z])
    plan = TFLiteModel(b.build([x], [z])).plan_memory()
    assert not plan.changed
    assert plan.unplanned < plan.before
    assert "would not lower what AllocateTensors() needs" in plan.lines()[0]


def test_hybrid_convolutions_stay_whole():
    """LiteRT quantises the input by the range of all of it, so stripes would compute other numbers."""
    net = Net("FLOAT32")
    source = net.picture(32, 32, 4)
    inner = net.window("CONV_2D", source, 32)
    last = net.window("CONV_2D", inner, 4)
    for operator in net.table.operators:
        weights = net.rng.integers(-90, 90, net.shape(operator.inputs[1])).astype(np.int8)
        operator.inputs[1] = net.constant(weights, quantization=quantized_by([0.02], [0]))
    model = TFLiteModel(net.build([source], [last]))
    decision = model.split_operators(stripes="auto")
    assert not decision.changed
    assert "it is hybrid, and LiteRT quantises its input by the range of the whole tensor" in decision.whole[0]


def test_a_damaged_height_takes_no_time():
    """What a file claims as its rows is not counted one by one."""
    net = Net()
    source = net.picture(1 << 24, 4, 2)
    x = net.window("CONV_2D", net.window("CONV_2D", source, 16), 2)
    model = TFLiteModel(net.build([source], [x]))
    decision = model.split_operators(stripes="auto")
    assert not any(region.is_loop for region in decision.chosen.regions)
    assert decision.seconds < 10


def test_damaged_channels_take_no_memory():
    """Nor what it claims as its channels, which a loop may cut into rows of another length."""
    net = Net()
    source = net.picture(2, 2, 3)
    wide = net.tensor((1, 2, 2, 3), "INT8", **net.quantization())
    net.op("RESHAPE", [source, net.constant(np.array([1, 2, 2, 3], np.int32))], [wide], schema.ReshapeOptionsT())
    x = net.window("CONV_2D", wide, 66, (1, 1))
    net.table.tensors[wide].shape = [1, 2, 2, (1 << 26) + 12]
    model = TFLiteModel(net.build([source], [x]))
    tracemalloc.start()
    model.split_operators(stripes="loop")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


# -- the command line ----------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = str(MODELS / "digits_mobilenet_int8.tflite")
    output, plot = tmp_path / "split.tflite", tmp_path / "split.png"
    options = ["--split", "--stripes", "unrolled", "--optimize", "--plan", "--verify"]
    options += ["-o", str(output), "--plot", str(plot)]
    assert main(["-i", path, *options]) == 0
    printed = capsys.readouterr().out
    assert "Split: peak 55,296 B -> " in printed
    assert "bit-identical" in printed
    assert plot.stat().st_size > 10_000
    assert TFLiteModel.load_from_file(output).peak_memory_usage() < 55_296
    assert "Also register in your MicroMutableOpResolver: CONCATENATION, PAD, SLICE" in printed
    for wrong in (["--split", "--max-time", "-1"], ["--max-time", "5"]):
        assert main(["-i", path, *wrong]) == 2
        assert "--max-time" in capsys.readouterr().err


# -- what fits ---------------------------------------------------------------------------------------


def test_what_fits_takes_the_least_time():
    path = MODELS / "digits_mobilenet_int8.tflite"
    smallest = TFLiteModel.load_from_file(path)
    whole = smallest.split_operators(max_time=25)
    for limit in (74_000, 66_000, 60_000):
        model = TFLiteModel.load_from_file(path)
        result = model.split_operators(max_time=25, limit=limit)
        model.plan_memory()
        assert model.arena.reserve <= limit
        assert result.chosen.macs_percent <= whole.chosen.macs_percent
    enough = TFLiteModel.load_from_file(path).split_operators(limit=1 << 20)
    assert not enough.changed
    assert "1,048,576 B are enough as it is" in enough.lines()[-1]
    too_little = TFLiteModel.load_from_file(path)
    too_little.split_operators(max_time=25, limit=10_240)
    assert too_little.to_bytes() == smallest.to_bytes()


def test_the_reasons_are_told():
    net = Net()
    x = source = net.picture(16, 8, 4)
    wide = net.window("CONV_2D", x, 32)
    x = net.window("AVERAGE_POOL_2D", wide, kernel=(3, 3), stride=2)
    x = net.window("CONV_2D", x, 4)
    result = TFLiteModel(net.build([source], [x])).split_operators(max_time=100)
    assert result.bounded_by.startswith(
        "operator 1 (AVERAGE_POOL_2D), which is not split: its average leaves padding out"
    )
    assert result.whole == ("operator 1 (AVERAGE_POOL_2D): its average leaves padding out",)
    told = "\n".join(result.lines())
    assert "The peak is that of operator 1 (AVERAGE_POOL_2D)" in told
    assert "Not split: operator 1 (AVERAGE_POOL_2D): its average leaves padding out" in told
    net = Net(batch=-1)
    x = source = net.picture(16, 8, 4)
    for channels in (32, 32, 4):
        x = net.window("CONV_2D", x, channels, kernel=(1, 1))
    result = TFLiteModel(net.build([source], [x])).split_operators(max_time=100)
    assert result.changed
    assert result.is_batch_fixed
    assert "in stripes; thinner stripes save nothing" in result.bounded_by
    assert "The batch size is fixed" in "\n".join(result.lines())


def test_a_model_without_operators_is_done_at_once():
    b = Builder()
    x = b.tensor((4,))
    result = TFLiteModel(b.build([x], [x])).split_operators(time_limit=60)
    assert not result.changed
    assert result.seconds < 5


# -- work instead of seconds ---------------------------------------------------------------------------


def everything(data: bytes, work: float = 60.0) -> TFLiteModel:
    model = TFLiteModel(data)
    model.split_operators(20, work / 2, True, stripes="auto")
    model.optimize_memory(work / 3, for_arena=True)
    model.plan_memory(work / 6)
    return model


@pytest.mark.parametrize("name", [pytest.param("cells", marks=pytest.mark.slow), "mobilenet"])
def test_the_clock_decides_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    """The same file on a machine that seems a thousand times slower, and after other searches."""
    data = (MODELS / f"digits_{name}_int8.tflite").read_bytes()
    expected = everything(data).to_bytes()
    real, start = time.monotonic, time.monotonic()
    monkeypatch.setattr("tflite_tools.time.monotonic", lambda: start + 1000 * (real() - start))
    assert everything(data).to_bytes() == expected


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_more_work_is_never_worse(seed: int):
    rng = random.Random(seed)
    data = random_net(rng, steps=rng.randint(4, 10), size=40)
    reserves = [everything(data, work).arena.reserve for work in (0.05, 0.1, 0.2, 0.4, 1.0)]
    assert reserves == sorted(reserves, reverse=True)


def test_the_brake_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.setattr(tflite_tools, "BRAKE", 0)
    path, report = str(MODELS / "digits_cells_int8.tflite"), tmp_path / "report.json"
    for limit, is_cut in ((["--time-limit", "5"], True), ([], False)):
        assert main(["-i", path, "--optimize", "--plan", "--json", str(report), *limit]) == 0
        assert ("cut short by the clock: this is the best so far" in capsys.readouterr().err) is is_cut
        assert json.loads(report.read_text())["cut_short"] is is_cut

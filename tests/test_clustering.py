"""Weight clustering: the smallest squared error, for every weight type, and an honest account."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st

import tflite_tools
from tflite_tools import TFLiteModel, cluster_values, decode_weights, encode_weights, read_model, weight_tensors


def squared_error(values: np.ndarray, clustered: np.ndarray) -> float:
    return float(np.sum((values.astype(np.float64) - clustered.astype(np.float64)) ** 2))


def best_integer_error(values: np.ndarray, clusters: int) -> int:
    """The optimum by trying every partition of the sorted values and every integer centroid."""
    ranked = np.sort(values)
    best = None
    for borders in itertools.combinations(range(1, len(ranked)), min(clusters, len(ranked)) - 1):
        parts = np.split(ranked, borders)
        error = sum(min(int(np.sum((p - c) ** 2)) for c in range(int(p.min()), int(p.max()) + 1)) for p in parts)
        best = error if best is None else min(best, error)
    assert best is not None
    return best


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.integers(1, 4))
def test_integers_reach_the_optimum_over_integer_centroids(values: list[int], clusters: int):
    array = np.array(values, np.int64)
    result = cluster_values(array.astype(np.int8), clusters)
    assert len(np.unique(result.values)) <= clusters
    assert result.values.dtype == np.int8
    assert result.squared_error == squared_error(array, result.values) == best_integer_error(array, clusters)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 3000))
def test_floats_are_no_worse_than_kmeans1d(seed: int, clusters: int, size: int):
    kmeans1d = pytest.importorskip("kmeans1d")
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=size) * rng.choice([0.01, 1, 100]) + rng.choice([0, 5])).astype(np.float32)
    result = cluster_values(values, clusters)
    labels, centroids = kmeans1d.cluster(values.astype(np.float64), min(clusters, len(values)))
    exact = squared_error(values, np.array(centroids)[labels].astype(np.float32))
    assert result.squared_error <= exact * (1 + 1e-6) + 1e-12  # centroids are rounded to float32
    assert np.isclose(result.squared_error, squared_error(values, result.values), rtol=1e-9)


def test_few_values_stay_as_they_are():
    values = np.array([[1.5, -2.0], [1.5, 7.0]], np.float32)
    result = cluster_values(values, 3)
    assert np.array_equal(result.values, values)
    assert result.squared_error == 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float32, np.float16])
def test_every_weight_type_in_a_model(dtype: type):
    rng = np.random.default_rng(1)
    weights = rng.normal(100, 20, (16, 3, 3, 4)).astype(dtype)
    bias = np.arange(16, dtype=np.int32 if np.issubdtype(dtype, np.integer) else dtype)
    b = Builder()
    x, w, c, y = b.tensor((1, 8, 8, 4)), b.constant(weights), b.constant(bias), b.tensor((1, 6, 6, 16))
    b.op("CONV_2D", [x, w, c], [y])
    data = b.build([x], [y])
    model = TFLiteModel(data)
    (account,) = model.cluster_weights(8).weights
    assert account.distinct_after <= 8
    assert account.bytes_before == weights.nbytes
    assert account.index_bytes == weights.size * 3 / 8
    assert account.codebook_bytes == 8 * weights.itemsize
    assert account.entropy_bytes <= account.index_bytes
    span = model.graph.buffers[model.graph.subgraphs[0].tensors[w].buffer]
    stored = np.frombuffer(bytes(model._data), np.uint8)
    clustered = stored[span.start : span.start + span.size].view(dtype).reshape(weights.shape)
    assert len(np.unique(clustered)) <= 8
    noise = squared_error(weights, clustered)
    assert np.isclose(account.sqnr_db, 10 * np.log10(np.sum(weights.astype(np.float64) ** 2) / noise))
    span = model.graph.buffers[model.graph.subgraphs[0].tensors[c].buffer]
    assert np.array_equal(stored[span.start : span.start + span.size].view(bias.dtype), bias)


def test_int4_is_packed_low_nibble_first():
    tensor = tflite_tools.Tensor(0, "w", "INT4", (3,), tflite_tools.Storage.CONSTANT, 1, 2)
    stored = np.array([0x71, 0x08], np.uint8)
    assert decode_weights(tensor, stored).tolist() == [1, 7, -8]
    assert np.array_equal(encode_weights(tensor, decode_weights(tensor, stored)), stored)


def test_which_tensors_are_weights():
    b = Builder()
    rng = np.random.default_rng(0)

    def weights(*shape: int, dtype: type = np.int8) -> int:
        return b.constant(rng.integers(-9, 9, shape).astype(dtype))

    x, y = b.tensor((1, 8)), b.tensor((1, 8))
    plain, shared, behind, bias = weights(8, 8), weights(8, 8), weights(8, 8, dtype=np.float16), weights(8)
    twin = b.tensor((8, 8), buffer=b.table.tensors[shared].buffer)
    floats = b.tensor((8, 8), "FLOAT32")
    sparse = b.tensor((8, 8), data=np.ones(64, np.int8), name="sparse one", sparsity=schema.SparsityParametersT())
    odd = b.tensor((8, 8), "INT32", data=np.ones(64, np.int32), name="odd one")
    b.op("DEQUANTIZE", [behind], [floats])
    for matrix in (plain, shared, twin, floats, sparse, odd):
        b.op("FULLY_CONNECTED", [x, matrix, bias], [y])
    found, notes = weight_tensors(read_model(b.build([x], [y])))
    assert [t.index for _, t in found] == [plain, shared, behind]
    assert any("sparse one" in note for note in notes)
    assert any("odd one" in note for note in notes)


def test_infinite_weights_are_left_alone():
    b = Builder()
    x, y = b.tensor((1, 4), "FLOAT32"), b.tensor((1, 4), "FLOAT32")
    matrix = np.arange(16, dtype=np.float32).reshape(4, 4)
    matrix[0, 0] = np.inf
    b.op("FULLY_CONNECTED", [x, b.constant(matrix), -1], [y])
    data = b.build([x], [y])
    model = TFLiteModel(data)
    result = model.cluster_weights(2)
    assert not result.weights
    assert "infinities" in result.notes[0]
    assert bytes(model._data) == data

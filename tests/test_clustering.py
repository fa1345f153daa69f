"""Weight clustering: the smallest squared error, for every weight type, and an honest account."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from arrays_to_cluster import ARRAY_KINDS, least_squared_error, random_array, squared_error
from corpus import MODELS, corpus, corpus_id, needs_shared
from file_differences import changed_buffers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builder import Builder
from runtimes import random_inputs, run_litert

import tflite_tools
from tflite_tools import TFLiteModel, cluster_values, decode_weights, encode_weights, read_model


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
    pytest.importorskip("kmeans1d")
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=size) * rng.choice([0.01, 1, 100]) + rng.choice([0, 5])).astype(np.float32)
    result = cluster_values(values, clusters)
    exact = least_squared_error(values, clusters)
    rounding = np.sum(np.spacing(np.abs(values), dtype=np.float32).astype(np.float64) ** 2)  # centroids are float32
    assert result.squared_error <= exact * (1 + 1e-9) + rounding
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
    written = read_model(model.to_bytes())
    stored = [written.buffers[written.subgraphs[0].tensors[t].buffer].data for t in (w, c)]
    clustered = stored[0].view(dtype).reshape(weights.shape)
    assert len(np.unique(clustered)) <= 8
    noise = squared_error(weights, clustered)
    assert np.isclose(account.sqnr_db, 10 * np.log10(np.sum(weights.astype(np.float64) ** 2) / noise))
    assert np.array_equal(stored[1].view(bias.dtype), bias)


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
    decision = TFLiteModel(b.build([x], [y])).cluster_weights(4)
    assert [weight.name for weight in decision.weights] == [f"t{index}" for index in (plain, shared, behind)]
    assert any("sparse one" in note for note in decision.notes)
    assert any("odd one" in note for note in decision.notes)


@pytest.mark.parametrize("kind", ["DEQUANTIZE", "DENSIFY", "CAST"])
def test_weights_behind_an_operator_that_unpacks_them(kind: str):
    b = Builder()
    x, y, w, floats = b.tensor((1, 8)), b.tensor((1, 8)), None, b.tensor((8, 8), "FLOAT32")
    w = b.constant(np.ones((8, 8), np.float16), name="packed")
    b.op(kind, [w], [floats])
    b.op("FULLY_CONNECTED", [x, floats, -1], [y])
    decision = TFLiteModel(b.build([x], [y])).cluster_weights(4)
    assert [weight.name for weight in decision.weights] == ([] if kind == "CAST" else ["packed"])


def test_code_books_of_small_types_are_packed():
    b = Builder()
    x, y = b.tensor((1, 8)), b.tensor((1, 8))
    nibbles = np.random.default_rng(0).integers(0, 256, 32).astype(np.uint8)
    w = b.tensor((8, 8), "INT4", data=nibbles)
    b.op("FULLY_CONNECTED", [x, w, -1], [y])
    (account,) = TFLiteModel(b.build([x], [y])).cluster_weights(5).weights
    assert (account.bytes_before, account.codebook_bytes, account.index_bytes) == (32, 3, 24)


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
    assert model.to_bytes() == data


def test_per_channel_code_books_follow_the_quantisation():
    rng = np.random.default_rng(2)
    b = Builder()
    x, y = b.tensor((1, 8, 8, 4)), b.tensor((1, 8, 8, 6))
    parameters = schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint, parameters.quantizedDimension = [0.1] * 6, [0] * 6, 3
    weights = rng.integers(-127, 128, (1, 5, 5, 6)).astype(np.int8)
    w = b.constant(weights, quantization=parameters)
    b.op("DEPTHWISE_CONV_2D", [x, w, -1], [y])
    data = b.build([x], [y])
    whole, apart = TFLiteModel(data), TFLiteModel(data)
    (one,) = whole.cluster_weights(4).weights
    (six,) = apart.cluster_weights(4, per_channel=True).weights
    assert (one.codebooks, six.codebooks, six.codebook_bytes) == (1, 6, 24)
    assert six.squared_error < one.squared_error
    written = read_model(apart.to_bytes())
    stored = written.buffers[written.subgraphs[0].tensors[w].buffer].data
    clustered = stored.view(np.int8).reshape(weights.shape)
    assert all(len(np.unique(clustered[..., c])) <= 4 for c in range(6))
    assert six.squared_error == squared_error(weights, clustered)


@pytest.mark.slow
@pytest.mark.parametrize("size", [70_000, 200_000])
def test_large_float_arrays_stay_within_the_stated_bound(size: int):
    pytest.importorskip("kmeans1d")
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    for clusters in (2, 8, 17):
        result = cluster_values(values, clusters)
        exact = least_squared_error(values, clusters)
        assert len(result.codebook) == clusters
        assert np.isclose(result.squared_error, squared_error(values, result.values), rtol=1e-6)
        assert result.squared_error <= exact * (1 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARRAY_KINDS)
@pytest.mark.parametrize("size", [20_000, 180_000])
def test_large_float_arrays_stay_within_the_stated_loss(kind: str, size: int):
    pytest.importorskip("kmeans1d")
    values = random_array(kind, size)
    for clusters in (2, 7, 16):
        result = cluster_values(values, clusters)
        exact = least_squared_error(values, clusters)
        rounding = np.sum(np.spacing(np.abs(result.values)).astype(np.float64) ** 2)  # centroids are float32
        assert result.squared_error <= exact * 1.001 + rounding
        assert np.isclose(result.squared_error, squared_error(values, result.values), rtol=1e-9)
        assert_describes(result, values)


@pytest.mark.parametrize("seed", range(4))
def test_values_of_many_scales_keep_their_clusters(seed: int):
    pytest.importorskip("kmeans1d")
    values = np.random.default_rng(seed).lognormal(0, 4, 100_000).astype(np.float32)
    assert cluster_values(values, 16).squared_error <= least_squared_error(values, 16) * 1.001


def assert_describes(result: tflite_tools.Clustering, values: np.ndarray) -> None:
    # numpy 2.4 sorts float16 wrongly on AVX-512.
    clustered, values = (v.astype(np.float32) if v.dtype == np.float16 else v for v in (result.values, values))
    entries = np.unique(clustered)
    assert np.array_equal(entries, result.codebook)
    assert result.distinct_before == len(np.unique(values))
    middles = (entries[1:].astype(np.float64) + entries[:-1]) / 2
    nearest = entries[np.searchsorted(middles, values.astype(np.float64))]
    assert np.array_equal(nearest, clustered)


@pytest.mark.parametrize("size", [3_000, 100_000])
def test_float16_is_as_good_as_float32(size: int):
    values = np.random.default_rng(size).normal(0, 9, size).astype(np.float16)
    for clusters in (4, 16):
        half, single = cluster_values(values, clusters), cluster_values(values.astype(np.float32), clusters)
        assert half.values.dtype == half.codebook.dtype == np.float16
        rounding = np.sum(np.spacing(np.abs(half.values)).astype(np.float64) ** 2)
        assert half.squared_error <= single.squared_error + rounding
        assert_describes(half, values)


@pytest.mark.parametrize("clusters", [1, 2, 300])
def test_few_and_many_clusters_of_a_large_array(clusters: int):
    values = random_array("normal", 100_000)
    result = cluster_values(values, clusters)
    assert len(result.codebook) == clusters
    assert_describes(result, values)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_few_values_of_a_large_array_stay_as_they_are(dtype: type):
    values = np.repeat(np.array([-7, 0, 1, 2, 30000], dtype), [70_000, 3, 1, 50_000, 1])
    result = cluster_values(values, 5)
    assert np.array_equal(result.values, values)
    assert result.squared_error == 0
    expected = 1 if dtype == np.int16 else 0.75  # the 1 goes to the three 0s, which then would best be at 1/4
    assert cluster_values(values, 4).squared_error == expected


@pytest.mark.parametrize(("spread", "size"), [(300, 20_000), (300, 100_000), (6000, 100_000)])
def test_many_integers_lose_no_more_than_the_rounding_of_centroids(spread: int, size: int):
    pytest.importorskip("kmeans1d")
    values = np.random.default_rng(spread).normal(0, spread, size).astype(np.int16)
    for clusters in (4, 16):
        result = cluster_values(values, clusters)
        assert result.squared_error <= least_squared_error(values, clusters) + size / 4
        assert result.squared_error == squared_error(values, result.values)
        assert_describes(result, values)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 24), st.integers(4_200, 9_000))
def test_the_search_on_cells_hardly_ever_misses_the_optimum(seed: int, clusters: int, size: int):
    pytest.importorskip("kmeans1d")
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    assert cluster_values(values, clusters).squared_error <= least_squared_error(values, clusters) * 1.001


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(2, 400))
def test_both_ways_of_the_dynamic_programme_agree(seed: int, clusters: int, size: int):
    values = np.unique(np.random.default_rng(seed).normal(size=size))
    ranked = tflite_tools.Ranked(values, np.ones(len(values)), is_integer=False)
    errors = []
    for most in (1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tflite_tools, "TABLE_UP_TO", most)
            borders = ranked.best_borders(clusters)
        assert len(borders) == min(clusters, len(values)) + 1
        errors.append(sum(float(np.sum((part - part.mean()) ** 2)) for part in np.split(values, borders[1:-1])))
    assert np.isclose(errors[0], errors[1], rtol=1e-9, atol=1e-12)


@needs_shared
def test_never_worse_than_kmeans_with_ten_starts():
    from sklearn.cluster import KMeans

    compared = 0
    for path in corpus():
        if path.stat().st_size > 90_000 or path.name == "0_subgraphs.bin.tflite" or compared == 10:
            continue
        data = path.read_bytes()
        graph = read_model(data)
        names = [weight.name for weight in TFLiteModel(data).cluster_weights(8).weights[:1]]
        tensors = (tensor for subgraph in graph.subgraphs for tensor in subgraph.tensors)
        for tensor in [tensor for tensor in tensors if tensor.name in names][:1]:
            values = decode_weights(tensor, graph.buffers[tensor.buffer].data)
            if not 16 < values.size < 5_000 or not np.isfinite(values).all() or len(np.unique(values)) <= 8:
                continue
            kmeans = KMeans(8, n_init=10, random_state=0).fit(values.reshape(-1, 1).astype(np.float64))
            centres = kmeans.cluster_centers_[:, 0]
            if np.issubdtype(values.dtype, np.integer):
                centres = np.rint(centres)
            theirs = squared_error(values.reshape(-1), centres[kmeans.labels_])
            assert cluster_values(values, 8).squared_error <= theirs * (1 + 1e-6)
            compared += 1
    assert compared == 10


@needs_shared
@pytest.mark.parametrize(
    "path", [p for p in corpus() if "/models/" in str(p) and "huge" not in p.name][::2], ids=corpus_id
)
def test_clustered_corpus_still_runs(path):
    data = path.read_bytes()
    try:
        inputs = random_inputs(data, 0)
        run_litert(data, inputs)
        model = TFLiteModel(data)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"LiteRT does not run the original: {str(error)[:80]}")
    names = {weight.name for weight in model.cluster_weights(16).weights}
    weights = {
        tensor.buffer for subgraph in model.graph.subgraphs for tensor in subgraph.tensors if tensor.name in names
    }
    run_litert(model.to_bytes(), inputs)
    assert changed_buffers(data, model.to_bytes()) <= weights


def test_more_values_cost_more_bytes_and_fewer_errors():
    results = [TFLiteModel.load_from_file(MODELS / "digits_cells_int8.tflite").cluster_weights(n) for n in (2, 4, 8)]
    assert [r.clusters for r in results] == [2, 4, 8]
    assert results[0].sqnr_db < results[1].sqnr_db < results[2].sqnr_db
    assert results[0].after < results[1].after < results[2].after < results[2].before


def test_a_tensor_that_does_not_fill_its_buffer_is_left_alone():
    b = Builder()
    x, y = b.tensor((1, 4)), b.tensor((1, 4))
    matrix = b.constant(np.arange(20, dtype=np.int8).reshape(5, 4), name="short")
    b.table.tensors[matrix].shape = [4, 4]
    b.op("FULLY_CONNECTED", [x, matrix, -1], [y])
    decision = TFLiteModel(b.build([x], [y])).cluster_weights(4)
    assert not decision.weights
    assert "does not fill" in decision.notes[0]


def test_weights_whose_bytes_are_metadata_too_stay():
    b = Builder()
    x, y = b.tensor((1, 8)), b.tensor((1, 8))
    weights = b.constant(np.arange(64, dtype=np.int8).reshape(8, 8))
    b.op("FULLY_CONNECTED", [x, weights], [y])
    b.model.add_metadata("both", b"")
    b.model.metadata[-1].buffer = b.table.tensors[weights].buffer
    model = TFLiteModel(b.build([x], [y]))
    decision = model.cluster_weights(2)
    assert not decision.changed
    assert "in common with metadata" in decision.notes[0]


def test_weights_that_another_operator_adds_stay():
    b = Builder()
    x, y, z = b.tensor((8, 8)), b.tensor((8, 8)), b.tensor((8, 8))
    weights = b.constant(np.arange(64, dtype=np.int8).reshape(8, 8))
    b.op("FULLY_CONNECTED", [x, weights, -1], [y])
    b.op("ADD", [y, weights], [z])
    decision = TFLiteModel(b.build([x], [z])).cluster_weights(2)
    assert not decision.changed
    assert "other operands" in decision.notes[0]


def test_one_value_may_be_enough():
    b = Builder()
    x, y = b.tensor((1, 8), "FLOAT32"), b.tensor((1, 4), "FLOAT32")
    noise = np.random.default_rng(0).normal(size=(4, 8))
    b.op("FULLY_CONNECTED", [x, b.constant((100 + noise).astype(np.float32)), -1], [y])
    (account,) = TFLiteModel(b.build([x], [y])).cluster_weights(min_sqnr=20).weights
    assert account.distinct_after == 1


def test_weights_whose_bytes_are_a_bias_too_stay():
    """Converters store equal bytes once, whatever they mean."""
    b = Builder()
    x, y = b.tensor((1, 4)), b.tensor((1, 1), "INT8")
    weights = b.constant(np.array([[1, 2, 3, 0]], np.int8))
    bias = b.constant(np.array([0x00030201], np.int32))
    b.table.tensors[bias].buffer = b.table.tensors[weights].buffer
    b.op("FULLY_CONNECTED", [x, weights, bias], [y])
    model = TFLiteModel(b.build([x], [y]))
    decision = model.cluster_weights(2)
    assert not decision.changed
    assert "or tensors of another type" in decision.notes[0]

"""Weights as code-books: the runtime's own format, the same outputs, memory as promised, and files written anew."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import types
from pathlib import Path

import numpy as np
import pytest
import tflite
from corpus import MODELS, SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builder import Builder
from runtimes import litert_agrees, run_in_wheel, wheel_agrees
from spatial_nets import SAME, Net

import tflite_tools
from tflite_tools import (
    BITS_64,
    DECODE,
    Compression,
    ModelError,
    Snapshot,
    TFLiteModel,
    analyse_arena,
    decode_weights,
    main,
    payload_of,
)

NAMES = ("cnn", "mobilenet", "cells")
CNN = MODELS / "digits_cnn_int8.tflite"
PLENTY = 1 << 30


def model_of(name: str) -> TFLiteModel:
    return TFLiteModel.load_from_file(MODELS / f"digits_{name}_int8.tflite")


# -- the payload -------------------------------------------------------------------------------------


def decoded(payload: tflite_tools.Payload, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The weights that a payload stands for, bit by bit as the kernel makes them."""
    bits, stride, which = payload.ancillary[5] & 7, payload.ancillary[6], payload.ancillary[5] >> 4
    stored = np.unpackbits(np.frombuffer(payload.encoded, np.uint8))[: math.prod(shape) * bits].reshape(-1, bits)
    codes = (stored @ (1 << np.arange(bits)[::-1])).reshape(shape)
    books = np.frombuffer(payload.ancillary[16:], dtype).reshape(-1, stride)
    channel = np.zeros(1, int) if which == 15 else np.arange(shape[which])
    position = [1] * len(shape)
    position[0 if which == 15 else which] = -1
    return books[channel.reshape(position), codes]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["i1", "i2", "f4"]),
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.sampled_from(["all", "first", "last"]),
    st.integers(1, 140),
)
def test_a_payload_decodes_to_the_very_same_bits(seed: int, dtype: str, shape: list[int], which: str, count: int):
    rng = np.random.default_rng(seed)
    words = np.unique(rng.integers(0, 256 ** int(dtype[1]), count)).astype(f"u{dtype[1]}")
    values = rng.choice(words, shape).view(dtype)
    axis = {"all": None, "first": 0, "last": len(shape) - 1}[which]
    payload = payload_of(values, axis)
    rows = [values] if axis is None else np.moveaxis(values, axis, 0)
    most = max(len(set(row.ravel().view(words.dtype).tolist())) for row in map(np.ascontiguousarray, rows))
    assert (payload is None) == (most > 128)
    if payload is None:
        return
    assert decoded(payload, values.dtype, values.shape).tobytes() == values.tobytes()
    assert payload.ancillary[5] & 7 == max(1, (payload.ancillary[6] - 1).bit_length())
    assert not payload.ancillary[7:16].strip(b"\0")


def test_more_values_than_a_code_book_holds():
    assert payload_of(np.arange(128, dtype=np.int16).reshape(2, 64), None) is not None
    assert payload_of(np.arange(130, dtype=np.int16).reshape(2, 65), None) is None
    assert payload_of(np.arange(130, dtype=np.int16).reshape(2, 65), 0) is not None


@pytest.mark.parametrize("name", NAMES)
def test_payloads_are_those_of_the_runtimes_own_tool(name: str):
    pytest.importorskip("tflite_micro")
    from tflite_micro.tensorflow.lite.micro.compression import lut, spec

    model = model_of(name)
    model.cluster_weights(16, per_channel=True)
    compression = Compression(model.snapshot)
    assert compression.found
    for part in compression.found:
        tensor = compression.subgraph.tensors[part.tensor]
        values, axis = decode_weights(tensor, compression.graph.content(tensor).data), compression.axis(tensor)
        mode = spec.PerTensor() if axis is None else spec.PerChannel(axis)
        method = spec.LookUpTableCompression(index_bitwidth=part.payloads[0].ancillary[5] & 7, mode=mode)
        theirs = lut.LutCompressor().compress(types.SimpleNamespace(array=values, shape=values.shape), method)
        assert (theirs.encoded_data, theirs.ancillary_data) == part.payloads[0]


# -- in the runtime ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more_ram", [4096, pytest.param(PLENTY, marks=pytest.mark.slow)])
def test_tflm_computes_the_same_in_the_arena_that_was_promised(more_ram: int):
    pairs = []
    for name, clusters in zip(NAMES, (4, 16, 8), strict=True):
        model = model_of(name)
        model.cluster_weights(clusters, per_channel=True)
        before, arena = model.to_bytes(), model.arena
        assert model.compress_weights().reserve <= arena.reserve
        model = TFLiteModel(before)
        decision = model.compress_weights(more_ram)
        assert decision.changed
        assert len(model.to_bytes()) == decision.after < decision.before
        assert model.arena.reserve == decision.reserve <= arena.reserve + more_ram
        exact = analyse_arena(model.graph, BITS_64)
        run = run_in_wheel(model.to_bytes(), [], 0)
        assert (run.head, run.tail) == (exact.head, exact.persistent)
        pairs.append((before, model.to_bytes()))
    assert all(wheel_agrees(pairs))


def two_layers(dtype: str = "INT8", weights: int = 8) -> bytes:
    net = Net(dtype)
    x = net.picture(6, 6, 32)
    y = net.window("CONV_2D", x, 32, (3, 3), 1, SAME)
    return net.build([x], [net.window("DEPTHWISE_CONV_2D", y, 0, (5, 5), 1, SAME)])


@pytest.mark.parametrize("dtype", ["INT8", "FLOAT32"])
def test_kinds_and_types_that_are_decoded(dtype: str):
    model = TFLiteModel(two_layers(dtype))
    model.cluster_weights(6)
    before = model.to_bytes()
    decision = model.compress_weights(PLENTY)
    assert len(decision.weights) == 2
    assert all(wheel_agrees([(before, model.to_bytes())]))


def test_weights_of_stripes_are_decoded_once():
    model = model_of("mobilenet")
    model.cluster_weights(4, per_channel=True)
    before = model.to_bytes()
    split = model.split_operators(max_time=25, stripes="unrolled")
    assert split.changed
    decision = model.compress_weights(PLENTY)
    decodes = [o for o in model.graph.subgraphs[0].operators if o.kind == DECODE]
    assert len(decodes) == sum(slices for *_, slices in decision.weights)
    assert len(decodes) < sum(o.kind.endswith("CONV_2D") for o in model.graph.subgraphs[0].operators)
    model.plan_memory(5)
    assert all(wheel_agrees([(before, model.to_bytes())]))


def test_models_with_loops_are_compressed_and_planned_anew():
    model = model_of("mobilenet")
    model.cluster_weights(4, per_channel=True)
    before = model.to_bytes()
    assert model.split_operators(stripes="loop").changed
    looped = model.arena
    refused = model.compress_weights()
    assert not refused.changed
    assert "loop" in refused.refusal  # without a plan, they would take more memory than they save
    decision = model.compress_weights(1000, for_plan=True)
    assert decision.weights
    assert model.arena.has_plan
    assert not model.arena.problems
    assert model.arena.head <= looped.head
    assert all(wheel_agrees([(before, model.to_bytes())]))


# -- the choice --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5000))
def test_no_other_choice_saves_more(seed: int, more_ram: int):
    rng = random.Random(seed)
    net = Net("INT8", seed)
    x = source = net.picture(rng.randint(2, 8), 6, 16)
    for _ in range(rng.randint(1, 5)):
        x = net.window("CONV_2D", x, rng.choice((8, 16, 40)), (1, rng.choice((1, 3))), 1, SAME)
    model = TFLiteModel(net.build([source], [x]))
    model.cluster_weights(rng.choice((2, 4, 16)))
    compression = Compression(model.snapshot)

    def best(limit_of: object) -> int:
        subsets = itertools.chain.from_iterable(
            itertools.combinations(compression.found, n) for n in range(len(compression.found) + 1)
        )
        return max(sum(part.saved for part in chosen) for chosen in subsets if limit_of(chosen))

    assert {part.kept for part in compression.found} <= {120}  # of one more operator and its tensors

    levels = lambda chosen: max([compression.peak, *(part.level for part in chosen)])  # noqa: E731
    expected = best(lambda chosen: levels(chosen) - compression.peak + 120 * len(chosen) <= more_ram)
    assert sum(p.saved for p in compression.best(more_ram)) == expected


def test_a_large_matrix_is_decoded_slice_by_slice():
    model = model_of("cnn")
    model.cluster_weights(16, per_channel=True)
    head = model.arena.head
    decision = model.compress_weights(2000)
    assert [slices for *_, slices in decision.weights] == [8]
    assert model.arena.head == head
    kinds = [o.kind for o in model.graph.subgraphs[0].operators]
    assert kinds.count(DECODE) == 8
    assert kinds.count("CONCATENATION") == 1


def test_what_stays_as_it_is_is_told():
    net = Net("FLOAT32")
    x = net.picture(4, 4, 64)
    shared = net.constant(np.ones((64, 1, 1, 64), np.float32))
    first = net.window("CONV_2D", x, 64, (1, 1), 1, SAME)
    net.table.operators[-1].inputs[1] = shared
    other = net.constant(np.ones((64, 1, 1, 64), np.float32))
    net.table.tensors[other].buffer = net.table.tensors[shared].buffer
    last = net.window("CONV_2D", first, 64, (1, 1), 1, SAME)
    net.table.operators[-1].inputs[1] = other
    decision = TFLiteModel(net.build([x], [last])).compress_weights(PLENTY)
    assert not decision.weights
    assert len(decision.notes) == 1
    assert "and 1 more: other tensors have the same data" in decision.notes[0]


@pytest.mark.parametrize(("more_ram", "names"), [(1900, []), (2000, ["qconst3"]), (2100, ["qconst1", "qconst3"])])
def test_slices_keep_more_than_one_operator(more_ram: int, names: list[str]):
    model = model_of("cnn")
    model.cluster_weights(4)
    before = model.arena.reserve
    decision = model.compress_weights(more_ram)
    assert sorted(name[-7:] for name, *_ in decision.weights) == names
    assert model.arena.reserve <= before + more_ram


def test_no_limit_is_broken_for_lack_of_time():
    for more_ram in (0, 2000):
        model = model_of("cnn")
        model.cluster_weights(4)
        before = model.arena
        model.compress_weights(more_ram, for_plan=True, time_limit=0)
        assert model.arena.reserve <= before.reserve + more_ram


def test_damaged_files_are_refused():
    data = bytearray(CNN.read_bytes())
    quantization = tflite.Model.GetRootAs(bytes(data), 0).Subgraphs(0).Tensors(3).Quantization()
    field = quantization._tab.Pos + quantization._tab.Offset(10)  # where the vector of zero points is
    data[field : field + 4] = (len(data) - field - 4).to_bytes(4, "little")
    with pytest.raises(ModelError, match="damaged"):
        Snapshot.read(bytes(data)).repacked()


# -- read again --------------------------------------------------------------------------------------


def test_a_compressed_file_is_understood():
    model = model_of("mobilenet")
    model.cluster_weights(8, per_channel=True)
    names = {name for name, *_ in model.compress_weights(PLENTY).weights}
    again = TFLiteModel(model.to_bytes())
    assert not again.snapshot.refusals
    clustering = again.cluster_weights(2)
    assert len([note for note in clustering.notes if "is compressed and stays" in note]) == len(names)
    decision = again.compress_weights(PLENTY)
    assert not {name for name, *_ in decision.weights} & names
    order = model.optimize_memory(5)
    assert order.optimal
    assert order.after <= order.before


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_damaged_payloads_do_no_harm(seed: int):
    rng, model = random.Random(seed), model_of("cnn")
    model.cluster_weights(4)
    model.compress_weights(PLENTY)
    graph, contents = model.graph, {}
    for operator in graph.subgraphs[0].operators:
        for t in operator.inputs if operator.kind == DECODE else ():
            buffer = graph.subgraphs[0].tensors[t].buffer
            contents[buffer] = graph.buffers[buffer].data.copy()
            for _ in range(3):
                contents[buffer][rng.randrange(len(contents[buffer]))] = rng.randrange(256)
    damaged = TFLiteModel(model.snapshot.with_contents(contents).data)
    assert damaged.arena == model.arena
    assert damaged.analysis()["peak_bytes"] == model.peak_memory_usage()
    damaged.compress_weights(PLENTY)


# -- the quality ---------------------------------------------------------------------------------------


def test_the_fewest_values_that_keep_a_quality():
    model = model_of("mobilenet")
    decision = model.cluster_weights(min_sqnr=22.0)
    assert decision.weights
    for account in decision.weights:
        assert account.sqnr_db >= 22.0
        fewer = {w.name: w for w in model_of("mobilenet").cluster_weights(max(account.distinct_after - 1, 1)).weights}
        assert account.distinct_after == 2 or fewer[account.name].sqnr_db < 22.0


def test_a_quality_that_cannot_be_had():
    net = Net("INT8")
    x = net.picture(4, 4, 64)
    model = TFLiteModel(net.build([x], [net.window("CONV_2D", x, 64, (3, 3), 1, SAME)]))
    before = model.to_bytes()
    decision = model.cluster_weights(2, min_sqnr=60.0)
    assert not decision.weights
    assert "2 values have only" in decision.notes[0]
    assert model.to_bytes() == before


# -- the file ----------------------------------------------------------------------------------------


def test_a_file_written_anew_is_the_same_model():
    for path in sorted(MODELS.glob("*.tflite")):
        snapshot = Snapshot.read(path.read_bytes())
        copy = snapshot.repacked()  # raises, if it is another model
        assert litert_agrees(snapshot.data, bytes(copy.data), seeds=1)
        assert bytes(copy.repacked().data) == bytes(copy.data)
        written = Snapshot.read(copy.data)
        large = [content.data.tobytes() for content in written.graph.buffers if content.size > 64]
        places = [bytes(copy.data).index(content) for content in large]
        assert places
        assert all(place % 16 == 0 for place in places)


def test_bytes_that_nothing_refers_to_are_left_out():
    model = model_of("mobilenet")
    model.optimize_memory(5)
    model.plan_memory(5)
    model.plan_memory(5)
    assert model.split_operators(stripes="unrolled").changed
    assert len(model.snapshot.repacked().data) == len(model.to_bytes())


@needs_shared
def test_the_corpus_can_be_written_anew():
    paths = [p for p in sorted(SHARED.rglob("*.tflite")) if p.stat().st_size < 300_000]
    written, refused = 0, []
    for path in paths[::8]:
        try:
            snapshot = Snapshot.read(path.read_bytes())
            snapshot.repacked()
            written += 1
        except ModelError as error:
            refused.append(str(error))
    assert written > 15
    assert all("no subgraph" in why for why in refused)


def test_a_newer_schema_is_not_copied(monkeypatch: pytest.MonkeyPatch):
    known = tflite_tools.layout
    older = {name: field for name, field in known("Model").items() if name != "SignatureDefs"}
    monkeypatch.setattr(tflite_tools, "layout", lambda kind: older if kind == "Model" else known(kind))
    snapshot = Snapshot.read(CNN.read_bytes())
    with pytest.raises(ModelError, match="newer schema of Model"):
        snapshot.repacked()


# -- the command line --------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, report = tmp_path / "small.tflite", tmp_path / "report.json"
    options = ["--min-sqnr", "20", "--per-channel", "--compress", "--compress-ram", "2KB", "--verify"]
    options += ["--json", str(report)]
    assert main(["-i", str(CNN), *options, "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "bit-identical to the clustered model's" in text
    assert "AddDecode()" in text
    document = json.loads(report.read_text())
    assert document["compression"]["file"] == out.stat().st_size < CNN.stat().st_size
    assert document["clustering"]["min_sqnr"] == 20
    assert main(["-i", str(CNN), "--compress"]) == 0
    assert "--clusters N gives them few" in capsys.readouterr().out
    assert main(["-i", str(CNN), "--clusters", "4", "--compress"]) == 0
    assert "whose decoding takes memory; --compress-ram 2096B takes 2\n" in capsys.readouterr().out
    for wrong in (["--compress-ram", "4KB"], ["--clusters", "4", "--min-sqnr", "20"], ["--min-sqnr", "many"]):
        assert main(["-i", str(CNN), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_gain_is_told_net_of_the_kernel_and_of_repacking(capsys: pytest.CaptureFixture[str]):
    options = ["--clusters", "4", "--compress", "--compress-ram", "3KB"]
    assert main(["-i", str(CNN), *options]) == 0
    assert re.search(
        r"With the kernel, about 21.0 KB of flash, the firmware shrinks by about 5\d", capsys.readouterr().out
    )
    loose = TFLiteModel(CNN.read_bytes() + bytes(5000))  # a repacked file is smaller
    decision = loose.compress_weights(4096)
    assert not decision.changed
    assert decision.before == decision.after < len(CNN.read_bytes()) + 5000


def test_an_operator_without_an_output_is_not_cut():
    b = Builder()
    x, y = b.tensor((1, 64)), b.tensor((1, 64))
    b.op("FULLY_CONNECTED", [x, b.constant(np.ones((64, 64), np.int8))], [])
    b.op("RELU", [x], [y])
    assert not TFLiteModel(b.build([x], [y])).compress_weights(PLENTY).weights

"""The kernels of devices: the sizes that the libraries give themselves, and all that is made of them."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from corpus import MODELS
from device_kernel_cases import KINDS_OF_CASES, NAMES, node_of_case, recorded, requests
from hypothesis import given, settings
from hypothesis import strategies as st
from spatial_nets import random_net, rewritten

import tflite_tools
from tflite_tools import (
    LIBRARIES,
    Profile,
    SplitSearch,
    Storage,
    TFLiteModel,
    analyse_arena,
    kernel_bytes,
    main,
    persistent_bytes,
    read_model,
    scratch_requests,
)

CASES = recorded()
CNN = MODELS / "digits_cnn_int8.tflite"


@pytest.mark.parametrize("name", NAMES)
def test_requests_are_those_of_the_libraries(name: str):
    wrong = [(case, answers[name]) for case, answers in CASES if requests(case, name) != answers[name]]
    assert not wrong


def test_every_formula_is_asked():
    for kind in KINDS_OF_CASES:
        for name in NAMES:
            answers = {tuple(a[name]) for case, a in CASES if case["kind"] == kind}
            library = LIBRARIES[name].library
            if "scratch" in tflite_tools.KINDS[kind].libraries.get(library, {}) and any(
                any(sizes) for sizes in answers
            ):
                assert len(answers) > 3, (kind, name)


def test_the_first_convolution_of_hey_jarvis():
    """Of the 17,872 bytes that its head takes on ESP32-S3; with the ESP-NN of a report of April 2026 32 less."""
    shapes = [(1, 5, 1, 40), (30, 5, 1, 40), (1, 1, 1, 30)]
    options = {"StrideH": 3, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": 1}
    case = {"kind": "CONV_2D", "dtypes": ["INT8"] * 2, "shapes": shapes, "options": options, "scales": 1}
    assert requests(case, "esp-nn") == [14_864]
    assert requests(case, "esp-nn:esp32") == []


def dense(bias: Storage) -> dict[str, tuple[list[int], list[int]]]:
    """Requests and further pieces of a matrix product, by the kernels."""
    shapes = [(1, 30), (7, 30), (1, 7)]
    case = {"kind": "FULLY_CONNECTED", "dtypes": ["INT8"] * 2, "shapes": shapes, "options": {}, "scales": 1}
    found = {}
    for name in NAMES:
        node = node_of_case(case, name)
        data, weights, output = *node.inputs, node.output
        node = dataclasses.replace(node, inputs=(data, weights, dataclasses.replace(output, storage=bias)))
        found[name] = node.kernel.scratch(node), kernel_bytes(node)[2]
    return found


def test_sums_over_constant_weights_are_kept_and_others_are_scratch():
    """Seen in the source only: CMSIS-NN's kernels for MVE, built for speed."""
    kept, computed = dense(Storage.CONSTANT), dense(Storage.ACTIVATION)
    assert kept["cmsis-nn:mve"] == ([], [28])
    assert computed["cmsis-nn:mve"] == ([28], [])
    assert kept["cmsis-nn"] == computed["cmsis-nn"] == ([], [])


def test_structures_are_those_of_the_library():
    sizes = {}
    for name in ("reference", "cmsis-nn", "esp-nn"):
        graph = read_model(CNN.read_bytes(), LIBRARIES[name])
        for subgraph, operator in graph.operators:
            sizes.setdefault(operator.kind, []).append(kernel_bytes(tflite_tools.node_of(subgraph, operator))[1])
    one_each = {kind: [found[i * len(found) // 3] for i in range(3)] for kind, found in sizes.items()}
    assert one_each["CONV_2D"] == [56, 60, 60]
    assert one_each["FULLY_CONNECTED"] == [48, 72, 48]
    assert one_each["MAX_POOL_2D"] == [32, 36, 32]
    assert one_each["SOFTMAX"] == [56, 64, 64]


def test_float_convolutions_of_cmsis_nn_keep_nothing_per_channel():
    net = tflite_tools.KINDS["CONV_2D"].libraries["cmsis-nn"]["arrays"]
    shapes = [(1, 5, 5, 4), (8, 1, 1, 4), (1, 5, 5, 8)]
    for dtype, expected in (("FLOAT32", []), ("INT8", [32, 32])):
        case = {"kind": "CONV_2D", "dtypes": [dtype] * 2, "shapes": shapes, "options": {}, "scales": 1}
        assert net(node_of_case(case, "cmsis-nn")) == expected


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(NAMES))
def test_stripes_take_what_the_search_counts(seed: int, name: str):
    """The tensors, and the scratch memory of the shapes that stripes have."""
    rng = random.Random(seed)
    model = tflite_tools.Snapshot.read(random_net(rng), LIBRARIES[name])
    search = SplitSearch(model.graph, model.graph.subgraphs[0], tflite_tools.Budget(1e6))
    ranges = search.problem.ranges
    for found in rng.sample(ranges, min(4, len(ranges))):
        for stripes in (2, 3):
            region = search.problem.evaluate(found.start, found.end, stripes, is_cached=True)
            if region is not None:
                around = [s.need for i, s in enumerate(search.problem.steps) if not region.start <= i < region.end]
                after = model.rewritten(rewritten(search, region)).arena
                assert Profile(after.intervals).peak == max([region.cost.peak, *around])


def test_everything_that_is_written_is_for_the_same_kernels():
    kernels = "esp-nn"
    model = TFLiteModel(CNN.read_bytes(), kernels)
    plain = TFLiteModel(CNN.read_bytes())
    assert model.arena.head > plain.arena.head
    split = model.split_operators()
    assert split.changed
    model.optimize_memory()
    assert not model.plan_memory(5).refusal
    assert model.graph.kernels == LIBRARIES[kernels]
    assert TFLiteModel(model.to_bytes(), kernels).arena == model.arena
    # A plan for other kernels is sound, but has no room for scratch memory.
    plain.split_operators()
    plain.plan_memory(5)
    moved = TFLiteModel(plain.to_bytes(), kernels).arena
    assert not moved.problems
    assert moved.head >= model.arena.head


def test_the_head_has_room_for_every_request():
    for name in NAMES:
        graph = read_model(CNN.read_bytes(), LIBRARIES[name])
        arena = analyse_arena(graph)
        for subgraph, operator in graph.operators:
            asked = [size for size in scratch_requests(subgraph, operator) if size]
            assert asked == [b.bytes for b in arena.buffers if b.tensor is None and b.operator == operator.index]
        assert arena.persistent == persistent_bytes(graph).total


def test_the_command_line_names_the_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["-i", str(CNN), "--json", str(tmp_path / "a.json")]) == 0
    text = capsys.readouterr().out
    arena = json.loads((tmp_path / "a.json").read_text())["arena"]
    assert arena["kernels"] == "reference"
    elsewhere = arena["reserve_bytes_elsewhere"]
    assert [*elsewhere] == ["cmsis-nn", "esp-nn"]
    assert f"esp-nn {elsewhere['esp-nn']:,} B)" in text
    for name, reserve in elsewhere.items():
        assert main(["-i", str(CNN), "--kernels", name, "--json", "-", "--max-arena", str(reserve)]) == 0
        arena = json.loads(capsys.readouterr().out)["arena"]
        assert (arena["kernels"], arena["reserve_bytes"], arena["reserve_bytes_elsewhere"]) == (name, reserve, {})
        assert main(["-i", str(CNN), "--kernels", name, "--max-arena", str(reserve - 1)]) == 1
        assert LIBRARIES[name].title in capsys.readouterr().out
    assert main(["-i", str(CNN), "--kernels", "neon"]) == 2
    with pytest.raises(ValueError, match="one of reference, cmsis-nn"):
        TFLiteModel(CNN.read_bytes(), "neon")

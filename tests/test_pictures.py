"""Pictures: what is written in them, in SVG files whose text can be read."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import matplotlib as mpl
import pytest
from corpus import MODELS
from model_builder import Builder, worked_example
from spatial_nets import chain, looped

from tflite_tools import TFLiteModel, main

CELLS = MODELS / "digits_cells_int8.tflite"


@pytest.fixture(autouse=True)
def _text_as_text():
    with mpl.rc_context({"svg.fonttype": "none"}):
        yield


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["net/a/x", "net/a/y", "in"], ["x", "y", "in"]),
        (["net/a/x;net/a/y", "net/b/z", "net/b/u"], ["a/x;a/y", "z", "u"]),
        (["a/x", "b/y"], ["a/x", "b/y"]),
        (["a/x", "a/x"], ["x", "x"]),
        (["x", ""], ["x", ""]),
    ],
)
def test_names_without_what_most_of_them_share(names: list[str], plain: list[str], tmp_path: Path):
    b = Builder()
    tensors = [b.tensor((4,)), *(b.tensor((4,), name=name) for name in names)]
    for x, y in itertools.pairwise(tensors):
        b.op("RELU", [x], [y])
    TFLiteModel(b.build(tensors[:1], tensors[-1:])).plot_memory_usage(tmp_path / "bars.svg")
    told = texts(tmp_path / "bars.svg")
    assert [text for text in told if text.startswith("RELU")] == [f"RELU ({name})  {i}" for i, name in enumerate(plain)]


def test_both_pictures_count_operators_alike(tmp_path: Path):
    path = tmp_path / "model.tflite"
    path.write_bytes(worked_example())
    bars, memory = tmp_path / "bars.svg", tmp_path / "map.svg"
    assert main(["-i", str(path), "--plot", str(bars), "--memory-map", str(memory)]) == 0
    told = texts(bars)
    assert "CONV_2D (Conv2/Relu)  1" in told
    assert "peak 26,944 B at operator 1: CONV_2D (Conv2/Relu)" in told
    told = texts(memory)
    assert {"0", "1", "2", "3", "4", "5"} <= set(told)  # operators on the axis
    assert any(text.startswith("4 Conv2") for text in told)  # the largest tensors by name
    assert any(text.startswith("arena: 26,944 B (to reserve") for text in told)


def test_dollars_are_no_formula(tmp_path: Path):
    other = tmp_path / r"a$\frac{$.tflite"
    other.write_bytes(CELLS.read_bytes())
    assert main(["-i", str(CELLS), "--compare", str(other), "--memory-map", str(tmp_path / "map.svg")]) == 0
    assert any("frac" in text for text in texts(tmp_path / "map.svg"))


def test_two_memories_are_told_apart(tmp_path: Path):
    path, memory = tmp_path / "model.tflite", tmp_path / "map.svg"
    path.write_bytes(chain())
    assert main(["-i", str(path), "--memories", "fast=600B", "--memory-map", str(memory)]) == 0
    told = texts(memory)
    assert any(text.startswith("before: ") for text in told)
    assert any(text.startswith("after: fast 256 B, slow 1,024 B (to reserve: ") for text in told)
    assert "slow memory, from here up" in told


def test_a_loop_is_drawn_with_the_numbers_of_the_first_subgraph(tmp_path: Path):
    model = TFLiteModel(looped())
    model.plot_memory_map(tmp_path / "map.svg")
    told = texts(tmp_path / "map.svg")
    count = len(model.graph.subgraphs[0].operators)
    assert {str(i) for i in range(count)} <= set(told)
    assert any(re.match(r"2:\d+", text) for text in told)  # a tensor of the body
    assert any("=1:" in text for text in told)  # a tensor that has the content of another one


def test_every_panel_has_its_height(tmp_path: Path):
    model = TFLiteModel(looped())
    for file, other in (("one.svg", None), ("two.svg", model)):
        model.plot_memory_usage(tmp_path / file, other)
    one, two = (
        float(re.search(r'<svg .*?height="([0-9.]+)pt"', (tmp_path / file).read_text(), re.DOTALL)[1])
        for file in ("one.svg", "two.svg")
    )
    assert two == pytest.approx(2 * one)


def test_many_operators_are_numbered(tmp_path: Path):
    b = Builder()
    tensors = [b.tensor((100,)) for _ in range(301)]
    for x, y in itertools.pairwise(tensors):
        b.op("RELU", [x], [y])
    model = TFLiteModel(b.build(tensors[:1], tensors[-1:]))
    model.plot_memory_usage(tmp_path / "bars.svg")
    model.plot_memory_map(tmp_path / "map.svg", before=model)
    assert not any("RELU" in text and "peak" not in text for text in texts(tmp_path / "bars.svg"))
    assert {"0", "50", "250"} <= set(texts(tmp_path / "map.svg"))
    assert sum(text.startswith(("before: ", "after: ")) for text in texts(tmp_path / "map.svg")) == 2

"""Several models in one arena: what they need together, and the C++ that runs them."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from corpus import MODELS, SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from spatial_nets import random_net
from test_firmware import with_variable, write_stubs

from tflite_tools import SharedArena, TFLiteModel, main, share_arena, write_shared_firmware

CELLS, CNN, MOBILENET = (MODELS / f"digits_{name}_int8.tflite" for name in ("cells", "cnn", "mobilenet"))


def arenas(*paths: Path) -> SharedArena:
    return share_arena([TFLiteModel.load_from_file(path).arena for path in paths])


def test_one_model_needs_what_it_needs_alone():
    for path in (CELLS, CNN, MOBILENET):
        reserve = TFLiteModel.load_from_file(path).arena.reserve
        assert arenas(path) == (reserve, reserve, reserve)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=2, max_size=4))
def test_what_several_need_lies_between_the_largest_and_all(seeds: list[int]):
    import random

    alone = [TFLiteModel(random_net(random.Random(seed))).arena for seed in seeds]
    shared = share_arena(alone)
    assert shared.in_turn == max(arena.reserve for arena in alone)
    assert shared.in_turn <= shared.resident <= shared.apart == sum(arena.reserve for arena in alone)
    for fewer in itertools.combinations(alone, len(alone) - 1):
        assert share_arena(fewer).resident <= shared.resident


@needs_shared
def test_three_wake_words():
    """The smallest arenas with which the generated examples run on TFLM of 2026 with 32 bits, to 16 bytes."""
    folder = SHARED / "models" / "micro-wake-word"
    paths = [folder / f"{name}.tflite" for name in ("hey_home_assistant", "v2__alexa", "vad")]
    assert arenas(*paths) == (39_920, 19_936, 46_224)


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shared, report = arenas(CNN, CELLS), tmp_path / "report.json"
    assert main([str(CNN), "--json", str(report), str(CELLS)]) == 0
    text = capsys.readouterr().out
    assert f"- resident, each ready to run at any time: {shared.resident:,} B" in text
    assert f"{shared.in_turn:,} B" in text
    assert f"{shared.apart:,} B in all" in text
    document = json.loads(report.read_text())
    assert list(document["models"]) == ["digits_cnn_int8", "digits_cells_int8"]
    assert (document["resident_bytes"], document["in_turn_bytes"], document["apart_bytes"]) == shared
    assert sum(model["reserve_bytes"] for model in document["models"].values()) == shared.apart
    assert main([str(CNN), str(CELLS), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_a_limit_holds_for_all_of_them(capsys: pytest.CaptureFixture[str]):
    resident = arenas(CNN, CELLS).resident
    assert main([str(CNN), str(CELLS), "--max-arena", f"{resident}B"]) == 0
    assert main([str(CNN), str(CELLS), "--max-arena", f"{resident - 16}B"]) == 1
    assert f"the models need an arena of {resident:,} B" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "message"), [
    (["--fit"], "--fit takes one model, and 2 are given"),
    (["--board", "list"], "--board list takes one model"),
    ([str(CNN)], f"{CNN}: another model has this file name: rename one"),
    (["missing.tflite"], "missing.tflite: No such file"),
    ([__file__], "not a TensorFlow Lite model"),
    (["--json", str(CELLS)], "have the same name"),
    (["--json", "missing/report.json"], "its folder does not exist"),
    (["--firmware", __file__], "--firmware needs a folder"),
])  # fmt: skip
def test_mistakes(more: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main([str(CNN), str(CELLS), *more]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


def test_a_model_that_tflm_rejects_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from model_builder import Builder

    b = Builder()
    x, y = b.tensor((1, 8)), b.tensor((1, 8))
    b.op("BUCKETIZE", [x], [y])
    path = tmp_path / "bad.tflite"
    path.write_bytes(b.build([x], [y]))
    assert main([str(CNN), str(path)]) == 2
    assert f"{path}: TFLM rejects this model: " in capsys.readouterr().err


def test_the_firmware(tmp_path: Path):
    folder = tmp_path / "out"
    state = TFLiteModel(with_variable())
    models = {"a state": state, "digits": TFLiteModel.load_from_file(CNN)}
    write_shared_firmware(folder, models)
    shared = share_arena([model.arena for model in models.values()])
    headers = {"a_state_model.h", "a_state_model.cc", "digits_model.h", "digits_model.cc"}
    assert {path.name for path in folder.iterdir()} == headers | {"resident.cc", "in_turn.cc"}
    resident, in_turn = ((folder / name).read_text() for name in ("resident.cc", "in_turn.cc"))
    assert f"static uint8_t arena[{shared.resident}];" in resident
    assert f"static uint8_t arena[{shared.in_turn}];" in in_turn
    assert resident.count("MicroAllocator::Create(") == 1
    assert in_turn.count("MicroAllocator::Create(") == 1  # of the model with a variable
    assert len(re.findall(r"\.Invoke\(\)", resident)) == len(re.findall(r"\.Invoke\(\)", in_turn)) == 2
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    write_stubs(tmp_path)
    sources = [str(folder / name) for name in ("a_state_model.cc", "digits_model.cc")]
    for example in ("resident", "in_turn"):
        options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}", "-o", str(tmp_path / example)]
        done = subprocess.run(["g++", *options, *sources, folder / f"{example}.cc"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert subprocess.run([tmp_path / example]).returncode == 0


def test_two_models_of_one_name_in_cpp_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    models = {name: TFLiteModel.load_from_file(CNN) for name in ("digits-1", "digits 1")}
    with pytest.raises(ValueError, match="digits_1 in C"):
        write_shared_firmware(tmp_path / "out", models)
    assert not (tmp_path / "out").exists()
    paths = [tmp_path / f"{name}.tflite" for name in models]
    for path, model in zip(paths, models.values(), strict=True):
        model.write_to_file(path)
    assert main([*map(str, paths), "--firmware", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "no firmware written: two models would be digits_1 in C++" in captured.err
    assert not captured.out
    assert not (tmp_path / "out").exists()

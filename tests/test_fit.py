"""The cheapest lossless steps that fit, and the boards that give the limits."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from corpus import MODELS
from spatial_nets import Net, chain

from tflite_tools import BOARDS, LIBRARIES, OrderDecision, TFLiteModel, main

MOBILENET, CELLS = (MODELS / f"digits_{name}_int8.tflite" for name in ("mobilenet", "cells"))


def test_the_cheapest_way_that_fits_is_taken():
    original = TFLiteModel.load_from_file(MOBILENET)
    for limit, name in ((84_000, "as it is"), (66_000, "order and plan"), (58_000, "unrolled stripes"),
                        (44_000, "looped stripes")):  # fmt: skip
        model = TFLiteModel.load_from_file(MOBILENET)
        decision = model.fit(limit)
        assert not decision.failure
        assert decision.ways[decision.taken].name == name
        assert model.arena.reserve == decision.after == decision.ways[decision.taken].reserve <= limit
        assert all(way.reserve > limit for way in decision.ways[: decision.taken])
        assert (model.to_bytes() == original.to_bytes()) == (decision.taken == 0)
        assert not decision.proposals


def test_without_a_size_the_smallest_arena_is_taken():
    model = TFLiteModel.load_from_file(MOBILENET)
    decision = model.fit()
    assert decision.after == min(way.reserve for way in decision.ways) == model.arena.reserve
    assert model.verify_against(TFLiteModel.load_from_file(MOBILENET)).identical
    kinds = {operator.kind for _, operator in model.graph.operators}
    assert set(decision.ways[decision.taken].new_kinds) <= kinds
    assert "WHILE" not in TFLiteModel.load_from_file(MOBILENET).fit(can_loop=False).ways[-1].new_kinds


def test_nothing_fits_into_nothing(capsys: pytest.CaptureFixture[str]):
    assert main([str(MODELS / "digits_cnn_int8.tflite"), "--fit", "0B"]) == 1
    captured = capsys.readouterr()
    assert "| Fits |" in captured.out
    assert "no lossless way fits into 0 B" in captured.err


def test_where_nothing_fits_the_nearest_is_told_and_no_file_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, report = tmp_path / "out.tflite", tmp_path / "report.json"
    assert main([str(MOBILENET), "--fit", "20KB", "-o", str(out), "--json", str(report)]) == 1
    captured = capsys.readouterr()
    fit = json.loads(report.read_text())["fit"]
    nearest = min(way["reserve"] for way in fit["ways"])
    assert f"no lossless way fits into 20,480 B; the nearest needs {nearest:,} B" in captured.err
    assert not out.exists()
    assert [way["name"] for way in fit["ways"]][-1] == "2 stages"
    (memories,) = fit["proposals"]
    assert memories.startswith("--memories fast=20KB: ")
    assert f"It would need less with {memories}" in captured.out
    assert main([str(MOBILENET), "--fit", "--board", "uno-r4", "--json", str(report), "--time-limit", "9"]) == 1
    assert not json.loads(report.read_text())["fit"]["proposals"]  # that board has no external RAM


def test_stages_are_the_last_rung(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They are taken where nothing else fits; from a script, which writes one model, they are proposed."""
    out, report, folder = tmp_path / "out.tflite", tmp_path / "report.json", tmp_path / "firmware"
    command = [str(MOBILENET), "--fit", "40KB", "--max-arena", "40KB", "--json", str(report)]
    assert main([*command, "-o", str(out), "--verify", "--firmware", str(folder)]) == 0
    fit = json.loads(report.read_text())["fit"]
    *others, last = fit["ways"]
    assert not any(way["fits"] for way in others)
    assert last["fits"]
    assert fit["reserve"] == last["reserve"] == fit["steps"][-1]["reserve"] <= 40 * 1024
    files = sorted(tmp_path.glob("out.*.tflite"))
    assert [path.name for path in files] == ["out.1.tflite", "out.2.tflite"]
    assert last["flash"] >= sum(path.stat().st_size for path in files) - MOBILENET.stat().st_size
    assert f"kTensorArenaSize = {last['reserve']};" in (folder / "out_model.h").read_text()
    captured = capsys.readouterr()
    assert "-> | 2 stages" in captured.out
    assert "bit-identical" in captured.out
    assert main([*command, "-o", "-", "--time-limit", "20"]) == 2
    assert "give -o a name" in capsys.readouterr().err
    assert not TFLiteModel.load_from_file(MOBILENET).fit(last["reserve"], can_stage=True).failure  # exactly
    decision = TFLiteModel.load_from_file(MOBILENET).fit(40 * 1024)
    assert decision.failure
    assert decision.proposals[0].startswith(f"--stages: {last['reserve']:,} B")


def test_a_tflm_without_loops_gets_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.tflite"
    for flags in (["--fit", "60KB"], ["--split", "--plan"], ["--stages", "2"]):
        assert main([str(MOBILENET), *flags, "--tflm", "2025-01", "--max-arena", "60KB", "-o", str(out)]) == 0
    assert "of November 2025" not in capsys.readouterr().out
    model = TFLiteModel.load_from_file(MOBILENET, tflm="2025-01")
    assert "came in November 2025" in model.split_operators(stripes="loop").refusal
    model.cluster_weights(4)
    assert "came in November 2025" in model.compress_weights(4096).refusal


def test_stages_keep_to_unrolled_stripes(tmp_path: Path):
    fitted = TFLiteModel.load_from_file(MOBILENET).fit(40 << 10, can_loop=False, can_stage=True)
    assert "WHILE" not in {kind for way in fitted.ways for kind in way.new_kinds}


def test_what_changes_the_application_is_only_proposed(tmp_path: Path):
    net = Net("FLOAT32")
    x = source = net.picture(8, 8, 4)
    net.dtype = "INT8"
    inner = net.picture(8, 8, 4)
    net.op("QUANTIZE", [x], [inner])
    y = net.window("CONV_2D", inner, 2)
    path = tmp_path / "model.tflite"
    path.write_bytes(net.build([source], [y]))
    model = TFLiteModel.load_from_file(path)
    decision = model.fit()
    (proposal,) = decision.proposals
    option, size = proposal.split(" B")[0].split(": ")
    assert option == "--integer-io"
    assert model.graph.subgraphs[0].tensors[model.graph.subgraphs[0].inputs[0]].dtype == "FLOAT32"
    ported = TFLiteModel.load_from_file(path)
    ported.use_integer_ports()
    assert ported.fit().after == int(size.replace(",", "")) < decision.after


def test_what_tflm_rejects_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    net = Net()
    x = net.picture(4, 4, 4)
    y = net.picture(4, 4, 4)
    net.op("MyOp", [x], [y])
    path = tmp_path / "model.tflite"
    path.write_bytes(net.build([x], [y]))
    assert main([str(path), "--fit", "64KB"]) == 1
    assert "check failed: TFLM rejects this model: MyOp" in capsys.readouterr().err
    assert main([str(path), "--fit", "64KB", "--assume-kernels", "MyOp"]) == 0
    assert main([str(path), "--board", "list"]) == 2
    assert "TFLM rejects this model: MyOp" in capsys.readouterr().err


def test_a_wrong_plan_does_not_fit():
    good = TFLiteModel.load_from_file(MODELS / "digits_cnn_int8.tflite")
    good.plan_memory()
    at_0 = {(buffer.subgraph, buffer.tensor): 0 for buffer in good.arena.buffers if buffer.tensor is not None}
    wrong = TFLiteModel(good.snapshot.with_offsets(at_0).data)
    assert wrong.arena.problems
    for limit in (None, 1 << 20):
        model = TFLiteModel(wrong.to_bytes())
        decision = model.fit(limit)
        assert decision.taken > 0
        assert not decision.failure
        assert not model.arena.problems


def test_a_failed_limit_says_what_fit_would_do(capsys: pytest.CaptureFixture[str]):
    assert main([str(CELLS), "--max-arena", "36KB"]) == 1
    assert "--fit 36KB gets it to 31,712 B (order and plan)" in capsys.readouterr().err
    assert main([str(CELLS), "--max-arena", "1KB"]) == 1
    assert "the limit is 1,024 B. Try --fit 1KB" in capsys.readouterr().err


def test_boards_set_kernels_and_limits(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    report = tmp_path / "report.json"
    assert all(board.kernels in LIBRARIES and board.source for board in BOARDS.values())
    assert main([str(MOBILENET), "--board", "uno-r4", "--max-arena", "--json", str(report)]) == 1
    assert json.loads(report.read_text())["arena"]["kernels"] == "cmsis-nn"
    assert "the limit is 32,768 B" in capsys.readouterr().err
    assert main([str(MOBILENET), "--board", "nicla-sense", "--fit", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["fit"]["limit"] == 65_536
    assert main([str(MOBILENET), "--board", "portenta-h7", "--memories", "--json", str(report)]) == 0
    sizes = json.loads(report.read_text())["memories"]
    assert (sizes["fast"], sizes["slow"]) == (512 << 10, 8 << 20)
    assert main([str(MOBILENET), "--max-arena"]) == 2
    assert "--max-arena needs a size, or --board NAME" in capsys.readouterr().err


def test_boards_are_listed_with_what_runs_on_them(capsys: pytest.CaptureFixture[str]):
    assert main(["--board", "list"]) == 0
    told = capsys.readouterr().out
    assert all(f"| {name} " in told and board.title in told for name, board in BOARDS.items())
    assert main([str(MOBILENET), "--board", "list"]) == 0
    runs = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in capsys.readouterr().out.splitlines()[3:-2]
    }
    assert runs.keys() == BOARDS.keys()
    assert (runs["uno-r4"], runs["nicla-sense"], runs["pico"]) == ("no", "with --fit", "as it is")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--fit", "64KB", "--plan", "--split"], "leave out --plan, --split"),
        (["--fit", "64KB", "--memories", "fast=32KB"], "leave out --memories"),
        (["--fit", "64KB", "--stripes", "loop"], "leave out --stripes loop"),
        (["--board", "list", "--max-arena", "1KB", "--json", "-"], "leave out --json, --max-arena"),
        (["--keep", ""], "'' is not like NAME or NAME=INPUT"),
        (["--keep", "=0", "--plan"], "'=0' is not like NAME"),
        (["--fit", "64KB", "-o", "."], "is a directory"),
        (["--fit", "64"], "64 means 64 bytes: write 64KB, or 64B"),
        (["--fit", "much"], "not a size such as"),
        (["--board", "nano33ble"], "did you mean nano-33-ble?"),
        (["--kernels", "cmsisnn"], "did you mean cmsis-nn?"),
        (["--optimise"], "did you mean --optimize?"),
        (["--opt"], "unrecognized arguments: --opt"),
        (["-i", "other.tflite"], "two models are given"),
        (["--fit", "1KB", "--fit", "2KB"], "--fit is given twice"),
        (["-o", "model.h"], "--firmware FOLDER writes C++"),
        (["--csv", "table.csv"], "give the name of a folder"),
        (["--no-sharing"], "add --plan or --fit"),
    ],
)
def test_mistakes_get_one_line_that_helps(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]):
    assert main([str(CELLS), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_sizes_are_read_as_people_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "model.tflite"
    path.write_bytes(chain())
    for text in ("64KB", "64kb", "64KiB", "64k", "65536", "0.0625MB", "64 KB"):
        assert main([str(path), "--memories", f"fast={text}", "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["memories"]["fast"] == 65_536


def test_older_names_still_work(tmp_path: Path):
    path = tmp_path / "model.tflite"
    path.write_bytes(CELLS.read_bytes())
    assert main(["-i", str(path), "--optimize", "--plan", "--no-in-place", "--in-place", "--inline-buffers"]) == 0
    assert path.read_bytes() != CELLS.read_bytes()


def test_help_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "--in-place" not in text


def test_reports_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for arguments in ([str(CELLS)], [str(MOBILENET), "--fit"]):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[-1].startswith("Current peak memory usage: ") or lines[-1].startswith("  ")


def test_a_table_as_wide_as_the_terminal_keeps_its_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def shown(columns: int) -> str:
        monkeypatch.setattr("tflite_tools.terminal_columns", lambda: columns)
        assert main([str(CELLS)]) == 0
        return capsys.readouterr().out

    full = shown(1000)
    widest = max(len(line) for line in full.splitlines() if line.startswith("+"))
    assert shown(widest) == full
    assert shown(widest - 1) != full


def test_a_terminal_shows_how_long_a_step_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def slow(self: TFLiteModel, *_: object, **__: object) -> OrderDecision:
        time.sleep(1.2)
        return self.compute_best_peak_memory_usage()

    monkeypatch.setattr(TFLiteModel, "optimize_memory", slow)
    command = [str(MODELS / "digits_cnn_int8.tflite"), "--optimize"]
    assert main(command) == 0
    without = capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(command) == 0
    assert capsys.readouterr().err == f"\r--optimize: 1 s \r\033[K{without}"

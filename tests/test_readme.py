"""README is the contract: every console block in it is what the current code prints.

``python tests/test_readme.py`` writes the blocks anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from model_builder import converting
from spatial_nets import chain, narrow_waist

from tflite_tools import CompressionDecision, TFLiteModel

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]*)\n(?P<output>.*?)```", re.DOTALL)
SNIPPET = re.compile(r"```python\n(?P<code>.*?)```", re.DOTALL)


def run(command: str, folder: Path) -> str:
    """What a shell shows of a command, run where the project's files are but nothing of it can be overwritten."""
    for name in ("tflite_tools.py", "tests"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout


def blocks() -> list[re.Match[str]]:
    return list(BLOCK.finditer((ROOT / "README.md").read_text()))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tflite_micro") is None, reason="the package tflite-micro has no wheel for this platform")
def test_console_blocks(tmp_path: Path):
    assert len(blocks()) >= 4
    for block in blocks():
        assert run(block["command"], tmp_path) == block["output"], block["command"]


@pytest.mark.parametrize("number", range(len(SNIPPET.findall((ROOT / "README.md").read_text()))))
def test_python_snippets(number: int, tmp_path: Path):
    code = SNIPPET.findall((ROOT / "README.md").read_text())[number]
    (tmp_path / "snippet.py").write_text(code)
    assert "Traceback" not in run(f"PYTHONPATH={ROOT} python snippet.py", tmp_path)


def test_json_keys_are_those_of_the_table(tmp_path: Path):
    options = "--split --optimize --plan --clusters 8 --compress --verify --repair --lighten --integer-io"
    options += " --compare tests/models/digits_cnn_int8.tflite"
    command = f"python tflite_tools.py -i tests/models/digits_mobilenet_int8.tflite {options}"
    report = json.loads(run(f"{command} --json - 2>/dev/null", tmp_path))
    rows = dict(re.findall(r"^\| (`.*?) \| (.*) \|$", (ROOT / "tests/json_keys.md").read_text(), re.MULTILINE))
    documented = {key: set(re.findall(r"`(\w+?)(?:\[\])?`", text)) for key, text in rows.items()}
    top = {name for key in rows for name in re.findall(r"`(\w+)(?:\[\])?`", key)}
    assert top == report.keys() | {"memories", "fit", "stages"}  # instead of other steps
    apart = TFLiteModel(chain()).plan_two_memories(600).json()
    assert documented["`memories`"] == apart.keys()
    assert documented["`memories.tensors_slow[]`"] == apart["tensors_slow"][0].keys()
    assert documented["`subgraphs[]`"] == report["subgraphs"][0].keys()
    assert documented["`subgraphs[].tensors[]`"] - {"null"} == report["subgraphs"][0]["tensors"][0].keys()
    assert documented["`subgraphs[].operators[]`"] == report["subgraphs"][0]["operators"][0].keys()
    assert documented["`arena`"] - {"null"} == report["arena"].keys()
    assert {"subgraph", *documented["`arena.buffers[]`"]} == report["arena"]["buffers"][0].keys()
    assert documented["`optimization`"] - {"null"} == report["optimization"].keys()
    assert documented["`planning`"] - {"null"} == report["planning"].keys()
    of_split = report["split"].keys() | report["split"]["chosen"].keys()
    assert documented["`split`"] - {"null", "false"} == of_split
    decision = TFLiteModel(chain()).fit().json()
    assert documented["`fit`"] - {"null", "ways"} == decision.keys() - {"ways"}
    assert documented["`fit.ways[]`"] == decision["ways"][0].keys()
    stages = TFLiteModel(narrow_waist()).stages(2).json()
    assert documented["`stages`"] == stages.keys()
    assert documented["`stages.stages[]`"] == stages["stages"][0].keys()
    assert documented["`stages.crossings[]`"] == stages["crossings"][0].keys()
    of_region = report["split"]["chosen"]["regions"][0].keys()
    assert documented["`split.…regions[]`"] == of_region
    assert documented["`clustering`"] == report["clustering"].keys()
    assert documented["`compression`"] == report["compression"].keys()
    compressed = CompressionDecision(weights=(("w", 4, 2, 1),)).json()["weights"][0]
    assert documented["`compression.weights[]`"] == compressed.keys()
    assert documented["`lightening`"] == report["lightening"].keys()
    assert documented["`repair`"] == report["repair"].keys()
    assert documented["`integer_io`"] == report["integer_io"].keys()
    (port, _) = TFLiteModel(converting()).use_integer_ports().json()["ports"]
    assert documented["`integer_io.ports[]`"] == port.keys()
    side = report["comparison"]["this"].keys()
    assert documented["`comparison`"] == report["comparison"].keys() | side
    assert documented["`verification`"] == report["verification"].keys()


def test_set_up_is_what_ci_does():
    commands = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    ci = (ROOT / ".ci" / "run").read_text()
    assert "--fit" in commands[0]
    assert commands[1] in ci


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        readme = (ROOT / "README.md").read_text()
        readme = BLOCK.sub(lambda b: f"```console\n$ {b['command']}\n{run(b['command'], Path(folder))}```", readme)
        (ROOT / "README.md").write_text(readme)

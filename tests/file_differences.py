"""What two files have in common, table by table."""

from __future__ import annotations

import tflite_tools


def changed_buffers(before: bytes, after: bytes) -> set[int]:
    """The buffers with other data; all else that the two files say, compared table by table, must be the same."""
    models = [tflite_tools.File.read(data).compacted() for data in (before, after)]
    assert all(tflite_tools.is_same(*(model[field] for model in models)) for field in models[0] if field != "Buffers")
    assert len(models[0]["Buffers"]) == len(models[1]["Buffers"])
    pairs = enumerate(zip(*(model["Buffers"] for model in models), strict=True))
    return {i for i, (old, new) in pairs if not tflite_tools.is_same(old, new)}

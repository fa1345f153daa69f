"""The models that ship with the tests, and those of ../shared where that folder is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

MODELS = Path(__file__).parent / "models"


SHARED = Path(__file__).resolve().parents[2] / "shared"


HAS_SHARED = SHARED.is_dir()


def needs_shared(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of models in ../shared, which is skipped without that folder. Sweeps over them are slow."""
    skipped = pytest.mark.skipif(not HAS_SHARED, reason="the folder ../shared with the model corpus is not here")
    return pytest.mark.slow(skipped(test))


def corpus() -> list[Path]:
    """Every model of the shared corpus; empty where it is absent.

    Synthetic graphs of 1,000 operators and more are left to the benchmarks.
    """
    paths = [*SHARED.glob("models/**/*.tflite"), *SHARED.glob("nets/*.tflite")]
    return sorted(p for p in paths if not re.search(r"syn_.*_n[13]000_", p.name))


def corpus_id(path: Path) -> str:
    return str(path.relative_to(SHARED))

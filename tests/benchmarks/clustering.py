"""Weight clustering: how fast against KMeans on all weights, how close to the exact optimum, what it costs in accuracy.

python tests/benchmarks/clustering.py            # speed and error on random matrices and on whole models
python tests/benchmarks/clustering.py --exact    # how far large arrays of many kinds are above the exact optimum
python tests/benchmarks/clustering.py --digits   # README's table: accuracy of the digits models for N = 2..32
python tests/benchmarks/clustering.py --corpus FOLDER   # every weight matrix against KMeans with n_init=10
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from arrays_to_cluster import ARRAY_KINDS, least_squared_error, random_array  # noqa: E402
from model_builder import Builder  # noqa: E402

from tflite_tools import ModelError, TFLiteModel, cluster_values, decode_weights, weight_tensors  # noqa: E402


def best_seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """The best of three calls, and its result: the first one warms caches up, on both sides."""
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        result = function(*arguments)
        runs.append((time.perf_counter() - start, result))
    return min(runs, key=lambda run: run[0])


def kmeans_on_all(points: np.ndarray, clusters: int) -> float:
    """The squared error that scikit-learn reaches on the weights themselves, as most tools cluster."""
    from sklearn.cluster import KMeans

    return float(KMeans(clusters, n_init=1, random_state=0).fit(points).inertia_)


def compare_speed() -> None:
    rng = np.random.default_rng(0)
    matrices = {
        "int8, 150k": np.clip(rng.normal(0, 30, 150_000), -127, 127).astype(np.int8),
        "int8, 1M": np.clip(rng.normal(0, 30, 1_000_000), -127, 127).astype(np.int8),
        "int16, 300k": rng.normal(0, 5000, 300_000).astype(np.int16),
        "float32, 150k": rng.normal(size=150_000).astype(np.float32),
        "float32, 300k": rng.normal(size=300_000).astype(np.float32),
        "float32, 1M": rng.normal(size=1_000_000).astype(np.float32),
    }
    print("matrix           N   ours (s)  KMeans (s)  ratio   error / KMeans   error / exact - 1")
    for name, values in matrices.items():
        for clusters in (4, 16, 32):
            ours, result = best_seconds(cluster_values, values, clusters)
            points = values.reshape(-1, 1).astype(np.float64)
            theirs, inertia = best_seconds(kmeans_on_all, points, clusters)
            exact = least_squared_error(values, clusters)
            figures = f"{ours:10.4f} {theirs:11.3f} {theirs / ours:6.0f}"
            errors = f"{result.squared_error / inertia:16.4f} {result.squared_error / exact - 1:19.1e}"
            print(f"{name:14} {clusters:3} {figures} {errors}", flush=True)
    print("(integer types: ours has integer centroids, the exact optimum real ones)")


def compare_with_exact() -> None:
    print("  N  arrays  above optimum by > 1e-9   worst")
    for clusters in (4, 8, 16, 32, 64, 128):
        losses = []
        for kind in ARRAY_KINDS:
            for size in (5_000, 20_000, 60_000, 70_000, 150_000, 300_000):
                values = random_array(kind, size)
                exact = least_squared_error(values, clusters)
                losses.append((cluster_values(values, clusters).squared_error / exact - 1, f"{kind}, {size:,}"))
        above = sum(loss > 1e-9 for loss, _ in losses)
        worst, where = max(losses)
        print(f"{clusters:3} {len(losses):7} {above:24}   {worst:.1e} ({where})", flush=True)


def dense_model(dtype: type, megabytes: int) -> bytes:
    """A model of fully connected layers of 1 MB each."""
    rng = np.random.default_rng(1)
    b = Builder()
    x = source = b.tensor((1, 1024), "FLOAT32")
    for _ in range(megabytes):
        rows = (1 << 20) // 1024 // np.dtype(dtype).itemsize
        y = b.tensor((1, rows), "FLOAT32")
        b.op("FULLY_CONNECTED", [x, b.constant(rng.normal(0, 30, (rows, 1024)).astype(dtype)), -1], [y])
    return b.build([source], [y])


def time_models() -> None:
    for dtype, megabytes in ((np.int8, 4), (np.float32, 20)):
        data = dense_model(dtype, megabytes)
        elapsed, _ = best_seconds(lambda data: TFLiteModel(data).cluster_weights(16), data)
        print(f"{megabytes} MB {dtype.__name__} model, N = 16: {elapsed:.2f} s")


DIGITS = {"cnn": (4, 1), "cells": (4, 1), "mobilenet": (12, 3)}  # how the test images are scaled, and channels


def accuracy(name: str, model: TFLiteModel) -> str:
    """Of the 450 test images."""
    from ai_edge_litert.interpreter import Interpreter

    test = np.load(ROOT / "tests" / "models" / "digits_test.npz")
    factor, channels = DIGITS[name]
    images = test["x"].repeat(factor, 1).repeat(factor, 2)[..., None].repeat(channels, 3)
    inputs = np.clip(np.round(images / 0.003921568859368563 - 128), -128, 127).astype(np.int8)
    interpreter = Interpreter(model_content=model.to_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    correct = 0
    for image, label in zip(inputs, test["y"], strict=True):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        correct += int(np.argmax(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])) == label)
    return f"{100 * correct / len(inputs):.1f} %"


MORE_RAM = 2048  # bytes by which the arena may grow


def digits_accuracy() -> None:
    """With one code-book per matrix; then with one per channel, compressed with MORE_RAM."""
    ways = (None, 32, 16, 8, 4, 2)
    print("| model | original | " + " | ".join(f"N = {n}" for n in ways[1:]) + " |")
    print("|---|" + "---:|" * len(ways))
    for name in DIGITS:
        row = []
        for clusters in ways:
            model = TFLiteModel.load_from_file(ROOT / "tests" / "models" / f"digits_{name}_int8.tflite")
            if clusters:
                model.cluster_weights(clusters)
            row.append(accuracy(name, model))
        print(f"| digits_{name}_int8 | " + " | ".join(row) + " |")
    qualities = (30, 25, 20)
    print(
        "\n| model | original | "
        + " | ".join([*(f"N = {n}" for n in ways[1:-1]), *(f"{db} dB" for db in qualities)])
        + " |"
    )
    print("|---|" + "---:|" * (len(ways) - 1 + len(qualities)))
    for name in DIGITS:
        row = []
        for clusters, quality in [*((n, None) for n in ways[:-1]), *((None, db) for db in qualities)]:
            model = TFLiteModel.load_from_file(ROOT / "tests" / "models" / f"digits_{name}_int8.tflite")
            if clusters:
                model.cluster_weights(clusters, per_channel=True)
            elif quality:
                model.cluster_weights(per_channel=True, min_sqnr=quality)
            percent = accuracy(name, model)  # compressed it computes the same, but not in LiteRT
            if clusters or quality:
                model.compress_weights(MORE_RAM)
            row.append(f"{percent}, {len(model.to_bytes()):,} / {model.arena.reserve:,}")
        print(f"| digits_{name}_int8 | " + " | ".join(row) + " |")


def compare_corpus(folder: Path) -> int:
    """Every weight matrix of every model against KMeans with ten starts on all weights; the number of defeats."""
    from sklearn.cluster import KMeans

    matrices = defeats = 0
    largest_gain = 0.0
    for path in sorted(folder.rglob("*.tflite")):
        try:
            model = TFLiteModel.load_from_file(path)
        except ModelError:
            continue
        data = model.to_bytes()
        for _, tensor in weight_tensors(model.graph)[0]:
            span = model.graph.buffers[tensor.buffer]
            stored = np.frombuffer(data, np.uint8, span.size, span.start)
            values = decode_weights(tensor, stored)
            if len(np.unique(values)) <= 16 or values.size > 300_000:
                continue
            result = cluster_values(values, 16)
            points, counts = np.unique(values.astype(np.float64), return_counts=True)
            kmeans = KMeans(16, n_init=10, random_state=0).fit(points[:, None], sample_weight=counts)
            centroids = np.sort(kmeans.cluster_centers_[:, 0]).astype(values.dtype).astype(np.float64)
            if values.dtype.kind in "iu":
                centroids = np.rint(np.sort(kmeans.cluster_centers_[:, 0]))
            nearest = centroids[np.abs(points[:, None] - centroids).argmin(axis=1)]
            theirs = float(np.dot(counts, (points - nearest) ** 2))
            matrices += 1
            largest_gain = max(largest_gain, theirs / result.squared_error - 1 if result.squared_error else 0.0)
            if result.squared_error > theirs * (1 + 1e-9):
                defeats += 1
                print(f"{path.name} {tensor.name} {values.shape} {result.squared_error:.9g} > {theirs:.9g}", flush=True)
    print(f"{matrices} matrices, N = 16: {defeats} above KMeans n_init=10; at best it is {largest_gain:.1%} above ours")
    return defeats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true", help="measure the accuracy of the shipped models instead")
    parser.add_argument("--exact", action="store_true", help="compare arrays of many kinds with kmeans1d instead")
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="compare all matrices of these models instead")
    arguments = parser.parse_args()
    if arguments.digits:
        digits_accuracy()
    elif arguments.exact:
        compare_with_exact()
    elif arguments.corpus:
        return 1 if compare_corpus(arguments.corpus) else 0
    else:
        compare_speed()
        time_models()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Arrays to cluster, and the least error that any clustering of them has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Values that are hard to cluster in different ways: tails, gaps, modes of nearly the same weight, runs of one value.
ARRAY_KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "laplace": lambda rng, size: rng.laplace(size=size),
    "tails": lambda rng, size: rng.standard_t(3, size),
    "heavy tails": lambda rng, size: rng.standard_t(1.5, size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "lognormal": lambda rng, size: rng.lognormal(size=size),
    "narrow modes": lambda rng, size: rng.normal(0, 0.1, size) + rng.integers(0, 7, size),
    "wide modes": lambda rng, size: rng.normal(0, 0.3, size) + rng.integers(0, 20, size),
    "gap": lambda rng, size: np.where(rng.random(size) < 0.5, rng.normal(size=size), rng.normal(100, 5, size)),
    "pruned": lambda rng, size: np.where(rng.random(size) < 0.6, 0, rng.normal(size=size)),
    "outliers": lambda rng, size: np.append(rng.normal(size=size - 3), [50, -80, 1000]),
}


def random_array(kind: str, size: int, seed: int = 0) -> np.ndarray:
    """float32 values of one of the ARRAY_KINDS."""
    return ARRAY_KINDS[kind](np.random.default_rng((seed, size)), size).astype(np.float32)


def squared_error(values: np.ndarray, clustered: np.ndarray) -> float:
    return float(np.sum((values.astype(np.float64) - clustered.astype(np.float64)) ** 2))


def least_squared_error(values: np.ndarray, clusters: int) -> float:
    """With real centroids, by kmeans1d, the oracle."""
    import kmeans1d

    labels, centroids = kmeans1d.cluster(values.astype(np.float64), min(clusters, len(values)))
    return squared_error(values, np.array(centroids)[labels])

"""Figures of a quantized model beside its float one, from their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def mask_iou(wanted: Arrays, found: Arrays) -> float:
    """Overlap of the masks above 0.3: intersection over union."""
    a, b = (next(iter(rows.values())) > 0.3 for rows in (wanted, found))
    return float((a & b).sum() / max((a | b).sum(), 1))


def rank_correlation(wanted: Arrays, found: Arrays) -> float:
    """Spearman's, of all pairs' cosine similarities."""
    ranks = []
    for rows in (wanted, found):
        vectors = next(iter(rows.values())).astype(np.float64)
        pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        ranks.append(pairs.argsort().argsort().astype(np.float64))
    return float(np.corrcoef(*ranks)[0, 1])


def mean_db(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """SQNR in dB, the mean over the samples, each within 0 and 100."""
    a, b = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (wanted, found))
    ratio = (np.square(a).sum(axis=1) + 1e-30) / (np.square(a - b).sum(axis=1) + 1e-30)
    return float(np.clip(10 * np.log10(ratio), 0, 100).mean())

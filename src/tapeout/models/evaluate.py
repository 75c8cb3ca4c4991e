"""How close our logits are to plain float32: agreement, divergence, perplexity.

`compare` is numpy alone; `reference_logits` runs the Hugging Face module in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tapeout.models.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """`compare`'s result over T positions; KL in nats, perplexity over the T - 1 next tokens."""

    tokens: int
    top1_agreement: float
    mean_kl: float
    max_kl: float
    ppl_reference: float
    ppl_ours: float


def reference_logits(loaded: LoadedModel, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits float32 [T, V] of `ids` from one plain float32 PyTorch forward, without a cache."""
    import torch

    with torch.inference_mode():
        result = loaded.module(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return np.asarray(result.logits[0].float().numpy())


def compare(
    reference: NDArray[np.float32], ours: NDArray[np.float32], ids: Sequence[int]
) -> Closeness:
    """Compare logits [T, V] row by row; row t predicts ``ids[t + 1]``.

    KL is ``sum p_ref * (log p_ref - log p_ours)``, in float64.  A row of ours with a NaN agrees
    with nothing and makes the KL NaN.  `ValueError` where the shapes differ.
    """
    if reference.shape != ours.shape or reference.ndim != 2 or len(ids) != len(reference):
        raise ValueError(
            f"compare needs two [T, V] arrays and T ids, got {reference.shape}, {ours.shape} and "
            f"{len(ids)} ids"
        )
    kl, nll_reference, nll_ours, agree = [], [], [], 0
    for row in range(len(reference)):
        log_p, log_q = _log_softmax(reference[row]), _log_softmax(ours[row])
        kl.append(float(np.sum(np.exp(log_p) * (log_p - log_q))))
        agree += bool(np.argmax(reference[row]) == np.argmax(ours[row])) and not np.isnan(kl[-1])
        if row + 1 < len(ids):
            nll_reference.append(-log_p[ids[row + 1]])
            nll_ours.append(-log_q[ids[row + 1]])
    return Closeness(
        tokens=len(reference),
        top1_agreement=agree / len(reference),
        mean_kl=float(np.mean(kl)),
        max_kl=float(np.max(kl)),
        ppl_reference=float(np.exp(np.mean(nll_reference))) if nll_reference else float("nan"),
        ppl_ours=float(np.exp(np.mean(nll_ours))) if nll_ours else float("nan"),
    )


def _log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = row.astype(np.float64) - float(np.max(row))
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted))))

"""The logits check: known answers, and the reference on real weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tapeout.models.evaluate import compare, reference_logits


def test_known_distributions() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    reference = np.log([p, p]).astype(np.float32) + 3
    ours = np.log([q, p]).astype(np.float32) - 5
    result = compare(reference, ours, [0, 2])
    assert result.tokens == 2
    assert result.top1_agreement == 0.5
    assert result.max_kl == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert result.mean_kl == pytest.approx(0.125 * math.log(2), rel=1e-6)
    assert result.ppl_reference == pytest.approx(4)  # token 2 follows with p = 1/4
    assert result.ppl_ours == pytest.approx(4)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)
    assert compare(logits, logits, [0, 0]).mean_kl == 0


def test_nan_never_agrees() -> None:
    logits = np.zeros((1, 4), np.float32)
    broken = logits.copy()
    broken[0, 0] = np.nan
    result = compare(logits, broken, [0])
    assert result.top1_agreement == 0
    assert math.isnan(result.mean_kl)


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"two \[T, V\] arrays"):
        compare(np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32), [0, 1])


@pytest.mark.model
@pytest.mark.torch
def test_reference_on_english(smollm2: Any, smollm2_tokenizer: Any, english: str) -> None:
    ids = smollm2_tokenizer.encode(english)[:512]
    assert len(ids) == 512
    logits = reference_logits(smollm2, ids)
    assert logits.shape == (512, 49152)
    assert logits.dtype == np.float32
    result = compare(logits, logits, ids)
    # Ordinary prose: far from noise (49152) and from text the model knows by heart (2).
    assert 15 < result.ppl_reference < 40
    assert result.top1_agreement == 1.0
    shifted = compare(logits, np.roll(logits, 1, axis=0), ids)
    assert shifted.top1_agreement < 0.2
    assert shifted.mean_kl > 1

"""NLL and temperature. The reliability table and its error are tested with evaluations."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from mnv3lib.study import calibration


@pytest.fixture(scope="module")
def drawn():
    """Logits, and labels drawn with the probabilities that they mean: a model that is calibrated."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(6000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits.numpy(), labels.numpy()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_temperature_undoes_what_made_a_network_too_sure_or_not_sure_enough(drawn, factor):
    logits, labels = drawn
    before, after = (calibration.scores(one, labels) for one in (logits, factor * logits))
    assert after["temperature"] == pytest.approx(factor, rel=0.05)
    assert after["nll_scaled"] == pytest.approx(before["nll"], abs=0.01)
    assert after["ece_scaled"] < 2, "what is left is chance"
    expected = -log_softmax(factor * logits.astype(float), axis=1)[np.arange(len(labels)), labels].mean()
    assert after["nll"] == pytest.approx(expected, rel=1e-5)


def test_no_image_helps_to_choose_its_own_temperature():
    """Even images are sure and right, odd ones sure and wrong: each half is scaled by what suits the other."""
    logits = np.tile(np.array([[4.0, 0.0]], np.float32), (40, 1))
    labels = np.arange(40) % 2
    found = calibration.scores(logits, labels)
    assert found["nll_scaled"] > found["nll"]


def test_one_image_has_no_other_half():
    found = calibration.scores(np.zeros((1, 4), np.float32), np.zeros(1, np.uint8))
    assert found["nll"] == pytest.approx(np.log(4))
    assert np.isnan(found["temperature"])

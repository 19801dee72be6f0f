"""Which axis shows a run's values."""

import numpy as np
import pytest

from jaxnn.runs import curves

STEPS = np.arange(4.0)


@pytest.mark.parametrize(
    ("name", "values", "log"),
    [
        ("loss", [[2.0, 0.5, 0.1, 0.05]], True),
        ("loss", [[0.5, 0.4, 0.3, 0.2]], False),
        ("loss", [[2.0, 0.5, 0.0, 0.05]], False),
        ("loss", [[1.0, 3.0, 40.0, 900.0]], True),  # it blows up
        ("accuracy", [[0.01, 0.1, 0.3, 0.4], [0.02, np.nan, 0.3, 0.5]], False),
        ("val_error", [[0.9, 0.1, 0.02, 0.01]], True),
        ("lr", [[1e-2, 5e-3, 1e-4, 1e-5]], False),
        ("learning_rate", [[1e-2, 5e-3, 1e-4, 1e-5]], False),
        ("loss", [[np.nan] * 4], False),
    ],
)
def test_a_logarithmic_axis_is_for_what_falls_far(name, values, log):
    assert curves.log_scale(name, [(STEPS, np.array(line)) for line in values]) is log

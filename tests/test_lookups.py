"""What is noticed of arrays while a model is traced."""

import numpy as np

from jaxnn import lookups


def test_what_a_model_looks_up_is_the_narrowest_of_its_tables():
    x, other = np.zeros(3, np.int32), np.zeros(3, np.int32)
    wide, narrow = (lookups.Lookup(n, "rows", "") for n in (9, 5))
    with lookups.noticing({"x": x}) as found:
        half = x[:2]
        lookups.part_of(half, x)
        assert lookups.notice(x, wide)
        assert not lookups.notice(half, narrow)
        assert not lookups.notice(other, lookups.Lookup(1, "rows", ""))
    assert found == {"x": narrow}
    assert not lookups.notice(x, wide)  # nobody is noticing

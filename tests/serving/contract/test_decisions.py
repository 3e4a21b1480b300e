"""Decisions at a threshold, of one image as the service makes them and of many as they are evaluated."""

import numpy as np

from serving.contract.card.decisions import Familiarity, OperatingPoint


def test_one_value_is_decided_as_among_many() -> None:
    """At thresholds between a float32 and its neighbours, where rounding would decide otherwise."""
    values = np.random.default_rng(0).random(50).astype(np.float32)
    for threshold in (float(at) for value in values[:9] for at in (value, np.nextafter(float(value), 1))):
        point = OperatingPoint(label="a", score="sensitivity", target=0.9, threshold=threshold)
        familiarity = Familiarity(threshold=threshold, false_alarms=0.05, images=50)
        for decide in (point.decides, familiarity.unfamiliar):
            alone = [decide(value) for value in values.tolist()]
            assert alone == decide(values).tolist()
            assert {type(decision) for decision in alone} == {bool}
        assert point.decides(threshold)
        assert not familiarity.unfamiliar(threshold)

import pytest
from prometheus_client import CollectorRegistry

from serving.metrics import Metrics, ReloadOutcome


@pytest.mark.parametrize("status", [401, 404, 405, 408, 429, 503])
def test_a_refusal_at_once_is_counted_and_its_time_is_not(status: int) -> None:
    """Under overload there are many times more refusals than answers: the quantiles would be theirs."""
    registry = CollectorRegistry()
    requests = Metrics(registry).requests
    for _ in range(999):
        requests.answered("/predict", status, 0.00002)
    for worked in (200, 422, 500, 504):
        requests.answered("/predict", worked, 2.0)
    route = {"route": "/predict"}
    assert registry.get_sample_value("twinlens_requests_total", route | {"status": str(status)}) == 999
    assert registry.get_sample_value("twinlens_request_seconds_count", route) == 4
    assert registry.get_sample_value("twinlens_request_seconds_sum", route) == 8


def test_a_file_counts_as_refused_until_one_is_served() -> None:
    registry = CollectorRegistry()
    model = Metrics(registry).model
    assert registry.get_sample_value("twinlens_model_refused") == 0
    outcomes: list[tuple[ReloadOutcome, int]] = [
        ("swapped", 0),
        ("refused", 1),
        ("failed", 1),
        ("swapped", 0),
        ("failed", 1),
        ("unchanged", 0),
        ("missing", 1),
        ("swapped", 0),
    ]
    for outcome, refused in outcomes:
        model.reloaded(outcome)
        assert registry.get_sample_value("twinlens_model_refused") == refused, outcome

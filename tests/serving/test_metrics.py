import pytest
from prometheus_client import CollectorRegistry

from serving.metrics import Metrics


@pytest.mark.parametrize("status", [401, 404, 405, 429, 503])
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

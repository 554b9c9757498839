import pytest

from pipeline.cluster import connected
from pipeline.errors import UserError
from pipeline.resources import Resources


def test_a_ray_that_is_there_is_left_as_it_was(ray_local: None) -> None:
    import ray

    with connected(Resources()):
        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("resources", "remedy"),
    [
        (Resources(num_workers=3), r"ask for 3 CPUs \(3 workers of 1\) but this machine has 2: lower resources"),
        (Resources.model_validate({"num_workers": {"min": 3, "max": 9}}), r"ask for 3 CPUs \(3 workers of 1\) but"),
        (Resources(gpus_per_worker=1), r"ask for 2 GPUs .* has 0: set resources.gpus_per_worker to 0"),
    ],
)
def test_more_than_there_is_would_wait_for_ever(ray_local: None, resources: Resources, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy), connected(resources):
        pytest.fail("the block must not run")


def test_an_address_that_is_no_ray_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with (
        pytest.raises(UserError, match=r"cannot use the Ray at RAY_ADDRESS='http://127.0.0.1:1'"),
        connected(Resources()),
    ):
        pytest.fail("the block must not run")

from tests.training.conftest import shards  # the tiny dataset, as a fixture

__all__ = ["shards"]

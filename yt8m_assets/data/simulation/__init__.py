"""A simulated dataset in the real one's format, from a model whose best possible score is known.

The oracle and the hidden test ratings are not exported here on purpose: evaluation alone imports them, by module.
"""

from yt8m_assets.data.simulation.config import SPLITS, SimulationConfig
from yt8m_assets.data.simulation.dataset import DatasetPaths, dataset_paths, write_dataset

__all__ = ["SPLITS", "DatasetPaths", "SimulationConfig", "dataset_paths", "write_dataset"]

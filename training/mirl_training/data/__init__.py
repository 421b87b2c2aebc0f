"""Make training batches and validation pairs from folders of photos.

Three public modules are not exported here: ``degradations`` (noise, rain, haze, compression), ``graphics``
(drawn pictures) and ``settings`` (the section ``data`` of a run's YAML file).
"""

from mirl_training.data.folders import PAIR_SUFFIXES, DataError, Source, list_images, list_pairs
from mirl_training.data.recipes import Recipe, SourceName
from mirl_training.data.settings import DataSettings
from mirl_training.data.tasks import TASKS, degrade
from mirl_training.data.training_data import Pairs, TrainingData

__all__ = [
    "PAIR_SUFFIXES",
    "TASKS",
    "DataError",
    "DataSettings",
    "Pairs",
    "Recipe",
    "Source",
    "SourceName",
    "TrainingData",
    "degrade",
    "list_images",
    "list_pairs",
]

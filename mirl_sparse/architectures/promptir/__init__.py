"""Define PromptIR: its config, its network, its stages, and how a checkpoint of it is recognised."""

from mirl_sparse.architectures.promptir.config import ConfigError, PromptIRConfig
from mirl_sparse.architectures.promptir.detection import DetectionError, infer_config
from mirl_sparse.architectures.promptir.network import PromptBlock, PromptIR, TransformerBlock
from mirl_sparse.architectures.promptir.topology import (
    Kind,
    Layer,
    Part,
    Stage,
    layers,
    stages,
    unet,
    unused_weights,
)

__all__ = [
    "ConfigError",
    "DetectionError",
    "Kind",
    "Layer",
    "Part",
    "PromptBlock",
    "PromptIR",
    "PromptIRConfig",
    "Stage",
    "TransformerBlock",
    "infer_config",
    "layers",
    "stages",
    "unet",
    "unused_weights",
]

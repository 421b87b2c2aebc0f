"""PromptIR: its config, its network, and the names and shapes by which a checkpoint is recognised."""

from mirl_sparse.architectures.promptir.config import MULTIPLE, ConfigError, PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR

__all__ = ["MULTIPLE", "ConfigError", "PromptIR", "PromptIRConfig"]

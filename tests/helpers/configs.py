"""Configs of small networks that several tests use."""

from mirl_sparse.architectures.promptir import PromptIRConfig

TINY = PromptIRConfig(
    dim=8,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    heads=(1, 1, 1, 1),
    prompt_dims=(4, 4, 4),
    prompt_sizes=(4, 4, 4),
    prompt_count=1,
    unused_layers=False,
)
# Depths, heads and prompts differ from level to level, so that no two can be confused.
SMALL = PromptIRConfig(
    dim=4,
    num_blocks=(1, 2, 1, 1),
    num_refinement_blocks=1,
    heads=(1, 2, 4, 4),
    prompt_dims=(4, 8, 20),
    prompt_sizes=(4, 3, 2),
    prompt_count=3,
)

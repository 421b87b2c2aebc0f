"""Offer the prompt block: learned prompts, mixed by what the features look like."""

from mirl_kernels.ops.prompt.cpu import PackedPrompt
from mirl_kernels.ops.prompt.examples import example
from mirl_kernels.ops.prompt.reference import mixture, prompt

__all__ = ["PackedPrompt", "example", "mixture", "prompt"]

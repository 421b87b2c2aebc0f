"""The widths and depths of a PromptIR."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from mirl_sparse.architectures.promptir.topology import stages
from mirl_sparse.errors import UserError

MULTIPLE = 8  # three halvings: height and width must divide by this


class ConfigError(UserError):
    """A configuration that describes no network; the message is one line for the user."""


@dataclass(frozen=True)
class PromptIRConfig:
    """Widths and depths of a PromptIR; the defaults are the published network.

    ``dim`` channels at full resolution, doubled at each of three halvings; ``num_blocks`` per
    level, the last of them the latent; ``heads`` per level; ``ffn_expansion`` the ratio of GDFN's
    hidden width to its input; ``prompt_dims`` and ``prompt_sizes`` the channels and side of the
    prompts at 1/2, 1/4 and 1/8 resolution; ``prompt_count`` how many are mixed.
    ``unused_layers`` keeps the six layers that the published code stores and never calls.
    """

    dim: int = 48
    num_blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    num_refinement_blocks: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    ffn_expansion: float = 2.66
    prompt_dims: tuple[int, int, int] = (64, 128, 320)
    prompt_sizes: tuple[int, int, int] = (64, 32, 16)
    prompt_count: int = 5
    unused_layers: bool = True

    def __post_init__(self) -> None:
        for name, length in (("num_blocks", 4), ("heads", 4), ("prompt_dims", 3), ("prompt_sizes", 3)):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != length:
                raise ConfigError(f"{name} is {value!r}; expected {length} integers")
            object.__setattr__(self, name, tuple(value))
        counts = {"dim": self.dim, "num_refinement_blocks": self.num_refinement_blocks}
        counts["prompt_count"] = self.prompt_count
        for name in ("num_blocks", "heads", "prompt_dims", "prompt_sizes"):
            counts |= {f"{name}[{i}]": v for i, v in enumerate(getattr(self, name))}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected an integer of 1 or more")
        if not isinstance(self.ffn_expansion, (int, float)) or int(self.dim * self.ffn_expansion) < 1:
            raise ConfigError(
                f"ffn_expansion is {self.ffn_expansion!r}; expected a number that leaves"
                f" at least one hidden channel of dim {self.dim}"
            )
        if self.dim % 2:
            raise ConfigError(
                f"dim is {self.dim}; expected an even number (levels halve before they unshuffle)"
            )
        for stage in stages(self):
            if stage.inputs % stage.heads:
                raise ConfigError(
                    f"{stage.name} has {stage.inputs} channels for {stage.heads} heads; expected a multiple"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as a YAML file or a ticket's metadata holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PromptIRConfig:
        """The inverse of `to_dict`; unknown keys are refused."""
        if not isinstance(values, dict):
            raise ConfigError(f"the network's config is {values!r}; expected a mapping")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"unknown network setting {unknown[0]!r}; expected one of {', '.join(sorted(known))}"
            )
        return cls(**values)

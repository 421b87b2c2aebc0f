"""Define the widths and depths of a PromptIR."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from mirl_sparse.architectures.promptir.topology import stages
from mirl_sparse.errors import UserError

_HALVINGS = 3


class ConfigError(UserError):
    """Report a config that describes no network; the message is one line for the user."""


@dataclass(frozen=True)
class PromptIRConfig:
    """Hold the widths and depths of a PromptIR; the defaults are the published network.

    Attributes:
        dim: Channels at the highest level, an even number; they double at each of three halvings. The highest
            level has the resolution of the image, or half of it with ``unshuffle`` 2.
        num_blocks: Transformer blocks per level, highest resolution first; the last of them are the latent's.
        num_refinement_blocks: Transformer blocks behind the decoder, at the highest level.
        heads: Heads of the attention per level.
        ffn_expansion: Hidden channels of GDFN by channels of its input.
        prompt_dims: Channels of the prompts at 1/2, 1/4 and 1/8 of the highest level's resolution.
        prompt_sizes: Height and width of the prompts there.
        prompt_count: Number of prompts that are mixed.
        unused_layers: Keep the six layers that the published code stores and never calls.
        unshuffle: 1, or 2: 2x2 pixels become channels before the first convolution (pixel unshuffle) and
            pixels again behind the last one. So all else runs at half the resolution, as in FFDNet (Zhang et
            al., TIP 2018).

    Raises:
        ConfigError: No network has these widths and depths.

    Examples:
        >>> from mirl_sparse import PromptIRConfig
        >>> PromptIRConfig().multiple, PromptIRConfig(dim=24, unshuffle=2).multiple
        (8, 16)
        >>> PromptIRConfig(dim=24).to_dict()["num_blocks"]
        [4, 6, 6, 8]
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
    unshuffle: int = 1

    def __post_init__(self) -> None:
        for name, length in (("num_blocks", 4), ("heads", 4), ("prompt_dims", 3), ("prompt_sizes", 3)):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != length:
                raise ConfigError(f"{name} is {value!r}; expected {length} integers")
            object.__setattr__(self, name, tuple(value))
        self._check_counts()
        if not isinstance(self.ffn_expansion, (int, float)) or int(self.dim * self.ffn_expansion) < 1:
            raise ConfigError(
                f"ffn_expansion is {self.ffn_expansion!r}; expected a number that leaves"
                f" at least one hidden channel of dim {self.dim}"
            )
        if self.unshuffle > 2:
            raise ConfigError(f"unshuffle is {self.unshuffle}; expected 1 or 2")
        if self.dim % 2:
            raise ConfigError(
                f"dim is {self.dim}; expected an even number (levels halve before they unshuffle)"
            )
        for stage in stages(self):
            if stage.inputs % stage.heads:
                raise ConfigError(
                    f"{stage.name} has {stage.inputs} channels for {stage.heads} heads; expected a multiple"
                )

    def _check_counts(self) -> None:
        counts = {"dim": self.dim, "num_refinement_blocks": self.num_refinement_blocks}
        counts |= {"prompt_count": self.prompt_count, "unshuffle": self.unshuffle}
        for name in ("num_blocks", "heads", "prompt_dims", "prompt_sizes"):
            counts |= {f"{name}[{i}]": v for i, v in enumerate(getattr(self, name))}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected an integer of 1 or more")

    @property
    def multiple(self) -> int:
        """Return what height and width of an image must be multiples of; 8 for the published network."""
        return self.unshuffle << _HALVINGS

    def check_side(self, side: int) -> None:
        """Raise ConfigError unless the network takes images of side x side pixels as they are."""
        if side < 1 or side % self.multiple:
            raise ConfigError(
                f"size {side} does not suit the network; expected a multiple of {self.multiple}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, as a YAML file or the metadata of a ticket holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PromptIRConfig:
        """Return the config of `to_dict`'s result.

        Args:
            values: Settings by name; those that are absent have their defaults.

        Raises:
            ConfigError: ``values`` is no mapping, names an unknown setting, or describes no network.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"the network's config is {values!r}; expected a mapping")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"unknown network setting {unknown[0]!r}; expected one of {', '.join(sorted(known))}"
            )
        return cls(**values)

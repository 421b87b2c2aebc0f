"""The settings of a run that takes a second."""

from mirl_training.runs import RunConfig

SETTINGS = {
    "network": {
        "dim": 8,
        "num_blocks": [1, 1, 1, 1],
        "num_refinement_blocks": 1,
        "heads": [1, 1, 2, 2],
        "prompt_dims": [4, 4, 8],
        "prompt_sizes": [4, 4, 4],
        "prompt_count": 2,
        "unused_layers": False,
    },
    "data": {
        "clean": "clean",
        "haze": "haze",
        "tasks": {"noise25": 1, "rain": 1, "haze": 1, "fog": 1},
        "validation_images": 1,
    },
    "training": {
        "steps": 4,
        "batch_size": 2,
        "patch_size": 16,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "validate_every": 4,
        "save_every": 1,
    },
    "pruning": {"criterion": "global", "rate": 0.5, "rounds": 2},
}


def settings(**changes: dict) -> RunConfig:
    """The tiny run's config with some settings of its sections changed."""
    return RunConfig(**{k: v | changes.get(k, {}) for k, v in SETTINGS.items()})

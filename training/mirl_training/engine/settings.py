"""Define the section ``training`` of a run's YAML file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mirl_sparse.choices import Choice
from mirl_training.settings import Fraction, Positive, Settings

Patch = Annotated[int, Field(ge=8, multiple_of=8)]


class Loss(Choice):
    """Name the distance between restored and clean images."""

    L1 = "l1"
    PSNR = "psnr"


class OptimizerName(Choice):
    """Name what steps the matrices between the first and the last layer; AdamW steps everything else."""

    ADAMW = "adamw"
    MUON = "muon"


class TrainingPrecision(Choice):
    """Name the numbers that a step is computed in; "auto" depends on the device."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"


class ProgressiveStage(Settings):
    """Train on batches of another shape from a part of every round on.

    Attributes:
        after: The part of a round after which the stage begins, 0 to 1.
        batch_size: Images per batch.
        patch_size: Pixels each way, a multiple of 8, or of 16 if the network unshuffles pixels.
    """

    after: Fraction
    batch_size: Positive
    patch_size: Patch


class TrainingSettings(Settings):
    """Say how one round is optimised.

    The learning rate warms up linearly and then falls along half a cosine: from step to step, or from epoch
    to epoch where training counts epochs. A round is either ``steps`` or ``epochs`` long.

    Attributes:
        steps: Length of a round in steps.
        epochs: Length of a round in epochs.
        loss: "l1" is MIR-L's, the mean absolute error. "psnr" is minus the mean PSNR of a batch's images
            (Chen et al., HINet, CVPRW 2021), which weighs each image by its own error: by "l1" haze, which
            shifts whole images, drowns fine noise.
        psnr_ceiling: Highest PSNR of an image in "psnr", in dB. Clean photos, which are nearly right, gain
            less by a lower one.
        harm_weight: Weight of the harm that is added to the loss: the square, in dB, of how much further from
            the clean photo an image is than the degraded one was, up to psnr_ceiling. The loss alone hardly
            sees a clean photo that comes back 20 dB off among many that come back nearly right.
        optimizer: "muon" steps whole matrices by Muon, and everything else by AdamW, as "adamw" does
            throughout. After a step of Muon, pruned weights are set to zero again.
        batch_size: Images per batch.
        patch_size: Pixels each way, a multiple of 8, or of 16 if the network unshuffles pixels.
        progressive: Later stages of a round with other batches (Restormer, section 3.3). Attention sees
            statistics of whole images when it restores, which small patches do not prepare it for.
        accumulate: Number of parts that a batch is computed in, to save memory.
        precision: "bfloat16" computes in bfloat16 where PyTorch's autocast thinks that safe, with weights in
            float32. "auto" is bfloat16 on a GPU and float32 on a CPU, so that one run may go on on either.
        ema: Decay per step of the moving average of the weights. A round is then validated by the average,
            and leaves it behind.
        teacher: A checkpoint or ticket, named as ``start`` is.
        teacher_weight: Share of the loss that is the distance from what the teacher restores.
        learning_rate: The highest learning rate of a round.
        warmup_steps: Steps of the warm-up of each round.
        warmup_epochs: The same where training counts epochs.
        weight_decay: Decay per step, relative to the learning rate.
        clip_norm: Largest norm of a step's gradients; None clips nothing.
        validate_every: Steps between validations.
        save_every: Steps between saved states.
        seed: Seed of the initial weights and of every draw.
    """

    steps: Positive | None = None
    epochs: Positive | None = None
    loss: Loss = Loss.L1
    psnr_ceiling: Annotated[float, Field(gt=0)] = 50
    harm_weight: Annotated[float, Field(ge=0)] = 0
    optimizer: OptimizerName = OptimizerName.ADAMW
    batch_size: Positive = 8
    patch_size: Patch = 64
    progressive: tuple[ProgressiveStage, ...] = ()
    accumulate: Positive = 1
    precision: TrainingPrecision = TrainingPrecision.FLOAT32
    ema: Fraction | None = None
    teacher: str | None = None
    teacher_weight: Fraction = 0.5
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    validate_every: Positive = 1000
    save_every: Positive = 500
    seed: Annotated[int, Field(ge=0)] = 0

    def precision_on(self, device: str) -> TrainingPrecision:
        """Return the precision of a step on a device, "cpu" or "cuda"."""
        if self.precision == TrainingPrecision.AUTO:
            return TrainingPrecision.BFLOAT16 if device == "cuda" else TrainingPrecision.FLOAT32
        return self.precision

    @property
    def shapes(self) -> list[tuple[float, int, int]]:
        """Return (after, batch size, patch size) of each stage of a round, in order; the first is after 0."""
        later = sorted((s.after, s.batch_size, s.patch_size) for s in self.progressive)
        return [(0.0, self.batch_size, self.patch_size), *later]

    def shape(self, step: int, steps: int) -> tuple[int, int]:
        """Return (batch size, patch size) of one step of a round of ``steps``."""
        return [(size, patch) for after, size, patch in self.shapes if step >= after * steps][-1]

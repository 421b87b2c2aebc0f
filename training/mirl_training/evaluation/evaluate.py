"""Score a restorer on test sets: the means over each, and its worst image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mirl_training.evaluation.metrics import ImageScore, Pixels, Triple, score_image
from mirl_training.evaluation.sets import Sets


@dataclass(frozen=True)
class Score:
    """Hold the means over one test set, in dB and SSIM, and the image that gained least.

    Attributes:
        task: Name of the test set.
        images: Number of images.
        input_psnr: PSNR before, of the degraded images.
        input_ssim: SSIM before.
        psnr: PSNR after, of the restored images.
        ssim: SSIM after.
        worst: Name of the image that gained least (of clean photos: that lost most).
        worst_psnr: PSNR of that image after.
        worst_change: PSNR of that image after minus before.
    """

    task: str
    images: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    worst: str
    worst_psnr: float
    worst_change: float


def evaluate(
    restore: Callable[[Pixels], Pixels],
    sets: Sets,
    on_image: Callable[[str, Triple, Pixels, ImageScore], None] | None = None,
) -> Iterator[Score]:
    """Score ``restore`` on test sets, one after the other.

    Args:
        restore: Function that takes and returns (H, W, 3) uint8.
        sets: Test sets, from `standard_sets` or `everyday_sets`.
        on_image: Function that is called with the name of the set, the image, the restored image and its
            score.

    Yields:
        The score of each set, in the order of ``sets``.
    """
    for task, images in sets.items():
        scores = []
        for triple in images():
            restored = restore(triple.degraded)
            scores.append(score_image(triple, restored))
            if on_image:
                on_image(task, triple, restored, scores[-1])
        worst = min(scores, key=lambda s: s.psnr - s.input_psnr)
        columns = zip(*((s.input_psnr, s.input_ssim, s.psnr, s.ssim) for s in scores), strict=True)
        before, before_ssim, after, after_ssim = (sum(column) / len(scores) for column in columns)
        yield Score(
            task,
            len(scores),
            before,
            before_ssim,
            after,
            after_ssim,
            worst.name,
            worst.psnr,
            worst.psnr - worst.input_psnr,
        )

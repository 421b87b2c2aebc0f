"""Score restorers on test sets, by PSNR and SSIM, and lay photos out side by side."""

from mirl_training.evaluation.evaluate import Score, evaluate
from mirl_training.evaluation.metrics import CROP, HIGHEST_PSNR, ImageScore, Pixels, Triple, score_image
from mirl_training.evaluation.sets import SUITES, Sets, everyday_sets, standard_sets
from mirl_training.evaluation.sheet import sheet

__all__ = [
    "CROP",
    "HIGHEST_PSNR",
    "SUITES",
    "ImageScore",
    "Pixels",
    "Score",
    "Sets",
    "Triple",
    "evaluate",
    "everyday_sets",
    "score_image",
    "sheet",
    "standard_sets",
]

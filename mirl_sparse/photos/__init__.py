"""Read and write photos, decide where results go, and restore many photos."""

from mirl_sparse.photos.batches import Manner, Restorer, run_jobs
from mirl_sparse.photos.formats import FORMATS, IMAGE_SUFFIXES
from mirl_sparse.photos.headers import Header, read_header
from mirl_sparse.photos.jobs import Job, Jobs
from mirl_sparse.photos.photo import ImageError, Photo, Pixels, TooManyPixelsError, UnknownFormatError
from mirl_sparse.photos.reading import image_size, read_image, read_photo, to_rgb
from mirl_sparse.photos.records import Records
from mirl_sparse.photos.writing import write_image, write_photo

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "Header",
    "ImageError",
    "Job",
    "Jobs",
    "Manner",
    "Photo",
    "Pixels",
    "Records",
    "Restorer",
    "TooManyPixelsError",
    "UnknownFormatError",
    "image_size",
    "read_header",
    "read_image",
    "read_photo",
    "run_jobs",
    "to_rgb",
    "write_image",
    "write_photo",
]

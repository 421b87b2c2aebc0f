"""Read and write photos, decide where results go, and restore many photos."""

from mirl_sparse.photos.batches import Manner, Restorer, restore_photo, run_jobs
from mirl_sparse.photos.formats import FORMATS, IMAGE_SUFFIXES
from mirl_sparse.photos.headers import Header, read_header
from mirl_sparse.photos.jobs import Job, Jobs
from mirl_sparse.photos.photo import ImageError, Photo, Pixels, TooManyPixelsError, UnknownFormatError
from mirl_sparse.photos.reading import image_size, is_image, read_image, read_photo, to_rgb
from mirl_sparse.photos.records import Records
from mirl_sparse.photos.writing import encode_photo, write_image, write_photo

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
    "encode_photo",
    "image_size",
    "is_image",
    "read_header",
    "read_image",
    "read_photo",
    "restore_photo",
    "run_jobs",
    "to_rgb",
    "write_image",
    "write_photo",
]

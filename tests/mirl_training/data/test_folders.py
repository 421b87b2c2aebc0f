"""Test which files of data folders are images, and which two of them are a pair."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import settings

from mirl_sparse.photos import write_image
from mirl_training.data import DataError, TrainingData, list_images, list_pairs
from mirl_training.data.folders import Source
from mirl_training.data.photos import PhotoCache


def photo(path):
    write_image(path, np.full((24, 40, 3), 90, np.uint8))
    return path


def add_strays(folder):
    """Add what systems and people leave in folders of photos."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / ".DS_Store").write_bytes(b"view settings")
    (folder / "notes.txt").write_text("not a photo")
    photo(folder / "sub.png/inside.png")
    photo(folder / ".thumbnails.png/small.png")


def test_hidden_files_and_folders_are_no_images(tmp_path):
    images = [photo(tmp_path / "clean" / name) for name in ("a.png", "b.JPG", "c.webp")]
    add_strays(tmp_path / "clean")
    assert list_images(tmp_path / "clean") == images


def test_hidden_files_and_folders_are_no_pairs(tmp_path):
    pair = photo(tmp_path / "input/a_hazy.png"), photo(tmp_path / "target/a_gt.png")
    for side in ("input", "target"):
        add_strays(tmp_path / side)
    assert list_pairs(tmp_path, "hazy") == [pair]


def test_a_run_draws_the_same_beside_hidden_files_and_folders(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "data")
    for folder in ("clean", "haze/input", "haze/target"):
        add_strays(tmp_path / "data" / folder)
    tidy, messy = TrainingData(settings(), photos), TrainingData(settings(), tmp_path / "data")
    assert messy.digest == tidy.digest
    for step in range(3):
        assert all(torch.equal(a, b) for a, b in zip(messy.batch(0, step), tidy.batch(0, step), strict=True))


@pytest.mark.parametrize("suffix", ["", "/empty"])
def test_a_folder_without_images_is_named(tmp_path, suffix):
    add_strays(tmp_path / "empty")
    message = "empty: holds no image" if suffix else r"nowhere: no such folder; give --data"
    with pytest.raises(DataError, match=message):
        list_images(tmp_path / (suffix[1:] or "nowhere"))


@pytest.mark.parametrize("other", ["a_gt.png", "a.jpg"])
def test_two_targets_of_one_stem_are_named(tmp_path, other):
    photo(tmp_path / "input/a_hazy.png")
    photo(tmp_path / "target/a_gt.jpg")
    photo(tmp_path / "target" / other)
    with pytest.raises(DataError, match=r"target/a.*expected one") as caught:
        list_pairs(tmp_path, "hazy")
    assert "a_gt.jpg" in str(caught.value)
    assert other in str(caught.value)


@pytest.mark.parametrize(
    ("degraded", "clean"),
    [
        ("a_HAZY.PNG", "a_GT.png"),
        ("a.png", "a.jpg"),
        ("0025_0.8_0.2.jpg", "0025.png"),  # RESIDE's outdoor set: airlight and scattering
        ("1400_10.png", "1400.png"),  # its indoor set
        ("scene_1_0.8_0.2.png", "scene_1.png"),
    ],
)
def test_names_of_published_pairs_are_known(tmp_path, degraded, clean):
    pair = photo(tmp_path / "input" / degraded), photo(tmp_path / "target" / clean)
    photo(tmp_path / "target/scene.png")
    assert list_pairs(tmp_path, "hazy") == [pair]


def test_photos_of_every_readable_format_are_taken(tmp_path):
    for name in ("a.ppm", "b.gif", "c.pgm", "d.jp2"):
        Image.fromarray(np.full((24, 40, 3), 90, np.uint8)).save(tmp_path / name)
    assert [p.name for p in list_images(tmp_path)] == ["a.ppm", "b.gif", "c.pgm", "d.jp2"]


def test_pipes_are_no_images_and_links_to_nothing_are_not_passed_over(tmp_path):
    image = photo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "z.png").symlink_to("gone.png")
    assert list_images(tmp_path) == [image, tmp_path / "z.png"]


@pytest.mark.parametrize("name", ["0_hazy.png", "0_0.8.png"])
def test_a_target_of_the_same_name_is_taken(tmp_path, name):
    pair = photo(tmp_path / "input" / name), photo(tmp_path / "target" / name)
    photo(tmp_path / "target/0.jpg")
    assert list_pairs(tmp_path, "hazy") == [pair]


def test_photos_that_pillow_cannot_size_are_read_where_none_are_kept(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).random((24, 40, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    source = Source(None, tmp_path / "a.tif")
    for budget in (0, 1e9):
        PhotoCache(24, budget).fill([source])
        with pytest.raises(DataError, match="is 40x24; expected at least the patch size, 25"):
            PhotoCache(25, budget).fill([source])


def test_the_target_of_the_longest_name_is_taken(tmp_path):
    pairs = [
        (photo(tmp_path / "input/a_1.png"), photo(tmp_path / "target/a_1.png")),
        (photo(tmp_path / "input/a_2.png"), photo(tmp_path / "target/a.png")),
    ]
    assert list_pairs(tmp_path, "hazy") == pairs


def test_an_input_without_a_target_is_named(tmp_path):
    photo(tmp_path / "input/b_hazy.png")
    photo(tmp_path / "target/a_gt.png")
    with pytest.raises(DataError, match=r"b_hazy\.png: has no b_gt\.\* in"):
        list_pairs(tmp_path, "hazy")

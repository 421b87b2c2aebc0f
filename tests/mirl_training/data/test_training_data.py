"""Test what is drawn when: epochs, shares of a batch, folders in MIR-L's layout, memory."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import settings

from mirl_sparse.errors import UserError
from mirl_sparse.photos import write_image
from mirl_training.data import TrainingData

TASKS = {"noise25": 3, "rain": 2, "haze": 1}


@pytest.fixture(scope="module")
def mirl_layout(tmp_path_factory):
    """Folders as MIR-L's code expects them; every photo is of one colour, which tells it from the others."""
    root = tmp_path_factory.mktemp("datasets")

    def photo(path, value):
        write_image(root / path, np.full((24, 40, 3), value, np.uint8))

    for i in range(3):
        photo(f"train/denoise/WED/0000{i}.bmp", 10 + i)
        photo(f"train/denoise/BSD400/10{i}.jpg", 20 + i)
        photo(f"train/derain/Rain100L/target/rain-10{i}_gt.png", 30 + i)
        photo(f"train/derain/Rain100L/input/rain-10{i}_rainy.png", 60 + i)
        photo(f"train/dehaze/OTS/target/000{i}_0.9_0.2_gt.jpg", 40 + i)
        photo(f"train/dehaze/OTS/input/000{i}_0.9_0.2_hazy.jpg", 70 + i)
    return root


def config(epochs=True, **training):
    data = {
        "clean": ["train/denoise/WED", "train/denoise/BSD400"],
        "rain": "train/derain/Rain100L",
        "haze": "train/dehaze/OTS",
        "tasks": TASKS,
    }
    length = {"steps": None, "epochs": 2, "warmup_steps": 0} if epochs else {}
    return settings(data=data, training={"batch_size": 3, **length, **training})


def colours(clean):
    return [round(float(c) * 255) for c in clean.mean((1, 2, 3))]


def test_an_epoch_shows_every_photo_as_often_as_its_task_says(mirl_layout):
    data = TrainingData(config(), mirl_layout)
    # held back: the last photo of each kind; left are 5 clean ones, 2 rainy and 2 hazy pairs
    assert data.steps_per_epoch == (5 * 3 + 2 * 2 + 2 * 1) // 3
    assert data.steps_of_round(0) == 2 * data.steps_per_epoch
    epochs = []
    for epoch in range(2):
        seen = []
        for step in range(data.steps_per_epoch):
            seen += colours(data.batch(0, epoch * data.steps_per_epoch + step)[1])
        epochs.append(seen)
        assert Counter(seen) == {10: 3, 11: 3, 12: 3, 20: 3, 21: 3, 30: 2, 31: 2, 40: 1, 41: 1}
    assert epochs[0] != epochs[1]


def test_pairs_come_from_their_own_folders(mirl_layout):
    data = TrainingData(config(), mirl_layout)
    pairs = set()
    for step in range(data.steps_per_epoch):
        degraded, clean = data.batch(0, step)
        pairs |= {(a, b) for a, b in zip(colours(degraded), colours(clean), strict=True) if b >= 30}
    assert pairs == {(60, 30), (61, 31), (70, 40), (71, 41)}


def test_nothing_is_drawn_of_a_scene_that_is_held_back(mirl_layout, tmp_path):
    """Haze sets hold a clean photo once for every haze over it; one may lie among the clean photos, too."""
    shutil.copytree(mirl_layout, tmp_path / "data")
    target = tmp_path / "data/train/dehaze/OTS/target"
    for name in ("0001_0.8_0.1", "0002_0.8_0.1", "0002_1_0.3"):
        shutil.copy(target / f"{name[:4]}_0.9_0.2_gt.jpg", target / f"{name}_gt.jpg")
        write_image(target.parent / f"input/{name}_hazy.jpg", np.full((24, 40, 3), 80, np.uint8))
    shutil.copy(target / "0002_1_0.3_gt.jpg", tmp_path / "data/train/denoise/BSD400/0.jpg")
    data = TrainingData(config(batch_size=2), tmp_path / "data")
    ((_, clean),) = data.validation()["haze"]
    assert colours(clean) == [42]
    seen = Counter()
    for step in range(data.steps_per_epoch):
        seen += Counter(colours(data.batch(0, step)[1]))
    assert {c: n for c, n in seen.items() if 40 <= c < 50} == {40: 1, 41: 2}
    for path in [*target.glob("0000*"), *target.parent.glob("input/0000*")]:
        path.unlink()
    with pytest.raises(
        UserError, match=r"data\.haze shows no scene but those held back; expected more than 2"
    ):
        TrainingData(
            settings(data=data.config.data.model_dump() | {"validation_images": 2}), tmp_path / "data"
        )


@pytest.mark.parametrize("epochs", [True, False])
def test_processes_share_the_batch_that_one_would_draw(mirl_layout, epochs):
    data = TrainingData(config(epochs), mirl_layout)
    whole = data.batch(1, 2)
    shares = [data.batch(1, 2, rank, 3) for rank in range(3)]
    for i in range(2):
        assert torch.equal(torch.cat([s[i] for s in shares]), whole[i])


def test_photos_beyond_the_memory_are_decoded_when_they_are_drawn(mirl_layout):
    cached, uncached = (
        TrainingData(c, mirl_layout)
        for c in (
            config(),
            config().model_copy(update={"data": config().data.model_copy(update={"memory": 0})}),
        )
    )
    assert not uncached._photos._decoded
    for step in range(3):
        assert all(
            torch.equal(a, b) for a, b in zip(cached.batch(0, step), uncached.batch(0, step), strict=True)
        )


def test_a_batch_depends_on_its_place_alone(mirl_layout):
    data, again = TrainingData(config(), mirl_layout), TrainingData(config(), mirl_layout)
    later = data.batch(0, 5)
    for step in range(6):
        last = again.batch(0, step)
    assert all(torch.equal(a, b) for a, b in zip(later, last, strict=True))


@pytest.mark.parametrize("memory", [4, 0])  # decoded first, or looked at
def test_pairs_of_unequal_sizes_and_small_photos_are_named(tmp_path, memory):
    write_image(tmp_path / "c/a.png", np.zeros((24, 24, 3), np.uint8))
    write_image(tmp_path / "c/b.png", np.zeros((24, 24, 3), np.uint8))
    for name, side in (("x", 24), ("y", 32)):
        write_image(tmp_path / f"h/target/{name}_gt.png", np.zeros((24, 24, 3), np.uint8))
        write_image(tmp_path / f"h/input/{name}_hazy.png", np.zeros((24, side, 3), np.uint8))
    data = {"clean": "c", "memory": memory}
    with pytest.raises(UserError, match=r"y_hazy.png: is 32x24, .*y_gt.png 24x24; expected equal sizes"):
        TrainingData(settings(data=data | {"haze": "h"}), tmp_path)
    with pytest.raises(UserError, match=r"a\.png: is 24x24; expected at least the patch size, 32"):
        TrainingData(
            settings(data=data | {"haze": None, "tasks": {"rain": 1}}, training={"patch_size": 32}), tmp_path
        )


def test_rain_is_drawn_over_clean_photos_without_pairs(photos):
    data = TrainingData(settings(data={"tasks": {"rain": 1}}), photos)
    degraded, clean = data.batch(0, 0)
    assert (degraded >= clean - 1 / 255).all()
    assert (degraded > clean + 1 / 255).any()

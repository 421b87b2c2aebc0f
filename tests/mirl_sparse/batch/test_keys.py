"""Keys, targets and shards."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirl_sparse.batch.keys import Shard, fault_of, is_photo, key_text, target_of
from mirl_sparse.errors import UserError


@pytest.mark.parametrize(
    ("key", "suffix", "target"),
    [
        ("a/b.JPG", None, "a/b.JPG"),
        ("a.gif", None, "a.gif.png"),
        ("hash", None, "hash.png"),
        ("a.jpg", ".webp", "a.jpg.webp"),
        ("a.jpeg", ".jpg", "a.jpeg"),
    ],
)
def test_a_name_that_says_the_format_is_kept_and_any_other_gets_a_suffix(key, suffix, target):
    assert target_of(key, suffix).key == target


@given(keys=st.lists(st.text(min_size=1), max_size=50), count=st.integers(1, 9))
def test_each_key_falls_to_one_shard(keys, count):
    for key in keys:
        assert sum(Shard(number, count).holds(key) for number in range(1, count + 1)) == 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", ""])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UserError, match="expected i/n"):
        Shard.parse(text)


@pytest.mark.parametrize(
    "key", ["../a.png", "a//b.png", "/etc/a.png", "a/./b.png", "_mirl/report/a.png", "a\0.png"]
)
def test_a_key_that_could_leave_the_target_or_meet_another_is_refused(key):
    assert fault_of(key)


def test_keys_that_are_no_utf8_can_be_reported():
    assert key_text("a\udcff.png") == r"a\xff.png"


def test_listings_leave_out_hidden_files_folders_and_other_suffixes():
    left_out = Counter()
    keys = ["a.png", "b", ".c.png", "d/.e/f.png", "g/", "h.txt", "i.TXT"]
    assert [key for key in keys if is_photo(key, left_out)] == ["a.png", "b"]
    assert left_out == {".txt": 2}

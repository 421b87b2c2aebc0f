"""Every photo is read once, and its result goes where the user expects it, never over an input."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pictures import files, list_jobs, make_files

from mirl_sparse.errors import UserError
from mirl_sparse.photos import Job, Jobs

pytestmark = pytest.mark.usefixtures("here")


def routes(inputs: list[str], output: str | None = None, format: str | None = None) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in list_jobs(inputs, output, format)}


def refusal(inputs: list[str], output: str | None = None, format: str | None = None) -> str:
    before = files()
    with pytest.raises(UserError) as caught:
        list_jobs(inputs, output, format)
    assert "\n" not in str(caught.value)
    assert files() == before
    return str(caught.value)


class TestOneFile:
    def test_to_a_file(self) -> None:
        make_files("a.jpg")
        assert list_jobs(["a.jpg"], "b.png") == [Job(Path("a.jpg"), Path("b.png"), "PNG")]
        assert routes(["a.jpg"], "new/b.webp", "webp") == {"a.jpg": "new/b.webp"}

    def test_to_a_folder(self) -> None:
        make_files("in/a.JPG")
        assert routes(["in/a.JPG"], "out") == {"in/a.JPG": "out/a.JPG"}
        assert routes(["in/a.JPG"], "v1.2") == {"in/a.JPG": "v1.2/a.JPG"}
        assert routes(["in/a.JPG"], "out.gif/") == {"in/a.JPG": "out.gif/a.JPG"}
        assert routes(["in/a.JPG"], "out", "PNG") == {"in/a.JPG": "out/a.png"}

    def test_a_folder_named_like_an_image(self) -> None:
        make_files("a.png")
        Path("out.png").mkdir()
        assert routes(["a.png"], "out.png") == {"a.png": "out.png/a.png"}

    def test_beside(self) -> None:
        make_files("in/a.JPG", "x.tar.png")
        assert routes(["in/a.JPG"]) == {"in/a.JPG": "in/a_restored.JPG"}
        assert routes(["in/a.JPG"], None, "tif") == {"in/a.JPG": "in/a_restored.tif"}
        assert routes(["x.tar.png"]) == {"x.tar.png": "x.tar_restored.png"}

    def test_unknown_suffix_becomes_png(self) -> None:
        make_files("a.gif", "scan")
        assert routes(["a.gif", "scan"], "out") == {"a.gif": "out/a.png", "scan": "out/scan.png"}
        assert routes(["scan"]) == {"scan": "scan_restored.png"}

    def test_hidden_file_named_explicitly(self) -> None:
        make_files(".a.png")
        assert routes([".a.png"], "out") == {".a.png": "out/.a.png"}

    def test_one_file_to_standard_output(self) -> None:
        make_files("a.jpg")
        assert list_jobs(["a.jpg"], "-") == [Job(Path("a.jpg"), None, "JPEG")]
        assert list_jobs(["a.jpg"], "-", "png") == [Job(Path("a.jpg"), None, "PNG")]

    def test_case_of_the_suffix_does_not_count_on_standard_output(self) -> None:
        make_files("A.JPG")
        assert list_jobs(["A.JPG"], "-") == [Job(Path("A.JPG"), None, "JPEG")]


class TestFolders:
    def test_tree_is_mirrored_in_order(self) -> None:
        make_files("in/b.png", "in/a.png", "in/sub/deep/c.jpg", "in/sub/a.png")
        jobs = list_jobs(["in"], "out")
        assert [str(job.target) for job in jobs] == [
            "out/a.png",
            "out/b.png",
            "out/sub/a.png",
            "out/sub/deep/c.jpg",
        ]
        assert [str(job.source) for job in jobs] == [
            "in/a.png",
            "in/b.png",
            "in/sub/a.png",
            "in/sub/deep/c.jpg",
        ]
        assert not Path("out").exists()

    def test_other_and_hidden_files_are_skipped(self) -> None:
        make_files("in/a.PNG", "in/notes.txt", "in/noext", "in/.b.png", "in/.x.part", "in/.cache/c.png")
        assert routes(["in"], "out") == {"in/a.PNG": "out/a.PNG"}

    @pytest.mark.parametrize("inputs", [["."], ["./"], ["**/*.png"], ["*", "*/*"]])
    def test_earlier_results_inside_the_input_are_no_inputs(self, inputs: list[str]) -> None:
        make_files("a.png", "sub/b.png", "out/a.png", "out/sub/b.png", "output/c.png")
        sources = {str(job.source) for job in list_jobs(inputs, "out")}
        assert sources == {"a.png", "sub/b.png", "output/c.png"}

    def test_earlier_result_as_a_file_inside_the_input(self) -> None:
        make_files("in/a.png", "in/out.png")
        assert routes(["in"], "in/out.png") == {"in/a.png": "in/out.png"}

    def test_output_above_the_input_shuts_nothing_out(self) -> None:
        make_files("in/a.png")
        assert routes(["in"], ".") == {"in/a.png": "a.png"}

    def test_several_inputs_at_once(self) -> None:
        make_files("one/a.png", "two/sub/b.png", "c.png")
        assert routes(["c.png", "two", "one"], "out") == {
            "c.png": "out/c.png",
            "two/sub/b.png": "out/sub/b.png",
            "one/a.png": "out/a.png",
        }

    def test_a_folder_below_that_cannot_be_listed_is_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make_files("in/a.png", "in/sub/b.png", "in/x.png")
        scandir = os.scandir

        def denied(path: str) -> object:
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", denied)
        for inputs in (["in"], ["i*"]):
            assert routes(inputs, "out") == {"in/a.png": "out/a.png", "in/x.png": "out/x.png"}
            assert Jobs(inputs, "out").left_out == {"folder(s) that cannot be read": 1}
        assert refusal(["in/sub"], "out") == "in/sub: cannot be listed (Permission denied)"

    def test_links(self) -> None:
        make_files("in/a.png", "elsewhere/b.png")
        Path("in/link.png").symlink_to("a.png")
        Path("in/loop").symlink_to(".")
        Path("in/other").symlink_to("../elsewhere")
        assert routes(["in"], "out") == {"in/a.png": "out/a.png", "in/link.png": "out/link.png"}
        assert Jobs(["in"], "out").left_out == {"folder(s) behind a link": 2}
        assert routes(["in/other"], "out") == {"in/other/b.png": "out/b.png"}

    @pytest.mark.parametrize("pipe", ["in/pipe", "in/pipe.png"])
    def test_only_files_are_taken_that_are_not_named_alone(self, pipe: str) -> None:
        make_files("in/a.png")
        os.mkfifo(pipe)
        Path("in/link.png").symlink_to(Path(pipe).name)
        for inputs in (["in"], ["in/*"]):
            assert routes(inputs, "out") == {"in/a.png": "out/a.png"}
            assert Jobs(inputs, "out").left_out == {"pipe(s) or other special file(s)": 2}
        assert routes([pipe], "out") == {pipe: "out/pipe.png"}

    def test_a_link_to_nothing_is_not_passed_over(self) -> None:
        make_files("in/a.png")
        Path("in/b.png").symlink_to("gone.png")
        assert routes(["in"], "out") == {"in/a.png": "out/a.png", "in/b.png": "out/b.png"}


class TestGlobs:
    def test_quoted(self) -> None:
        make_files("in/a.png", "in/b.jpg", "in/c.txt", "in/noext", "in/sub/d.png", "in/.e.png")
        assert routes(["in/*.png"], "out") == {"in/a.png": "out/a.png"}
        assert routes(["in/[a-c]*"], "out") == {"in/a.png": "out/a.png", "in/b.jpg": "out/b.jpg"}
        assert routes(["in/**/*.png"], "out") == {"in/a.png": "out/a.png", "in/sub/d.png": "out/d.png"}
        assert routes(["**"], "out") == {
            "in/a.png": "out/a.png",
            "in/b.jpg": "out/b.jpg",
            "in/sub/d.png": "out/d.png",
        }
        assert routes(["in/[ab].*"]) == {"in/a.png": "in/a_restored.png", "in/b.jpg": "in/b_restored.jpg"}

    def test_folders_that_match_are_searched_as_if_they_were_named(self) -> None:
        make_files("one/a.png", "one/deep/b.png", "other/c.png", "o.png", "one/.d.png")
        expected = {"one/a.png": "out/a.png", "one/deep/b.png": "out/deep/b.png", "other/c.png": "out/c.png"}
        assert routes(["o[nt]*"], "out") == expected
        assert routes(["o*"], "out") == expected | {"o.png": "out/o.png"}
        assert routes(["o*/"], "out") == expected
        assert len(routes(["**/*"], "out")) == 4  # each of them once

    @pytest.mark.parametrize("folder", ["[2024]", "[2024] trip", "a*b"])
    def test_folders_that_exist_as_written_are_no_pattern(self, folder: str, here: Path) -> None:
        make_files(f"{folder}/sub/a.png", f"{folder}/b.png", "2/c.png", "axb/d.png")
        assert routes([f"{folder}/*.png"], "out") == {f"{folder}/b.png": "out/b.png"}
        assert routes([f"{folder}/**/a.*"], "out") == {f"{folder}/sub/a.png": "out/a.png"}
        assert len(routes([f"{here}/{folder}/*.png"], "out")) == 1

    def test_a_suffix_asked_for_is_taken(self) -> None:
        make_files("a.gif", "b.png")
        assert routes(["*.gif"], "out") == {"a.gif": "out/a.png"}

    def test_a_real_name_is_no_pattern(self) -> None:
        make_files("a[1].png", "a1.png")
        assert routes(["a[1].png"], "out") == {"a[1].png": "out/a[1].png"}

    def test_the_same_file_twice_is_meant_once(self, here: Path) -> None:
        make_files("a.png", "b.png")
        assert len(list_jobs(["a.png", "*.png", "./b.png", str(here / "a.png"), "."], "out")) == 2


class TestRefusals:
    def test_nothing_there(self) -> None:
        make_files("empty/notes.txt", "a.png")
        assert refusal([], "out").startswith("nothing to restore")
        assert refusal(["a.png", "missing.png"], "out") == "missing.png: no such file or folder"
        assert refusal(["a.png", "empty"], "out").startswith("empty: holds no image (")
        for inputs in (["empty"], ["emp*"]):
            assert refusal(inputs, "out").endswith("; left out 1 .txt")
        assert refusal(["*.webp"], "out").startswith("*.webp: matches no image (")
        assert "no such file" in refusal([""], "out")
        assert "no such file" in refusal(["x" * 5000], "out")

    def test_two_photos_to_one_file_names_both(self) -> None:
        make_files("one/a.png", "two/a.png", "one/a.jpg")
        for inputs in (["one/a.png", "two/a.png"], ["one", "two"], ["*/a.png"]):
            assert refusal(inputs, "out").startswith(
                "one/a.png and two/a.png would both be written to out/a.png;"
            )
        message = refusal(["one"], "out", "png")
        assert message.startswith("one/a.jpg and one/a.png would both be written to out/a.png;")
        assert "both" in refusal(["one"], None, "png")

    def test_an_input_is_never_replaced(self, here: Path) -> None:
        make_files("in/a.png", "in/b.png")
        for inputs, output in [
            (["in/a.png"], "in/a.png"),
            (["in/a.png"], str(here / "in" / "a.png")),
            (["in/a.png"], "in"),
            (["in"], "in"),
            (["in/*.png"], "in/"),
            (["in/a.png", "in/b.png"], "in/../in"),
        ]:
            assert "a.png: is an input, and inputs are never replaced" in refusal(inputs, output)

    def test_nor_through_another_name(self) -> None:
        make_files("a.png", "b.png")
        Path("soft.png").symlink_to("a.png")
        os.link("a.png", "hard.png")
        Path("folder").symlink_to(".")
        for output in ("soft.png", "hard.png", "folder/a.png", "folder"):
            assert "is an input" in refusal(["a.png"], output)
        assert "is an input" in refusal(["soft.png"], "a.png")

    def test_an_input_that_another_would_replace(self) -> None:
        make_files("in/a.jpg", "a.png")
        assert "a.png: is an input" in refusal(["in/a.jpg", "a.png"], ".", "png")

    def test_formats_and_suffixes(self) -> None:
        make_files("a.png", "b.png")
        Path("file").touch()
        assert refusal(["a.png"], "out", "gif").startswith("format 'gif' is unknown; expected one of .bmp,")
        assert refusal(["a.png"], "out", "").startswith("format '' is unknown")
        assert refusal(["a.png"], "b.gif").startswith(
            "b.gif: suffix '.gif' is unknown; expected one of .bmp,"
        )
        assert "is not named as the format png" in refusal(["a.png"], "b.jpg", "png")
        assert refusal(["a.png"], "file").startswith("file: is a file; expected a folder")
        assert refusal(["a.png"], "/dev/full").startswith("/dev/full: is no folder; expected a folder")
        assert "holds one image, but 2 are given" in refusal(["a.png", "b.png"], "c.png")
        assert "holds one image, but 2 are given" in refusal(["."], "-")

    def test_dash(self) -> None:
        make_files("a.png")
        Path("out").mkdir()
        assert refusal(["-", "a.png"], "out").startswith("- (standard input) goes alone")
        assert refusal(["-", "-"]).startswith("- (standard input) goes alone")
        for output in ("out", "new/", "new"):
            assert "standard input has no name" in refusal(["-"], output)
        assert "suffix '.gif' is unknown" in refusal(["-"], "a.gif")

    def test_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make_files("a.png")
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
        for inputs, output in ((["-"], None), (["-"], "-"), (["a.png"], "-")):
            assert "standard output is a terminal" in refusal(inputs, output)
        assert len(list_jobs(["-"], "b.png")) == 1

    def test_closed_streams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make_files("a.png")
        monkeypatch.setattr(sys, "stdout", None)
        assert refusal(["a.png"], "-").startswith("standard output is closed")
        assert refusal(["-"]).startswith("standard output is closed")
        monkeypatch.setattr(sys, "stdin", None)
        assert refusal(["-"], "b.png").startswith("standard input is closed")

    def test_no_control_character_of_a_name_is_printed(self) -> None:
        name = "a\n\x1b[31m\u2028\x9b\udcff\u65e5\u3000.x\x1by"
        escaped = "a\\n\\x1b[31m\\u2028\\x9b\\xff\u65e5\u3000.x\\x1by"
        assert str(Job(Path(name), None)) == escaped
        make_files(f"in/{name}")
        assert refusal(["in"], "out").endswith("; left out 1 .x\\x1by")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clmoe.data.images import check_image, find_image, load_rgb, path_problem
from clmoe.errors import DataError

Picture = Callable[..., Path]


def test_a_picture_is_loaded_as_rgb(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    image = load_rgb(tmp_path, "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (7, 7, 7))


@pytest.mark.parametrize("relative", ["/etc/passwd", "\\\\host\\x.png", "C:\\x.png", "c:x.png"])
def test_an_absolute_path_is_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(DataError, match="is absolute; it must be relative to the image folder"):
        find_image(tmp_path, relative)


@pytest.mark.parametrize("relative", ["../x.png", "a/../../x.png", "a\\..\\x.png", ".."])
def test_two_dots_are_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(DataError, match=r"leaves the image folder by '\.\.'"):
        find_image(tmp_path, relative)


@pytest.mark.parametrize("relative", ["", " x.png", "x\0.png"])
def test_what_is_no_path_is_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(DataError, match="is not a path"):
        find_image(tmp_path, relative)


def test_a_symbolic_link_may_not_lead_outside(tmp_path: Path, picture: Picture) -> None:
    secret = picture(tmp_path / "outside" / "x.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file.png").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    for relative in ("file.png", "folder/x.png"):
        with pytest.raises(DataError, match="by a symbolic link"):
            find_image(root, relative)


def test_links_inside_the_root_and_the_root_itself_are_fine(
    tmp_path: Path, picture: Picture
) -> None:
    real = picture(tmp_path / "real" / "a" / "x.png")
    (tmp_path / "real" / "b").symlink_to(real.parent)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert find_image(tmp_path / "link", "b/x.png") == real.resolve()


def test_a_missing_picture_and_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"image x\.png is missing from"):
        find_image(tmp_path, "x.png")
    with pytest.raises(DataError, match=r"image folder\.png is not a file"):
        find_image(tmp_path, "folder.png")


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
)
def test_a_path_without_problem_stays_below_the_root(relative: str) -> None:
    if path_problem(relative) is None:
        root = Path("/images/root")
        parts = (root / relative).parts
        assert (root / relative).is_relative_to(root)
        assert ".." not in parts


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_a_truncated_picture_is_a_problem_in_every_format(tmp_path: Path, kind: str) -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    path = tmp_path / f"x.{kind}"
    image.save(path)
    whole = path.read_bytes()
    assert check_image(tmp_path, path.name).problem is None
    for share in (0.0, 0.01, 0.2, 0.5, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)])
        problem = check_image(tmp_path, path.name).problem
        assert problem is not None
        assert f"image x.{kind} cannot be decoded" in problem


def test_text_under_the_name_of_a_picture_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    check = check_image(tmp_path, "x.png")
    assert check.problem == "image x.png cannot be decoded (not an image)"


def test_a_bomb_is_refused(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    assert "decompression bomb" in str(check_image(tmp_path, "x.png").problem)


def test_equal_pixels_have_equal_digests(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), 3).save(tmp_path / "a.png")
    Image.new("RGB", (4, 2), 3).save(tmp_path / "b.bmp")
    Image.new("RGB", (2, 4), 3).save(tmp_path / "c.png")
    a, b, c = (check_image(tmp_path, name).digest for name in ("a.png", "b.bmp", "c.png"))
    assert a == b
    assert a != c

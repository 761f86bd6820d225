"""Images scaled down: the same format, upright, transparent where they were; bombs and broken files are refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from lmtower.wire import pixels
from lmtower.wire.faults import Fault


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(found: tuple[str, bytes] | None) -> tuple[str, Image.Image]:
    assert found is not None
    image = Image.open(io.BytesIO(found[1]))
    image.load()
    return found[0], image


@pytest.mark.parametrize(
    ("kind", "mode", "becomes"),
    [
        ("JPEG", "RGB", "image/jpeg"),
        ("JPEG", "CMYK", "image/jpeg"),
        ("JPEG", "L", "image/jpeg"),
        ("PNG", "RGB", "image/png"),
        ("PNG", "P", "image/png"),
        ("PNG", "1", "image/png"),
        ("WEBP", "RGB", "image/webp"),
        ("GIF", "P", "image/png"),
        ("BMP", "RGB", "image/png"),
    ],
)
def test_scaled_image_keeps_its_format_and_shape(kind: str, mode: str, becomes: str) -> None:
    """What is no usual format of the web becomes PNG; the longer side is the limit."""
    media_type, image = opened(pixels.scaled(saved(Image.new(mode, (400, 200)), kind), 100))
    assert (media_type, image.size) == (becomes, (100, 50))
    assert pixels.scaled(saved(Image.new(mode, (100, 50)), kind), 100) is None


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("PNG", "P")])
def test_transparency_survives(kind: str, mode: str) -> None:
    """Alpha channels and transparent palette colours."""
    source = Image.new("RGBA", (400, 400), (255, 0, 0, 0)).convert(mode)
    options = {"transparency": source.getpixel((0, 0))} if mode == "P" else {}
    _, image = opened(pixels.scaled(saved(source, kind, **options), 100))
    assert image.mode == "RGBA"
    assert image.getpixel((50, 50))[3] == 0


def test_photo_stands_upright_and_keeps_its_colour_profile() -> None:
    """The orientation that the camera wrote beside the pixels is applied, since the copy does not carry it."""
    photo = Image.new("RGB", (400, 200), "red")
    photo.paste("blue", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    _, image = opened(pixels.scaled(saved(photo, "JPEG", exif=exif, icc_profile=b"profile"), 100))
    assert image.size == (50, 100)
    top: Any = image.getpixel((25, 10))
    assert top[2] > 200 > top[0]
    assert image.getexif().get(0x0112, 1) == 1
    assert image.info["icc_profile"] == b"profile"


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be huge and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 9000), (12000, 12000), (60000, 60000)])
def test_bomb_is_a_413_before_it_is_decoded(size: tuple[int, int]) -> None:
    """A few bytes that would unfold to gigabytes."""
    with pytest.raises(Fault) as caught:
        pixels.scaled(png_header(*size), 1000)
    assert (caught.value.status, caught.value.code) == (413, "image_too_large")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_every_cut_of_a_file_is_refused_or_scaled(kind: str) -> None:
    """Truncated uploads are the client's mistake, wherever they end."""
    whole = saved(Image.effect_noise((300, 200), 50), kind)
    refused: set[int] = set()
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        try:
            pixels.scaled(whole[:end], 50)
        except Fault as fault:
            refused.add(fault.status)
    assert refused == {400}
    assert pixels.media_type(whole) == f"image/{kind.lower()}"
    assert pixels.media_type(b"<html>") is None

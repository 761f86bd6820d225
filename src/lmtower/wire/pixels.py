"""The pixels of an image: measured, scaled down. Apart from ``images``, because only this needs Pillow to be loaded."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

from PIL import Image, ImageOps

from lmtower.wire.faults import Fault

MOST_PIXELS = 64_000_000
"""A larger image would take more than 256 MB in memory; a JPEG is decoded at a fraction of its size instead."""
_BROKEN = (
    struct.error,
    zlib.error,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    OverflowError,
    MemoryError,
    TypeError,
    IndexError,
    KeyError,
)
"""What Pillow's readers raise for broken files."""


def scaled(raw: bytes, max_side: int) -> tuple[str, bytes] | None:
    """(media type, bytes) of a smaller copy; None when it is small enough. Raises Fault(400 or 413).

    The copy has the same format (PNG for one that is not usual on the web), its transparency and its colour profile,
    and stands upright: the orientation that a camera notes beside the pixels is applied to them.
    """
    try:
        with _open(raw) as image:
            if max(image.size) <= max_side:
                return None
            kind = image.format if image.format in ("JPEG", "WEBP") else "PNG"
            image.draft("RGB", (max_side, max_side))  # JPEG: decode at a fraction of the size
            if image.width * image.height > MOST_PIXELS:
                raise _too_large()
            small = ImageOps.exif_transpose(_plain(image))
            small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
            options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
            if kind != "PNG":
                options["quality"] = 88
            out = io.BytesIO()
            (small.convert("RGB") if kind == "JPEG" and small.mode not in ("RGB", "L") else small).save(
                out, kind, **options
            )
    except _BROKEN:
        raise Fault(400, "invalid_image", "An image cannot be read.", param="messages") from None
    return f"image/{kind.lower()}", out.getvalue()


def _plain(image: Image.Image) -> Image.Image:
    """The image in a mode that can be scaled smoothly and saved in every format; transparency is kept."""
    if image.mode in ("RGB", "L", "RGBA"):
        return image
    clear = "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa")
    return image.convert("RGBA" if clear else "RGB")


def dimensions(raw: bytes) -> tuple[int, int] | None:
    """Width and height, read from the header alone; None when this is no image. Raises Fault(413)."""
    try:
        with _open(raw) as image:
            return image.width, image.height
    except _BROKEN:
        return None


def media_type(raw: bytes) -> str | None:
    """``image/png`` and the like, by what the bytes are; None when they are no image."""
    try:
        with _open(raw) as image:
            return Image.MIME.get(image.format or "")
    except _BROKEN:
        return None


def _open(raw: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(raw))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large() from None


def _too_large() -> Fault:
    return Fault(413, "image_too_large", f"An image has more than {MOST_PIXELS} pixels.", param="messages")

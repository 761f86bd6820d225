"""The pixels of an image: measured, scaled down. Apart from ``images``, because only this needs Pillow to be loaded."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from lmtower.wire.faults import Fault

_MOST_PIXELS = 100_000_000


def scaled(raw: bytes, max_side: int) -> tuple[str, bytes] | None:
    """(media type, bytes) of a smaller copy; None when it is small enough. Raises Fault(400) for no image."""
    with _open(raw) as image:
        if max(image.size) <= max_side:
            return None
        kind = image.format
        image.draft("RGB", (max_side, max_side))  # JPEG: decode at a fraction of the size
        small = image if image.mode in ("RGB", "L", "RGBA") else image.convert("RGB")
        small = small.copy()
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if kind == "JPEG" or small.mode != "RGBA":
        small.convert("RGB").save(out, "JPEG", quality=88)
        return "image/jpeg", out.getvalue()
    small.save(out, "PNG")
    return "image/png", out.getvalue()


def _open(raw: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(raw))
        if image.width * image.height > _MOST_PIXELS:
            raise Fault(413, "image_too_large", f"An image has more than {_MOST_PIXELS} pixels.", param="messages")
        image.load() if image.format not in ("JPEG", "MPO") else None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise Fault(400, "invalid_image", "An image cannot be read.", param="messages") from None
    return image


def dimensions(raw: bytes) -> tuple[int, int] | None:
    """Width and height, read from the header alone; None when this is no image."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return image.width, image.height
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None

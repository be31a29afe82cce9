"""Pixels: grey windows, colour tables, a small PNG writer; no plotting library, whose import alone takes longer."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

_ANCHORS = {
    # Diverging, symmetric in lightness, told apart by people who see no red or no green: blue - light grey - orange.
    "volume": ("#0b3c8c", "#2f7fd0", "#9cc8ee", "#f2f2f0", "#f7c08a", "#df7420", "#8a3206"),
    # Sequential, rising in lightness; the first lies half transparent over a picture.
    "residual": ("#a51d12", "#d94a12", "#f58a1f", "#fcc84a", "#fff6c2"),
    "error": ("#12082e", "#4b1173", "#8f2a78", "#d14a5b", "#f58a3c", "#f9d24a", "#fcffc4"),
}
FOLDED = (255, 0, 200)
AIR_HOUNSFIELD = -500.0


def colour_table(name: str) -> UInt8[ndarray, "256 3"]:
    """Return 256 colours; ``"volume"`` is diverging with its middle at entry 127.5, ``"error"`` sequential."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _ANCHORS[name]], dtype=float)
    where = np.linspace(0, len(anchors) - 1, 256)
    table = np.stack([np.interp(where, np.arange(len(anchors)), anchors[:, c]) for c in range(3)], -1)
    return np.round(table).astype(np.uint8)


def css_gradient(name: str) -> str:
    """Return the colour table as stops of a CSS linear gradient."""
    return ", ".join(_ANCHORS[name])


def window(values: ndarray, foreground: ndarray | None = None) -> tuple[float, float]:
    """Return the grey values shown black and white: the 1st percentile of all and the 99.8th of the foreground.

    In computed tomography (values below -500) black is the 1st percentile of the foreground, because scanners fill the
    corners of the picture with values far below air.
    """
    flat = values[np.isfinite(values)]
    if flat.size == 0:
        return 0.0, 1.0
    low = float(np.percentile(flat, 1))
    inside = values[foreground] if foreground is not None and foreground.any() else flat
    low = float(np.percentile(inside, 1)) if low < AIR_HOUNSFIELD else low
    high = float(np.percentile(inside, 99.8))
    return (low, high) if high > low else (low, low + 1.0)


def grey(values: Float[ndarray, "rows columns"], limits: tuple[float, float]) -> UInt8[ndarray, "rows columns"]:
    """Map grey values to bytes, linear between the limits."""
    low, high = limits
    return np.clip((np.nan_to_num(values, nan=low) - low) * (255.0 / (high - low)) + 0.5, 0, 255).astype(np.uint8)


def coloured(
    values: Float[ndarray, "rows columns"], limits: tuple[float, float], table: UInt8[ndarray, "256 3"]
) -> UInt8[ndarray, "rows columns 3"]:
    """Map values to colours, linear between the limits."""
    return table[grey(values, limits)]


def png(pixels: UInt8[ndarray, "rows columns *channels"]) -> bytes:
    """Encode bytes as PNG: ``(rows, columns)`` grey, ``(rows, columns, 3)`` RGB or ``(rows, columns, 4)`` RGBA.

    Rows are stored as differences from the row above (filter 2), which makes smooth pictures about a third smaller.
    Source: PNG specification, third edition, sections 9 and 11.
    """
    rows, columns = pixels.shape[:2]
    kind = {2: 0, 3: {3: 2, 4: 6}.get(pixels.shape[-1], 0)}[pixels.ndim]
    flat = np.ascontiguousarray(pixels).reshape(rows, -1)
    above = np.vstack([np.zeros_like(flat[:1]), flat[:-1]])
    lines = np.empty((rows, flat.shape[1] + 1), np.uint8)
    lines[:, 0] = 2
    lines[:, 1:] = flat - above  # modulo 256, as the format wants

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, kind, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_uri(pixels: ndarray) -> str:
    """Return pixels as a ``data:`` address of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")

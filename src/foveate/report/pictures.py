"""Images as they stand in the page: encoded in place, small ones enlarged pixel by pixel."""

import base64
import io

import numpy as np
from PIL import Image

from foveate.report.html import Html, tag

LARGEST = 96
PIXELATED_UP_TO = 64

# Dark violet over magenta and orange to pale yellow: lightness rises all the way.
HEAT = np.array([[20, 11, 52], [132, 32, 107], [229, 92, 48], [246, 215, 70]], np.float32)


def picture(image: np.ndarray, description: str) -> Html:
    """An (H, W, 3) uint8 image as an element that needs no other file."""
    small = max(image.shape[:2]) <= PIXELATED_UP_TO
    return tag(
        "img",
        src=data_uri(image),
        alt=description,
        width=image.shape[1],
        height=image.shape[0],
        loading="lazy",
        class_="pixels" if small else None,
    )


def data_uri(image: np.ndarray) -> str:
    """PNG where an image is small, WebP where it is not."""
    kind = "PNG" if max(image.shape[:2]) <= 32 else "WEBP"
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image, np.uint8)).save(file, kind, quality=80, method=4)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def overlay(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) under its saliency (H, W): grey where nothing speaks."""
    strength = np.clip(np.nan_to_num(saliency), 0, 1).astype(np.float32)
    grey = np.repeat(image.astype(np.float32).mean(axis=2, keepdims=True), 3, axis=2)
    blend = (0.15 + 0.55 * strength)[..., None]
    return (grey * (1 - blend) + heat(strength) * blend).round().astype(np.uint8)


def heat(strength: np.ndarray) -> np.ndarray:
    """Colours (..., 3) of values in [0, 1]."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(strength, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)

"""A drawn input picture, for pipelines that start from one."""

from __future__ import annotations

from PIL import Image, ImageDraw


def lighthouse(width: int, height: int) -> Image.Image:
    """An RGB scene of plain shapes: sky, sea, cliff, tower and light."""
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    for y in range(height):
        glow = y / max(1, height - 1)
        draw.line([(0, y), (width, y)], fill=(int(60 + 180 * glow), int(90 + 80 * glow), int(160 - 60 * glow)))
    draw.rectangle([0, int(height * 0.75), width, height], fill=(20, 60, 90))
    draw.polygon([(0, height), (0, int(height * 0.6)), (int(width * 0.55), height)], fill=(50, 40, 35))
    left, top = int(width * 0.16), int(height * 0.18)
    draw.polygon(
        [(left, int(height * 0.75)), (left + width // 12, top), (left + width // 6, top), (left + width // 4, height)],
        fill=(230, 225, 215),
    )
    draw.rectangle([left + width // 12, top - height // 12, left + width // 6, top], fill=(250, 220, 120))
    return picture

"""Toy faces: an endless, seeded, vectorised renderer of cartoon portraits whose factors are known.

A face is a dictionary of factors (yaw, hair style, smile, ...). The factors of face i depend on the seed and on i
alone; `render` draws them at any resolution with antialiased signed-distance shapes, back to front. Known factors
make the semantics of a generated image measurable (see gapkd.metrics.features and gapkd.metrics.distribution).

Coordinates of the drawing: x to the right, y down, the head's centre near (0, 0), its half-height near 0.65.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CATEGORICAL: dict[str, tuple[str, ...]] = {
    "hair_style": ("bald", "short", "long"),
    "hair_colour": ("black", "brown", "red", "blond", "grey"),
    "fringe": ("none", "straight", "side"),
    "iris_colour": ("brown", "blue", "green"),
    "glasses": ("no", "yes"),
    "beard": ("none", "stubble", "full"),
}
CONTINUOUS: dict[str, tuple[float, float]] = {
    "yaw": (-1.0, 1.0), "pitch": (-1.0, 1.0), "face_width": (0.47, 0.58), "face_height": (0.60, 0.70),
    "skin_tone": (0.0, 1.0), "eye_size": (0.8, 1.25), "eye_distance": (0.36, 0.48), "eye_openness": (0.5, 1.0),
    "gaze": (-1.0, 1.0), "brow_angle": (-1.0, 1.0), "nose_size": (0.6, 1.5), "smile": (-1.0, 1.0),
    "mouth_opening": (0.0, 1.0), "background_hue": (0.0, 0.8), "shirt_hue": (0.0, 0.8),  # red to violet: no wrap-round
}
FREQUENCIES = {"hair_style": (0.2, 0.4, 0.4), "hair_colour": (0.25, 0.25, 0.15, 0.2, 0.15),
               "fringe": (0.4, 0.3, 0.3), "iris_colour": (0.4, 0.3, 0.3), "glasses": (0.7, 0.3),
               "beard": (0.6, 0.2, 0.2)}

FRAME, RISE = 0.85, 0.02  # half the picture's side and its centre, in the units of the drawing: a tight crop
HAIR = torch.tensor([[0.10, 0.09, 0.11], [0.36, 0.21, 0.12], [0.66, 0.27, 0.12], [0.88, 0.70, 0.36],
                     [0.68, 0.68, 0.70]])
IRIS = torch.tensor([[0.36, 0.20, 0.10], [0.20, 0.45, 0.80], [0.25, 0.55, 0.30]])
SKIN = torch.tensor([[0.99, 0.86, 0.76], [0.94, 0.74, 0.58], [0.76, 0.53, 0.37], [0.55, 0.35, 0.23],
                     [0.36, 0.22, 0.15]])


def _hash(indices: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one an index, from splitmix64: no state, so any face can be drawn first."""
    with np.errstate(over="ignore"):
        x = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(seed % 2**64) * np.uint64(0xD1B54A32D192ED03)
        x += np.uint64(stream + 1) * np.uint64(0x8CB92BA72F3D8DD7)
        for _ in range(2):
            x ^= x >> np.uint64(30)
            x *= np.uint64(0xBF58476D1CE4E5B9)
            x ^= x >> np.uint64(27)
            x *= np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53


def draw_factors(indices: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Factors of the faces with these numbers.

    Args:
        indices: (N,) int64, any non-negative numbers.
    Returns: one (N,) tensor a factor: int64 class numbers for those in CATEGORICAL, float32 for those in CONTINUOUS.
    """
    numbers = indices.cpu().numpy()
    factors: dict[str, Tensor] = {}
    for stream, name in enumerate([*CATEGORICAL, *CONTINUOUS]):
        u = _hash(numbers, seed, stream)
        if name in CATEGORICAL:
            drawn = np.searchsorted(np.cumsum(FREQUENCIES[name])[:-1], u, side="right")
            factors[name] = torch.from_numpy(drawn.astype(np.int64))
        else:
            low, high = CONTINUOUS[name]
            factors[name] = torch.from_numpy((low + (high - low) * u).astype(np.float32))
    factors["fringe"] *= factors["hair_style"] != 0  # bald heads have none: what cannot be seen is no factor
    return {name: value.to(indices.device) for name, value in factors.items()}


def _column(value: Tensor) -> Tensor:
    return value.float()[:, None, None, None]


def _hsv(hue: Tensor, saturation: float, value: float) -> Tensor:
    """(N,) hues in [0, 1] -> (N, 3, 1, 1) colours."""
    k = (torch.tensor([5.0, 3.0, 1.0], device=hue.device) + 6 * hue[:, None]) % 6
    rgb = value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)
    return rgb[:, :, None, None]


def _palette(colours: Tensor, index: Tensor) -> Tensor:
    return colours.to(index.device)[index][:, :, None, None]


def _skin(tone: Tensor) -> Tensor:
    colours = SKIN.to(tone.device)
    place = tone.clamp(0, 1) * (len(colours) - 1)
    low = place.long().clamp(max=len(colours) - 2)
    return torch.lerp(colours[low], colours[low + 1], (place - low)[:, None])[:, :, None, None]


class _Canvas:
    """An image being painted, with the geometry that its shapes share."""

    def __init__(self, n: int, resolution: int, device: torch.device):
        axis = ((torch.arange(resolution, device=device) + 0.5) * (2 / resolution) - 1) * FRAME
        self.x, self.y = axis[None, None, None, :], axis[None, None, :, None] + RISE
        self.pixel = 2 * FRAME / resolution
        self.rgb = torch.empty(n, 3, resolution, resolution, device=device)

    def inside(self, distance: Tensor) -> Tensor:
        """Signed distance -> coverage in [0, 1], antialiased over one pixel and a half."""
        return distance.mul(-1 / (1.5 * self.pixel)).add_(0.5).clamp_(0, 1)

    def ellipse(self, cx, cy, a, b) -> Tensor:
        """Signed distance (approximate) to an ellipse: exact at the boundary, of unit slope along the short axis."""
        q = ((self.x - cx) / a).square() + ((self.y - cy) / b).square()
        return q.sqrt_().sub_(1).mul_(torch.minimum(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else b)

    def paint(self, coverage: Tensor, colour: Tensor) -> None:
        self.rgb.lerp_(colour.expand_as(self.rgb), coverage)


def _smooth(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def render(factors: dict[str, Tensor], resolution: int = 32) -> Tensor:
    """Draw faces.

    Args:
        factors: as `draw_factors` returns them.
        resolution: pixels, a power of two, at least 8.
    Returns: (N, 3, R, R) float32 in [-1, 1].
    """
    return _draw(factors, resolution)[0].rgb.mul_(2).sub_(1).clamp_(-1, 1)


def face_mask(factors: dict[str, Tensor], resolution: int = 32) -> Tensor:
    """The content of interest: head, hair and ears as a soft mask, 0 on background and shirt.
    (N, 1, R, R) in [0, 1]."""
    return _draw(factors, resolution)[1]


def toy_faces(indices: Tensor | int, resolution: int = 32, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (N, 3, R, R) in [-1, 1] and their factors, for face numbers (N,) or for the first `indices` ones."""
    numbers = torch.arange(indices) if isinstance(indices, int) else indices
    factors = draw_factors(numbers, seed)
    return render(factors, resolution), factors


def _draw(factors: dict[str, Tensor], resolution: int) -> tuple[_Canvas, Tensor]:
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two of at least 8, not {resolution}")
    f = {k: v if k in CATEGORICAL else _column(v) for k, v in factors.items()}
    c = _Canvas(len(f["glasses"]), resolution, f["glasses"].device)
    kind = {name: [_column(f[name] == i) for i in range(len(CATEGORICAL[name]))]
            for name in ("hair_style", "fringe", "beard")}
    hw, hh, cy = f["face_width"], f["face_height"], 0.06
    angle = 0.48 * f["yaw"]
    lift = 0.07 * f["pitch"]

    def turned(u: float | Tensor, fallback: float = 0.0) -> tuple[Tensor, Tensor]:
        """A point at u of half the head's width, on a turned cylinder: its x, and how much it is foreshortened."""
        flat = u if isinstance(u, Tensor) else torch.full_like(hw, u)
        a = torch.asin(flat.clamp(-0.99, 0.99))
        return hw * torch.sin(a + angle), (torch.cos(a + angle) / torch.cos(a)).clamp(0.25, 1.25)

    skin = _skin(factors["skin_tone"])
    shade = skin * torch.tensor([0.78, 0.70, 0.68], device=skin.device)[None, :, None, None]
    hair = _palette(HAIR, f["hair_colour"])
    dark_hair = hair * 0.72

    # background: a soft light behind the head
    wall = _hsv(factors["background_hue"], 0.36, 0.86)
    glow = (1.10 - 0.16 * (c.x.square() + (c.y + 0.2).square())).clamp(0.6, 1.1)
    c.rgb.copy_(wall.expand_as(c.rgb)).mul_(glow)

    # hair that falls behind the shoulders
    long_hair, short_hair = kind["hair_style"][2], kind["hair_style"][1]
    back_x = hw * 0.10 * torch.sin(-angle)
    curtain = torch.maximum(c.ellipse(back_x, cy + 0.05, hw * 1.34, hh * 1.30), c.y - 0.88)
    behind = c.inside(curtain).mul_(long_hair)
    c.paint(behind, dark_hair)

    # neck and shirt
    neck = torch.maximum((c.x - 0.02 * f["yaw"]).abs() - hw * 0.46, -(c.y - 0.3))
    c.paint(c.inside(neck), shade)
    shirt = _hsv(factors["shirt_hue"], 0.55, 0.72)
    centre, like = torch.zeros_like(hw), torch.full_like
    c.paint(c.inside(c.ellipse(centre, 1.20, like(hw, 1.02), like(hw, 0.56))), shirt)
    c.paint(c.inside(c.ellipse(centre, 0.72, hw * 0.60, like(hw, 0.15))), shirt * 0.74)
    c.paint(c.inside(c.ellipse(centre, 0.69, hw * 0.50, like(hw, 0.13))), shade)

    # ears: the far one disappears behind the head
    ears = torch.zeros_like(c.rgb[:, :1])
    for side in (-1, 1):
        ear_x = side * hw * torch.cos(angle) * 1.0 - 0.16 * hw * torch.sin(angle) * 1.0
        ear = c.inside(c.ellipse(ear_x, cy + 0.03 + 0.4 * lift, hw * 0.16, hh * 0.17))
        ears = torch.maximum(ears, ear)
        c.paint(ear, skin * 0.93)
        c.paint(c.inside(c.ellipse(ear_x, cy + 0.03 + 0.4 * lift, hw * 0.08, hh * 0.09)) * 0.6, shade)

    # head: an ellipse that narrows to the chin, lit from the upper left
    below = (c.y - cy).clamp(min=0) / hh
    width = hw * (1 - 0.20 * below.square())
    head_sdf = ((c.x / width).square() + ((c.y - cy) / hh).square()).sqrt_().sub_(1).mul_(hw)
    head = c.inside(head_sdf)
    light = (0.96 - 0.15 * (c.x + 0.10 * f["yaw"]) / hw * 0.6 - 0.10 * (c.y - cy) / hh).clamp(0.72, 1.12)
    rim = 1 - 0.14 * _smooth(head_sdf / hw, -0.35, 0.0)
    c.rgb.lerp_(skin * (light * rim), head)

    # cheeks
    blush = skin * torch.tensor([1.02, 0.74, 0.70], device=skin.device)[None, :, None, None]
    for side in (-1, 1):
        x, narrow = turned(0.56 * side)
        spot = torch.exp(-((c.x - x) / (0.17 * narrow)).square() - ((c.y - cy - 0.22 - lift) / 0.13).square())
        c.paint(spot.mul_(0.45) * head, blush)

    # beard: along the jaw and round the mouth
    mouth_y = cy + 0.42 * hh / 0.65 + lift * 0.8
    mouth_x, mouth_narrow = turned(0.0)
    mouth_x = mouth_x * 0.9
    jaw = _smooth(c.y - mouth_y + 0.16 - 0.22 * ((c.x - mouth_x) / hw).square(), -0.06, 0.10)
    jaw = jaw * (1 - _smooth(0.10 - ((c.x - mouth_x) / 0.5).square() - (c.y - mouth_y + 0.27).abs(), -0.04, 0.04))
    growth = kind["beard"][1] * 0.48 + kind["beard"][2] * 0.95
    c.paint(jaw * head * growth, torch.lerp(dark_hair, shade, kind["beard"][1] * 0.3))

    # nose: a shadow on the side away from the light, a soft tip
    nose_x, _ = turned(0.0)
    tip_x = nose_x + 0.10 * torch.sin(angle)
    tip_y = cy + 0.15 + lift * 1.2
    size = f["nose_size"]
    bridge = torch.exp(-((c.x - nose_x * 0.5 - tip_x * 0.5 - 0.045) / (0.045 * size)).square()
                       - ((c.y - tip_y + 0.13) / 0.17).square())
    c.paint(bridge.mul_(0.35), shade)
    c.paint(c.inside(c.ellipse(tip_x, tip_y + 0.02, 0.115 * size, 0.086 * size)) * 0.9, shade * 0.78)
    c.paint(c.inside(c.ellipse(tip_x - 0.012, tip_y - 0.008, 0.098 * size, 0.070 * size)) * 0.9, skin * 1.04)

    # mouth: an arc that opens; teeth show in an open smile
    smile, opening = f["smile"], f["mouth_opening"]
    span = 0.225 * (1 + 0.12 * smile) * (1 - 0.18 * opening * (smile < 0)) * mouth_narrow.clamp(0.6, 1.0)
    u = (c.x - mouth_x) / span
    arc = u.square().clamp(max=1.4)
    bend = torch.where(smile > 0, 0.080 * smile, 0.045 * smile) * (1 - 2 * arc)  # corners up, corners down
    gap = (0.012 + 0.078 * opening) * (1 - 0.45 * (-smile).clamp(min=0)) * (1 - arc).clamp(min=0)
    away = (c.y - mouth_y - bend).abs() - gap
    lip_colour = skin * torch.tensor([0.88, 0.52, 0.50], device=skin.device)[None, :, None, None]
    c.paint(c.inside(torch.maximum(away - 0.030, (u.abs() - 1.04) * span)), lip_colour)
    hollow = torch.maximum(away, (u.abs() - 0.94) * span)
    c.paint(c.inside(hollow) * _smooth(opening, 0.05, 0.25), skin.new_tensor([0.36, 0.09, 0.11])[None, :, None, None])
    teeth = torch.maximum(hollow + 0.008, c.y - mouth_y - bend + gap - 0.060)
    c.paint(c.inside(teeth) * _smooth(opening, 0.15, 0.4) * _smooth(smile, -0.3, 0.2), torch.full_like(skin, 0.97))

    # eyes and brows
    iris = _palette(IRIS, f["iris_colour"])
    eye_y = cy - 0.10 + lift
    rings = torch.zeros_like(c.rgb[:, :1])
    for side in (-1, 1):
        x, narrow = turned(side * f["eye_distance"])
        a, b = 0.130 * f["eye_size"] * narrow, 0.102 * f["eye_size"] * f["eye_openness"]
        white = c.inside(c.ellipse(x, eye_y, a, b)) * head
        lid = c.inside(c.ellipse(x, eye_y - 0.018, a * 1.12, b * 1.12 + 0.012)) * head
        c.paint(lid * 0.75, shade * 0.55)
        c.paint(white, torch.full_like(skin, 0.98))
        look = x + 0.45 * a * f["gaze"]
        r = 0.074 * f["eye_size"]
        c.paint(c.inside(c.ellipse(look, eye_y, r * narrow, r)) * white, iris)
        c.paint(c.inside(c.ellipse(look, eye_y, r * 0.52 * narrow, r * 0.52)) * white, torch.full_like(skin, 0.05))
        c.paint(c.inside(c.ellipse(look - 0.02, eye_y - 0.024, r * 0.3, r * 0.3)) * white, torch.full_like(skin, 1.0))
        along = (c.x - x) * side / narrow
        brow_y = eye_y - 0.155 - 0.02 * f["eye_size"] - 0.22 * f["brow_angle"] * along + 0.9 * along.square()
        brow = torch.maximum((c.y - brow_y).abs() - 0.024, along.abs() - 0.145)
        bare = kind["hair_style"][0]
        c.paint(c.inside(brow) * head * 0.92, torch.lerp(dark_hair, hair * 0.6, bare))
        ring = (c.ellipse(x, eye_y + 0.01, 0.195 * narrow.clamp(min=0.5), torch.full_like(x, 0.178)).abs() - 0.017)
        rings = torch.maximum(rings, c.inside(ring))
    left, _ = turned(-f["eye_distance"])
    right, _ = turned(f["eye_distance"])
    bridge = torch.maximum((c.y - eye_y + 0.015).abs() - 0.014, torch.maximum(left + 0.17 - c.x, c.x - right + 0.17))
    rings = torch.maximum(rings, c.inside(bridge)) * _column(f["glasses"])
    c.paint(rings, torch.full_like(skin, 0.12))

    # hair over the forehead: the crown above a hairline that the fringe decides
    grown = short_hair + long_hair
    crown = c.ellipse(back_x, cy - 0.04, hw * (1.10 + 0.08 * long_hair), hh * 1.12)
    part = (c.x - hw * torch.sin(angle) * 0.8) / hw
    bare_line = cy - 0.44 * hh / 0.65 + 0.20 * part.square()
    straight_line = cy - 0.315 * hh / 0.65 + 0.05 * part.square()
    side_line = cy - 0.40 * hh / 0.65 + 0.24 * (part + 0.15) + 0.10 * part.square()
    line = kind["fringe"][0] * bare_line + kind["fringe"][1] * straight_line + kind["fringe"][2] * side_line
    temples = c.y - (cy - 0.02 + 0.10 * short_hair + 1.2 * long_hair)
    sides = torch.maximum(hw * (0.93 - 0.02 * long_hair) - (c.x - back_x).abs() - 0.02 * c.y, temples)
    cap = torch.maximum(crown, torch.minimum(c.y - line - lift, sides))
    strands = torch.maximum(curtain, hw * 0.96 - (c.x - back_x * 0.5).abs())
    cap = torch.where(long_hair > 0, torch.minimum(cap, torch.maximum(strands, -(c.y + 0.2))), cap)
    front = c.inside(cap) * grown
    gloss = 1.0 + 0.28 * torch.exp(-((c.y + 0.50 - 0.25 * part.square()) / 0.09).square()) - 0.10 * (c.x * 0.8)
    c.rgb.lerp_((hair * gloss).clamp(0, 1), front)
    mask = torch.stack([head, front, behind, ears]).amax(dim=0)
    return c, mask

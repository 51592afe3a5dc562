"""Toy faces: an endless, seeded, vectorised renderer of cartoon portraits whose factors are known.

A face is a dictionary of factors (yaw, hair style, smile, ...). The factors of face i depend on the
seed and on i alone; `render` draws them at any resolution with antialiased signed-distance shapes,
back to front. Known factors make the semantics of a generated image measurable (see
gapkd.metrics.attributes and gapkd.metrics.agreement).

Coordinates of the drawing: x to the right, y down, the head's centre near (0, 0), its half-height
near 0.65.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from gapkd.networks.base import check_resolution

CATEGORICAL: dict[str, tuple[str, ...]] = {
    "hair_style": ("bald", "short", "long"),
    "hair_colour": ("black", "brown", "red", "blond", "grey"),
    "fringe": ("none", "straight", "side"),
    "iris_colour": ("brown", "blue", "green"),
    "glasses": ("no", "yes"),
    "beard": ("none", "stubble", "full"),
}
CONTINUOUS: dict[str, tuple[float, float]] = {
    "yaw": (-1.0, 1.0), "pitch": (-1.0, 1.0), "face_width": (0.47, 0.58),
    "face_height": (0.60, 0.70), "skin_tone": (0.0, 1.0), "eye_size": (0.8, 1.25),
    "eye_distance": (0.36, 0.48), "eye_openness": (0.5, 1.0), "gaze": (-1.0, 1.0),
    "brow_angle": (-1.0, 1.0), "nose_size": (0.6, 1.5), "smile": (-1.0, 1.0),
    "mouth_opening": (0.0, 1.0),
    "background_hue": (0.0, 0.8), "shirt_hue": (0.0, 0.8),  # red to violet: no wrap-round
}
FREQUENCIES = {"hair_style": (0.2, 0.4, 0.4), "hair_colour": (0.25, 0.25, 0.15, 0.2, 0.15),
               "fringe": (0.4, 0.3, 0.3), "iris_colour": (0.4, 0.3, 0.3), "glasses": (0.7, 0.3),
               "beard": (0.6, 0.2, 0.2)}

FRAME, RISE = 0.85, 0.02  # half the picture's side and its centre, in drawing units: a tight crop
_float32 = partial(torch.tensor, dtype=torch.float32, device="cpu")  # whatever the defaults are
HAIR = _float32([[0.10, 0.09, 0.11], [0.36, 0.21, 0.12], [0.66, 0.27, 0.12], [0.88, 0.70, 0.36],
                 [0.68, 0.68, 0.70]])
IRIS = _float32([[0.36, 0.20, 0.10], [0.20, 0.45, 0.80], [0.25, 0.55, 0.30]])
SKIN = _float32([[0.99, 0.86, 0.76], [0.94, 0.74, 0.58], [0.76, 0.53, 0.37], [0.55, 0.35, 0.23],
                 [0.36, 0.22, 0.15]])


def _hash(indices: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one per index, by splitmix64: no state, in any order."""
    with np.errstate(over="ignore"):
        x = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(int(seed) % 2**64) * np.uint64(0xD1B54A32D192ED03)
        x += np.uint64(stream + 1) * np.uint64(0x8CB92BA72F3D8DD7)
        for _ in range(2):
            x ^= x >> np.uint64(30)
            x *= np.uint64(0xBF58476D1CE4E5B9)
            x ^= x >> np.uint64(27)
            x *= np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53


def as_indices(indices: object) -> Tensor:
    """Whole numbers of at least 0, a list, an array or a tensor of them, as int64 (N,). Raises
    ValueError for anything else, masks above all, whose True would be number 1."""
    given = indices if isinstance(indices, Tensor) else torch.as_tensor(np.asarray(indices))
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.ndim != 1 or not (whole or not len(given)) or (given < 0).any():
        raise ValueError("indices are whole numbers of at least 0, (N,): mask.nonzero()[:, 0] "
                         f"makes them of a mask; not {str(given.dtype).removeprefix('torch.')} "
                         f"of shape {tuple(given.shape)}"
                         + (f" and as low as {given.min()}" if whole and given.numel() else ""))
    return given.long()


def draw_factors(indices: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Factors of the faces with these numbers, (N,) int64 of at least 0: one (N,) tensor each,
    int64 class numbers for those in CATEGORICAL, float32 for those in CONTINUOUS."""
    indices = as_indices(indices)
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
    # Bald heads have no fringe: what cannot be seen is no factor.
    factors["fringe"] *= factors["hair_style"] != 0
    return {name: value.to(indices.device) for name, value in factors.items()}


def render(factors: dict[str, Tensor], resolution: int = 32) -> Tensor:
    """Faces of these factors, as `draw_factors` returns them: (N, 3, R, R) float32 in [-1, 1]."""
    return _draw(factors, resolution)[0].mul_(2).sub_(1).clamp_(-1, 1)


def face_mask(factors: dict[str, Tensor], resolution: int = 32) -> Tensor:
    """The content of interest: head, hair and ears as a soft mask, 0 on background and shirt.
    (N, 1, R, R) in [0, 1]."""
    return _draw(factors, resolution)[1]


def toy_faces(indices: Tensor | int, resolution: int = 32, seed: int = 0
              ) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (N, 3, R, R) in [-1, 1] and their factors, for face numbers (N,) or for the first
    `indices` ones."""
    numbers = torch.arange(indices) if isinstance(indices, int) else indices
    factors = draw_factors(numbers, seed)
    return render(factors, resolution), factors


def _column(value: Tensor) -> Tensor:
    return value.float()[:, None, None, None]


def _rgb(red: float, green: float, blue: float, like: Tensor) -> Tensor:
    """One colour, (1, 3, 1, 1), on the device of `like`."""
    colour = torch.tensor([red, green, blue], dtype=like.dtype, device=like.device)
    return colour[None, :, None, None]


def _hsv(hue: Tensor, saturation: float, value: float) -> Tensor:
    """(N,) hues in [0, 1] -> (N, 3, 1, 1) colours."""
    k = (torch.tensor([5.0, 3.0, 1.0], dtype=hue.dtype, device=hue.device) + 6 * hue[:, None]) % 6
    rgb = value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)
    return rgb[:, :, None, None]


def _palette(colours: Tensor, index: Tensor) -> Tensor:
    return colours.to(index.device)[index][:, :, None, None]


def _skin(tone: Tensor) -> Tensor:
    """(N,) tones in [0, 1], light to dark -> (N, 3, 1, 1) colours."""
    colours = SKIN.to(tone.device)
    place = tone.clamp(0, 1) * (len(colours) - 1)
    low = place.long().clamp(max=len(colours) - 2)
    return torch.lerp(colours[low], colours[low + 1], (place - low)[:, None])[:, :, None, None]


def _smooth(x: Tensor, low: float, high: float) -> Tensor:
    """A soft step: 0 below `low`, 1 above `high`."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


class _Portrait:
    """Faces being painted. Each method paints one thing; `_draw` calls them back to front.

    Factors and places are (N, 1, 1, 1), colours (N, 3, 1, 1), distances and coverages (N, 1, R, R).
    """

    def __init__(self, factors: dict[str, Tensor], resolution: int):
        check_resolution(resolution)
        count, device = len(factors["glasses"]), factors["glasses"].device
        axis = torch.arange(resolution, dtype=torch.float32, device=device)
        axis = ((axis + 0.5) * (2 / resolution) - 1) * FRAME
        self.x, self.y = axis[None, None, None, :], axis[None, None, :, None] + RISE
        self.pixel = 2 * FRAME / resolution
        self.rgb = axis.new_empty(count, 3, resolution, resolution)
        self.factors, self.f = factors, {name: _column(factors[name]) for name in CONTINUOUS}
        self.skin = _skin(factors["skin_tone"])
        self.shade = self.skin * _rgb(0.78, 0.70, 0.68, self.skin)
        self.hair = _palette(HAIR, factors["hair_colour"])
        self.dark_hair = self.hair * 0.72
        self.bald, self.short_hair, self.long_hair = self.classes("hair_style")
        # half the width, half the height and the centre's y of the head
        self.w, self.h, self.centre = self.f["face_width"], self.f["face_height"], 0.06
        self.angle, self.lift = 0.48 * self.f["yaw"], 0.07 * self.f["pitch"]
        down = (self.y - self.centre) / self.h
        narrowing = self.w * (1 - 0.20 * down.clamp(min=0).square())  # to the chin
        radius = ((self.x / narrowing).square() + down.square()).sqrt_()
        self.head_distance = radius.sub_(1).mul_(self.w)
        self.head = self.inside(self.head_distance)
        self.back_x = self.w * 0.10 * torch.sin(-self.angle)  # the back of the head
        curtain = self.ellipse(self.back_x, self.centre + 0.05, self.w * 1.34, self.h * 1.30)
        self.curtain = torch.maximum(curtain, self.y - 0.88)
        self.eye_y = self.centre - 0.10 + self.lift
        self.mouth_y = self.centre + 0.42 * self.h / 0.65 + self.lift * 0.8
        self.middle, self.mouth_narrow = self.turned(torch.zeros_like(self.angle))
        self.mouth_x = self.middle * 0.9

    def classes(self, name: str) -> list[Tensor]:
        """For every class of a categorical factor 1 where a face shows it, else 0."""
        return [_column(self.factors[name] == i) for i in range(len(CATEGORICAL[name]))]

    def turned(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A point at u of half the head's width, on a cylinder that yaw turns: its x, and how much
        it is foreshortened."""
        a = torch.asin(u.clamp(-0.99, 0.99))
        narrow = torch.cos(a + self.angle) / torch.cos(a)
        return self.w * torch.sin(a + self.angle), narrow.clamp(0.25, 1.25)

    def inside(self, distance: Tensor) -> Tensor:
        """Signed distance -> coverage in [0, 1], antialiased over one pixel and a half."""
        return distance.mul(-1 / (1.5 * self.pixel)).add_(0.5).clamp_(0, 1)

    def ellipse(self, x: Tensor | float, y: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
        """Signed distance (approximate) to an ellipse with half-axes a and b: exact at the
        boundary, of unit slope along the short axis."""
        q = ((self.x - x) / a).square() + ((self.y - y) / b).square()
        return q.sqrt_().sub_(1).mul_(torch.minimum(a, b))

    def oval(self, x: Tensor | float, y: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
        """Coverage of an ellipse."""
        return self.inside(self.ellipse(x, y, a, b))

    def paint(self, coverage: Tensor, colour: Tensor) -> None:
        self.rgb.lerp_(colour.expand_as(self.rgb), coverage)

    def paint_background(self) -> Tensor:
        """A soft light behind the head, hair that falls behind the shoulders, neck and shirt;
        returns what stays to be seen of that hair, its coverage."""
        wall = _hsv(self.factors["background_hue"], 0.36, 0.86)
        glow = (1.10 - 0.16 * (self.x.square() + (self.y + 0.2).square())).clamp(0.6, 1.1)
        self.rgb.copy_(wall.expand_as(self.rgb)).mul_(glow)
        behind = self.inside(self.curtain).mul_(self.long_hair)
        self.paint(behind, self.dark_hair)
        neck = (self.x - 0.02 * self.f["yaw"]).abs() - self.w * 0.46
        shirt, one = _hsv(self.factors["shirt_hue"], 0.55, 0.72), torch.ones_like(self.w)
        for coverage, colour in (
                (self.inside(torch.maximum(neck, -(self.y - 0.3))), self.shade),
                (self.oval(0.0, 1.20, one * 1.02, one * 0.56), shirt),
                (self.oval(0.0, 0.72, self.w * 0.60, one * 0.15), shirt * 0.74),
                (self.oval(0.0, 0.69, self.w * 0.50, one * 0.13), self.shade)):
            self.paint(coverage, colour)
            behind = behind * (1 - coverage)
        return behind

    def paint_ears(self) -> Tensor:
        """The far one disappears behind the head; coverage of both."""
        ears, y = torch.zeros_like(self.rgb[:, :1]), self.centre + 0.03 + 0.4 * self.lift
        for side in (-1, 1):
            x = side * self.w * torch.cos(self.angle) - 0.16 * self.w * torch.sin(self.angle)
            ear = self.oval(x, y, self.w * 0.16, self.h * 0.17)
            self.paint(ear, self.skin * 0.93)
            self.paint(self.oval(x, y, self.w * 0.08, self.h * 0.09) * 0.6, self.shade)
            ears = torch.maximum(ears, ear)
        return ears

    def paint_head(self) -> None:
        """Lit from the upper left, with red cheeks and a beard along the jaw."""
        across = 0.15 * (self.x + 0.10 * self.f["yaw"]) / self.w * 0.6
        light = (0.96 - across - 0.10 * (self.y - self.centre) / self.h).clamp(0.72, 1.12)
        rim = 1 - 0.14 * _smooth(self.head_distance / self.w, -0.35, 0.0)
        self.paint(self.head, self.skin * (light * rim))
        blush = self.skin * _rgb(1.02, 0.74, 0.70, self.skin)
        level = ((self.y - self.centre - 0.22 - self.lift) / 0.13).square()
        for side in (-1, 1):
            x, narrow = self.turned(torch.full_like(self.w, 0.56 * side))
            spot = torch.exp(-((self.x - x) / (0.17 * narrow)).square() - level)
            self.paint(spot.mul_(0.45) * self.head, blush)
        aside, below = self.x - self.mouth_x, self.y - self.mouth_y
        jaw = _smooth(below + 0.16 - 0.22 * (aside / self.w).square(), -0.06, 0.10)
        lips = 0.10 - (aside / 0.5).square() - (below + 0.27).abs()
        jaw = jaw * (1 - _smooth(lips, -0.04, 0.04))
        _, stubble, full = self.classes("beard")
        colour = torch.lerp(self.dark_hair, self.shade, stubble * 0.3)
        self.paint(jaw * self.head * (stubble * 0.48 + full * 0.95), colour)

    def paint_nose(self) -> None:
        """A shadow on the side away from the light, a soft tip."""
        size, x, y = self.f["nose_size"], self.middle, self.centre + 0.15 + self.lift * 1.2
        tip = x + 0.10 * torch.sin(self.angle)
        aside = ((self.x - x * 0.5 - tip * 0.5 - 0.045) / (0.045 * size)).square()
        bridge = torch.exp(-aside - ((self.y - y + 0.13) / 0.17).square())
        self.paint(bridge.mul_(0.35), self.shade)
        self.paint(self.oval(tip, y + 0.02, 0.115 * size, 0.086 * size) * 0.9, self.shade * 0.78)
        bright = self.oval(tip - 0.012, y - 0.008, 0.098 * size, 0.070 * size)
        self.paint(bright * 0.9, self.skin * 1.04)

    def paint_mouth(self) -> None:
        """An arc that opens; teeth show in an open smile."""
        smile, opening, below = self.f["smile"], self.f["mouth_opening"], self.y - self.mouth_y
        span = 0.225 * (1 + 0.12 * smile) * (1 - 0.18 * opening * (smile < 0))
        span = span * self.mouth_narrow.clamp(0.6, 1.0)
        u = (self.x - self.mouth_x) / span
        arc = u.square().clamp(max=1.4)
        bend = torch.where(smile > 0, 0.080 * smile, 0.045 * smile)  # corners up, corners down
        below = below - bend * (1 - 2 * arc)
        gap = (0.012 + 0.078 * opening) * (1 - 0.45 * (-smile).clamp(min=0))
        gap = gap * (1 - arc).clamp(min=0)
        away = below.abs() - gap
        lips = self.inside(torch.maximum(away - 0.030, (u.abs() - 1.04) * span))
        self.paint(lips, self.skin * _rgb(0.88, 0.52, 0.50, self.skin))
        hollow = torch.maximum(away, (u.abs() - 0.94) * span)
        opened = self.inside(hollow) * _smooth(opening, 0.05, 0.25)
        self.paint(opened, _rgb(0.36, 0.09, 0.11, self.skin))
        teeth = self.inside(torch.maximum(hollow + 0.008, below + gap - 0.060))
        shown = teeth * _smooth(opening, 0.15, 0.4) * _smooth(smile, -0.3, 0.2)
        self.paint(shown, _rgb(0.97, 0.97, 0.97, self.skin))

    def paint_eyes(self) -> None:
        """With their brows."""
        size, y = self.f["eye_size"], self.eye_y
        iris = _palette(IRIS, self.factors["iris_colour"])
        black, white, glint = (_rgb(v, v, v, iris) for v in (0.05, 0.98, 1.0))
        brow_colour = torch.lerp(self.dark_hair, self.hair * 0.6, self.bald)
        for side in (-1, 1):
            x, narrow = self.turned(side * self.f["eye_distance"])
            a, b = 0.130 * size * narrow, 0.102 * size * self.f["eye_openness"]
            lid = self.oval(x, y - 0.018, a * 1.12, b * 1.12 + 0.012) * self.head
            self.paint(lid * 0.75, self.shade * 0.55)
            ball = self.oval(x, y, a, b) * self.head
            self.paint(ball, white)
            look, r = x + 0.45 * a * self.f["gaze"], 0.074 * size
            self.paint(self.oval(look, y, r * narrow, r) * ball, iris)
            self.paint(self.oval(look, y, r * 0.52 * narrow, r * 0.52) * ball, black)
            self.paint(self.oval(look - 0.02, y - 0.024, r * 0.3, r * 0.3) * ball, glint)
            along = (self.x - x) * side / narrow
            brow_y = y - 0.155 - 0.02 * size - 0.22 * self.f["brow_angle"] * along
            away = (self.y - (brow_y + 0.9 * along.square())).abs()
            brow = self.inside(torch.maximum(away - 0.024, along.abs() - 0.145))
            self.paint(brow * self.head * 0.92, brow_colour)

    def paint_glasses(self) -> None:
        """Two rings and a bridge between them."""
        places, rings = [], torch.zeros_like(self.rgb[:, :1])
        for side in (-1, 1):
            x, narrow = self.turned(side * self.f["eye_distance"])
            a, b = 0.195 * narrow.clamp(min=0.5), torch.full_like(x, 0.178)
            ring = self.ellipse(x, self.eye_y + 0.01, a, b).abs() - 0.017
            rings = torch.maximum(rings, self.inside(ring))
            places.append(x)
        between = torch.maximum(places[0] + 0.17 - self.x, self.x - places[1] + 0.17)
        bridge = torch.maximum((self.y - self.eye_y + 0.015).abs() - 0.014, between)
        rings = torch.maximum(rings, self.inside(bridge)) * self.classes("glasses")[1]
        self.paint(rings, _rgb(0.12, 0.12, 0.12, self.skin))

    def paint_hair(self) -> Tensor:
        """Hair over the forehead: the crown above a line that the fringe decides; its coverage."""
        top, size = self.centre - 0.04, self.w * (1.10 + 0.08 * self.long_hair)
        crown = self.ellipse(self.back_x, top, size, self.h * 1.12)
        part = (self.x - self.w * torch.sin(self.angle) * 0.8) / self.w
        bare, straight, side = self.classes("fringe")
        line = bare * (self.centre - 0.44 * self.h / 0.65 + 0.20 * part.square())
        line = line + straight * (self.centre - 0.315 * self.h / 0.65 + 0.05 * part.square())
        slanted = 0.24 * (part + 0.15)
        line = line + side * (self.centre - 0.40 * self.h / 0.65 + slanted + 0.10 * part.square())
        temples = self.y - (self.centre - 0.02 + 0.10 * self.short_hair + 1.2 * self.long_hair)
        inner = self.w * (0.93 - 0.02 * self.long_hair) - (self.x - self.back_x).abs()
        sides = torch.maximum(inner - 0.02 * self.y, temples)
        cap = torch.maximum(crown, torch.minimum(self.y - line - self.lift, sides))
        strands = torch.maximum(self.curtain, self.w * 0.96 - (self.x - self.back_x * 0.5).abs())
        falling = torch.minimum(cap, torch.maximum(strands, -(self.y + 0.2)))
        cap = torch.where(self.long_hair > 0, falling, cap)
        front = self.inside(cap) * (self.short_hair + self.long_hair)
        gloss = 0.28 * torch.exp(-((self.y + 0.50 - 0.25 * part.square()) / 0.09).square())
        gloss = 1.0 + gloss - 0.10 * (self.x * 0.8)
        self.paint(front, (self.hair * gloss).clamp(0, 1))
        return front


def _draw(factors: dict[str, Tensor], resolution: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, R, R) in [0, 1], and what head, hair and ears cover of them, (N, 1, R, R)."""
    face = _Portrait(factors, resolution)
    behind = face.paint_background()
    ears = face.paint_ears()
    face.paint_head()
    face.paint_nose()
    face.paint_mouth()
    face.paint_eyes()
    face.paint_glasses()
    front = face.paint_hair()
    return face.rgb, torch.stack([face.head, front, behind, ears]).amax(dim=0)

"""Diagrams of the course: eight drawings in one language, of which a part can be lit.

A drawing is a function that puts boxes, arrows, notes and small pictures on a `Sketch`. Everything
belongs to a part, or to none; what is not lit turns grey. Lengths are inches, y counts upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Arc, Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from gapkd.viewing.figures import INK, PALETTE, NotebookFigure, styled

TEACHER, STUDENT, OPERATION, LOSS, CODE, CONTEXT = *PALETTE[:5], "#7d8493"
"""Colours by what a thing is; z, w and offsets are codes."""
PALE, PALE_INK, PALE_FILL = "#d3d7de", "#858b98", "#f7f8fa"  # of what is not lit
SIZE = 9  # points of all text
Part = str | tuple[str, ...] | None
"""What a thing belongs to: it is in colour when one of them is lit."""


def tint(colour: str, strength: float) -> tuple[float, ...]:
    """The colour on white."""
    return tuple(1 - strength * (1 - channel) for channel in to_rgb(colour))


class Box(NamedTuple):
    """A place for arrows to meet: a rectangle around (x, y), or a point."""

    x: float
    y: float
    w: float = 0.0
    h: float = 0.0


def between(a: Box, b: Box) -> list[tuple[float, float]]:
    """Both ends of an arrow from a to b: straight where they face each other, slanted elsewhere."""
    across, up = np.sign(b.x - a.x), np.sign(b.y - a.y)
    if abs(b.x - a.x) <= (a.w + b.w) / 2 and abs(b.y - a.y) > (a.h + b.h) / 2:
        x = min(a, b, key=lambda box: box.w).x
        return [(x, a.y + up * a.h / 2), (x, b.y - up * b.h / 2)]
    ys = [a.y, b.y]
    if abs(b.y - a.y) <= (a.h + b.h) / 2:
        ys = [min(a, b, key=lambda box: box.h).y] * 2
    return [(a.x + across * a.w / 2, ys[0]), (b.x - across * b.w / 2, ys[1])]


class Sketch:
    """A page of width x height inches and what is drawn on it.

    Args:
        lit: the parts in colour; None: everything.
    """

    def __init__(self, width: float, height: float, lit: Sequence[str] | None):
        self.lit, self.parts = lit, {}  # the parts in the order in which they were drawn
        self.figure = NotebookFigure(width, height, layout=None, sharpness=1.25)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def ink(self, part: Part, colour: object, pale: object = PALE) -> object:
        """The colour (or width) of a thing, or the one that it has where its part is not lit."""
        parts = part if isinstance(part, tuple) else (part,)
        self.parts |= dict.fromkeys(filter(None, parts))
        lit = self.lit is None or any(name in self.lit for name in parts)
        return colour if lit else pale

    def note(self, part: Part, x: float, y: float, text: str, ha: str = "center",
             colour: str = INK, **look: object) -> None:
        """Text around (x, y), or from there on."""
        self.axes.text(x, y, text, ha=ha, va="center", size=SIZE, linespacing=1.25, zorder=5,
                       color=self.ink(part, colour, PALE_INK), **look)

    def box(self, part: Part, x: float, y: float, text: str, colour: str = OPERATION,
            w: float = 1.0, h: float = 0.5) -> Box:
        """A rounded box around (x, y) with its text in the middle."""
        self.axes.add_patch(FancyBboxPatch(
            (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0,rounding_size=0.09",
            edgecolor=self.ink(part, colour), linewidth=self.ink(part, 1.5, 1.0),
            facecolor=self.ink(part, tint(colour, 0.16), PALE_FILL), zorder=2))
        self.note(part, x, y, text)
        return Box(x, y, w, h)

    def arrow(self, part: Part, *way: Box | tuple[float, float], colour: str = INK,
              dashed: bool = False, stops: bool = False) -> None:
        """An arrow along boxes and points; one that stops ends at a bar."""
        places = [Box(*place) for place in way]
        first, last = between(*places[:2]), between(*places[-2:])
        points = [first[0], *((place.x, place.y) for place in places[1:-1]), last[1]]
        look = {"color": self.ink(part, colour), "linewidth": self.ink(part, 1.5, 1.1)}
        self.axes.add_patch(FancyArrowPatch(
            path=Path(points), arrowstyle="-" if stops else "-|>", mutation_scale=10, zorder=3,
            linestyle=(0, (3, 1.8)) if dashed else "solid", joinstyle="round", **look))
        if stops:
            x, y = points[-1]
            self.axes.plot([x, x], [y - 0.1, y + 0.1], **look)

    def chain(self, part: Part, *boxes: Box) -> None:
        """Arrows from each box to the next."""
        for pair in pairwise(boxes):
            self.arrow(part, *pair)

    def frame(self, part: Part, x: float, y: float, w: float, h: float, colour: str) -> None:
        """A dashed frame around several things."""
        self.axes.add_patch(FancyBboxPatch(
            (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0,rounding_size=0.12",
            edgecolor=self.ink(part, colour), facecolor="none", linestyle=(0, (4, 2.5)),
            linewidth=1.1, zorder=1))

    def cells(self, part: Part, x: float, y: float, values: np.ndarray, colour: str,
              cell: float = 0.15) -> Box:
        """A matrix of values from 0 to 1 around (x, y): the higher, the darker."""
        h, w = np.multiply(values.shape, cell)
        for (i, j), value in np.ndenumerate(values):
            fill = self.ink(part, tint(colour, 0.1 + 0.85 * value), tint(PALE, 0.2 + 0.8 * value))
            self.axes.add_patch(Rectangle(
                (x - w / 2 + j * cell, y + h / 2 - (i + 1) * cell), cell, cell, facecolor=fill,
                edgecolor="white", linewidth=0.8, zorder=4))
        return Box(x, y, w + 0.14, h + 0.14)

    def face(self, part: Part, x: float, y: float, hair: str = "#6b4a35",
             size: float = 0.62) -> Box:
        """An image: a face on a square."""
        unit, ink = size / 2, self.ink(part, INK, PALE_INK)
        drawn = [
            Rectangle((x - unit, y - unit), size, size, linewidth=1.2,
                      facecolor=self.ink(part, "#cfe3f2", PALE_FILL),
                      edgecolor=self.ink(part, CONTEXT)),
            Circle((x, y + 0.12 * unit), 0.68 * unit, color=self.ink(part, hair)),
            Circle((x, y - 0.1 * unit), 0.56 * unit, color=self.ink(part, "#f2c9a5", "#eceef2")),
            Circle((x - 0.22 * unit, y), 0.07 * unit, color=ink),
            Circle((x + 0.22 * unit, y), 0.07 * unit, color=ink),
            Arc((x, y - 0.25 * unit), 0.5 * unit, 0.36 * unit, theta1=200, theta2=340, color=ink)]
        for n, patch in enumerate(drawn):
            patch.set_zorder(4 + n / 10)
            self.axes.add_patch(patch)
        return Box(x, y, size, size)


# ------------------------------------------------------------------------------- the drawings


DRAWINGS: dict[str, tuple[float, float, Callable[[Sketch], None]]] = {}
"""Name -> width and height of the page, and what draws it: its docstring says what one sees."""


def drawing(width: float, height: float) -> Callable:
    """Puts a function among the `DRAWINGS`, under its own name."""
    def register(draw: Callable[[Sketch], None]) -> Callable[[Sketch], None]:
        DRAWINGS[draw.__name__] = width, height, draw
        return draw
    return register


@styled
def diagram(name: str, lit: str | Sequence[str] | None = None) -> NotebookFigure:
    """A diagram of the course.

    Args:
        name: one of `DRAWINGS`.
        lit: the part or parts in colour, the rest being grey; None: everything in colour.

    Raises ValueError naming the diagrams or their parts.
    """
    if name not in DRAWINGS:
        raise ValueError(f"there is no diagram {name!r}: choose one of {', '.join(DRAWINGS)}")
    width, height, draw = DRAWINGS[name]
    lit = (lit,) if isinstance(lit, str) else lit
    sketch = Sketch(width, height, lit)
    draw(sketch)
    for part in lit or ():
        if part not in sketch.parts:
            raise ValueError(f"the diagram {name!r} has no part {part!r}: choose among "
                             f"{', '.join(sketch.parts)}")
    in_colour = f" In colour: {', '.join(lit)}." if lit else ""
    sketch.figure.alt = " ".join(draw.__doc__.split()) + in_colour
    return sketch.figure


QUESTIONS = {
    "00": ("What is inside\na StyleGAN?", TEACHER),
    "01": ("Do two of them\ndraw alike?", LOSS),
    "02": ("What must a\nstudent inherit?", LOSS),
    "03": ("What does the\ndirection loss do?", STUDENT),
    "04": ("How is a student\ntrained?", STUDENT),
    "05": ("Does it carry over\nto StyleGAN3?", OPERATION),
    "06": ("Which method\nwins?", OPERATION),
    "07": ("What can the\nstudent do?", CODE),
    "08": ("How do I bring\nmy own?", CODE),
}


@drawing(7.45, 2.1)
def course(s: Sketch) -> None:
    """The course as a path of nine chapters. 00: What is inside a StyleGAN? 01: Do two of them draw
    alike? 02: What must a student inherit? 03: What does the direction loss do? 04: How is a
    student trained? 05: Does it carry over to StyleGAN3? 06: Which method wins? 07: What can the
    student do? 08: How do I bring my own?"""
    boxes = []
    for n, (number, (question, colour)) in enumerate(QUESTIONS.items()):
        x, y = (0.72 + 1.5 * n, 1.6) if n < 5 else (1.47 + 1.5 * (n - 5), 0.45)
        boxes.append(s.box(number, x, y, f"\n{question}", colour, w=1.32, h=0.78))
        s.note(number, x, y + 0.24, number, weight="bold", colour=colour)
    s.chain(None, *boxes[:5])
    s.arrow(None, boxes[4], (boxes[4].x, 1.03), (boxes[5].x, 1.03), boxes[5])
    s.chain(None, *boxes[5:])


@drawing(7.6, 2.45)
def generator(s: Sketch) -> None:
    """A generator: the latent z goes through the mapping network f to w; w sets the styles of
    every layer of the synthesis network g, from 4 to 64 pixels, which ends in the image."""
    y, above = 0.78, 1.68
    z = s.box("z", 0.42, y, "$z$\nlatent", CODE, w=0.68, h=0.62)
    mapping = s.box("mapping", 1.55, y, "mapping\nnetwork $f$", TEACHER, h=0.7)
    w = s.box("w", 2.6, y, "$w$", CODE, w=0.52, h=0.62)
    s.chain("mapping", z, mapping, w)
    s.frame("synthesis", 4.81, 1.12, 3.38, 1.98, TEACHER)
    s.note("synthesis", 4.81, 2.27, "synthesis network $g$, the painter", weight="bold",
           colour=TEACHER)
    s.note(("w", "synthesis"), 4.81, 1.92, "styles: $w$ tells every layer what to paint")
    blocks = [s.box("synthesis", 3.42 + 0.68 * n, y, f"{4 * 2**n}\npx", TEACHER, w=0.46,
                    h=0.5 + 0.15 * n) for n in range(5)]
    s.chain("synthesis", *blocks)
    for block in blocks:
        s.arrow(("w", "synthesis"), w, (w.x, above), (block.x, above), block, colour=CODE)
    s.arrow(("synthesis", "image"), blocks[-1], s.face("image", 7.08, y, size=0.8))
    s.note("image", 7.08, 0.2, "image")


@drawing(7.4, 2.15)
def modconv(s: Sketch) -> None:
    """A layer of StyleGAN2: the style s, an affine map of w, scales the weights Theta (modulate);
    the weights of every output are scaled back to length 1 (demodulate); the features are
    convolved with them; then noise, bias and leaky ReLU."""
    up, down = 1.75, 0.5
    w = s.box(None, 0.4, up, "$w$", CODE, w=0.56)
    style = s.box("modulate", 1.62, up, "style\n$s = A_l\\,w + b$", CODE, w=1.2, h=0.6)
    scaled = s.box("modulate", 3.13, up, "modulate\n$s_i\\;\\Theta_{oi}$", w=1.1, h=0.6)
    unit = s.box("demodulate", 4.87, up, "demodulate: weights\nback to length 1", w=1.6, h=0.6)
    weights = s.box("modulate", 3.13, 1.12, "weights $\\Theta$", TEACHER, w=1.1, h=0.34)
    s.chain("modulate", w, style, scaled)
    s.arrow("modulate", weights, scaled)
    s.arrow("demodulate", scaled, unit)
    features = s.box(None, 0.67, down, "features\nof the layer\nbefore", CONTEXT, w=1.1, h=0.76)
    convolve = s.box("convolve", 4.4, down, "convolve", w=0.86)
    noise = s.box("noise", 5.4, down, "+ noise", w=0.76)
    bias = s.box(None, 6.23, down, "+ bias", w=0.66)
    s.arrow("convolve", features, convolve)
    s.arrow("convolve", unit, convolve)
    s.arrow("noise", convolve, noise)
    s.chain(None, noise, bias, s.box(None, 7.02, down, "leaky\nReLU", w=0.62))


@drawing(7.3, 2.3)
def inherit(s: Sketch) -> None:
    """Teacher above, student below: the same z through the mapping network, copied from the
    teacher, to the same w; both painters get the same noise; losses compare the two images."""
    up, middle, down = 1.9, 1.1, 0.36
    z = s.box(None, 0.38, middle, "$z$", CODE, w=0.5)
    noise = s.box("noise", 4.45, middle, "the same noise", w=1.3, h=0.36)
    losses = s.box("losses", 6.1, middle, "losses", LOSS, w=0.8, h=0.36)
    mappings = []
    for y, name, size, colour, w, hair in ((up, "teacher", "wide", TEACHER, 1.6, "#6b4a35"),
                                           (down, "student", "narrow", STUDENT, 1.0, "#8a6446")):
        f = s.box("mapping", 1.75, y, f"mapping $f_{name[0]}$", colour, w=1.2)
        code = s.box(("mapping", "synthesis"), 2.92, y, "$w$", CODE, w=0.5)
        g = s.box("synthesis", 4.45, y, f"painter $g_{name[0]}$\n{size}", colour, w=w, h=0.56)
        image = s.face("losses", 6.1, y, hair)
        s.arrow("mapping", z, (z.x, y), f)
        s.arrow("mapping", f, code)
        s.chain("synthesis", code, g, image)
        s.arrow("noise", noise, g)
        s.arrow("losses", image, losses)
        s.note(None, 6.5, y, name, ha="left", weight="bold", colour=colour)
        mappings.append(f)
    s.arrow("mapping", *mappings, colour=STUDENT)
    s.note("mapping", 1.85, middle, "copied, weight\nby weight", ha="left", colour=STUDENT)


@drawing(7.4, 2.15)
def relations(s: Sketch) -> None:
    """N faces w and the same moved to w + o: the features of both, in teacher and student; their
    N x N cosines S; a softmax of every row, p and q; the KL divergence of the rows."""
    dice = np.random.default_rng(3)
    up, middle, down = 1.72, 1.07, 0.42
    views = [s.box("views", 0.55, up, "$w_i$\n$N$ faces", CODE, w=0.84, h=0.56),
             s.box("views", 0.55, down, "$w_j + o_j$\nmoved", CODE, w=0.84, h=0.56)]
    kl = s.box("kl", 6.75, middle, "KL, row\nby row", LOSS, w=0.9, h=0.6)
    cosines = dice.uniform(0.05, 0.55, (5, 5)) + 0.45 * np.eye(5)
    for y, name, rows, colour in ((up, "teacher", "p", TEACHER), (down, "student", "q", STUDENT)):
        features = s.box("views", 2.0, y, f"{name}'s\nfeatures", colour, w=0.95, h=0.56)
        for view in views:
            s.arrow("views", view, features)
        matrix = s.cells("cosines", 3.5, y, cosines, colour)
        shares = np.exp(3 * cosines) / np.exp(3 * cosines).sum(axis=1, keepdims=True)
        softmax = s.cells("softmax", 5.2, y, shares / shares.max(), colour)
        s.arrow("cosines", features, matrix)
        s.arrow("softmax", matrix, softmax)
        s.arrow("kl", softmax, (kl.x, y), kl)
        s.note("cosines", 3.98, y + 0.2, f"$S_{name[0]}$", ha="left", colour=colour)
        s.note("softmax", 5.66, y + 0.2, f"${rows}$", ha="left", colour=colour)
        cosines = np.clip(cosines + dice.normal(0, 0.16, (5, 5)), 0, 1)  # the student's are near
    s.note("cosines", 3.5, middle, "cosines of $N \\times N$ pairs")
    s.note("softmax", 5.2, middle, "softmax of a row")


@drawing(7.4, 2.45)
def loss(s: Sketch) -> None:
    """The four losses whose sum is trained on. Solid arrows: from the student's mapping network and
    painter to every loss, and from the teacher to all but gan; gan's pass the discriminator,
    perceptual's a frozen feature network. Dashed arrows: gradients go back to the student's painter
    and, through it, its mapping network; none reaches the teacher."""
    terms = {"gan": "$\\lambda_{gan}\\;L_{gan}$", "rgb": "$\\lambda_{rgb}\\;L_{rgb}$",
             "perceptual": "$\\lambda_{p}\\;L_{perceptual}$", "ld": "$\\lambda_{ld}\\;L_{ld}$"}
    judges = {"gan": "discriminator,\nlearns from its own loss",
              "perceptual": "feature network, frozen"}
    gradient, every = {"colour": LOSS, "dashed": True}, tuple(terms)

    def lane(box: Box, up: float) -> Box:  # arrows there and back, one above the other
        return box._replace(y=box.y + up)

    def both_ways(part: Part, here: Box, there: Box) -> None:
        s.arrow(part, lane(here, 0.09), lane(there, 0.09))
        s.arrow(part, lane(there, -0.09), lane(here, -0.09), **gradient)

    mapping = s.box(every, 0.62, 1.2, "mapping\n$f_s$, learns\nslowly", STUDENT, h=0.76)
    student = s.box(every, 2.02, 1.2, "student's\npainter\n$g_s$\nlearns", STUDENT, w=0.9, h=2.2)
    teacher = s.box("stops", 6.85, 0.92, "teacher\n$G_t$\nfrozen", TEACHER, w=0.8, h=1.64)
    both_ways(every, mapping, student)
    s.note(every, 0.62, 2.04, "total loss: the\nsum of the four")
    s.note(every, 0.66, 0.5, "solid: forward")
    s.note(every, 0.66, 0.28, "dashed: gradients", colour=LOSS)
    for n, (part, text) in enumerate(terms.items()):
        y = 2.06 - 0.58 * n
        way = [student, s.box(part, 5.35, y, text, LOSS, w=1.14, h=0.42)]
        if part in judges:
            way.insert(1, s.box(part, 3.65, y, judges[part], CONTEXT, w=1.72, h=0.46))
        for pair in pairwise(way):
            both_ways(part, *pair)
        if part != "gan":
            s.arrow(part, lane(teacher, y + 0.09 - teacher.y), lane(way[-1], 0.09))
            s.arrow((part, "stops"), lane(way[-1], -0.09), (6.3, y - 0.09), stops=True, **gradient)


@drawing(7.3, 2.35)
def pruning(s: Sketch) -> None:
    """A score for every channel of the teacher; the best channels of its weights stay; they are
    the narrow layer with which the student starts."""
    scores = np.array([0.85, 0.3, 0.62, 0.2, 0.4, 0.95, 0.15, 0.35])
    kept, entering = scores > 0.5, np.array([0, 1, 0, 0, 1, 0, 0, 1], dtype=bool)
    weights = np.random.default_rng(0).uniform(0.45, 1, (8, 8)) * np.outer(kept, entering)
    y, cell = 1.35, 0.2
    rows = y + (3.5 - np.arange(8)) * cell
    s.axes.barh(rows, 1.4 * scores, left=0.4, height=0.7 * cell, zorder=3,
                color=[s.ink("scores", STUDENT if keep else CONTEXT) for keep in kept])
    wide = s.cells("kept", 3.2, y, weights, TEACHER, cell)
    narrow = s.cells("student", 5.4, y, weights[kept][:, entering], STUDENT, cell)
    s.arrow("kept", (1.95, y), wide)
    s.chain("student", wide, narrow, s.box("student", 6.68, y, "student's\npainter", STUDENT))
    s.note("scores", 1.05, 0.22, "a score for every\nchannel of the teacher")
    s.note("kept", 3.2, 0.22, "its weights: only\nthe best channels stay")
    s.note("student", 5.8, 0.22, "a narrow layer that\nstarts with what it knew")


@drawing(7.45, 2.4)
def aliasfree(s: Sketch) -> None:
    """A layer of StyleGAN3: sines as input; convolution; upsampling to a fine grid; leaky ReLU
    there; low-pass and downsampling; a margin around the image that is cropped at the end."""
    y, above, coarse = 0.62, 1.42, slice(None, None, 4)
    turn = np.linspace(0, 2 * np.pi, 33)
    smooth = 0.26 * np.sin(turn) + 0.1 * np.sin(2 * turn + 1)
    bent = np.where(smooth > 0, smooth, 0.2 * smooth)
    soft = np.convolve(np.pad(bent, 6, mode="edge"), np.hanning(15)[1:-1] / 7, mode="valid")
    steps = [  # part, name, colour, what happens, the signal
        ("input", "Fourier\ninput", CODE, "sines on a\ncoarse grid", smooth[coarse]),
        (None, "modulated\nconvolution", TEACHER, "", []),
        ("upsample", "upsample", OPERATION, "the same, on\na fine grid", smooth),
        ("nonlinearity", "leaky\nReLU", LOSS, "a kink has high\nfrequencies", bent),
        ("downsample", "low-pass,\ndownsample", OPERATION, "smooth again,\ncoarse again",
         soft[coarse]),
        ("margin", "crop the\nmargin", STUDENT, "more than the\nimage is painted", [])]
    boxes = []
    for n, (part, name, colour, text, signal) in enumerate(steps):
        x = 0.62 + 1.24 * n
        boxes.append(s.box(part, x, y, name, colour, w=0.98))
        s.chain(part, *boxes[-2:])
        s.note(part, x, above + 0.66, text)
        if len(signal):
            s.axes.plot(np.linspace(x - 0.4, x + 0.4, len(signal)), above + signal, zorder=4,
                        color=s.ink(part, colour), linewidth=1.1, marker="o", markersize=2.4)
    s.face("margin", boxes[5].x, above - 0.04, size=0.44)
    s.frame("margin", boxes[5].x, above - 0.04, 0.72, 0.72, STUDENT)
    s.arrow(None, boxes[4], (boxes[4].x, 0.16), (boxes[1].x, 0.16), boxes[1])
    s.note(None, (boxes[4].x + boxes[1].x) / 2, 0.16, "the next layer",
           bbox={"facecolor": "white", "edgecolor": "none", "pad": 2})

"""The settings of a run: two dataclasses, the only place with defaults.

The command line, the notebooks' parameter cells and the metadata of every saved network are derived
from them. Where our value for small toy faces differs from the paper's (256 px, 450k iterations),
the comment gives both.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import tyro
import yaml

FEATURE_SPACES = ("toyfaces", "inception", "imagenet")
"""Names of feature spaces that are no files."""
DISTANCES = ("toyfaces", "lpips", "imagenet")
"""Names of perceptual distances that are no files."""
LOSS_WEIGHTS = ("gan_weight", "rgb_weight", "perceptual_weight", "feature_weight", "moment_weight",
                "ld_weight")
"""Of the losses of a distillation; the teacher speaks in all but the first."""
LEAST = {
    **dict.fromkeys(("images", "batch", "log_every", "probe_every", "z_dim", "w_dim",
                     "mapping_layers", "reuse"), 1),
    **dict.fromkeys(("seed", "r1_gamma", "path_weight", "grid_every", "checkpoint_every",
                     "fid_every", "ema_rampup", "margin", "ld_strength", *LOSS_WEIGHTS), 0),
    "fid_samples": 2, "layers": 3,
}
"""Setting -> the least that it may be."""
MOST = {"resolution": 4096, "mapping_layers": 64, "z_dim": 2**16, "w_dim": 2**16, "margin": 1000,
        "batch": 2**14, "fid_samples": 10**6, "images": 10**12}
"""Setting -> the most that it may be: more is in no file that `load_generator` opens, or in no
machine."""
WIDEST = 2**14
"""The most that a width may be."""
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text",
         list: "a list", tuple: "a tuple", object: "a value"}
"""Kinds of settings and of chapters' parameters, in words."""
LONGEST = 300
"""Characters of a name in a message."""


@dataclass(frozen=True)
class RunConfig:
    """What every adversarial training shares."""

    out: str = ""
    """Folder of the run; empty: the next free runs/<kind>-NNN."""
    data: str = "toyfaces"
    """"toyfaces", or the path of a folder or zip of images."""
    images: int = 100_000
    """Length of the training in images drawn. Paper: 450,000 steps of 16 = 7.2 million."""
    batch: int = 32
    """Images a step. Paper: 16."""
    seed: int = 0
    """Of initial weights, latents, noise and data order."""
    lr: float = 0.0025
    """Adam's learning rate for both networks, before the lazy-regularisation correction. Paper:
    0.002."""
    mapping_lr: float = 1.0
    """Factor on the learning rate of the mapping network, on top of its multiplier 0.01."""
    adversarial: Literal["logistic", "relativistic"] = "logistic"
    """StyleGAN2's loss; or pairs of a real and a drawn image, with R1 on the real and R2 on the
    drawn ones (R3GAN)."""
    lr_end: float = 1.0
    """The learning rates fall along half a cosine, to this fraction of themselves at the last
    image; 1: they stay."""
    r1_gamma: float = 0.5
    """Weight of R1. Paper: 10 at 256 px."""
    path_weight: float = 0.0
    """Weight of path-length regularisation; 0 leaves it out. Paper: 2."""
    style_mixing: float = 0.5
    """Probability that a batch mixes two styles (StyleGAN3: never). Paper: 0.9."""
    ema_half_life: float = 10_000
    """Half-life of the weight average, in images; at most a twentieth of the images seen, so it
    counts from 20 times as many on."""
    flip: bool = True
    """Mirror real images at random."""
    noise: bool = True
    """Learn how strong the noise maps are; off: no noise, for data in which nothing is random. (A
    teacher without noise has a student without.)"""
    precision: Literal["auto", "bf16", "fp16", "tf32", "float32"] = "auto"
    """Autocast of everything but the regularisers; auto: bf16 where the processor has it, fp16 on
    other GPUs with tensor cores (T4), else float32. tf32: no autocast, but NVIDIA's 10 bits of
    mantissa in products; the regularisers' convolutions have them too, except in float32."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    cuda_graphs: bool = True
    """On a GPU, replay each step as one CUDA graph: small networks wait for Python otherwise. (Not
    with several processes, reuse, content masks, classes or other than three channels.)"""
    log_every: int = 1_000
    """Images between two lines of the log."""
    grid_every: int = 10_000
    """Images between two sample grids; 0 for none."""
    checkpoint_every: int = 20_000
    """Images between two checkpoints; 0: only at the end or when interrupted. The newest two stay
    on the disk, and the one with the lowest FID."""
    fid_every: int = 0
    """Images between two measurements of the FID, which also choose best.safetensors; 0: none."""
    fid_samples: int = 2000
    """Images a measurement of the FID."""
    fid_features: str = "toyfaces"
    """Feature space of that FID: "toyfaces", the embedded attribute network; "inception" (extra
    `metrics`); "imagenet", EfficientNet-Lite0 (extra `imagenet`, no download); or a file that
    `gapkd judge` wrote."""
    tensorboard: bool = False
    """Write log and grids for TensorBoard too (extra `tensorboard`)."""
    probe_every: int = 5_000
    """Images between two calls of the probe a caller may pass."""
    progress: bool = True
    """Show a progress bar."""
    resume: bool = False
    """Go on from the checkpoint in `out`."""
    # What only one kind of training sets, as the other has it.
    r1_end: ClassVar[float] = 1.0
    ema_rampup: ClassVar[float] = 0.05
    gan_weight: ClassVar[float] = 1.0
    gan_from: ClassVar[float] = 0.0
    reuse: ClassVar[int] = 1
    least_batch: ClassVar[int] = 1

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        for name in ("out", *FILES):
            if getattr(self, name, "").startswith("~"):
                object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))
        for name, least in LEAST.items():
            value = getattr(self, name, least)
            bound = f"be at least {least}, not" if least else "not be negative, but is"
            _require(value >= least, f"{name} must {bound} {value}")
        for name, most in MOST.items():
            value = getattr(self, name, most)
            _require(value <= most, f"{name} must be at most {most:,}, not {value:,}")
        for name in ("channels", "d_channels"):
            given = getattr(self, name, (1,))
            _require(given and 0 < min(given) <= max(given) <= WIDEST,
                     f"{name} must name at least one width, each at least 1 and at most "
                     f"{WIDEST:,}, not {given}")
        for name in ("lr", "mapping_lr", "ema_half_life"):
            value = getattr(self, name)
            _require(value > 0, f"{name} must be positive, not {value}")
        for name in ("lr_end", "r1_end"):
            value = getattr(self, name)
            _require(0 < value <= 1, f"{name} must lie in (0, 1], not {value}: it is the fraction "
                                     "that is left at the end")
        _require(0 <= self.style_mixing <= 1,
                 f"style_mixing is a probability, not {self.style_mixing}")
        _require(self.seed < 2**63, f"seed must be below 2^63, not {self.seed}")
        _network_or(self, "fid_features", FEATURE_SPACES, ".safetensors", "a judge")
        _require(not (self.resume and not self.out),
                 "resume needs out: name the folder of the run to go on with")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train a StyleGAN2 or StyleGAN3 from scratch: the teacher."""

    architecture: Literal["stylegan2", "stylegan3-t", "stylegan3-r"] = "stylegan2"
    """StyleGAN2, or StyleGAN3 in configuration T (translation) or R (translation and rotation). R's
    paper blurs the discriminator's images at first; here nothing does."""
    resolution: int = 32
    """Pixels, a power of two."""
    z_dim: int = 128
    """Width of z. Paper: 512."""
    w_dim: int = 128
    """Width of w. Paper: 512."""
    mapping_layers: int = 8
    """Depth of the mapping network. StyleGAN2's paper: 8, StyleGAN3's: 2."""
    channels: tuple[int, ...] = (64,)
    """Widths of the generator's finest blocks; the first one holds for all coarser blocks too.
    Paper: 512 ... 128. StyleGAN3: the widest and the narrowest layer."""
    layers: int = 10
    """StyleGAN3: layers of the synthesis network. Paper: 14."""
    margin: int = 10
    """StyleGAN3: pixels computed beyond every border; with few the border is felt within the image.
    Paper: 10."""
    d_channels: tuple[int, ...] = (64, 32)
    """Widths of the discriminator, likewise: most of its work would lie in the finest block, hence
    the 32."""
    conditional: bool = False
    """Learn the classes that the data's dataset.json names; `gapkd sample --label` draws one."""
    start_from: str = ""
    """Run (its folder, or an embedded teacher's name) or file of another repository to start
    from."""
    r1_end: float = 1.0
    """As lr_end: the fraction of r1_gamma that is left at the last image."""
    ema_rampup: float = 0.05
    """The half-life is at most this fraction of the images seen so far; 0: no such bound."""

    def __post_init__(self):
        super().__post_init__()
        _require(self.architecture == "stylegan2"
                 or len(self.channels) < 3 and self.channels[0] >= self.channels[-1],
                 "channels of a StyleGAN3 must be its widest and its narrowest layer's, not "
                 f"{self.channels}")


Synthesis = Literal["random", "pruned", "pruned-content", "pruned-diversity", "slimmed"]
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"synthesis": "random", "lr": 0.002, "lr_end": 1.0, "gan_weight": 1.0,
              "gan_from": 0.0, "ld_weight": 30.0},
    "gapkd": {"synthesis": "pruned-diversity", "lr": 0.008, "lr_end": 0.1, "gan_weight": 0.3,
              "gan_from": 0.8, "ld_weight": 0.0},
}
"""The settings of DistillConfig in which recipes differ, and what each recipe says of them.

"paper" is the paper's method. "gapkd" is this course's: what paid in tools/sweeps/screening.yml,
and the schedule of tools/sweeps/schedule.yml (image losses first, a rate that falls, the
discriminator at the end). Chapter 6 compares it with the others at equal budget."""


def _by_recipe(name: str, metavar: str) -> Any:
    """Mark of a setting that is the recipe's unless it is given; help shows what each recipe
    says."""
    values = ", ".join(f"{recipe}: {values[name]}" for recipe, values in RECIPES.items())
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default of recipe {values})")


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Distil a teacher into a student with the paper's total loss (section 4):
    gan_weight L_gan + rgb_weight L_rgb + perceptual_weight L_lpips + ld_weight L_ld."""

    recipe: Literal["paper", "gapkd"] = "paper"
    """Where lr, lr_end, synthesis, gan_weight, gan_from and ld_weight come from unless they are
    given: the paper's method, or the recipe of chapter 6."""
    teacher: str = "toyfaces32"
    """The teacher's file, or the name of an embedded one."""
    lr: Annotated[float | None, _by_recipe("lr", "FLOAT")] = None
    """Adam's learning rate for student and discriminator."""
    lr_end: Annotated[float | None, _by_recipe("lr_end", "FLOAT")] = None
    """What is left of it at the last image; it falls along half a cosine."""
    keep: float = 0.3
    """Fraction of the teacher's channels that the student keeps in every layer."""
    kernel: Literal[3, 1] = 3
    """Kernel of every block's second convolution; 1 is the heterogeneous student, which cannot take
    over weights (with recipe gapkd: --synthesis random)."""
    kind: Literal["same", "mobile"] = "same"
    """The student's family: its teacher's, or MobileStyleGAN's wavelet-domain network, which cannot
    take over weights (with recipe gapkd: --synthesis random) and has one block fewer (with the
    latent-direction loss at 32 px: --ld-blocks 1 2)."""
    mapping: Literal["inherit", "inherit-frozen", "random"] = "inherit"
    """What becomes of the teacher's mapping network."""
    synthesis: Annotated[
        Synthesis | None, _by_recipe("synthesis", "|".join(get_args(Synthesis)))
    ] = None
    """Fresh synthesis weights, or the teacher's channels of largest magnitude, of most content
    (CAGAN), of most diversity (DCP-GAN), or those that survive a penalty on their scales (GAN
    Slimming), on which a fifth of the images is spent, 20,000 at most."""
    content: Literal["", "toyfaces"] = ""
    """What of the image counts: all, or (CAGAN) heads, as their factors are read and drawn; for the
    rgb and perceptual losses and for "pruned-content"."""
    reuse: int = 1
    """How often an image of the teacher's is compared with; some thousand are kept in memory. For
    the losses on images, in networks without noise."""
    discriminator: str = ""
    """File of a discriminator to start from (or an embedded name); empty: a fresh one."""
    d_channels: tuple[int, ...] = (64, 32)
    """Widths of a fresh discriminator's finest blocks; the first one holds for all coarser blocks
    too."""
    gan_weight: Annotated[float | None, _by_recipe("gan_weight", "FLOAT")] = None
    """Weight of the adversarial loss."""
    gan_from: Annotated[float | None, _by_recipe("gan_from", "FLOAT")] = None
    """Fraction of the images after which the discriminator begins: until then, the teacher alone
    takes part."""
    rgb_weight: float = 3.0
    """Weight of the mean absolute image difference."""
    rgb_levels: Literal["last", "all"] = "last"
    """Compare the output image, or every toRGB output ("intermediate" in the released code), of
    which only a StyleGAN2 has several."""
    perceptual_weight: float = 3.0
    """Weight of the perceptual distance."""
    perceptual: str = "toyfaces"
    """"toyfaces", the embedded attribute network; "lpips", LPIPS-VGG through the `metrics` extra;
    "imagenet", EfficientNet-Lite0 for photographs, through the `imagenet` extra, without a
    download; a file that `gapkd judge` wrote; or a discriminator, its .safetensors file or embedded
    name, whose features are compared (DCD)."""
    feature_weight: float = 0.0
    """Weight of the feature regression (FitNets), which is no part of the paper's loss."""
    moment_weight: float = 0.0
    """Weight of distribution matching (after DiME, with 20 for an MMD): the means and spreads of a
    batch's features are compared with the teacher's, as the network sees them that `perceptual`
    names."""
    ld_weight: Annotated[float | None, _by_recipe("ld_weight", "FLOAT")] = None
    """Weight of the latent-direction loss."""
    ld_blocks: tuple[int, ...] = (2, 3)
    """Blocks whose features are compared, in the regression too; block 1 is 8x8 (of a StyleGAN3,
    layer 1). Paper: 2, 3, 4, 5, that is 16 to 128 px of 256."""
    ld_offsets: Literal["split", "global", "random", "none"] = "split"
    """What w is moved along: SeFa directions of each block, of all blocks together, or random
    ones; "none": images of w are related among themselves (the paper's single view)."""
    ld_strength: float = 5.0
    """Length of an offset, times N(0, 1)."""

    @property
    def least_batch(self) -> int:
        """Images that a step needs to have an aim."""
        return 2 if self.ld_weight or self.moment_weight else 1

    @property
    def slimming_images(self) -> int:
        """What "slimmed" spends of `images` on learning which channels to keep."""
        return min(self.images // 5, 20_000) if self.synthesis == "slimmed" else 0

    def __post_init__(self):
        _require(isinstance(self.recipe, str) and self.recipe in RECIPES,
                 f"recipe must be one of {', '.join(map(repr, RECIPES))}, not "
                 f"{in_brief(self.recipe)}")
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # the way to finish a frozen dataclass
        super().__post_init__()
        _require(0 < self.keep <= 1, f"keep must lie in (0, 1], not {self.keep}: it is the "
                                     "fraction of channels that stay")
        _require(0 <= self.gan_from < 1, f"gan_from must lie in [0, 1), not {self.gan_from}: it is "
                                         "a fraction of the images; for no discriminator at all "
                                         "set gan_weight to 0")
        _require(self.reuse == 1 or not (self.ld_weight or self.feature_weight
                                         or self.rgb_levels == "all"),
                 "reuse keeps the teacher's images alone, not its features: set reuse to 1, or "
                 'ld_weight and feature_weight to 0 and rgb_levels to "last"')
        _require(self.reuse == 1 or self.rgb_weight or self.perceptual_weight
                 or self.moment_weight,
                 "reuse repeats images of the teacher's, and no loss looks at them: set it to 1, "
                 "or give rgb_weight, perceptual_weight or moment_weight a weight")
        _require(any(getattr(self, name) for name in LOSS_WEIGHTS),
                 f"{', '.join(LOSS_WEIGHTS[:-1])} and {LOSS_WEIGHTS[-1]} are all 0: give one of "
                 "them a weight")
        _require(self.batch >= self.least_batch,
                 "the latent-direction loss relates the images of a batch to one another, the "
                 "distribution matching counts on their spread, and one image has neither: choose "
                 "a batch of at least 2, or set ld_weight and moment_weight to 0")
        _require(not self.moment_weight or self.perceptual != "lpips",
                 'moment_weight compares features, which perceptual="lpips" does not give: choose '
                 'another network, such as "imagenet", or set moment_weight to 0')
        _require(not self.gan_from or any(getattr(self, name) for name in LOSS_WEIGHTS[1:]),
                 f"gan_from={self.gan_from} leaves nothing to learn from until the discriminator "
                 f"begins: set it to 0, or give one of {', '.join(LOSS_WEIGHTS[1:])} a weight")
        _require(self.ld_blocks or not (self.ld_weight or self.feature_weight),
                 "ld_blocks must name at least one block")
        _require(len({*self.ld_blocks}) == len(self.ld_blocks),
                 f"ld_blocks must name each block once, not {in_brief(self.ld_blocks)}")
        _network_or(self, "perceptual", DISTANCES, (".safetensors", "_discriminator"),
                    "a judge or a discriminator (`gapkd convert FILE discriminator.safetensors` "
                    "writes that of a run or of another repository's file)")


def _network_or(config: object, name: str, known: tuple[str, ...],
                endings: str | tuple[str, ...], kinds: str) -> None:
    value = getattr(config, name)
    _require(value in known or value.endswith(endings),
             f"{name} must be {', '.join(map(repr, known))} or the .safetensors file of {kinds}, "
             f"not {in_brief(value)}")


def _check_type(name: str, value: object, hint: Any) -> None:
    if type(None) in get_args(hint):  # X | None: by now the recipe has filled it in
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        allowed = get_args(hint)
        _require(value in allowed,
                 f"{name} must be one of {', '.join(map(repr, allowed))}, not {in_brief(value)}")
        return
    accepted = {int: int, float: (int, float), str: str, bool: bool}.get(hint, tuple)
    right = isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))
    if accepted is tuple and right:
        right = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    kind = "a tuple of whole numbers" if accepted is tuple else KINDS[hint]
    _require(right, f"{name} must be {kind}, not {in_brief(value)}")
    _require(hint is not float or abs(value) < 1e18,
             f"{name} must be a number below 1e18 in magnitude, not {in_brief(value)}")


def in_brief(value: object) -> str:
    """A value of a file in a message: lists that hold one another may have no end."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring = 2, 100
    return brief.repr(value)


def shown(name: object) -> str:
    """A name as a message shows it: on one line and not without end, whatever it is made of."""
    name = str(name)
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= LONGEST else f"{name[:LONGEST // 2]}...{name[-LONGEST // 2:]}"


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def from_dict(cls: type, values: dict[str, Any]):
    """Build a settings dataclass from a plain dict (JSON, notebook parameters), naming an unknown
    field."""
    return cls(**{name: _as_field(cls, name, value) for name, value in values.items()})


def _as_field(cls: type, name: str, value: Any) -> Any:
    """A value as the field of a settings dataclass wants it. ValueError names an unknown field."""
    known = {field.name: field for field in fields(cls)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
        raise ValueError(f"{cls.__name__} has no setting {shown(name)}{hint}")
    kind = get_type_hints(cls)[name]
    while get_args(kind):  # tuple[int, ...]; X | None
        kind = get_args(kind)[0]
    value = as_kind(value, kind)
    if isinstance(known[name].default, tuple) and isinstance(value, (list, int)):
        return tuple(value) if isinstance(value, list) else (value,)
    return value


def read_settings(text: str) -> dict[str, Any]:
    """Settings of a distillation in one line: "kernel: 1, ld_blocks: [1, 2]" -> field -> value; of
    a field that stands there twice, the last value. A second recipe takes the place of the first
    one and of all that was said of RECIPES' fields before it.

    Raises ValueError for a text that is no such line, an unknown field, a value of another kind.
    """
    try:
        entries = read_yaml(f"[{text}]")
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} cannot be read as settings: write name: value, name: value, "
                         "and quote a value with commas or brackets") from error
    hints, found = get_type_hints(DistillConfig), {}
    for entry in entries:
        pairs = entry if isinstance(entry, dict) else {str(entry): None}
        for name, value in pairs.items():
            if name == "recipe" and name in found:
                found = {k: v for k, v in found.items() if k not in RECIPES["paper"]}
            found[name] = _as_field(DistillConfig, name, value)
            _check_type(name, found[name], hints[name])
    return found


class _Written(yaml.SafeLoader):
    """YAML as people write settings: 1e-3 is a number, and 1e5 a whole one; `on` and `no` are
    words, as are the names of a mapping's entries, of which none may stand there twice."""

    yaml_implicit_resolvers: dict = {}

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if key.tag in _MISREAD:
                key.tag = "tag:yaml.org,2002:str"
            if (name := str(key.value)) in seen:
                raise yaml.YAMLError(f"{name} stands there twice, again in line "
                                     f"{key.start_mark.line + 1}: take one of them out, or give "
                                     "it another name")
            seen.add(name)
        return node


_MISREAD = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp", "null")}
"""What YAML takes words for."""


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = loader.construct_yaml_float(node)
    return int(value) if "e" in node.value.lower() and value.is_integer() else value


_FLOAT = r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|nan)"
for _kind, _pattern in (("bool", "true|false"), ("null", "~|null|"), ("merge", "<<"),
                        ("int", r"[-+]?\d[\d_]*"), ("float", _FLOAT)):
    _Written.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}",
                                   re.compile(rf"(?:{_pattern})\Z", re.IGNORECASE), None)
_Written.add_constructor("tag:yaml.org,2002:float", _float)
_Written.add_constructor("tag:yaml.org,2002:int",  # YAML's own takes 010 for 8
                         lambda _, node: int(node.value.replace("_", "")))


def read_yaml(text: str) -> Any:
    """What a table's file or a parameter on the command line says. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, _Written)  # a SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, LookupError, AttributeError, ArithmeticError) as error:  # of constructors
        raise yaml.YAMLError("it holds a value that is not of the kind that it is said to be, or a "
                             "number of thousands of digits: write it as it is meant") from error


def as_kind(value: Any, kind: type) -> Any:
    """A value of a table or a command line as the kind that is asked for, where it is one: 100.0 as
    a whole number, on and off as a switch; of a list, each entry."""
    if isinstance(value, list):  # a list in it may have no end
        return [entry if isinstance(entry, list) else as_kind(entry, kind) for entry in value]
    if kind is bool and str(value).lower() in SWITCHES:
        return SWITCHES[str(value).lower()]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
"""Words for a switch."""


def widths(channels: tuple[int, ...], resolution: int) -> list[int]:
    """One width a block, 4x4 first, from the finest blocks' widths: (64, 32) at 32 px is [64, 64,
    64, 32]."""
    blocks = resolution.bit_length() - 2
    return [channels[0]] * (blocks - len(channels)) + list(channels)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON can hold them (tuples become lists)."""
    return _plain(asdict(config))


OF_THE_DAY = ("out", "resume", "progress", "device", "log_every", "grid_every",
              "checkpoint_every", "tensorboard")
"""Settings that say nothing about the weights."""
FILES = ("data", "teacher", "discriminator", "start_from", "perceptual", "fid_features", "judge")
"""Settings that may name a file."""


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what belongs to one machine or one day; files by their names alone."""
    kept = {name: value for name, value in settings.items() if name not in OF_THE_DAY}
    for name in FILES:
        if isinstance(kept.get(name), str):
            kept[name] = PurePath(kept[name].replace("\\", "/")).name  # of a path of Windows' too
    return kept


def command_line(command: str, cls: type, values: dict[str, Any]) -> str:
    """The command that gives a settings dataclass these values: whatever differs from today's
    defaults, and from those of the recipe."""
    words, values = [], _plain(values)
    plain, recipe = to_dict(cls()), values.get("recipe")
    if cls is DistillConfig:
        plain |= RECIPES.get(recipe, {})
    for field, default in plain.items():
        value, option = values.get(field, default), field.replace("_", "-")
        if value == default:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *(value if isinstance(value, list) else [value])]
    return " ".join([command, *(shlex.quote(str(word)) for word in words)])


def as_word(path: object) -> str:
    """A path, or a network's name, as one word of a command that a message advises."""
    path = str(path).replace(os.sep, "/")  # of Windows' separator shells make other things
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

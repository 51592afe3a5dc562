"""gapkd: distil a big StyleGAN into a small one, and see why it works.

The public names; everything else is reached through its room (gapkd.distillation, ...).
"""

from importlib import import_module

try:
    from gapkd.settings import DistillConfig, TrainConfig
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gapkd needs {error.name}, which this Python has not: choose the Python (in a notebook: "
        "the kernel) of the environment in which gapkd is installed, such as the clone's .venv",
        name=error.name) from None

__version__ = "0.1.0"

_ROOMS = {
    "distillation.directions": ("draw_offsets", "sefa_directions"),
    "distillation.distiller": ("Distiller",),
    "distillation.losses": ("latent_direction_loss",),
    "distillation.students": ("make_student",),
    "files.checkpoints": (
        "CheckpointError", "load_discriminator", "load_generator", "save_network",
    ),
    "metrics.cost": ("macs", "parameters"),
    "networks.mapping": ("mix_styles",),
    "networks.stylegan2": ("Discriminator", "Generator", "config_f"),
    "sharing.hub": ("push_to_hub", "save_pretrained"),
    "training.loop": (
        "OutOfMemory", "RunResult", "TrainingDiverged", "TrainingHalted", "TrainingInterrupted",
        "distill", "train_gan",
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = ["DistillConfig", "TrainConfig", *_HOME]


def __getattr__(name: str):
    """Fetch a public name from its room when it is first used, so that --help is quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'gapkd' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"gapkd.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

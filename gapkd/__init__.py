"""gapkd: distil a big StyleGAN into a small one, and see why it works.

The public names; everything else is reached through its room (gapkd.distillation, gapkd.metrics, ...).
"""

from gapkd.distillation.directions import draw_offsets, sefa_directions
from gapkd.distillation.losses import latent_direction_loss
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import CheckpointError, load_discriminator, load_generator, save_network
from gapkd.metrics.cost import macs, parameters
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f, mix_styles
from gapkd.settings import DistillConfig, TrainConfig
from gapkd.sharing.hub import save_pretrained
from gapkd.training.loop import RunResult, TrainingDiverged, TrainingInterrupted, distill, train_gan

__all__ = [
    "CheckpointError", "Discriminator", "DistillConfig", "Generator", "RunResult", "TrainConfig", "TrainingDiverged",
    "TrainingInterrupted", "config_f", "distill", "draw_offsets", "latent_direction_loss", "load_discriminator",
    "load_generator",
    "macs", "make_student", "mix_styles", "parameters", "save_network", "save_pretrained", "sefa_directions",
    "train_gan",
]
__version__ = "0.1.0"

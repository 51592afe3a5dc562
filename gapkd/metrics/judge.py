"""Old names of gapkd.metrics.attributes."""

from gapkd.metrics.attributes import AttributeConfig as JudgeConfig  # noqa: F401
from gapkd.metrics.attributes import train_attribute_network as train_judge  # noqa: F401

"""From the data section of a config to encoded rows with their splits: the first half of every training run."""

from mmjax.config import Config
from mmjax.data.cache import Tell
from mmjax.data.prepare_table import prepare_table
from mmjax.data.prepared import Prepared as Prepared


def prepare(config: Config, tell: Tell | None = None) -> Prepared:
    """Return the Prepared rows of a config. Raises DataError for anything wrong with them.

    `tell` hears at once of what takes long: how far a file is read or images are decoded, and waiting for another
    process.
    """
    if config.data.tabular is not None:
        return prepare_table(config, config.data.tabular, tell)
    assert config.data.image is not None, "the config names one modality"
    from mmjax.data.prepare_images import prepare_images  # here: tables need no Pillow

    return prepare_images(config, config.data.image, tell)

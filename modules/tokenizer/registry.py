"""The kinds of tokenizers, by their names in train.tokenizer: the one list that all others ask.

A new kind is a config, an ItemTokenizer (modules.tokenizer.base; modules.tokenizer.autoencoder if it trains a network) and an entry here.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, NamedTuple

from data.schemas import UserError
from modules.rqvae import RqVae, RqVaeConfig
from modules.tokenizer.autoencoder import Autoencoder
from modules.tokenizer.base import ItemTokenizer, TokenizerConfig
from modules.tokenizer.centroids import CentroidConfig, ProductConfig, ProductQuantizer, ResidualKmeans, RotatedProductQuantizer
from modules.tokenizer.controls import HyperplaneConfig, RandomCodes, RandomHyperplanes
from modules.tokenizer.direct import DirectConfig
from modules.tokenizer.fsq import Fsq, FsqConfig

TokenizerName = Literal["rqvae", "fsq", "rqkmeans", "pq", "opq", "lsh", "random"]
"""What train.tokenizer can be: the keys of KINDS."""

TRAINING = (
    "iterations",
    "batch_size",
    "gradient_accumulate_every",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "autoencoder_steps",
    "pretrained_rqvae_path",
)
"""Options that every training of a network reads."""


class Kind(NamedTuple):
    """A kind of tokenizer."""

    config: type[TokenizerConfig]
    tokenizer: type[ItemTokenizer]  # made of such a config
    also_reads: tuple[str, ...] = ()  # options of train_rqvae.py beside those that fill the config and, of a network, TRAINING

    @property
    def trains(self) -> bool:
        """Does it train a network?"""
        return issubclass(self.tokenizer, Autoencoder)

    @property
    def options(self) -> frozenset[str]:
        """The options of train_rqvae.py that decide its codes, beside the data's."""
        return frozenset({*map(option_of, _field_names(self.config)), *self.also_reads, *(TRAINING if self.trains else ())})


KINDS: dict[str, Kind] = {
    "rqvae": Kind(RqVaeConfig, RqVae, ("use_kmeans_init", "kmeans_balanced", "gumbel_temperature_start", "gumbel_temperature_end")),
    "fsq": Kind(FsqConfig, Fsq),
    "rqkmeans": Kind(CentroidConfig, ResidualKmeans),
    "pq": Kind(ProductConfig, ProductQuantizer),
    "opq": Kind(ProductConfig, RotatedProductQuantizer),
    "lsh": Kind(HyperplaneConfig, RandomHyperplanes),
    "random": Kind(DirectConfig, RandomCodes),
}

RENAMED = {
    "num_levels": "vae_n_layers",
    "mode": "vae_codebook_mode",
    "commitment_weight": "commitment_weight",
    "pca_dim": "pca_dim",
    "balanced": "kmeans_balanced",
}
"""Fields of configs, and the options that fill them where these are not called vae_FIELD."""


def kind_of(name: str) -> Kind:
    """The kind of that name.

    Raises:
        UserError: there is none.
    """
    if name not in KINDS:
        raise UserError(f"train.tokenizer is {name!r}; it can be one of {', '.join(map(repr, KINDS))}")
    return KINDS[name]


def option_of(field: str) -> str:
    """The option of train_rqvae.py that fills a field of a config."""
    return RENAMED.get(field, f"vae_{field}")


def make_config(settings: Mapping[str, object]) -> TokenizerConfig:
    """The config that the options of train_rqvae.py describe.

    Raises:
        UserError: a shape that cannot be.
    """
    config = kind_of(str(settings["tokenizer"])).config
    return config(**{field: settings[option_of(field)] for field in _field_names(config)})  # type: ignore[arg-type]  # checked by the script


def make_tokenizer(name: str, config: TokenizerConfig) -> ItemTokenizer:
    """A tokenizer of that name, not yet fitted."""
    return kind_of(name).tokenizer(config)


def settings_read(settings: Mapping[str, object]) -> dict[str, object]:
    """``settings`` without the options of other kinds: what may be changed to change these codes."""
    own = kind_of(str(settings["tokenizer"])).options
    others = {option for kind in KINDS.values() for option in kind.options} - own
    return {name: value for name, value in settings.items() if name not in others}


def _field_names(config: type[TokenizerConfig]) -> list[str]:
    return [field.name for field in fields(config)]

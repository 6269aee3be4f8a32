"""Every option of train_rqvae.py that train_decoder.py does not have."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from modules.quantize import QuantizeForwardMode
from modules.runtime.config.declaration import option
from modules.runtime.config.types import Count, Natural, NonNegative, Positive, RunPath, Share, Text
from modules.runtime.options.groups import DataOptions, Distance, InputNorm, RunOptions, hub_rule, refused
from modules.tokenizer.base import TokenizerConfig
from modules.tokenizer.registry import TokenizerName, kind_of, make_config


@dataclass(frozen=True, kw_only=True)
class RqVaeOptions(RunOptions, DataOptions):
    """The options of train_rqvae.py."""

    item_embeddings: Text | None = option(
        None, ".npy file [items, width], float16 or float32, row i = item i; replaces the text encoder.", path=True
    )
    text_model: Text = option("sentence-transformers/sentence-t5-base", "sentence-transformers model, a hub name or a local directory.")
    collaborative_weight: NonNegative = option(
        0.0,
        "length of the co-occurrence vectors (of the training histories alone) that follow each item's embedding, itself centred and of "
        "length 1 then; 0 leaves them out.",
    )
    collaborative_dim: Count = option(64, "their width; vae_input_dim counts it too.")
    save_dir_root: Text = option("out/rqvae/amazon", "the run directory is save_dir_root/dataset_split.", may_differ=True)
    tokenizer: TokenizerName = option(
        "rqvae",
        "rqvae; fsq (a network too, its latent rounded to a grid of at most vae_codebook_size cells a code); or without a network: "
        "rqkmeans (residual k-means), pq (product quantization), opq (behind a learned rotation), lsh (random hyperplanes), random (codes "
        "that say nothing). Of the parameters of the RQ-VAE all use vae_input_dim, vae_input_norm, vae_codebook_size and vae_n_layers, fsq "
        "vae_hidden_dims and vae_n_cat_feats too.",
    )
    collision_policy: Literal["extra_code", "reassign", "none"] = option(
        "extra_code",
        "items that share all codes get one more code (extra_code), move to free codes nearby (reassign), or stay together and are listed "
        "by popularity (none).",
    )
    pca_dim: Natural = option(0, "leading principal components that a tokenizer without a network quantizes; 0 takes the whole embedding.")
    pretrained_rqvae_path: RunPath | None = option(
        None, "run directory, or hub name, whose weights to start from, k-means included.", path=True
    )
    iterations: Count = option(5000, "training steps.")
    batch_size: Count = option(1024, "items a batch, drawn without replacement within a pass.")
    learning_rate: Positive = option(1e-3, "peak of AdamW's rate; falls to zero along a cosine.")
    weight_decay: NonNegative = option(0.01, "AdamW's, on all weights.")
    warmup_steps: Natural = option(100, "steps over which the learning rate rises.")
    max_grad_norm: NonNegative = option(0.0, "gradients are clipped to this norm; 0 leaves them.")
    commitment_weight: NonNegative = option(0.25, "beta of the commitment loss.")
    use_kmeans_init: bool = option(
        True, "start each codebook at the k-means centroids of the whole catalogue's residuals; False: at those of random items."
    )
    kmeans_balanced: bool = option(
        False, "no centroid gets more than its share of the items, rounded up; of a tokenizer without a network no code does."
    )
    autoencoder_steps: Natural = option(
        300, "first steps, without the quantizer, after which the codebooks start on latents that stay put; part of iterations."
    )
    vae_input_dim: Count = option(768, "width of the item embeddings, collaborative vectors included; checked against them.")
    vae_embed_dim: Count = option(32, "width of the latent and of the codewords.")
    vae_hidden_dims: tuple[Count, ...] = option((512, 256, 128), "hidden widths of the encoder; the decoder mirrors them.")
    vae_codebook_size: Count | tuple[Count, ...] = option(
        256, "codes a level; a list such as [512, 256, 128] gives every level its own number."
    )
    vae_n_layers: Count = option(3, "levels of residual quantization.")
    vae_codebook_mode: QuantizeForwardMode = option(
        QuantizeForwardMode.STE, "gradient estimator: GUMBEL_SOFTMAX, STE or ROTATION_TRICK (set vae_codebook_normalize with it)."
    )
    vae_distance: Distance = option("l2", "what the nearest codeword is: l2 (by squared distance) or cosine (by angle).")
    vae_sim_vq: bool = option(False, "freeze the codebooks and learn one linear map behind each (SimVQ).")
    vae_codebook_normalize: bool = option(False, "latents and the first level's codewords have length 1; deeper codewords keep their own.")
    vae_dead_code_steps: Natural = option(
        50,
        "a code that no item used for so many steps is moved to an input with a large error; never in the last 10 % of the steps. 0: none "
        "is.",
    )
    vae_ema_decay: Share = option(
        0.0, "codewords are moving averages of their residuals, with this decay a step, as 0.99; 0: they learn by gradient."
    )
    vae_sinkhorn: Literal["none", "training", "last_level"] = option(
        "none",
        "balance codes by Sinkhorn's algorithm: none, training (every level, training batches only) or last_level (there in training, and "
        "for the items of the catalogue that would collide).",
    )
    vae_sinkhorn_epsilon: Positive = option(0.02, "its softness, in units of the mean squared distance between residuals and codewords.")
    vae_n_cat_feats: Natural = option(
        0, "features at the end of the input that are 0 or 1: not normalised, reconstructed by cross-entropy."
    )
    vae_input_norm: InputNorm = option(
        "center_unit", "center_unit (subtract the mean, then unit rows), standardize (every dimension to mean 0, deviation 1) or none."
    )
    gumbel_temperature_start: Positive = option(
        0.5,
        "first temperature of GUMBEL_SOFTMAX, in units of the mean squared distance (cosine: 2 - 2 cos) to the nearest codeword.",
    )
    gumbel_temperature_end: Positive = option(0.02, "its last; reached after 80 % of the steps with the quantizer.")
    do_eval: bool = option(False, "hold out 5 % of the items and report their reconstruction; the codes are then trained on the rest.")
    eval_every: Count = option(
        200,
        "steps between looks at usage, perplexity, collisions and reconstruction of the whole catalogue; one more follows k-means. The "
        "weights of the look with the lowest reconstruction loss are kept, of those without a collapsed level if there are any; with "
        "do_eval the loss of the held-out items decides.",
    )
    allow_collapse: bool = option(False, "end without an error although a level uses less than 5 % of its codes.", may_differ=True)
    push_vae_to_hf: bool = option(False, "upload the finished run to the Hugging Face Hub.", may_differ=True)
    vae_hf_model_name: Text | None = option(None, "its name there, owner/name.", may_differ=True)

    @cached_property
    def model(self) -> TokenizerConfig:
        """The tokenizer that these options describe."""
        return make_config(self.settings())

    def rules(self) -> Iterator[str]:
        """See Options."""
        yield from super().rules()
        yield from refused(lambda: self.model)
        yield from hub_rule(self.push_vae_to_hf, "vae_hf_model_name", self.vae_hf_model_name)
        steps, iterations = self.autoencoder_steps, self.iterations
        if self.pretrained_rqvae_path is None and steps >= iterations:
            yield (
                f"train.autoencoder_steps = {steps} leaves no step of train.iterations = {iterations} for the quantizer: lower the one or "
                "raise the other"
            )
        start, end = self.gumbel_temperature_start, self.gumbel_temperature_end
        if start < end:
            above = f"train.gumbel_temperature_end = {end} is above train.gumbel_temperature_start = {start}"
            yield f"{above}; temperatures fall: exchange them"
        kind = kind_of(self.tokenizer)
        if self.pca_dim and "pca_dim" not in kind.options:
            yield f"train.pca_dim = {self.pca_dim} is for tokenizers without a network; set it to 0, or train.tokenizer to 'rqkmeans'"
        if self.pretrained_rqvae_path is not None and not kind.trains:
            yield f"train.pretrained_rqvae_path starts an RQ-VAE and train.tokenizer is {self.tokenizer!r}; remove one of them"
        if self.collaborative_weight and self.vae_n_cat_feats:
            yield (
                "train.collaborative_weight appends features to those at the end that train.vae_n_cat_feats calls categorical; set one to 0"
            )

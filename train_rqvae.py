"""Stage 1: item text embeddings -> RQ-VAE -> semantic IDs.

    python train_rqvae.py configs/rqvae_amazon.gin                          # Amazon Beauty
    python train_rqvae.py configs/rqvae_amazon.gin dataset_split=toys       # any parameter can be overridden: name=value
    python train_rqvae.py configs/rqvae_amazon.gin item_embeddings=my.npy   # your own [items, width] vectors instead of a text encoder

Loads the catalogue, embeds its texts (once, cached), trains an RQ-VAE on all items - or fits one of the tokenizers without a network, by
train.tokenizer - and writes a run directory under train.save_dir_root
with the weights, the semantic IDs of all items (tokenizer.safetensors, tokenizer.json), config.gin, log.jsonl and metrics.json. Stage 2
reads that directory. The same command again goes on where an interrupted run stopped. --print-config prints the resolved config, --help
every parameter.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread that spins slows every busy process beside it on a CPU

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from data.cooccurrence import append_collaborative
from data.interactions import Corpus, leave_one_out, split_hash, statistics
from data.processed import ItemData, RecDataset, data_config, load_corpus, load_items
from data.schemas import UserError
from distributions.gumbel import annealed_temperature
from evaluate.codebook import CodebookHealth, codebook_health
from evaluate.doctor import collapse_warnings, diagnose, few_items_warning
from evaluate.plots import loss_plot
from evaluate.quality import quality_values
from init.kmeans import Shard
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.appraise import appraise, mean_reconstruction, reconstruction_sum
from modules.runtime.checkpoint import WEIGHTS, load_weights, save_weights
from modules.runtime.coders import describe_stage_one, read_config
from modules.runtime.config import check_settings, run_script
from modules.runtime.device import Placement, memory_advice, on_device, place, set_seed
from modules.runtime.hub import find_snapshot, push
from modules.runtime.ranks import Ranks
from modules.runtime.rows import index_batches, split_rows, where_it_fits
from modules.runtime.rules import shared_mistakes
from modules.runtime.run import Run
from modules.runtime.trainer import LossShare, Plan, Trainer
from modules.runtime.values import Count, Device, FolderName, Natural, NonNegative, Positive, RunPath, Seed, Share, Text
from modules.scheduler import learning_rate_factor
from modules.tokenizer.direct import DirectConfig, DirectTokenizer
from modules.tokenizer.kinds import direct_tokenizer
from modules.tokenizer.semids import SemanticIdTokenizer
from modules.upkeep import Upkeep


class Recipe(NamedTuple):
    """How the RQ-VAE is trained."""

    iterations: int
    batch_size: int  # over all processes
    accumulate: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    max_grad_norm: float
    temperature_start: float
    temperature_end: float
    use_kmeans_init: bool
    kmeans_balanced: bool
    autoencoder_steps: int
    log_every: int
    save_every: int
    keep: int
    eval_every: int
    seed: int


def train(
    dataset: RecDataset = RecDataset.AMAZON,
    dataset_folder: Text = "dataset/amazon",
    dataset_split: Text = "beauty",
    force_dataset_process: bool = False,
    min_rating: NonNegative = 0.0,
    k_core: Natural = 0,
    max_history: Natural | None = None,
    cold_items: bool | None = None,
    columns: tuple[Text, ...] = (),
    item_embeddings: Text | None = None,
    text_model: Text = "sentence-transformers/sentence-t5-base",
    collaborative_weight: NonNegative = 0.0,
    collaborative_dim: Count = 64,
    save_dir_root: Text = "out/rqvae/amazon",
    tokenizer: Literal["rqvae", "rqkmeans", "pq", "opq", "lsh", "random"] = "rqvae",
    collision_policy: Literal["extra_code", "reassign", "none"] = "extra_code",
    pca_dim: Natural = 0,
    pretrained_rqvae_path: RunPath | None = None,
    run_name: FolderName | None = None,
    resume: bool = True,
    iterations: Count = 5000,
    batch_size: Count = 1024,
    gradient_accumulate_every: Count = 1,
    split_batches: bool = True,
    learning_rate: Positive = 1e-3,
    weight_decay: NonNegative = 0.01,
    warmup_steps: Natural = 100,
    max_grad_norm: NonNegative = 0.0,
    commitment_weight: NonNegative = 0.25,
    use_kmeans_init: bool = True,
    kmeans_balanced: bool = False,
    autoencoder_steps: Natural = 300,
    vae_input_dim: Count = 768,
    vae_embed_dim: Count = 32,
    vae_hidden_dims: tuple[Count, ...] = (512, 256, 128),
    vae_codebook_size: Count | tuple[Count, ...] = 256,
    vae_n_layers: Count = 3,
    vae_codebook_mode: QuantizeForwardMode = QuantizeForwardMode.STE,
    vae_distance: Literal["l2", "cosine"] = "l2",
    vae_sim_vq: bool = False,
    vae_codebook_normalize: bool = False,
    vae_dead_code_steps: Natural = 50,
    vae_ema_decay: Share = 0.0,
    vae_sinkhorn: Literal["none", "training", "last_level"] = "none",
    vae_sinkhorn_epsilon: Positive = 0.02,
    vae_n_cat_feats: Natural = 0,
    vae_input_norm: Literal["center_unit", "standardize", "none"] = "center_unit",
    gumbel_temperature_start: Positive = 0.5,
    gumbel_temperature_end: Positive = 0.02,
    do_eval: bool = False,
    log_every: Count = 100,
    eval_every: Count = 200,
    save_model_every: Count = 1000,
    keep_checkpoints: Count = 2,
    allow_collapse: bool = False,
    wandb_logging: bool = False,
    wandb_project: Text = "tiger",
    push_vae_to_hf: bool = False,
    vae_hf_model_name: Text | None = None,
    amp: bool = True,
    mixed_precision_type: Literal["bf16", "fp16", "no"] = "bf16",
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Trains an RQ-VAE and writes the tokenizer.

    Args:
        dataset: the source: AMAZON (2014 5-core as P5 packed it), AMAZON_2014 and AMAZON_2023 (the raw files of any category), ML_1M,
            ML_32M (and what has its layout), CUSTOM (your own files) or SYNTHETIC.
        dataset_folder: where raw files lie or are downloaded to (raw/) and caches are kept (processed/).
        dataset_split: beauty, sports or toys for AMAZON; a category for its raw files; ml-1m; ml-32m, ml-25m or ml-latest-small for
            ML_32M; the files' name for CUSTOM. The run directory is named after it.
        force_dataset_process: read the raw files again although a cache exists.
        min_rating: interactions rated lower are dropped; 0 keeps all.
        k_core: users and items with fewer interactions are dropped until all have so many; 0 keeps all.
        max_history: the most recent interactions of a user that are kept; 0 keeps all, None 200 for MovieLens and all elsewhere.
        cold_items: items without interactions stay in the catalogue; None: yes, but not for Amazon's raw files, which list whole shops.
        columns: what your own files call things, such as ["user=uid", "item=sku", "text=brand"]; see python -m data.custom --help.
        item_embeddings: .npy file [items, width], float16 or float32, row i = item i; replaces the text encoder.
        text_model: sentence-transformers model, a hub name or a local directory.
        collaborative_weight: length of the co-occurrence vectors (of the training histories alone) that follow each item's embedding,
            itself centred and of length 1 then; 0 leaves them out.
        collaborative_dim: their width; vae_input_dim counts it too.
        save_dir_root: the run directory is save_dir_root/dataset_split.
        tokenizer: rqvae, or without a network: rqkmeans (residual k-means), pq (product quantization), opq (behind a learned rotation), lsh
            (random hyperplanes), random (codes that say nothing). Of the parameters of the RQ-VAE these use vae_input_dim, vae_input_norm,
            vae_codebook_size and vae_n_layers.
        collision_policy: items that share all codes get one more code (extra_code), move to free codes nearby (reassign), or stay together
            and are listed by popularity (none).
        pca_dim: leading principal components that a tokenizer without a network quantizes; 0 takes the whole embedding.
        pretrained_rqvae_path: run directory, or hub name, whose weights to start from, k-means included.
        run_name: the run directory's name in save_dir_root instead of the split's.
        resume: go on where this run directory stopped; False starts anew in a directory beside it.
        iterations: training steps.
        batch_size: items a batch, drawn without replacement within a pass.
        gradient_accumulate_every: batches a step.
        split_batches: batch_size is that of all processes together, each of which takes its share; False makes it each one's own.
        learning_rate: peak of AdamW's rate; falls to zero along a cosine.
        weight_decay: AdamW's, on all weights.
        warmup_steps: steps over which the learning rate rises.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them.
        commitment_weight: beta of the commitment loss.
        use_kmeans_init: start each codebook at the k-means centroids of the whole catalogue's residuals; False: at those of random items.
        kmeans_balanced: no centroid gets more than its share of the items, rounded up; of a tokenizer without a network no code does.
        autoencoder_steps: first steps, without the quantizer, after which the codebooks start on latents that stay put; part of iterations.
        vae_input_dim: width of the item embeddings, collaborative vectors included; checked against them.
        vae_embed_dim: width of the latent and of the codewords.
        vae_hidden_dims: hidden widths of the encoder; the decoder mirrors them.
        vae_codebook_size: codes a level; a list such as [512, 256, 128] gives every level its own number.
        vae_n_layers: levels of residual quantization.
        vae_codebook_mode: gradient estimator: GUMBEL_SOFTMAX, STE or ROTATION_TRICK (set vae_codebook_normalize with it).
        vae_distance: what the nearest codeword is: l2 (by squared distance) or cosine (by angle).
        vae_sim_vq: freeze the codebooks and learn one linear map behind each (SimVQ).
        vae_codebook_normalize: latents and the first level's codewords have length 1; deeper codewords keep their own.
        vae_dead_code_steps: a code that no item used for so many steps is moved to an input with a large error; never in the last 10 % of
            the steps. 0: none is.
        vae_ema_decay: codewords are moving averages of their residuals, with this decay a step, as 0.99; 0: they learn by gradient.
        vae_sinkhorn: balance codes by Sinkhorn's algorithm: none, training (every level, training batches only) or last_level (there in
            training, and for the items of the catalogue that would collide).
        vae_sinkhorn_epsilon: its softness, in units of the mean squared distance between residuals and codewords.
        vae_n_cat_feats: features at the end of the input that are 0 or 1: not normalised, reconstructed by cross-entropy.
        vae_input_norm: center_unit (subtract the mean, then unit rows), standardize (every dimension to mean 0, deviation 1) or none.
        gumbel_temperature_start: first temperature of GUMBEL_SOFTMAX, in units of the mean squared distance (cosine: 2 - 2 cos) to the
            nearest codeword.
        gumbel_temperature_end: its last; reached after 80 % of the steps with the quantizer.
        do_eval: hold out 5 % of the items and report their reconstruction; the codes are then trained on the rest.
        log_every: steps between lines of log.jsonl.
        eval_every: steps between looks at usage, perplexity, collisions and reconstruction of the whole catalogue; one more follows
            k-means. The weights of the look with the lowest reconstruction loss are kept, of those without a collapsed level if there
            are any; with do_eval the loss of the held-out items decides.
        save_model_every: steps between checkpoints.
        keep_checkpoints: how many stay, the newest ones.
        allow_collapse: end without an error although a level uses less than 5 % of its codes.
        wandb_logging: show the run's figures on Weights & Biases too; offline where there is no key.
        wandb_project: its project there.
        push_vae_to_hf: upload the finished run to the Hugging Face Hub.
        vae_hf_model_name: its name there, owner/name.
        amp: mixed precision where the device has instructions for it; False is fp32 on every machine.
        mixed_precision_type: bf16 (where the device has instructions for it), fp16 (CUDA only, with loss scaling) or no.
        device: auto, cuda, mps or cpu.
        seed: fixes everything random.
    """
    settings = dict(locals())
    check_settings(train, settings, check)
    source = data_config(settings)
    config = shape(settings)
    ranks = Ranks(device)
    recipe = Recipe(
        iterations,
        batch_size if split_batches else batch_size * ranks.count,
        gradient_accumulate_every,
        learning_rate,
        weight_decay,
        warmup_steps,
        max_grad_norm,
        gumbel_temperature_start,
        gumbel_temperature_end,
        use_kmeans_init,
        kmeans_balanced,
        autoencoder_steps if pretrained_rqvae_path is None else 0,
        log_every,
        save_model_every,
        keep_checkpoints,
        eval_every,
        seed,
    )
    placement = place(device, amp, mixed_precision_type, ranks)
    pretrained = None if pretrained_rqvae_path is None else find_snapshot(pretrained_rqvae_path, dataset_split, "rqvae")
    if pretrained is not None and "direct" in read_config(pretrained):
        kind = read_config(pretrained)["direct"]["kind"]
        raise UserError(f"{pretrained} is {kind!r}, not an RQ-VAE to start from; point train.pretrained_rqvae_path at one or remove it")
    with Run(save_dir_root, dataset_split, settings, ranks) as run:
        if run.finished:
            finished = (run.folder / "metrics.json").read_text()
            run.say(f"{run.folder} is finished: {finished}\ntrain.resume = False trains anew beside it")
            if push_vae_to_hf and ranks.main:
                run.say(f"pushed   {push(run.folder, str(vae_hf_model_name))}")
            return
        with ranks.main_first():
            corpus = load_corpus(source)
            items = load_items(source, corpus, item_embeddings, text_model, placement.device)
            check_width(items.embeddings, vae_input_dim, collaborative_dim if collaborative_weight else 0)
            if collaborative_weight:
                items = append_collaborative(items, corpus.histories, collaborative_weight, collaborative_dim)
        describe_stage_one(run, config, items)
        rows = split_rows(len(items.keys), do_eval, seed)
        training = items.embeddings if rows.training is None else items.embeddings[rows.training]
        held_out = None if rows.held_out is None else items.embeddings[rows.held_out]
        set_seed(seed)
        described = {"split": split_hash(corpus.histories), **statistics(corpus)._asdict()}
        codes = " + ".join(map(str, config.codebook_sizes))
        run.say(f"device   {placement.why}{f', {ranks.count} processes' if ranks.count > 1 else ''}")
        run.say(f"data     {statistics(corpus).describe()}; split {described['split']}")
        behind = f" and {collaborative_dim} collaborative features of weight {collaborative_weight:g}" if collaborative_weight else ""
        run.say(f"items    {len(items.keys):,} x {items.embeddings.shape[1]} from {item_embeddings or text_model}{behind}")
        run.track(wandb_logging, wandb_project)
        if (few := few_items_warning(len(items.keys), config.codebook_sizes)) is not None:
            run.say(f"warning: {few}")
        coder: RqVae | DirectTokenizer
        if isinstance(config, RqVaeConfig):
            coder = RqVae(config).to(placement.device)
            coder.fit_normalizer(training)
            training = where_it_fits(training, placement.device)
            if pretrained is not None:
                load_weights(coder, pretrained / WEIGHTS)
            parameters, step_size = sum(p.numel() for p in coder.parameters()), recipe.batch_size * recipe.accumulate
            run.say(f"model    {parameters:,} parameters; {codes} codes of width {vae_embed_dim}")
            passes = f"{iterations * step_size / len(training):.0f} passes"
            run.say(f"training {iterations:,} steps of {step_size} items ({passes}), {vae_codebook_mode.name}")
            if vae_codebook_mode == QuantizeForwardMode.ROTATION_TRICK and not vae_codebook_normalize:
                run.say(
                    "warning: ROTATION_TRICK lets latents shrink until codes die; train.vae_codebook_normalize = True keeps their length"
                )
            run.say(f"run      {run.describe()}")
            seconds = fit(coder, training, held_out, recipe, placement, ranks, run)
            ranks.wait()
            load_weights(coder, run.folder / WEIGHTS)
        else:
            coder = direct_tokenizer(config).to(placement.device)
            run.say(f"model    {config.kind} of {config.width} dimensions, {codes} codes, no network")
            run.say(f"run      {run.describe()}")
            start = time.perf_counter()
            coder.fit(training, seed, Shard(ranks.index, ranks.count, ranks.total))
            seconds = time.perf_counter() - start
        if ranks.main:
            with memory_advice("train.vae_hidden_dims, or give the process more"):
                finish(coder, items, rows.held_out, run, seconds, corpus, described)
            if push_vae_to_hf:
                run.say(f"pushed   {push(run.folder, str(vae_hf_model_name))}")
            run.say(f"next     {run.stage_two_command()}")


SHAPE = {
    "vae_input_dim": "input_dim",
    "vae_embed_dim": "embed_dim",
    "vae_hidden_dims": "hidden_dims",
    "vae_codebook_size": "codebook_size",
    "vae_n_layers": "num_levels",
    "vae_codebook_mode": "mode",
    "commitment_weight": "commitment_weight",
    "vae_input_norm": "input_norm",
    "vae_distance": "distance",
    "vae_sim_vq": "sim_vq",
    "vae_codebook_normalize": "codebook_normalize",
    "vae_n_cat_feats": "n_cat_feats",
    "vae_dead_code_steps": "dead_code_steps",
    "vae_ema_decay": "ema_decay",
    "vae_sinkhorn": "sinkhorn",
    "vae_sinkhorn_epsilon": "sinkhorn_epsilon",
}
"""Parameters, and the fields of RqVaeConfig that they fill."""


DIRECT_SHAPE = {
    "tokenizer": "kind",
    "vae_input_dim": "input_dim",
    "vae_codebook_size": "codebook_size",
    "vae_n_layers": "num_levels",
    "vae_input_norm": "input_norm",
    "pca_dim": "pca_dim",
    "kmeans_balanced": "balanced",
}
"""The same for DirectConfig."""


def shape(settings: Mapping[str, object]) -> RqVaeConfig | DirectConfig:
    """The tokenizer that the parameters describe."""
    if settings["tokenizer"] == "rqvae":
        return RqVaeConfig(**{field: settings[name] for name, field in SHAPE.items()})
    return DirectConfig(**{field: settings[name] for name, field in DIRECT_SHAPE.items()})


def check(settings: Mapping[str, object]) -> Iterator[str]:
    """A sentence for every rule between parameters that does not hold; what each takes for itself stands in the signature."""
    steps, iterations = settings["autoencoder_steps"], settings["iterations"]
    if settings["pretrained_rqvae_path"] is None and steps >= iterations:
        yield (
            f"train.autoencoder_steps = {steps} leaves no step of train.iterations = {iterations} for the quantizer: lower the one or "
            "raise the other"
        )
    start, end = settings["gumbel_temperature_start"], settings["gumbel_temperature_end"]
    if start < end:
        yield f"train.gumbel_temperature_end = {end} is above train.gumbel_temperature_start = {start}; temperatures fall: exchange them"
    if settings["tokenizer"] == "rqvae" and settings["pca_dim"]:
        yield f"train.pca_dim = {settings['pca_dim']} is for tokenizers without a network; set it to 0, or train.tokenizer to 'rqkmeans'"
    if settings["tokenizer"] != "rqvae" and settings["pretrained_rqvae_path"] is not None:
        yield f"train.pretrained_rqvae_path starts an RQ-VAE and train.tokenizer is {settings['tokenizer']!r}; remove one of them"
    if settings["collaborative_weight"] and settings["vae_n_cat_feats"]:
        yield "train.collaborative_weight appends features to those at the end that train.vae_n_cat_feats calls categorical; set one to 0"
    yield from shared_mistakes(settings, "vae", shape)


def check_width(embeddings: Tensor, expected: int, appended: int) -> None:
    """Refuses embeddings that, with ``appended`` collaborative features, have another width than the config says."""
    found = embeddings.shape[1] + appended
    if found != expected:
        what = f"{found} wide, of which train.collaborative_dim = {appended}" if appended else f"{found} wide"
        raise UserError(
            f"train.vae_input_dim is {expected} but the item embeddings are {what}; set train.vae_input_dim = {found} or change them"
        )


class Objective(nn.Module):
    """The loss of a step, with the quantizer or, before the codebooks start, without; one module, as several processes need it.

    Its parts are reconstruction, codebook and commitment loss and the residual norm behind each level.
    """

    def __init__(self, model: RqVae) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor, temperature: float | None) -> LossShare:
        """``temperature`` of the Gumbel-softmax; None leaves the quantizer out."""
        levels = self.model.config.num_levels
        if temperature is None:
            loss = self.model.autoencoding_loss(batch)
            return LossShare(loss, len(batch), torch.cat([loss.detach().reshape(1), loss.new_zeros(2 + levels)]))
        output = self.model(batch, temperature)
        losses = torch.stack([output.reconstruction_loss, output.codebook_loss, output.commitment_loss])
        return LossShare(output.loss, len(batch), torch.cat([losses.detach(), output.residual_norms]))


def fit(model: RqVae, items: Tensor, held_out: Tensor | None, recipe: Recipe, placement: Placement, ranks: Ranks, run: Run) -> float:
    """Trains the model, from its last checkpoint if there is one; leaves the best weights in the run and returns seconds of training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    shard, size = Shard(ranks.index, ranks.count, ranks.total), min(recipe.batch_size, len(items))
    upkeep = Upkeep(model, optimizer, recipe.autoencoder_steps, recipe.iterations, size, recipe.seed, shard)

    def factor(step: int) -> float:
        return learning_rate_factor("cosine", step, recipe.warmup_steps, recipe.iterations)

    def temperature(step: int) -> float | None:
        since, quantized = step - recipe.autoencoder_steps, recipe.iterations - recipe.autoencoder_steps
        return annealed_temperature(since, quantized, recipe.temperature_start, recipe.temperature_end) if since >= 0 else None

    plan = Plan(
        recipe.iterations,
        recipe.accumulate,
        recipe.learning_rate,
        factor,
        recipe.max_grad_norm,
        recipe.save_every,
        recipe.keep,
        recipe.seed,
        recipe.batch_size,
        parts=3 + model.config.num_levels,
    )
    trainer = Trainer(run, model, Objective(model), optimizer, plan, placement, ranks, {"healthy": -1.0, "reconstruction": 0.0})
    rows = index_batches(len(items), recipe.batch_size, recipe.seed, items.device)
    warned: set[str] = set()
    with trainer.running("RQ-VAE") as steps:
        for step in steps:
            if trainer.due(step, recipe.log_every):
                loss, reconstruction, codebook, commitment, *norms = trainer.means()
                trainer.show("loss", f"loss {loss:.3f}, residuals {'/'.join(f'{norm:.2f}' for norm in norms)}")
                losses = {"reconstruction": reconstruction, "codebook_loss": codebook, "commitment_loss": commitment}
                run.log(step=step, loss=loss, **losses, residual_norms=norms, lr=trainer.learning_rate)
            fresh = step == recipe.autoencoder_steps and (recipe.use_kmeans_init or step > 0)
            if fresh:
                with memory_advice("train.vae_codebook_size or train.vae_embed_dim"):
                    if recipe.use_kmeans_init:
                        model.kmeans_init(items, recipe.seed, shard, balanced=recipe.kmeans_balanced)
                    else:
                        model.sample_init(items, recipe.seed, shard)
            if fresh or (step > recipe.autoencoder_steps and trainer.due(step, recipe.eval_every)):
                with trainer.evaluating("train.vae_codebook_size"):
                    look(model, items, held_out, trainer, run, step, warned)

            def share(micro: int, step: int = step) -> LossShare:
                own = rows(step * recipe.accumulate + micro)[ranks.index :: ranks.count]
                return trainer.objective(on_device(items.index_select(0, own), placement.device), temperature(step))

            upkeep.begin(step)
            trainer.update(step, share)
    return trainer.seconds


def look(model: RqVae, items: Tensor, held_out: Tensor | None, trainer: Trainer, run: Run, step: int, warned: set[str]) -> None:
    """Logs the health of the codes of all items, warns of every level that collapsed, once, and keeps the weights if they are the best.

    The best are those with the lowest reconstruction loss (of the held-out items where there are some), among the healthy ones if there are
    any: with no collapsed level.
    """
    ranks, sizes = trainer.ranks, model.config.codebook_sizes
    codes, own_codes = shared_codes(model, items, ranks)
    health = codebook_health(codes, sizes)
    if held_out is not None:
        _, own_codes = shared_codes(model, held_out, ranks)
    own = (items if held_out is None else held_out)[ranks.index :: ranks.count]
    summed = reconstruction_sum(model, own, own_codes) if len(own) else torch.zeros(())
    reconstruction = ranks.total(torch.stack([summed, summed.new_tensor(float(len(own)))])).tolist()
    mean = reconstruction[0] / reconstruction[1]
    figures = {"usage": health.usage, "perplexity": health.perplexity, "collision_rate": health.collision_rate}
    run.log(step=step, **figures, quantized_reconstruction=mean)
    trainer.show("codes", describe(health))
    problems = collapse_warnings(health, sizes, settings=run.settings)
    healthy = float(not problems)
    if (healthy, -mean) > (trainer.state["healthy"], -trainer.state["reconstruction"]):
        trainer.state = {"healthy": healthy, "reconstruction": mean}
        if ranks.main:
            save_weights(model, run.folder / WEIGHTS)
    for problem in problems:
        level = problem.partition(":")[0]
        if level not in warned:
            warned.add(level)
            trainer.say(f"warning: at step {step}, {problem}")


def shared_codes(model: RqVae, items: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Codes of all ``items`` [I, L] on the CPU, those of each process' share after one another, and of this process' share alone."""
    if model.config.sinkhorn == "last_level":  # which items collide, and where they move to, is known of all of them only
        codes = model.get_semantic_ids(items)
        return codes.cpu(), codes[ranks.index :: ranks.count]
    own = model.get_semantic_ids(items[ranks.index :: ranks.count])
    return torch.cat([share for of_rank in ranks.gather([own.cpu()]) for share in of_rank]), own


def describe(health: CodebookHealth) -> str:
    """Usage, perplexity and collisions on one line."""
    usage = "/".join(f"{100 * share:.0f}" for share in health.usage)
    perplexity = "/".join(f"{value:.0f}" for value in health.perplexity)
    return f"usage {usage} %, perplexity {perplexity}, collisions {100 * health.collision_rate:.1f} %"


@torch.no_grad()
def finish(
    coder: RqVae | DirectTokenizer,
    items: ItemData,
    held_out: Tensor | None,
    run: Run,
    seconds: float,
    corpus: Corpus,
    described: Mapping[str, object],
) -> CodebookHealth:
    """Writes weights, tokenizer, metrics and pictures, and says what they mean; returns the health of the codes of all items.

    ``held_out`` are the rows of the items that were not trained on; ``described`` are the data's statistics and the split's hash.

    Raises:
        UserError: a level collapsed and that is not allowed; no tokenizer is written then, so that no decoder is trained on such codes.
    """
    coder.eval()
    settings = run.settings
    policy, seed = str(settings["collision_policy"]), int(str(settings["seed"]))
    tokenizer = SemanticIdTokenizer.from_coder(coder, items.embeddings, items.keys, items.embeddings_hash, seed, policy)
    codes = tokenizer.sem_ids[:, : tokenizer.num_levels].cpu()
    health = codebook_health(codes, tokenizer.info.codebook_sizes)
    problems = collapse_warnings(health, tokenizer.info.codebook_sizes, settings=settings)
    if problems and not settings["allow_collapse"]:
        raise UserError(f"training ended with collapsed codebooks: {' '.join(problems)} train.allow_collapse = True keeps the result")
    reconstruction = mean_reconstruction(coder, items.embeddings, codes)
    histories = leave_one_out(corpus.histories).train
    quality, pictures = appraise(coder, tokenizer, items.embeddings, held_out, items.titles, corpus.categories, histories, seed)
    metrics: dict[str, object] = {
        "data": dict(described),
        **quality_values(quality),
        "reconstruction_loss": reconstruction,
        "held_out_reconstruction_loss": None
        if held_out is None
        else mean_reconstruction(coder, items.embeddings[held_out], codes[held_out]),
        "collision_vocabulary": tokenizer.vocab_sizes[-1] if policy == "extra_code" else None,
        "seconds": round(seconds, 1),
    }
    if not isinstance(coder, RqVae):
        save_weights(coder, run.folder / WEIGHTS)
    tokenizer.save(run.folder)
    for name, picture in pictures:
        run.picture(name, picture)
    if isinstance(coder, RqVae):
        run.picture("training", loss_plot(run.lines()))
    run.finish(metrics)
    told = "" if reconstruction is None else f"; reconstruction {reconstruction:.4f}"
    print(f"\ncodes    {describe(health)}, largest group {health.largest_group}{told}; {seconds:.0f} s")
    for line in diagnose(quality, settings):
        print(f"doctor   {line}")
    print(f"saved    {run.folder}")
    return health


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or "", check=check))

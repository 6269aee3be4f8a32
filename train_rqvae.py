"""Stage 1: item text embeddings -> RQ-VAE -> semantic IDs.

    python train_rqvae.py configs/rqvae_amazon.gin                          # Amazon Beauty
    python train_rqvae.py configs/rqvae_amazon.gin dataset_split=toys       # any parameter can be overridden: name=value
    python train_rqvae.py configs/rqvae_amazon.gin item_embeddings=my.npy   # your own [items, width] vectors instead of a text encoder

Loads the catalogue, embeds its texts (once, cached), trains an RQ-VAE on all items and writes a run directory under train.save_dir_root
with the weights, the semantic IDs of all items (tokenizer.safetensors, tokenizer.json), config.gin, log.jsonl and metrics.json. Stage 2
reads that directory. The same command again goes on where an interrupted run stopped. --print-config prints the resolved config, --help
every parameter.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread that spins slows every busy process beside it on a CPU

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data.processed import DataConfig, ItemData, RecDataset, load_corpus, load_items
from data.schemas import UserError
from distributions.gumbel import annealed_temperature
from evaluate.codebook import CodebookHealth, codebook_health, collapse_warnings
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.checkpoint import load_weights, resume_from, save_checkpoint, save_weights
from modules.runtime.config import run_script
from modules.runtime.device import Placement, place, set_seed
from modules.runtime.run import Run, write_text
from modules.scheduler import learning_rate_factor
from modules.tokenizer.semids import SemanticIdTokenizer


class Recipe(NamedTuple):
    """How the RQ-VAE is trained."""

    iterations: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    temperature_start: float
    temperature_end: float
    use_kmeans_init: bool
    autoencoder_steps: int
    save_every: int
    eval_every: int
    seed: int


def train(
    dataset: RecDataset = RecDataset.AMAZON,
    dataset_folder: str = "dataset/amazon",
    dataset_split: str = "beauty",
    force_dataset_process: bool = False,
    item_embeddings: str | None = None,
    text_model: str = "sentence-transformers/sentence-t5-base",
    save_dir_root: str = "out/rqvae/amazon",
    pretrained_rqvae_path: str | None = None,
    resume: bool = True,
    iterations: int = 5000,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    warmup_steps: int = 100,
    commitment_weight: float = 0.25,
    use_kmeans_init: bool = True,
    autoencoder_steps: int = 300,
    vae_input_dim: int = 768,
    vae_embed_dim: int = 32,
    vae_hidden_dims: tuple[int, ...] = (512, 256, 128),
    vae_codebook_size: int = 256,
    vae_n_layers: int = 3,
    vae_codebook_mode: QuantizeForwardMode = QuantizeForwardMode.STE,
    vae_distance: str = "l2",
    vae_sim_vq: bool = False,
    vae_codebook_normalize: bool = False,
    vae_n_cat_feats: int = 0,
    vae_input_norm: str = "center_unit",
    gumbel_temperature_start: float = 0.5,
    gumbel_temperature_end: float = 0.02,
    do_eval: bool = False,
    eval_every: int = 1000,
    save_model_every: int = 1000,
    allow_collapse: bool = False,
    amp: bool = True,
    mixed_precision_type: str = "bf16",
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Trains an RQ-VAE and writes the tokenizer.

    Args:
        dataset: the source: AMAZON (2014 5-core as P5 packed it) or CUSTOM (a folder of RecBole atomic files).
        dataset_folder: where raw files lie or are downloaded to (raw/) and caches are kept (processed/).
        dataset_split: beauty, sports or toys for AMAZON; the files' name for CUSTOM. The run directory is named after it.
        force_dataset_process: read the raw files again although a cache exists.
        item_embeddings: .npy file [items, width], float16 or float32, row i = item i; replaces the text encoder.
        text_model: sentence-transformers model, a hub name or a local directory.
        save_dir_root: the run directory is save_dir_root/dataset_split.
        pretrained_rqvae_path: run directory whose weights to start from, k-means included.
        resume: go on where this run directory stopped; False starts anew in a directory beside it.
        iterations: training steps.
        batch_size: items a step, drawn without replacement within a pass.
        learning_rate: peak of AdamW's rate; falls to zero along a cosine.
        weight_decay: AdamW's, on all weights.
        warmup_steps: steps over which the learning rate rises.
        commitment_weight: beta of the commitment loss.
        use_kmeans_init: set each codebook to the k-means centroids of the whole catalogue's residuals.
        autoencoder_steps: first steps, without the quantizer, after which k-means finds latents that stay put; part of iterations.
        vae_input_dim: width of the item embeddings; checked against them.
        vae_embed_dim: width of the latent and of the codewords.
        vae_hidden_dims: hidden widths of the encoder; the decoder mirrors them.
        vae_codebook_size: codes a level.
        vae_n_layers: levels of residual quantization.
        vae_codebook_mode: gradient estimator: GUMBEL_SOFTMAX, STE or ROTATION_TRICK.
        vae_distance: what the nearest codeword is: l2 (by squared distance) or cosine (by angle).
        vae_sim_vq: freeze the codebooks and learn one linear map behind each (SimVQ); start it with use_kmeans_init.
        vae_codebook_normalize: latents and the first level's codewords have length 1; deeper codewords keep their own.
        vae_n_cat_feats: features at the end of the input that are 0 or 1: not normalised, reconstructed by cross-entropy.
        vae_input_norm: center_unit (subtract the mean, then unit rows), standardize (every dimension to mean 0, deviation 1) or none.
        gumbel_temperature_start: first temperature of GUMBEL_SOFTMAX, in units of the mean squared distance (cosine: 2 - 2 cos) to the
            nearest codeword.
        gumbel_temperature_end: its last; reached after 80 % of the steps.
        do_eval: hold out 5 % of the items and report their reconstruction; the codes are then trained on the rest.
        eval_every: steps between looks at usage, perplexity and collisions of the whole catalogue.
        save_model_every: steps between checkpoints.
        allow_collapse: end without an error although a level uses less than 5 % of its codes.
        amp: mixed precision where the device is faster with it (a short probe decides on a CPU).
        mixed_precision_type: bf16 or no.
        device: auto, cuda, mps or cpu.
        seed: fixes everything random.
    """
    settings = dict(locals())
    data_config = DataConfig(dataset, dataset_folder, dataset_split, force_dataset_process)
    model_config = RqVaeConfig(
        vae_input_dim,
        vae_embed_dim,
        vae_hidden_dims,
        vae_codebook_size,
        vae_n_layers,
        vae_codebook_mode,
        commitment_weight,
        vae_input_norm,
        vae_distance,
        vae_sim_vq,
        vae_codebook_normalize,
        vae_n_cat_feats,
    )
    recipe = Recipe(
        iterations,
        batch_size,
        learning_rate,
        weight_decay,
        warmup_steps,
        gumbel_temperature_start,
        gumbel_temperature_end,
        use_kmeans_init,
        autoencoder_steps if use_kmeans_init and pretrained_rqvae_path is None else 0,
        save_model_every,
        eval_every,
        seed,
    )
    check_recipe(recipe)
    placement = place(device, amp, mixed_precision_type)
    run = Run(Path(save_dir_root) / dataset_split, settings)
    if run.finished:
        print(f"{run.folder} is finished: {(run.folder / 'metrics.json').read_text()}\ntrain.resume = False trains anew beside it")
        return

    corpus = load_corpus(data_config)
    items = load_items(data_config, corpus, item_embeddings, text_model, placement.device)
    check_width(items.embeddings, vae_input_dim)
    training, held_out = split_items(items.embeddings, do_eval, seed)

    set_seed(seed)
    model = RqVae(model_config).to(placement.device)
    training = training.to(placement.device)  # 12 k x 768 floats are 37 MB; a step draws its rows by index where the model is
    model.fit_normalizer(training)
    if pretrained_rqvae_path is not None:
        load_weights(model, Path(pretrained_rqvae_path) / "model.safetensors")

    print(f"device   {placement.why}")
    print(f"items    {len(items.keys):,} x {items.embeddings.shape[1]} from {item_embeddings or text_model}")
    parameters, passes = sum(p.numel() for p in model.parameters()), iterations * batch_size / len(training)
    print(f"model    {parameters:,} parameters; {vae_n_layers} x {vae_codebook_size} codes of width {vae_embed_dim}")
    print(f"training {iterations:,} steps of {batch_size} items ({passes:.0f} passes), {vae_codebook_mode.name}")
    print(f"run      {run.folder}", flush=True)

    seconds = fit(model, training, recipe, placement, run)
    finish(model, items, held_out, run, seconds, seed, allow_collapse)
    print(f"next     python train_decoder.py <decoder config> pretrained_rqvae_path={run.folder}")


def check_recipe(recipe: Recipe) -> None:
    """Refuses settings that cannot train."""
    if recipe.batch_size < 1 or recipe.iterations < 1 or recipe.learning_rate <= 0:
        raise UserError("train.batch_size and train.iterations must be at least 1 and train.learning_rate above 0")
    if not 0 <= recipe.autoencoder_steps < recipe.iterations:
        raise UserError(
            f"train.autoencoder_steps is {recipe.autoencoder_steps} of {recipe.iterations} iterations; it must leave "
            "steps for the quantizer and not be negative: lower it or raise train.iterations"
        )
    if recipe.save_every < 1 or recipe.eval_every < 1:
        raise UserError("train.save_model_every and train.eval_every count steps and must be at least 1")
    if not 0 < recipe.temperature_end <= recipe.temperature_start:
        raise UserError("train.gumbel_temperature_end must be above 0 and at most train.gumbel_temperature_start")


def check_width(embeddings: Tensor, expected: int) -> None:
    """Refuses embeddings of another width than the config says."""
    found = embeddings.shape[1]
    if found != expected:
        raise UserError(
            f"train.vae_input_dim is {expected} but the item embeddings are {found} wide; set train.vae_input_dim = {found} or change them"
        )


def split_items(embeddings: Tensor, do_eval: bool, seed: int) -> tuple[Tensor, Tensor | None]:
    """All rows for training, or 95 % of them and a held-out rest."""
    if not do_eval:
        return embeddings, None
    order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed))
    count = max(1, len(embeddings) // 20)
    return embeddings[order[count:]], embeddings[order[:count]]


def index_batches(num_items: int, batch_size: int, seed: int, device: torch.device) -> Callable[[int], Tensor]:
    """The rows of a step as a function of the step alone, pass after pass over a seeded permutation: a resumed run draws the same."""
    size = min(batch_size, num_items)
    per_pass = num_items // size
    cached: tuple[int, Tensor] | None = None

    def rows(step: int) -> Tensor:
        nonlocal cached
        number, position = divmod(step, per_pass)
        if cached is None or cached[0] != number:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            cached = (number, torch.randperm(num_items, generator=generator).to(device))
        return cached[1][position * size : (position + 1) * size]

    return rows


def fit(model: RqVae, items: Tensor, recipe: Recipe, placement: Placement, run: Run) -> float:
    """Trains the model in place, from its last checkpoint if there is one; returns the seconds spent training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    resumed = resume_from(run.folder, model, optimizer)
    start, seconds_before = (resumed.step, float(str(resumed.state["seconds"]))) if resumed else (0, 0.0)
    run.cut_log(start)
    if resumed:
        print(f"resumed  from step {start}")
    rows = index_batches(len(items), recipe.batch_size, recipe.seed, placement.device)
    sizes = [model.config.codebook_size] * model.config.num_levels
    began, warned = time.perf_counter(), False
    model.train()
    bar = tqdm(range(start, recipe.iterations), initial=start, total=recipe.iterations, desc="RQ-VAE", mininterval=1.0)
    for step in bar:
        if step == recipe.autoencoder_steps and recipe.use_kmeans_init:
            model.kmeans_init(items, recipe.seed)
        factor = learning_rate_factor("cosine", step, recipe.warmup_steps, recipe.iterations)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        batch = items[rows(step)]
        with placement.autocast():
            if step < recipe.autoencoder_steps:
                output, loss = None, model.autoencoding_loss(batch)
            else:
                output = model(batch, annealed_temperature(step, recipe.iterations, recipe.temperature_start, recipe.temperature_end))
                loss = output.loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done = step + 1
        looks = done % recipe.eval_every == 0 or done == recipe.iterations
        saves = done % recipe.save_every == 0 and done < recipe.iterations
        if (looks or saves or done == recipe.autoencoder_steps) and not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at step {done}; lower train.learning_rate")
        if looks and output is not None:
            model.eval()
            health = codebook_health(model.get_semantic_ids(items).cpu(), sizes)
            model.train()
            left = "/".join(f"{norm:.2f}" for norm in output.residual_norms.tolist())
            bar.set_postfix_str(f"{describe(health)}, residuals {left}")
            run.log(
                step=done,
                loss=loss.item(),
                reconstruction=output.reconstruction_loss.item(),
                codebook_loss=output.codebook_loss.item(),
                commitment_loss=output.commitment_loss.item(),
                residual_norms=output.residual_norms.tolist(),
                usage=health.usage,
                perplexity=health.perplexity,
                collision_rate=health.collision_rate,
            )
            if not warned:
                for problem in collapse_warnings(health, sizes):
                    tqdm.write(f"warning: {problem}")
                    warned = True
        if saves:
            save_checkpoint(run.folder, done, model, optimizer, {"seconds": seconds_before + time.perf_counter() - began})
    return seconds_before + time.perf_counter() - began


def describe(health: CodebookHealth) -> str:
    """Usage, perplexity and collisions on one line."""
    usage = "/".join(f"{100 * share:.0f}" for share in health.usage)
    perplexity = "/".join(f"{value:.0f}" for value in health.perplexity)
    return f"usage {usage} %, perplexity {perplexity}, collisions {100 * health.collision_rate:.1f} %"


@torch.no_grad()
def finish(
    model: RqVae, items: ItemData, held_out: Tensor | None, run: Run, seconds: float, seed: int, allow_collapse: bool
) -> CodebookHealth:
    """Writes weights, tokenizer and metrics; returns the health of the codes of all items.

    Raises:
        UserError: a level collapsed and that is not allowed; nothing is written then, so that no decoder is trained on such codes.
    """
    model.eval()
    tokenizer = SemanticIdTokenizer.from_rqvae(model, items.embeddings, items.keys, items.embeddings_hash, seed)
    health = codebook_health(tokenizer.sem_ids[:, : tokenizer.num_levels].cpu(), tokenizer.info.codebook_sizes)
    problems = collapse_warnings(health, tokenizer.info.codebook_sizes)
    if problems and not allow_collapse:
        raise UserError(f"training ended with collapsed codebooks: {' '.join(problems)} train.allow_collapse = True keeps the result")
    device = model.input_mean.device
    reconstruction = model(items.embeddings.to(device)).reconstruction_loss.item()
    metrics: dict[str, object] = {
        **health._asdict(),
        "reconstruction_loss": reconstruction,
        "held_out_reconstruction_loss": None if held_out is None else model(held_out.to(device)).reconstruction_loss.item(),
        "collision_vocabulary": tokenizer.vocab_sizes[-1],
        "seconds": round(seconds, 1),
    }
    save_weights(model, run.folder / "model.safetensors")
    described = asdict(model.config) | {"mode": model.config.mode.name}
    write_text(run.folder / "config.json", json.dumps({"rqvae": described}, indent=1))
    tokenizer.save(run.folder)
    run.finish(metrics)
    print(f"\ncodes    {describe(health)}, largest group {health.largest_group}; reconstruction {reconstruction:.4f}; {seconds:.0f} s")
    print(f"saved    {run.folder}")
    return health


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or ""))

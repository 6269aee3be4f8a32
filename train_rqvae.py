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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from data.processed import ItemData, RecDataset, data_config, load_corpus, load_items
from data.schemas import UserError
from distributions.gumbel import annealed_temperature
from evaluate.codebook import CodebookHealth, codebook_health, collapse_warnings
from evaluate.plots import codebook_plot, loss_plot
from init.kmeans import Shard
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVae, RqVaeConfig
from modules.runtime.checkpoint import WEIGHTS, load_weights, save_weights
from modules.runtime.config import check_settings, run_script
from modules.runtime.device import Placement, memory_advice, place, set_seed
from modules.runtime.hub import find_snapshot, push, read_config
from modules.runtime.ranks import Ranks
from modules.runtime.rules import shared_mistakes
from modules.runtime.run import Run
from modules.runtime.trainer import LossShare, Plan, Trainer
from modules.runtime.values import Count, Device, FolderName, Natural, NonNegative, Positive, RunPath, Seed, Text
from modules.scheduler import learning_rate_factor
from modules.tokenizer.semids import SemanticIdTokenizer


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
    save_dir_root: Text = "out/rqvae/amazon",
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
    autoencoder_steps: Natural = 300,
    vae_input_dim: Count = 768,
    vae_embed_dim: Count = 32,
    vae_hidden_dims: tuple[Count, ...] = (512, 256, 128),
    vae_codebook_size: Count = 256,
    vae_n_layers: Count = 3,
    vae_codebook_mode: QuantizeForwardMode = QuantizeForwardMode.STE,
    vae_distance: Literal["l2", "cosine"] = "l2",
    vae_sim_vq: bool = False,
    vae_codebook_normalize: bool = False,
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
        save_dir_root: the run directory is save_dir_root/dataset_split.
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
        log_every: steps between lines of log.jsonl.
        eval_every: steps between looks at usage, perplexity and collisions of the whole catalogue; one more follows k-means.
        save_model_every: steps between checkpoints.
        keep_checkpoints: how many stay, the newest ones.
        allow_collapse: end without an error although a level uses less than 5 % of its codes.
        wandb_logging: show the run's figures on Weights & Biases too; offline where there is no key.
        wandb_project: its project there.
        push_vae_to_hf: upload the finished run to the Hugging Face Hub.
        vae_hf_model_name: its name there, owner/name.
        amp: mixed precision where the device is faster with it (a short probe decides on a CPU).
        mixed_precision_type: bf16, fp16 (CUDA only, with loss scaling) or no.
        device: auto, cuda, mps or cpu.
        seed: fixes everything random.
    """
    settings = dict(locals())
    check_settings(train, settings, check)
    source = data_config(settings)
    model_config = shape(settings)
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
        autoencoder_steps if use_kmeans_init and pretrained_rqvae_path is None else 0,
        log_every,
        save_model_every,
        keep_checkpoints,
        eval_every,
        seed,
    )
    placement = place(device, amp, mixed_precision_type, ranks.device)
    pretrained = None if pretrained_rqvae_path is None else find_snapshot(pretrained_rqvae_path, dataset_split, "rqvae")
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
        check_width(items.embeddings, vae_input_dim)
        describe_rqvae(run, model_config, items)
        training, held_out = split_items(items.embeddings, do_eval, seed)

        set_seed(seed)
        model = RqVae(model_config).to(placement.device)
        model.fit_normalizer(training)
        training = where_it_fits(training, placement.device)
        if pretrained is not None:
            load_weights(model, pretrained / WEIGHTS)

        parameters, step_size = sum(p.numel() for p in model.parameters()), recipe.batch_size * recipe.accumulate
        run.say(f"device   {placement.why}{f', {ranks.count} processes' if ranks.count > 1 else ''}")
        run.say(f"items    {len(items.keys):,} x {items.embeddings.shape[1]} from {item_embeddings or text_model}")
        run.say(f"model    {parameters:,} parameters; {vae_n_layers} x {vae_codebook_size} codes of width {vae_embed_dim}")
        passes = f"{iterations * step_size / len(training):.0f} passes"
        run.say(f"training {iterations:,} steps of {step_size} items ({passes}), {vae_codebook_mode.name}")
        run.say(f"run      {run.describe()}")

        run.track(wandb_logging, wandb_project)
        seconds = fit(model, training, recipe, placement, ranks, run)
        if ranks.main:
            with memory_advice("train.vae_hidden_dims, or give the process more"):
                finish(model, items, held_out, run, seconds, seed, allow_collapse)
            if push_vae_to_hf:
                run.say(f"pushed   {push(run.folder, str(vae_hf_model_name))}")
            run.say(f"next     python train_decoder.py CONFIG pretrained_rqvae_path={run.folder}")


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
}
"""Parameters, and the fields of RqVaeConfig that they fill."""


def shape(settings: Mapping[str, object]) -> RqVaeConfig:
    """The RQ-VAE that the parameters describe."""
    return RqVaeConfig(**{field: settings[name] for name, field in SHAPE.items()})


def check(settings: Mapping[str, object]) -> Iterator[str]:
    """A sentence for every rule between parameters that does not hold; what each takes for itself stands in the signature."""
    steps, iterations = settings["autoencoder_steps"], settings["iterations"]
    if settings["use_kmeans_init"] and settings["pretrained_rqvae_path"] is None and steps >= iterations:
        yield (
            f"train.autoencoder_steps = {steps} leaves no step of train.iterations = {iterations} for the quantizer: lower the one or "
            "raise the other"
        )
    start, end = settings["gumbel_temperature_start"], settings["gumbel_temperature_end"]
    if start < end:
        yield f"train.gumbel_temperature_end = {end} is above train.gumbel_temperature_start = {start}; temperatures fall: exchange them"
    yield from shared_mistakes(settings, "vae", shape)


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


def where_it_fits(items: Tensor, device: torch.device) -> Tensor:
    """The catalogue on the device, where a step draws its rows by index, unless it would fill more than a quarter of what is free there."""
    if device.type == "cuda" and items.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return items.pin_memory()
    return items.to(device)


def describe_rqvae(run: Run, config: RqVaeConfig, items: ItemData) -> None:
    """Writes config.json: the model's shape and the hash of the embeddings it is trained on.

    Raises:
        UserError: the directory was trained on other embeddings, as when the file of the same name was changed since.
    """
    path = run.folder / "config.json"
    before = read_config(run.folder).get("embeddings_hash") if run.begun and path.exists() else None
    if before is not None and before != items.embeddings_hash:
        raise UserError(
            f"the run in {run.folder} was begun on other item embeddings than there are now; "
            "set train.resume = False or another train.save_dir_root to train on the new ones"
        )
    described = {"rqvae": asdict(config) | {"mode": config.mode.name}, "embeddings_hash": items.embeddings_hash}
    run.write(path.name, json.dumps(described, indent=1))


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


class Objective(nn.Module):
    """The loss of a step, with the quantizer or, before k-means, without; one module, as several processes need it.

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


def fit(model: RqVae, items: Tensor, recipe: Recipe, placement: Placement, ranks: Ranks, run: Run) -> float:
    """Trains the model in place, from its last checkpoint if there is one; returns the seconds spent training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)

    def factor(step: int) -> float:
        return learning_rate_factor("cosine", step, recipe.warmup_steps, recipe.iterations)

    def temperature(step: int) -> float | None:
        if step < recipe.autoencoder_steps:
            return None
        return annealed_temperature(step, recipe.iterations, recipe.temperature_start, recipe.temperature_end)

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
    trainer = Trainer(run, model, Objective(model), optimizer, plan, placement, ranks, {})
    rows = index_batches(len(items), recipe.batch_size, recipe.seed, items.device)
    warned: set[str] = set()
    with trainer.running("RQ-VAE") as steps:
        for step in steps:
            if trainer.due(step, recipe.log_every):
                loss, reconstruction, codebook, commitment, *norms = trainer.means()
                trainer.show("loss", f"loss {loss:.3f}, residuals {'/'.join(f'{norm:.2f}' for norm in norms)}")
                losses = {"reconstruction": reconstruction, "codebook_loss": codebook, "commitment_loss": commitment}
                run.log(step=step, loss=loss, **losses, residual_norms=norms, lr=trainer.learning_rate)
            fresh = step == recipe.autoencoder_steps and recipe.use_kmeans_init
            if fresh:
                with memory_advice("train.vae_codebook_size or train.vae_embed_dim"):
                    model.kmeans_init(items, recipe.seed, Shard(ranks.index, ranks.count, ranks.total))
            if fresh or (step > recipe.autoencoder_steps and trainer.due(step, recipe.eval_every)):
                with trainer.evaluating("train.vae_codebook_size"):
                    look(model, items, trainer, run, step, warned)

            def share(micro: int, step: int = step) -> LossShare:
                own = rows(step * recipe.accumulate + micro)[ranks.index :: ranks.count]
                return trainer.objective(items[own].to(placement.device), temperature(step))

            trainer.update(step, share)
    return trainer.seconds


def look(model: RqVae, items: Tensor, trainer: Trainer, run: Run, step: int, warned: set[str]) -> None:
    """Logs the health of the codes of all items, and warns of every level that collapsed, once."""
    ranks = trainer.ranks
    shares = ranks.gather([model.get_semantic_ids(items[ranks.index :: ranks.count]).cpu()])
    codes, sizes = torch.cat([share for of_rank in shares for share in of_rank]), [model.config.codebook_size] * model.config.num_levels
    health = codebook_health(codes, sizes)
    figures = {"usage": health.usage, "perplexity": health.perplexity, "collision_rate": health.collision_rate}
    run.log(step=step, **figures)
    trainer.show("codes", describe(health))
    for problem in collapse_warnings(health, sizes):
        level = problem.partition(":")[0]
        if level not in warned:
            warned.add(level)
            trainer.say(f"warning: at step {step}, {problem}")


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
    reconstruction = mean_reconstruction(model, items.embeddings)
    metrics: dict[str, object] = {
        **health._asdict(),
        "reconstruction_loss": reconstruction,
        "held_out_reconstruction_loss": None if held_out is None else mean_reconstruction(model, held_out),
        "collision_vocabulary": tokenizer.vocab_sizes[-1],
        "seconds": round(seconds, 1),
    }
    save_weights(model, run.folder / WEIGHTS)
    tokenizer.save(run.folder)
    run.picture("codes", codebook_plot(tokenizer.sem_ids[:, : tokenizer.num_levels].cpu(), tokenizer.info.codebook_sizes))
    run.picture("training", loss_plot(run.lines()))
    run.finish(metrics)
    print(f"\ncodes    {describe(health)}, largest group {health.largest_group}; reconstruction {reconstruction:.4f}; {seconds:.0f} s")
    print(f"saved    {run.folder}")
    return health


def mean_reconstruction(model: RqVae, items: Tensor, chunk_size: int = 16384) -> float:
    """Reconstruction loss over ``items`` [I, E], a chunk at a time."""
    device = model.input_mean.device
    sums = [model(chunk.to(device)).reconstruction_loss * len(chunk) for chunk in items.split(chunk_size)]
    return torch.stack(sums).sum().item() / len(items)


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or "", check=check))

"""Stage 1: item text embeddings -> RQ-VAE -> semantic IDs.

    python train_rqvae.py configs/rqvae_amazon.gin                          # Amazon Beauty
    python train_rqvae.py configs/rqvae_amazon.gin dataset_split=toys       # any parameter can be overridden: name=value
    python train_rqvae.py configs/rqvae_amazon.gin item_embeddings=my.npy   # your own [items, width] vectors instead of a text encoder

Loads the catalogue, embeds its texts (once, cached), trains an RQ-VAE on all items - or fits one of the tokenizers without a network, by
train.tokenizer - and writes a run directory under train.save_dir_root
with the weights, the semantic IDs of all items (tokenizer.safetensors, tokenizer.json), their text vectors (vectors.safetensors, where they
take no more than 200 MB), config.gin, log.jsonl and metrics.json. Stage 2 reads that directory. The same command again goes on where an
interrupted run stopped. --print-config prints the resolved config, --help every parameter.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread that spins slows every busy process beside it on a CPU

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from data.cooccurrence import append_collaborative
from data.corpus import Corpus
from data.processed import ItemData, known_by_id_alone, load_corpus, load_items, meaningless_items
from data.schemas import UserError
from data.splits import leave_one_out, split_hash
from data.statistics import statistics
from distributions.gumbel import annealed_temperature
from evaluate.codebook import CodebookHealth, codebook_health
from evaluate.diagnosis import collapse_warnings, diagnose, few_items_warning
from evaluate.plots import loss_plot
from evaluate.quality import quality_values
from init.kmeans import Shard
from modules.runtime.config.declaration import filled
from modules.runtime.config.main import run_script
from modules.runtime.evaluation.tokenizer_evaluation import evaluate_tokenizer, mean_reconstruction, reconstruction_sum
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.hub import find_snapshot, push
from modules.runtime.runs.run import Run
from modules.runtime.runs.stage1_run import described_tokenizer, write_stage1_config
from modules.runtime.runs.text_vectors import save_vectors
from modules.runtime.training.checkpoint import WEIGHTS, load_weights, save_weights
from modules.runtime.training.device import Placement, memory_advice, on_device, place, set_seed
from modules.runtime.training.item_batches import index_batches, split_rows, where_it_fits
from modules.runtime.training.processes import Ranks
from modules.runtime.training.trainer import LossShare, Plan, Trainer
from modules.scheduler import learning_rate_factor
from modules.tokenizer.autoencoder import Autoencoder
from modules.tokenizer.base import ItemTokenizer
from modules.tokenizer.direct import DirectTokenizer
from modules.tokenizer.registry import kind_of, make_tokenizer, settings_read
from modules.tokenizer.semids import SemanticIdTokenizer


def train(options: RqVaeOptions) -> None:
    """Trains an RQ-VAE, or fits a tokenizer without a network, and writes the semantic IDs.

    Raises:
        UserError: what is wrong with the data, the embeddings, the run directory or the machine, or a level that collapsed.
    """
    ranks = Ranks(options.device)
    placement = place(options.device, options.amp, options.mixed_precision_type, ranks)
    pretrained = find_pretrained(options)
    with Run(options.save_dir_root, options.dataset_split, options.settings(), ranks) as run:
        if run.finished:
            finished = (run.folder / "metrics.json").read_text()
            run.say(f"{run.folder} is finished: {finished}\ntrain.resume = False trains anew beside it")
            upload(options, run)
            return
        with ranks.main_first():
            corpus = load_corpus(options.data)
            items = load_vectors(options, corpus, placement.device)
        write_stage1_config(run, options.model, items)
        rows = split_rows(len(items.keys), options.do_eval, options.seed)
        training = items.embeddings if rows.training is None else items.embeddings[rows.training]
        held_out = None if rows.held_out is None else items.embeddings[rows.held_out]
        set_seed(options.seed)
        described = {"split": split_hash(corpus.histories), **statistics(corpus)._asdict()}
        collaborative = f"{options.collaborative_dim} collaborative features of weight {options.collaborative_weight:g}"
        run.say(f"device   {placement.why}{f', {ranks.count} processes' if ranks.count > 1 else ''}")
        run.say(f"data     {statistics(corpus).describe()}; split {described['split']}")
        source = f"{options.item_embeddings or options.text_model}{f' and {collaborative}' if options.collaborative_weight else ''}"
        if needs_no_vectors(options, corpus):
            source = "a random generator, as nothing is known of the items and the tokenizer looks at nothing"
        run.say(f"items    {len(items.keys):,} x {items.embeddings.shape[1]} from {source}")
        run.track(options.wandb_logging, options.wandb_project)
        if (few := few_items_warning(len(items.keys), options.model.codebook_sizes)) is not None:
            run.say(f"warning: {few}")
        coder = make_tokenizer(options.tokenizer, options.model).to(placement.device)
        run.say(f"model    {coder.describe(options.tokenizer)}")
        if isinstance(coder, Autoencoder):
            coder.normalizer.fit(training)
            training = where_it_fits(training, placement.device)
            if pretrained is not None:
                load_weights(coder, pretrained / WEIGHTS)
            plan = make_plan(options, ranks)
            step_size = plan.batch_size * plan.gradient_accumulate_every
            passes = f"{plan.iterations * step_size / len(training):.0f} passes"
            run.say(f"training {plan.iterations:,} steps of {step_size} items ({passes}), {coder.estimator}")
            if (advice := coder.advice()) is not None:
                run.say(f"warning: {advice}")
            run.say(f"run      {run.describe()}")
            seconds = fit(coder, training, held_out, options, plan, placement, ranks, run)
            ranks.wait()
            load_weights(coder, run.folder / WEIGHTS)
        else:
            assert isinstance(coder, DirectTokenizer)
            run.say(f"run      {run.describe()}")
            start = time.perf_counter()
            coder.fit(training, options.seed, Shard(ranks.index, ranks.count, ranks.total))
            seconds = time.perf_counter() - start
        if ranks.main:
            with memory_advice("train.vae_hidden_dims, or give the process more"):
                finish(coder, items, rows.held_out, run, options, seconds, corpus, described)
        upload(options, run)
        run.say(f"next     {run.stage_two_command()}")


def find_pretrained(options: RqVaeOptions) -> Path | None:
    """The run of the same kind of tokenizer to start from."""
    if options.pretrained_rqvae_path is None:
        return None
    folder = find_snapshot(options.pretrained_rqvae_path, options.dataset_split, "rqvae")
    if (kind := described_tokenizer(folder).kind) != options.tokenizer:
        here = f"{folder} is {kind!r}, not {options.tokenizer!r} to start from"
        raise UserError(f"{here}; point train.pretrained_rqvae_path at one or remove it")
    return folder


def load_vectors(options: RqVaeOptions, corpus: Corpus, device: torch.device) -> ItemData:
    """The catalogue with its vectors, collaborative features included."""
    if needs_no_vectors(options, corpus):
        return meaningless_items(corpus, options.vae_input_dim, options.seed)
    items = load_items(options.data, corpus, options.item_embeddings, options.text_model, device)
    check_width(items.embeddings, options.vae_input_dim, options.collaborative_dim if options.collaborative_weight else 0)
    if options.collaborative_weight:
        items = append_collaborative(items, corpus.histories, options.collaborative_weight, options.collaborative_dim)
    return items


def needs_no_vectors(options: RqVaeOptions, corpus: Corpus) -> bool:
    """Is nothing known of the items, and the tokenizer one that looks at nothing?"""
    return options.item_embeddings is None and not kind_of(options.tokenizer).tokenizer.reads_vectors and known_by_id_alone(corpus)


def upload(options: RqVaeOptions, run: Run) -> None:
    """Uploads the finished run where that was asked for."""
    if options.push_vae_to_hf and run.ranks.main:
        run.say(f"pushed   {push(run.folder, str(options.vae_hf_model_name))}")


def check_width(embeddings: Tensor, expected: int, appended: int) -> None:
    """Refuses embeddings that, with ``appended`` collaborative features, have another width than the config says."""
    found = embeddings.shape[1] + appended
    if found != expected:
        what = f"{found} wide, of which train.collaborative_dim = {appended}" if appended else f"{found} wide"
        raise UserError(
            f"train.vae_input_dim is {expected} but the item embeddings are {what}; set train.vae_input_dim = {found} or change them"
        )


def make_plan(options: RqVaeOptions, ranks: Ranks) -> Plan:
    """How the RQ-VAE is trained."""

    def factor(step: int) -> float:
        return learning_rate_factor("cosine", step, options.warmup_steps, options.iterations)

    batch_size = options.batch_size if options.split_batches else options.batch_size * ranks.count
    return filled(Plan, options, batch_size=batch_size, factor=factor)


class Objective(nn.Module):
    """The loss of a step, with the quantizer or, before the codebooks start, without; one module, as several processes need it."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor, temperature: float | None) -> LossShare:
        """``temperature`` of the Gumbel-softmax; None leaves the quantizer out."""
        loss, parts = self.model.losses(batch, temperature)
        return LossShare(loss, len(batch), parts)


def fit(
    model: Autoencoder,
    items: Tensor,
    held_out: Tensor | None,
    options: RqVaeOptions,
    plan: Plan,
    placement: Placement,
    ranks: Ranks,
    run: Run,
) -> float:
    """Trains the model, from its last checkpoint if there is one; leaves the best weights in the run and returns seconds of training."""
    start = options.autoencoder_steps if options.pretrained_rqvae_path is None else 0  # of the quantizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=options.weight_decay, fused=True)
    shard, size = Shard(ranks.index, ranks.count, ranks.total), min(plan.batch_size, len(items))
    codebook_updates = model.codebook_updates(optimizer, start, plan.iterations, size, plan.seed, shard)

    def temperature(step: int) -> float | None:
        if step < start:
            return None
        return annealed_temperature(step - start, plan.iterations - start, options.gumbel_temperature_start, options.gumbel_temperature_end)

    state = {"healthy": -1.0, "reconstruction": 0.0}
    # Its first steps leave the codebooks out.
    trainer = Trainer(run, model, Objective(model), optimizer, plan, placement, ranks, state, some_unused=True)
    rows = index_batches(len(items), plan.batch_size, plan.seed, items.device)
    warned: set[str] = set()
    with trainer.running("tokenizer") as steps:
        for step in steps:
            if trainer.due(step, options.log_every):
                figures = trainer.means()
                norms = "/".join(f"{norm:.2f}" for norm in cast(list[float], figures.get("residual_norms", [])))
                trainer.show("loss", f"loss {figures['loss']:.3f}{', residuals ' if norms else ''}{norms}")
                run.log(step=step, **figures, lr=trainer.learning_rate)
            fresh = step == start and (options.use_kmeans_init or step > 0)
            if fresh:
                with memory_advice("train.vae_codebook_size or train.vae_embed_dim"):
                    model.start_codebooks(items, plan.seed, shard, options.use_kmeans_init, options.kmeans_balanced)
            if fresh or (step > start and trainer.due(step, options.eval_every)):
                with trainer.evaluating("train.vae_codebook_size"):
                    look(model, items, held_out, trainer, run, step, warned)

            def share(micro: int, step: int = step) -> LossShare:
                own = rows(step * plan.gradient_accumulate_every + micro)[ranks.index :: ranks.count]
                return trainer.objective(on_device(items.index_select(0, own), placement.device), temperature(step))

            codebook_updates.begin(step)
            trainer.update(step, share)
    return trainer.seconds


def look(model: Autoencoder, items: Tensor, held_out: Tensor | None, trainer: Trainer, run: Run, step: int, warned: set[str]) -> None:
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
    assert summed is not None  # a network decodes its codes
    reconstruction = ranks.total(torch.stack([summed, summed.new_tensor(float(len(own)))])).tolist()
    mean = reconstruction[0] / reconstruction[1]
    figures = {"usage": health.usage, "perplexity": health.perplexity, "collision_rate": health.collision_rate}
    run.log(step=step, **figures, quantized_reconstruction=mean)
    trainer.show("codes", describe(health))
    problems = collapse_warnings(health, sizes, settings=settings_read(run.settings))
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


def shared_codes(model: ItemTokenizer, items: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Codes of all ``items`` [I, L] on the CPU, those of each process' share after one another, and of this process' share alone."""
    if model.codes_depend_on_others:
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
    coder: ItemTokenizer,
    items: ItemData,
    held_out: Tensor | None,
    run: Run,
    options: RqVaeOptions,
    seconds: float,
    corpus: Corpus,
    described: Mapping[str, object],
) -> None:
    """Writes weights, tokenizer, metrics and pictures, and says what they mean.

    ``held_out`` are the rows of the items that were not trained on; ``described`` are the data's statistics and the split's hash.

    Raises:
        UserError: a level collapsed and that is not allowed; no tokenizer is written then, so that no decoder is trained on such codes.
    """
    coder.eval()
    policy, seed, settings = options.collision_policy, options.seed, settings_read(run.settings)
    tokenizer = SemanticIdTokenizer.from_coder(coder, items.embeddings, items.keys, items.embeddings_hash, seed, policy)
    codes = tokenizer.sem_ids[:, : tokenizer.num_levels].cpu()
    health = codebook_health(codes, tokenizer.info.codebook_sizes)
    problems = collapse_warnings(health, tokenizer.info.codebook_sizes, settings=settings)
    if problems and not options.allow_collapse:
        raise UserError(f"training ended with collapsed codebooks: {' '.join(problems)} train.allow_collapse = True keeps the result")
    reconstruction = mean_reconstruction(coder, items.embeddings, codes)
    histories = leave_one_out(corpus.histories).train
    quality, pictures = evaluate_tokenizer(coder, tokenizer, items.embeddings, held_out, items.titles, corpus.categories, histories, seed)
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
    save_weights(coder, run.folder / WEIGHTS)
    tokenizer.save(run.folder)
    text_width = items.embeddings.shape[1] - (options.collaborative_dim if options.collaborative_weight else 0)
    if needs_no_vectors(options, corpus):
        run.say("vectors  none are kept: nothing is known of the items but their ids, and these were random")
    elif (lacking := save_vectors(run.folder, items.embeddings[:, :text_width])) is not None:
        run.say(f"vectors  {lacking}")
    for name, picture in pictures:
        run.picture(name, picture)
    if lines := run.lines():
        run.picture("training", loss_plot(lines))
    run.finish(metrics)
    told = "" if reconstruction is None else f"; reconstruction {reconstruction:.4f}"
    print(f"\ncodes    {describe(health)}, largest group {health.largest_group}{told}; {seconds:.0f} s")
    for line in diagnose(quality, settings):
        print(f"doctor   {line}")
    print(f"saved    {run.folder}")


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or ""))

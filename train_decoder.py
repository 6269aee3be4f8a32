"""Stage 2: user histories -> Transformer encoder-decoder -> the next item's semantic ID, by constrained beam search.

    python train_decoder.py configs/decoder_amazon.gin                       # Amazon Beauty, after train_rqvae.py configs/rqvae_amazon.gin
    python train_decoder.py configs/decoder_amazon.gin dataset_split=toys    # any parameter can be overridden: name=value

Reads the semantic IDs of a stage-1 run, trains on every (history, next item) pair of the training part, selects the checkpoint on
validation ndcg@10 and reads the test items once, at the end. The run directory under train.save_dir_root holds the weights, config.gin,
log.jsonl and metrics.json; `python recommend.py RUN --history "..."` asks it for items. The same command again goes on where an
interrupted run stopped. --print-config prints the resolved config, --help every parameter.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread that spins slows every busy process beside it on a CPU

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from data.interactions import Corpus, split_hash, statistics, time_bounds
from data.processed import RecDataset, SeqData, data_config, load_corpus
from data.schemas import UserError
from data.shell import command
from evaluate.metrics import tie_order
from evaluate.plots import loss_plot, recall_plot
from evaluate.report import evaluation_report
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.quantize import QuantizeForwardMode
from modules.rqvae import RqVaeConfig
from modules.runtime.checkpoint import WEIGHTS, load_weights, save_weights
from modules.runtime.coders import read_config
from modules.runtime.config import check_settings, run_script
from modules.runtime.device import Placement, memory_advice, place, set_seed
from modules.runtime.hub import find_snapshot, push
from modules.runtime.judge import Judge, Part, Protocol
from modules.runtime.ranks import Ranks
from modules.runtime.retriever import Retriever, describe_retriever
from modules.runtime.rules import shared_mistakes
from modules.runtime.run import Run
from modules.runtime.trainer import LossShare, Plan, Trainer
from modules.runtime.values import Count, Device, FolderName, Natural, NonNegative, Positive, RunPath, Seed, Share, Text
from modules.scheduler import learning_rate_factor
from modules.tokenizer.semids import SemanticIdTokenizer

REPORT = "report.txt"
EVALUATION_KNOBS = "train.eval_batch_size or train.beam_size"


class Recipe(NamedTuple):
    """How the sequence model is trained."""

    iterations: int
    batch_size: int  # over all processes
    accumulate: int
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    max_grad_norm: float
    label_smoothing: float
    log_every: int
    save_every: int
    keep: int
    partial_eval_every: int
    full_eval_every: int
    patience: int
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
    split_by: Literal["leave_one_out", "time"] = "leave_one_out",
    split_quantiles: tuple[Share, ...] = (0.8, 0.9),
    pretrained_rqvae_path: RunPath = "out/rqvae/amazon",
    pretrained_decoder_path: RunPath | None = None,
    save_dir_root: Text = "out/decoder/amazon",
    run_name: FolderName | None = None,
    resume: bool = True,
    iterations: Count = 7500,
    batch_size: Count = 128,
    gradient_accumulate_every: Count = 1,
    split_batches: bool = True,
    learning_rate: Positive = 2e-3,
    weight_decay: NonNegative = 0.035,
    lr_schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine",
    warmup_steps: Natural = 400,
    max_grad_norm: NonNegative = 1.0,
    label_smoothing: Share = 0.0,
    dropout_p: Share = 0.1,
    decoder_embed_dim: Count = 128,
    attn_embed_dim: Count = 384,
    attn_heads: Count = 6,
    attn_layers: Count = 2,
    decoder_ff_dim: Count = 1024,
    max_seq_len: Count = 20,
    encoder_attention: Literal["causal", "bidirectional"] = "causal",
    position: Literal["relative", "learned"] = "relative",
    should_add_sep_token: bool = False,
    num_user_bins: Natural = 2000,
    vae_input_dim: Count | None = None,
    vae_embed_dim: Count | None = None,
    vae_hidden_dims: tuple[Count, ...] | None = None,
    vae_codebook_size: Count | tuple[Count, ...] | None = None,
    vae_n_layers: Count | None = None,
    vae_codebook_mode: QuantizeForwardMode | None = None,
    vae_input_norm: Literal["center_unit", "standardize", "none"] | None = None,
    vae_distance: Literal["l2", "cosine"] | None = None,
    vae_sim_vq: bool | None = None,
    vae_codebook_normalize: bool | None = None,
    vae_n_cat_feats: Natural | None = None,
    beam_size: Count = 50,
    filter_history: bool = True,
    top_k_eval_list: tuple[Count, ...] = (1, 5, 10),
    eval_users: Count | None = 4000,
    eval_batch_size: Count = 64,
    cuda_graphs: bool = False,
    partial_eval_every: Count = 500,
    full_eval_every: Count = 2500,
    patience: Natural = 5,
    log_every: Count = 100,
    save_model_every: Count = 1000,
    keep_checkpoints: Count = 2,
    do_eval: bool = True,
    wandb_logging: bool = False,
    wandb_project: Text = "tiger",
    push_decoder_to_hf: bool = False,
    decoder_hf_model_name: Text | None = None,
    amp: bool = True,
    mixed_precision_type: Literal["bf16", "fp16", "no"] = "bf16",
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Trains the encoder-decoder on semantic IDs and reports it beside the baselines.

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
        split_by: leave_one_out (a user's last two items are held out) or time (all train before one moment and are tested after another).
        split_quantiles: shares of all interactions before the two moments of split_by = "time".
        pretrained_rqvae_path: stage 1's run directory, its save_dir_root (the directory named after the split is taken) or a hub name.
        pretrained_decoder_path: run directory of this stage, or hub name, whose weights to start from.
        save_dir_root: the run directory is save_dir_root/dataset_split.
        run_name: its name in save_dir_root instead of the split's.
        resume: go on where this run directory stopped; False starts anew in a directory beside it.
        iterations: training steps.
        batch_size: (history, next item) pairs a batch.
        gradient_accumulate_every: batches a step.
        split_batches: batch_size is that of all processes together, each of which takes its share; False makes it each one's own.
        learning_rate: peak of AdamW's rate.
        weight_decay: AdamW's, on matrices (not on embeddings, biases and norms).
        lr_schedule: after the warm-up: cosine (to zero), inverse_sqrt or constant.
        warmup_steps: steps over which the learning rate rises.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them.
        label_smoothing: share of a target code's probability spread over its level.
        dropout_p: on embeddings and on what each sublayer adds.
        decoder_embed_dim: model width, of both stacks.
        attn_embed_dim: heads x head width.
        attn_heads: attention heads.
        attn_layers: layers of each stack: 4 is 4 encoder + 4 decoder layers (older files of other code meant the total).
        decoder_ff_dim: hidden width of the feed-forward.
        max_seq_len: items of history the model reads, the most recent ones.
        encoder_attention: causal (one encoder pass serves all prefixes of a history; much faster) or bidirectional (the paper's).
        position: relative (a learned bias by distance in items) or learned (an embedding by recency; bidirectional only).
        should_add_sep_token: a separator after each item's codes.
        num_user_bins: buckets of the hashed user token; 0 leaves it out.
        vae_input_dim: checked against the tokenizer's run if given; the other vae_* likewise.
        vae_embed_dim: checked if given.
        vae_hidden_dims: checked if given.
        vae_codebook_size: checked if given.
        vae_n_layers: checked if given.
        vae_codebook_mode: checked if given.
        vae_input_norm: checked if given.
        vae_distance: checked if given.
        vae_sim_vq: checked if given.
        vae_codebook_normalize: checked if given.
        vae_n_cat_feats: checked if given.
        beam_size: beams of the search; at least the largest k.
        filter_history: the search bars items of the user's history (a repeated item can then not be hit); selection uses this; the test
            report has the plain figure too.
        top_k_eval_list: cut-offs k of recall@k and ndcg@k; 10 among them.
        eval_users: users (a seeded sample) of the validations during training; None takes all. The final figures always have all.
        eval_batch_size: users a batch in evaluation.
        cuda_graphs: replay the beam search of evaluations as CUDA graphs; elsewhere than on CUDA nothing changes.
        partial_eval_every: steps between validation losses.
        full_eval_every: steps between validations by beam search, which select the checkpoint.
        patience: stop after so many of them without a better ndcg@10; 0 never stops.
        log_every: steps between lines of log.jsonl.
        save_model_every: steps between checkpoints; one more is written before every validation.
        keep_checkpoints: how many stay, the newest ones; the best weights stay besides.
        do_eval: at the end evaluate all users on validation and, once, on test; False keeps the test unread.
        wandb_logging: show the run's figures on Weights & Biases too; offline where there is no key.
        wandb_project: its project there.
        push_decoder_to_hf: upload the finished run to the Hugging Face Hub.
        decoder_hf_model_name: its name there, owner/name.
        amp: mixed precision where the device has instructions for it; False is fp32 on every machine.
        mixed_precision_type: bf16 (where the device has instructions for it), fp16 (CUDA only, with loss scaling) or no.
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
        lr_schedule,
        warmup_steps,
        max_grad_norm,
        label_smoothing,
        log_every,
        save_model_every,
        keep_checkpoints,
        partial_eval_every,
        full_eval_every,
        patience,
        seed,
    )
    protocol = Protocol(beam_size, filter_history, top_k_eval_list, eval_batch_size, eval_users, seed)
    placement = place(device, amp, mixed_precision_type, ranks)
    rqvae_run = find_snapshot(pretrained_rqvae_path, dataset_split, "rqvae")
    pretrained = None if pretrained_decoder_path is None else find_snapshot(pretrained_decoder_path, dataset_split, "decoder")
    check_rqvae(rqvae_run, settings)
    if split_by == "time" and read_config(rqvae_run).get("collaborative_weight"):
        raise UserError(
            f"the tokenizer in {rqvae_run} has collaborative vectors from histories split by leave-one-out, which train.split_by = 'time' "
            "would test on; train stage 1 with train.collaborative_weight = 0, or set train.split_by = 'leave_one_out'"
        )
    with Run(save_dir_root, dataset_split, settings, ranks) as run:
        if run.finished:
            told = (run.folder / REPORT).read_text() if (run.folder / REPORT).exists() else f"({REPORT} is gone)"
            run.say(f"{told}\n{run.folder} is finished; train.resume = False trains anew beside it")
            if push_decoder_to_hf and ranks.main:
                run.say(f"pushed   {push(run.folder, str(decoder_hf_model_name))}")
            return
        with ranks.main_first():
            corpus = load_corpus(source)
        tokenizer = SemanticIdTokenizer.load(rqvae_run).to(placement.device)
        tokenizer.check_items(corpus.item_keys)
        moments = None if split_by == "leave_one_out" else time_bounds(corpus.times, split_quantiles)
        data = SeqData(corpus.histories, len(corpus.item_keys), max_seq_len, encoder_attention == "causal", moments)
        described, split_name = statistics(corpus, data.split), split_hash(corpus.histories, moments)
        data = data.to(placement.device)
        order = tie_order(data.popularity.cpu(), corpus.item_keys, seed).to(placement.device)
        tokenizer = tokenizer.ordered_by(order)
        set_seed(seed)
        model = EncoderDecoderRetrievalModel(model_config, tokenizer.vocab_sizes).to(placement.device)
        if pretrained is not None:
            load_weights(model, pretrained / WEIGHTS)
        if ranks.main:
            describe_retriever(run.folder, model_config, tokenizer, corpus.titles, run.begun)

        parameters = sum(p.numel() for p in model.parameters())
        targets, epoch = recipe.batch_size * recipe.accumulate, data.steps_per_epoch(recipe.batch_size) / recipe.accumulate
        run.say(f"device   {placement.why}{f', {ranks.count} processes' if ranks.count > 1 else ''}")
        run.say(f"data     {described.describe()}; split {split_name}")
        if moments is not None:
            targets_of = f"{len(data.split.validation.users):,} validation and {len(data.split.test.users):,} test users"
            run.say(f"moments  train before {moments.validation_from:.0f}, test from {moments.test_from:.0f} (seconds); {targets_of}")
        run.say(f"IDs      {rqvae_run}: codes {' + '.join(map(str, tokenizer.vocab_sizes))}")
        stacks = f"{attn_layers} encoder + {attn_layers} decoder layers of width {decoder_embed_dim}"
        run.say(f"model    {parameters:,} parameters: {stacks}, {encoder_attention} encoder")
        run.say(f"training {iterations:,} steps of {targets} targets, {epoch:,.0f} steps an epoch ({iterations / epoch:.1f} epochs)")
        run.say(f"run      {run.describe()}")

        retriever = Retriever(model, tokenizer, corpus.titles)
        judge = Judge(retriever, data, order, protocol, placement, ranks, cuda_graphs=cuda_graphs)
        run.track(wandb_logging, wandb_project)
        seconds = fit(retriever, data, judge, recipe, placement, ranks, run)
        ranks.wait()
        load_weights(model, run.folder / WEIGHTS)
        with memory_advice(EVALUATION_KNOBS):
            report(judge, corpus, run, seconds, do_eval, {"split": split_name, **described._asdict()})
        if push_decoder_to_hf and ranks.main:
            run.say(f"pushed   {push(run.folder, str(decoder_hf_model_name))}")
        run.say(f"next     {command('recommend.py', run.folder, '--history', corpus.item_keys[0])}")


def shape(settings: Mapping[str, object]) -> DecoderConfig:
    """The encoder-decoder that the parameters describe."""
    names = ("decoder_embed_dim", "attn_embed_dim", "attn_heads", "attn_layers", "decoder_ff_dim", "dropout_p", "max_seq_len")
    return DecoderConfig(*(settings[name] for name in (*names, "encoder_attention", "position", "should_add_sep_token", "num_user_bins")))


def check(settings: Mapping[str, object]) -> Iterator[str]:
    """A sentence for every rule between parameters that does not hold; what each takes for itself stands in the signature."""
    cutoffs, beams = settings["top_k_eval_list"], settings["beam_size"]
    if 10 not in cutoffs:
        yield f"train.top_k_eval_list is {list(cutoffs)}; it needs 10 among its cut-offs: selection is on ndcg@10"
    if cutoffs and beams < max(cutoffs):
        yield (
            f"train.beam_size = {beams} cannot fill recall@{max(cutoffs)} of train.top_k_eval_list; raise it to at least that or drop the "
            "cut-off"
        )
    quantiles = settings["split_quantiles"]
    if len(quantiles) != 2 or not 0 < quantiles[0] < quantiles[1]:
        yield f"train.split_quantiles is {list(quantiles)}; it needs two shares above 0, the smaller one first"
    if settings["split_by"] == "time" and settings["dataset"] is RecDataset.AMAZON:
        yield "train.split_by = 'time' needs times and train.dataset AMAZON, P5's files, has none; take AMAZON_2014 or 'leave_one_out'"
    yield from shared_mistakes(settings, "decoder", shape)


TRAINED_WITH = {
    "vae_input_dim": "input_dim",
    "vae_embed_dim": "embed_dim",
    "vae_hidden_dims": "hidden_dims",
    "vae_codebook_size": "codebook_size",
    "vae_n_layers": "num_levels",
    "vae_codebook_mode": "mode",
    "vae_input_norm": "input_norm",
    "vae_distance": "distance",
    "vae_sim_vq": "sim_vq",
    "vae_codebook_normalize": "codebook_normalize",
    "vae_n_cat_feats": "n_cat_feats",
}
"""Stage 1's parameters, and what they are called in its config.json."""


def check_rqvae(folder: Path, settings: Mapping[str, object]) -> None:
    """Refuses vae_* values that differ from those the tokenizer was trained with."""
    given = {name: settings[name] for name in TRAINED_WITH if settings[name] is not None}
    if not given:
        return
    described = read_config(folder)
    if "direct" in described:
        trained, kind = dict(described["direct"]), described["direct"]["kind"]
    else:
        trained, kind = asdict(RqVaeConfig()) | dict(described["rqvae"]), "rqvae"  # an older run lacks what had only one value then
    mistakes = []
    for name, value in given.items():
        value = value.name if isinstance(value, QuantizeForwardMode) else list(value) if isinstance(value, tuple) else value
        if TRAINED_WITH[name] not in trained:
            mistakes.append(f"train.{name} is {value} but the tokenizer in {folder} is {kind!r}, which has none; remove the line")
            continue
        found = trained[TRAINED_WITH[name]]
        sizes = [size if isinstance(size, list) else [size] * trained["num_levels"] for size in (value, found)]
        if value != found and not (name == "vae_codebook_size" and sizes[0] == sizes[1]):
            mistakes.append(
                f"train.{name} is {value} but the tokenizer in {folder} was trained with {found}; "
                "remove the line (stage 2 takes these values from there) or train stage 1 with it"
            )
    if mistakes:
        raise UserError(*mistakes)


# -- training ---------------------------------------------------------------------------------------------------------------------------


def fit(retriever: Retriever, data: SeqData, judge: Judge, recipe: Recipe, placement: Placement, ranks: Ranks, run: Run) -> float:
    """Trains the model, from its last checkpoint if there is one; leaves the best weights in the run and returns seconds of training."""
    model, tokenizer, _ = retriever

    def factor(step: int) -> float:
        return learning_rate_factor(recipe.schedule, step, recipe.warmup_steps, recipe.iterations)

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
        parts=len(tokenizer.vocab_sizes),
    )
    trainer = Trainer(run, model, model, make_optimizer(model, recipe), plan, placement, ranks, {"best": -1.0, "waited": 0.0})
    judge.placement, judge.pause = trainer.placement, trainer.interruption_point
    with trainer.running("decoder") as steps:
        for step in steps:
            if trainer.due(step, recipe.log_every):
                loss, *level_losses = trainer.means()
                trainer.show("loss", f"loss {loss:.3f}")
                run.log(step=step, loss=loss, level_losses=level_losses, lr=trainer.learning_rate)
            if trainer.due(step, recipe.full_eval_every):
                select(judge, trainer, recipe, run, step)
            elif trainer.due(step, recipe.partial_eval_every):
                with trainer.evaluating(EVALUATION_KNOBS):
                    run.log(step=step, seconds=round(trainer.seconds), validation_loss=judge.validation_loss())

            def share(micro: int, step: int = step) -> LossShare:
                number = step * recipe.accumulate + micro
                batch = tokenizer(data.train_batch(number, recipe.batch_size, recipe.seed, ranks.index, ranks.count))
                output = trainer.objective(batch, recipe.label_smoothing)
                return LossShare(output.loss, batch.target_mask.sum(), output.level_losses)

            evaluates = trainer.due(step + 1, recipe.full_eval_every) or trainer.due(step + 1, recipe.partial_eval_every)
            trainer.update(step, share, save=evaluates)
    return trainer.seconds


def select(judge: Judge, trainer: Trainer, recipe: Recipe, run: Run, step: int) -> None:
    """Validates by beam search, keeps the weights if they are the best so far, and ends the training when patience does."""
    with trainer.evaluating(EVALUATION_KNOBS):
        metrics = judge.model("validation", judge.protocol.filter_history, sample=True).metrics
    run.log(step=step, seconds=round(trainer.seconds), validation=metrics)
    trainer.say(
        f"step {step:6d}  validation recall@10 {metrics['recall@10']:.4f}  ndcg@10 {metrics['ndcg@10']:.4f}  {trainer.seconds:.0f} s"
    )
    trainer.state["waited"] += 1
    if metrics["ndcg@10"] > trainer.state["best"]:
        trainer.show("best", f"best ndcg@10 {metrics['ndcg@10']:.4f}")
        trainer.state = {"best": metrics["ndcg@10"], "waited": 0.0}
        if trainer.ranks.main:
            save_weights(trainer.model, run.folder / WEIGHTS)
    if recipe.patience and trainer.state["waited"] >= recipe.patience:
        trainer.say(f"stopped: no better ndcg@10 in {recipe.patience} validations")
        trainer.stopped = True


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays the matrices of linear layers only."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in linear], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in linear], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


# -- evaluation -------------------------------------------------------------------------------------------------------------------------


def report(judge: Judge, corpus: Corpus, run: Run, seconds: float, do_eval: bool, described: Mapping[str, object]) -> None:
    """Final figures of the selected checkpoint beside the baselines': all users on validation and, once, on test."""
    judge.retriever.model.eval()
    barred = judge.protocol.filter_history
    metrics: dict[str, object] = {"training_seconds": round(seconds, 1), "data": dict(described)}
    parts: list[Part] = ["validation", "test"] if do_eval else ["validation"]
    text = []
    for part in parts:
        rows = [("TIGER", judge.model(part, barred, progress=True))]
        if part == "test":
            rows.append((f"TIGER, history {'not ' if barred else ''}barred", judge.model(part, not barred, progress=True)))
        if judge.ranks.main:
            rows += judge.baselines(part, barred)
            run.picture(f"recall_{part}", recall_plot(rows))
            names = list(rows[0][1].metrics)
            run.tracker.table(part, ["model", *names], [[name, *(row.metrics.get(metric) for metric in names)] for name, row in rows])
        text.append(evaluation_report(rows))
        metrics[part] = {name: evaluation.to_json() for name, evaluation in rows}
        unseen = judge.unseen(part, rows) if part == "test" else []
        if unseen and judge.ranks.main:
            text.append(evaluation_report(unseen))
            metrics["test, unseen items"] = {name: evaluation.to_json() for name, evaluation in unseen}
    samples = judge.samples()
    text.append(samples.table(corpus.titles))
    run_text = "\n\n".join(text)
    run.write(REPORT, run_text + "\n")
    if judge.ranks.main:
        run.picture("training", loss_plot(run.lines()))
        run.tracker.table("samples", ["history", "held out", "recommended"], samples.rows(corpus.titles))
    run.finish(metrics)
    run.say(f"\n{run_text}\n\ntraining {seconds:.0f} s\nsaved    {run.folder}")


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or "", check=check))

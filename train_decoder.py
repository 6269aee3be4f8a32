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

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.interactions import Corpus, split_hash, statistics
from data.processed import DataConfig, RecDataset, SeqData, load_corpus
from data.schemas import PAD, SeqBatch, UserError
from evaluate.baselines import LastItemMarkov, MostPopular
from evaluate.metrics import sort_with_ties, target_ranks, tie_order
from evaluate.report import Evaluation, evaluate_lists, evaluation_report, sample_table
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.runtime.checkpoint import load_weights, resume_from, save_checkpoint, save_weights
from modules.runtime.config import run_script
from modules.runtime.device import Placement, place, set_seed
from modules.runtime.hub import find_snapshot
from modules.runtime.retriever import WEIGHTS, Retriever, describe_retriever
from modules.runtime.run import Run, write_text
from modules.scheduler import SCHEDULES, learning_rate_factor
from modules.tokenizer.semids import SemanticIdTokenizer

Part = Literal["validation", "test"]


class Recipe(NamedTuple):
    """How the sequence model is trained."""

    iterations: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    max_grad_norm: float
    label_smoothing: float
    log_every: int
    save_every: int
    partial_eval_every: int
    full_eval_every: int
    patience: int
    seed: int


class Protocol(NamedTuple):
    """How it is judged."""

    beam_size: int
    filter_history: bool
    cutoffs: tuple[int, ...]
    batch_size: int
    users: int | None  # of the validations during training
    seed: int


def train(
    dataset: RecDataset = RecDataset.AMAZON,
    dataset_folder: str = "dataset/amazon",
    dataset_split: str = "beauty",
    force_dataset_process: bool = False,
    pretrained_rqvae_path: str = "out/rqvae/amazon",
    pretrained_decoder_path: str | None = None,
    save_dir_root: str = "out/decoder/amazon",
    resume: bool = True,
    iterations: int = 4200,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.035,
    lr_schedule: str = "cosine",
    warmup_steps: int = 300,
    max_grad_norm: float = 1.0,
    label_smoothing: float = 0.0,
    dropout_p: float = 0.1,
    decoder_embed_dim: int = 128,
    attn_embed_dim: int = 384,
    attn_heads: int = 6,
    attn_layers: int = 4,
    decoder_ff_dim: int = 1024,
    max_seq_len: int = 20,
    encoder_attention: str = "causal",
    position: str = "relative",
    should_add_sep_token: bool = False,
    num_user_bins: int = 2000,
    vae_input_dim: int | None = None,
    vae_embed_dim: int | None = None,
    vae_hidden_dims: tuple[int, ...] | None = None,
    vae_codebook_size: int | None = None,
    vae_n_layers: int | None = None,
    beam_size: int = 50,
    filter_history: bool = True,
    top_k_eval_list: tuple[int, ...] = (1, 5, 10),
    eval_users: int | None = 4000,
    eval_batch_size: int = 64,
    partial_eval_every: int = 500,
    full_eval_every: int = 1050,
    patience: int = 5,
    log_every: int = 100,
    save_model_every: int = 1000,
    do_eval: bool = True,
    amp: bool = True,
    mixed_precision_type: str = "bf16",
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Trains the encoder-decoder on semantic IDs and reports it beside the baselines.

    Args:
        dataset: the source: AMAZON (2014 5-core as P5 packed it) or CUSTOM (a folder of RecBole atomic files).
        dataset_folder: where raw files lie or are downloaded to (raw/) and caches are kept (processed/).
        dataset_split: beauty, sports or toys for AMAZON; the files' name for CUSTOM. The run directory is named after it.
        force_dataset_process: read the raw files again although a cache exists.
        pretrained_rqvae_path: stage 1's run directory, or its save_dir_root, where the directory named after the split is taken.
        pretrained_decoder_path: run directory of this stage whose weights to start from.
        save_dir_root: the run directory is save_dir_root/dataset_split.
        resume: go on where this run directory stopped; False starts anew in a directory beside it.
        iterations: training steps.
        batch_size: (history, next item) pairs a step.
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
        beam_size: beams of the search; at least the largest k.
        filter_history: the search bars items of the user's history (a repeated item can then not be hit); selection uses this; the test
            report has the plain figure too.
        top_k_eval_list: cut-offs k of recall@k and ndcg@k; 10 among them.
        eval_users: users (a seeded sample) of the validations during training; None takes all. The final figures always have all.
        eval_batch_size: users a batch in evaluation.
        partial_eval_every: steps between validation losses.
        full_eval_every: steps between validations by beam search, which select the checkpoint.
        patience: stop after so many of them without a better ndcg@10; 0 never stops.
        log_every: steps between lines of log.jsonl.
        save_model_every: steps between checkpoints.
        do_eval: at the end evaluate all users on validation and, once, on test; False keeps the test unread.
        amp: mixed precision where the device is faster with it (a short probe decides on a CPU).
        mixed_precision_type: bf16 or no.
        device: auto, cuda, mps or cpu.
        seed: fixes everything random.
    """
    settings = dict(locals())
    data_config = DataConfig(dataset, dataset_folder, dataset_split, force_dataset_process)
    model_config = DecoderConfig(
        decoder_embed_dim,
        attn_embed_dim,
        attn_heads,
        attn_layers,
        decoder_ff_dim,
        dropout_p,
        max_seq_len,
        encoder_attention,
        position,
        should_add_sep_token,
        num_user_bins,
    )
    recipe = Recipe(
        iterations,
        batch_size,
        learning_rate,
        weight_decay,
        lr_schedule,
        warmup_steps,
        max_grad_norm,
        label_smoothing,
        log_every,
        save_model_every,
        partial_eval_every,
        full_eval_every,
        patience,
        seed,
    )
    protocol = Protocol(beam_size, filter_history, top_k_eval_list, eval_batch_size, eval_users, seed)
    check(recipe, protocol)
    placement = place(device, amp, mixed_precision_type)
    rqvae_run = find_snapshot(pretrained_rqvae_path, dataset_split)
    expected = (vae_input_dim, vae_embed_dim, vae_hidden_dims, vae_codebook_size, vae_n_layers)
    check_rqvae(rqvae_run, dict(zip(("input_dim", "embed_dim", "hidden_dims", "codebook_size", "num_levels"), expected)))
    run = Run(Path(save_dir_root) / dataset_split, settings)
    if run.finished:
        print((run.folder / "report.txt").read_text() + f"\n{run.folder} is finished; train.resume = False trains anew beside it")
        return

    corpus = load_corpus(data_config)
    tokenizer = SemanticIdTokenizer.load(rqvae_run).to(placement.device)
    tokenizer.check_items(corpus.item_keys)
    data = SeqData(corpus.histories, len(corpus.item_keys), max_seq_len, causal=encoder_attention == "causal").to(placement.device)
    set_seed(seed)
    model = EncoderDecoderRetrievalModel(model_config, tokenizer.vocab_sizes).to(placement.device)
    if pretrained_decoder_path is not None:
        load_weights(model, Path(pretrained_decoder_path) / WEIGHTS)
    describe_retriever(run.folder, model_config, tokenizer, corpus.titles)

    parameters, steps = sum(p.numel() for p in model.parameters()), data.steps_per_epoch(batch_size)
    print(f"device   {placement.why}")
    print(f"data     {statistics(corpus).describe()}; split {split_hash(corpus.histories)}")
    print(f"IDs      {rqvae_run}: codes {' + '.join(map(str, tokenizer.vocab_sizes))}")
    stacks = f"{attn_layers} encoder + {attn_layers} decoder layers of width {decoder_embed_dim}"
    print(f"model    {parameters:,} parameters: {stacks}, {encoder_attention} encoder")
    print(f"training {iterations:,} steps of {batch_size} targets, {steps:,} steps an epoch ({iterations / steps:.1f} epochs)")
    print(f"run      {run.folder}", flush=True)

    retriever = Retriever(model, tokenizer, corpus.titles)
    judge = Judge(retriever, data, tie_order(data.popularity.cpu(), corpus.item_keys, seed).to(placement.device), protocol, placement)
    seconds = fit(retriever, data, judge, recipe, placement, run)
    load_weights(model, run.folder / WEIGHTS)
    report(judge, corpus, run, seconds, do_eval)
    print(f'next     python recommend.py {run.folder} --history "{corpus.item_keys[0]}"')


def check(recipe: Recipe, protocol: Protocol) -> None:
    """Refuses settings that cannot train or be judged."""
    if recipe.schedule not in SCHEDULES:
        raise UserError(f"train.lr_schedule is {recipe.schedule!r}; it can be one of {', '.join(SCHEDULES)}")
    if min(recipe.iterations, recipe.batch_size, protocol.batch_size, recipe.full_eval_every, recipe.partial_eval_every) < 1:
        raise UserError("train.iterations, the batch sizes and the *_eval_every must all be at least 1")
    if min(recipe.log_every, recipe.save_every) < 1 or recipe.learning_rate <= 0:
        raise UserError("train.log_every and train.save_model_every must be at least 1 and train.learning_rate above 0")
    if recipe.max_grad_norm < 0 or recipe.weight_decay < 0 or not 0 <= recipe.label_smoothing < 1:
        raise UserError("train.max_grad_norm and train.weight_decay must be at least 0 and train.label_smoothing must lie in [0, 1)")
    if protocol.users is not None and protocol.users < 1:
        raise UserError(f"train.eval_users is {protocol.users}; give at least 1 user, or None for all")
    if 10 not in protocol.cutoffs or min(protocol.cutoffs) < 1:
        raise UserError(
            f"train.top_k_eval_list is {list(protocol.cutoffs)}; it needs positive cut-offs with 10 among them: selection is on ndcg@10"
        )
    if protocol.beam_size < max(protocol.cutoffs):
        raise UserError(f"train.beam_size = {protocol.beam_size} cannot fill recall@{max(protocol.cutoffs)}; raise it to at least that")


def check_rqvae(folder: Path, expected: dict[str, object]) -> None:
    """Refuses vae_* values that differ from those the tokenizer was trained with."""
    if all(value is None for value in expected.values()):
        return
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json to check the vae_* lines against; remove them")
    trained = json.loads(path.read_text())["rqvae"]
    names = {"num_levels": "vae_n_layers"}
    for name, value in expected.items():
        value = list(value) if isinstance(value, tuple) else value
        if value is not None and value != trained[name]:
            raise UserError(
                f"train.{names.get(name, 'vae_' + name)} is {value} but the tokenizer in {folder} was trained with {trained[name]}; "
                "remove the line (stage 2 takes these values from there) or train stage 1 with it"
            )


# -- training ---------------------------------------------------------------------------------------------------------------------------


def fit(retriever: Retriever, data: SeqData, judge: "Judge", recipe: Recipe, placement: Placement, run: Run) -> float:
    """Trains the model, from its last checkpoint if there is one; leaves the best weights in the run and returns seconds of training."""
    model, tokenizer, _ = retriever
    optimizer = make_optimizer(model, recipe)
    resumed = resume_from(run.folder, model, optimizer)
    start, best, waited, seconds = 0, -1.0, 0, 0.0
    if resumed:
        start = resumed.step
        best, waited, seconds = (float(str(resumed.state[name])) for name in ("best", "waited", "seconds"))
        print(f"resumed  from step {start}")
    run.cut_log(start)
    model.train()
    bar = tqdm(range(start, recipe.iterations), initial=start, total=recipe.iterations, desc="decoder", mininterval=1.0)
    losses: list[Tensor] = []
    lap = time.perf_counter()
    for step in bar:
        factor = learning_rate_factor(recipe.schedule, step, recipe.warmup_steps, recipe.iterations)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        batch = tokenizer(data.train_batch(step, recipe.batch_size, recipe.seed))
        with placement.autocast():
            output = model(batch, recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        if recipe.max_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        losses.append(output.loss.detach())
        done = step + 1
        last = done == recipe.iterations
        saves = done % recipe.save_every == 0 and not last
        if done % recipe.log_every == 0 or last or saves:
            loss = torch.stack(losses).mean().item()
            losses.clear()
            if not loss < float("inf"):
                raise UserError(
                    f"the loss is {loss} near step {done} at learning rate {recipe.learning_rate * factor:.2g}; lower train.learning_rate"
                )
            bar.set_postfix_str(f"loss {loss:.3f}, best ndcg@10 {best:.4f}" if best >= 0 else f"loss {loss:.3f}")
            run.log(step=done, loss=loss, level_losses=output.level_losses.tolist(), lr=recipe.learning_rate * factor)
        if done % recipe.partial_eval_every == 0 or done % recipe.full_eval_every == 0 or last:
            seconds += time.perf_counter() - lap
            if done % recipe.full_eval_every == 0 or last:
                metrics = judge.model("validation", judge.protocol.filter_history, sample=True).metrics
                run.log(step=done, seconds=round(seconds), validation=metrics)
                tqdm.write(
                    f"step {done:6d}  validation recall@10 {metrics['recall@10']:.4f}  ndcg@10 {metrics['ndcg@10']:.4f}  {seconds:.0f} s"
                )
                waited = 0 if metrics["ndcg@10"] > best else waited + 1
                if metrics["ndcg@10"] > best:
                    best = metrics["ndcg@10"]
                    save_weights(model, run.folder / WEIGHTS)
            else:
                run.log(step=done, seconds=round(seconds), validation_loss=judge.validation_loss())
            lap = time.perf_counter()
        if saves:
            seconds, lap = seconds + time.perf_counter() - lap, time.perf_counter()
            save_checkpoint(run.folder, done, model, optimizer, {"best": best, "waited": waited, "seconds": seconds})
        if recipe.patience and waited >= recipe.patience:
            tqdm.write(f"stopped: no better ndcg@10 in {recipe.patience} validations")
            break
    return seconds


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays the matrices of linear layers only."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in linear], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in linear], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


# -- evaluation -------------------------------------------------------------------------------------------------------------------------


class Judge:
    """Evaluates the model and the baselines on the same users with the same code."""

    def __init__(self, retriever: Retriever, data: SeqData, order: Tensor, protocol: Protocol, placement: Placement) -> None:
        self.retriever, self.data, self.order, self.protocol, self.placement = retriever, data, order, protocol, placement
        self.sample: Tensor | None = None
        if protocol.users is not None and protocol.users < len(data.split.users):
            generator = torch.Generator().manual_seed(protocol.seed)
            chosen = torch.randperm(len(data.split.users), generator=generator)[: protocol.users]
            self.sample = data.split.users[chosen.to(data.split.users.device)]

    def batches(self, part: Part, sample: bool = False) -> Iterable[SeqBatch]:
        return self.data.eval_batches(part, self.protocol.batch_size, self.sample if sample else None)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Teacher-forced loss of the validation items of the sampled users."""
        model, tokenizer, _ = self.retriever
        model.eval()
        losses, counts = [], []
        for batch in self.batches("validation", sample=True):
            with self.placement.autocast():
                losses.append(model(tokenizer(batch)).loss * len(batch.user_ids))
            counts.append(len(batch.user_ids))
        model.train()
        return torch.stack(losses).sum().item() / sum(counts)

    @torch.no_grad()
    def model(self, part: Part, filter_history: bool, sample: bool = False, progress: bool = False) -> Evaluation:
        """The model's item-level figures, and what matching codes would have claimed."""
        model, tokenizer, _ = self.retriever
        model.eval()
        width = max(*self.protocol.cutoffs, 10)
        ranked, targets, tuples = [], [], []
        for batch in tqdm(list(self.batches(part, sample)), desc=f"beam search, {part}", disable=not progress, mininterval=1.0):
            with self.placement.autocast():
                found = self.retriever.search(batch, self.protocol.beam_size, batch.seen if filter_history else None)
            ranked.append(pad_to(sort_with_ties(found.item_ids, found.log_probs, self.order), width))
            tuples.append(pad_to(found.tuples, width))
            targets.append(batch.targets[:, 0])
        model.train()
        target = torch.cat(targets)
        return evaluate_lists(
            torch.cat(ranked).cpu(),
            target.cpu(),
            part,
            filter_history,
            self.protocol.cutoffs,
            torch.cat(tuples).cpu(),
            tokenizer.tuples_of(target).cpu(),
        )

    def baseline(self, recommender: MostPopular, part: Part, filter_history: bool) -> Evaluation:
        """A baseline's figures on all users."""
        width = max(*self.protocol.cutoffs, 10)
        ranked, targets = [], []
        for batch in self.batches(part):
            ranked.append(recommender.recommend(batch, width, filter_history))
            targets.append(batch.targets[:, 0])
        return evaluate_lists(torch.cat(ranked).cpu(), torch.cat(targets).cpu(), part, filter_history, self.protocol.cutoffs)

    def baselines(self, part: Part, filter_history: bool) -> list[tuple[str, Evaluation]]:
        """Most popular, and the items that most often followed the last one; both counted on the training part."""
        train = self.data.split.train
        markov = LastItemMarkov(train.item_ids, train.offsets, self.data.num_items, self.order)
        recommenders: list[tuple[str, MostPopular]] = [("most popular", MostPopular(self.order)), ("last item -> next (Markov)", markov)]
        return [(name, self.baseline(recommender, part, filter_history)) for name, recommender in recommenders]


def pad_to(lists: Tensor, width: int) -> Tensor:
    """The first ``width`` columns [B, width], PAD where ``lists`` [B, W] is narrower."""
    return nn.functional.pad(lists[:, :width], (0, max(0, width - lists.shape[1])), value=PAD)


def report(judge: Judge, corpus: Corpus, run: Run, seconds: float, do_eval: bool) -> None:
    """Final figures of the selected checkpoint beside the baselines': all users on validation and, once, on test."""
    barred = judge.protocol.filter_history
    metrics: dict[str, object] = {"training_seconds": round(seconds, 1)}
    parts: list[Part] = ["validation", "test"] if do_eval else ["validation"]
    text = []
    for part in parts:
        rows = [("TIGER", judge.model(part, barred, progress=True))]
        if part == "test":
            rows.append((f"TIGER, history {'not ' if barred else ''}barred", judge.model(part, not barred, progress=True)))
        rows += judge.baselines(part, barred)
        text.append(evaluation_report(rows))
        metrics[part] = {name: evaluation.to_json() for name, evaluation in rows}
    text.append(examples(judge, corpus))
    run_text = "\n\n".join(text)
    write_text(run.folder / "report.txt", run_text + "\n")
    run.finish(metrics)
    print(f"\n{run_text}\n\ntraining {seconds:.0f} s\nsaved    {run.folder}")


def examples(judge: Judge, corpus: Corpus, count: int = 5) -> str:
    """A few users' histories with the titles that the model recommends."""
    users = judge.data.split.users
    chosen = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(judge.protocol.seed))[:count].to(users.device)]
    histories, targets, recommended = [], [], []
    judge.retriever.model.eval()
    ranks: list[int] = []
    for batch in judge.data.eval_batches("validation", count, chosen):
        found = judge.retriever.search(batch, judge.protocol.beam_size, batch.seen if judge.protocol.filter_history else None)
        for history, target, items in zip(batch.item_ids.tolist(), batch.targets[:, 0].tolist(), found.item_ids.tolist()):
            histories.append([corpus.titles[item] for item in history if item != PAD])
            targets.append(corpus.titles[target])
            recommended.append([corpus.titles[item] for item in items[:5] if item != PAD])
        ranks += target_ranks(pad_to(found.item_ids, 5), batch.targets[:, 0]).tolist()
    return sample_table(histories, targets, recommended, ranks, top=5)


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or ""))

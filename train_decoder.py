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
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from data.corpus import Corpus
from data.processed import SeqData, load_corpus
from data.shell import command
from data.splits import met_before
from evaluate.evaluation import evaluation_report
from evaluate.plots import loss_plot, recall_plot
from evaluate.rankers import Ranker
from modules.catalogue import Catalogue
from modules.model import EncoderDecoderRetrievalModel
from modules.nearest import directions
from modules.runtime.config.declaration import filled
from modules.runtime.config.main import run_script
from modules.runtime.evaluation.baselines import Untrained
from modules.runtime.evaluation.evaluator import Evaluator, Part, Protocol
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.runs.hub import find_snapshot, push
from modules.runtime.runs.memory_files import save_memory
from modules.runtime.runs.run import Run
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.sequences import split_sequences
from modules.runtime.runs.stage1_run import refuse_contradictions
from modules.runtime.runs.stage2_run import Retriever, SearchSettings, precision_name, record_search, write_stage2_files
from modules.runtime.runs.text_vectors import load_vectors, save_vectors
from modules.runtime.training.checkpoint import WEIGHTS, load_weights, save_weights
from modules.runtime.training.device import Placement, memory_advice, place, set_seed
from modules.runtime.training.processes import Ranks
from modules.runtime.training.trainer import LossShare, Plan, Trainer
from modules.scheduler import learning_rate_factor
from modules.tokenizer.semids import SemanticIdTokenizer

REPORT = "report.txt"
EVALUATION_KNOBS = "train.eval_batch_size or train.beam_size"


def train(options: DecoderOptions) -> None:
    """Trains the encoder-decoder on semantic IDs and reports it beside the baselines.

    Raises:
        UserError: what is wrong with the data, the tokenizer's run, the run directory or the machine.
    """
    ranks = Ranks(options.device)
    placement = place(options.device, options.amp, options.mixed_precision_type, ranks)
    rqvae_run = find_snapshot(options.pretrained_rqvae_path, options.dataset_split, "rqvae")
    pretrained = options.pretrained_decoder_path and find_snapshot(options.pretrained_decoder_path, options.dataset_split, "decoder")
    refuse_contradictions(rqvae_run, options)
    with Run(options.save_dir_root, options.dataset_split, options.settings(), ranks) as run:
        if run.finished:
            told = (run.folder / REPORT).read_text() if (run.folder / REPORT).exists() else f"({REPORT} is gone)"
            run.say(f"{told}\n{run.folder} is finished; train.resume = False trains anew beside it")
            upload(options, run)
            return
        with ranks.main_first():
            corpus = load_corpus(options.data)
        tokenizer = SemanticIdTokenizer.load(rqvae_run).to(placement.device)
        tokenizer.check_items(corpus.item_keys)
        data, order, moments, described, split_name = split_sequences(
            corpus, options.model, options.split_by, options.split_quantiles, options.seed, placement.device
        )
        tokenizer = tokenizer.ordered_by(order)
        set_seed(options.seed)
        vectors = load_vectors(rqvae_run, tokenizer.num_items)
        catalogue = None
        if options.model.needs_catalogue:
            texts = directions(vectors).to(placement.device) if vectors is not None and options.text_projection else None
            catalogue = Catalogue(tokenizer.trie, tokenizer.sem_ids, data.popularity > 0, texts)
        model = EncoderDecoderRetrievalModel(options.model, tokenizer.vocab_sizes, catalogue).to(placement.device)
        if pretrained:
            load_weights(model, pretrained / WEIGHTS)
        if ranks.main:
            write_stage2_files(run.folder, options.model, tokenizer, corpus.titles, corpus.user_keys, run.begun)
            if vectors is not None and options.text_projection:
                save_vectors(run.folder, vectors)
        plan = make_plan(options, ranks)
        steps, epoch = plan.iterations, data.steps_per_epoch(plan.batch_size) / plan.gradient_accumulate_every
        stacks = f"{options.attn_layers} encoder + {options.attn_layers} decoder layers of width {options.decoder_embed_dim}"
        run.say(f"device   {placement.why}{f', {ranks.count} processes' if ranks.count > 1 else ''}")
        run.say(f"data     {described.describe()}; split {split_name}")
        if moments is not None:
            users = f"{len(data.split.validation.users):,} validation and {len(data.split.test.users):,} test users"
            run.say(f"moments  train before {moments.validation_from:.0f}, test from {moments.test_from:.0f} (seconds); {users}")
        for part in parts_read(options.do_eval) if options.filter_history else []:
            if barred := met_before(data.split, part).describe():
                run.say(barred)
        run.say(f"IDs      {rqvae_run}: codes {' + '.join(map(str, tokenizer.vocab_sizes))}")
        if vectors is None:
            run.say(f"texts    {rqvae_run} keeps no text vectors: the memory is one without texts (train stage 1 again for one with them)")
        run.say(f"model    {sum(p.numel() for p in model.parameters()):,} parameters: {stacks}, {options.encoder_attention} encoder")
        targets = plan.batch_size * plan.gradient_accumulate_every
        run.say(f"training {steps:,} steps of {targets} targets, {epoch:,.0f} steps an epoch ({steps / epoch:.1f} epochs)")
        run.say(f"run      {run.describe()}")

        searched = SearchSettings(options.beam_size, precision_name(placement.autocast_dtype), order, options.memory_weight)
        untrained = Untrained(data.split.train, order, vectors) if options.memory_weight else None
        retriever = Retriever(model, tokenizer, corpus.titles, searched, None if untrained is None else untrained.memory)
        protocol = Protocol(options.filter_history, options.top_k_eval_list, options.eval_batch_size, options.eval_users, options.seed)
        evaluator = Evaluator(Searcher(retriever, cuda_graphs=options.cuda_graphs), data, protocol, ranks, split=split_name)
        run.track(options.wandb_logging, options.wandb_project)
        seconds = fit(retriever, data, evaluator, options, plan, placement, ranks, run)
        ranks.wait()
        load_weights(model.eval(), run.folder / WEIGHTS)
        rankers = (untrained or Untrained(data.split.train, order, vectors)).rankers()
        if ranks.main:
            if untrained is not None:
                save_memory(run.folder, untrained.memory)
            record_search(run.folder, retriever.settings._replace(precision=precision_name(evaluator.ranker.dtype)))
        with memory_advice(EVALUATION_KNOBS):
            report(evaluator, rankers, corpus, run, seconds, options.do_eval, {"split": split_name, **described._asdict()})
        upload(options, run)
        run.say(f"next     {command('recommend.py', run.folder, '--history', corpus.item_keys[0])}")


def upload(options: DecoderOptions, run: Run) -> None:
    """Uploads the finished run where that was asked for."""
    if options.push_decoder_to_hf and run.ranks.main:
        run.say(f"pushed   {push(run.folder, str(options.decoder_hf_model_name))}")


# -- training ---------------------------------------------------------------------------------------------------------------------------


def make_plan(options: DecoderOptions, ranks: Ranks) -> Plan:
    """How the model is trained."""

    def factor(step: int) -> float:
        return learning_rate_factor(options.lr_schedule, step, options.warmup_steps, options.iterations)

    batch_size = options.batch_size if options.split_batches else options.batch_size * ranks.count
    return filled(Plan, options, batch_size=batch_size, factor=factor)


def fit(
    retriever: Retriever,
    data: SeqData,
    evaluator: Evaluator,
    options: DecoderOptions,
    plan: Plan,
    placement: Placement,
    ranks: Ranks,
    run: Run,
) -> float:
    """Trains the model, from its last checkpoint if there is one; leaves the best weights in the run and returns seconds of training."""
    model, tokenizer = retriever.model, retriever.tokenizer
    trainer = Trainer(run, model, model, make_optimizer(model, options), plan, placement, ranks, {"best": -1.0, "waited": 0.0})
    evaluator.ranker.dtype, evaluator.pause = trainer.placement.autocast_dtype, trainer.interruption_point
    with trainer.running("decoder") as steps:
        for step in steps:
            if trainer.due(step, options.log_every):
                figures = trainer.means()
                trainer.show("loss", f"loss {figures['loss']:.3f}")
                run.log(step=step, **figures, lr=trainer.learning_rate)
            if trainer.due(step, options.full_eval_every):
                select(evaluator, trainer, options, run, step)
            elif trainer.due(step, options.partial_eval_every):
                with trainer.evaluating(EVALUATION_KNOBS):
                    run.log(step=step, seconds=round(trainer.seconds), validation_loss=evaluator.validation_loss())

            def share(micro: int, step: int = step) -> LossShare:
                number = step * plan.gradient_accumulate_every + micro
                batch = tokenizer(data.train_batch(number, plan.batch_size, plan.seed, ranks.index, ranks.count))
                output = trainer.objective(batch, options.label_smoothing)
                return LossShare(output.loss, batch.target_mask.sum(), output.parts)

            evaluates = trainer.due(step + 1, options.full_eval_every) or trainer.due(step + 1, options.partial_eval_every)
            trainer.update(step, share, save=evaluates)
    return trainer.seconds


def select(evaluator: Evaluator, trainer: Trainer, options: DecoderOptions, run: Run, step: int) -> None:
    """Validates by beam search, keeps the weights if they are the best so far, and ends the training when patience does."""
    with trainer.evaluating(EVALUATION_KNOBS):
        metrics = evaluator.model("validation", evaluator.protocol.filter_history, sample=True).metrics
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
    if options.patience and trainer.state["waited"] >= options.patience:
        trainer.say(f"stopped: no better ndcg@10 in {options.patience} validations")
        trainer.stopped = True


def make_optimizer(model: nn.Module, options: DecoderOptions) -> torch.optim.Optimizer:
    """AdamW that decays the matrices of linear layers only."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in linear], "weight_decay": options.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in linear], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)


def parts_read(do_eval: bool) -> list[Part]:
    """The parts of the split whose targets a run may look at."""
    return ["validation", "test"] if do_eval else ["validation"]


# -- evaluation -------------------------------------------------------------------------------------------------------------------------


def report(
    evaluator: Evaluator,
    rankers: Sequence[Ranker],
    corpus: Corpus,
    run: Run,
    seconds: float,
    do_eval: bool,
    described: Mapping[str, object],
) -> None:
    """Final figures of the selected checkpoint beside the baselines': all users on validation and, once, on test."""
    barred = evaluator.protocol.filter_history
    parts = parts_read(do_eval)
    met = {part: met_before(evaluator.data.split, part) for part in parts}
    counted = {part: already.cases for part, already in met.items()}
    metrics: dict[str, object] = {"training_seconds": round(seconds, 1), "data": {**described, "held_out_in_history": counted}}
    text = []
    for part in parts:
        rows = [("TIGER", evaluator.model(part, barred, progress=True))]
        if part == "test":
            rows.append((f"TIGER, history {'not ' if barred else ''}barred", evaluator.model(part, not barred, progress=True)))
        rows += evaluator.baselines(part, barred, rankers)
        if evaluator.ranks.main:
            run.picture(f"recall_{part}", recall_plot(rows))
            names = list(rows[0][1].metrics)
            run.tracker.table(part, ["model", *names], [[name, *(row.metrics.get(metric) for metric in names)] for name, row in rows])
        text.append("\n".join(filter(None, [evaluation_report(rows), met[part].describe() if barred else ""])))
        metrics[part] = {name: evaluation.to_json() for name, evaluation in rows}
        unseen = evaluator.unseen(part, rows) if part == "test" else []
        if unseen and evaluator.ranks.main:
            text.append(evaluation_report(unseen))
            metrics["test, unseen items"] = {name: evaluation.to_json() for name, evaluation in unseen}
    samples = evaluator.samples()
    text.append(samples.table(corpus.titles))
    run_text = "\n\n".join(text)
    run.write(REPORT, run_text + "\n")
    if evaluator.ranks.main:
        run.picture("training", loss_plot(run.lines()))
        run.tracker.table("samples", ["history", "held out", "recommended"], samples.rows(corpus.titles))
    run.finish(metrics)
    run.say(f"\n{run_text}\n\ntraining {seconds:.0f} s\nsaved    {run.folder}")


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or ""))

"""Stage 2: user histories -> Transformer encoder-decoder -> the next item's semantic ID, by constrained beam search.

    python train_decoder.py configs/decoder_amazon.gin                       # Amazon Beauty, after train_rqvae.py configs/rqvae_amazon.gin
    python train_decoder.py configs/decoder_amazon.gin dataset_split=toys    # any parameter can be overridden: name=value
    python train_decoder.py configs/sasrec_amazon.gin                        # the trained baseline: SASRec, which needs no stage 1

Reads the semantic IDs of a stage-1 run, trains on every (history, next item) pair of the training part, selects the checkpoint on
validation ndcg@10 and reads the test items once, at the end. The run directory under train.save_dir_root holds the weights, config.gin,
log.jsonl and metrics.json; `python recommend.py RUN --history "..."` asks it for items. The same command again goes on where an
interrupted run stopped. --print-config prints the resolved config, --help every parameter.
SASRec (train.model = "sasrec") is trained, selected, evaluated and asked in the same way, on item ids instead of semantic IDs.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread that spins slows every busy process beside it on a CPU

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from data.corpus import Corpus
from data.processed import SeqData, load_corpus
from data.schemas import PAD
from data.shell import command
from data.splits import met_before
from evaluate.evaluation import evaluation_report
from evaluate.plots import loss_plot, recall_plot
from evaluate.rankers import Ranker
from modules.mixture import parse_shares
from modules.runtime.config.declaration import filled
from modules.runtime.config.main import run_script
from modules.runtime.evaluation.baselines import Untrained
from modules.runtime.evaluation.evaluator import Evaluator, Part, Protocol
from modules.runtime.evaluation.light_gcn import light_gcn_ranker
from modules.runtime.evaluation.mixtures import mixed
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.runs.data_record import DataRecord, check_data, check_finished, data_record, hash_of
from modules.runtime.runs.hub import find_snapshot, push
from modules.runtime.runs.ranks_file import RanksFile
from modules.runtime.runs.recommender import Recommender
from modules.runtime.runs.run import Run
from modules.runtime.runs.sequences import split_sequences
from modules.runtime.runs.stage2_models import check_pretrained, find_stage_one, load_stage_one, make_recommender
from modules.runtime.runs.stage2_run import PRECISIONS, load_search
from modules.runtime.runs.text_vectors import save_vectors
from modules.runtime.training.checkpoint import WEIGHTS, load_weights, save_weights
from modules.runtime.training.device import Placement, memory_advice, place, set_seed
from modules.runtime.training.processes import Ranks
from modules.runtime.training.trainer import LossShare, Plan, Trainer
from modules.scheduler import learning_rate_factor

REPORT = "report.txt"
EVALUATION_KNOBS = "train.eval_batch_size or, of TIGER, train.beam_size"


def train(options: DecoderOptions) -> None:
    """Trains the model that the options name and reports it beside the baselines.

    Raises:
        UserError: what is wrong with the data, the tokenizer's run, the run directory or the machine.
    """
    ranks = Ranks(options.device)
    placement = place(options.device, options.amp, options.mixed_precision_type, ranks)
    rqvae_run = find_stage_one(options)
    pretrained = options.pretrained_decoder_path and find_snapshot(options.pretrained_decoder_path, options.dataset_split, "decoder")
    with Run(options.save_dir_root, options.dataset_split, options.settings(), ranks) as run:
        if run.finished:
            check_finished(run, lambda: data_of_finished(options))
            told = (run.folder / REPORT).read_text() if (run.folder / REPORT).exists() else f"({REPORT} is gone)"
            run.say(f"{told}\n{run.folder} is finished; train.resume = False trains anew beside it")
            upload(options, run)
            return
        with ranks.main_first():
            corpus = load_corpus(options.data)
        stage_one = None if rqvae_run is None else load_stage_one(rqvae_run, corpus)
        vectors = None if stage_one is None else stage_one.vectors
        sequences = split_sequences(corpus, options, placement.device)
        data, order, moments, described, split_name = sequences
        with ranks.main_first():
            if ranks.main:
                check_data(run, data_record(corpus, split_name, hash_of(vectors)))
        untrained = Untrained(data.split.train, order, vectors) if options.memory_weight else None
        set_seed(options.seed)
        memory = None if untrained is None else untrained.memory
        recommender = make_recommender(options, corpus, sequences, stage_one, memory, placement)
        model = recommender.model
        if pretrained:
            check_pretrained(pretrained, recommender)
            load_weights(model, pretrained / WEIGHTS)
        if ranks.main:
            recommender.write(run.folder, corpus.user_keys, run.begun)
            if vectors is not None and options.text_projection:
                save_vectors(run.folder, vectors)
        plan = make_plan(options, ranks)
        steps, epoch = plan.iterations, data.steps_per_epoch(plan.batch_size) / plan.gradient_accumulate_every
        run.say(f"device   {placement.why}{f', {ranks.count} processes' if ranks.count > 1 else ''}")
        run.say(f"data     {described.describe()}; split {split_name}")
        if moments is not None:
            users = f"{len(data.split.validation.users):,} validation and {len(data.split.test.users):,} test users"
            run.say(f"moments  train before {moments.validation_from:.0f}, test from {moments.test_from:.0f} (seconds); {users}")
        for part in parts_read(options.do_eval) if options.filter_history else []:
            if barred := met_before(data.split, part).describe():
                run.say(barred)
        if stage_one is not None and recommender.sem_ids is not None:
            run.say(f"IDs      {stage_one.folder}: codes {' + '.join(map(str, stage_one.tokenizer.vocab_sizes))}")
        if vectors is None:
            kept = f"{rqvae_run} keeps no text vectors" if rqvae_run else f"no run of stage 1 in {options.pretrained_rqvae_path}"
            run.say(f"texts    {kept}: the memory is one without texts (train stage 1 for one with them)")
        run.say(f"model    {sum(p.numel() for p in model.parameters()):,} parameters: {recommender.describe()}")
        targets = plan.batch_size * plan.gradient_accumulate_every
        run.say(f"training {steps:,} steps of {targets} targets, {epoch:,.0f} steps an epoch ({steps / epoch:.1f} epochs)")
        run.say(f"run      {run.describe()}")

        protocol = Protocol(options.filter_history, options.top_k_eval_list, options.eval_batch_size, options.eval_users, options.seed)
        evaluator = Evaluator(recommender, data, protocol, ranks, split=split_name)
        run.track(options.wandb_logging, options.wandb_project)
        if run.metrics is None:
            seconds = fit(recommender, data, evaluator, options, plan, placement, ranks, run)
        else:  # its training ended, and its test part is asked for since
            seconds, searched_before = float(str(run.metrics["training_seconds"])), load_search(run.folder)
            evaluator.ranker.dtype = evaluator.ranker.dtype if searched_before is None else PRECISIONS[searched_before.precision]
        ranks.wait()
        load_weights(model.eval(), run.folder / WEIGHTS)
        untrained = untrained or Untrained(data.split.train, order, vectors)
        variants = [mixed(recommender, untrained.memory, parse_shares(shares)) for shares in options.mixtures]
        rankers = [*variants, *untrained.rankers()]
        if options.light_gcn_epochs:
            rankers.append(light_gcn_ranker(untrained, evaluator, options.light_gcn_epochs, run.say))
        if ranks.main:
            recommender.write_search(run.folder)
        with memory_advice(EVALUATION_KNOBS):
            report(evaluator, rankers, corpus, run, seconds, options.do_eval, {"split": split_name, **described._asdict()})
        upload(options, run)
        run.say(f"next     {command('recommend.py', run.folder, '--history', corpus.item_keys[0])}")


def data_of_finished(options: DecoderOptions) -> DataRecord:
    """What the data are now; the run of stage 1, which may be gone, is not asked."""
    corpus = load_corpus(options.data)
    return data_record(corpus, split_sequences(corpus, options, torch.device("cpu")).split)


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
    recommender: Recommender,
    data: SeqData,
    evaluator: Evaluator,
    options: DecoderOptions,
    plan: Plan,
    placement: Placement,
    ranks: Ranks,
    run: Run,
) -> float:
    """Trains the model, from its last checkpoint if there is one; leaves the best weights in the run and returns seconds of training."""
    model = recommender.model
    trainer = Trainer(run, model, model, make_optimizer(model, options), plan, placement, ranks, {"best": -1.0, "waited": 0.0})
    recommender.dtype, evaluator.pause = trainer.placement.autocast_dtype, trainer.interruption_point
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
                batch = data.train_batch(number, plan.batch_size, plan.seed, ranks.index, ranks.count)
                output = trainer.objective(recommender.inputs(batch), options.label_smoothing)
                return LossShare(output.loss, (batch.targets != PAD).sum(), output.parts)

            evaluates = trainer.due(step + 1, options.full_eval_every) or trainer.due(step + 1, options.partial_eval_every)
            trainer.update(step, share, save=evaluates)
    return trainer.seconds


def select(evaluator: Evaluator, trainer: Trainer, options: DecoderOptions, run: Run, step: int) -> None:
    """Validates by search, keeps the weights if they are the best so far, and ends the training when patience does."""
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
    barred, name = evaluator.protocol.filter_history, evaluator.ranker.name
    parts = parts_read(do_eval)
    met = {part: met_before(evaluator.data.split, part) for part in parts}
    counted = {part: already.cases for part, already in met.items()}
    metrics: dict[str, object] = {"training_seconds": round(seconds, 1), "data": {**described, "held_out_in_history": counted}}
    text = []
    ranks_file = RanksFile(run.folder, corpus.user_keys, corpus.item_keys, evaluator.data.popularity)
    evaluator.record = ranks_file.add
    for part in parts:
        if part == "test":
            run.record_test_reading()
        rows = [(name, evaluator.model(part, barred, progress=True, row=name))]
        if part == "test":
            plain = f"{name}, history {'not ' if barred else ''}barred"
            rows.append((plain, evaluator.model(part, not barred, progress=True, row=plain)))
        rows += evaluator.baselines(part, barred, rankers)
        if evaluator.ranks.main:
            run.picture(f"recall_{part}", recall_plot(rows))
            names = list(rows[0][1].metrics)
            run.tracker.table(part, ["model", *names], [[name, *(row.metrics.get(metric) for metric in names)] for name, row in rows])
        text.append("\n".join(filter(None, [evaluation_report(rows), met[part].describe() if barred else ""])))
        metrics[part] = {row: evaluation.to_json() for row, evaluation in rows}
        unseen = evaluator.unseen(part, rows) if part == "test" else []
        if unseen and evaluator.ranks.main:
            text.append(evaluation_report(unseen))
            metrics["test, unseen items"] = {name: evaluation.to_json() for name, evaluation in unseen}
    samples = evaluator.samples()
    text.append(samples.table(corpus.titles))
    run_text = "\n\n".join(text)
    run.write(REPORT, run_text + "\n")
    if evaluator.ranks.main:
        ranks_file.finish()
        run.picture("training", loss_plot(run.lines()))
        run.tracker.table("samples", ["history", "held out", "recommended"], samples.rows(corpus.titles))
    run.finish(metrics)
    run.say(f"\n{run_text}\n\ntraining {seconds:.0f} s\nsaved    {run.folder}")


if __name__ == "__main__":
    sys.exit(run_script(train, __doc__ or ""))

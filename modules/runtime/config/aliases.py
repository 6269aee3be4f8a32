"""Names that users of other TIGER code have in their config files: what each is called here, or what is true of it here.

A parameter of the script always wins over these tables: once ``train`` has a parameter of that name, its entry means nothing and can go.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from modules.runtime.config.gin import Binding
from modules.runtime.config.grammar import Name
from modules.runtime.config.suggest import did_you_mean

ALIASES = {
    "t5_d_model": "decoder_embed_dim",
    "t5_num_heads": "attn_heads",
    "t5_d_ff": "decoder_ff_dim",
    "t5_num_layers": "attn_layers",
    "t5_dropout": "dropout_p",
    "t5_dropout_rate": "dropout_p",
    "top_k_for_generation": "beam_size",
    "embedding_dim": "decoder_embed_dim",
    "attn_dim": "attn_embed_dim",
    "num_heads": "attn_heads",
    "dropout": "dropout_p",
    "num_user_embeddings": "num_user_bins",
    "num_warmup_steps": "warmup_steps",
    "encoder_model_name": "text_model",
    "eval_every": "full_eval_every",  # stage 2 had one kind of evaluation; stage 1's eval_every is a parameter
}
"""Other code's name, and the parameter that it is here."""

NONE_IS = {"num_user_bins": 0}
"""Where other code writes None to leave something out, and what says so here."""

FROM_TOKENIZER = {
    "sem_id_dim",
    "num_item_embeddings",
    "num_hierarchies",
    "num_embeddings_per_hierarchy",
}
"""Stage 1's settings that a stage-2 file of other code repeats."""

SILENT = {"vae_hf_model_name", "decoder_hf_model_name", "wandb_project", "wandb_log_interval"}
"""Details of something that another parameter asks for."""

ABSENT = {
    "push_vae_to_hf": "train_rqvae.py shares stage 1; here it is train.push_decoder_to_hf with train.decoder_hf_model_name",
    "push_decoder_to_hf": "train_decoder.py shares stage 2; here it is train.push_vae_to_hf with train.vae_hf_model_name",
    "train_data_subsample": "every (history, next item) pair is trained on once an epoch",
    "model_jagged_mode": "batches are grouped by length, so there is hardly any padding to leave out",
    "model_type": "the model is an encoder-decoder; a decoder alone is not built in",
    "should_check_prefix": "the search writes existing items only, by way of a prefix trie",
    "eval_gen_mode": "items are found by a deterministic beam search",
    "eval_num_samples": "items are found by a deterministic beam search; train.beam_size is its width",
    "n_layers": "it counted the layers of both stacks; train.attn_layers counts those of each, so write half of it there",
    "epochs": "training is counted in steps; set train.iterations (the start of a run prints how many steps an epoch has)",
    "warmup_epochs": "the warm-up is counted in steps; set train.warmup_steps",
    "save_every_epoch": "checkpoints are counted in steps; set train.save_model_every",
    "eval_valid_every_epoch": "validations are counted in steps; set train.full_eval_every",
    "eval_test_every_epoch": "the test items are read once, at the end (train.do_eval), and never select a checkpoint",
    "vae_codebook_last_layer_mode": "all levels share the estimator of train.vae_codebook_mode; Sinkhorn assignment of the last "
    'level is train.vae_sinkhorn = "last_level"',
}
"""Names that ask for something absent, and what is true of it here."""

HARMLESS: dict[str, tuple[object, ...]] = {
    "model_jagged_mode": (True,),
    "model_type": ("ENCODER_DECODER",),
    "should_check_prefix": (True,),
    "eval_gen_mode": ("beam",),
}
"""Their values that ask for nothing absent, beside False, 0, "" and None."""

ONLY_IN_STAGE_TWO = "decoder_embed_dim"
HEADS = ("attn_heads", "t5_num_heads", "num_heads")
HEAD_WIDTH = "t5_d_kv"
T5_HEAD_WIDTH = 64
"""What a T5 has where its file does not say."""


class Translated(NamedTuple):
    bindings: list[Binding]  # of this script's parameters only
    notes: list[str]
    mistakes: list[str]


def translate(bindings: Sequence[Binding], parameters: Collection[str], default_heads: int) -> Translated:
    """Replaces other code's names by this script's.

    Args:
        bindings: all, in the order of reading.
        parameters: those of ``train``.
        default_heads: attention heads where no binding says otherwise.
    """
    kept: list[Binding] = []
    notes: dict[str, None] = {}  # each once, in order
    mistakes = []
    stage_two = ONLY_IN_STAGE_TWO in parameters
    for binding in bindings:
        name, target = binding.name, ALIASES.get(binding.name)
        if name in parameters:
            kept.append(binding)
        elif target in parameters:
            kept.append(binding._replace(name=str(target)))
            notes[f"train.{name} is {target} here"] = None
        elif name in FROM_TOKENIZER and stage_two:
            if not _is_off(binding):
                notes[f"train.{name} comes from the tokenizer's run here; the line has no effect"] = None
        elif name in ABSENT:
            if not _is_off(binding):
                mistakes.append(f"{binding.where}train.{name}: {ABSENT[name]}; remove the line")
        elif name not in SILENT and not (name == HEAD_WIDTH and stage_two):
            known = [*parameters, *(old for old, new in ALIASES.items() if new in parameters)]
            near = did_you_mean(name, known) or "; --help lists them all"
            mistakes.append(f"{binding.where}there is no parameter train.{name}{near}")
        width = attention_width(binding, bindings, default_heads) if stage_two else None
        if width is not None:
            kept.append(binding._replace(name="attn_embed_dim", value=width, typed=None))
            notes[f"train.{name} makes attn_embed_dim (heads x head width) {width} here"] = None
    names = {binding.name for binding in bindings}
    if stage_two and "attn_layers" in names and names & {*FROM_TOKENIZER, *ABSENT, *SILENT} - set(parameters):
        notes["train.attn_layers counts the layers of each stack here; older files meant encoder and decoder together"] = None
    return Translated(kept, list(notes), mistakes)


def attention_width(binding: Binding, bindings: Sequence[Binding], default_heads: int) -> int | None:
    """The attn_embed_dim that a line with one of T5's names asks for, heads x width of a head; None for other lines."""
    heads = next((other.value for other in reversed(bindings) if other.name in HEADS), default_heads)
    said = {other.name for other in bindings}
    width = binding.value if binding.name == HEAD_WIDTH else None
    if binding.name == "t5_num_heads" and not said & {HEAD_WIDTH, "attn_embed_dim", "attn_dim"}:
        width = T5_HEAD_WIDTH
    return heads * width if isinstance(heads, int) and isinstance(width, int) else None


def _is_off(binding: Binding) -> bool:
    """Does the value ask for nothing that is missing here?"""
    value = binding.value.text.rpartition(".")[2] if isinstance(binding.value, Name) else binding.value
    return value in (False, None, "", "None", *HARMLESS.get(binding.name, ()))

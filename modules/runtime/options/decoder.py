"""Every option of train_decoder.py that train_rqvae.py does not have."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from data.processed import time_mistakes
from modules.mixture import Shares, parse_shares
from modules.model import DecoderConfig
from modules.quantize import QuantizeForwardMode
from modules.runtime.config.declaration import declared_options, filled, option
from modules.runtime.config.types import Count, Natural, NonNegative, Positive, RunPath, Share, Text, UnitInterval
from modules.runtime.options.groups import DataOptions, Distance, InputNorm, RunOptions, hub_rule, refused
from modules.sasrec import SASRecConfig

CHECKED = "checked against the tokenizer's run if given."


@dataclass(frozen=True, kw_only=True)
class DecoderOptions(RunOptions, DataOptions):
    """The options of train_decoder.py."""

    model: Literal["tiger", "sasrec"] = option(
        "tiger",
        "tiger (semantic IDs by an encoder-decoder) or sasrec (scores of all items by a causal transformer: the trained baseline, which "
        "needs no semantic IDs).",
    )
    split_by: Literal["leave_one_out", "time"] = option(
        "leave_one_out",
        "leave_one_out (a user's last two items are held out) or time (all train before one moment and are tested after another).",
    )
    split_quantiles: tuple[Share, ...] = option((0.8, 0.9), 'shares of all interactions before the two moments of split_by = "time".')
    pretrained_rqvae_path: RunPath = option(
        "out/rqvae/amazon",
        "stage 1's run directory, its save_dir_root (the directory named after the split is taken) or a hub name. SASRec needs none; where "
        "there is one, the baselines with texts and text_projection read its text vectors.",
        path=True,
    )
    pretrained_decoder_path: RunPath | None = option(
        None, "run directory of this stage, or hub name, whose weights to start from.", path=True
    )
    save_dir_root: Text = option("out/decoder/amazon", "the run directory is save_dir_root/dataset_split.", may_differ=True)
    iterations: Count = option(7500, "training steps.")
    batch_size: Count = option(128, "(history, next item) pairs a batch.")
    learning_rate: Positive = option(2e-3, "peak of AdamW's rate.")
    weight_decay: NonNegative = option(0.035, "AdamW's, on matrices (not on embeddings, biases and norms).")
    lr_schedule: Literal["cosine", "inverse_sqrt", "constant"] = option(
        "cosine", "after the warm-up: cosine (to zero), inverse_sqrt or constant."
    )
    warmup_steps: Natural = option(400, "steps over which the learning rate rises.")
    max_grad_norm: NonNegative = option(1.0, "gradients are clipped to this norm; 0 leaves them.")
    label_smoothing: Share = option(0.0, "share of a target's probability that is spread over its level (SASRec: over all items).")
    dropout_p: Share = option(0.1, "on embeddings and on what each sublayer adds.", sets="dropout")
    decoder_embed_dim: Count = option(128, "model width, of all stacks.", sets="embed_dim")
    attn_embed_dim: Count = option(384, "heads x head width.", sets="attn_dim", only="tiger")
    attn_heads: Count = option(6, "attention heads.", sets="num_heads")
    attn_layers: Count = option(
        2,
        "layers of each stack: 4 is 4 encoder + 4 decoder layers (older files of other code meant the total), or 4 layers of SASRec.",
        sets="num_layers",
    )
    decoder_ff_dim: Count = option(1024, "hidden width of the feed-forward.", sets="ff_dim")
    max_seq_len: Count = option(20, "items of history the model reads, the most recent ones.")
    encoder_attention: Literal["causal", "bidirectional"] = option(
        "causal", "causal (one encoder pass serves all prefixes of a history; much faster) or bidirectional (the paper's).", only="tiger"
    )
    position: Literal["relative", "learned"] = option(
        "relative", "relative (a learned bias by distance in items) or learned (an embedding by recency; bidirectional only).", only="tiger"
    )
    should_add_sep_token: bool = option(False, "a separator after each item's codes.", sets="separator", only="tiger")
    num_user_bins: Natural = option(2000, "buckets of the hashed user token; 0 leaves it out.", sets="num_user_buckets", only="tiger")
    history_tokens: Literal["codes", "items"] = option(
        "codes", "what the encoder reads: every code of an item (the paper's), or one token an item.", only="tiger"
    )
    learned_items: bool = option(True, 'with history_tokens = "items": a learned vector of each item in its token.', only="tiger")
    item_dropout: Share = option(0.0, "probability that an item's learned vector is left out in training.", only="tiger")
    text_projection: bool = option(
        False, 'the item\'s text vector, projected: in its token (with history_tokens = "items"), or added to its vector (SASRec).'
    )
    decoder_reads_state: bool = option(
        False,
        'with history_tokens = "items": the encoder\'s state behind the last item is added to every decoder input.',
        only="tiger",
    )
    code_softmax: Literal["codebook", "children"] = option(
        "codebook",
        "what a code competes with: the level's whole codebook (the paper's), or the codes that exist below the prefix.",
        only="tiger",
    )
    node_embeddings: bool = option(False, 'with code_softmax = "children": a learned vector of each node of the prefix trie.', only="tiger")
    node_dropout: Share = option(0.0, "probability that a node's learned vector is left out in training.", only="tiger")
    tie_nodes: bool = option(False, "the mean of the item vectors below a node is part of the node's vector.", only="tiger")
    item_head: bool = option(False, "train a softmax over items on the encoder's last state, too.", only="tiger")
    item_head_weight: NonNegative = option(1.0, "weight of its loss beside the codes'.", only="tiger")
    full_softmax_items: Count = option(
        100_000, "items of the largest catalogue over all of which a softmax over items is trained; that of a larger one is sampled."
    )
    sampled_items: Count = option(8192, "items that a step draws where the softmax over items is sampled.")
    distill: Share = option(0.0, "share of a target code's probability that the item head gives.", only="tiger")
    history_init_std: NonNegative | None = option(
        None, 'initial deviation of code and item embeddings in the encoder; None: 1 for "codes", .05 for "items".', only="tiger"
    )
    target_init_std: NonNegative = option(1.0, "initial deviation of the decoder's code embeddings.", only="tiger")
    node_init_std: NonNegative = option(0.02, "initial deviation of the node vectors.", only="tiger")
    vae_input_dim: Count | None = option(None, CHECKED, only="tiger")
    vae_embed_dim: Count | None = option(None, CHECKED, only="tiger")
    vae_hidden_dims: tuple[Count, ...] | None = option(None, CHECKED, only="tiger")
    vae_codebook_size: Count | tuple[Count, ...] | None = option(None, CHECKED, only="tiger")
    vae_n_layers: Count | None = option(None, CHECKED, only="tiger")
    vae_codebook_mode: QuantizeForwardMode | None = option(None, CHECKED, only="tiger")
    vae_input_norm: InputNorm | None = option(None, CHECKED, only="tiger")
    vae_distance: Distance | None = option(None, CHECKED, only="tiger")
    vae_sim_vq: bool | None = option(None, CHECKED, only="tiger")
    vae_codebook_normalize: bool | None = option(None, CHECKED, only="tiger")
    vae_n_cat_feats: Natural | None = option(None, CHECKED, only="tiger")
    beam_size: Count = option(50, "beams of the search; at least the largest k.", only="tiger")
    memory_weight: UnitInterval = option(
        0.0,
        "share w of the memory in the search: items are ranked by log(w q + (1 - w) p), with p the model's probability of the item and q "
        'the memory\'s; 0: the model alone, 1: the memory alone. With code_softmax = "codebook" the p of all items sum to less than 1, '
        "so that the memory weighs more than its share.",
        only="tiger",
    )
    head_weight: UnitInterval = option(
        0.0, "share of the item head in the search, likewise; the model has what memory_weight and head_weight leave.", only="tiger"
    )
    head_scores: Literal["full", "found"] = option(
        "full",
        "what the item head scores in a search: full, all items, which costs time for all of them; found, those that the search found; "
        "they are then sorted by model, memory and head, each as a distribution over them.",
        only="tiger",
    )
    mixtures: tuple[Text, ...] = option(
        (),
        "further rows of the report: the same model with other shares of search, items (the item head, or SASRec) and memory, such as "
        '"0.5,0,0.5"; without a share of the search all items are scored.',
        may_differ=True,
    )
    filter_history: bool = option(
        True,
        "the search bars items of the user's history (a repeated item can then not be hit); selection uses this; the test report has the "
        "plain figure too.",
    )
    top_k_eval_list: tuple[Count, ...] = option((1, 5, 10), "cut-offs k of recall@k and ndcg@k; 10 among them.")
    eval_users: Count | None = option(
        4000,
        "users (a seeded sample) of the validations during training; None takes all. The final figures always have all.",
    )
    eval_batch_size: Count = option(64, "users a batch in evaluation.", may_differ=True)
    cuda_graphs: bool = option(
        False, "replay the beam search of evaluations as CUDA graphs; elsewhere than on CUDA nothing changes.", only="tiger"
    )
    partial_eval_every: Count = option(500, "steps between validation losses.")
    full_eval_every: Count = option(2500, "steps between validations by search, which select the checkpoint.")
    patience: Natural = option(5, "stop after so many of them without a better ndcg@10; 0 never stops.")
    do_eval: bool = option(
        True,
        "at the end evaluate all users on validation and, once, on test; False keeps the test unread: the same command with True reads it "
        "later and trains no step.",
        may_differ=True,
    )
    light_gcn_epochs: Natural = option(
        0, "epochs for which LightGCN is trained at the end, as one more baseline of the report; 0 leaves it out."
    )
    push_decoder_to_hf: bool = option(False, "upload the finished run to the Hugging Face Hub.", may_differ=True)
    decoder_hf_model_name: Text | None = option(None, "its name there, owner/name.", may_differ=True)

    @cached_property
    def decoder(self) -> DecoderConfig:
        """The encoder-decoder that these options describe."""
        return filled(DecoderConfig, self)

    @cached_property
    def sasrec(self) -> SASRecConfig:
        """The SASRec that these options describe."""
        return filled(SASRecConfig, self, dim=self.decoder_embed_dim, text=self.text_projection)

    def rules(self) -> Iterator[str]:
        """See Options."""
        yield from super().rules()
        yield from refused(lambda: self.decoder if self.model == "tiger" else self.sasrec)
        if unread := self.unread():
            names = ", ".join(f"train.{name}" for name in unread)
            yield f"train.model = {self.model!r} does not read {names}; remove the line{'s' if len(unread) > 1 else ''}"
        yield from hub_rule(self.push_decoder_to_hf, "decoder_hf_model_name", self.decoder_hf_model_name)
        cutoffs, beams, quantiles = self.top_k_eval_list, self.beam_size, self.split_quantiles
        if 10 not in cutoffs:
            yield f"train.top_k_eval_list is {list(cutoffs)}; it needs 10 among its cut-offs: selection is on ndcg@10"
        if self.model == "tiger" and cutoffs and beams < max(cutoffs):
            yield (
                f"train.beam_size = {beams} cannot fill recall@{max(cutoffs)} of train.top_k_eval_list; raise it to at least that or drop "
                "the cut-off"
            )
        if self.memory_weight + self.head_weight > 1:
            yield (
                f"train.memory_weight = {self.memory_weight} and train.head_weight = {self.head_weight} are shares of one score; "
                "together they must be at most 1"
            )
        yield from self._mixture_mistakes()
        if self.head_weight and not self.item_head:
            yield f"train.head_weight = {self.head_weight} asks the item head; set train.item_head = True or train.head_weight = 0"
        if len(quantiles) != 2 or not 0 < quantiles[0] < quantiles[1]:
            yield f"train.split_quantiles is {list(quantiles)}; it needs two shares above 0, the smaller one first"
        if self.split_by == "time":
            yield from time_mistakes(self.data)

    def unread(self) -> list[str]:
        """The options that another model than this one reads and that have another value than their default."""
        others = {name: field for name, field in declared_options(type(self)).items() if field.metadata["only"] not in ("", self.model)}
        return [name for name, field in others.items() if getattr(self, name) != field.default]

    def _mixture_mistakes(self) -> Iterator[str]:
        """A sentence for each of train.mixtures that is none, or asks a part that the model has not."""
        for text in self.mixtures:
            wrong = list(refused(lambda text=text: parse_shares(text)))  # type: ignore[misc]
            yield from (f"train.mixtures: {sentence}" for sentence in wrong)
            shares = Shares(0, 0, 0) if wrong else parse_shares(text)
            if shares.items and not (self.item_head or self.model == "sasrec"):
                yield f"train.mixtures: {text!r} has a share of the items, which needs train.item_head = True; give it 0"
            if shares.search and self.model == "sasrec":
                yield f"train.mixtures: {text!r} has a share of the search, which SASRec has not; give it 0"

    def repeated(self) -> dict[str, object]:
        """The options of stage 1 that this config repeats."""
        return {name: value for name, value in self.settings().items() if name.startswith("vae_") and value is not None}

"""The shape of the sequence model and its switches, and which of them go together."""

from collections.abc import Iterator
from dataclasses import dataclass

from data.schemas import UserError
from modules.item_softmax import FULL_UP_TO, SAMPLES

ENCODER_ATTENTIONS = ("causal", "bidirectional")
POSITIONS = ("relative", "learned")
HISTORY_TOKENS = ("codes", "items")
CODE_SOFTMAXES = ("codebook", "children")


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the encoder-decoder; with the tokenizer's vocabulary sizes all that is needed to rebuild it."""

    embed_dim: int = 128
    attn_dim: int = 384
    num_heads: int = 6
    num_layers: int = 2
    ff_dim: int = 1024
    dropout: float = 0.1
    max_seq_len: int = 20
    encoder_attention: str = "causal"
    position: str = "relative"
    separator: bool = False
    num_user_buckets: int = 2000
    history_tokens: str = "codes"  # or "items": one encoder token an item
    learned_items: bool = True  # with "items": a learned vector of each item in its token
    item_dropout: float = 0.0  # probability that an item's learned vector is left out in training
    text_projection: bool = False  # with "items": the item's text vector, projected, in its token
    decoder_reads_state: bool = False  # with "items": the encoder's state behind the last item is added to every decoder input
    code_softmax: str = "codebook"  # or "children": over the codes that exist below the prefix
    node_embeddings: bool = False  # with "children": a learned vector of each trie node
    node_dropout: float = 0.0  # probability that a node's learned vector is left out in training
    tie_nodes: bool = False  # with "children" and "items": the mean of the items' vectors below a node in its vector
    item_head: bool = False  # with "items": a softmax over items on the encoder's last state is trained too
    item_head_weight: float = 1.0  # of its loss
    full_softmax_items: int = FULL_UP_TO  # with "item_head": larger catalogues are sampled in its loss
    sampled_items: int = SAMPLES  # drawn a step then
    distill: float = 0.0  # share of a code's target probability that the item head gives
    history_init_std: float | None = None  # of code and item embeddings in the encoder; None: 1 for "codes", .05 for "items"
    target_init_std: float = 1.0  # of the decoder's code embeddings
    node_init_std: float = 0.02

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.encoder_attention not in ENCODER_ATTENTIONS:
            problems.append(
                f"train.encoder_attention is {self.encoder_attention!r}; it can be {' or '.join(map(repr, ENCODER_ATTENTIONS))}"
            )
        if self.position not in POSITIONS:
            problems.append(f"train.position is {self.position!r}; it can be {' or '.join(map(repr, POSITIONS))}")
        if self.position == "learned" and self.encoder_attention == "causal":
            problems.append(
                "train.position = 'learned' counts items back from the end of the history, which a causal encoder does not know; "
                "use train.position = 'relative' or train.encoder_attention = 'bidirectional'"
            )
        if min(self.embed_dim, self.attn_dim, self.num_heads, self.num_layers, self.ff_dim, self.max_seq_len) < 1:
            problems.append("the decoder's widths, heads, layers and train.max_seq_len must all be at least 1")
        elif self.attn_dim % self.num_heads:
            problems.append(
                f"train.attn_embed_dim = {self.attn_dim} cannot be split over train.attn_heads = {self.num_heads}: take a multiple"
            )
        if self.num_user_buckets < 0:
            problems.append(f"train.num_user_bins is {self.num_user_buckets}; it must be 0 (no user token) or more")
        for name, share in (("dropout_p", self.dropout), ("item_dropout", self.item_dropout), ("node_dropout", self.node_dropout)):
            if not 0 <= share < 1:
                problems.append(f"train.{name} is {share}; it must lie in [0, 1)")
        problems += self._switch_problems()
        if problems:
            raise UserError(*problems)

    def _switch_problems(self) -> Iterator[str]:
        """A sentence for every switch that needs another one."""
        for name, value, allowed in (
            ("history_tokens", self.history_tokens, HISTORY_TOKENS),
            ("code_softmax", self.code_softmax, CODE_SOFTMAXES),
        ):
            if value not in allowed:
                yield f"train.{name} is {value!r}; it can be {' or '.join(map(repr, allowed))}"
        if self.history_tokens != "items":
            for name in ("text_projection", "decoder_reads_state", "tie_nodes", "item_head"):
                if getattr(self, name):
                    yield f"train.{name} needs item vectors; set train.history_tokens = 'items' or train.{name} = False"
        elif self.separator:
            yield "train.should_add_sep_token parts codes, of which train.history_tokens = 'items' makes one token an item; set it to False"
        if self.code_softmax != "children":
            for name in ("node_embeddings", "tie_nodes"):
                if getattr(self, name):
                    yield f"train.{name} scores the children of a node; set train.code_softmax = 'children' or train.{name} = False"
        if not 0 <= self.distill < 1:
            yield f"train.distill is {self.distill}; it must lie in [0, 1)"
        elif self.distill and not (self.item_head and self.code_softmax == "children"):
            yield "train.distill needs train.item_head = True to learn from and train.code_softmax = 'children' to teach"
        if self.item_head_weight <= 0:
            yield f"train.item_head_weight is {self.item_head_weight}; it must be above 0 (train.item_head = False leaves the loss out)"
        if min(self.target_init_std, self.node_init_std, self.history_std) <= 0:
            yield "train.history_init_std, target_init_std and node_init_std must be above 0"

    @property
    def history_std(self) -> float:
        """Standard deviation of the encoder's embeddings at the start."""
        if self.history_init_std is not None:
            return self.history_init_std
        return 1.0 if self.history_tokens == "codes" else 0.05

    @property
    def needs_catalogue(self) -> bool:
        """Whether the model reads more of the items than their codes."""
        return self.history_tokens == "items" or self.code_softmax == "children"

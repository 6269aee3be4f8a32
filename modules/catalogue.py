"""What a model knows of the items themselves: their semantic IDs as a tree, which of them training has seen, and their text vectors.

Shape letters: I items, C codes of an ID, E text-embedding width.
"""

from torch import Tensor, nn

from data.schemas import UserError
from modules.tokenizer.trie import PrefixTrie


class Catalogue(nn.Module):
    """The items; nothing in it is saved with a model's weights.

    Args:
        trie: the semantic IDs as a tree.
        sem_ids: [I, C] int64, the same by item.
        trained: [I] bool, items with a training interaction: they, and the nodes above them, get learned vectors. None: none do until
            saved weights bring theirs.
        texts: [I, E] text vectors, where the model reads them.

    Raises:
        UserError: tables of different lengths.
    """

    sem_ids: Tensor
    trained: Tensor
    texts: Tensor | None

    def __init__(self, trie: PrefixTrie, sem_ids: Tensor, trained: Tensor | None = None, texts: Tensor | None = None) -> None:
        super().__init__()
        lengths = {trie.num_items, len(sem_ids), *(len(table) for table in (trained, texts) if table is not None)}
        if len(lengths) > 1:
            raise UserError(f"a catalogue's tables must have one row an item: got tables of {sorted(lengths)} rows")
        self.trie = trie
        self.register_buffer("sem_ids", sem_ids, persistent=False)
        self.register_buffer("trained", sem_ids.new_zeros(len(sem_ids)).bool() if trained is None else trained, persistent=False)
        self.register_buffer("texts", texts, persistent=False)

    @property
    def num_items(self) -> int:
        return len(self.sem_ids)

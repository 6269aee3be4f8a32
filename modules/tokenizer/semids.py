"""SemanticIdTokenizer: the codes of a fitted tokenizer as a table item <-> semantic ID that is saved and loaded whole.

TIGER, section 3.1: items that share all L codes are told apart by one more integer (other ways: modules.tokenizer.collisions). Which item
gets which integer is drawn from a seeded order of the items' external ids, never from their row numbers, which in public files follow first
appearance and leak the future.
Shape letters: I items, L levels, C = L + 1 codes with a collision code, else L, B batch, N history length, P targets.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from data.schemas import PAD, SeqBatch, TokenizedSeqBatch, UserError
from modules.tokenizer.base import ItemTokenizer
from modules.tokenizer.collisions import collision_codes, reassign_collisions
from modules.tokenizer.trie import PrefixTrie

FORMAT_VERSION = 1


class TokenizerInfo(NamedTuple):
    """What a tokenizer was made from; stage 2 checks its own data and config against it."""

    item_keys: list[str]  # [I] external ids, in row order
    embeddings_hash: str  # of the item embeddings the codes were computed from
    codebook_sizes: list[int]  # L sizes
    seed: int  # of the order that decides between items that share all codes


class SemanticIdTokenizer(nn.Module):
    """Item ids to semantic IDs and back, by one gather and one trie walk.

    Args:
        sem_ids: [I, C] int64.
        codebooks: L tensors [K, D], kept with the IDs they explain; may be empty for IDs that come without.
        info: provenance.
        item_order: [I] ranks by which the items of one ID are listed; None takes the seeded order.
        num_levels: L; C - L is 1 where there is a collision code, else 0.
    """

    sem_ids: Tensor

    def __init__(self, sem_ids: Tensor, codebooks: Sequence[Tensor], info: TokenizerInfo, item_order: Tensor | None = None) -> None:
        super().__init__()
        self.info = info
        self.num_levels = len(info.codebook_sizes)
        self.register_buffer("sem_ids", sem_ids.long())
        self.codebooks = [codebook.detach().clone() for codebook in codebooks]
        vocab_sizes = list(info.codebook_sizes)
        if sem_ids.shape[1] > self.num_levels:
            vocab_sizes.append(int(sem_ids[:, -1].max()) + 1)
        self.vocab_sizes = tuple(vocab_sizes)
        self.item_order = item_order
        order = seeded_order(info.item_keys, info.seed) if item_order is None else item_order
        self.trie = PrefixTrie(self.sem_ids, self.vocab_sizes, item_order=order.to(sem_ids.device))

    @classmethod
    def from_coder(
        cls,
        coder: ItemTokenizer,
        embeddings: Tensor,
        item_keys: Sequence[str],
        embeddings_hash: str,
        seed: int = 0,
        collision_policy: str = "extra_code",
    ) -> "SemanticIdTokenizer":
        """Tokenizes all items [I, E] with a fitted coder and deals with those that share all codes.

        Raises:
            UserError: see reassign_collisions.
        """
        codes = coder.get_semantic_ids(embeddings)
        order = seeded_order(item_keys, seed).to(codes.device)
        if collision_policy == "extra_code":
            codes = torch.cat([codes, collision_codes(codes, order).unsqueeze(1)], dim=1)
        elif collision_policy == "reassign":
            codes = reassign_collisions(coder, embeddings, codes, order)
        info = TokenizerInfo(list(item_keys), embeddings_hash, list(coder.codebook_sizes), seed)
        return cls(codes, coder.codebooks(), info)

    def ordered_by(self, item_order: Tensor) -> "SemanticIdTokenizer":
        """The same IDs; items that share one are listed, and found by a search, in ``item_order`` [I], such as that of popularity."""
        if self.trie.one_item_a_leaf:
            return self
        return SemanticIdTokenizer(self.sem_ids, self.codebooks, self.info, item_order)

    @property
    def num_items(self) -> int:
        return len(self.sem_ids)

    def forward(self, batch: SeqBatch) -> TokenizedSeqBatch:
        """Item ids [B, N] and targets [B, P] -> codes [B, N, C] and [B, P, C]."""
        mask, target_mask = batch.item_ids != PAD, batch.targets != PAD
        codes = self.sem_ids[batch.item_ids.clamp_min(0)] * mask.unsqueeze(-1)
        target_codes = self.sem_ids[batch.targets.clamp_min(0)] * target_mask.unsqueeze(-1)
        return TokenizedSeqBatch(batch.user_ids, codes, mask, target_codes, target_mask, batch.item_ids, batch.targets)

    def items_of(self, sem_ids: Tensor) -> Tensor:
        """Item [...] of each whole ID [..., C]; PAD where there is none; the first in the seeded order where several share it."""
        leaf = self.trie.find(sem_ids)
        first = self.trie.children_of(self.trie.depth, leaf.clamp_min(0)).first
        return torch.where(leaf == PAD, PAD, self.trie.items[first].long())

    def exists_prefix(self, prefix: Tensor) -> Tensor:
        """[...] bool: does an item's ID begin with ``prefix`` [..., t], t <= C?"""
        return self.trie.exists_prefix(prefix)

    def tuples_of(self, items: Tensor) -> Tensor:
        """Trie node at depth L (the item's tuple of codes without the collision code) of each item [...]."""
        return self.trie.find(self.sem_ids[items, : self.num_levels])

    def check_items(self, item_keys: Sequence[str]) -> None:
        """Refuses a catalogue that is not, row by row, the one these IDs were made for.

        Raises:
            UserError: other items, or the same in another order.
        """
        ours, theirs = self.info.item_keys, list(item_keys)
        if ours == theirs:
            return
        missing = len(set(theirs) - set(ours))
        what = f"{missing} of the data's {len(theirs)} items are unknown to it" if missing else "its items stand in another order or number"
        raise UserError(
            f"the tokenizer was made for other items ({len(ours)} of them): {what}; "
            "train stage 1 on this dataset and split, or point train.pretrained_rqvae_path at the run that was"
        )

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.safetensors`` (table and codebooks) and ``tokenizer.json`` (the rest) into ``folder``, each whole."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"sem_ids": self.sem_ids.cpu().contiguous()}
        tensors |= {f"codebook_{number}": codebook.cpu().contiguous() for number, codebook in enumerate(self.codebooks)}
        if self.item_order is not None:
            tensors["item_order"] = self.item_order.cpu().contiguous()
        described = {"format_version": FORMAT_VERSION, "num_codebooks": len(self.codebooks), **self.info._asdict()}
        contents = {"tokenizer.safetensors": save(tensors), "tokenizer.json": json.dumps(described).encode()}
        temporary = {name: folder / f"{name}.tmp" for name in contents}
        try:
            for name, content in contents.items():
                temporary[name].write_bytes(content)
            for name, path in temporary.items():
                path.replace(folder / name)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> "SemanticIdTokenizer":
        """Reads what ``save`` wrote; the IDs are the same bit for bit.

        Raises:
            UserError: no tokenizer there, a damaged one, or one of another format version.
        """
        try:
            described = json.loads((folder / "tokenizer.json").read_text())
            tensors = load_file(folder / "tokenizer.safetensors")
        except FileNotFoundError as error:
            raise UserError(f"no tokenizer in {folder}: run train_rqvae.py first, or set train.pretrained_rqvae_path") from error
        except Exception as error:
            raise UserError(f"the tokenizer in {folder} cannot be read ({error}): train stage 1 again") from error
        try:
            if described.pop("format_version", None) != FORMAT_VERSION:
                raise UserError(f"the tokenizer in {folder} was written by another version of this project: train stage 1 again")
            codebooks = [tensors[f"codebook_{number}"] for number in range(described.pop("num_codebooks"))]
            info = TokenizerInfo(**described)
            if len(tensors["sem_ids"]) != len(info.item_keys):
                raise UserError(f"the two files of the tokenizer in {folder} are not of one run: train stage 1 again")
            return cls(tensors["sem_ids"], codebooks, info, tensors.get("item_order"))
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"the tokenizer in {folder} lacks a part ({error}): train stage 1 again") from error


def seeded_order(item_keys: Sequence[str], seed: int) -> Tensor:
    """Rank [I] of every item in a pseudo-random order that depends on its external id and the seed alone, whatever its row number."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = [hashlib.blake2b(item.encode(), digest_size=8, key=key).digest() for item in item_keys]
    by_digest = torch.tensor(sorted(range(len(digests)), key=lambda item: (digests[item], item_keys[item])))
    ranks = torch.empty_like(by_digest)
    ranks[by_digest] = torch.arange(len(digests))
    return ranks

"""The switches of the sequence model: item tokens, the softmax over existing children, node vectors, the item head and its distillation.

The reference scores children one by one in Python, following the semantic IDs as tuples.
"""

import math
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from data.schemas import PAD, TokenizedSeqBatch, UserError
from modules import beam_search
from modules.catalogue import Catalogue as Items
from modules.embedding import ItemDistanceBias
from modules.mixture import CandidateMasses, Mixture, softmax_masses
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.runtime.training.checkpoint import load_weights, save_weights
from tests.test_beam_search import NoValues
from tests.test_model import HISTORIES, close, tokenized
from tests.test_trie import Catalogue, make_catalogue

CHILDREN = {"code_softmax": "children"}
NODES = CHILDREN | {"node_embeddings": True}
ITEMS = {"history_tokens": "items"}
BEST = NODES | ITEMS | {"item_head": True}
SWITCHES = {
    "items": ITEMS,
    "items-users": ITEMS | {"num_user_buckets": 50},
    "items-codes-only": ITEMS | {"learned_items": False},
    "items-texts": ITEMS | {"text_projection": True},
    "items-head": ITEMS | {"item_head": True, "num_user_buckets": 50},
    "children": CHILDREN,
    "nodes": NODES,
    "tied": CHILDREN | ITEMS | {"tie_nodes": True},
    "best": BEST,
    "items-state": ITEMS | {"decoder_reads_state": True, "num_user_buckets": 50},
    "everything": BEST | {"tie_nodes": True, "decoder_reads_state": True, "distill": 0.4, "text_projection": True, "num_user_buckets": 50},
    "bidirectional": BEST | {"encoder_attention": "bidirectional", "position": "learned", "num_user_buckets": 50},
}
switches = pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
trees = pytest.mark.parametrize("changes", [s for s in SWITCHES.values() if "code_softmax" in s], ids=lambda s: "-".join(s))
TARGETS = [[1, 4, 11, 7], [PAD, 8, PAD, PAD], [3, PAD, PAD, PAD], [5, 3, 0, PAD]]


def items_of(catalogue: Catalogue, device: torch.device, trained: Tensor | None = None) -> Items:
    generator = torch.Generator().manual_seed(5)
    texts = torch.randn(len(catalogue.sem_ids), 6, generator=generator)
    trained = torch.ones(len(catalogue.sem_ids), dtype=torch.bool) if trained is None else trained
    return Items(catalogue.trie(torch.device("cpu")), catalogue.sem_ids, trained, texts).to(device)


def make_model(items: Items, vocab_sizes: list[int], seed: int = 0, **changes) -> EncoderDecoderRetrievalModel:
    """Small, in evaluation mode, with all its embeddings and biases large enough to matter."""
    torch.manual_seed(seed)
    shape = {"embed_dim": 16, "attn_dim": 24, "num_heads": 3, "num_layers": 2, "ff_dim": 32, "max_seq_len": 8, "num_user_buckets": 0}
    config = DecoderConfig(**(shape | {"node_init_std": 0.3, "history_init_std": 0.5} | changes))
    model = EncoderDecoderRetrievalModel(config, vocab_sizes, items)
    for module in model.modules():
        if isinstance(module, ItemDistanceBias):
            nn.init.normal_(module.bias)
    return model.to(items.sem_ids.device).eval()


def batch_of(catalogue: Catalogue, histories: list[list[int]], targets: list[list[int]], device: torch.device) -> TokenizedSeqBatch:
    batch = tokenized(catalogue, histories, targets, device)
    rows = [torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows], device=device) for rows in (histories, targets)]
    return batch._replace(item_ids=rows[0], targets=rows[1])


def a_batch(catalogue: Catalogue, changes: dict, device: torch.device) -> TokenizedSeqBatch:
    last = changes.get("encoder_attention") == "bidirectional"
    return batch_of(catalogue, HISTORIES, [[7], [8], [PAD], [0]] if last else TARGETS, device)


def small(unique: bool = True) -> Catalogue:
    return make_catalogue([4, 3, 5], 20, unique, seed=0)


# -- a slow reference -------------------------------------------------------------------------------------------------------------------


def vector_of_node(model: EncoderDecoderRetrievalModel, catalogue: Catalogue, prefix: tuple[int, ...]) -> Tensor:
    """Its own vector, by its key, and the mean of the items' below it, as the switches say."""
    tree, vector = model.tree, torch.zeros(model.config.embed_dim, device=model.level_embedding.device)
    if tree.own is not None:
        own = tree.own[len(prefix) - 1]
        for key, learned in zip(own.keys.tolist(), own.vectors[1:]):
            if tuple(key) == prefix:
                vector = vector + learned
    if tree.tie:
        below = [item for item, ids in enumerate(catalogue.ids()) if ids[: len(prefix)] == prefix]
        vector = vector + model.items.table()[below].mean(0)
    return vector


def slow_children(model: EncoderDecoderRetrievalModel, catalogue: Catalogue, x: Tensor, prefix: tuple[int, ...]) -> dict[int, Tensor]:
    """Log-probability of every code that exists behind ``prefix``, from the decoder state x [D]."""
    level = len(prefix)
    codes = sorted({ids[level] for ids in catalogue.ids() if ids[:level] == prefix})
    scores = []
    for code in codes:
        score = model.heads[level](x)[code]
        if model.tree.own is not None or model.tree.tie:
            score = score + x @ vector_of_node(model, catalogue, (*prefix, code))
        scores.append(score)
    return dict(zip(codes, torch.stack(scores).log_softmax(0)))


def scores_of_items(model: EncoderDecoderRetrievalModel, catalogue: Catalogue, batch: TokenizedSeqBatch) -> Tensor:
    """[B, I]: log-probability of every item's leaf after every history, by teacher forcing."""
    count, rows = len(catalogue.sem_ids), len(batch.mask)
    device = batch.mask.device
    repeated = TokenizedSeqBatch(
        *(field.repeat_interleave(count, dim=0) for field in batch[:3]),
        catalogue.sem_ids.to(device).repeat(rows, 1).unsqueeze(1),
        torch.ones(rows * count, 1, dtype=torch.bool, device=device),
        batch.item_ids.repeat_interleave(count, dim=0),
        torch.arange(count, device=device).repeat(rows).unsqueeze(1),
    )
    states = model._decode(model.encode(repeated), repeated)[:, 0]
    scores = torch.zeros(rows, count)
    for row in range(rows):
        for item, ids in enumerate(catalogue.ids()):
            for level, code in enumerate(ids):
                scores[row, item] += slow_children(model, catalogue, states[row * count + item, level], ids[:level])[code].cpu()
    return scores.to(device)


# -- loss -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unique", [True, False], ids=["unique", "shared"])
@trees
@torch.no_grad()
def test_probabilities_of_the_leaves_sum_to_one(device, changes, unique):
    catalogue = small(unique)
    model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **changes)
    scores = scores_of_items(model, catalogue, a_batch(catalogue, changes, device))
    ids = catalogue.ids()
    first = [ids.index(node) for node in catalogue.nodes(len(catalogue.vocab_sizes))]
    close(scores[:, first].exp().sum(1), torch.ones(4, device=device))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("waits", [True, False], ids=["ragged", "sliced"])
@trees
@torch.no_grad()
def test_the_loss_equals_a_slow_walk_down_the_tree(device, changes, waits, smoothing):
    catalogue = small()
    model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **changes)
    batch = a_batch(catalogue, changes, device)
    states = model._decode(model.encode(batch), batch)
    trust = model.config.distill
    levels: list[list[Tensor]] = [[], [], []]
    for row, place in batch.target_mask.nonzero().tolist():
        ids = tuple(batch.target_sem_ids[row, place].tolist())
        teacher = teacher_of(model, batch, row, place) if trust else None
        for level, code in enumerate(ids):
            found = slow_children(model, catalogue, states[row, place, level], ids[:level])
            right = (1 - trust) * found[code]
            if teacher is not None:
                below = [[own[: level + 1] == (*ids[:level], sibling) for own in catalogue.ids()] for sibling in found]
                masses = torch.stack([teacher[torch.tensor(mask, device=device)].sum() for mask in below])
                right = right + trust * (masses / masses.sum() * torch.stack(list(found.values()))).sum()
            levels[level].append(-(1 - smoothing) * right - smoothing * sum(found.values()) / len(found))
    with mock.patch.object(beam_search, "may_wait", return_value=waits):
        output = model(batch, smoothing)
    means = torch.stack([torch.stack(level).mean() for level in levels])
    close(output.parts["level_losses"], means)
    close(output.loss, means.sum() + model.config.item_head_weight * output.parts.get("item_head", 0))


def teacher_of(model: EncoderDecoderRetrievalModel, batch: TokenizedSeqBatch, row: int, place: int) -> Tensor:
    """[I]: the item head's probabilities for one target."""
    states = model.item_states(model.encode(batch), batch)
    return (model.items.table() @ states[row, place]).softmax(0)


@torch.no_grad()
def test_the_item_head_reads_the_state_behind_the_last_item_before_each_target(device):
    """The state of a prefix alone, so no later item is seen."""
    catalogue = small()
    for changes in (SWITCHES["items-head"], SWITCHES["bidirectional"]):
        model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **changes)
        batch = a_batch(catalogue, changes, device)
        table, losses = model.items.table(), []
        for row, place in batch.target_mask.nonzero().tolist():
            prefix = HISTORIES[row] if batch.targets.shape[1] == 1 else HISTORIES[row][: place + 1]
            alone = batch_of(catalogue, [prefix], [[0]], device)._replace(user_ids=batch.user_ids[row : row + 1])
            state = model.item_states(model.encode(alone), alone)[0, 0]
            losses.append(-(table @ state).log_softmax(0)[batch.targets[row, place]])
        close(model(batch).parts["item_head"], torch.stack(losses).mean())


@torch.no_grad()
def test_a_large_catalogue_is_sampled_and_a_small_one_is_not(device):
    catalogue = small()
    model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **BEST)
    batch = a_batch(catalogue, BEST, device)
    full = model(batch).parts["item_head"]
    assert torch.equal(full, model(batch).parts["item_head"])
    few = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **BEST, full_softmax_items=10)
    few.load_state_dict(model.state_dict())
    assert few._item_table() is None
    sampled = torch.stack([few(batch).parts["item_head"] for _ in range(2)])
    assert sampled[0] != sampled[1]
    close(sampled, full.expand(2), atol=0.05)


@switches
def test_every_parameter_receives_a_gradient(device, changes):
    catalogue = small()
    model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **changes, dropout=0.0).train()
    model(a_batch(catalogue, changes, device), label_smoothing=0.1).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@switches
def test_a_batch_without_targets_has_a_loss_of_zero_and_finite_gradients(device, changes):
    catalogue = small()
    model, batch = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **changes), a_batch(catalogue, changes, device)
    output = model(batch._replace(target_mask=torch.zeros_like(batch.target_mask), targets=torch.full_like(batch.targets, PAD)))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@switches
def test_training_in_bf16_comes_near_fp32_with_finite_gradients(device, changes):
    catalogue = small()
    model, batch = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **changes), a_batch(catalogue, changes, device)
    with torch.autocast(device.type, torch.bfloat16):
        output = model(batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(model(batch).loss.item(), rel=0.03)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@switches
def test_no_value_steers_a_training_step_where_none_may(device, changes):
    catalogue = small()
    model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **changes).train()
    batch = a_batch(catalogue, changes, device)
    with NoValues(), mock.patch.object(beam_search, "may_wait", return_value=False):  # as on a GPU
        model(batch, label_smoothing=0.1).loss.backward()


# -- what has a vector ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_items_that_training_never_saw_and_nodes_above_only_such_have_no_vector(device):
    catalogue, trained = small(), torch.arange(20) < 8
    model = make_model(items_of(catalogue, device, trained), catalogue.vocab_sizes, **BEST)
    own = model.items.own(torch.arange(20, device=device))
    assert ((own != 0).any(1).cpu() == trained).all()
    ids = catalogue.ids()
    for depth, table in enumerate(model.tree.own, start=1):
        has = (table.table() != 0).any(1).tolist()
        assert has == [any(trained[item] and ids[item][:depth] == node for item in range(20)) for node in catalogue.nodes(depth)]
    codes = model.items.codes(catalogue.sem_ids[19].to(device)).sum(0)
    close(model.items.vectors(torch.tensor(19, device=device)), codes)


def test_an_items_own_vector_is_dropped_whole_in_training_only(device):
    catalogue = small()
    model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **ITEMS, item_dropout=0.5)
    item = torch.full((400,), 3, device=device)
    whole, codes = model.items.vectors(item[:1]), model.items.codes(catalogue.sem_ids[3].to(device)).sum(0)
    assert torch.equal(model.items.vectors(item), whole.expand(400, -1))
    drawn = model.train().items.vectors(item)
    kept = (drawn - whole).abs().amax(1) < 1e-6
    assert 140 < kept.sum() < 260
    close(drawn[~kept], codes.expand(int((~kept).sum()), -1))


def test_a_nodes_vector_is_dropped_whole_in_training_only(device):
    catalogue = small()
    tree = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **NODES, node_dropout=0.5).tree
    whole = tree.own[2].vectors
    assert torch.equal(tree.node_vectors(None)[2].vectors, whole)
    drawn = torch.stack([tree.train().node_vectors(None)[2].vectors[1:] for _ in range(30)])
    dropped = (drawn == 0).all(2)
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(drawn[~dropped], whole[1:].expand_as(drawn)[~dropped])


@torch.no_grad()
def test_added_items_keep_all_old_vectors_and_scores_and_have_none_of_their_own(device, tmp_path):
    """Three items more, in old and new subtrees, renumber the trie's nodes."""
    catalogue = small()
    known = set(catalogue.ids())
    new = [ids for ids in torch.cartesian_prod(*map(torch.arange, catalogue.vocab_sizes)).tolist() if tuple(ids) not in known][::15][:3]
    grown = catalogue._replace(
        sem_ids=torch.cat([catalogue.sem_ids, torch.tensor(new)]), item_order=torch.cat([catalogue.item_order, torch.arange(20, 23)])
    )
    before = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **BEST)
    save_weights(before, tmp_path / "model.safetensors")
    items = items_of(grown, torch.device("cpu"), torch.zeros(23, dtype=torch.bool)).to(device)
    after = make_model(items, catalogue.vocab_sizes, seed=1, **BEST)
    load_weights(after, tmp_path / "model.safetensors")
    assert torch.equal(after.items.own.table()[:20], before.items.own.table())
    assert not after.items.own.table()[20:].any()
    for depth in range(1, 4):
        old, own = catalogue.nodes(depth), before.tree.own[depth - 1].table()
        for number, node in enumerate(grown.nodes(depth)):
            vector = after.tree.own[depth - 1].table()[number]
            assert torch.equal(vector, own[old.index(node)]) if node in old else not vector.any()
    batch = a_batch(catalogue, BEST, device)
    close(after.item_states(after.encode(batch), batch), before.item_states(before.encode(batch), batch))
    found = after.generate_next_sem_id(batch, items.trie, 23)
    assert found.item_ids.sort(1).values.tolist() == [list(range(23))] * 4


@switches
@torch.no_grad()
def test_weights_loaded_into_a_model_that_knows_no_trained_items_give_the_same_digits(device, changes, tmp_path):
    catalogue, trained = small(), torch.arange(20) % 3 > 0
    first = make_model(items_of(catalogue, device, trained), catalogue.vocab_sizes, seed=1, **changes)
    items = items_of(catalogue, device, torch.zeros(20, dtype=torch.bool))
    second = make_model(items, catalogue.vocab_sizes, seed=2, **changes)
    batch = a_batch(catalogue, changes, device)
    save_weights(first, tmp_path / "model.safetensors")
    load_weights(second, tmp_path / "model.safetensors")
    assert torch.equal(first(batch).loss, second(batch).loss)
    trie = items.trie
    assert all(torch.equal(a, b) for a, b in zip(*(model.generate_next_sem_id(batch, trie, 9) for model in (first, second))))


# -- generation -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False], ids=["ragged", "sliced"])
@pytest.mark.parametrize("unique", [True, False], ids=["unique", "shared"])
@trees
@torch.no_grad()
def test_a_search_as_wide_as_the_catalogue_equals_scoring_every_item(device, changes, unique, waits):
    catalogue = small(unique)
    items = items_of(catalogue, device)
    model = make_model(items, catalogue.vocab_sizes, **changes)
    batch = a_batch(catalogue, changes, device)
    expected = scores_of_items(model, catalogue, batch)
    seen = torch.tensor([[3, PAD], [5, 9], [2, PAD], [6, 5]], device=device)
    with mock.patch.object(beam_search, "may_wait", return_value=waits):
        found = model.generate_next_sem_id(batch, items.trie, 25, seen)
    for row in range(4):
        left = sorted(set(range(20)) - set(seen[row].tolist()))
        own = found.item_ids[row, : len(left)]
        assert sorted(own.tolist()) == left
        close(found.log_probs[row, : len(left)], expected[row, own], atol=1e-4)
        close(found.log_probs[row, : len(left)], expected[row, left].sort(descending=True).values, atol=1e-4)


@switches
@torch.no_grad()
def test_a_narrow_search_keeps_the_parents_of_its_beams(device, changes):
    catalogue = make_catalogue([6, 6, 6, 3], 200, unique=True, seed=2)
    items = items_of(catalogue, device)
    model = make_model(items, catalogue.vocab_sizes, **changes)
    batch = a_batch(catalogue, changes, device)
    found = model.generate_next_sem_id(batch, items.trie, 7)
    assert found.item_ids.shape == (4, 7)
    repeated = batch._replace(
        **{name: getattr(batch, name).repeat_interleave(7, dim=0) for name in ("user_ids", "sem_ids", "mask", "item_ids")},
        target_sem_ids=found.sem_ids.flatten(0, 1).unsqueeze(1),
        target_mask=torch.ones(28, 1, dtype=torch.bool, device=device),
        targets=found.item_ids.reshape(28, 1),
    )
    states = model._decode(model.encode(repeated), repeated)[:, 0]
    for row, ids in enumerate(found.sem_ids.flatten(0, 1).tolist()):
        if model.tree is None:
            levels = [head(states[row, level]).log_softmax(-1)[ids[level]] for level, head in enumerate(model.heads)]
        else:
            levels = [slow_children(model, catalogue, states[row, level], tuple(ids[:level]))[ids[level]] for level in range(4)]
        assert found.log_probs.flatten()[row].item() == pytest.approx(sum(levels).item(), abs=1e-4)


@torch.no_grad()
def test_the_mixture_in_the_trained_search_equals_the_formula_over_all_items(device):
    catalogue = small(unique=False)
    items = items_of(catalogue, device)
    model = make_model(items, catalogue.vocab_sizes, **BEST)
    batch = a_batch(catalogue, BEST, device)
    seen = torch.tensor([[3, PAD], [5, 9], [2, PAD], [6, 5]], device=device)
    left = torch.tensor([19, 18, 19, 18], device=device)
    candidates = torch.tensor([[0, 1, 2, 4], [1, 2, 3, PAD], [19, 18, PAD, PAD], [PAD] * 4], device=device)
    masses = softmax_masses(candidates, torch.randn(4, 4, device=device), torch.zeros(4, device=device), left)
    found = model.generate_next_sem_id(batch, items.trie, 20, seen, ranking=Mixture([(0.6, CandidateMasses(items.trie, masses, seen))]))
    shares, ids = scores_of_items(model, catalogue, batch).exp(), catalogue.ids()
    for row in range(4):
        q = torch.full((20,), masses.background[row].item(), device=device)
        real = candidates[row] != PAD
        q[candidates[row][real]] = masses.masses[row][real].float()
        sizes = torch.tensor([ids.count(own) for own in ids], device=device)
        expected = (0.6 * q + 0.4 * shares[row] / sizes).log()
        own = found.item_ids[row, : left[row]]
        close(found.keys[row, : left[row]], expected[own], atol=1e-4)
        assert (found.keys[row, : left[row]].diff() <= 0).all()


@switches
def test_no_value_steers_generation_where_none_may(device, changes):
    catalogue = small()
    items = items_of(catalogue, device)
    model = make_model(items, catalogue.vocab_sizes, **changes)
    batch, seen = a_batch(catalogue, changes, device), torch.tensor([[3, PAD], [5, 9], [2, PAD], [6, 5]], device=device)
    with NoValues(), mock.patch.object(beam_search, "may_wait", return_value=False):  # as on a GPU
        model.generate_next_sem_id(batch, items.trie, 5, seen, tuple_depth=2)


@switches
def test_generation_in_bf16_gives_items_with_scores_in_fp32(device, changes):
    catalogue = small()
    items = items_of(catalogue, device)
    model = make_model(items, catalogue.vocab_sizes, **changes)
    batch = a_batch(catalogue, changes, device)
    exact = model.generate_next_sem_id(batch, items.trie, 20)
    with torch.autocast(device.type, torch.bfloat16):
        found = model.generate_next_sem_id(batch, items.trie, 20)
    assert found.log_probs.dtype == torch.float32
    assert found.item_ids.sort(dim=1).values.tolist() == [list(range(20))] * 4
    order, other = found.item_ids.argsort(1), exact.item_ids.argsort(1)
    close(found.log_probs.gather(1, order), exact.log_probs.gather(1, other), atol=0.4)


@pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export is not there")
def test_the_search_of_every_switch_can_be_exported(device):
    catalogue = small()
    items = items_of(catalogue, device)
    changes = BEST | {"tie_nodes": True}
    model = make_model(items, catalogue.vocab_sizes, **changes)
    batch = a_batch(catalogue, changes, device)

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.trie = model, items.trie

        def forward(self, users: Tensor, history: Tensor) -> Tensor:
            mask = history != PAD
            codes = self.model.items.catalogue.sem_ids[history.clamp_min(0)] * mask.unsqueeze(-1)
            own = TokenizedSeqBatch(users, codes, mask, codes[:, :1], mask[:, :1], history, history[:, :1])
            return self.model.generate_next_sem_id(own, self.trie, 8, history, tuple_depth=2).item_ids

    with torch.no_grad():
        program = torch.export.export(Program(), (batch.user_ids, batch.item_ids)).module()
        expected = model.generate_next_sem_id(batch, items.trie, 8, batch.item_ids, tuple_depth=2).item_ids
        assert torch.equal(program(batch.user_ids, batch.item_ids), expected)


@torch.no_grad()
def test_a_restricted_search_bars_the_other_items_and_keeps_every_score(device):
    catalogue = small(unique=False)
    items = items_of(catalogue, device)
    model = make_model(items, catalogue.vocab_sizes, **BEST)
    batch = a_batch(catalogue, BEST, device)
    everything = model.generate_next_sem_id(batch, items.trie, 20)
    among = torch.arange(20, device=device) % 4 == 1
    seen = torch.tensor([[1, 5], [2, 3], [PAD, PAD], [17, 13]], device=device)
    found = model.generate_next_sem_id(batch, items.trie, 20, seen, among=among)
    for row in range(4):
        wanted = [item for item in everything.item_ids[row].tolist() if among[item] and item not in seen[row]]
        own = [item for item in found.item_ids[row].tolist() if item != PAD]
        scores = dict(zip(everything.item_ids[row].tolist(), everything.log_probs[row].tolist()))
        assert sorted(own) == sorted(wanted)
        assert found.log_probs[row, : len(own)].tolist() == pytest.approx([scores[item] for item in wanted], abs=1e-5)


# -- mistakes ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_tokens": "item"}, r"history_tokens is 'item'; it can be 'codes' or 'items'"),
        ({"code_softmax": "tree"}, r"code_softmax is 'tree'; it can be 'codebook' or 'children'"),
        ({"item_head": True}, r"item_head needs item vectors; set train\.history_tokens = 'items'"),
        ({"text_projection": True}, "text_projection needs item vectors"),
        (CHILDREN | {"tie_nodes": True}, "tie_nodes needs item vectors"),
        ({"node_embeddings": True}, r"node_embeddings scores the children of a node; set train\.code_softmax = 'children'"),
        (ITEMS | {"tie_nodes": True}, "tie_nodes scores the children"),
        (ITEMS | {"separator": True}, "should_add_sep_token parts codes"),
        ({"item_dropout": 1.0}, r"item_dropout is 1\.0; it must lie in \[0, 1\)"),
        ({"node_dropout": -0.1}, "node_dropout"),
        (ITEMS | CHILDREN | {"distill": 0.5}, r"distill needs train\.item_head = True"),
        (BEST | {"distill": 1.0}, r"distill is 1\.0; it must lie in \[0, 1\)"),
        (BEST | {"item_head_weight": 0.0}, "item_head_weight is 0.0; it must be above 0"),
        ({"target_init_std": 0.0}, "must be above 0"),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_switches_that_make_no_sense_are_refused_in_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig(**changes)


def test_a_model_of_items_needs_a_catalogue_texts_where_it_reads_them_and_batches_with_items(device):
    catalogue = small()
    items = items_of(catalogue, device)
    for changes in (ITEMS, CHILDREN):
        with pytest.raises(UserError, match="need the catalogue"):
            EncoderDecoderRetrievalModel(DecoderConfig(**changes), catalogue.vocab_sizes)
        with pytest.raises(ValueError, match="batches with item ids"):
            make_model(items, catalogue.vocab_sizes, **changes)(tokenized(catalogue, HISTORIES, TARGETS, device))
    with pytest.raises(UserError, match="has none; train stage 1 again"):
        make_model(Items(items.trie, items.sem_ids), catalogue.vocab_sizes, **SWITCHES["items-texts"])
    with pytest.raises(UserError, match="one row an item"):
        Items(items.trie, items.sem_ids, items.trained[:3])


def test_another_trie_than_the_models_own_is_not_searched_for_children(device):
    catalogue = small()
    model = make_model(items_of(catalogue, device), catalogue.vocab_sizes, **NODES)
    other = make_catalogue([4, 3, 5], 19, unique=True, seed=0).trie(device)
    with pytest.raises(ValueError, match="searches its own catalogue's trie"):
        model.generate_next_sem_id(a_batch(catalogue, NODES, device), other, 5)


def test_log_probabilities_are_not_nan_where_nothing_is_left(device):
    catalogue = small()
    items = items_of(catalogue, device)
    model = make_model(items, catalogue.vocab_sizes, **BEST)
    found = model.generate_next_sem_id(a_batch(catalogue, BEST, device), items.trie, 5, torch.arange(20, device=device).expand(4, -1))
    assert (found.item_ids == PAD).all()
    assert (found.log_probs == -math.inf).all()

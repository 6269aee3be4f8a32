"""The sequence model: its loss by hand, what each target may see, generation against scoring every item, learning, saving."""

import itertools
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from data.schemas import PAD, SeqBatch, TokenizedSeqBatch, UserError
from modules import beam_search
from modules.embedding import ItemDistanceBias
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.runtime.training.checkpoint import load_weights, save_weights
from tests.test_beam_search import NoValues
from tests.test_trie import Catalogue, make_catalogue

ATTENTIONS = ("causal", "bidirectional")
VARIANTS = [
    {"encoder_attention": attention, "separator": separator, "num_user_buckets": buckets}
    for attention, separator, buckets in itertools.product(ATTENTIONS, (False, True), (0, 50))
] + [{"encoder_attention": "bidirectional", "position": "learned"}]
HISTORIES = [[3, 1, 4, 11], [5, 9], [2], [6, 5, 3]]


def name_of(variant: dict) -> str:
    return "-".join(f"{value}" for value in variant.values())


variants = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
attentions = pytest.mark.parametrize("attention", ATTENTIONS)


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def make_model(device: torch.device, vocab_sizes: list[int], seed: int = 0, **changes) -> EncoderDecoderRetrievalModel:
    """Small, in evaluation mode, with distance biases that matter (they start at zero)."""
    torch.manual_seed(seed)
    shape = {"embed_dim": 16, "attn_dim": 24, "num_heads": 3, "num_layers": 2, "ff_dim": 32, "max_seq_len": 8, "num_user_buckets": 50}
    model = EncoderDecoderRetrievalModel(DecoderConfig(**(shape | changes)), vocab_sizes)
    for module in model.modules():
        if isinstance(module, ItemDistanceBias):
            nn.init.normal_(module.bias)
    return model.to(device).eval()


def tokenized(
    catalogue: Catalogue, histories: list[list[int]], targets: list[list[int]], device: torch.device, length: int = 0
) -> TokenizedSeqBatch:
    """Rows padded on the right to the longest, or to ``length``; users are 10, 11, 12, ..."""

    def padded(rows: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
        items = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        mask = items != PAD
        return catalogue.sem_ids[items.clamp_min(0)] * mask.unsqueeze(-1), mask

    users = torch.arange(10, 10 + len(histories))
    codes, mask = padded(histories, max(length, *map(len, histories)))
    target_codes, target_mask = padded(targets, max(map(len, targets)))
    return TokenizedSeqBatch(*(field.to(device) for field in (users, codes, mask, target_codes, target_mask)))


def catalogue_of_20() -> Catalogue:
    return make_catalogue([4, 3, 5], 20, unique=True, seed=0)


def causal_batch(device: torch.device) -> TokenizedSeqBatch:
    """One target after each item of HISTORIES, but for one that is left out."""
    return tokenized(catalogue_of_20(), HISTORIES, [[1, 4, 11, 7], [PAD, 8, PAD, PAD], [3, PAD, PAD, PAD], [5, 3, 0, PAD]], device)


def last_batch(device: torch.device) -> TokenizedSeqBatch:
    """One target after the last item of HISTORIES, but for one row."""
    return tokenized(catalogue_of_20(), HISTORIES, [[7], [8], [PAD], [0]], device)


def batch_for(attention: str, device: torch.device) -> TokenizedSeqBatch:
    return causal_batch(device) if attention == "causal" else last_batch(device)


# -- batches and configs ----------------------------------------------------------------------------------------------------------------


def test_a_batch_moves_whole_and_keeps_what_is_not_there(device):
    moved = SeqBatch(torch.tensor([0]), torch.tensor([[1, PAD]]), torch.tensor([[2]]), None).to(device)
    assert moved.seen is None
    assert {field.device.type for field in moved[:3]} == {device.type}
    assert moved.item_ids.tolist() == [[1, PAD]]


def test_a_users_mistake_is_a_value_error():
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_attention": "casual"}, r"encoder_attention is 'casual'; it can be 'causal' or 'bidirectional'"),
        ({"position": "absolute"}, r"position is 'absolute'; it can be 'relative' or 'learned'"),
        ({"position": "learned", "encoder_attention": "causal"}, r"use train\.position = 'relative' or"),
        ({"attn_dim": 100, "num_heads": 6}, r"attn_embed_dim = 100 cannot be split over train\.attn_heads = 6"),
        ({"num_layers": 0}, "at least 1"),
        ({"embed_dim": 0}, "at least 1"),
        ({"max_seq_len": 0}, "at least 1"),
        ({"num_heads": 0}, "at least 1"),
        ({"num_heads": -2}, "at least 1"),
        ({"num_user_buckets": -1}, "num_user_bins"),
        ({"dropout": 1.0}, r"dropout_p is 1\.0; it must lie in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout_p"),
    ],
    ids=lambda value: ",".join(f"{name}={setting}" for name, setting in value.items()) if isinstance(value, dict) else "",
)
def test_a_shape_that_cannot_be_built_is_refused_in_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig(**changes)


# -- loss -------------------------------------------------------------------------------------------------------------------------------


@attentions
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_loss_is_the_cross_entropy_summed_over_levels_and_averaged_over_real_targets(device, attention, smoothing):
    model, batch = make_model(device, [4, 3, 5], encoder_attention=attention), batch_for(attention, device)
    logits = model.target_logits(batch)
    levels = [[] for _ in logits]
    for row, place in batch.target_mask.nonzero().tolist():
        for level, codes in enumerate(logits):
            log_probs = codes[row, place].double().log_softmax(0)
            code = batch.target_sem_ids[row, place, level]
            levels[level].append(-(1 - smoothing) * log_probs[code] - smoothing * log_probs.mean())
    assert len(levels[0]) == (9 if attention == "causal" else 3)
    means = torch.stack([torch.stack(level).mean() for level in levels]).float()
    output = model(batch, label_smoothing=smoothing)
    close(output.loss, means.sum())
    close(output.parts["level_losses"], means)


@attentions
@torch.no_grad()
def test_codes_of_missing_targets_change_nothing(device, attention):
    model, batch = make_model(device, [4, 3, 5], encoder_attention=attention), batch_for(attention, device)
    other = batch._replace(target_sem_ids=batch.target_sem_ids.masked_fill(~batch.target_mask.unsqueeze(-1), 2))
    assert not torch.equal(other.target_sem_ids, batch.target_sem_ids)
    assert torch.equal(model(batch).loss, model(other).loss)


def test_a_batch_without_targets_has_a_loss_of_zero_and_finite_gradients(device):
    model, batch = make_model(device, [4, 3, 5]), causal_batch(device)
    output = model(batch._replace(target_mask=torch.zeros_like(batch.target_mask)))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@variants
def test_every_parameter_receives_a_gradient(device, variant):
    model = make_model(device, [4, 3, 5], **variant).train()
    model(batch_for(variant["encoder_attention"], device), label_smoothing=0.1).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@attentions
@torch.no_grad()
def test_the_loss_in_bf16_is_within_a_few_percent_of_the_loss_in_fp32(device, attention):
    model, batch = make_model(device, [4, 3, 5], encoder_attention=attention), batch_for(attention, device)
    with torch.autocast(device.type, torch.bfloat16):
        output = model(batch)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(model(batch).loss.item(), rel=0.03)


def test_training_in_bf16_gives_finite_gradients_of_every_parameter(device):
    model, batch = make_model(device, [4, 3, 5]).train(), causal_batch(device)
    with torch.autocast(device.type, torch.bfloat16):
        output = model(batch)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# -- what a target may see --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [False, True])
@pytest.mark.parametrize("changed", [1, 2, 3])
@torch.no_grad()
def test_a_later_item_changes_no_earlier_targets_logits_in_causal_mode(device, changed, separator):
    model, batch = make_model(device, [4, 3, 5], separator=separator), causal_batch(device)
    codes = batch.sem_ids.clone()
    codes[0, changed] = (codes[0, changed] + 1) % torch.tensor([4, 3, 5], device=device)
    for before, after in zip(model.target_logits(batch), model.target_logits(batch._replace(sem_ids=codes))):
        assert torch.equal(before[1:], after[1:])
        close(before[0, :changed], after[0, :changed], atol=1e-6)
        assert (before[0, changed:] - after[0, changed:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("separator", [False, True])
@torch.no_grad()
def test_a_causal_targets_logits_are_those_of_its_prefix_alone(device, separator):
    catalogue = catalogue_of_20()
    model, batch = make_model(device, [4, 3, 5], separator=separator), causal_batch(device)
    together = model.target_logits(batch)
    for place in range(4):
        rows = [row for row, history in enumerate(HISTORIES) if len(history) > place]
        alone = tokenized(catalogue, [HISTORIES[row][: place + 1] for row in rows], [[0]] * len(rows), device)
        alone = alone._replace(user_ids=batch.user_ids[rows], target_sem_ids=batch.target_sem_ids[rows, place : place + 1])
        for all_places, one in zip(together, model.target_logits(alone)):
            close(all_places[rows, place], one[:, 0])


@pytest.mark.parametrize("context", [1, 2, 3])
def test_leaving_out_positions_without_targets_changes_neither_loss_nor_gradients(device, context):
    model = make_model(device, [4, 3, 5])
    histories = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    whole = tokenized(
        catalogue_of_20(), histories, [[PAD] * context + row[context:] for row in ([2, 3, 4, 5], [6, 7, 8, 9], [13] * 4)], device
    )
    rest = whole._replace(target_sem_ids=whole.target_sem_ids[:, context:], target_mask=whole.target_mask[:, context:])
    results = []
    for batch in (whole, rest):
        model.zero_grad()
        loss = model(batch).loss
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results):
        close(one, other)


@variants
@torch.no_grad()
def test_padding_to_the_right_changes_nothing(device, variant):
    model, catalogue = make_model(device, [4, 3, 5], **variant), catalogue_of_20()
    targets = [[7], [8], [1], [0]]
    short, long = (tokenized(catalogue, HISTORIES, targets, device, length=length) for length in (4, 8))
    long = long._replace(sem_ids=torch.where(long.mask.unsqueeze(-1), long.sem_ids, 2))  # whatever stands in the padding
    for row, history in enumerate(HISTORIES):
        alone = tokenized(catalogue, [history], [targets[row]], device)._replace(user_ids=short.user_ids[row : row + 1])
        for one, two, three in zip(*(model.target_logits(batch) for batch in (alone, short, long))):
            close(one[0], two[row])
            close(two[row], three[row])


@torch.no_grad()
def test_the_order_of_the_history_matters(device):
    catalogue = catalogue_of_20()
    for variant in VARIANTS:
        model = make_model(device, [4, 3, 5], **variant)
        one, other = (tokenized(catalogue, [history, [0]], [[7], [7]], device) for history in ([3, 1, 4], [1, 3, 4]))
        assert (model.target_logits(one)[0][0] - model.target_logits(other)[0][0]).abs().max() > 1e-3


@torch.no_grad()
def test_a_bidirectional_encoder_reads_earlier_items_in_the_light_of_later_ones(device):
    catalogue = catalogue_of_20()
    batches = [tokenized(catalogue, [[3, last], [0]], [[7], [7]], device) for last in (1, 2)]
    changed = []
    for attention in ATTENTIONS:
        model = make_model(device, [4, 3, 5], encoder_attention=attention, num_user_buckets=0)
        one, other = (model.encode(batch).memory[0].keys[0, :, :3] for batch in batches)
        changed.append((one - other).abs().max().item())
    assert changed[0] < 1e-6
    assert changed[1] > 1e-3


@torch.no_grad()
def test_the_user_matters_where_there_is_a_user_token_and_only_there(device):
    batch = last_batch(device)
    other = batch._replace(user_ids=batch.user_ids + 1)
    for buckets, differs in ((50, True), (0, False)):
        model = make_model(device, [4, 3, 5], num_user_buckets=buckets)
        assert torch.equal(model.target_logits(batch)[0], model.target_logits(other)[0]) is not differs


@attentions
@torch.no_grad()
def test_a_codes_logits_see_only_the_codes_of_the_levels_above_in_its_own_target(device, attention):
    model, batch = make_model(device, [4, 3, 5], encoder_attention=attention), batch_for(attention, device)
    before = model.target_logits(batch)
    for level in range(3):
        codes = batch.target_sem_ids.clone()
        codes[0, 0, level] = (codes[0, 0, level] + 1) % [4, 3, 5][level]
        for other, (old, new) in enumerate(zip(before, model.target_logits(batch._replace(target_sem_ids=codes)))):
            difference = (old - new).abs().amax(-1)
            assert (difference[0, 0] > 1e-4) == (other > level)
            difference[0, 0] = 0
            assert difference.max() < 1e-6


# -- generation -------------------------------------------------------------------------------------------------------------------------


def item_scores(model: EncoderDecoderRetrievalModel, catalogue: Catalogue, batch: TokenizedSeqBatch) -> Tensor:
    """[B, I]: log-probability of every item after every history, by teacher forcing, one row for each pair."""
    rows, items = len(batch.mask), len(catalogue.sem_ids)
    repeated = TokenizedSeqBatch(
        *(field.repeat_interleave(items, dim=0) for field in batch[:3]),
        catalogue.sem_ids.to(batch.mask.device).repeat(rows, 1).unsqueeze(1),
        torch.ones(rows * items, 1, dtype=torch.bool, device=batch.mask.device),
    )
    scores = torch.zeros(rows * items, device=batch.mask.device)
    for level, logits in enumerate(model.target_logits(repeated)):
        scores += logits[:, 0].log_softmax(-1).gather(1, repeated.target_sem_ids[:, 0, level : level + 1]).squeeze(1)
    return scores.reshape(rows, items)


@pytest.mark.parametrize("unique", [True, False], ids=["unique", "shared"])
@variants
@torch.no_grad()
def test_generation_equals_scoring_every_item_by_teacher_forcing(device, variant, unique):
    catalogue = make_catalogue([4, 3, 5], 20, unique, seed=1)
    model = make_model(device, catalogue.vocab_sizes, **variant)
    batch = tokenized(catalogue, HISTORIES, [[0]] * 4, device)
    expected = item_scores(model, catalogue, batch)
    found = model.generate_next_sem_id(batch, catalogue.trie(device), beam_size=25)
    assert found.item_ids.sort(dim=1).values[:, -20:].tolist() == [list(range(20))] * 4
    real = found.item_ids[:, :20]
    close(found.log_probs[:, :20], expected.gather(1, real), atol=1e-4)
    close(found.log_probs[:, :20], expected.sort(dim=1, descending=True).values, atol=1e-4)
    assert torch.equal(found.sem_ids[:, :20].cpu(), catalogue.sem_ids[real.cpu()])


@attentions
@torch.no_grad()
def test_generation_after_barring_a_history_equals_scoring_the_other_items(device, attention):
    catalogue = catalogue_of_20()
    model = make_model(device, catalogue.vocab_sizes, encoder_attention=attention)
    batch = tokenized(catalogue, HISTORIES, [[0]] * 4, device)
    seen = torch.full((4, 12), PAD, device=device)
    for row, history in enumerate(HISTORIES):
        barred = history + [item for item in range(20) if catalogue.sem_ids[item, 0] == row]
        seen[row, : len(barred)] = torch.tensor(barred, device=device)
    expected = item_scores(model, catalogue, batch)
    found = model.generate_next_sem_id(batch, catalogue.trie(device), beam_size=20, seen=seen)
    for row in range(4):
        left = sorted(set(range(20)) - set(seen[row].tolist()))
        items = [item for item in found.item_ids[row].tolist() if item != PAD]
        assert sorted(items) == left
        close(found.log_probs[row, : len(left)], expected[row, left].sort(descending=True).values, atol=1e-4)


@variants
@torch.no_grad()
def test_a_narrow_search_keeps_the_parents_of_its_beams(device, variant):
    """Beams that change places from step to step must take their past keys and values along."""
    catalogue = make_catalogue([6, 6, 6, 3], 200, unique=True, seed=2)
    model = make_model(device, catalogue.vocab_sizes, **variant)
    batch = tokenized(catalogue, HISTORIES, [[0]] * 4, device)
    expected = item_scores(model, catalogue, batch)
    found = model.generate_next_sem_id(batch, catalogue.trie(device), beam_size=7)
    assert found.item_ids.shape == (4, 7)
    close(found.log_probs, expected.gather(1, found.item_ids), atol=1e-4)


@torch.no_grad()
def test_ids_of_a_single_code_are_learned_and_generated(device):
    catalogue = make_catalogue([9], 9, unique=True, seed=3)
    model = make_model(device, [9])
    batch = tokenized(catalogue, [[3, 1], [4]], [[0], [1]], device)
    assert model(batch).loss.isfinite()
    found = model.generate_next_sem_id(batch, catalogue.trie(device), beam_size=9)
    close(found.log_probs, item_scores(model, catalogue, batch).gather(1, found.item_ids), atol=1e-4)


@attentions
def test_the_same_generation_twice_gives_the_same_digits(device, attention):
    catalogue = catalogue_of_20()
    model = make_model(device, catalogue.vocab_sizes, encoder_attention=attention)
    batch, trie = last_batch(device), catalogue.trie(device)
    assert all(torch.equal(a, b) for a, b in zip(*(model.generate_next_sem_id(batch, trie, 5, tuple_depth=2) for _ in range(2))))


@attentions
def test_histories_are_encoded_once_and_not_once_a_beam(device, attention):
    model, batch = make_model(device, [4, 3, 5], encoder_attention=attention), last_batch(device)
    shapes = []
    for layer in (model.encoder, model.decoder.stack()[0].cross_attention.to_keys_values):
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[0]))
    model.generate_next_sem_id(batch, catalogue_of_20().trie(device), beam_size=7)
    assert shapes == [4, 4]


@attentions
def test_no_value_steers_generation(device, attention):
    model, batch = make_model(device, [4, 3, 5], encoder_attention=attention, separator=True), last_batch(device)
    trie, seen = catalogue_of_20().trie(device), torch.tensor([[3, PAD], [5, 9], [2, PAD], [6, 5]], device=device)
    with NoValues(), mock.patch.object(beam_search, "may_wait", return_value=False):  # as on a GPU
        model.generate_next_sem_id(batch, trie, 5, seen, tuple_depth=2)


def test_generation_in_bf16_gives_items_with_scores_in_fp32(device):
    model, catalogue = make_model(device, [4, 3, 5]), catalogue_of_20()
    with torch.autocast(device.type, torch.bfloat16):
        found = model.generate_next_sem_id(last_batch(device), catalogue.trie(device), beam_size=20)
    assert found.log_probs.dtype == torch.float32
    assert found.item_ids.sort(dim=1).values.tolist() == [list(range(20))] * 4
    close(found.log_probs, item_scores(model, catalogue, last_batch(device)).gather(1, found.item_ids), atol=0.3)


# -- learning and saving ----------------------------------------------------------------------------------------------------------------


@attentions
def test_a_few_histories_are_learned_by_heart_and_their_targets_found_first(device, attention):
    catalogue = make_catalogue([4, 3, 5], 20, unique=True, seed=4)
    rows = torch.stack([torch.randperm(20, generator=catalogue.generator)[:5] for _ in range(8)]).tolist()
    histories, targets = [row[:4] for row in rows], [row[4:] for row in rows]
    last = tokenized(catalogue, histories, targets, device)
    batch = tokenized(catalogue, histories, [row[1:] for row in rows], device) if attention == "causal" else last
    model = make_model(device, catalogue.vocab_sizes, encoder_attention=attention, embed_dim=32, dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        output = model(batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] / 5
    found = model.eval().generate_next_sem_id(last, catalogue.trie(device), beam_size=5)
    assert found.item_ids[:, :1].tolist() == targets


@variants
@torch.no_grad()
def test_saved_and_loaded_weights_give_the_same_digits(device, variant, tmp_path):
    first, second = (make_model(device, [4, 3, 5], seed=seed, **variant) for seed in (1, 2))
    batch = last_batch(device)
    assert not torch.equal(first.target_logits(batch)[0], second.target_logits(batch)[0])
    save_weights(first, tmp_path / "model.safetensors")
    load_weights(second, tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.target_logits(batch), second.target_logits(batch)))


def test_weights_of_another_shape_are_refused_in_one_sentence(device, tmp_path):
    save_weights(make_model(device, [4, 3, 5]), tmp_path / "model.safetensors")
    for other in (make_model(device, [4, 3, 6]), make_model(device, [4, 3, 5], separator=True)):
        with pytest.raises(UserError, match="do not fit this model"):
            load_weights(other, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no weights at"):
        load_weights(make_model(device, [4, 3, 5]), tmp_path / "absent.safetensors")

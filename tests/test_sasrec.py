"""SASRec: parity with torch's own encoder and with a loop over single targets, when it samples, precision, and that it learns."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from data.processed import SeqData
from data.schemas import PAD, SeqBatch, UserError
from evaluate.scorers import ScoreRanker
from modules.sasrec import SASRec, SASRecConfig
from tests.synthetic import to_histories

SMALL = SASRecConfig(dim=16, num_layers=2, num_heads=2, ff_dim=24, dropout=0.2, max_seq_len=6)
ITEMS = 11


def model_of(config: SASRecConfig = SMALL, num_items: int = ITEMS, seed: int = 0, text: torch.Tensor | None = None) -> SASRec:
    torch.manual_seed(seed)
    model = SASRec(config, num_items, text).eval()
    for parameter in model.parameters():  # as after training: embeddings of std .02 would leave every score near 0
        nn.init.normal_(parameter, std=0.3)
    return model


def batch_of(histories: list[list[int]], targets: list[list[int]] | None = None) -> SeqBatch:
    def pad(rows):
        width = max(map(len, rows), default=0)
        return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), width)

    return SeqBatch(torch.arange(len(histories)), pad(histories), pad(targets or [[PAD]] * len(histories)), None)


def torch_encoder(model: SASRec) -> nn.TransformerEncoder:
    """torch's post-norm encoder with the same weights."""
    config = model.config
    layer = nn.TransformerEncoderLayer(config.dim, config.num_heads, config.ff_dim, 0.0, "gelu", batch_first=True, norm_first=False)
    encoder = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False).eval()
    with torch.no_grad():
        for own, theirs in zip(model.layers, encoder.layers):
            attention = own.attention
            theirs.self_attn.in_proj_weight.copy_(torch.cat([attention.to_queries.weight, attention.to_keys_values.weight]))
            theirs.self_attn.in_proj_bias.zero_()
            theirs.self_attn.out_proj.weight.copy_(attention.to_output.weight)
            theirs.self_attn.out_proj.bias.zero_()
            pairs = [(own.expand, "linear1"), (own.contract, "linear2"), (own.attention_norm, "norm1"), (own.ff_norm, "norm2")]
            for module, name in pairs:
                getattr(theirs, name).load_state_dict(module.state_dict())
    return encoder


def slow_scores(model: SASRec, history: list[int]) -> torch.Tensor:
    """The scores after one history, from its own items alone: no padding, no batch, torch's encoder."""
    table = model.item_vectors()
    x = table[torch.tensor(history)] + model.position_embedding.weight[: len(history)]
    barred = torch.ones(len(history), len(history), dtype=torch.bool).triu(1)
    states = torch_encoder(model)(model.input_norm(x)[None], mask=barred)
    return states[0, -1] @ table.T


def test_scores_equal_those_of_torch_s_encoder_with_the_same_weights():
    model = model_of()
    histories = [[3], [1, 2, 3], [10, 0, 10, 5, 4, 2], [7, 7]]
    with torch.no_grad():
        expected = torch.stack([slow_scores(model, history) for history in histories])
        torch.testing.assert_close(model.scores(batch_of(histories)), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


def test_the_loss_of_a_batch_is_the_mean_over_its_targets_taken_one_by_one():
    model = model_of()
    # As SeqData cuts rows: targets follow the last two positions, where there is one.
    batch = batch_of([[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 0]], [[4, 5], [8, PAD], [PAD, 1]])
    with torch.no_grad():
        single = [
            nn.functional.cross_entropy(slow_scores(model, history), torch.tensor(target))
            for history, target in (([1, 2, 3], 4), ([1, 2, 3, 4], 5), ([5, 6, 7], 8), ([8, 9, 10, 0], 1))
        ]
        torch.testing.assert_close(model(batch).loss, torch.stack(single).mean(), atol=1e-4, rtol=1e-4)


def test_label_smoothing_spreads_a_share_of_the_target_over_all_items():
    model = model_of()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(slow_scores(model, [1, 2, 3]), torch.tensor(4), label_smoothing=0.2)
        torch.testing.assert_close(model(batch_of([[1, 2, 3]], [[4]]), 0.2).loss, expected, atol=1e-4, rtol=1e-4)
        assert model(batch_of([[1, 2, 3]], [[4]])).loss != expected


def test_rows_of_many_targets_and_rows_of_one_have_the_same_loss():
    model = model_of()
    histories = to_histories([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 3, 1, 0, 2]])
    total = {}
    for causal in (True, False):
        data = SeqData(histories, ITEMS, 6, causal)
        batch = data.train_batch(0, 100, 0)
        with torch.no_grad():
            total[causal] = model(batch).loss
        assert (batch.targets != PAD).sum() == data.num_train_targets
    torch.testing.assert_close(total[True], total[False], atol=1e-5, rtol=1e-5)


@given(st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_row_s_scores_depend_on_its_own_items_only(histories, padding):
    model = model_of()
    whole = batch_of(histories)
    wider = whole._replace(item_ids=nn.functional.pad(whole.item_ids, (0, padding), value=PAD)[:, :6])
    with torch.no_grad():
        scores = model.scores(whole)
        torch.testing.assert_close(model.scores(wider), scores, atol=1e-5, rtol=1e-4)
        for row, history in enumerate(histories):
            torch.testing.assert_close(model.scores(batch_of([history]))[0], scores[row], atol=1e-5, rtol=1e-4)


def test_a_state_does_not_see_later_items():
    model = model_of()
    with torch.no_grad():
        a, b = model.states(torch.tensor([[1, 2, 3, 4]])), model.states(torch.tensor([[1, 2, 9, 8]]))
    torch.testing.assert_close(a[:, :2], b[:, :2])
    assert not torch.allclose(a[:, 2], b[:, 2])


def test_the_training_path_without_effective_dropout_is_the_evaluation_path():
    model, batch = model_of(), batch_of([[1, 2, 3], [4, 5, 6]], [[2, 3, 4], [5, 6, 7]])
    expected = model(batch).loss
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-12  # above 0: attention weights are dropped in a path of their own
    torch.testing.assert_close(model.train()(batch).loss, expected)


def test_dropout_acts_in_training_and_the_seed_decides_it():
    model, batch = model_of().train(), batch_of([[1, 2, 3]], [[2, 3, 4]])
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(batch).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_the_softmax_is_sampled_above_the_stated_number_of_items_only():
    batch = batch_of([[1, 2, 3]], [[2, 3, 4]])
    full, at_limit = model_of(), model_of(replace(SMALL, full_softmax_items=ITEMS))
    above = model_of(replace(SMALL, full_softmax_items=ITEMS - 1, sampled_items=50_000))
    assert (at_limit.sampled, above.sampled) == (False, True)
    assert torch.equal(full(batch).loss, at_limit(batch).loss)
    torch.manual_seed(0)
    torch.testing.assert_close(above(batch).loss, full(batch).loss, atol=0.02, rtol=0.02)
    assert above(batch).loss != full(batch).loss
    few = model_of(replace(SMALL, full_softmax_items=ITEMS - 1, sampled_items=2))
    few(batch).loss.backward()
    touched = few.item_embedding.weight.grad.abs().sum(1) > 0
    assert touched.sum() <= 4 + 2  # the batch's items and the two drawn


# Precision, texts, saving, learning


def test_scores_are_fp32_under_autocast_and_near_those_without():
    model, batch = model_of(num_items=300), batch_of([[1, 2, 3], [4, 5]], [[2, 3, 4], [5, 6, PAD]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, loss = model.scores(batch), model(batch).loss
    assert scores.dtype == loss.dtype == torch.float32
    assert len(scores[0].unique()) == 300  # in bf16 many would tie
    with torch.no_grad():
        torch.testing.assert_close(scores, model.scores(batch), atol=0.3, rtol=0.1)
        torch.testing.assert_close(loss, model(batch).loss, atol=0.1, rtol=0.05)


def test_texts_give_items_without_training_scores_of_their_own():
    text = torch.randn(ITEMS, 5, generator=torch.Generator().manual_seed(3))
    model = model_of(replace(SMALL, text=True), text=text)
    assert "text_vectors" not in model.state_dict()
    with torch.no_grad():
        model.item_embedding.weight.zero_()
        scores = model.scores(batch_of([[1, 2]]))[0]
    assert len(scores.unique()) == ITEMS
    model(batch_of([[1, 2]], [[3]])).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.text_projection.parameters())


def test_texts_that_are_missing_or_of_another_catalogue_are_refused():
    with pytest.raises(ValueError, match="each of 11 items: got none"):
        SASRec(replace(SMALL, text=True), ITEMS)
    with pytest.raises(ValueError, match="each of 11 items: got 4"):
        SASRec(replace(SMALL, text=True), ITEMS, torch.zeros(4, 5))


def test_a_saved_model_scores_as_before():
    model, batch = model_of(), batch_of([[1, 2, 3]])
    again = SASRec(SASRecConfig(**asdict(model.config)), ITEMS).eval()
    again.load_state_dict(load(save(model.state_dict())))
    with torch.no_grad():
        assert torch.equal(model.scores(batch), again.scores(batch))


def test_a_batch_without_targets_has_a_loss_of_zero_that_reaches_the_weights():
    model = model_of().train()
    loss = model(batch_of([[1, 2]], [[PAD, PAD]])).loss
    loss.backward()
    assert loss == 0
    assert model.item_embedding.weight.grad is not None


@pytest.mark.parametrize("limit", [100_000, 5])
def test_places_without_a_target_change_no_loss(limit):
    model = model_of(replace(SMALL, full_softmax_items=limit))
    losses = []
    for targets in ([[2, 3]], [[2, 3], [PAD, PAD]]):
        torch.manual_seed(0)
        losses.append(model(batch_of([[1, 2], [4, 5]][: len(targets)], targets)).loss)
    torch.testing.assert_close(*losses)


def test_an_empty_history_has_scores():
    empty = batch_of([[1], [2]])._replace(item_ids=torch.full((2, 3), PAD))
    with torch.no_grad():
        scores = model_of().scores(empty)
    assert torch.isfinite(scores).all()
    assert torch.equal(scores[0], scores[1])


def test_rows_that_are_too_long_and_shapes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="6 items at most: got rows of 7"):
        model_of().scores(batch_of([[0] * 7]))
    with pytest.raises(UserError, match=r"decoder_embed_dim = 16 cannot be split over train\.attn_heads = 3"):
        replace(SMALL, num_heads=3)
    with pytest.raises(UserError, match=r"dropout_p is 1\.0"):
        replace(SMALL, dropout=1.0)
    with pytest.raises(UserError, match="at least 1"):
        replace(SMALL, num_layers=0)


@pytest.mark.parametrize("limit", [100_000, 5])
def test_it_learns_what_follows_what(device, limit):
    cycle = [[(start + step) % ITEMS for step in range(8)] for start in range(ITEMS)]
    data = SeqData(to_histories(cycle), ITEMS, 6, True).to(device)
    torch.manual_seed(0)
    model = SASRec(replace(SMALL, full_softmax_items=limit, sampled_items=20, dropout=0.1), ITEMS).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        model(data.train_batch(step, 40, 0)).loss.backward()
        optimizer.step()
    ranker = ScoreRanker(model.eval(), torch.arange(ITEMS, device=device))
    for part in ("validation", "test"):
        for batch in data.eval_batches(part, 64):
            found = ranker.recommend(batch, 1, filter_history=True)
            assert (found == batch.targets).float().mean() > 0.95

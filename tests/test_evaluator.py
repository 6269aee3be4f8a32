"""What the evaluator prints, compared with an evaluation written out user by user in plain Python (tests/slow_evaluator.py).

The invented data have what goes wrong in real ones: histories longer than the model reads, repeated items, equal scores and popularities,
batches of unequal length and a short last one, items that training never saw, item 0 among them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch

from data.processed import SeqData
from evaluate.metrics import tie_order
from evaluate.rankers import Ranker, counted_rankers
from modules.embedding import ItemDistanceBias
from modules.model import DecoderConfig, EncoderDecoderRetrievalModel
from modules.runtime.evaluation.evaluator import Evaluator, Protocol
from modules.runtime.runs.searcher import Searcher
from modules.runtime.runs.stage2_run import Retriever, SearchSettings
from modules.tokenizer.collisions import collision_codes
from modules.tokenizer.semids import SemanticIdTokenizer, TokenizerInfo
from tests.slow_evaluator import History, SlowModel, cases, code_figures, figures, markov, most_popular, rank_of, tie_ranks, training_part
from tests.synthetic import to_histories

ITEMS, MAX_SEQ_LEN, BATCH, CUTOFFS, WIDTH = 30, 4, 7, (1, 5, 10), 10
COLD = (0, 7, 19)
"""Items that are nobody's but as a last one: training never saw them."""

PARTS = pytest.mark.parametrize("part", ["validation", "test"])
BARRINGS = pytest.mark.parametrize("barred", [True, False], ids=["barred", "not barred"])


class World(NamedTuple):
    users: list[History]
    train: list[History]
    order: list[int]
    slow: SlowModel
    evaluator: Evaluator
    rankers: Sequence[Ranker]


def invented_users() -> list[History]:
    """38 users of 1 to 13 items with repeats; some end in an item that training never saw."""
    generator = torch.Generator().manual_seed(3)
    warm = [item for item in range(ITEMS) if item not in COLD]
    users = []
    for number in range(38):
        length = int(torch.randint(1, 14, (), generator=generator))
        users.append([warm[min(int(torch.randint(0, 40, (), generator=generator)), 26)] for _ in range(length)])
        if length >= 3 and number % 4 == 0:
            users[-1][-1] = COLD[number // 4 % len(COLD)]
    return users


def make_world(collision_code: bool = True, users: int | None = None, beam_size: int = ITEMS) -> World:
    """A model with random weights over the invented users; without a collision code items share an ID, and so their score."""
    histories, keys = invented_users(), [f"key {item * 17 % 31}" for item in range(ITEMS)]
    codes = torch.randint(0, 4, (ITEMS, 2), generator=torch.Generator().manual_seed(5))
    ids = torch.cat([codes, collision_codes(codes, torch.arange(ITEMS)).unsqueeze(1)], dim=1) if collision_code else codes
    data = SeqData(to_histories(histories), ITEMS, MAX_SEQ_LEN)
    order = tie_order(data.popularity, keys, 1)
    tokenizer = SemanticIdTokenizer(ids, [], TokenizerInfo(keys, "", [4, 4], 0)).ordered_by(order)
    torch.manual_seed(0)
    shape = DecoderConfig(embed_dim=16, attn_dim=16, num_heads=2, num_layers=1, ff_dim=32, max_seq_len=MAX_SEQ_LEN, num_user_buckets=5)
    model = EncoderDecoderRetrievalModel(shape, tokenizer.vocab_sizes).eval()
    for module in model.modules():
        if isinstance(module, ItemDistanceBias):
            torch.nn.init.normal_(module.bias)
    searcher = Searcher(Retriever(model, tokenizer, keys, SearchSettings(beam_size, "fp32", order)))
    evaluator = Evaluator(searcher, data, Protocol(True, CUTOFFS, BATCH, users, seed=0))
    train = training_part(histories)
    rankers = counted_rankers(data.split.train.item_ids, data.split.train.offsets, order)
    return World(histories, train, tie_ranks(train, keys, 1), SlowModel(model, ids.tolist(), 2), evaluator, rankers)


@pytest.fixture(scope="module", params=[True, False], ids=["collision code", "shared IDs"])
def world(request) -> World:
    return make_world(request.param)


def slow_ranks(world: World, part: str, barred: bool, only=None) -> tuple[list[int], list[int]]:
    """Item and code ranks of every target, in the evaluator's order of users."""
    found = cases(world.users, part, only)
    items = [rank_of(case.target, world.slow.ranked(case, world.order, barred), WIDTH) for case in found]
    tuples = [rank_of(world.slow.ids[case.target][:2], world.slow.ranked_tuples(case, barred), WIDTH) for case in found]
    return items, tuples


def same_figures(evaluation, expected: dict[str, float]) -> None:
    assert evaluation.metrics == pytest.approx(expected, abs=1e-12)


def test_the_invented_data_hold_every_difficulty(world):
    found = cases(world.users, "test")
    assert len(found) % BATCH
    assert max(len(case.history) for case in found) > 2 * MAX_SEQ_LEN
    assert any(case.target in case.history for case in found)
    assert any(set(case.history) - set(case.history[-MAX_SEQ_LEN:]) for case in found)
    assert {case.target for case in found} >= set(COLD)
    assert len({len(case.history) for case in found[:BATCH]}) > 1


@PARTS
@BARRINGS
def test_the_model_s_figures_are_those_of_the_slow_evaluator(world, part, barred):
    evaluation = world.evaluator.model(part, barred)
    items, tuples = slow_ranks(world, part, barred)
    assert evaluation.ranks.tolist() == items
    assert evaluation.targets.tolist() == [case.target for case in cases(world.users, part)]
    assert (evaluation.part, evaluation.users, evaluation.filter_history) == (part, len(items), barred)
    expected = figures(items, CUTOFFS)
    same_figures(evaluation, expected | code_figures(tuples, expected, CUTOFFS))
    assert evaluation.intervals["ndcg@10"].mean == pytest.approx(expected["ndcg@10"])


def test_the_two_barrings_differ(world):
    assert world.evaluator.model("test", True).metrics != world.evaluator.model("test", False).metrics


@PARTS
@BARRINGS
def test_the_baselines_figures_are_those_of_the_slow_evaluator(world, part, barred):
    rows = dict(world.evaluator.baselines(part, barred, world.rankers))
    found = cases(world.users, part)
    lists = {
        "most popular": [most_popular(case, world.order, barred) for case in found],
        "last item -> next (Markov)": [markov(case, world.train, world.order, barred) for case in found],
    }
    assert list(rows) == list(lists)
    for name, ranked in lists.items():
        ranks = [rank_of(case.target, items, WIDTH) for case, items in zip(found, ranked)]
        assert rows[name].ranks.tolist() == ranks
        assert (rows[name].part, rows[name].users, rows[name].filter_history) == (part, len(found), barred)
        same_figures(rows[name], figures(ranks, CUTOFFS))


def test_items_of_equal_score_stand_by_popularity_not_by_row():
    world = make_world(collision_code=False)
    decided = 0
    for case in cases(world.users, "validation"):
        scores, _ = world.slow.scores(case, range(ITEMS))
        ranked = world.slow.ranked(case, world.order, True)
        decided += sum(scores[a] == scores[b] and a > b for a, b in pairwise(ranked))
    assert decided > len(cases(world.users, "validation"))


@BARRINGS
def test_different_ids_of_equal_score_stand_by_popularity_too(barred):
    world = make_world()
    for head in world.slow.model.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    items, _ = slow_ranks(world, "validation", barred)
    assert world.evaluator.model("validation", barred).ranks.tolist() == items
    assert len(set(items)) > 2


def test_lists_that_run_dry_are_padded_and_nothing_is_found_there():
    world = make_world(beam_size=3)
    assert set(world.evaluator.model("validation", True).ranks.tolist()) <= {0, 1, 2, WIDTH}


@pytest.mark.parametrize("wanted", [1, 9, 20])
def test_a_sample_of_users_is_evaluated_alone(wanted):
    world = make_world(users=wanted)
    sample = world.evaluator.sample.tolist()
    assert len(set(sample)) == wanted
    evaluation = world.evaluator.model("validation", True, sample=True)
    items, _ = slow_ranks(world, "validation", True, sample)
    assert evaluation.ranks.tolist() == items
    assert world.evaluator.model("validation", True).users == len(cases(world.users, "validation"))


@pytest.mark.parametrize("wanted", [None, 9])
def test_the_validation_loss_is_a_mean_over_users_whatever_their_batch(wanted):
    world = make_world(users=wanted)
    sample = None if wanted is None else world.evaluator.sample.tolist()
    found = cases(world.users, "validation", sample)
    assert len(found) % BATCH
    losses = [world.slow.loss(case) for case in found]
    assert world.evaluator.validation_loss() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    batches = [losses[start : start + BATCH] for start in range(0, len(losses), BATCH)]
    by_batch = sum(sum(batch) / len(batch) for batch in batches) / len(batches)
    assert by_batch != pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_users_whose_item_training_never_saw_have_rows_of_their_own(world):
    cold = [item for item in range(ITEMS) if not any(item in history for history in world.train)]
    assert set(COLD) <= set(cold)
    rows = [("TIGER", world.evaluator.model("test", True)), *world.evaluator.baselines("test", True, world.rankers)]
    sliced = dict(world.evaluator.unseen("test", rows))
    found = cases(world.users, "test")
    concerned = [case for case in found if case.target in cold]
    expected = {
        "TIGER": [world.slow.ranked(case, world.order, True) for case in concerned],
        "TIGER among such items only": [world.slow.ranked(case, world.order, True, cold) for case in concerned],
        "most popular": [most_popular(case, world.order, True) for case in concerned],
        "last item -> next (Markov)": [markov(case, world.train, world.order, True) for case in concerned],
    }
    assert list(sliced) == list(expected)
    assert len({len(case.history) for case in concerned}) > 1
    for name, lists in expected.items():
        ranks = [rank_of(case.target, ranked, WIDTH) for case, ranked in zip(concerned, lists)]
        assert sliced[name].ranks.tolist() == ranks, name
        assert sliced[name].targets.tolist() == [case.target for case in concerned]
        same_figures(sliced[name], figures(ranks, CUTOFFS))
    assert any(case.target == 0 for case in concerned)


def test_without_unseen_items_there_are_no_such_rows(world):
    rows = [("TIGER", world.evaluator.model("validation", True))]
    cold = {item for item in range(ITEMS) if not any(item in history for history in world.train)}
    concerned = [case for case in cases(world.users, "validation") if case.target in cold]
    assert bool(world.evaluator.unseen("validation", rows)) == bool(concerned)

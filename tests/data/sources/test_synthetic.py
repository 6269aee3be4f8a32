import numpy as np
import pytest

from data.processed import DataConfig, RecDataset, SeqData, load_corpus
from data.sources.synthetic import Planted, ceiling, planted
from evaluate.baselines import LastItemMarkov
from evaluate.metrics import tie_order
from tests.examples import Example
from tests.synthetic import to_lists


def test_the_ceiling_of_hand_made_histories():
    cluster, successor = np.array([0, 0, 0, 1]), np.array([1, 2, 0, 3])
    onward = Planted(cluster, successor, [[0, 1]])  # left 1, 2, 3; near 1, 2
    assert ceiling(onward) == pytest.approx(0.8 + 0.15 / 2 + 0.05 / 3)
    back = Planted(cluster, successor, [[1, 0, 2]])  # 0 leads to 1, which was met; left 2, 3; near 2
    assert ceiling(back) == pytest.approx(0.95 + 0.05 / 2)
    alone = Planted(cluster, successor, [[3, 2]])  # 3 leads to itself, which was met; nothing near is left
    assert ceiling(alone) == pytest.approx(1 / 3)


def test_generated_data_needs_no_file_and_is_the_same_each_time(tmp_path):
    config = DataConfig(RecDataset.SYNTHETIC, str(tmp_path / "nowhere"), "planted")
    corpus, again = load_corpus(config), load_corpus(config)
    assert corpus[:4] == again[:4]
    assert to_lists(corpus.histories) == planted(2000, 400).histories
    assert corpus.texts[0].startswith("Title: ")
    assert not (tmp_path / "nowhere").exists()
    assert len(load_corpus(DataConfig(RecDataset.SYNTHETIC, str(tmp_path), "planted", k_core=5, max_history=4)).histories.item_ids) == 8000


def test_counting_successors_comes_close_to_the_ceiling(tmp_path):
    corpus = load_corpus(DataConfig(RecDataset.SYNTHETIC, str(tmp_path), "planted"))
    data = SeqData(corpus.histories, len(corpus.item_keys))
    markov = LastItemMarkov(*data.split.train, data.num_items, tie_order(data.popularity, corpus.item_keys, 0))
    hits = [markov.recommend(batch, 1, True)[:, 0] == batch.targets[:, 0] for batch in data.eval_batches("test", 500)]
    known = ceiling(planted(2000, 400))
    assert known - 0.05 < np.mean(np.concatenate(hits)) < known + 0.02  # 2,000 users: a deviation of .01


EXAMPLES = [Example(RecDataset.SYNTHETIC, "planted", lambda folder, split, users, items: None)]

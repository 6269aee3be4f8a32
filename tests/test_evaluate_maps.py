"""The tree of a first code and the map of the items show what they were given."""

import pytest
import torch

from evaluate.maps import latent_map, prefix_tree
from evaluate.plots import png
from evaluate.prefixes import MOST, branch, prefix_text

# Code 0: one item; code 1: twelve, of which two share the second code; code 2: twelve, all of which do; code 3: thirty.
FIRST = [0] + [1] * 12 + [2] * 12 + [3] * 30
SECOND = [0] + [0, 0, *range(2, 12)] + [5] * 12 + list(range(30))
THIRD = [0] + list(range(12)) + list(range(12, 0, -1)) + [0] * 30
SEM_IDS = torch.tensor([FIRST, SECOND, THIRD]).T
TITLES = [f"item {item}" for item in range(len(FIRST))]


def test_a_branch_holds_the_items_of_a_first_code_in_the_order_of_their_ids() -> None:
    found = branch(SEM_IDS, 2)
    assert found.items.tolist() == list(range(24, 12, -1))
    assert torch.equal(found.sem_ids, SEM_IDS[found.items])
    assert (found.first_code, found.total) == (2, 12)


def test_the_default_branch_is_of_legible_size_and_has_the_most_company_at_the_second_code() -> None:
    assert branch(SEM_IDS).first_code == 2
    assert branch(SEM_IDS[:13]).first_code == 1
    assert branch(SEM_IDS[[0, *range(25, 55)]]).first_code == 3  # 30 items are nearer to legible than one


def test_a_large_branch_is_cut_and_says_so() -> None:
    found = branch(SEM_IDS, 3)
    assert (len(found.items), found.total) == (MOST, 30)
    assert prefix_text(SEM_IDS, TITLES, 3).splitlines()[-1] == "... and 5 more items"
    assert prefix_tree(SEM_IDS, TITLES, 3).axes[0].get_title() == "The 30 items whose semantic ID begins with 3, 25 of them shown"


def test_an_unused_first_code_is_refused() -> None:
    with pytest.raises(ValueError, match=r"begins with code 7; choose one of \[0, 1, 2, 3\]"):
        branch(SEM_IDS, 7)


def test_the_text_says_each_code_where_it_changes() -> None:
    sem_ids = torch.tensor([[1, 10, 3], [1, 2, 4], [1, 10, 2], [1, 10, 3], [0, 0, 0]])
    assert prefix_text(sem_ids, ["a", "b", "c", "d", "e"], 1).splitlines() == [
        " 1   2   4  b",
        "    10   2  c",
        "         3  a",
        "            d",
    ]


def test_the_tree_shows_every_prefix_once_and_every_title() -> None:
    sem_ids = torch.tensor([[1, 10, 3], [1, 2, 4], [1, 10, 2], [1, 10, 3], [0, 0, 0]])
    axis = prefix_tree(sem_ids, ["a", "b", "costs $5 or $6", "d", "e"], 1).axes[0]
    texts = [(text.get_text(), text.get_position()) for text in axis.texts]
    assert sorted(text for text, (x, _) in texts if x <= 2) == ["1", "10", "2", "2", "3", "4"]
    assert [text for text, (x, _) in texts if x > 2] == ["b", "costs $5 or $6", "a", "d"]
    height = {text: y for text, (x, y) in texts if x == 1}
    assert height == {"2": 0.0, "10": 2.0}  # the middle of its three leaves
    assert [label.get_text() for label in axis.get_xticklabels()] == ["level 0", "level 1", "level 2"]


def test_the_map_colours_the_most_frequent_codes_and_counts_all_items() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.arange(10).repeat_interleave(torch.arange(1, 11))
    figure = latent_map(torch.randn(55, 5, generator=generator), codes, [f"title {item}" for item in range(55)])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "the other 3 codes"
    assert [label.partition(",")[0] for label in labels[1:]] == [f"code {code}: {code + 1} items" for code in range(9, 2, -1)]
    assert all(", as title " in label for label in labels[1:])
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [6, 10, 9, 8, 7, 6, 5, 4]


def test_the_map_shows_the_two_directions_of_greatest_variance() -> None:
    vectors = torch.zeros(8, 3)
    vectors[:4, 1], vectors[4:, 1] = 3, -3
    vectors[::2, 2], vectors[1::2, 2] = 1, -1
    axis = latent_map(vectors, torch.zeros(8, dtype=torch.int64)).axes[0]
    points = torch.as_tensor(axis.collections[0].get_offsets().data)
    assert points.flatten().tolist() == pytest.approx(vectors[:, 1:].flatten().tolist())
    assert axis.get_xlabel() == "first direction, 90% of the variance"
    assert axis.get_ylabel() == "second direction, 10% of the variance"


def test_one_dimension_or_one_level_can_be_drawn_too() -> None:
    assert png(latent_map(torch.randn(12, 1), torch.arange(12))).startswith(b"\x89PNG")
    assert png(prefix_tree(SEM_IDS[:, :1], TITLES)).startswith(b"\x89PNG")
    assert png(prefix_tree(SEM_IDS, ["裸の $x"] * len(TITLES))).startswith(b"\x89PNG")


def test_a_point_that_never_moves_is_no_error() -> None:
    assert png(latent_map(torch.ones(12, 3), torch.zeros(12, dtype=torch.int64))).startswith(b"\x89PNG")

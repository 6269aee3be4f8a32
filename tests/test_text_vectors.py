"""The text vectors of a run: the same directions read back, and a sentence where there are too many or none that fit."""

import pytest
import torch
from safetensors.torch import save_file

from data.schemas import UserError
from modules.nearest import directions
from modules.runtime.runs import text_vectors
from modules.runtime.runs.text_vectors import VECTORS, load_vectors, save_vectors


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6], ids=["below float16", "usual", "beyond float16"])
def test_directions_are_those_of_the_vectors_given(tmp_path, size):
    vectors = size * torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    assert save_vectors(tmp_path, vectors) is None
    found = load_vectors(tmp_path, 40)
    assert found.dtype == torch.float32
    torch.testing.assert_close(directions(found), directions(vectors), rtol=0, atol=2e-3)


def test_whole_numbers_come_back_to_the_digit(tmp_path):
    vectors = torch.tensor([[1.0, -2.0], [0.5, 1024.0]])
    save_vectors(tmp_path, vectors)
    assert torch.equal(load_vectors(tmp_path, 2), vectors)


def test_a_table_that_is_too_large_is_not_written_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(text_vectors, "LARGEST", 2 * 10 * 4 - 1)
    assert "not kept" in save_vectors(tmp_path, torch.ones(10, 4))
    assert load_vectors(tmp_path, 10) is None
    assert save_vectors(tmp_path, torch.ones(9, 4)) is None


def test_a_damaged_table_and_one_of_other_items_get_a_sentence(tmp_path):
    save_vectors(tmp_path, torch.ones(10, 4))
    with pytest.raises(UserError, match="no vectors of the run's 11 items"):
        load_vectors(tmp_path, 11)
    (tmp_path / VECTORS).write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        load_vectors(tmp_path, 10)
    save_file({"other": torch.ones(10, 4)}, tmp_path / VECTORS)
    with pytest.raises(UserError, match="cannot be read"):
        load_vectors(tmp_path, 10)

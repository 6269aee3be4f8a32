"""The exported search gives what the model gives, and needs nothing of this project to run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.schemas import PAD, SeqBatch
from modules.runtime.export import main
from modules.runtime.retriever import load_retriever


@pytest.mark.parametrize("keep", [False, True], ids=["barred", "kept"])
def test_the_exported_search_equals_the_eager_one_without_our_code(trained: Path, tmp_path: Path, keep: bool) -> None:
    run, output = trained / "decoder" / "beauty", tmp_path / "search.pt2"
    arguments = [str(run), "--output", str(output), "--beam-size", "20", "--batch-size", "3", *(["--keep-history"] if keep else [])]
    assert main(arguments) == 0
    history = torch.full((3, 20), PAD)
    history[0, :4], history[1, :1], history[2] = torch.tensor([3, 50, 7, 21]), 5, torch.arange(20)
    users = torch.tensor([0, 17, PAD])
    torch.save((history, users), tmp_path / "input.pt")
    code = (
        "import sys, torch; folder = sys.argv[1]\n"
        "program = torch.export.load(folder + '/search.pt2').module()\n"
        "torch.save(program(*torch.load(folder + '/input.pt')), folder + '/output.pt')\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('modules', 'data')]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, check=True, env={"PATH": "", "OMP_NUM_THREADS": "1"})
    items, log_probs = torch.load(tmp_path / "output.pt")
    model, tokenizer, _ = load_retriever(run)
    batch = tokenizer(SeqBatch(users, history, history[:, :1], None))
    expected = model.generate_next_sem_id(batch, tokenizer.trie, 20, None if keep else history, tuple_depth=tokenizer.num_levels)
    assert torch.equal(items, expected.item_ids)
    torch.testing.assert_close(log_probs, expected.log_probs)


def test_a_directory_that_is_no_run_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run of train_decoder.py" in capsys.readouterr().err

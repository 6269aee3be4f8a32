"""Rules that both scripts share."""

import pytest

from data.processed import RecDataset
from data.schemas import UserError
from modules.runtime import rules
from modules.runtime.rules import shared_mistakes

GOOD = {
    "dataset": RecDataset.AMAZON, "dataset_folder": "x", "dataset_split": "beauty",
    "force_dataset_process": False, "min_rating": 0.0, "k_core": 0, "max_history": None, "cold_items": None, "columns": (),
    "amp": True, "mixed_precision_type": "bf16", "device": "auto",
    "wandb_logging": False, "push_vae_to_hf": False, "vae_hf_model_name": None,
}  # fmt: skip


def mistakes(**changed: object) -> list[str]:
    return list(shared_mistakes(GOOD | changed, "vae", lambda settings: None))


def test_good_settings_have_no_mistakes():
    assert mistakes() == []
    assert mistakes(dataset=RecDataset.CUSTOM, dataset_split="anything") == []
    assert mistakes(mixed_precision_type="fp16", device="cuda") == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dataset_split": "beuty"}, "did you mean 'beauty'"),
        ({"dataset": RecDataset.ML_1M}, "train.dataset_split is 'beauty'; train.dataset ML_1M has ml-1m"),
        ({"min_rating": 3.0}, "train.min_rating needs raw interactions, and train.dataset AMAZON is P5's finished 5-core"),
        ({"k_core": 5}, "train.k_core needs raw interactions"),
        ({"columns": ("user=u",)}, "train.columns names the columns of your own files and train.dataset is AMAZON"),
        ({"mixed_precision_type": "fp16", "device": "cpu"}, "'fp16' is for CUDA and train.device is 'cpu'"),
        ({"push_vae_to_hf": True}, "train.vae_hf_model_name: None is not a hub name"),
        ({"push_vae_to_hf": True, "vae_hf_model_name": "nobody"}, "train.vae_hf_model_name: 'nobody' is not a hub name"),
    ],
)
def test_a_rule_that_does_not_hold_is_one_sentence(changed, words):
    (sentence,) = mistakes(**changed)
    assert words in sentence


def test_tracking_without_wandb_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    (sentence,) = mistakes(wandb_logging=True)
    assert "pip install" in sentence


def test_what_the_model_s_shape_refuses_is_told_with_the_rest():
    def refuse(settings):
        raise UserError("too wide", "too deep")

    assert list(shared_mistakes(GOOD | {"dataset_split": "x"}, "vae", refuse))[1:] == ["too wide", "too deep"]

"""Rules between options that both scripts share."""

import pytest

from data.processed import RecDataset
from data.schemas import UserError
from modules.runtime.options import groups
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions


def mistakes(**changed: object) -> list[str]:
    try:
        RqVaeOptions(**changed)
    except UserError as error:
        return list(error.args)
    return []


def test_good_options_have_no_mistakes():
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
    monkeypatch.setattr(groups, "find_spec", lambda name: None)
    (sentence,) = mistakes(wandb_logging=True)
    assert "pip install" in sentence


def test_what_the_model_s_shape_refuses_is_told_with_the_rest():
    with pytest.raises(UserError) as error:
        DecoderOptions(dataset_split="x", attn_heads=7, position="learned")
    split, position, heads = error.value.args
    assert "train.dataset_split is 'x'" in split
    assert "train.position = 'learned'" in position
    assert "cannot be split over train.attn_heads = 7" in heads


def test_options_that_sasrec_does_not_read_are_refused_in_one_sentence():
    given = {"model": "sasrec", "attn_heads": 2}
    assert DecoderOptions(**given).sasrec.num_heads == 2
    assert DecoderOptions(**given, beam_size=50, vae_n_layers=None).unread() == []
    with pytest.raises(UserError) as error:
        DecoderOptions(**given, beam_size=20, memory_weight=0.5, node_embeddings=True, vae_n_layers=3)
    (sentence,) = error.value.args
    names = "train.node_embeddings, train.vae_n_layers, train.beam_size, train.memory_weight"
    assert sentence == f"train.model = 'sasrec' does not read {names}; remove the lines"
    with pytest.raises(UserError, match=r"train\.decoder_embed_dim = 128 cannot be split over train\.attn_heads = 7"):
        DecoderOptions(model="sasrec", attn_heads=7)


def test_every_option_that_fills_the_decoder_alone_is_said_to_be_tiger_s():
    """Else it would be ignored in silence."""
    declared = {name: option.metadata for name, option in DecoderOptions.__dataclass_fields__.items()}
    read = {"decoder_embed_dim", "attn_heads", "attn_layers", "decoder_ff_dim", "dropout_p", "max_seq_len", "text_projection"}
    read |= {"full_softmax_items", "sampled_items"}
    fills = {name for name, metadata in declared.items() if (metadata["sets"] or name) in DecoderOptions().decoder.__dataclass_fields__}
    assert {name for name in fills if not declared[name]["only"]} == read


def test_cut_offs_beyond_the_beams_of_tiger_are_no_mistake():
    assert DecoderOptions(model="sasrec", attn_heads=2, top_k_eval_list=(10, 100)).top_k_eval_list == (10, 100)

"""What the doctor says of a tokenizer: each ailment by name, with its gin line, and nothing where nothing is wrong."""

import pytest
import torch

from evaluate.codebook import CodebookHealth, codebook_health
from evaluate.diagnosis import collapse_warnings, diagnose, few_items_warning
from evaluate.quality import TokenizerQuality
from evaluate.semantics import NeighboursKept
from modules.tokenizer.registry import settings_read

SIZES = [256, 256, 256]


def patient(**changed: object) -> TokenizerQuality:
    """A healthy tokenizer of 12,000 items, but for what is changed; fields of its health are told apart by name."""
    usage, perplexity, branching = [1.0, 1.0, 1.0], [231.0, 243.0, 249.0], [256.0, 33.0, 1.4]
    healthy = CodebookHealth(usage, perplexity, 0.05, 15, branching, 0.91, {1: 10_920, 2: 533, 14: 1})
    health = healthy._replace(**{name: value for name, value in changed.items() if name in healthy._fields})
    kept = NeighboursKept(0.4, 0.2, 10 / 11_999, 1000)
    quality = TokenizerQuality(12_000, SIZES, health, [1.3, 0.4, 0.3, 0.25], None, None, kept, None, None)
    return quality._replace(**{name: value for name, value in changed.items() if name in quality._fields})


def test_a_healthy_tokenizer_gets_one_line() -> None:
    (line,) = diagnose(patient())
    assert line.startswith("all is well")
    assert "20.0% of an item's neighbours" in line


AILMENTS = {
    "codebook collapse at level 1": ({"usage": [1.0, 0.01, 1.0]}, "train.use_kmeans_init = True"),
    "low usage at level 2": ({"usage": [1.0, 1.0, 0.79], "perplexity": [200.0, 200.0, 150.0]}, "train.vae_dead_code_steps = 50"),
    "uneven use of level 0": ({"perplexity": [100.0, 200.0, 200.0]}, 'train.vae_input_norm = "center_unit"'),
    "many collisions: 21.0%": ({"collision_rate": 0.21}, "train.vae_n_layers = 4"),
    "one giant group: 130 items": ({"largest_group": 130}, "titles"),
    "level 2 carries nothing": ({"residual_norms": [1.3, 0.4, 0.3, 0.295]}, "train.vae_dead_code_steps = 50"),
    "level 2 tells nothing apart": ({"branching": [256.0, 40.0, 1.01]}, "train.vae_n_layers = 2"),
    "near-random prefixes": ({"neighbours": NeighboursKept(None, 0.0012, 10 / 11_999, 1000)}, "train.use_kmeans_init = True"),
}


@pytest.mark.parametrize("name", AILMENTS)
def test_each_ailment_alone_is_named_with_its_cure(name: str) -> None:
    changed, cure = AILMENTS[name]
    (line,) = diagnose(patient(**changed))
    assert line.startswith(name)
    assert cure in line
    assert line.endswith(".")
    assert "\n" not in line


def test_the_thresholds_themselves_are_healthy() -> None:
    at = {"usage": [0.8, 1.0, 1.0], "collision_rate": 0.2, "largest_group": 120, "perplexity": [205 / 2, 128.0, 128.0]}
    assert diagnose(patient(**at))[0].startswith("all is well")


def test_a_cure_that_is_in_place_is_not_named_and_the_next_one_is() -> None:
    low = patient(usage=[1.0, 1.0, 0.5], perplexity=[200.0, 200.0, 100.0])
    taken = {"learning_rate": 1e-3, "use_kmeans_init": True, "vae_input_norm": "standardize", "vae_dead_code_steps": 0}
    assert "; set train.vae_dead_code_steps = 50." in diagnose(low, taken)[0]
    assert "; set train.vae_codebook_size = [256, 256, 128]." in diagnose(low, taken | {"vae_dead_code_steps": 50})[0]


def test_a_parameter_that_the_script_does_not_have_is_not_named() -> None:
    low = patient(usage=[1.0, 1.0, 0.5], perplexity=[200.0, 200.0, 100.0])
    assert "vae_dead_code_steps" not in diagnose(low, {"learning_rate": 1e-3, "use_kmeans_init": False})[0]


def test_the_cures_of_the_rqvae_are_not_given_to_other_tokenizers() -> None:
    blind = patient(neighbours=NeighboursKept(None, 0.001, 10 / 11_999, 1000))
    settings = {"use_kmeans_init": False, "learning_rate": 1e-3, "vae_input_norm": "center_unit"}
    (line,) = diagnose(blind, settings_read({"tokenizer": "lsh", **settings}))
    assert line.endswith('set train.tokenizer = "rqvae".')


def test_inputs_that_are_not_centred_are_the_first_to_cure_for_every_tokenizer_that_reads_them() -> None:
    collapsed, uncentred = patient(usage=[0.01, 1.0, 1.0]), {"tokenizer": "lsh", "vae_input_norm": "none"}
    assert 'set train.vae_input_norm = "center_unit".' in diagnose(collapsed, uncentred)[0]
    assert 'set train.tokenizer = "rqvae".' in diagnose(collapsed, {**uncentred, "vae_input_norm": "center_unit"})[0]
    uneven = patient(perplexity=[231.0, 243.0, 60.0])
    kmeans = {"tokenizer": "rqkmeans", "vae_input_norm": "center_unit", "kmeans_balanced": False}
    assert "set train.kmeans_balanced = True." in diagnose(uneven, kmeans)[0]
    cured = {"learning_rate": 1e-3, "vae_input_norm": "center_unit", "use_kmeans_init": True, "vae_dead_code_steps": 50}
    assert 'set train.vae_sinkhorn = "training".' in diagnose(uneven, {**cured, "vae_sinkhorn": "none"})[0]


def test_advice_for_levels_of_unequal_size_is_a_list_that_fits_the_levels() -> None:
    coarse = patient(sizes=[32, 16, 8], collision_rate=0.3)
    advice = "train.vae_codebook_size = [64, 32, 16], or train.vae_n_layers = 4 and train.vae_codebook_size = [32, 16, 8, 8]."
    assert diagnose(coarse)[0].endswith(advice)
    idle = patient(sizes=[512, 256, 128], branching=[256.0, 40.0, 1.01])
    assert "set train.vae_n_layers = 2 and train.vae_codebook_size = [512, 256], or" in diagnose(idle)[-1]


def test_items_that_are_nearly_the_same_are_not_told_apart_by_more_codes() -> None:
    collisions, depth = diagnose(patient(collision_rate=0.75, branching=[256.0, 8.0, 1.0]))
    assert "nearly the same" in collisions
    assert "train.vae_n_layers = 4" not in collisions + depth


def test_random_ids_are_not_blamed_for_being_random() -> None:
    blind = patient(neighbours=NeighboursKept(None, 0.001, 10 / 11_999, 1000))
    assert diagnose(blind, {"tokenizer": "random"})[0].startswith("all is well")


def test_few_items_are_not_called_random_for_their_high_chance() -> None:
    few = NeighboursKept(None, 0.75, 10 / 24, 25)  # below twice chance, yet far from it
    assert diagnose(patient(neighbours=few))[0].startswith("all is well")


def test_what_follows_from_a_collapse_is_not_told_twice() -> None:
    ill = patient(usage=[0.004, 0.004, 0.004], collision_rate=0.99, largest_group=12_000, branching=[1.0, 1.0, 1.0])
    ill = ill._replace(neighbours=NeighboursKept(None, 0.0008, 10 / 11_999, 1000))
    assert [line.partition(":")[0] for line in diagnose(ill)] == [f"codebook collapse at level {level}" for level in range(3)]


def test_collapse_is_named_with_its_level_usage_and_cure() -> None:
    codes = torch.stack([torch.arange(300) % 3, torch.arange(300) % 256, torch.zeros(300, dtype=torch.int64)], dim=1)
    warnings = collapse_warnings(codebook_health(codes, (256, 256, 256)), (256, 256, 256))
    assert len(warnings) == 2
    assert "level 0: 3 of 256 codes in use (1.2%)" in warnings[0]
    assert "level 2: 1 of 256 codes in use (0.4%)" in warnings[1]
    for warning in warnings:
        assert 'train.vae_input_norm = "center_unit"' in warning
        assert "train.use_kmeans_init = True" in warning
        assert warning.endswith(".")
        assert "\n" not in warning


def test_few_items_are_named_as_the_cause_once_nothing_else_is_left_to_cure() -> None:
    codes = torch.stack([torch.arange(300) % 256, torch.arange(300) % 3], dim=1)
    cured = {"learning_rate": 1e-3, "vae_input_norm": "center_unit", "use_kmeans_init": True, "vae_dead_code_steps": 50}
    (warning,) = collapse_warnings(codebook_health(codes, (256, 256)), (256, 256), settings=cured)
    assert "300 items are few for so many codes; set train.vae_codebook_size = 64." in warning
    (warning,) = collapse_warnings(codebook_health(codes.repeat(10, 1), (256, 256)), (256, 256), settings=cured)
    assert "lower train.learning_rate" in warning


def test_few_items_are_told_before_training() -> None:
    assert few_items_warning(300, [256] * 3) == "300 items are few for so many codes as 256 a level; set train.vae_codebook_size = 64"
    assert few_items_warning(12_101, [256] * 3) is None
    assert str(few_items_warning(300, [128, 32])).endswith("set train.vae_codebook_size = [64, 32]")


def test_a_healthy_codebook_is_silent_and_the_threshold_itself_is_healthy() -> None:
    health = codebook_health(torch.arange(2)[:, None].repeat(1, 2), (40, 2))  # 2 of 40 codes: 5 %
    assert collapse_warnings(health, (40, 2)) == []
    assert len(collapse_warnings(health, (40, 2), threshold=0.06)) == 1

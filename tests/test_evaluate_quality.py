"""All figures of a tokenizer together, as a table and as JSON."""

import json

import pytest
import torch

from data.schemas import PAD
from evaluate.codebook import codebook_health, reconstruction_quality
from evaluate.quality import TokenizerQuality, quality_table, quality_values, tokenizer_quality
from evaluate.semantics import agreement, neighbours_kept, prefix_affinity

GENERATOR = torch.Generator().manual_seed(0)
VECTORS, CODES = torch.randn(40, 6, generator=GENERATOR), torch.randint(0, 4, (40, 2), generator=GENERATOR)
CODEBOOKS, LATENTS = [torch.randn(4, 3, generator=GENERATOR) for _ in range(2)], torch.randn(40, 3, generator=GENERATOR)
HISTORIES = (torch.randint(0, 40, (30,), generator=GENERATOR), torch.tensor([0, 10, 30]))
CATEGORIES = torch.randint(PAD, 3, (40,), generator=GENERATOR)


def full() -> TokenizerQuality:
    rebuilt = reconstruction_quality(VECTORS, VECTORS / 2)
    return tokenizer_quality(CODES, [4, 4], VECTORS, LATENTS, CODEBOOKS, HISTORIES, CATEGORIES, rebuilt, rebuilt)


def test_it_gathers_the_single_figures() -> None:
    quality, quantized = full(), CODEBOOKS[0][CODES[:, 0]] + CODEBOOKS[1][CODES[:, 1]]
    assert quality.health == codebook_health(CODES, [4, 4])
    assert quality.neighbours == neighbours_kept(VECTORS, CODES, quantized)
    assert quality.agreement == agreement(CODES, CATEGORIES)
    assert quality.affinity == prefix_affinity(CODES, *HISTORIES)
    norms = [LATENTS, LATENTS - CODEBOOKS[0][CODES[:, 0]], LATENTS - quantized]
    assert quality.residual_norms == pytest.approx([part.norm(dim=1).mean().item() for part in norms])


def test_codes_alone_are_judged_as_far_as_they_go() -> None:
    quality = tokenizer_quality(CODES, [4, 4], VECTORS)
    assert quality.neighbours is not None
    assert quality.neighbours.by_vector is None
    assert quality[3:6] == (None, None, None)
    assert quality[7:] == (None, None)
    assert tokenizer_quality(CODES[:10], [4, 4], VECTORS[:10]).neighbours is None  # no ten others


def test_the_values_survive_json_and_are_the_same_every_time() -> None:
    values = quality_values(full())
    assert json.loads(json.dumps(values)) == values == quality_values(full())
    assert values["usage"] == full().health.usage
    assert values["neighbours"]["queries"] == 40
    assert sum(int(size) * groups for size, groups in values["group_sizes"].items()) == 40
    assert json.loads(json.dumps(quality_values(tokenizer_quality(CODES, [4, 4], VECTORS))))["affinity"] is None


def test_the_table_sets_tokenizers_side_by_side() -> None:
    quality = full()
    lines = quality_table({"RQ-VAE": quality, "random": tokenizer_quality(CODES, [4, 4], VECTORS)}).splitlines()
    assert lines[0].split() == ["RQ-VAE", "random"]
    assert len({len(line) for line in lines}) == 1  # aligned: every row ends under the last column
    assert next(line for line in lines if line.startswith("collision rate")).split()[2:] == [f"{quality.health.collision_rate:.1%}"] * 2
    assert next(line for line in lines if line.startswith("residual norm, after level 1")).split()[-2:] == [
        f"{quality.residual_norms[2]:.3f}",
        "-",
    ]
    assert sum(line.startswith("NMI") for line in lines) == 2

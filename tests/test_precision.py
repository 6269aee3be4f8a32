"""Runs in bf16, on every CPU: near the runs in fp32, whole after an interruption, and never where fp32 is pinned."""

import json
import signal
from pathlib import Path

import pytest

from modules.runtime.config.main import ROOT, resolve
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions
from modules.runtime.runs.run import Run
from modules.runtime.training.device import place
from tests.runs import BF16, RUN, interrupt_at, lines, losses
from tests.test_resume import same_run

STAGES = ["rqvae", "decoder"]
NEAR = 0.05
"""How far a loss in bf16 may be from that in fp32, as a share of it; bf16 has 8 bits of mantissa, and training carries rounding on."""


@pytest.fixture(scope="module")
def in_bf16(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run directories of an unbroken run of each script in bf16."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_BF16", "on")
        for stage in STAGES:
            root = tmp_path_factory.mktemp(stage)
            RUN[stage](trained, f"save_dir_root={root}", *BF16)
            folders[stage] = root / "beauty"
    return folders


@pytest.mark.parametrize("stage", STAGES)
def test_losses_in_bf16_are_near_those_in_fp32_and_not_the_same(stage: str, trained: Path, in_bf16: dict[str, Path]) -> None:
    fp32, bf16 = losses(trained / stage / "beauty"), losses(in_bf16[stage])
    assert fp32.keys() == bf16.keys()
    far = max(abs(fp32[step] - bf16[step]) / fp32[step] for step in fp32)
    assert 0 < far < NEAR


def test_a_decoder_trained_in_bf16_recommends_as_well_as_one_in_fp32(trained: Path, in_bf16: dict[str, Path]) -> None:
    fp32, bf16 = (json.loads((run / "metrics.json").read_text()) for run in (trained / "decoder" / "beauty", in_bf16["decoder"]))
    for part in ("validation", "test"):
        one, other = (metrics[part]["TIGER"]["metrics"] for metrics in (fp32, bf16))
        assert other["recall@10"] == pytest.approx(one["recall@10"], abs=0.05)
        assert other["ndcg@10"] == pytest.approx(one["ndcg@10"], abs=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_in_bf16_goes_on_in_it_on_a_machine_without_to_the_same_digits(
    stage: str, trained: Path, in_bf16: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_BF16", "on")
        interrupt_at(120, signal.SIGTERM, patch)
        RUN[stage](trained, f"save_dir_root={tmp_path}", *BF16, code=128 + signal.SIGTERM)
    monkeypatch.setenv("TESTS_BF16", "off")
    RUN[stage](trained, f"save_dir_root={tmp_path}", *BF16)
    assert "resumed  from step 121 (checkpoint-00000121), in bf16 as it began" in capsys.readouterr().out
    same_run(in_bf16[stage], tmp_path / "beauty")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_pinned_to_fp32_has_the_same_digits_on_a_machine_with_bf16(
    stage: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "picture", lambda self, name, figure: None)
    monkeypatch.setenv("TESTS_BF16", "on")
    short = ["iterations=90", "eval_every=90"] if stage == "rqvae" else ["iterations=10"]
    for name, pin in (("amp", ["amp=False"]), ("type", ["amp=True", "mixed_precision_type=no"])):
        RUN[stage](trained, f"save_dir_root={tmp_path}/{name}", *short, *pin)
    logs = [lines(tmp_path / name / "beauty") for name in ("amp", "type")]
    monkeypatch.setenv("TESTS_BF16", "off")
    RUN[stage](trained, f"save_dir_root={tmp_path}/off", *short, *BF16)
    assert logs == [lines(tmp_path / "off" / "beauty")] * 2


@pytest.mark.parametrize(("kind", "config"), [(RqVaeOptions, "rqvae_quick.gin"), (DecoderOptions, "decoder_quick.gin")])
def test_the_demo_runs_in_fp32_on_every_cpu(kind, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_BF16", "on")
    options = resolve(kind, [str(ROOT / "configs" / config)])
    assert place("cpu", options.amp, options.mixed_precision_type).autocast_dtype is None

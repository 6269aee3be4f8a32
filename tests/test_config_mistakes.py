"""The mistakes a config or a command line can hold, and the sentence that each gets.

``python -m tests.test_config_mistakes`` prints them as a table.
"""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

import train_decoder
import train_rqvae
from modules.runtime.config.main import run_script

SCRIPTS = {"rqvae": train_rqvae, "decoder": train_decoder}


class Mistake(NamedTuple):
    """What is wrong, and the words that its answer must hold."""

    what: str
    text: str | bytes  # of run.gin
    arguments: tuple[str, ...]  # behind the config
    words: tuple[str, ...]
    script: str = "decoder"
    config: str = "run.gin"


MISTAKES = [
    Mistake("mistyped path", "", (), ("no config file 'rum.gin'", "did you mean 'run.gin'"), config="rum.gin"),
    Mistake("mistyped shipped config", "", (), ("did you mean 'configs/decoder_amazon.gin'",), config="configs/decoder_amazn.gin"),
    Mistake("no config", "", (), ("no config file given",), config=""),
    Mistake("directory as config", "", (), ("is a directory", "base.gin or"), config="folder"),
    Mistake("not UTF-8", b"# caf\xe9\ntrain.seed = 1\n", (), ("not UTF-8",)),
    Mistake("include of a missing file", 'include "bsae.gin"\n', (), ("line 1", "no config file 'bsae.gin'", "'base.gin'")),
    Mistake("include cycle", 'include "run.gin"\n', (), ("includes itself",)),
    Mistake("misspelled parameter", "train.iteratoins = 5\n", (), ("line 1", "no parameter train.iteratoins", "'iterations'")),
    Mistake("misspelled parameter on the command line", "", ("beam_sise=5",), ("no parameter train.beam_sise", "'beam_size'")),
    Mistake("misspelled configurable", "trian.iterations = 5\n", (), ("no trian.iterations", "'train.iterations'")),
    Mistake("misspelled configurable on the command line", "", ("trian.seed=5",), ("no trian.seed", "'train.seed'")),
    Mistake("unused macro", "width = 64\n", (), ("line 1", "width is a macro that nothing uses", "%width")),
    Mistake("forgotten train.", "batch_size = 64\n", (), ("macro that nothing uses", "train.batch_size = ...")),
    Mistake("undefined macro", "WIDTH = 64\ntrain.attn_embed_dim = %WIDHT\n", (), ("%WIDHT", "no macro or constant", "'WIDTH'")),
    Mistake("macro defined by itself", "A = %B\nB = %A\ntrain.seed = %A\n", (), ("defined by itself",)),
    Mistake(
        "unknown member of an enum",
        "import data.processed\ntrain.dataset = %data.processed.RecDataset.AMAZONE\n",
        (),
        ("%data.processed.RecDataset.AMAZON, ", "%data.processed.RecDataset.CUSTOM", "did you mean 'AMAZON'"),
    ),
    Mistake(
        "text that names no member",
        'train.vae_codebook_mode = "STEE"\n',
        (),
        ("%modules.quantize.QuantizeForwardMode.STE ", "ROTATION_TRICK", "did you mean 'STE'"),
        "rqvae",
    ),
    Mistake("unquoted path", "train.save_dir_root = out/run\n", (), ("line 1", "'train.save_dir_root = out/run'", '= "out/run"')),
    Mistake("unclosed quote", 'train.save_dir_root = "out/run\ntrain.seed = 1\n', (), ("line 1", "quote is opened and not closed")),
    Mistake("unclosed bracket", "train.top_k_eval_list = [1, 10\ntrain.seed = 1\n", (), ("line 1", "bracket is opened")),
    Mistake("no equals sign", "train.seed 1\n", (), ("line 1", "'train.seed 1'", "train.NAME = VALUE")),
    Mistake("true for True", "train.amp = true\n", (), ("line 1", "write train.amp = True")),
    Mistake("arithmetic", "train.batch_size = 2 * 64\n", (), ("line 1", "nothing is calculated")),
    Mistake("no value", "train.batch_size =\n", (), ("line 1", "value is missing")),
    Mistake("unquoted include", "include base.gin\n", (), ("line 1", "path in quotes")),
    Mistake("text for a number", 'train.learning_rate = "high"\n', (), ("train.learning_rate is 'high'", "a number, above 0")),
    Mistake("fraction for a count", "train.batch_size = 1.5\n", (), ("train.batch_size is 1.5", "a whole number, at least 1")),
    Mistake("number for a switch", "train.amp = 3\n", (), ("train.amp is 3", "True or False")),
    Mistake("number for a list", "train.top_k_eval_list = 10\n", (), ("train.top_k_eval_list is 10", "a list")),
    Mistake("None where something must be", "train.iterations = None\n", (), ("train.iterations is None", "a whole number")),
    Mistake("empty path", 'train.save_dir_root = ""\n', (), ("train.save_dir_root is ''", "text that is not empty")),
    Mistake("count below 1", "train.iterations = 0\n", (), ("train.iterations is 0", "at least 1")),
    Mistake("rate of 0", "train.learning_rate = 0.0\n", (), ("train.learning_rate is 0.0", "above 0")),
    Mistake("infinite number", "train.learning_rate = 1e999\n", (), ("train.learning_rate is inf", "above 0")),
    Mistake("share above 1", "train.dropout_p = 1.5\n", (), ("train.dropout_p is 1.5", "at least 0 and below 1")),
    Mistake(
        "codebooks for other levels", "train.vae_codebook_size = [64, 32]\n", (), ("has 2 numbers", "one number for each level"), "rqvae"
    ),
    Mistake("principal components of an RQ-VAE", "train.pca_dim = 64\n", (), ("train.pca_dim = 64 is for", "'rqkmeans'"), "rqvae"),
    Mistake(
        "hashed codes of no whole bits",
        'train.tokenizer = "lsh"\ntrain.vae_codebook_size = 100\n',
        (),
        ("train.vae_codebook_size is 100", "take powers of two"),
        "rqvae",
    ),
    Mistake("negative element of a list", "train.vae_hidden_dims = [512, -1]\n", (), ("[512, -1]", "at least 1"), "rqvae"),
    Mistake("unknown choice", 'train.lr_schedule = "cosin"\n', (), ("'cosine', 'inverse_sqrt' or 'constant'", "did you mean 'cosine'")),
    Mistake("unknown precision", 'train.mixed_precision_type = "bf61"\n', (), ("'bf16'", "did you mean 'bf16'")),
    Mistake("unknown device", 'train.device = "gpu"\n', (), ("train.device is 'gpu'", "'cuda'")),
    Mistake("seed that torch does not take", f"train.seed = {2**70}\n", (), ("train.seed is", "from 0 to")),
    Mistake("unknown split", 'train.dataset_split = "beuty"\n', (), ("'beuty'", "beauty, sports or toys", "did you mean 'beauty'")),
    Mistake("narrow beam", "train.beam_size = 5\n", (), ("train.beam_size = 5 cannot fill recall@10",)),
    Mistake("no 10 among the cut-offs", "train.top_k_eval_list = [1, 5]\n", (), ("needs 10",)),
    Mistake("heads that do not divide", "train.attn_heads = 7\n", (), ("cannot be split over train.attn_heads = 7",)),
    Mistake("positions a causal encoder cannot have", 'train.position = "learned"\n', (), ("train.position = 'learned'", "bidirectional")),
    Mistake("warm-up as long as training", "train.iterations = 300\n", (), ("train.autoencoder_steps = 300 leaves no step",), "rqvae"),
    Mistake("rising temperature", "train.gumbel_temperature_end = 0.9\n", (), ("temperatures fall",), "rqvae"),
    Mistake("split by time without times", 'train.split_by = "time"\n', (), ("train.split_by = 'time' needs times", "take AMAZON_2014")),
    Mistake("moments that do not follow", "train.split_quantiles = [0.9, 0.8]\n", (), ("needs two shares above 0",)),
    Mistake("rating of a source without", "train.min_rating = 3\n", (), ("train.min_rating needs raw interactions", "take AMAZON_2014")),
    Mistake("columns of a known source", 'train.columns = ["user=u"]\n', (), ("names the columns of your own files", "set CUSTOM")),
    Mistake("scope", "small/train.seed = 1\n", (), ("small/train.seed has a scope", "write train.seed")),
    Mistake(
        "another configurable",
        "Search.beam_size = 1\n",
        (),
        ("Search.beam_size is not a parameter of train", "write train.beam_size"),
    ),
    Mistake(
        "reference to a function",
        "train.dataset = @AmazonDataset\n",
        (),
        ("train.dataset is @AmazonDataset", "gin would call", "RecDataset.AMAZON, "),
    ),
    Mistake("missing module", "import data.procesed\n", (), ("no module 'data.procesed'", "did you mean 'data.processed'")),
    Mistake("bound twice in a file", "train.seed = 1\ntrain.seed = 2\n", (), ("line 2", "train.seed has another value on line 1")),
    Mistake("lost to a later include", 'train.seed = 3\ninclude "base.gin"\n', (), ("line 2", "train.seed again and line 1 is lost")),
    Mistake("override without =", "", ("iterations",), ("cannot read 'iterations'", "name=value")),
    Mistake("second config", "", ("base.gin",), ("one config file", "'base.gin'")),
    Mistake("unknown flag", "", ("--print_config",), ("no flag --print_config", "'--print-config'")),
    Mistake("parameter as a flag", "", ("--seed", "1"), ("no flag --seed", "seed=VALUE")),
    Mistake("old name that asks for something absent", "train.epochs = 10\n", (), ("train.epochs", "counted in steps")),
    Mistake("old name beside the new one", "train.t5_d_model = 64\ntrain.decoder_embed_dim = 32\n", (), ("decoder_embed_dim has another",)),
    Mistake("checkpoint file of other code", 'train.pretrained_rqvae_path = "out/step_9.pt"\n', (), ("the path of a run directory",)),
]


def answer(mistake: Mistake) -> tuple[int, str]:
    """The exit code and what stands on stderr, with nothing but the mistake's files in the working directory."""
    folder = Path.cwd()
    (folder / "folder").mkdir()
    for name in ("base.gin", "folder/base.gin", "folder/other.gin"):
        (folder / name).write_text("train.seed = 7\n")
    text = mistake.text.encode() if isinstance(mistake.text, str) else mistake.text
    (folder / "run.gin").write_bytes(text)
    arguments = [mistake.config] * bool(mistake.config) + list(mistake.arguments)
    script, shown = SCRIPTS[mistake.script], io.StringIO()
    with contextlib.redirect_stderr(shown):
        code = run_script(script.train, "", [*arguments, *([] if arguments else ["--print-config"])])
    return code, shown.getvalue()


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.what for mistake in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown = answer(mistake)
    assert code == 2
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1, "one mistake, one line"
    assert [word for word in mistake.words if word not in shown] == [], shown


def test_all_mistakes_of_file_and_command_line_come_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = [mistake for mistake in MISTAKES if isinstance(mistake.text, str) and mistake.config == "run.gin" and not mistake.arguments]
    chosen = ["misspelled parameter", "unquoted path", "unused macro", "unclosed bracket", "count below 1", "missing module", "scope"]
    chosen += ["text for a number", "include of a missing file", "heads that do not divide", "positions a causal encoder cannot have"]
    parts = [mistake for mistake in together if mistake.what in chosen]
    assert len(parts) == len(chosen)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text("")
    text = "".join(str(part.text).replace("train.seed = 1\n", "") for part in parts)
    Path("run.gin").write_text(text.replace("small/", "small/train.seed = 1\n"))
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        assert run_script(train_decoder.train, "", ["run.gin", "beam_sise=5", "--fast"]) == 2
    assert shown.getvalue().count("error: ") == 1
    assert shown.getvalue().count("\n  - ") == len(chosen) + 2
    for part in parts:
        assert [word for word in part.words if word not in shown.getvalue() and "line" not in word] == []


def table() -> str:
    """Mistake -> sentence, as Markdown."""
    rows = ["| mistake | answer |", "|---|---|"]
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            rows.append(f"| {mistake.what} | {answer(mistake)[1].strip().removeprefix('error: ').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())

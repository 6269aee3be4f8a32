"""The tokenizer: items to semantic IDs and back, collision codes, and files that are saved, loaded and refused."""

import errno
import json
from pathlib import Path

import pytest
import torch

from data.schemas import PAD, SeqBatch, UserError
from modules.rqvae import RqVae, RqVaeConfig
from modules.tokenizer.collisions import collision_codes
from modules.tokenizer.semids import SemanticIdTokenizer, TokenizerInfo, seeded_order


def keys_of(number: int) -> list[str]:
    return [f"B{item:05d}" for item in range(number)]


def crowded_codes(number: int = 300, size: int = 5, levels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(size, (number, levels), generator=torch.Generator().manual_seed(seed))


def tokenizer(number: int = 300, device: torch.device | str = "cpu") -> SemanticIdTokenizer:
    codes, keys = crowded_codes(number), keys_of(number)
    collisions = collision_codes(codes, seeded_order(keys, 0))
    books = [torch.randn(5, 4) for _ in range(3)]
    table = torch.cat([codes, collisions.unsqueeze(1)], dim=1).to(device)
    return SemanticIdTokenizer(table, books, TokenizerInfo(keys, "abc", [5, 5, 5], 0))


def slow_collision_codes(codes: torch.Tensor, order: torch.Tensor) -> list[int]:
    rows, ranks = [tuple(row) for row in codes.tolist()], order.tolist()
    return [sum(rows[j] == rows[i] and ranks[j] < ranks[i] for j in range(len(rows))) for i in range(len(rows))]


def test_collision_codes_by_hand():
    codes = torch.tensor([[1, 2], [0, 0], [1, 2], [1, 2], [0, 1]])
    assert collision_codes(codes, torch.tensor([2, 4, 0, 1, 3])).tolist() == [2, 0, 0, 1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_collision_codes_count_up_in_each_group_as_a_slow_loop_does(seed, device):
    codes, order = crowded_codes(seed=seed), seeded_order(keys_of(300), seed)
    assert collision_codes(codes.to(device), order.to(device)).tolist() == slow_collision_codes(codes, order)


def test_collision_codes_do_not_overflow_at_six_levels_of_2048_codes():
    high = torch.full((4, 6), 2047)
    high[2:, 0] = 0
    codes = torch.cat([high, torch.randint(2048, (200, 6), generator=torch.Generator().manual_seed(0))])
    order = torch.arange(204)
    assert collision_codes(codes, order).tolist() == slow_collision_codes(codes, order)
    table = torch.cat([codes, collision_codes(codes, order).unsqueeze(1)], 1)
    whole = SemanticIdTokenizer(table, [], TokenizerInfo(keys_of(204), "", [2048] * 6, 0))
    assert whole.items_of(table).tolist() == list(range(204))


def test_relabelling_the_items_takes_their_codes_along():
    codes, keys = crowded_codes(), keys_of(300)
    before = collision_codes(codes, seeded_order(keys, 7))
    permutation = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    after = collision_codes(codes[permutation], seeded_order([keys[row] for row in permutation.tolist()], 7))
    assert torch.equal(after, before[permutation])


def test_the_seeded_order_is_a_permutation_that_follows_the_seed():
    keys = keys_of(50)
    assert sorted(seeded_order(keys, 3).tolist()) == list(range(50))
    assert torch.equal(seeded_order(keys, 3), seeded_order(keys, 3))
    assert not torch.equal(seeded_order(keys, 3), seeded_order(keys, 4))
    assert seeded_order(keys, 0).tolist() != list(range(50))


def test_every_item_has_an_id_of_its_own():
    assert len({tuple(row) for row in tokenizer().sem_ids.tolist()}) == 300


def test_the_collision_codes_vocabulary_is_sized_from_the_data():
    made = tokenizer()
    assert made.vocab_sizes == (5, 5, 5, int(made.sem_ids[:, -1].max()) + 1)


def test_items_of_inverts_the_table(device):
    made = tokenizer(device=device)
    assert made.items_of(made.sem_ids).tolist() == list(range(300))
    absent = made.sem_ids[:1].clone()
    absent[0, -1] = made.vocab_sizes[-1] - 1
    known = {tuple(row) for row in made.sem_ids.tolist()}
    for row in range(300):
        absent[0, :-1] = made.sem_ids[row, :-1]
        if tuple(absent[0].tolist()) not in known:
            assert made.items_of(absent).tolist() == [PAD]
            break
    else:
        pytest.fail("the table has no absent ID to ask for")


def test_prefixes_exist_exactly_where_an_id_begins_with_them():
    made = tokenizer(40)
    for length in range(1, 5):
        known = {tuple(row) for row in made.sem_ids[:, :length].tolist()}
        grid = torch.cartesian_prod(*[torch.arange(size) for size in made.vocab_sizes[:length]]).reshape(-1, length)
        assert made.exists_prefix(grid).tolist() == [tuple(row) in known for row in grid.tolist()]


def test_a_padded_batch_becomes_codes_and_masks(device):
    made = tokenizer(device=device)
    batch = SeqBatch(torch.tensor([0, 1]), torch.tensor([[5, 0, 7], [3, PAD, PAD]]), torch.tensor([[9], [PAD]]), None).to(device)
    out = made(batch)
    assert out.mask.tolist() == [[True, True, True], [True, False, False]]
    assert out.target_mask.tolist() == [[True], [False]]
    assert torch.equal(out.sem_ids[0], made.sem_ids[[5, 0, 7]])
    assert torch.equal(out.sem_ids[1, 0], made.sem_ids[3])
    assert not out.sem_ids[1, 1:].any()
    assert torch.equal(out.target_sem_ids[0, 0], made.sem_ids[9])
    assert not out.target_sem_ids[1].any()
    assert out.user_ids.tolist() == [0, 1]


def test_items_share_a_tuple_exactly_where_they_share_all_codes_of_the_levels():
    made = tokenizer()
    nodes = made.tuples_of(torch.arange(300))
    codes = made.sem_ids[:, :3]
    same = (codes.unsqueeze(0) == codes.unsqueeze(1)).all(-1)
    assert torch.equal(nodes.unsqueeze(0) == nodes.unsqueeze(1), same)


def test_without_a_collision_code_an_id_leads_to_the_first_of_its_items_in_the_seeded_order():
    codes, keys = crowded_codes(), keys_of(300)
    made = SemanticIdTokenizer(codes, [], TokenizerInfo(keys, "", [5, 5, 5], 0))
    assert made.vocab_sizes == (5, 5, 5)
    ranks = seeded_order(keys, 0)
    rows = codes.tolist()
    expected = [min((j for j in range(300) if rows[j] == row), key=lambda j: int(ranks[j])) for row in rows]
    assert made.items_of(codes).tolist() == expected
    assert torch.equal(made.tuples_of(torch.tensor([0, 1])), made.trie.find(codes[:2]))


def test_from_coder_keeps_the_codewords_that_the_decoder_reads():
    torch.manual_seed(0)
    shape = {"input_dim": 6, "embed_dim": 3, "hidden_dims": (5,), "codebook_size": 4, "num_levels": 2}
    model, items = RqVae(RqVaeConfig(**shape, sim_vq=True, codebook_normalize=True)), torch.randn(50, 6)
    with torch.no_grad():
        for level in model.levels:
            level.projection.normal_()
    made = SemanticIdTokenizer.from_coder(model, items, keys_of(50), "hash")
    maps = [level.codebook @ level.projection.T for level in model.levels]
    torch.testing.assert_close(made.codebooks[0], torch.nn.functional.normalize(maps[0], dim=1))
    torch.testing.assert_close(made.codebooks[1], maps[1])


def test_from_coder_takes_nearest_codes_and_appends_collision_codes():
    torch.manual_seed(0)
    model = RqVae(RqVaeConfig(input_dim=6, embed_dim=3, hidden_dims=(5,), codebook_size=4, num_levels=2))
    items = torch.randn(50, 6)
    model.normalizer.fit(items)
    made = SemanticIdTokenizer.from_coder(model, items, keys_of(50), "hash", seed=2)
    assert torch.equal(made.sem_ids[:, :2], model.get_semantic_ids(items))
    assert torch.equal(made.sem_ids[:, 2], collision_codes(made.sem_ids[:, :2], seeded_order(keys_of(50), 2)))
    assert made.info == TokenizerInfo(keys_of(50), "hash", [4, 4], 2)
    assert all(torch.equal(book, level.codebook) for book, level in zip(made.codebooks, model.levels))


def test_save_and_load_give_the_same_bits(tmp_path):
    made = tokenizer()
    made.save(tmp_path / "deep" / "run")
    loaded = SemanticIdTokenizer.load(tmp_path / "deep" / "run")
    assert torch.equal(loaded.sem_ids, made.sem_ids)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made.codebooks, loaded.codebooks, strict=True))
    assert (loaded.info, loaded.vocab_sizes) == (made.info, made.vocab_sizes)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_leaves_the_tokenizer_of_before(tmp_path, monkeypatch):
    made = tokenizer(10)
    made.save(tmp_path)
    write = Path.write_bytes

    def fill(path, content):
        write(path, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(OSError, match="No space left"):
            tokenizer(12).save(tmp_path)
    assert torch.equal(SemanticIdTokenizer.load(tmp_path).sem_ids, made.sem_ids)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_tokenizer_names_the_script_to_run(tmp_path):
    with pytest.raises(UserError, match=r"train_rqvae\.py"):
        SemanticIdTokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten"])
def test_a_damaged_file_is_a_user_error(tmp_path, name, damage):
    tokenizer().save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "emptied": b"", "overwritten": b"\x00\xff" * 50}[damage])
    with pytest.raises(UserError, match="train stage 1 again"):
        SemanticIdTokenizer.load(tmp_path)


@pytest.mark.parametrize("lost", ["seed", "item_keys", "num_codebooks", "format_version"])
def test_a_description_without_a_field_is_a_user_error(tmp_path, lost):
    tokenizer().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    described = json.loads(path.read_text())
    del described[lost]
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="train stage 1 again"):
        SemanticIdTokenizer.load(tmp_path)


def test_a_description_of_another_run_s_table_is_a_user_error(tmp_path):
    for number in (10, 12):
        tokenizer(number).save(tmp_path / str(number))
    (tmp_path / "12" / "tokenizer.json").replace(tmp_path / "10" / "tokenizer.json")
    with pytest.raises(UserError, match=r"not of one run.*train stage 1 again"):
        SemanticIdTokenizer.load(tmp_path / "10")


def test_other_items_and_another_order_are_refused_in_words():
    made = tokenizer(10)
    made.check_items(keys_of(10))
    with pytest.raises(UserError, match=r"1 of the data's 10 items are unknown"):
        made.check_items([*keys_of(9), "new"])
    for keys in (keys_of(10)[::-1], keys_of(9)):
        with pytest.raises(UserError, match="another order or number"):
            made.check_items(keys)

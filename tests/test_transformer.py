"""Attention and the stacks against slow, obvious references and torch's own; embeddings and biases by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from modules.embedding import USER_TOKEN, HashedUserEmbedding, ItemDistanceBias, SemanticIdEmbedding
from modules.transformer import Attention, Decoder, Encoder, EncoderLayer, FeedForward, attend


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def slow_attention(module: Attention, x: Tensor, source: Tensor, bias: Tensor | None) -> Tensor:
    """Head by head and query by query, from the same weights."""
    heads, width = module.num_heads, module.to_queries.out_features // module.num_heads
    wk, wv = module.to_keys_values.weight.chunk(2)
    rows = []
    for b in range(len(x)):
        queries = []
        for q in range(x.shape[1]):
            mixed = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                query = module.to_queries.weight[part] @ x[b, q]
                scores = []
                for s in range(source.shape[1]):
                    score = query @ (wk[part] @ source[b, s]) / math.sqrt(width)
                    scores.append(score if bias is None else score + bias[b, h, q, s])
                weights = torch.stack(scores).softmax(0)
                mixed.append(sum(weights[s] * (wv[part] @ source[b, s]) for s in range(source.shape[1])))
            queries.append(module.to_output.weight @ torch.cat(mixed))
        rows.append(torch.stack(queries))
    return torch.stack(rows)


def barred(shape: tuple[int, ...]) -> Tensor:
    """A random bias that bars some keys, never the first."""
    bias = torch.randn(shape)
    bars = torch.rand(shape) < 0.3
    bars[..., 0] = False
    return bias.masked_fill(bars, -torch.inf)


# -- attention --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_attention_equals_loops_over_heads_queries_and_keys(with_bias):
    torch.manual_seed(0)
    module = Attention(dim=10, attn_dim=12, num_heads=3)
    x, source = torch.randn(2, 4, 10), torch.randn(2, 5, 10)
    bias = barred((2, 3, 4, 5)) if with_bias else None
    close(module(x, module.keys_values(source), bias), slow_attention(module, x, source, bias))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 1, 5), (4, 5), None])
def test_the_fused_kernel_equals_the_two_products_forward_and_backward(device, shape):
    torch.manual_seed(1)
    tensors = [torch.randn(2, 3, length, 8, device=device) for length in (4, 5, 5)]
    bias = None if shape is None else barred(shape).to(device)
    results = []
    for fused in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        mixed = attend(*leaves, bias, fused)
        mixed.square().sum().backward()
        results.append([mixed.detach(), *(leaf.grad for leaf in leaves)])
    for fused, plain in zip(*results):
        close(fused, plain, atol=1e-4)


def test_a_bias_learns_through_either_kernel(device):
    torch.manual_seed(2)
    tensors = [torch.randn(2, 3, length, 8, device=device) for length in (4, 5, 5)]
    gradients = []
    for fused in (True, False):
        bias = torch.zeros(1, 3, 4, 5, device=device, requires_grad=True)
        attend(*tensors, bias, fused).square().sum().backward()
        gradients.append(bias.grad)
    assert gradients[0].abs().max() > 0
    close(*gradients, atol=1e-4)


def test_a_barred_key_has_no_influence_at_all():
    torch.manual_seed(3)
    queries, keys, values = (torch.randn(1, 2, length, 4) for length in (3, 5, 5))
    bias = torch.zeros(1, 1, 1, 5)
    bias[..., 2] = -torch.inf
    before = attend(queries, keys, values, bias, fused=False)
    keys[:, :, 2], values[:, :, 2] = 100.0, -100.0
    assert torch.equal(before, attend(queries, keys, values, bias, fused=False))


# -- layers and stacks ------------------------------------------------------------------------------------------------------------------


def test_feed_forward_is_linear_relu_linear():
    torch.manual_seed(4)
    module, x = FeedForward(6, 9), torch.randn(2, 3, 6)
    hidden = (x @ module.expand.weight.T + module.expand.bias).clamp_min(0)
    close(module(x), hidden @ module.contract.weight.T + module.contract.bias)


def torch_layer(ours: EncoderLayer, dim: int, heads: int, ff_dim: int) -> nn.TransformerEncoderLayer:
    theirs = nn.TransformerEncoderLayer(dim, heads, ff_dim, dropout=0.1, activation="relu", batch_first=True, norm_first=True)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.attention.to_queries.weight, ours.attention.to_keys_values.weight]))
        theirs.self_attn.in_proj_bias.zero_()
        theirs.self_attn.out_proj.weight.copy_(ours.attention.to_output.weight)
        theirs.self_attn.out_proj.bias.zero_()
    theirs.linear1.load_state_dict(ours.feed_forward.expand.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.contract.state_dict())
    theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
    theirs.norm2.load_state_dict(ours.ff_norm.state_dict())
    return theirs.eval()


def shake_norms(module: nn.Module) -> None:
    """Norms start as ones and zeros, which would hide a swap."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.normal_(part.weight, mean=1, std=0.3)
            nn.init.normal_(part.bias, std=0.3)


def test_an_encoder_layer_equals_torchs_own():
    torch.manual_seed(5)
    ours = EncoderLayer(dim=16, attn_dim=16, num_heads=4, ff_dim=24, dropout=0.1).eval()
    shake_norms(ours)
    x, bias = torch.randn(3, 6, 16), barred((3, 4, 6, 6))
    close(ours(x, bias), torch_layer(ours, 16, 4, 24)(x, src_mask=bias.flatten(0, 1)))


def test_an_encoder_equals_torchs_layers_and_a_closing_norm():
    torch.manual_seed(6)
    ours = Encoder(num_layers=3, dim=16, attn_dim=16, num_heads=4, ff_dim=24, dropout=0.1).eval()
    shake_norms(ours)
    x, bias = torch.randn(3, 6, 16), barred((3, 4, 6, 6))
    y = x
    for layer in ours.layers:
        y = torch_layer(layer, 16, 4, 24)(y, src_mask=bias.flatten(0, 1))
    close(ours(x, bias), ours.norm(y))


@torch.no_grad()
def test_a_decoder_equals_its_sublayers_written_out_target_by_target():
    torch.manual_seed(7)
    decoder = Decoder(num_layers=2, dim=10, attn_dim=12, num_heads=3, ff_dim=14, dropout=0.1).eval()
    shake_norms(decoder)
    x, encoded, cross_bias = torch.randn(2, 3, 4, 10), torch.randn(2, 5, 10), barred((2, 3, 3, 5))
    causal = torch.full((4, 4), -torch.inf).triu(1)
    ours = decoder(x, decoder.memory(encoded), causal, cross_bias.repeat_interleave(4, dim=2))
    for target in range(3):
        y = x[:, target]
        for layer in decoder.stack():
            normed = layer.self_norm(y)
            y = y + slow_attention(layer.self_attention, normed, normed, causal.expand(2, 3, 4, 4))
            bias = cross_bias[:, :, target : target + 1].expand(2, 3, 4, 5)
            y = y + slow_attention(layer.cross_attention, layer.cross_norm(y), encoded, bias)
            y = y + layer.feed_forward(layer.ff_norm(y))
        close(ours[:, target], decoder.norm(y))


@torch.no_grad()
def test_writing_code_by_code_equals_writing_all_at_once(device):
    torch.manual_seed(8)
    decoder = Decoder(num_layers=2, dim=10, attn_dim=12, num_heads=3, ff_dim=14, dropout=0.1).to(device).eval()
    x, encoded = torch.randn(2, 5, 4, 10, device=device), torch.randn(2, 6, 10, device=device)  # five beams in the place of targets
    memory, cross_bias = decoder.memory(encoded), barred((2, 3, 1, 6)).to(device)
    causal = torch.full((4, 4), -torch.inf, device=device).triu(1)
    expected = decoder(x, memory, causal, cross_bias)
    past: list[list[Tensor]] = [[], []]
    for level in range(4):
        written, past = decoder.step(x[:, :, level], memory, past, cross_bias)
        close(written, expected[:, :, level])
        assert [[code.shape for code in layer] for layer in past] == [[(10, 24)] * (level + 1)] * 2


@pytest.mark.parametrize("count", [1, 2, 5])
@torch.no_grad()
def test_attention_over_a_rows_own_codes_is_attention_with_one_query(device, count):
    torch.manual_seed(11)
    module = Attention(dim=10, attn_dim=12, num_heads=3).to(device)
    x, codes = torch.randn(7, 10, device=device), [torch.randn(7, 10, device=device) for _ in range(count)]
    ours = module.over_codes(x, [module.to_keys_values(code) for code in codes])
    close(ours, module(x.unsqueeze(1), module.keys_values(torch.stack(codes, dim=1)), None).squeeze(1))


def test_dropout_acts_in_training_and_never_in_evaluation():
    torch.manual_seed(9)
    encoder = Encoder(num_layers=1, dim=8, attn_dim=8, num_heads=2, ff_dim=8, dropout=0.5)
    x, bias = torch.randn(2, 3, 8), torch.zeros(1, 1, 3, 3)
    assert not torch.equal(encoder(x, bias), encoder(x, bias))
    encoder.eval()
    assert torch.equal(encoder(x, bias), encoder(x, bias))


# -- embeddings -------------------------------------------------------------------------------------------------------------------------


def test_codes_of_different_levels_read_different_rows_of_one_table():
    embedding = SemanticIdEmbedding([4, 3, 2], dim=1)
    with torch.no_grad():
        embedding.table.weight.copy_(torch.arange(9.0).unsqueeze(1))
    assert embedding(torch.tensor([[0, 0, 0], [3, 2, 1]])).squeeze(-1).tolist() == [[0, 4, 7], [3, 6, 8]]
    assert embedding(torch.tensor([[3, 2]])).squeeze(-1).tolist() == [[3, 6]]
    assert [embedding.level(torch.tensor([1, 0]), level).squeeze(-1).tolist() for level in range(3)] == [[1, 0], [5, 4], [8, 7]]


def test_user_buckets_never_change():
    buckets = HashedUserEmbedding(2000, 4).bucket(torch.tensor([0, 1, 2, 3, 4, 5, 1000, 22363, 1_000_000]))
    assert buckets.tolist() == [0, 1236, 472, 1708, 944, 180, 67, 188, 1973]


@pytest.mark.parametrize("num_buckets", [1, 7, 2000])
def test_every_user_has_a_bucket_that_exists(num_buckets):
    users = torch.cat([torch.arange(-5, 3000), torch.tensor([10**6, 2**31 - 1, 3 * 10**9])])
    buckets = HashedUserEmbedding(num_buckets, 4).bucket(users)
    assert buckets.min() >= 0
    assert buckets.max() < num_buckets


def test_users_spread_evenly_over_the_buckets():
    counts = torch.bincount(HashedUserEmbedding(2000, 4).bucket(torch.arange(20_000)), minlength=2000)
    assert counts.min() >= 5
    assert counts.max() <= 20


def test_users_of_one_bucket_share_a_vector_and_others_do_not():
    embedding = HashedUserEmbedding(2000, 4)
    one, two = embedding(torch.tensor([1, 2]))
    assert torch.equal(one, embedding.table.weight[1236])
    assert not torch.equal(one, two)


def test_a_user_whom_the_model_does_not_know_is_the_mean_of_all():
    embedding = HashedUserEmbedding(8, 4)
    rows = embedding(torch.tensor([5, -1]))
    torch.testing.assert_close(rows[1], embedding.table.weight.mean(0))
    assert torch.equal(rows[0], embedding.table(embedding.bucket(torch.tensor(5))))


def test_item_distance_bias_is_looked_up_by_signed_distance_as_by_hand():
    module = ItemDistanceBias(num_heads=2, max_distance=2)  # buckets: -2 -1 0 1 2 user
    with torch.no_grad():
        module.bias.copy_(torch.tensor([[-20.0, -10, 0, 10, 20, 99], [1, 2, 3, 4, 5, 6]]))
    bias = module(torch.tensor([[3, 0]]), torch.tensor([[USER_TOKEN, 0, 2, 3, 4, 7]]))
    assert bias.shape == (1, 2, 2, 6)
    assert bias[0, 0].tolist() == [[99, 20, 10, 0, -10, -20], [99, 0, -20, -20, -20, -20]]
    assert bias[0, 1].tolist() == [[6, 5, 4, 3, 2, 1], [6, 3, 1, 1, 1, 1]]


def test_item_distance_bias_serves_every_row_with_its_own_positions():
    torch.manual_seed(10)
    module = ItemDistanceBias(num_heads=2, max_distance=4)
    nn.init.normal_(module.bias)
    queries, keys = torch.tensor([[0, 1], [5, 3]]), torch.tensor([[USER_TOKEN, 0, 1]])
    both = module(queries, keys)
    for row in range(2):
        assert torch.equal(both[row : row + 1], module(queries[row : row + 1], keys))


def test_item_distance_bias_starts_at_zero():
    assert not ItemDistanceBias(2, 3)(torch.arange(4).unsqueeze(0), torch.arange(4).unsqueeze(0)).any()

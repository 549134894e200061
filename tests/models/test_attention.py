"""Packed rows against each document alone, against transformers' own packing, and against plain softmax."""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.models import attention
from prism_sweeps.models.attention import KERNELS, block_mask, use_packed_attention, use_padded_rows
from prism_sweeps.models.batch import Documents

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WINDOW = 8
LENGTHS = (5, 23, 1, 16, 11)
"""Less than a window, several, one position, two of them exactly, and the padding at the end."""
TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama": ("Llama", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "phi": ("Phi", {"resid_pdrop": 0.0}),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "resid_pdrop": 0.0}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "num_key_value_heads": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {}),
}


def tiny(name: str, **changes) -> transformers.PreTrainedModel:
    family, own = ARCHITECTURES[name]
    config = getattr(transformers, "Gemma3TextConfig" if name == "gemma3" else f"{family}Config")
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config(**{**TINY, **own, **changes})).train()


def laid_out(lengths: tuple[int, ...], device: torch.device = CPU) -> Documents:
    positions = [torch.arange(length) for length in lengths]
    return Documents(
        lengths=lengths,
        starts_D=torch.tensor([sum(lengths[:n]) for n in range(len(lengths) + 1)], dtype=torch.int32, device=device),
        positions_S=torch.cat(positions).to(device),
        index_S=torch.cat([torch.full_like(each, n) for n, each in enumerate(positions)]).int().to(device),
    )


def packed(llm, embeds_1SD, documents):
    out = llm.base_model(
        inputs_embeds=embeds_1SD, position_ids=documents.positions_S[None], use_cache=False, documents=documents
    )
    return out.last_hidden_state


def alone(llm, embeds_1SD, lengths):
    parts = [llm.base_model(inputs_embeds=part, use_cache=False) for part in embeds_1SD.split(lengths, dim=1)]
    return torch.cat([part.last_hidden_state for part in parts], dim=1)


def a_row(lengths=LENGTHS, width=32, seed=1):
    return torch.randn(1, sum(lengths), width, generator=torch.Generator().manual_seed(seed))


def plain(query_1HSK, key_1JSK, value_1JSK, index_S, scale=None, window=None):
    """Softmax attention with every pair of positions written out."""
    groups = query_1HSK.shape[1] // key_1JSK.shape[1]
    keys, values = key_1JSK.repeat_interleave(groups, dim=1), value_1JSK.repeat_interleave(groups, dim=1)
    scores = query_1HSK @ keys.transpose(2, 3) * (query_1HSK.shape[-1] ** -0.5 if scale is None else scale)
    back = torch.arange(len(index_S), device=index_S.device)
    back = back[:, None] - back
    seen = (index_S[:, None] == index_S) & (back >= 0) & (back < (window or len(index_S)))
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values).transpose(1, 2)


def by_starts(query, key, value, starts, starts_k, longest, longest_k, scale, window_size):
    """What torch and flash-attn say of their variable-length attention, as tensor operations alone."""
    assert starts.dtype == torch.int32
    assert starts is starts_k
    assert longest == longest_k >= query.shape[0]
    left, right = window_size
    assert right == 0
    index_S = torch.searchsorted(starts, torch.arange(len(query)), right=True)
    row = (each.transpose(0, 1)[None] for each in (query, key, value))
    return plain(*row, index_S, scale, None if left < 0 else left + 1)[0]


@pytest.fixture
def on_cpu(monkeypatch):
    """Every kernel's way through this module, on a machine that has none of them."""

    def varlen_attn(q, k, v, sq, sk, mq, mk, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert enable_gqa
        return by_starts(q, k, v, sq, sk, mq, mk, scale, window_size)

    def flash_attn_varlen_func(q, k, v, sq, sk, mq, mk, softmax_scale=None, causal=False, window_size=(-1, -1)):
        assert causal
        return by_starts(q, k, v, sq, sk, mq, mk, softmax_scale, window_size)

    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    monkeypatch.setattr(attention, "_obstacle", lambda *_: None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_and_gradients_are_those_of_documents_alone(name):
    llm, documents, real = tiny(name), laid_out(LENGTHS), sum(LENGTHS[:-1])
    other = copy.deepcopy(llm)
    assert use_packed_attention(llm, "auto", CPU) == "by-document"
    row, same = a_row().requires_grad_(), a_row().requires_grad_()
    weights = a_row(seed=2)
    weights[:, real:] = 0  # padding is supervised nowhere

    hidden = packed(llm, row, documents)
    (hidden * weights).sum().backward()
    expected = alone(other, same[:, :real], LENGTHS[:-1])
    (expected * weights[:, :real]).sum().backward()

    torch.testing.assert_close(hidden[:, :real], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(row.grad, same.grad, atol=1e-5, rtol=1e-4)
    for (parameter, ours), theirs in zip(llm.base_model.named_parameters(), other.base_model.parameters(), strict=True):
        if theirs.grad is None:  # the embedding, which is not used
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=1e-4, msg=parameter)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_what_transformers_computes_for_positions_that_restart(name):
    llm, documents = tiny(name), laid_out(LENGTHS)
    with torch.no_grad():
        expected = llm.base_model(inputs_embeds=a_row(), position_ids=documents.positions_S[None], use_cache=False)
        use_packed_attention(llm, "by-document", CPU)
        hidden = packed(llm, a_row(), documents)
    torch.testing.assert_close(hidden, expected.last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["flex", "varlen", "flash"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_gpu_kernels_are_told_the_same(name, kernel, on_cpu):
    llm, documents = tiny(name), laid_out(LENGTHS)
    with torch.no_grad():
        expected = alone(llm, a_row(), LENGTHS)
        assert use_packed_attention(llm, kernel, CPU) == kernel
        hidden = packed(llm, a_row(), documents)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_document_sees_no_other(name, kernel, on_cpu):
    llm, documents = tiny(name), laid_out(LENGTHS)
    use_packed_attention(llm, kernel, CPU)
    row, changed = a_row(), a_row()
    changed[:, 5:28] += 1
    with torch.no_grad():
        first, second = packed(llm, row, documents), packed(llm, changed, documents)
    moved = (first - second).abs().amax(dim=(0, 2))
    assert moved[:5].max() <= 1e-6
    assert moved[28:].max() <= 1e-6
    assert moved[5:28].min() > 1e-3


def test_one_document_is_a_row_of_its_own():
    llm, lengths = tiny("gemma3"), (29,)
    with torch.no_grad():
        expected = llm.base_model(inputs_embeds=a_row(lengths), use_cache=False).last_hidden_state
        use_packed_attention(llm, "by-document", CPU)
        hidden = packed(llm, a_row(lengths), laid_out(lengths))
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 1, 3, WINDOW, 23, 64])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_by_document_is_softmax_over_a_block_diagonal(window, scale):
    torch.manual_seed(0)
    documents = laid_out(LENGTHS)
    shapes = ((1, 6, sum(LENGTHS), 16), (1, 2, sum(LENGTHS), 16), (1, 2, sum(LENGTHS), 16))
    ours = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [each.detach().clone().requires_grad_() for each in ours]
    out = KERNELS["by-document"].attend(*ours, documents, scale, window)
    expected = plain(*theirs, documents.index_S, scale, window)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    pull = torch.randn_like(out)
    for ours_grad, theirs_grad in zip(
        torch.autograd.grad(out, ours, pull), torch.autograd.grad(expected, theirs, pull), strict=True
    ):
        torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 100, 200, 300])
@pytest.mark.parametrize("lengths", [(700,), (256, 128, 128, 1, 300), (130, 40, 90, 15, 400, 25), (60,)])
def test_blocks_are_those_that_torch_finds_among_all_pairs(lengths, window):
    index_S = laid_out(lengths).index_S

    def inside(b, h, q, k):
        return (index_S[q] == index_S[k]) & (q >= k) & (q - k < (window or 10_000))

    ours, theirs = block_mask(index_S, window), create_block_mask(inside, 1, 1, sum(lengths), sum(lengths), CPU)
    assert ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert int(ours.full_kv_num_blocks.sum()) == int(theirs.full_kv_num_blocks.sum())
    assert torch.equal(ours.q_num_blocks, theirs.q_num_blocks)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_compiled_layer_does_not_learn_the_lengths(kernel, on_cpu):
    """By-document leaves the graph; the others stay in one, of tensors alone."""
    torch._dynamo.reset()
    llm, counter = tiny("mistral", num_hidden_layers=1), CompileCounter()
    use_packed_attention(llm, kernel, CPU)
    plain_layer = copy.deepcopy(llm)
    llm.base_model.layers[0].compile(backend=counter, fullgraph=kernel != "by-document")
    compiled = []
    for lengths in (LENGTHS, (20, 36), (6, 30, 1, 2, 3, 14), (56,), (1, 1, 1, 53)):
        with torch.set_grad_enabled(kernel != "flex"):
            hidden = packed(llm, a_row(lengths), laid_out(lengths))
        torch.testing.assert_close(hidden, packed_without_grad(plain_layer, lengths), atol=1e-5, rtol=0)
        compiled.append(counter.frame_count)
    assert compiled[0] > 0
    assert compiled[1] <= 2 * compiled[0]
    assert compiled[2:] == [compiled[1]] * 3


def packed_without_grad(llm, lengths):
    with torch.no_grad():
        return packed(llm, a_row(lengths), laid_out(lengths))


@pytest.mark.slow
def test_flex_as_it_is_compiled():
    """On a CPU it has a forward pass, where nothing asks for a gradient."""
    torch.manual_seed(0)
    documents = laid_out((100, 7, 60))
    heads = [torch.randn(1, count, 167, 16) for count in (6, 2, 2)]
    with torch.no_grad():
        masks = KERNELS["flex"].layout(documents, SimpleNamespace(sliding_window=50))
        out = KERNELS["flex"].attend(*heads, masks, 0.3, 50)
    torch.testing.assert_close(out, plain(*heads, documents.index_S, 0.3, 50), atol=1e-5, rtol=0)


def test_padded_rows_are_computed_as_before_and_nobody_looks_at_positions(monkeypatch):
    llm, asked = tiny("llama"), []
    row = a_row()
    before = llm.base_model(inputs_embeds=row, use_cache=False).last_hidden_state
    honest = transformers.masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(
        transformers.masking_utils, "find_packed_sequence_indices", lambda *a, **k: asked.append(1) or honest(*a, **k)
    )
    llm.base_model(inputs_embeds=row, use_cache=False)
    assert asked, "transformers looks for it elsewhere by now"
    asked.clear()
    use_padded_rows(llm)
    assert torch.equal(llm.base_model(inputs_embeds=row, use_cache=False).last_hidden_state, before)
    assert not asked


def test_a_model_with_a_window_keeps_its_masks():
    llm = tiny("mistral")
    use_padded_rows(llm)
    assert llm.config._attn_implementation == "sdpa"


def test_set_back_it_takes_masked_rows_again():
    llm = tiny("llama").eval()
    ids = torch.arange(1, 7)[None]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    expected = llm.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    use_packed_attention(llm, "by-document", CPU)
    with pytest.raises(ValueError, match="without `documents`"):
        llm(ids, attention_mask=mask)
    llm.set_attn_implementation("sdpa")
    assert torch.equal(llm.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False), expected)


def test_chosen_twice_it_is_handed_down_once():
    llm = tiny("llama")
    use_packed_attention(llm, "by-document", CPU)
    again = copy.deepcopy(llm)
    use_packed_attention(again, "by-document", CPU)
    assert len(again.base_model._forward_pre_hooks) == 1


def test_documents_that_are_not_the_row():
    llm = tiny("llama")
    use_packed_attention(llm, "by-document", CPU)
    with pytest.raises(ValueError, match="of 9 positions in sum go with one row of as many, not with 1 x 56"):
        packed(llm, a_row(), laid_out((5, 4)))
    with pytest.raises(ConfigError, match="no mask of their own"):
        llm.base_model(
            inputs_embeds=a_row(),
            attention_mask=torch.zeros(1, 1, 56, 56),
            use_cache=False,
            documents=laid_out(LENGTHS),
        )


@pytest.mark.parametrize("kernel", ["flex", "varlen", "flash"])
def test_kernels_without_a_gpu(kernel):
    with pytest.raises(ConfigError, match=f"'{kernel}' needs a GPU, and this is 'cpu'; .*by-document"):
        use_packed_attention(tiny("llama"), kernel, CPU)


def test_a_kernel_that_does_not_exist():
    with pytest.raises(ConfigError, match="no attention 'varlenn'; did you mean 'varlen'"):
        use_packed_attention(tiny("llama"), "varlenn", CPU)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_width", "kernel"),
    [
        ((9, 0), torch.bfloat16, 128, "varlen"),
        ((8, 0), torch.float16, 256, "varlen"),
        ((7, 0), torch.float16, 128, "flex"),
        ((9, 0), torch.float32, 128, "flex"),
        ((9, 0), torch.bfloat16, 320, "flex"),
        ((9, 0), torch.bfloat16, 100, "flex"),
    ],
)
def test_the_choice_on_a_gpu(monkeypatch, capability, dtype, head_width, kernel):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention._choose("auto", CUDA, dtype, head_width) == kernel


def test_obstacles_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ConfigError, match=r"compute capability 8\.0, and this has 7\.5"):
        attention._choose("varlen", CUDA, torch.bfloat16, 64)
    with pytest.raises(ConfigError, match="computes in 16 bits, and precision is float32"):
        attention._choose("varlen", CUDA, torch.float32, 64)
    with pytest.raises(ConfigError, match=r"heads of 8, 16, \.\.\. 256 channels, and the model's have 20"):
        attention._choose("varlen", CUDA, torch.bfloat16, 20)
    if "flash_attn" not in sys.modules:
        with pytest.raises(ConfigError, match="flash-attn, which is not installed"):
            attention._choose("flash", CUDA, torch.bfloat16, 64)


def small(family: str, **changes) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**{**TINY, **changes})
    with torch.device("meta"):
        return getattr(transformers, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: small("Gemma2"), r"caps the scores of its attention \(attn_logit_softcapping=50"),
        (lambda: small("Llama", attention_dropout=0.1), r"drops out attention \(attention_dropout=0\.1\)"),
        (lambda: small("Llama", is_causal=False), "looks ahead"),
        (lambda: small("Qwen3Next"), "linear_attention"),
        (lambda: small("Mamba"), "linear_attention"),
        (lambda: small("Bloom"), "does not let its attention be exchanged"),
        (lambda: small("Phimoe", sliding_window=8), "not told"),
    ],
    ids=["gemma2", "dropout", "both-ways", "linear", "mamba", "bloom", "window-in-mask-alone"],
)
def test_models_that_would_be_computed_otherwise(model, reason):
    with pytest.raises(ConfigError, match=f"cannot be trained on packed rows: .*{reason}"):
        use_packed_attention(model(), "by-document", CPU)


def test_sinks_are_refused_when_they_come():
    llm = small("GptOss", num_local_experts=2, num_experts_per_tok=1, head_dim=16, sliding_window=8)
    use_packed_attention(llm, "by-document", CPU)
    with pytest.raises(ConfigError, match="computed without s_aux"):
        packed(llm, torch.empty(1, 9, 32, device="meta"), laid_out((5, 4), torch.device("meta")))


def test_a_layer_that_keeps_keyword_arguments():
    llm = tiny("llama")
    use_packed_attention(llm, "by-document", CPU)
    layer = llm.base_model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda documents=None, **others: forward(**others)
    with pytest.raises(ConfigError, match="LlamaAttention is not told of documents"):
        packed(llm, a_row(), laid_out(LENGTHS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnGPU:
    @pytest.mark.parametrize("kernel", ["auto", "by-document", "flex", "varlen", "flash"])
    @pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "qwen2"])
    def test_parity(self, name, kernel):
        if kernel == "flash":
            pytest.importorskip("flash_attn")
        lengths = (100, 7, 300, 1, 104)
        llm = tiny(name, sliding_window=64, head_dim=16) if name != "llama" else tiny(name)
        other = copy.deepcopy(llm).to(CUDA)
        llm = llm.to(CUDA, torch.bfloat16)
        use_packed_attention(llm, kernel, CUDA)
        row = a_row(lengths).to(CUDA, torch.bfloat16).requires_grad_()
        same = row.detach().float().requires_grad_()
        hidden, expected = packed(llm, row, laid_out(lengths, CUDA)), alone(other, same, lengths)
        torch.testing.assert_close(hidden.float(), expected, atol=0.1, rtol=0.1)
        pull = a_row(lengths, seed=2).to(CUDA)
        hidden.backward(pull.bfloat16())
        expected.backward(pull)
        assert torch.nn.functional.cosine_similarity(row.grad.float().flatten(), same.grad.flatten(), dim=0) > 0.999

    @pytest.mark.parametrize("kernel", ["by-document", "flex", "varlen"])
    @pytest.mark.parametrize("compiled", [False, True])
    def test_nothing_waits_for_the_device(self, kernel, compiled):
        llm = tiny("gemma3").to(CUDA, torch.bfloat16)
        use_packed_attention(llm, kernel, CUDA)
        if compiled:
            for layer in llm.base_model.layers:
                layer.compile()
        rows = [(lengths, laid_out(lengths, CUDA)) for lengths in (LENGTHS, (40, 16), (3, 30, 2, 21), (10, 46))]
        row = a_row().to(CUDA, torch.bfloat16)
        for _, documents in rows[:3]:  # compiling may wait
            packed(llm, row, documents).sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            packed(llm, row, rows[3][1]).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

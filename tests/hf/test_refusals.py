"""What patterns cannot honour is refused by name, before anything is changed or in the first forward pass."""

import pytest
import torch
from transformers import DynamicCache

from sparse_attn import Anchors, Full, Sinks, Window
from sparse_attn.hf import restore, sparsify

llama = pytest.mark.parametrize("family", ["llama"], indirect=True)
mistral = pytest.mark.parametrize("family", ["mistral"], indirect=True)

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 40}  # fmt: skip


def _t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def _deepseek():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = {**TINY, "num_key_value_heads": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
             "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1,
             "topk_group": 1, "first_k_dense_replace": 2}  # fmt: skip
    sizes.pop("head_dim")
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes))


def _gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**TINY))


def _gemma3_bidirectional():
    from transformers import Gemma3TextConfig, Gemma3TextModel

    return Gemma3TextModel(Gemma3TextConfig(**TINY, use_bidirectional_attention=True))


def _gpt_oss():
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**TINY, num_local_experts=2, num_experts_per_tok=1))


def _llama4():
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    sizes = {**TINY, "intermediate_size_mlp": 32, "num_local_experts": 1, "num_experts_per_tok": 1}
    return Llama4ForCausalLM(Llama4TextConfig(**sizes))


def _bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=40)
    )


def _bloom():
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2))


def _returns_weights():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TINY, output_attentions=True, attn_implementation="eager"))


UNSUPPORTED = {
    "t5": (_t5, "encoder-decoder"),
    "deepseek-v3": (_deepseek, "latent attention"),
    "gemma-2": (_gemma2, "soft-caps"),
    "gemma-3-bidirectional": (_gemma3_bidirectional, "bidirectional"),
    "gpt-oss": (_gpt_oss, "learned sinks"),
    "llama-4": (_llama4, "chunked_attention"),
    "bert": (_bert, "bidirectional"),
    "bloom": (_bloom, "AttentionInterface"),
    "output-attentions": (_returns_weights, "attention weights"),
}


@pytest.mark.parametrize(("make", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_models_that_need_more(make, reason):
    model = make()
    before = model.config.to_dict(), model.config._attn_implementation
    with pytest.raises(NotImplementedError, match=reason):
        sparsify(model, Window(4))
    assert (model.config.to_dict(), model.config._attn_implementation) == before


@llama
def test_what_is_no_pattern(family):
    model = family.model
    for wrong, message in (
        ("window(4)", r"or 'auto', got 'window\(4\)'; text goes through sparse_attn\.parse"),
        (None, "or 'auto', got None$"),
        (3, "a mapping from layer number to Pattern, a function of the layer number, or 'auto', got 3$"),
        ({3: Window(4)}, "layer 3, but the model's layers are 0 to 2"),
        ({-1: Window(4)}, "layer -1"),
        ({"0": Window(4)}, "layer '0'"),
        ({0: "window(4)"}, "layer 0 must be a Pattern"),
        ({0: None}, "layer 0 must be a Pattern"),
        (lambda layer: 5, "layer 0 must be a Pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsify(model, wrong)
    with pytest.raises(NotImplementedError, match="anchors"):
        sparsify(model, Window(4) | Anchors(2))
    with pytest.raises(ValueError, match="PreTrainedModel"):
        sparsify(torch.nn.Linear(2, 2), Window(4))
    with pytest.raises(ValueError, match="implementation"):
        sparsify(model, Window(4), implementation="cuda")
    assert model.config._attn_implementation == "sdpa"


@llama
def test_masks_made_by_the_caller(family, ids):
    model = sparsify(family.model, Window(4))
    with pytest.raises(NotImplementedError, match=r"mask made by the caller"):
        model(ids, attention_mask=torch.zeros(2, 1, 40, 40))
    with pytest.raises(ValueError, match=r"attention_mask must be \[2, 40\]"):
        model(ids, attention_mask=torch.ones(2, 39))
    cache = DynamicCache()
    model(ids[:, :6], past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=r"6 cached and 1 new"):
        model(ids[:, 6:7], past_key_values=cache, use_cache=True, attention_mask=torch.ones(2, 1))


@llama
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"output_attentions": True}, "attention weights"),
        ({"head_mask": torch.ones(4)}, "head mask"),
        ({"softcap": 50.0}, "soft-capped"),
        ({"s_aux": torch.ones(4)}, "learned sinks"),
        ({"is_causal": False}, "bidirectional"),
        ({"cu_seq_lens_q": torch.tensor([0, 40])}, "packed documents"),
        ({"position_bias": torch.ones(4)}, "position_bias"),
    ],
)
def test_keywords_that_change_attention(family, ids, option, reason):
    model = sparsify(family.model, Window(4))
    with pytest.raises(NotImplementedError, match=reason):
        model(ids, use_cache=False, **option)


@llama
def test_keywords_that_change_nothing(family, ids):
    model = sparsify(family.model, Window(4), implementation="reference")
    options = {"output_hidden_states": True, "use_cache": False, "num_items_in_batch": torch.tensor(3), "s_aux": None}
    assert len(model(ids, **options, output_attentions=False).hidden_states) == 4


@llama
def test_dropout(family, ids):
    model = family.fresh()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    sparsify(model, Window(4), implementation="reference")
    model(ids)  # not in evaluation
    with pytest.raises(NotImplementedError, match=r"dropout 0\.1"):
        model.train()(ids)


@llama
def test_packed_documents_where_transformers_would_mix_them(family, ids):
    model = sparsify(family.model, Window(4), implementation="reference")
    packed = torch.cat([torch.arange(15), torch.arange(25)])[None]
    with pytest.raises(NotImplementedError, match="position_ids restart"):
        model(ids, position_ids=packed)  # the model makes a cache by itself
    with pytest.raises(NotImplementedError, match="position_ids restart"):
        model(ids, position_ids=packed, use_cache=False, attention_mask=torch.ones_like(ids))
    real = torch.ones_like(ids)
    real[0, :3] = 0
    with pytest.raises(NotImplementedError, match="position_ids restart"):
        model(ids, position_ids=packed, use_cache=False, attention_mask=real)
    cache = DynamicCache()
    model(ids[:, :9], past_key_values=cache, use_cache=True)
    with pytest.raises(NotImplementedError, match="position_ids restart"):
        model(ids[:, 9:], past_key_values=cache, use_cache=True, position_ids=torch.arange(31)[None])


@mistral
def test_holes_in_a_sliding_window(family, ids):
    model = sparsify(family.model, Full(), implementation="reference")
    real = torch.ones_like(ids)
    real[0, 12:14] = 0
    with pytest.raises(NotImplementedError, match="padding between real tokens"):
        model(ids, attention_mask=real)


@mistral
def test_a_cache_that_drops_too_much(family, ids):
    from transformers.cache_utils import DynamicSlidingWindowLayer

    model = sparsify(family.model, Window(4), implementation="reference")
    cache = DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(3) for _ in range(3)]
    model(ids[:, :9], past_key_values=cache, use_cache=True)
    with pytest.raises(NotImplementedError, match="has dropped"):
        model(ids[:, 9:], past_key_values=cache, use_cache=True)


@llama
def test_a_layer_without_a_pattern(family, ids):
    model = sparsify(family.fresh(), Window(4) | Sinks(1))
    restore(model)
    model.set_attn_implementation("sparse_attn")
    with pytest.raises(RuntimeError, match="sparsify was not called"):
        model(ids)


def test_image_tokens_that_see_each_other():
    from transformers.masking_utils import causal_mask_function, or_masks

    from sparse_attn.hf.mask_function import read_rule

    with pytest.raises(NotImplementedError, match="or_masks"):
        read_rule(or_masks(causal_mask_function, lambda b, h, q, k: q >= k))
    with pytest.raises(NotImplementedError, match="cannot honour"):
        read_rule(lambda b, h, q, k: q >= k)
    assert read_rule(causal_mask_function) == (None, None)

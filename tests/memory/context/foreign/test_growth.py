"""A tokenizer that makes a huge text of a short one is refused; usual tokenizers are not."""

from __future__ import annotations

import pytest

from scrubjay.memory.context.foreign.growth import TokenizerLimitError, check_growth

pytestmark = pytest.mark.requires("transformers")


def make_tokenizer(**parts):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def huge_tokenizers():
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    many = normalizers.Sequence
    return {
        "replace": make_tokenizer(normalizer=many([normalizers.Replace("a", "a" * 50)] * 8)),
        "regex": make_tokenizer(normalizer=normalizers.Replace(Regex("x*"), "a" * 2000)),
        "prepend": make_tokenizer(normalizer=many([normalizers.Prepend("a" * 100)] * 500)),
        "prepend and replace": make_tokenizer(
            normalizer=many([normalizers.Prepend("a" * 999), normalizers.Replace("a", "a" * 900)])
        ),
        "unicode": make_tokenizer(normalizer=many([normalizers.NFKC()] * 9)),
        "bytes": make_tokenizer(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 9)),
        "both": make_tokenizer(
            normalizer=normalizers.Replace("a", "a" * 99),
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 3),
        ),
        "decoder": make_tokenizer(decoder=decoders.Sequence([decoders.Replace("a", "a" * 50)] * 8)),
        "template": make_tokenizer(
            post_processor=processors.TemplateProcessing(
                single=["[A]"] * 10_001 + ["$A"], special_tokens=[("[A]", 0)]
            )
        ),
        "words": Tokenizer(models.WordPiece({"a": 0}, unk_token="a", max_input_chars_per_word=10**9)),
    }


@pytest.mark.parametrize("name", huge_tokenizers() if pytest.importorskip("tokenizers") else ())
def test_a_tokenizer_that_grows_texts_is_refused(name):
    with pytest.raises(TokenizerLimitError, match=r"1,000|10,000"):
        check_growth(huge_tokenizers()[name])


def test_usual_tokenizers_pass(tiny_chat):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    check_growth(tiny_chat[1].backend_tokenizer)
    check_growth(make_tokenizer())
    check_growth(
        make_tokenizer(
            normalizer=normalizers.Sequence(
                [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            ),
            decoder=decoders.Sequence(
                [
                    decoders.Replace("\u2581", " "),
                    decoders.ByteFallback(),
                    decoders.Fuse(),
                    decoders.Strip(" ", 1, 0),
                ]
            ),
            post_processor=processors.TemplateProcessing(single="[A] $A [A]", special_tokens=[("[A]", 0)]),
        )
    )
    check_growth(
        make_tokenizer(
            normalizer=normalizers.Sequence(
                [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace("  ", " ")]
            ),
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
            ),
        )
    )
    bert = Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    bert.normalizer, bert.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    check_growth(bert)

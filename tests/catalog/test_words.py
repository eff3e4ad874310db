"""One spelling and no endings, and words that only look alike stay apart."""

import pytest

from foveate.catalog.words import stem, words


@pytest.mark.parametrize(
    "family",
    [
        "quantization quantisation quantize quantise quantized quantised quantizer quantiser",
        "optimise optimize optimiser optimizers optimisation optimized",
        "behaviour behavior behaviours",
        "neighbour neighbor neighbours",
        "centre center centres",
        "modelling modeling model models",
        "label labels labelled labeled labelling",
        "analyse analyze analysing",
        "prune pruned pruning prunes",
        "distill distilled distillation distilling",
        "kernel kernels",
        "class classes",
        "sparse sparsity",
        "catalogue catalog",
        "grey gray",
        "Poincaré poincare",
    ],
)
def test_one_word_has_one_stem(family):
    assert len({stem(word) for word in words(family)}) == 1


@pytest.mark.parametrize(
    "pair", ["four for4", "vit vits2", "loss low", "pruning prompt", "gan gate"]
)
def test_other_words_keep_apart(pair):
    assert len({stem(word) for word in words(pair)}) == 2


def test_words_come_in_order_and_without_empty_ones():
    assert words("The roofline of a ConvNet, 2303.16900") == ["roofline", "convnet", "2303.16900"]

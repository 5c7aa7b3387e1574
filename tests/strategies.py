"""Hypothesis strategies shared by the tests."""

from hypothesis import strategies as st


@st.composite
def vocabularies(draw: st.DrawFn, max_bits: int = 70, max_size: int = 400) -> tuple[int, int]:
    """Draw (vocab_size, bits) with a code for every token: often with none to spare, often with 65 bits and more."""
    bits = draw(st.integers(1, max_bits))
    most = min(2**bits - 1, max_size)
    return draw(st.integers(0, most) | st.just(most)), bits


@st.composite
def texts(draw: st.DrawFn, most: int = 8) -> tuple[int, int, list[list[int]]]:
    """Draw (vocab_size, separator, documents): few tokens, empty documents, copies, separators inside a document."""
    vocab_size = draw(st.integers(2, 5))
    document = st.lists(st.integers(0, vocab_size - 1), max_size=most)
    different = draw(st.lists(document, min_size=1, max_size=4))
    documents = draw(st.lists(st.sampled_from(different), min_size=1, max_size=6))
    return vocab_size, draw(st.integers(0, vocab_size - 1)), documents

"""Hypothesis strategies shared by the tests."""

from hypothesis import strategies as st


@st.composite
def vocabularies(draw: st.DrawFn, max_bits: int = 70, max_size: int = 400) -> tuple[int, int]:
    """Draw (vocab_size, bits) with a code for every token: often with none to spare, often with 65 bits and more."""
    bits = draw(st.integers(1, max_bits))
    most = min(2**bits - 1, max_size)
    return draw(st.integers(0, most) | st.just(most)), bits

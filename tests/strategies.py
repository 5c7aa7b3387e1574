"""Hypothesis strategies shared by the tests."""

from hypothesis import strategies as st


@st.composite
def vocabularies(draw: st.DrawFn, max_bits: int = 70, max_size: int = 400) -> tuple[int, int]:
    """A (vocab_size, bits) that fits, often exactly full and often just beyond a word."""
    bits = draw(st.integers(1, max_bits))
    most = min(2**bits - 1, max_size)
    return draw(st.integers(0, most) | st.just(most)), bits

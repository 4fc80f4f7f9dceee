"""Random patterns and lengths for property tests."""

from hypothesis import strategies as st

from sparse_attn.patterns import Chunked, Dilated, Full, Global, Pattern, Random, Sinks, Strided, Window

small = st.integers(1, 20)


def _strided(draw: st.DrawFn) -> Strided:
    stride = draw(small)
    return Strided(stride, draw(st.integers(0, stride - 1)), draw(st.sampled_from(["all", "strided"])))


terms = st.one_of(
    st.builds(Window, small, st.none() | st.integers(0, 20)),
    st.builds(Chunked, small),
    st.builds(Full),
    st.builds(Dilated, st.none() | small, st.integers(1, 9)),
    st.composite(_strided)(),
    st.builds(Sinks, st.integers(1, 9)),
    st.builds(Global, st.lists(st.integers(0, 50), max_size=5)),
    st.builds(Random, st.integers(1, 4), st.integers(0, 3), st.sampled_from([1, 4, 6, 8])),
)
windows = st.builds(Window, st.integers(1, 30), st.none() | st.integers(0, 30))


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """Unions of one to four terms, each cut by a window or not, and the whole cut again or not."""
    pattern: Pattern | None = None
    for _ in range(draw(st.integers(1, 4))):
        own: Pattern = draw(terms)
        if draw(st.integers(0, 3)) == 0:
            own = own.within(draw(windows))
        pattern = own if pattern is None else pattern | own
    assert pattern is not None
    return pattern.within(draw(windows)) if draw(st.integers(0, 4)) == 0 else pattern


@st.composite
def lengths(draw: st.DrawFn) -> tuple[int, int]:
    """T and S with T <= S."""
    n_keys = draw(st.integers(0, 70))
    return draw(st.integers(0, n_keys)), n_keys


@st.composite
def packed(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Boundaries of queries and of keys for up to four documents."""
    q_bounds, k_bounds = [0], [0]
    for n_queries, n_keys in draw(st.lists(lengths(), min_size=1, max_size=4)):
        q_bounds.append(q_bounds[-1] + n_queries)
        k_bounds.append(k_bounds[-1] + n_keys)
    return q_bounds, k_bounds

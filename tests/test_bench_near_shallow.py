"""The bench of near-shallow networks: equal time, and a section from made results."""

from benchmarks import claims, near_shallow


def arm(*nats, seconds=1.0, weights=1000):
    phases = [{"tokens": 150_000, "seconds": seconds, "nats": loss} for loss in nats]
    return {"start": 6.0, "phases": phases, "weights": weights, "test": nats[-1] + 0.1, "factors": {"a": 1.0, "b": 0.5}}


ARMS = {name: arm(5.5, 5.0 - 0.01 * i, seconds=i + 1.0) for i, name in enumerate(near_shallow.NETWORKS)}
PHASES = {name: arm(*([4.5] if share == 0 else [5.0, 4.6])) for name, share in near_shallow.SHARES.items()}


def test_equal_time_is_that_of_the_reference():
    seconds = {name: sum(phase["seconds"] for phase in ARMS[name]["phases"]) for name in near_shallow.FAMILY}
    for name in near_shallow.FAMILY:
        tokens = near_shallow.same_time(ARMS, name)
        expected = near_shallow.TOKENS * seconds[near_shallow.REFERENCE] / seconds[name]
        assert abs(tokens - expected) <= 0.05 * expected
    assert near_shallow.same_time(ARMS, near_shallow.REFERENCE) == near_shallow.TOKENS


def test_the_section_says_what_the_verdicts_need():
    timed = {name: arm(5.0, 4.0) for name in near_shallow.FAMILY}
    tables = [
        near_shallow.contexts_table(ARMS),
        near_shallow.family_table(ARMS, timed),
        near_shallow.phases_table(PHASES),
    ]
    conclusion, body = near_shallow.section(ARMS, PHASES, "\n".join(tables))
    assert "are 0.010, 0.020, 0.030 nats below" in conclusion
    assert "a frozen phase brings -0.100 nats over none" in conclusion
    verdicts = [claims.verdict(claim, conclusion)[0] for claim in claims.CLAIMS if claim.section == "near_shallow"]
    assert verdicts == [claims.HOLDS, claims.FAILS]
    assert "| radial and block of 256 | 6.000 | 5.500 | 4.970 | 5.070 | 37,500 | 37,500 |" in body
    assert "| never frozen | 1 | 0.5 | 4.500 | 4.600 |" in body

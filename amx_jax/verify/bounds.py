"""What a number of successes in independent trials says of their probability: exact bounds."""

from scipy.special import betaincinv


def clopper_pearson(kept: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided exact interval of a binomial probability.

    With α = 1 − confidence, K binomial of n trials and k what was seen, the lower bound is the p at
    which P(K ≥ k) = α/2 and the upper the p at which P(K ≤ k) = α/2; 0 if k = 0, and 1 if k = n.
    Whatever the true probability, the interval covers it with at least the confidence, on condition
    that the trials are independent draws from the distribution that the claim is about.

    Args:
        kept: k, how many trials succeeded, as backgrounds that keep the target; 0 … n.
        trials: n, at least 1.
        confidence: in (0, 1).

    Returns:
        The lower and upper bound, in [0, 1].

    Raises:
        ValueError: a value outside its range.

    Examples:
        >>> lower, upper = clopper_pearson(32, 32)
        >>> round(lower, 4), upper
        (0.8911, 1.0)

    Reference: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 26 (1934).
    """
    one_sided = (1 + confidence) / 2
    lower = clopper_pearson_lower(kept, trials, one_sided)
    return lower, 1 - clopper_pearson_lower(trials - kept, trials, one_sided)


def clopper_pearson_lower(kept: int, trials: int, confidence: float = 0.95) -> float:
    """What a binomial probability exceeds, with the confidence: the p with P(K ≥ k) = 1 − confidence.

    P(K ≥ k) is the regularised incomplete beta function I_p(k, n − k + 1), inverted here. For *robust
    on at least this share of the backgrounds* this one-sided bound is the claim; it is tighter than the
    lower end of :func:`clopper_pearson` at the same confidence.

    Args:
        kept: k, how many trials succeeded; 0 … n.
        trials: n, at least 1.
        confidence: in (0, 1).

    Returns:
        The bound, in [0, 1); 0 if k = 0.

    Raises:
        ValueError: a value outside its range.

    Examples:
        >>> round(clopper_pearson_lower(32, 32), 4)
        0.9106
    """
    if trials < 1:
        raise ValueError(f"trials: found {trials}, expected at least 1")
    if not 0 <= kept <= trials:
        raise ValueError(f"kept: found {kept} of {trials} trials, expected 0 to {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: found {confidence}, expected more than 0 and less than 1")
    return float(betaincinv(kept, trials - kept + 1, 1 - confidence)) if kept else 0.0

"""Learning-rate schedules as functions of the step: a factor for the peak rate, 0-based steps, linear warm-up first."""

import math

SCHEDULES = ("cosine", "inverse_sqrt", "constant")


def learning_rate_factor(schedule: str, step: int, warmup_steps: int, total_steps: int, floor: float = 0.0) -> float:
    """Factor in [0, 1] for the peak learning rate.

    Args:
        schedule: ``cosine`` falls to ``floor`` at ``total_steps`` (Loshchilov & Hutter 2017); ``inverse_sqrt`` falls as
            sqrt(warmup / step) (TIGER, appendix B); ``constant`` stays.
        step: updates done before this one.
        warmup_steps: updates over which the rate rises linearly to its peak.
        total_steps: updates of the whole run.
        floor: the cosine's last value.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}: it can be one of {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / max(1, step))
    return 1.0

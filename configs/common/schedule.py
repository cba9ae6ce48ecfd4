"""Learning-rate schedules: functions of progress in [0, 1] that scale the learning rate of every group.

Milestones are iterations of the schedule's own length.  With another `train.max_iter` they scale with the run.
"""

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
)

from local2global.lazy import LazyCall as L


def multistep(max_iter, milestones, gamma=0.1):
    """Multiplies the rate by `gamma` at every milestone."""
    return L(MultiStepParamScheduler)(
        values=[gamma**i for i in range(len(milestones) + 1)],
        milestones=list(milestones),
        num_updates=max_iter,
    )


def warmed_up(scheduler, fraction, start, scaling="fixed"):
    """Linear warm-up from `start` to 1 over the first `fraction` of the run, then `scheduler`.

    Scaling "fixed" replaces the beginning of the scheduler, "rescaled" delays the scheduler.
    """
    return L(CompositeParamScheduler)(
        schedulers=[L(LinearParamScheduler)(start_value=start, end_value=1.0), scheduler],
        lengths=[fraction, 1 - fraction],
        interval_scaling=["rescaled", scaling],
    )


def cosine(warmup=0.05, final=0.01):
    """For short runs: linear warm-up over the first `warmup` of the run, then a half cosine down to `final`."""
    falling = L(CosineParamScheduler)(start_value=1.0, end_value=final)
    return warmed_up(falling, warmup, start=0.01, scaling="rescaled")


# Video training: 120 K iterations, x 0.1 at 60 K.
lr_multiplier_video = multistep(120_000, [60_000])

# COCO pre-training: 60 K iterations at a constant rate.  fvcore's ConstantParamScheduler raises at progress 1, where
# trainers still call it.
lr_multiplier_pretrain = multistep(60_000, [])

# Demos and short trials.
lr_multiplier_short = cosine()

"""Learning-rate schedules: functions of progress in [0, 1] that multiply every group's rate.

Milestones are iterations of the schedule's own length; a run made shorter or longer by `train.max_iter` keeps
them at the same share of the way.
"""

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
)

from local2global.lazy import LazyCall as L


def multistep(max_iter, milestones, gamma=0.1):
    """Times `gamma` at every milestone."""
    return L(MultiStepParamScheduler)(
        values=[gamma**i for i in range(len(milestones) + 1)],
        milestones=list(milestones),
        num_updates=max_iter,
    )


def warmed_up(scheduler, share, start, scaling="fixed"):
    """A linear rise from `start` to 1 over the first `share` of the run, then `scheduler`.

    `scaling` is "fixed" where the rise hides the scheduler's beginning, "rescaled" where it pushes it back.
    """
    return L(CompositeParamScheduler)(
        schedulers=[L(LinearParamScheduler)(start_value=start, end_value=1.0), scheduler],
        lengths=[share, 1 - share],
        interval_scaling=["rescaled", scaling],
    )


def cosine(warmup=0.05, final=0.01):
    """For short runs: a rise over the first twentieth, then half a cosine down to `final`."""
    falling = L(CosineParamScheduler)(start_value=1.0, end_value=final)
    return warmed_up(falling, warmup, start=0.01, scaling="rescaled")


# Video training: 120 K iterations, a tenth from the middle on.
lr_multiplier_video = multistep(120_000, [60_000])

# COCO pre-training: 60 K iterations at one rate.  fvcore's ConstantParamScheduler would raise at the end of a
# run, where trainers still ask.
lr_multiplier_pretrain = multistep(60_000, [])

# Demos and short trials.
lr_multiplier_short = cosine()

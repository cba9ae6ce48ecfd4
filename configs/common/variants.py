"""Short names for parts of the model, for overrides of every config: `model.tracker.local_positions=dynamic`."""

from local2global.lazy import LazyCall as L
from local2global.modeling.criterion import FullSupervision, ReducedSupervision
from local2global.modeling.positions import (
    DynamicLocalPositions,
    NoPositions,
    StaticLocalPositions,
    StaticPositions,
    TrajectoryPositions,
)
from local2global.modeling.tracker import FromLocal, Learned
from local2global.modeling.variants import FromProposals, ImageTracker

_slots = dict(num_queries="${model.segmenter.num_queries}", dim="${model.segmenter.dim}")

variants = {
    "model.tracker": dict(bypass=L(ImageTracker)()),
    "model.tracker.local_positions": dict(
        static=L(StaticLocalPositions)(**_slots), dynamic=L(DynamicLocalPositions)()
    ),
    "model.tracker.positions": dict(
        trajectory=L(TrajectoryPositions)(), static=L(StaticPositions)(**_slots), none=L(NoPositions)()
    ),
    "model.tracker.first_frame": dict(
        local=L(FromLocal)(),
        unaligned=L(FromLocal)(align=False),
        proposals=L(FromProposals)(),
        learned=L(Learned)(**_slots),
    ),
    "model.criterion.supervision": dict(reduced=L(ReducedSupervision)(), full=L(FullSupervision)()),
}

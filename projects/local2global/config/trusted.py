"""Callables that a yaml config may name.  A yaml file is data, perhaps from a stranger; a .py config is code.

Below `model`, a yaml config may build layers of this package and of torch.  Elsewhere it may also build the datasets,
loaders, evaluators, optimizers and schedules that the shipped configs use.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .targets import current_name, locate, within

#: Callables of this package outside `modeling`, by module.
_RUN_PARTS = {
    "data.augment": "ClipAugmentation ColourJitter DriftingCrop Identity LargeScaleJitter RandomShortestEdge Turn "
    "ZoomCrop",
    "data.excerpts": "excerpts",
    "data.generated.shapes": "load_shapes",
    "data.holdout": "holdout",
    "data.loader": "Curriculum Mixture build_test_loader build_train_loader",
    "data.readers.coco": "load_coco",
    "data.readers.layouts": "load_annotated load_split load_vipseg",
    "data.readers.panoptic": "PanopticRecords",
    "data.scene_cuts": "SceneCuts",
    "data.small_sets": "large_objects one_class real_clips",
    "engine.optim": "parameter_groups",
    "evaluation.vps_evaluator": "TruthFiles VPSEvaluator",
    "evaluation.ytvis": "YTVISEvaluator",
}
RUN_PARTS = frozenset(f"local2global.{m}.{name}" for m, names in _RUN_PARTS.items() for name in names.split())

#: Modules whose classes may be built below `model`, and in the rest of a config.
_MODEL_CLASSES = ("local2global.modeling", "local2global.results.panoptic", "torch.nn.modules")
_RUN_CLASSES = ("torch.optim", "fvcore.common.param_scheduler")
#: Names by which torch's classes are found, such as `torch.nn.Linear`.
_ALIASES = ("torch.nn",)

UNSAVED = "_unsaved_"


def check_trusted(value: Any, where: str, *, is_model: bool) -> None:
    """Check every target of a yaml config.

    Args:
        value: the content below one key.
        where: its file and key, for messages.
        is_model: whether it lies below `model`.

    Raises:
        UserError: if a target may not be built.
    """
    if isinstance(value, Mapping):
        if UNSAVED in value:
            raise UserError(f"{where}: could not be saved ({value[UNSAVED]}). Use the original config file")
        if "_target_" in value and not isinstance(value["_target_"], Mapping):
            name = value["_target_"]
            if not _is_trusted(name, is_model):
                raise UserError(f"{where}: a yaml config may not build '{name}'. Use the original .py config")
        for name, item in value.items():
            check_trusted(item, f"{where}.{name}", is_model=is_model)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_trusted(item, f"{where}[{i}]", is_model=is_model)


def _is_trusted(name: Any, is_model: bool) -> bool:
    """Whether a target may be built.

    The name is checked before anything is imported, then the module that defines the object: `torch.nn.os.system` is
    not torch's.
    """
    if not isinstance(name, str):
        return False
    name = current_name(name)
    if not is_model and name in RUN_PARTS:
        return True
    classes = _MODEL_CLASSES if is_model else (*_MODEL_CLASSES, *_RUN_CLASSES)
    if not within(name, (*classes, *_ALIASES)):
        return False
    target = locate(name)
    return inspect.isclass(target) and within(str(target.__module__), classes)

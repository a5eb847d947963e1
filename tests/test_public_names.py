"""What users may import: a change of this list is a change of the interface."""

import subprocess
import sys
from importlib import import_module

import pytest

from support import environment

PUBLIC = {
    "kinetics_tools": (
        "EvaluationError KineticsError ManifestError MediaError OutError Reason ShardError "
        "SourceError StoreError UnknownNameError"
    ),
    "kinetics_tools.flow": (
        "BOUND_PX CODECS Codec FlowMethod FlowRecipe METHODS compute dequantise find_devices "
        "make_method quantise stream"
    ),
    "kinetics_tools.media": "ClipRecipe Cut Video conform count_frames cut find_ffmpeg probe",
    "kinetics_tools.shards": (
        "FileCache Location RGB SCHEMA_VERSION Sample ShardFolder StreamRecipe read_samples"
    ),
    "kinetics_bench.archs": "ARCHS Arch CHANNELS STREAMS Sampling build",
    "kinetics_bench.weights": "FINETUNES INITS InitWeights SCHEMES Weights load_init read",
    "kinetics_bench.data": (
        "Batch BatchPlan ClipDataset ClipLoader Crops Item Reader Selection Step View eval_items "
        "eval_view middle_view network_inputs select train_batches train_view whole_view"
    ),
    "kinetics_bench.protocols": "EvalProtocol Extent PROTOCOLS protocol_named",
    "kinetics_bench.recipes": (
        "LENGTH MultiStep OneCycle Plateau RECIPES Recipe RecipeChoice Schedule as_toml "
        "differing_fields override_text parse_override "
        "read_recipe_file recipe_for"
    ),
}


@pytest.mark.parametrize("package", PUBLIC)
def test_each_package_exports_just_these_names(package: str) -> None:
    module = import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = module.nothing_of_this_name


@pytest.mark.parametrize("package", PUBLIC)
def test_importing_a_package_is_light(package: str) -> None:
    heavy = ("torch", "numpy", "pandas", "cv2", "av", "webdataset", "yt_dlp", "numba", "matplotlib")
    code = f"import sys, {package}; print(sorted({{*{heavy}}} & sys.modules.keys()))"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert said.stdout == "[]\n"
